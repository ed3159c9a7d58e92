"""What a hot budget over PostgreSQL takes: 4 processes of 32 callers each, all in one budget.

Ratios, in one run on one machine: (a) a row lock for each call, in plain SQL; (b) ours, which asks the store
for each call; (c) ours with leases; (d) the memory store, one process. A "call" is a reserve and a settle.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
import postgres

from behest_integrations import Meter, Usage
from behest_integrations.wire import RequestBound

pytestmark = pytest.mark.benchmark
SECONDS, WARM, PROCESSES, CALLERS = 4.0, 2.0, 4, 32
HOT = "1000000000 calls"
BOUND = RequestBound(100, output_limit=50, limit_fields=("max_tokens",))


def row_lock(uri: str, ready: Any, done: Any) -> None:
    """Two transactions a call, each with the budget's row locked."""
    count = [0] * CALLERS
    until: list[float] = []

    def caller(me: int) -> None:
        with psycopg.connect(uri, autocommit=True) as connection:
            started.wait()
            while time.monotonic() < until[0]:
                with connection.transaction():
                    connection.execute("SELECT held FROM hot WHERE id = 1 FOR UPDATE")
                    connection.execute("UPDATE hot SET held = held + 1 WHERE id = 1")
                    connection.execute("INSERT INTO calls (who, cost) VALUES (%s, 0)", [str(me)])
                with connection.transaction():
                    connection.execute("UPDATE hot SET held = held - 1, spent = spent + 1 WHERE id = 1")
                    connection.execute("INSERT INTO calls (who, cost) VALUES (%s, 1)", [str(me)])
                count[me] += 1

    started = threading.Barrier(CALLERS + 1)
    threads = [threading.Thread(target=caller, args=(me,)) for me in range(CALLERS)]
    for thread in threads:
        thread.start()
    ready.wait()
    until.append(time.monotonic() + SECONDS)
    started.wait()
    for thread in threads:
        thread.join()
    done.put((sum(count), 0.0))


def ours(url: str, ready: Any, done: Any, leases: bool = False, budgets: tuple[str, ...] = (HOT,)) -> None:
    """A reserve and a settle a call, by tasks."""
    waited: list[float] = []

    async def run() -> int:
        until = time.monotonic() + WARM

        async def caller() -> int:
            made = 0
            while (now := time.monotonic()) < until:
                hold = await meter.areserve(plan)
                waited.append(time.monotonic() - now)
                await hold.asettle(Usage(10, 5))
                made += 1
            return made

        await asyncio.gather(*(caller() for _ in range(CALLERS)))  # whoever is to have a lease has one now
        waited.clear()
        until = time.monotonic() + SECONDS
        return sum(await asyncio.gather(*(caller() for _ in range(CALLERS))))

    with Meter(url, budgets=budgets, thresholds=[], store_timeout=60, leases=leases) as meter:
        with meter.session(str(os.getpid())):
            plan = meter.plan("chat", "gpt-4o", BOUND)
            meter.reserve(plan).settle(Usage(1))
            ready.wait()
            made = asyncio.run(run())
        done.put((made, statistics.median(waited)))


def with_leases(url: str, ready: Any, done: Any) -> None:
    ours(url, ready, done, leases=True)


def nothing_shared(url: str, ready: Any, done: Any) -> None:
    ours(url, ready, done, budgets=(f"{HOT} per session",))


def both(url: str, ready: Any, done: Any) -> None:
    ours(url, ready, done, budgets=(HOT, f"{HOT} per session"))


def both_with_leases(url: str, ready: Any, done: Any) -> None:
    ours(url, ready, done, leases=True, budgets=(HOT, f"{HOT} per session"))


def rate(work: Any, where: str, processes: int) -> tuple[float, float]:
    """Calls a second, and the median of what a reserve waits, in seconds."""
    spawn = multiprocessing.get_context("spawn")
    ready, done = spawn.Barrier(processes), spawn.Queue()
    running = [spawn.Process(target=work, args=(where, ready, done)) for _ in range(processes)]
    for process in running:
        process.start()
    found = [done.get(timeout=300) for _ in running]
    for process in running:
        process.join()
    return sum(made for made, _ in found) / SECONDS, statistics.median(waited for _, waited in found)


