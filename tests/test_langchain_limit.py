"""Through LangChain, too, nothing is let through: whatever way in, and at the sandbox's bill.

What can lower limits uses at least 99 % of a budget. A callback cannot: what is left of the
budget when it refuses is less than one call's worst case. Two people call, each with a budget; who
it is for is said by each run's config alone, and told by the provider's bill.
"""

from __future__ import annotations

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal

import pytest

pytest.importorskip("langchain_openai")
pytest.importorskip("langchain.agents")

from langchain_support import (
    ALL_WAYS,
    HELLO,
    LOWERS,
    chat,
    embedder,
    opened,
    opened_for_each,
    run_of,
    skip_unless_handed_on,
)
from support import (
    ANSWER,
    PEOPLE,
    afour,
    assert_agrees,
    assert_each_within,
    assert_sound,
    assert_used_up,
    assert_whose,
    auntil_exhausted,
    four,
    person,
    until_exhausted,
)

from behest_integrations import BudgetExceeded, Meter
from behest_integrations.sandbox import Sandbox

CAP = Decimal(1)
EACH = CAP / 2
BUDGET = "$0.50 per session"
CALL = Decimal("0.0305")  # the worst case of one


def provider() -> Sandbox:
    return Sandbox(latency=0.05, output_tokens=ANSWER, chunk_tokens=98)


def check(way: str, sandbox: Sandbox, meter: Meter) -> None:
    for _ in range(100):  # the provider books a broken stream when it notices
        if len(sandbox.bill.lines) >= sandbox.requests:
            break
        threading.Event().wait(0.05)
    spent = sandbox.bill.total()
    assert spent <= CAP, f"the budget was passed: {spent}"
    assert_each_within(sandbox, EACH, EACH * 99 / 100 if way in LOWERS else EACH - CALL)
    assert_sound(meter)


@pytest.mark.parametrize("way", ALL_WAYS)
def test_64_threads(way: str, sqlite_store: str) -> None:
    with (
        provider() as sandbox,
        Meter(sqlite_store, budgets=[BUDGET]) as meter,
        opened_for_each(way, meter, sandbox) as models,
    ):

        def work(number: int) -> None:
            who = person(number)
            until_exhausted(lambda: models[who].invoke(HELLO, run_of(who)))

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(work, range(64)))
        check(way, sandbox, meter)
        assert_agrees(meter, sandbox)
        assert_whose(meter, sandbox)


@pytest.mark.parametrize("how", ["threads", "tasks", "streams"])
@pytest.mark.parametrize("way", ["wrapper", "callback", "middleware"])
def test_64_callers_of_four_calls(way: str, how: str) -> None:
    """With no retry of theirs, and default settings: nobody is refused while there is room for a call.

    A callback cannot lower limits: it uses all but what one call may cost, 97 % of this budget.
    """
    if how == "tasks":
        skip_unless_handed_on(way)

    async def several() -> list[list[BudgetExceeded]]:
        return await asyncio.gather(*(afour(lambda: model.ainvoke(HELLO)) for _ in range(64)))

    def call() -> None:
        if how == "streams":
            list(model.stream(HELLO))
        else:
            model.invoke(HELLO)

    with (
        provider() as sandbox,
        Meter("memory://", budgets=["$1"]) as meter,
        opened(way, meter, chat(sandbox)) as model,
    ):
        if how == "tasks":
            refused = asyncio.run(several())
        else:
            with ThreadPoolExecutor(64) as pool:
                refused = list(pool.map(lambda _: four(call), range(64)))
        assert_used_up(sandbox, meter, refused, Decimal("0.01") if way in LOWERS else CALL)


