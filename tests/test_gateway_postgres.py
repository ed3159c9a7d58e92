"""Gateways over one PostgreSQL: whichever is asked, the same keys, limits and books; one may die.

Two gateways of two workers, users with sessions, streams and calls. One gateway is killed in mid-load, and
its clients go on at the other. What counts is the sandbox's bill, by session and by user.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import httpx
import postgres
import psutil
import psycopg
import pytest
from gateway_support import Gateway, chat
from support import ANSWER, MODEL, assert_sound

from behest_integrations import Meter
from behest_integrations.gateway.keys import KeyStore
from behest_integrations.sandbox import Sandbox

NANO = 10**9
ALL, USER, SESSION = "$1.20/month", "$0.80/day per user", "$0.50 per session"
RAISED = 15 * NANO // 10
EVE = {"X-End-User-Id": "eve", "X-Session-Id": "eve-0"}
SMALL = chat(model=MODEL, max_tokens=1, user="eve-0")
USERS, SESSIONS, CALLERS = 3, 2, 24
REVOKED_WITHIN = 1.0
"""Seconds for which a gateway may still take a key that was revoked at another."""


def provider() -> Sandbox:
    return Sandbox(latency=0.03, output_tokens=ANSWER, chunk_tokens=98, chunk_delay=0.005)


@contextmanager
def gateways(folder: Path, sandbox: Sandbox, count: int, budgets: list[str]) -> Iterator[list[Gateway]]:
    """So many, each of two workers, started at once over one store."""
    store = postgres.new_url()
    with Meter(store):
        pass  # makes the tables
    made = []
    for number in range(count):
        (own := folder / str(number)).mkdir()
        made.append(Gateway(own, sandbox, budgets=budgets, workers=2, store=store))
    with ExitStack() as stack:
        with ThreadPoolExecutor(count) as pool:
            for gateway in pool.map(Gateway.start, made):
                stack.push(gateway)
        yield made


def status(gateway: Gateway, key: str) -> int:
    """Of a small call, on a connection of its own: any worker may have it."""
    with gateway.http(key, **EVE) as http:
        return http.post("/chat/completions", json=SMALL).status_code


class Call(NamedTuple):
    """Whom a call is for, and how it is made. The provider knows the session by the request's `user`."""

    user: str
    session: str
    stream: bool

    @classmethod
    def of(cls, number: int, turn: int) -> Call:
        user = f"u{number % USERS}"
        return cls(user, f"{user}-{number // USERS % SESSIONS}", (number + turn) % 2 == 0)

    async def make(self, http: aiohttp.ClientSession, base_url: str, *, leave: bool = False) -> str:
        """The word for how it ended."""
        body = chat(model=MODEL, max_tokens=ANSWER, stream=self.stream, user=self.session)
        headers = {"X-End-User-Id": self.user, "X-Session-Id": self.session}
        async with http.post(f"{base_url}/chat/completions", json=body, headers=headers) as response:
            if response.status != 200:
                return str((await response.json())["error"]["code"])
            if leave:
                await response.content.readany()
                response.close()
                return "left"
            said = await response.read()
            assert not self.stream or said.rstrip().endswith(b"data: [DONE]"), said[-300:]
            return "whole"


async def load(key: str, two: list[Gateway], breaking: Callable[[], Any]) -> Counter[tuple[int, str]]:
    """Callers of both gateways until nothing is left for them; how their calls ended, by the gateway.

    Args:
        breaking: done in a thread, once the first has answered some.
    """
    ended: Counter[tuple[int, str]] = Counter()

    async def caller(number: int, http: aiohttp.ClientSession) -> None:
        at = number % len(two)
        for turn in range(1000):
            try:
                how = await Call.of(number, turn).make(http, two[at].base_url)
            except (aiohttp.ClientError, asyncio.TimeoutError):
                how = "lost"
            ended[at, how] += 1
            if how == "lost":
                at = 1 - at
            elif how == "quota_exceeded":
                return
            elif how != "whole":
                await asyncio.sleep(0.05)
        raise AssertionError(f"the budget is not used up: {ended}")

    async def breaker() -> None:
        while ended[0, "whole"] < 4:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(breaking)

    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as http:
        await asyncio.gather(breaker(), *(caller(n, http) for n in range(CALLERS)))
    return ended


