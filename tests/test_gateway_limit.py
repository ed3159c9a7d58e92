"""Nothing is let through over HTTP either: the truth is what the sandbox billed.

128 streams at once, several workers over one store, clients that hang up, a worker that is
killed. Two people call, each with a budget: at most that is spent at the provider, and at least
99 % of it, and each has spent what the provider billed for that one.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Coroutine
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from gateway_support import Gateway, chat
from support import (
    ANSWER,
    MODEL,
    assert_agrees,
    assert_each_within,
    assert_sound,
    assert_whose,
    person,
    slow,
)

from behest_integrations.reports import Asked, report
from behest_integrations.reports.audit import decisions, prove
from behest_integrations.rules.budgets import to_nano
from behest_integrations.sandbox import Sandbox

CAP = Decimal(1)
EACH = CAP / 2
BUDGET = "$0.50 per session"
REQUEST = chat(model=MODEL, max_tokens=ANSWER)


def provider() -> Sandbox:
    return Sandbox(latency=0.05, output_tokens=ANSWER, chunk_tokens=49, chunk_delay=0.005)


async def one(
    session: aiohttp.ClientSession,
    url: str,
    *,
    leave_after: int | None,
    stream: bool = True,
    who: str = "u",
    asked: dict[str, Any] = REQUEST,
) -> str:
    """One call, read to its end or left after some events; the word for how it ended."""
    body = {**asked, "stream": stream, "user": who}
    headers = {"X-Session-Id": f"of {who}", "X-End-User-Id": who}
    async with session.post(f"{url}/chat/completions", json=body, headers=headers) as response:
        if response.status != 200:
            error = (await response.json())["error"]
            return str(error["code"])
        events = 0
        async for data in response.content.iter_any():
            events += data.count(b"data: ")
            if leave_after is not None and events > leave_after:
                response.close()
                return "left"
        return "whole"


async def until_exhausted(
    gateway: Gateway,
    key: str,
    leaving: Callable[[int], int | None],
    *,
    callers: int = 128,
    stream: bool = True,
    asked: dict[str, Any] = REQUEST,
) -> dict[str, int]:
    """`callers` callers, each going on until the budget is used up; how their calls ended."""
    ended: dict[str, int] = {}

    async def caller(number: int) -> None:
        who = person(number)
        for turn in range(2000):
            leave = leaving(number + turn)
            try:
                how = await one(
                    session, gateway.base_url, leave_after=leave, stream=stream, who=who, asked=asked
                )
            except aiohttp.ClientError:
                how = "lost"
            ended[how] = ended.get(how, 0) + 1
            if how == "quota_exceeded":
                return
            if how in ("rate_limited", "lost", "server_error", "store_unavailable"):
                await asyncio.sleep(0.05)
        raise AssertionError("the budget is not used up")

    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(caller(n) for n in range(callers)))
    return ended


def settled(sandbox: Sandbox, gateway: Gateway) -> None:
    """The provider books a stream that was left when it notices; give it, and us, that time."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with gateway.meter() as meter:
            if len(sandbox.bill.lines) >= sandbox.requests and not meter.ledger.snapshot()[1]:
                return
        time.sleep(0.05)


def check(sandbox: Sandbox, gateway: Gateway, *, exact: bool) -> None:
    spent = sandbox.bill.total()
    assert spent <= CAP, f"the budget was passed: {spent}"
    assert spent >= CAP * 99 / 100, f"only {spent} was used"
    with gateway.meter() as meter:
        assert_sound(meter)
        assert_whose(meter, sandbox, exact=exact)


def run(work: Coroutine[Any, Any, dict[str, int]]) -> dict[str, int]:
    return asyncio.run(work)


POLICY = """
[policy]
models = ["gpt-4*"]
max_output_tokens = 600
[policy.sentinel]
blocklist = ["falcon"]
[[policy.rules]]
user = "ada"
priced = true
"""


