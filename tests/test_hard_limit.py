"""Nothing is let through: the truth is what the sandbox billed, never our own ledger.

64 callers of two people against their budgets, whatever they are: threads, tasks, processes,
streams. At most the budgets are spent at the provider, and at least 99 % of them; and what each
has spent is what the provider billed for that one.
"""

from __future__ import annotations

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from support import (
    ANSWER,
    HELLO,
    MODEL,
    aclient,
    afour,
    assert_agrees,
    assert_each_within,
    assert_sound,
    assert_used_up,
    assert_whose,
    auntil_exhausted,
    client,
    entries,
    forkserver,
    four,
    person,
    slow,
    until_exhausted,
)

from behest_integrations import BudgetExceeded, Meter
from behest_integrations.sandbox import Sandbox

CAP = Decimal(1)
EACH = CAP / 2
BUDGET = "$0.50 per session"


def provider() -> Sandbox:
    return Sandbox(latency=0.05, output_tokens=ANSWER, chunk_tokens=98)


def check(sandbox: Sandbox, meter: Meter) -> None:
    spent = sandbox.bill.total()
    assert spent <= CAP, f"the budget was passed: {spent}"
    assert spent >= CAP * 99 / 100, f"only {spent} was used"
    assert_each_within(sandbox, EACH, EACH * 99 / 100)
    assert_sound(meter)


def ask(metered: Any, who: str, **options: Any) -> Any:
    return metered.chat.completions.create(
        **{"model": MODEL, "messages": HELLO, "max_tokens": ANSWER, "user": who, **options}
    )


def test_64_threads(store: str) -> None:
    with provider() as sandbox, Meter(store, budgets=[BUDGET]) as meter:
        metered = meter.openai(client(sandbox))

        def work(number: int) -> None:
            who = person(number)
            with meter.session(f"of {who}", user=who):
                until_exhausted(lambda: ask(metered, who))

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(work, range(64)))
        check(sandbox, meter)
        assert_agrees(meter, sandbox)
        assert_whose(meter, sandbox)


def test_64_tasks(store: str) -> None:
    async def run(sandbox: Sandbox, meter: Meter) -> None:
        metered = meter.openai(aclient(sandbox))

        async def calls(who: str) -> None:
            with meter.session(f"of {who}", user=who):
                await auntil_exhausted(lambda: ask(metered, who))

        await asyncio.gather(*(calls(person(n)) for n in range(64)))
        await metered.close()

    with provider() as sandbox, Meter(store, budgets=[BUDGET]) as meter:
        asyncio.run(run(sandbox, meter))
        check(sandbox, meter)
        assert_agrees(meter, sandbox)
        assert_whose(meter, sandbox)


@pytest.mark.parametrize("way", ["threads", "tasks", "streams", "async streams"])
def test_64_callers_of_four_calls(way: str, sqlite_store: str) -> None:
    """With no retry of theirs, and default settings: nobody is refused while anything is left."""
    streamed = {"stream": True} if "streams" in way else {}

    async def several() -> list[list[BudgetExceeded]]:
        async with meter.openai(aclient(sandbox)) as metered:

            async def call() -> None:
                answer = await ask(metered, "u", **streamed)
                if streamed:
                    async for _ in answer:
                        pass

            return await asyncio.gather(*(afour(call) for _ in range(64)))

    with provider() as sandbox, Meter(sqlite_store, budgets=["$1"]) as meter:
        if way in ("tasks", "async streams"):
            refused = asyncio.run(several())
        else:
            metered = meter.openai(client(sandbox))

            def call() -> None:
                answer = ask(metered, "u", **streamed)
                if streamed:
                    list(answer)

            with ThreadPoolExecutor(64) as pool:
                refused = list(pool.map(lambda _: four(call), range(64)))
        assert_used_up(sandbox, meter, refused)