def test_what_is_changed_at_one_holds_at_the_other_and_one_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with provider() as sandbox, gateways(tmp_path, sandbox, 2, [ALL, USER, SESSION]) as (first, second):
        with Meter(first.store) as meter:
            _, admin_key = KeyStore(meter.ledger).create_admin()
        at_first, at_second = (
            httpx.Client(
                base_url=f"{gateway.url}/admin/v1",
                headers={"Authorization": f"Bearer {admin_key}"},
                timeout=30,
            )
            for gateway in (first, second)
        )
        key, other = (
            at_first.post("/keys", json={"tenant": "acme", "project": "p"}).raise_for_status().json()
            for _ in range(2)
        )
        # A key made at one is known at the other, by whichever worker.
        assert [status(g, k["secret"]) for g in (second, first) for k in (key, other)] == [200] * 4

        # A limit set at one holds at the other, and is taken back there.
        lowered = {"budget": USER, "user": "eve", "tenant": "acme"}
        at_first.post("/budgets/set", json={**lowered, "amount": "$0.0001"}).raise_for_status()
        set_at = time.monotonic()
        assert [status(g, key["secret"]) for g in (second, second, second, first)] == [402] * 4
        refused_after = time.monotonic() - set_at
        at_second.post("/budgets/set", json={**lowered, "amount": "$0.80"}).raise_for_status()
        assert [status(g, key["secret"]) for g in (first, first, first, second)] == [200] * 4

        # A key revoked at one ends at both.
        at_second.delete(f"/keys/{other['key']['id']}").raise_for_status()
        ended_after = revoked(first, second, other["secret"])
        with capsys.disabled():
            print(
                f"\n4 calls refused within {refused_after:.2f} s of a limit set at the other gateway; "
                f"a revoked key was taken for {ended_after:.2f} s"
            )

        killed_at = 0.0

        def breaking() -> None:
            nonlocal killed_at
            at_second.post("/budgets/set", json={"budget": ALL, "amount": "$1.50"}).raise_for_status()
            first.kill()
            killed_at = float(sandbox.bill.total())

        ended = asyncio.run(load(key["secret"], [first, second], breaking))
        assert 0.1 < killed_at < RAISED / NANO
        assert ended[0, "lost"] > 0
        assert ended[1, "whole"] > 0
        assert second.workers()
        for client in (at_first, at_second):
            client.close()
    check(sandbox, second)


def revoked(first: Gateway, second: Gateway, secret: str) -> float:
    """Until when, in seconds from now, calls that are begun are still let in, at either."""
    since = time.monotonic()
    last, refused = 0.0, {first.port: 0, second.port: 0}
    while min(refused.values()) < 4:
        for gateway in (first, second):
            begun = time.monotonic() - since
            if status(gateway, secret) == 401:
                refused[gateway.port] += 1
            else:
                last = begun
                assert begun < REVOKED_WITHIN, f"let in {begun:.2f} s after the key was revoked"
        time.sleep(0.02)
    while time.monotonic() - since < REVOKED_WITHIN:
        time.sleep(0.02)
    assert {status(g, secret) for g in (first, second) for _ in range(4)} == {401}
    return last


def check(sandbox: Sandbox, gateway: Gateway) -> None:
    """Nobody's limit is passed, and what the provider billed for each is booked for that one."""
    billed = {mark: int(cost * NANO) for mark, cost in sandbox.bill.by_user().items()}
    assert set(billed) == {"eve-0", *(f"u{u}-{s}" for u in range(USERS) for s in range(SESSIONS))}
    assert sum(billed.values()) <= RAISED, f"the budget was passed: {billed}"
    with Meter(gateway.store, budgets=gateway.budgets) as meter:
        meter.sweep()  # what the dead had
        assert_sound(meter)
        buckets, _, entries = meter.ledger.snapshot()[:3]
    spent = {(b.budget, whose(b.scope)): b.spent for b in buckets if b.unit == "usd"}
    whole = spent["usd/month", ""]
    assert RAISED * 99 // 100 <= whole <= RAISED
    of_user: Counter[str] = Counter()
    for session, cost in billed.items():
        of_user[session.partition("-")[0]] += cost
        assert cost <= spent["usd per session", session] <= NANO // 2
    for user, cost in of_user.items():
        assert cost <= spent["usd/day per user", user] <= NANO * 8 // 10
    # Also the single calls are booked for whom they were made.
    settled: Counter[str | None] = Counter()
    for entry in entries:
        if entry.status == "settled":
            settled[entry.session_id] += entry.cost or 0
            assert (entry.session_id or "").startswith(f"{entry.user_id}-")
        else:
            assert (entry.status, entry.flags) == ("assumed", "process_died")
    assert sum(settled.values()) >= RAISED // 2
    assert all(cost <= billed[session or ""] for session, cost in settled.items())


