"""Nothing is let through by Anthropic's door: the truth is what the sandbox billed.

64 callers of two people, whatever they are. At most their budgets are spent, and at least 99 % of them,
although each call is held at the price of the dearest place that it might run in, a tenth above the bill.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from support import (
    assert_agrees,
    assert_each_within,
    assert_sound,
    assert_whose,
    auntil_exhausted,
    person,
    until_exhausted,
)

from behest_integrations import Meter
from behest_integrations.sandbox import Sandbox

pytest.importorskip("anthropic")
from anthropic_support import ANSWER, HELLO, MODEL, aclient, client

EACH = Decimal("0.5")
BUDGET = "$0.50 per session"


def provider() -> Sandbox:
    return Sandbox(latency=0.05, output_tokens=ANSWER, chunk_tokens=240)


def asking(who: str, **fields: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "max_tokens": ANSWER,
        "messages": HELLO,
        "metadata": {"user_id": who},
        **fields,
    }


def check(sandbox: Sandbox, meter: Meter) -> None:
    for _ in range(200):  # a stream that was broken off is billed when the provider notices
        if len(sandbox.bill.lines) >= sandbox.requests:
            break
        time.sleep(0.05)
    assert_each_within(sandbox, EACH, EACH * 99 / 100)
    assert_sound(meter)


def in_threads(meter: Meter, call: Any) -> None:
    def work(number: int) -> None:
        who = person(number)
        with meter.session(f"of {who}", user=who):
            until_exhausted(lambda: call(who, number))

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(work, range(64)))


async def in_tasks(meter: Meter, call: Any) -> None:
    async def work(number: int) -> None:
        who = person(number)
        with meter.session(f"of {who}", user=who):
            await auntil_exhausted(lambda: call(who, number))

    await asyncio.gather(*map(work, range(64)))


def test_64_threads(sqlite_store: str) -> None:
    with provider() as sandbox, Meter(sqlite_store, budgets=[BUDGET]) as meter:
        metered = meter.anthropic(client(sandbox))
        in_threads(meter, lambda who, _: metered.messages.create(**asking(who)))
        check(sandbox, meter)
        assert_agrees(meter, sandbox)
        assert_whose(meter, sandbox)


def test_64_tasks() -> None:
    async def run(sandbox: Sandbox, meter: Meter) -> None:
        async with meter.anthropic(aclient(sandbox)) as metered:
            await in_tasks(meter, lambda who, _: metered.messages.create(**asking(who)))

    with provider() as sandbox, Meter("memory://", budgets=[BUDGET]) as meter:
        asyncio.run(run(sandbox, meter))
        check(sandbox, meter)
        assert_agrees(meter, sandbox)
        assert_whose(meter, sandbox)


def test_64_streams_a_third_broken_off() -> None:
    """The provider here bills a stream that is hung up on in full, the worst it could do."""

    def stream(metered: Any, who: str, number: int) -> None:
        with metered.messages.stream(**asking(who)) as events:
            for place, _event in enumerate(events):
                if number % 3 == 0 and place == 3:
                    break

    with provider() as sandbox, Meter("memory://", budgets=[BUDGET]) as meter:
        metered = meter.anthropic(client(sandbox))
        in_threads(meter, lambda who, number: stream(metered, who, number))
        check_broken(sandbox, meter)


def test_64_async_streams_a_third_cancelled(sqlite_store: str) -> None:
    async def run(sandbox: Sandbox, meter: Meter) -> None:
        async with meter.anthropic(aclient(sandbox)) as metered:

            async def stream(who: str, broken: bool) -> None:
                async with metered.messages.stream(**asking(who)) as events:
                    place = 0
                    async for _ in events:
                        place += 1
                        if broken and place == 3:
                            raise asyncio.CancelledError

            async def call(who: str, number: int) -> None:
                with suppress(asyncio.CancelledError):
                    await asyncio.ensure_future(stream(who, number % 3 == 0))

            await in_tasks(meter, call)

    with provider() as sandbox, Meter(sqlite_store, budgets=[BUDGET]) as meter:
        asyncio.run(run(sandbox, meter))
        check_broken(sandbox, meter)


def check_broken(sandbox: Sandbox, meter: Meter) -> None:
    """What is not known is booked at the worst: a tenth above the bill of each that was broken off."""
    for _ in range(200):
        if len(sandbox.bill.lines) >= sandbox.requests:
            break
        time.sleep(0.05)
    assert_each_within(sandbox, EACH, EACH * 90 / 100)
    assert_sound(meter)
    assert_whose(meter, sandbox, exact=False)


def test_attempts_that_fail_are_within_the_cap() -> None:
    """A 529 is billed here all the same: each of the SDK's attempts is held on its own."""
    with provider() as sandbox, Meter("memory://", budgets=[BUDGET]) as meter:
        sandbox.fault("status", status=529, billed=True, times=6)
        metered = meter.anthropic(client(sandbox, max_retries=2))
        in_threads(meter, lambda who, _: metered.messages.create(**asking(who)))
        assert_each_within(sandbox, EACH, EACH * 90 / 100)
        assert_sound(meter)
        assert_whose(meter, sandbox, exact=False)
