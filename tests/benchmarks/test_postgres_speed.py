"""What a hot budget over PostgreSQL takes: 4 processes of 32 callers each, all in one budget.

Ratios, in one run on one machine: (a) a row lock for each call, in plain SQL; (b) ours; (d) the memory store,
one process. A "call" is a reserve and a settle.
"""

from __future__ import annotations

import asyncio
import multiprocessing
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
SECONDS, PROCESSES, CALLERS = 4.0, 4, 32
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
    done.put(sum(count))


def ours(url: str, ready: Any, done: Any) -> None:
    """A reserve and a settle a call, by tasks."""

    async def run() -> int:
        until = time.monotonic() + SECONDS

        async def caller() -> int:
            made = 0
            while time.monotonic() < until:
                hold = await meter.areserve(plan)
                await hold.asettle(Usage(10, 5))
                made += 1
            return made

        return sum(await asyncio.gather(*(caller() for _ in range(CALLERS))))

    with Meter(url, budgets=["1000000000 calls"], thresholds=[], store_timeout=60) as meter:
        plan = meter.plan("chat", "gpt-4o", BOUND)
        meter.reserve(plan).settle(Usage(1))
        ready.wait()
        done.put(asyncio.run(run()))


def rate(work: Any, where: str, processes: int) -> float:
    spawn = multiprocessing.get_context("spawn")
    ready, done = spawn.Barrier(processes), spawn.Queue()
    running = [spawn.Process(target=work, args=(where, ready, done)) for _ in range(processes)]
    for process in running:
        process.start()
    total = sum(done.get(timeout=300) for _ in running)
    for process in running:
        process.join()
    return total / SECONDS


def test_a_hot_budget() -> None:
    uri = postgres.server()
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS hot, calls")
        connection.execute("CREATE TABLE hot (id int PRIMARY KEY, spent bigint, held bigint)")
        connection.execute("CREATE TABLE calls (id bigserial PRIMARY KEY, who text, cost bigint)")
        connection.execute("INSERT INTO hot VALUES (1, 0, 0)")
    url = postgres.new_url()
    Meter(url, budgets=["1000000000 calls"]).close()
    locked = rate(row_lock, uri, min(PROCESSES, 2))  # a server's 100 connections are not enough for 128
    batched = rate(ours, url, PROCESSES)
    memory = rate(ours, "memory://", 1)
    print(f"\n(a) row lock, 64 callers    {locked:10,.0f} calls/s")
    print(f"(b) ours, 4 x 32 callers    {batched:10,.0f} calls/s   {batched / locked:.1f} x (a)")
    print(f"(d) memory, 1 x 32 callers  {memory:10,.0f} calls/s   (b) is {batched / memory:.2f} x (d)")
    assert batched > locked