def whose(scope: str) -> str:
    """The user or the session of a bucket; "" of all."""
    (name,) = json.loads(scope) if scope else [""]
    return str(name[0] if isinstance(name, list) else name)


@pytest.mark.slow
def test_a_worker_that_has_no_turn_for_a_while_is_not_taken_for_dead(tmp_path: Path) -> None:
    with provider() as sandbox, gateways(tmp_path, sandbox, 1, [ALL]) as (gateway,):
        before = gateway.workers()
        os.kill(before[0], signal.SIGSTOP)
        time.sleep(8)
        os.kill(before[0], signal.SIGCONT)
        assert status(gateway, gateway.key()) == 200
        assert gateway.workers() == before


# ── for longer ─────────────────────────────────────────────────────────────────────────


@pytest.mark.soak
def test_memory_and_connections_stay_flat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten minutes, or `BEHEST_SOAK_SECONDS`: streams, calls, and clients that hang up."""
    seconds = float(os.environ.get("BEHEST_SOAK_SECONDS", "600"))
    budgets = ["$1000000/month", "$100000/day per user", "$100000 per session"]
    with provider() as sandbox, gateways(tmp_path, sandbox, 1, budgets) as (gateway,):
        ended, samples = asyncio.run(soaked(gateway, gateway.key(), seconds))
        deadline = time.monotonic() + 30
        with gateway.meter() as meter:
            while meter.ledger.snapshot()[1] and time.monotonic() < deadline:
                time.sleep(0.1)
            assert_sound(meter)
            entries = meter.ledger.snapshot()[2]
    made = sum(ended.values())
    with capsys.disabled():
        print(f"\n{made} calls in {seconds:.0f} s ({dict(ended)}):")
        for at, sample in samples[:: max(1, len(samples) // 10)]:
            print(f"{at:5.0f} s  {sample.memory >> 20} MiB  {sample.files} files  {sample.sessions} sessions")
    assert set(ended) == {"whole", "left"}
    assert len(entries) == made
    assert sum(e.cost or 0 for e in entries) >= int(sandbox.bill.total() * NANO)
    # What is allocated once, and what is remembered of the last few thousand sessions, is there by now.
    early = [s for at, s in samples if seconds / 2 <= at < seconds * 2 / 3]
    late = [s for at, s in samples if at >= seconds * 5 / 6]
    for what in Sample._fields:
        before, after = (statistics.median(getattr(s, what) for s in some) for some in (early, late))
        allowed = {"memory": before * 1.03 + (8 << 20), "files": before + 16, "sessions": before + 1}[what]
        assert after <= allowed, f"{what} has grown from {before} to {after}"


class Sample(NamedTuple):
    """What a gateway has at one moment: resident bytes, open files and sockets, sessions at PostgreSQL."""

    memory: int
    files: int
    sessions: int


async def soaked(
    gateway: Gateway, key: str, seconds: float
) -> tuple[Counter[str], list[tuple[float, Sample]]]:
    """How calls ended, and samples by the second."""
    ended: Counter[str] = Counter()
    samples: list[tuple[float, Sample]] = []
    began = time.monotonic()
    assert gateway.process is not None
    parent = psutil.Process(gateway.process.pid)

    async def caller(number: int, http: aiohttp.ClientSession) -> None:
        turn = 0
        while time.monotonic() - began < seconds:
            turn += 1
            # Each of its own, so that what is remembered of the last ones is full before half of the time.
            call = Call.of(number, turn)._replace(session=f"{number}-{turn}")
            ended[await call.make(http, gateway.base_url, leave=call.stream and turn % 5 == 0)] += 1

    def look() -> Sample:
        processes = [parent, *parent.children(recursive=True)]
        with psycopg.connect(postgres.server()) as connection:
            counted = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            ).fetchone()
        assert counted is not None
        return Sample(
            sum(p.memory_info().rss for p in processes), sum(p.num_fds() for p in processes), counted[0]
        )

    async def sampler() -> None:
        while (at := time.monotonic() - began) < seconds:
            samples.append((at, await asyncio.to_thread(look)))
            await asyncio.sleep(seconds / 120)

    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as http:
        await asyncio.gather(sampler(), *(caller(n, http) for n in range(12)))
    return ended, samples
