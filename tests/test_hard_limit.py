"""Nothing is let through: the truth is what the sandbox billed, never our own ledger.

64 callers against one budget, whatever they are: threads, tasks, processes, streams.
At most the budget is spent at the provider, and at least 99 % of it.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal

import pytest
from support import (
    ANSWER,
    HELLO,
    MODEL,
    aclient,
    assert_agrees,
    assert_sound,
    auntil_exhausted,
    client,
    until_exhausted,
)

from behest_integrations import BudgetExceeded, Meter
from behest_integrations.sandbox import Sandbox

CAP = Decimal(1)


def provider() -> Sandbox:
    return Sandbox(latency=0.05, output_tokens=ANSWER, chunk_tokens=98)


def check(sandbox: Sandbox, meter: Meter) -> None:
    spent = sandbox.bill.total()
    assert spent <= CAP, f"the budget was passed: {spent}"
    assert spent >= CAP * 99 / 100, f"only {spent} was used"
    assert_sound(meter)


def test_64_threads(store: str) -> None:
    with provider() as sandbox, Meter(store, budgets=["$1 per session"]) as meter:
        metered = meter.openai(client(sandbox))

        def work(_: int) -> None:
            until_exhausted(
                lambda: metered.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=ANSWER)
            )

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(work, range(64)))
        check(sandbox, meter)
        assert_agrees(meter, sandbox)


def test_64_tasks(store: str) -> None:
    async def run(sandbox: Sandbox, meter: Meter) -> None:
        metered = meter.openai(aclient(sandbox))

        async def call() -> None:
            await metered.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=ANSWER)

        await asyncio.gather(*(auntil_exhausted(call) for _ in range(64)))
        await metered.close()

    with provider() as sandbox, Meter(store, budgets=["$1 per session"]) as meter:
        asyncio.run(run(sandbox, meter))
        check(sandbox, meter)
        assert_agrees(meter, sandbox)


@pytest.mark.parametrize("wait", [0.0, 20.0])
def test_a_caller_that_waits_needs_no_retry_of_its_own(sqlite_store: str, wait: float) -> None:
    with provider() as sandbox, Meter(sqlite_store, budgets=["$1"], wait=wait) as meter:
        metered = meter.openai(client(sandbox))
        refusals: list[BudgetExceeded] = []

        def work(_: int) -> None:
            for _ in range(4):
                try:
                    metered.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=ANSWER)
                except BudgetExceeded as error:
                    refusals.append(error)

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(work, range(64)))
        assert sandbox.bill.total() <= CAP
        if wait:
            assert sandbox.bill.total() >= CAP * 99 / 100
            assert not any(error.busy for error in refusals)
        assert_sound(meter)


def _process(url: str, store: str, ready: object) -> None:
    from openai import OpenAI

    ready.wait()  # type: ignore[attr-defined]
    with Meter(store, budgets=["$1 per session"]) as meter:
        metered = meter.openai(OpenAI(base_url=url, api_key="none", max_retries=0))
        with ThreadPoolExecutor(8) as pool:
            for _ in range(8):
                pool.submit(
                    until_exhausted,
                    lambda: metered.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=ANSWER),
                )


def test_8_processes_on_one_file(sqlite_store: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    with provider() as sandbox, Meter(sqlite_store, budgets=["$1 per session"]) as meter:
        ready = spawn.Event()
        workers = [
            spawn.Process(target=_process, args=(sandbox.base_url, sqlite_store, ready)) for _ in range(8)
        ]
        for worker in workers:
            worker.start()
        ready.set()
        for worker in workers:
            worker.join(60)
            assert worker.exitcode == 0
        check(sandbox, meter)
        assert_agrees(meter, sandbox)


def _stream(metered: object, break_off: bool) -> None:
    stream = metered.chat.completions.create(  # type: ignore[attr-defined]
        model=MODEL, messages=HELLO, max_tokens=ANSWER, stream=True
    )
    for number, _chunk in enumerate(stream):
        if break_off and number == 2:
            stream.close()
            break


def test_64_streams_a_third_broken_off(store: str) -> None:
    """The provider here bills a stream that is hung up on in full, the worst it could do."""
    with provider() as sandbox, Meter(store, budgets=["$1 per session"]) as meter:
        metered = meter.openai(client(sandbox))

        def work(number: int) -> None:
            until_exhausted(lambda: _stream(metered, number % 3 == 0))

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(work, range(64)))
        # The provider books a broken stream when it notices; give it that time.
        deadline = threading.Event()
        for _ in range(100):
            if len(sandbox.bill.lines) >= sandbox.requests:
                break
            deadline.wait(0.05)
        check(sandbox, meter)


def test_64_async_streams_a_third_cancelled(store: str) -> None:
    async def run(sandbox: Sandbox, meter: Meter) -> None:
        metered = meter.openai(aclient(sandbox))

        async def stream(broken: bool) -> None:
            chunks = await metered.chat.completions.create(
                model=MODEL, messages=HELLO, max_tokens=ANSWER, stream=True
            )
            number = 0
            async with chunks:
                async for _chunk in chunks:
                    number += 1
                    if broken and number == 2:
                        raise asyncio.CancelledError

        async def call(broken: bool) -> None:
            task = asyncio.ensure_future(stream(broken))
            with suppress(asyncio.CancelledError):
                await task

        await asyncio.gather(*(auntil_exhausted(lambda n=n: call(n % 3 == 0)) for n in range(64)))
        await metered.close()

    with provider() as sandbox, Meter(store, budgets=["$1 per session"]) as meter:
        asyncio.run(run(sandbox, meter))
        for _ in range(100):
            if len(sandbox.bill.lines) >= sandbox.requests:
                break
            threading.Event().wait(0.05)
        check(sandbox, meter)


def test_tasks_cancelled_in_mid_call(sqlite_store: str) -> None:
    async def run(sandbox: Sandbox, meter: Meter) -> None:
        metered = meter.openai(aclient(sandbox))
        rng = random.Random(7)

        async def call() -> None:
            task = asyncio.ensure_future(
                metered.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=ANSWER)
            )
            if rng.random() < 0.3:
                asyncio.get_running_loop().call_later(rng.random() * 0.06, task.cancel)
            with suppress(asyncio.CancelledError):
                await task

        await asyncio.gather(*(auntil_exhausted(call) for _ in range(64)))
        await metered.close()

    with provider() as sandbox, Meter(sqlite_store, budgets=["$1 per session"]) as meter:
        asyncio.run(run(sandbox, meter))
        assert sandbox.bill.total() <= CAP
        assert_sound(meter)


def test_a_budget_of_tokens(store: str) -> None:
    with provider() as sandbox, Meter(store, budgets=["20k tokens/day per user"]) as meter:
        metered = meter.openai(client(sandbox))

        def work(_: int) -> None:
            with meter.session("s", user="u"):
                until_exhausted(
                    lambda: metered.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=ANSWER)
                )

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(work, range(64)))
        assert 19_800 <= sandbox.bill.tokens() <= 20_000
        assert_sound(meter)


def test_calls_per_minute(store: str) -> None:
    """Against a clock that stands still, so that no window turns over in the middle."""
    with (
        provider() as sandbox,
        Meter(store, budgets=["25 calls/minute per user"], clock=lambda: 1_800_000_030_000) as meter,
    ):
        metered = meter.openai(client(sandbox))

        def work(_: int) -> None:
            with meter.session(user="u"):
                until_exhausted(lambda: metered.chat.completions.create(model=MODEL, messages=HELLO))

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(work, range(64)))
        assert sandbox.requests == 25
        assert_sound(meter)


def test_five_budgets_at_once(store: str) -> None:
    budgets = [
        "$1 per session",
        "$1.50/day per user",
        "$1 per 24h rolling for model gpt-4*",
        "100k tokens/month",
        "500 calls/hour per user and model",
    ]
    with provider() as sandbox, Meter(store, budgets=budgets) as meter:
        metered = meter.openai(client(sandbox))

        def work(number: int) -> None:
            with meter.session(f"s{number % 2}", user="u"):
                until_exhausted(
                    lambda: metered.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=ANSWER)
                )

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(work, range(64)))
        check(sandbox, meter)


def test_threads_and_tasks_and_changes_of_the_limit_at_once(sqlite_store: str) -> None:
    """The limit goes up and down below what is spent while 32 threads call."""
    with provider() as sandbox, Meter(sqlite_store, budgets=["$1 per session"]) as meter:
        metered = meter.openai(client(sandbox))
        stop = threading.Event()

        def change() -> None:
            for amount in ("$0.30", "$0.70", "$0.10", "$1"):
                if stop.wait(0.12):
                    return
                meter.set_limit("$1 per session", amount)

        def work(_: int) -> None:
            with suppress(AssertionError):
                for _ in range(30):
                    until_exhausted(
                        lambda: metered.chat.completions.create(
                            model=MODEL, messages=HELLO, max_tokens=ANSWER
                        )
                    )
                    if not changer.is_alive():
                        break

        changer = threading.Thread(target=change)
        changer.start()
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(work, range(32)))
        stop.set()
        changer.join()
        meter.set_limit("$1 per session", "$1")
        assert sandbox.bill.total() <= CAP
        assert_sound(meter)
