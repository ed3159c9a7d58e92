"""Through LangChain, too, nothing is let through: whatever way in, and at the sandbox's bill.

What can lower limits uses at least 99 % of the budget. A callback cannot: what is left of the
budget when it refuses is less than one call's worst case.
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

from langchain_support import ALL_WAYS, HELLO, LOWERS, chat, embedder, opened, skip_unless_handed_on
from support import ANSWER, assert_agrees, assert_sound, auntil_exhausted, until_exhausted

from behest_integrations import Meter
from behest_integrations.sandbox import Sandbox

CAP = Decimal(1)
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
    least = CAP * 99 / 100 if way in LOWERS else CAP - CALL
    assert spent >= least, f"only {spent} was used"
    assert_sound(meter)


@pytest.mark.parametrize("way", ALL_WAYS)
def test_64_threads(way: str, sqlite_store: str) -> None:
    with (
        provider() as sandbox,
        Meter(sqlite_store, budgets=["$1 per session"]) as meter,
        opened(way, meter, chat(sandbox)) as model,
    ):
        with ThreadPoolExecutor(64) as pool:
            list(pool.map(lambda _: until_exhausted(lambda: model.invoke(HELLO)), range(64)))
        check(way, sandbox, meter)
        assert_agrees(meter, sandbox)


@pytest.mark.parametrize("way", ALL_WAYS)
def test_64_tasks(way: str) -> None:
    skip_unless_handed_on(way)

    async def run() -> None:
        await asyncio.gather(*(auntil_exhausted(lambda: model.ainvoke(HELLO)) for _ in range(64)))

    with (
        provider() as sandbox,
        Meter("memory://", budgets=["$1 per session"]) as meter,
        opened(way, meter, chat(sandbox)) as model,
    ):
        asyncio.run(run())
        check(way, sandbox, meter)
        assert_agrees(meter, sandbox)


@pytest.mark.parametrize("way", ALL_WAYS)
def test_64_streams_a_third_broken_off(way: str) -> None:
    """The provider here bills a stream that is hung up on in full, the worst it could do."""
    with (
        provider() as sandbox,
        Meter("memory://", budgets=["$1 per session"]) as meter,
        opened(way, meter, chat(sandbox)) as model,
    ):

        def stream(broken: bool) -> None:
            for number, _ in enumerate(model.stream(HELLO)):
                if broken and number == 2:
                    break

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(lambda n: until_exhausted(lambda: stream(n % 3 == 0)), range(64)))
        check(way, sandbox, meter)


@pytest.mark.parametrize("way", ALL_WAYS)
def test_64_async_streams_a_third_broken_off_and_some_cancelled(way: str, sqlite_store: str) -> None:
    skip_unless_handed_on(way)

    async def stream(number: int) -> None:
        count = 0
        async for _ in model.astream(HELLO):
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
        Meter(sqlite_store, budgets=["$1 per session"]) as meter,
        opened(way, meter, chat(sandbox)) as model,
    ):
        asyncio.run(run())
        check(way, sandbox, meter)


@pytest.mark.parametrize("way", ALL_WAYS)
def test_tasks_cancelled_in_mid_call(way: str) -> None:
    skip_unless_handed_on(way)
    rng = random.Random(7)

    async def call() -> None:
        task = asyncio.ensure_future(model.ainvoke(HELLO))
        if rng.random() < 0.3:
            asyncio.get_running_loop().call_later(rng.random() * 0.06, task.cancel)
        with suppress(asyncio.CancelledError):
            await task

    async def run() -> None:
        await asyncio.gather(*(auntil_exhausted(call) for _ in range(64)))

    with (
        provider() as sandbox,
        Meter("memory://", budgets=["$1 per session"]) as meter,
        opened(way, meter, chat(sandbox)) as model,
    ):
        asyncio.run(run())
        assert sandbox.bill.total() <= CAP
        assert_sound(meter)


def test_embeddings_from_64_threads(store: str) -> None:
    text = "the cost of a call is known before it is made " * 40  # 440 tokens
    cap = Decimal("0.0005")
    with provider() as sandbox, Meter(store, budgets=["$0.0005 per session"]) as meter:
        metered = meter.langchain_embeddings(embedder(sandbox))

        def work(_: int) -> None:
            until_exhausted(lambda: metered.embed_documents([text, text]))

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(work, range(64)))
        assert cap * 95 / 100 <= sandbox.bill.total() <= cap
        assert_sound(meter)