def test_a_hot_budget() -> None:
    uri = postgres.server()
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS hot, calls")
        connection.execute("CREATE TABLE hot (id int PRIMARY KEY, spent bigint, held bigint)")
        connection.execute("CREATE TABLE calls (id bigserial PRIMARY KEY, who text, cost bigint)")
        connection.execute("INSERT INTO hot VALUES (1, 0, 0)")
    url = postgres.new_url()
    Meter(url, budgets=[HOT]).close()
    locked, _ = rate(row_lock, uri, min(PROCESSES, 2))  # a server's 100 connections are not enough for 128
    batched, waited_b = rate(ours, url, PROCESSES)
    leased, waited_c = rate(with_leases, url, PROCESSES)
    memory, waited_d = rate(ours, "memory://", 1)
    alone, waited_alone = rate(nothing_shared, url, PROCESSES)
    mixed, waited_m = rate(both, url, PROCESSES)
    parted, waited_p = rate(both_with_leases, url, PROCESSES)
    print(f"\n(a) row lock, 64 callers      {locked:8,.0f} calls/s")
    print(
        f"(b) ours, 4 x 32 callers      {batched:8,.0f} calls/s   {batched / locked:.1f} x (a); "
        f"{batched / memory:.2f} x (d)   reserve p50 {waited_b * 1000:.2f} ms"
    )
    print(
        f"(c) with leases, 4 x 32       {leased:8,.0f} calls/s   {leased / locked:.1f} x (a); "
        f"{leased / memory:.2f} x (d)   reserve p50 {waited_c * 1000:.2f} ms"
    )
    print(f"(d) memory, 1 x 32 callers    {memory:8,.0f} calls/s   reserve p50 {waited_d * 1000:.2f} ms")
    print(f"    nothing shared, 4 x 32    {alone:8,.0f} calls/s   reserve p50 {waited_alone * 1000:.2f} ms")
    print(f"    with one of its own besides   {mixed:8,.0f} calls/s   reserve p50 {waited_m * 1000:.2f} ms")
    print(
        f"    the same, with leases         {parted:8,.0f} calls/s   {parted / mixed:.1f} x without   "
        f"reserve p50 {waited_p * 1000:.2f} ms, {waited_p / waited_alone:.2f} x that with nothing shared"
    )
    assert locked < batched < leased
    assert waited_c <= 1.2 * waited_alone


@pytest.mark.parametrize("leases", [False, True])
@pytest.mark.parametrize("callers", [64, 1])
def test_what_a_call_takes(callers: int, leases: bool) -> None:
    """What `.github/LIMITS.md` reckons with: one process, one hot budget."""

    async def run(meter: Meter, seconds: float) -> int:
        plan = meter.plan("chat", "gpt-4o", BOUND)
        until = time.monotonic() + seconds

        async def caller() -> int:
            made = 0
            while time.monotonic() < until:
                await (await meter.areserve(plan)).asettle(Usage(10, 5))
                made += 1
            return made

        return sum(await asyncio.gather(*(caller() for _ in range(callers))))

    uri, url = postgres.server(), postgres.new_url()
    with (
        psycopg.connect(uri, autocommit=True) as connection,
        Meter(url, budgets=[HOT], thresholds=[], store_timeout=60, leases=leases) as meter,
        Meter(url, budgets=[HOT], thresholds=[], store_timeout=60) as other,
    ):

        def now() -> tuple[float, float, float]:
            row = connection.execute("SELECT pg_current_wal_lsn() - '0/0'").fetchone()
            assert row is not None
            return postgres.server_cpu(), time.process_time(), float(row[0])

        # A lease is taken where others are in the way.
        beside = threading.Thread(target=lambda: asyncio.run(run(other, WARM)))
        beside.start()
        asyncio.run(run(meter, WARM))
        beside.join()
        before = now()
        made = asyncio.run(run(meter, SECONDS))
        meter.flush()
        server, client, log = (after - was for after, was in zip(now(), before, strict=True))
    print(
        f"\n{callers} callers, {'leases' if leases else 'a hold of its own'}: {made / SECONDS:,.0f} calls/s; "
        f"a call: {server / made * 1e6:,.0f} us of the server's CPU, {client / made * 1e6:,.0f} us of ours, "
        f"{log / made:,.0f} bytes of log"
    )
    assert made
