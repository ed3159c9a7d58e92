"""What the meter costs, as ratios to a baseline of the same run. Prints; asserts no times.

pytest -n 0 -m benchmark tests/benchmarks -s
"""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from measure import BUDGETS, MESSAGES, bare_client, httpx, interleaved, reply, say
from openai import AsyncOpenAI, OpenAI

from behest_integrations import Meter, Usage, session
from behest_integrations.wire import RequestBound

pytestmark = pytest.mark.benchmark


def call(client: OpenAI) -> None:
    client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, max_tokens=200)


def test_time_added_to_a_bare_call(tmp_path: Path) -> None:
    clients = {"bare": bare_client()}
    meters = {
        "memory": Meter("memory://", budgets=BUDGETS),
        "sqlite": Meter(f"sqlite:///{tmp_path}/b.db", budgets=BUDGETS),
        "sqlite, power": Meter(f"sqlite:///{tmp_path}/p.db", budgets=BUDGETS, durability="power"),
    }
    for name, meter in meters.items():
        clients[name] = meter.openai(bare_client(), provider="openai")
    session = next(iter(meters.values())).session("conversation-1", user="user-1")
    with session:
        work = {name: (lambda c=client: call(c)) for name, client in clients.items()}
        interleaved(work, rounds=2, each=30)
        found = interleaved(work, rounds=40, each=25)
    bare = found["bare"]
    say(
        "time added to a bare chat.completions.create, in-process transport, 3 budgets",
        f"  bare           {bare * 1e6:7.0f} µs",
        *(
            f"  {name:<14} {(found[name] - bare) * 1e6:+7.0f} µs   {(found[name] - bare) / bare:5.2f} × bare"
            for name in meters
        ),
        "  targets: sqlite ≤ 0.4 × bare (then 0.2), memory ≤ 0.12 × bare",
    )


class RawSQLite:
    """The least that sqlite3 must do for a reserve and a settle over three buckets."""

    def __init__(self, path: Path) -> None:
        self.local = threading.local()
        self.path = path
        db = self.db()
        db.execute("CREATE TABLE b (id INTEGER PRIMARY KEY, spent INT, held INT, cap INT)")
        db.execute("CREATE TABLE e (id INTEGER PRIMARY KEY, call TEXT, cost INT)")
        for i in range(3):
            db.execute("INSERT INTO b VALUES (?, 0, 0, 1000000000000)", (i,))

    def db(self) -> sqlite3.Connection:
        if not hasattr(self.local, "db"):
            self.local.db = sqlite3.connect(self.path, isolation_level=None, timeout=60)
            self.local.db.execute("PRAGMA journal_mode=WAL")
            self.local.db.execute("PRAGMA synchronous=NORMAL")
        found: sqlite3.Connection = self.local.db
        return found

    def pair(self) -> None:
        db = self.db()
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE b SET held = held + 9 WHERE id IN (0, 1, 2) AND spent + held + 9 <= cap")
        db.execute("COMMIT")
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE b SET held = held - 9, spent = spent + 5 WHERE id IN (0, 1, 2)")
        db.execute("INSERT INTO e (call, cost) VALUES ('c', 5)")
        db.execute("COMMIT")


def measure(pair: Callable[[], None], threads: int, seconds: float) -> tuple[float, float, float]:
    """(pairs per second, p50, p99 in seconds) with this many threads."""
    took: list[list[float]] = [[] for _ in range(threads)]
    stop = time.perf_counter() + seconds

    def work(mine: list[float]) -> None:
        while True:
            started = time.perf_counter()
            if started > stop:
                return
            pair()
            mine.append(time.perf_counter() - started)

    running = [threading.Thread(target=work, args=(mine,)) for mine in took]
    began = time.perf_counter()
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    every = sorted(t for mine in took for t in mine)
    rate = len(every) / (time.perf_counter() - began)
    return rate, every[len(every) // 2], every[int(len(every) * 0.99)]


@pytest.mark.parametrize("threads", [1, 32])
def test_reserve_and_settle_against_raw_sqlite(tmp_path: Path, threads: int) -> None:
    raw = RawSQLite(tmp_path / "raw.db")
    meter = Meter(f"sqlite:///{tmp_path}/b.db", budgets=BUDGETS, thresholds=(80,))
    bound = RequestBound(100, output_limit=200, limit_fields=("max_tokens",))

    def pair() -> None:
        with session("conversation-1", user="user-1"):
            plan = meter.plan("chat", "gpt-4o-mini", bound, provider="openai")
            meter.reserve(plan).settle(Usage(80, 60))

    measure(pair, threads, 0.3)
    rounds = []
    for _ in range(3):
        rounds.append((measure(raw.pair, threads, 1.0), measure(pair, threads, 1.0)))
    theirs = [statistics.median(r[0][i] for r in rounds) for i in range(3)]
    ours = [statistics.median(r[1][i] for r in rounds) for i in range(3)]
    say(
        f"reserve + settle, 3 budgets, SQLite, {threads} thread(s)",
        f"  raw sqlite3  {theirs[0]:8,.0f}/s  p50 {theirs[1] * 1e6:7.0f} µs  p99 {theirs[2] * 1e3:7.2f} ms",
        f"  meter        {ours[0]:8,.0f}/s  p50 {ours[1] * 1e6:7.0f} µs  p99 {ours[2] * 1e3:7.2f} ms",
        f"  {ours[1] / theirs[1]:.1f} × raw p50; {ours[0] / theirs[0]:.2f} × raw throughput",
        "  targets: 1 thread ≤ 6 × raw p50 (then 3); 32 threads ≥ 0.4 × raw throughput, p99 ≤ 15 ms",
    )


async def _stall(client: AsyncOpenAI, calls: int) -> list[float]:
    """How late a 1 ms timer is while 64 tasks call."""
    lags: list[float] = []
    done = False

    async def watch() -> None:
        while not done:
            started = time.perf_counter()
            await asyncio.sleep(0.001)
            lags.append(time.perf_counter() - started - 0.001)

    async def work() -> None:
        for _ in range(calls):
            await client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, max_tokens=200)

    watcher = asyncio.ensure_future(watch())
    await asyncio.gather(*(work() for _ in range(64)))
    done = True
    await watcher
    return sorted(lags)


def test_event_loop_stall(tmp_path: Path) -> None:
    async def areply(request: Any) -> Any:
        await asyncio.sleep(0.1)
        return reply(request)

    def bare() -> AsyncOpenAI:
        transport: Any = httpx.AsyncClient(transport=httpx.MockTransport(areply))
        return AsyncOpenAI(base_url="http://provider.test/v1", api_key="none", http_client=transport)

    meter = Meter(f"sqlite:///{tmp_path}/b.db", budgets=BUDGETS)

    async def run(metered: bool) -> list[float]:
        client = meter.openai(bare(), provider="openai") if metered else bare()
        with meter.session("conversation-1", user="user-1"):
            await _stall(client, 2)
            return await _stall(client, 20)

    without, within = asyncio.run(run(False)), asyncio.run(run(True))

    def p99(values: list[float]) -> float:
        return values[int(len(values) * 0.99)] * 1e3

    say(
        "event loop lag while 64 tasks call (a 1 ms timer's delay)",
        f"  bare   p50 {without[len(without) // 2] * 1e3:6.2f} ms   p99 {p99(without):6.2f} ms",
        f"  meter  p50 {within[len(within) // 2] * 1e3:6.2f} ms   p99 {p99(within):6.2f} ms",
        f"  added at p99: {p99(within) - p99(without):+.2f} ms",
        "  target: ≤ 5 ms blocked by us at p99",
    )