@pytest.mark.parametrize("wait", [0.0, 20.0])
def test_a_caller_that_waits_needs_no_retry_of_its_own(sqlite_store: str, wait: float) -> None:
    with provider() as sandbox, Meter(sqlite_store, budgets=["$1"], wait=wait) as meter:
        metered = meter.openai(client(sandbox))
        refusals: list[BudgetExceeded] = []

        def work(number: int) -> None:
            who = person(number)
            for _ in range(4):
                try:
                    with meter.session(f"of {who}", user=who):
                        ask(metered, who)
                except BudgetExceeded as error:
                    refusals.append(error)

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(work, range(64)))
        assert sandbox.bill.total() <= CAP
        if wait:
            assert sandbox.bill.total() >= CAP * 99 / 100
            assert not any(error.busy for error in refusals)
        assert_sound(meter)
        assert_whose(meter, sandbox)


def _process(url: str, store: str, ready: object) -> None:
    from openai import OpenAI

    ready.wait()  # type: ignore[attr-defined]
    with Meter(store, budgets=[BUDGET]) as meter:
        metered = meter.openai(OpenAI(base_url=url, api_key="none", max_retries=0))

        def work(number: int) -> None:
            who = person(number)
            with meter.session(f"of {who}", user=who):
                until_exhausted(lambda: ask(metered, who))

        with ThreadPoolExecutor(8) as pool:
            for number in range(8):
                pool.submit(work, number)


@pytest.mark.parametrize("processes", [3, slow(8)])
def test_processes_on_one_file(sqlite_store: str, processes: int) -> None:
    spawn = forkserver()
    with provider() as sandbox, Meter(sqlite_store, budgets=[BUDGET]) as meter:
        ready = spawn.Event()
        workers = [
            spawn.Process(target=_process, args=(sandbox.base_url, sqlite_store, ready))
            for _ in range(processes)
        ]
        for worker in workers:
            worker.start()
        ready.set()
        for worker in workers:
            worker.join(240)  # a slow machine takes its time to start them
            assert worker.exitcode == 0
        check(sandbox, meter)
        assert_agrees(meter, sandbox)
        assert_whose(meter, sandbox)


def _stream(metered: object, who: str, break_off: bool) -> None:
    stream = ask(metered, who, stream=True)
    for number, _chunk in enumerate(stream):
        if break_off and number == 2:
            stream.close()
            break


def test_64_streams_a_third_broken_off(store: str) -> None:
    """The provider here bills a stream that is hung up on in full, the worst it could do."""
    with provider() as sandbox, Meter(store, budgets=[BUDGET]) as meter:
        metered = meter.openai(client(sandbox))

        def work(number: int) -> None:
            who = person(number)
            with meter.session(f"of {who}", user=who):
                until_exhausted(lambda: _stream(metered, who, number % 3 == 0))

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(work, range(64)))
        # The provider books a broken stream when it notices; give it that time.
        deadline = threading.Event()
        for _ in range(100):
            if len(sandbox.bill.lines) >= sandbox.requests:
                break
            deadline.wait(0.05)
        check(sandbox, meter)
        assert_whose(meter, sandbox, exact=False)


def test_64_async_streams_a_third_cancelled(store: str) -> None:
    async def run(sandbox: Sandbox, meter: Meter) -> None:
        metered = meter.openai(aclient(sandbox))

        async def stream(who: str, broken: bool) -> None:
            chunks = await ask(metered, who, stream=True)
            number = 0
            async with chunks:
                async for _chunk in chunks:
                    number += 1
                    if broken and number == 2:
                        raise asyncio.CancelledError

        async def call(who: str, broken: bool) -> None:
            task = asyncio.ensure_future(stream(who, broken))
            with suppress(asyncio.CancelledError):
                await task

        async def calls(who: str, broken: bool) -> None:
            with meter.session(f"of {who}", user=who):
                await auntil_exhausted(lambda: call(who, broken))

        await asyncio.gather(*(calls(person(n), n % 3 == 0) for n in range(64)))
        await metered.close()

    with provider() as sandbox, Meter(store, budgets=[BUDGET]) as meter:
        asyncio.run(run(sandbox, meter))
        for _ in range(100):
            if len(sandbox.bill.lines) >= sandbox.requests:
                break
            threading.Event().wait(0.05)
        check(sandbox, meter)
        assert_whose(meter, sandbox, exact=False)