@pytest.mark.parametrize("workers", [2, slow(4)])
def test_with_a_policy(tmp_path: Path, workers: int) -> None:
    with (
        provider() as sandbox,
        Gateway(tmp_path, sandbox, budgets=[BUDGET], workers=workers, top=POLICY) as gateway,
    ):
        ended = run(until_exhausted(gateway, gateway.key(), lambda _: None, callers=32))
        assert ended["quota_exceeded"] == 32
        check(sandbox, gateway, exact=True)
        assert_each_within(sandbox, EACH, EACH * 99 / 100)
        assert_agrees_with_the_audit(sandbox, gateway)


MASKING = """
[policy.pii]
entities = { EMAIL_ADDRESS = "mask", SECRET = "redact" }
timeout = 30
"""


@pytest.mark.soak
def test_with_a_policy_that_masks_and_four_workers_a_third_of_whose_clients_hang_up(tmp_path: Path) -> None:
    """What is looked through on threads beside the loop passes no budget either."""
    pytest.importorskip("presidio_analyzer")
    told = {**REQUEST, "messages": [{"role": "user", "content": "hello there, ada@example.com"}]}
    with (
        provider() as sandbox,
        Gateway(tmp_path, sandbox, budgets=[BUDGET], workers=4, top=POLICY + MASKING) as gateway,
    ):
        leaving = run(
            until_exhausted(gateway, gateway.key(), lambda n: 2 if n % 3 == 0 else None, asked=told)
        )
        assert leaving["left"] > 5
        settled(sandbox, gateway)
        check(sandbox, gateway, exact=False)
        assert_each_within(sandbox, EACH, EACH * 99 / 100)
        with gateway.meter() as meter:
            masked = list(decisions(meter.ledger, Asked(), kinds=("masked",)))
            assert len(masked) == len(sandbox.bill.lines)
            assert prove(meter.ledger).flaws == []


def assert_agrees_with_the_audit(sandbox: Sandbox, gateway: Gateway) -> None:
    """What was let through is in the audit, call by call, and all of it is as it was written."""
    with gateway.meter() as meter:
        allowed = list(decisions(meter.ledger, Asked(), kinds=("allowed",)))
        assert len(allowed) == len(sandbox.bill.lines)
        proof = prove(meter.ledger)
        assert proof.flaws == []
        assert len(proof.heads) > 1  # a chain for each who writes


@pytest.mark.parametrize("workers", [2, *(slow(n) for n in (1, 4))])
def test_128_streams(tmp_path: Path, workers: int) -> None:
    with (
        provider() as sandbox,
        Gateway(tmp_path, sandbox, budgets=[BUDGET], workers=workers) as gateway,
    ):
        ended = run(until_exhausted(gateway, gateway.key(), lambda n: None))
        assert ended["quota_exceeded"] == 128
        assert ended["whole"] >= 33
        settled(sandbox, gateway)
        check(sandbox, gateway, exact=True)
        assert_each_within(sandbox, EACH, EACH * 99 / 100)
        with gateway.meter() as meter:
            assert_agrees(meter, sandbox)


@pytest.mark.parametrize(("workers", "stream"), [(1, True), slow(2, False)])
def test_64_clients_of_four_calls(tmp_path: Path, workers: int, stream: bool) -> None:
    """With no retry of theirs, and default settings: nobody is refused while anything is left."""
    with provider() as sandbox, Gateway(tmp_path, sandbox, budgets=["$1"], workers=workers) as gateway:

        async def all_of_them() -> list[str]:
            headers = {"Authorization": f"Bearer {gateway.key()}"}
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(headers=headers, connector=connector) as session:

                async def caller() -> list[str]:
                    return [
                        await one(session, gateway.base_url, leave_after=None, stream=stream)
                        for _ in range(4)
                    ]

                return [how for some in await asyncio.gather(*(caller() for _ in range(64))) for how in some]

        ended = asyncio.run(all_of_them())
        assert set(ended) == {"whole", "quota_exceeded"}
        settled(sandbox, gateway)
        check(sandbox, gateway, exact=True)