@pytest.mark.parametrize("way", ALL_WAYS)
def test_64_tasks(way: str) -> None:
    skip_unless_handed_on(way)

    async def calls(who: str) -> None:
        await auntil_exhausted(lambda: models[who].ainvoke(HELLO, run_of(who)))

    async def run() -> None:
        await asyncio.gather(*(calls(person(n)) for n in range(64)))

    with (
        provider() as sandbox,
        Meter("memory://", budgets=[BUDGET]) as meter,
        opened_for_each(way, meter, sandbox) as models,
    ):
        asyncio.run(run())
        check(way, sandbox, meter)
        assert_agrees(meter, sandbox)
        assert_whose(meter, sandbox)


@pytest.mark.parametrize("way", ALL_WAYS)
def test_64_streams_a_third_broken_off(way: str) -> None:
    """The provider here bills a stream that is hung up on in full, the worst it could do."""
    with (
        provider() as sandbox,
        Meter("memory://", budgets=[BUDGET]) as meter,
        opened_for_each(way, meter, sandbox) as models,
    ):

        def stream(who: str, broken: bool) -> None:
            for number, _ in enumerate(models[who].stream(HELLO, run_of(who))):
                if broken and number == 2:
                    break

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(lambda n: until_exhausted(lambda: stream(person(n), n % 3 == 0)), range(64)))
        check(way, sandbox, meter)
        assert_whose(meter, sandbox, exact=False)


@pytest.mark.parametrize("way", ALL_WAYS)
def test_64_async_streams_a_third_broken_off_and_some_cancelled(way: str, sqlite_store: str) -> None:
    skip_unless_handed_on(way)

    async def stream(number: int) -> None:
        count = 0
        who = person(number)
        async for _ in models[who].astream(HELLO, run_of(who)):
            count += 1
            if number % 3 == 0 and count == 2:
                break
            if number % 7 == 0 and count == 3:
                raise asyncio.CancelledError

    async def call(number: int) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.ensure_future(stream(number))

    async def run() -> None:
        await asyncio.gather(*(auntil_exhausted(lambda n=n: call(n)) for n in range(64)))
        await asyncio.get_running_loop().shutdown_asyncgens()
        await asyncio.sleep(0.2)

    with (
        provider() as sandbox,
        Meter(sqlite_store, budgets=[BUDGET]) as meter,
        opened_for_each(way, meter, sandbox) as models,
    ):
        asyncio.run(run())
        check(way, sandbox, meter)
        assert_whose(meter, sandbox, exact=False)


@pytest.mark.parametrize("way", ALL_WAYS)
def test_tasks_cancelled_in_mid_call(way: str) -> None:
    skip_unless_handed_on(way)
    rng = random.Random(7)

    async def call(who: str) -> None:
        task = asyncio.ensure_future(models[who].ainvoke(HELLO, run_of(who)))
        if rng.random() < 0.3:
            asyncio.get_running_loop().call_later(rng.random() * 0.06, task.cancel)
        with suppress(asyncio.CancelledError):
            await task

    async def run() -> None:
        await asyncio.gather(*(auntil_exhausted(lambda n=n: call(person(n))) for n in range(64)))

    with (
        provider() as sandbox,
        Meter("memory://", budgets=[BUDGET]) as meter,
        opened_for_each(way, meter, sandbox) as models,
    ):
        asyncio.run(run())
        assert sandbox.bill.total() <= CAP
        assert_each_within(sandbox, EACH, Decimal(0))
        assert_sound(meter)
        assert_whose(meter, sandbox, exact=False)


def test_embeddings_from_64_threads(store: str) -> None:
    text = "the cost of a call is known before it is made " * 40  # 440 tokens
    cap = Decimal("0.0005")
    with provider() as sandbox, Meter(store, budgets=["$0.00025 per session"]) as meter:
        each = {
            who: meter.langchain_embeddings(embedder(sandbox, model_kwargs={"user": who})) for who in PEOPLE
        }

        def work(number: int) -> None:
            who = person(number)
            with meter.session(f"of {who}", user=who):
                until_exhausted(lambda: each[who].embed_documents([text, text]))

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(work, range(64)))
        assert cap * 95 / 100 <= sandbox.bill.total() <= cap
        assert_sound(meter)
        assert_whose(meter, sandbox)