def test_tasks_cancelled_in_mid_call(sqlite_store: str) -> None:
    async def run(sandbox: Sandbox, meter: Meter) -> None:
        metered = meter.openai(aclient(sandbox))
        rng = random.Random(7)

        async def call(who: str) -> None:
            task = asyncio.ensure_future(ask(metered, who))
            if rng.random() < 0.3:
                asyncio.get_running_loop().call_later(rng.random() * 0.06, task.cancel)
            with suppress(asyncio.CancelledError):
                await task

        async def calls(who: str) -> None:
            with meter.session(f"of {who}", user=who):
                await auntil_exhausted(lambda: call(who))

        await asyncio.gather(*(calls(person(n)) for n in range(64)))
        await metered.close()

    with provider() as sandbox, Meter(sqlite_store, budgets=[BUDGET]) as meter:
        asyncio.run(run(sandbox, meter))
        assert sandbox.bill.total() <= CAP
        assert_sound(meter)
        assert_whose(meter, sandbox, exact=False)


def test_a_budget_of_tokens(store: str) -> None:
    with provider() as sandbox, Meter(store, budgets=["20k tokens/day per user"]) as meter:
        metered = meter.openai(client(sandbox))

        def work(_: int) -> None:
            with meter.session("s", user="u"):
                until_exhausted(lambda: ask(metered, "u"))

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(work, range(64)))
        assert 19_800 <= sandbox.bill.tokens() <= 20_000
        assert_sound(meter)
        assert_whose(meter, sandbox)


def test_calls_per_minute(store: str) -> None:
    """Against a clock that stands still, so that no window turns over in the middle."""
    with (
        provider() as sandbox,
        Meter(store, budgets=["25 calls/minute per user"], clock=lambda: 1_800_000_030_000) as meter,
    ):
        metered = meter.openai(client(sandbox))

        def work(_: int) -> None:
            with meter.session(user="u"):
                until_exhausted(
                    lambda: metered.chat.completions.create(model=MODEL, messages=HELLO, user="u")
                )

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(work, range(64)))
        assert sandbox.requests == 25
        assert_sound(meter)
        assert_whose(meter, sandbox)


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
            mark = f"s{number % 2}"
            with meter.session(mark, user="u"):
                until_exhausted(lambda: ask(metered, mark))

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(work, range(64)))
        spent = sandbox.bill.total()
        assert CAP * 99 / 100 <= spent <= CAP
        assert_sound(meter)
        assert_whose(meter, sandbox, whose=lambda entry: entry.session_id)
        assert {e.user_id for e in entries(meter)} == {"u"}


def test_threads_and_tasks_and_changes_of_the_limit_at_once(sqlite_store: str) -> None:
    """The limit goes up and down below what is spent while 32 threads call."""
    with provider() as sandbox, Meter(sqlite_store, budgets=[BUDGET]) as meter:
        metered = meter.openai(client(sandbox))
        stop = threading.Event()

        def change() -> None:
            for amount in ("$0.15", "$0.35", "$0.05", "$0.50"):
                if stop.wait(0.12):
                    return
                meter.set_limit(BUDGET, amount)

        def work(number: int) -> None:
            who = person(number)
            with suppress(AssertionError), meter.session(f"of {who}", user=who):
                for _ in range(30):
                    until_exhausted(lambda: ask(metered, who))
                    if not changer.is_alive():
                        break

        changer = threading.Thread(target=change)
        changer.start()
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(work, range(32)))
        stop.set()
        changer.join()
        meter.set_limit(BUDGET, "$0.50")
        assert sandbox.bill.total() <= CAP
        assert_each_within(sandbox, EACH, Decimal(0))
        assert_sound(meter)
        assert_whose(meter, sandbox)