def test_128_calls_in_one_piece_over_five_budgets(tmp_path: Path) -> None:
    budgets = [
        "$1 per session",
        "$1.50/day per user",
        "$1 per 24h rolling for model gpt-4*",
        "100k tokens/month per project",
        "500 calls/day per tenant and model",
    ]
    with provider() as sandbox, Gateway(tmp_path, sandbox, budgets=budgets, workers=2) as gateway:
        run(until_exhausted(gateway, gateway.key(tier="max"), lambda n: None, stream=False))
        settled(sandbox, gateway)
        check(sandbox, gateway, exact=True)
        with gateway.meter() as meter:
            assert_agrees(meter, sandbox)


@pytest.mark.parametrize("workers", [2, slow(1)])
def test_a_third_of_the_clients_hang_up(tmp_path: Path, workers: int) -> None:
    """The provider bills a stream that was left in full, the worst that it could do."""
    with (
        provider() as sandbox,
        Gateway(tmp_path, sandbox, budgets=[BUDGET], workers=workers) as gateway,
    ):
        ended = run(until_exhausted(gateway, gateway.key(), lambda n: 2 if n % 3 == 0 else None))
        assert ended["left"] > 5
        settled(sandbox, gateway)
        check(sandbox, gateway, exact=False)
        assert_each_within(sandbox, EACH, EACH * 99 / 100)


def test_workers_killed_in_mid_call(tmp_path: Path) -> None:
    """What a killed worker had in flight is booked at its worst case, once its lease is over.

    It may have been killed between reserving a call and sending it. So 99 % of the budget are used by
    the ledger, which cannot know, and at most that by the bill.
    """
    rng = random.Random(5)
    with (
        provider() as sandbox,
        Gateway(tmp_path, sandbox, budgets=[BUDGET], workers=2, top="lease = 2.0") as gateway,
    ):
        key = gateway.key()

        async def killing() -> dict[str, int]:
            calls = asyncio.create_task(until_exhausted(gateway, key, lambda n: None, callers=64))
            for _ in range(3):
                await asyncio.sleep(rng.uniform(0.1, 0.2))
                while not (alive := gateway.workers()):
                    await asyncio.sleep(0.01)
                os.kill(rng.choice(alive), signal.SIGKILL)
            return await calls

        ended = run(killing())
        assert ended.get("lost", 0) > 0, "no call was in flight when a worker was killed"
        time.sleep(2.1)
        with gateway.meter(lease=2.0) as meter:
            meter.sweep()
        settled(sandbox, gateway)
        assert sandbox.bill.total() <= CAP
        assert_each_within(sandbox, EACH, Decimal(0))
        with gateway.meter() as meter:
            assert_sound(meter)
            assert_whose(meter, sandbox, exact=False)
            booked = report(meter.ledger).total.cost
        assert max(to_nano(sandbox.bill.total()), to_nano(CAP * 99 / 100)) <= booked <= to_nano(CAP)


def test_a_rate_and_a_tier(tmp_path: Path) -> None:
    """`free` is 10 calls a minute for each user: told as a rate, and not as a quota."""
    with provider() as sandbox, Gateway(tmp_path, sandbox) as gateway:
        key = gateway.key(tier="free")

        async def all_at_once() -> list[str]:
            headers = {"Authorization": f"Bearer {key}", "X-End-User-Id": "u"}
            async with aiohttp.ClientSession(headers=headers) as session:
                calls = (one(session, gateway.base_url, leave_after=None) for _ in range(40))
                return list(await asyncio.gather(*calls))

        while time.time() % 60 > 50:  # all of them within one minute of the clock
            time.sleep(1)
        ended = asyncio.run(all_at_once())
        assert sandbox.requests == 10
        assert sorted(ended) == ["rate_limited"] * 30 + ["whole"] * 10
        with gateway.meter() as meter:
            assert_whose(meter, sandbox)
