"""Through LlamaIndex, too, nothing is let through: whatever way in, and at the sandbox's bill.

Two people call, each with a budget; who it is for is said by LlamaIndex's own tags.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest

pytest.importorskip("llama_index.llms.openai")
pytest.importorskip("llama_index.embeddings.openai")

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.instrumentation.dispatcher import instrument_tags
from llama_index_support import HELLO, LOWERS, WAYS, embedder, llm, no_collection, opened
from support import (
    ANSWER,
    PEOPLE,
    afour,
    arun,
    assert_agrees,
    assert_each_within,
    assert_sound,
    assert_used_up,
    assert_whose,
    auntil_exhausted,
    four,
    ids,
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


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ask", ["chat", "complete"])
def test_64_threads(way: str, ask: str, sqlite_store: str) -> None:
    with (
        provider() as sandbox,
        Meter(sqlite_store, budgets=[BUDGET]) as meter,
        opened(way, meter, llm(sandbox)) as model,
    ):

        def go(who: str) -> Any:
            return model.chat(HELLO, user=who) if ask == "chat" else model.complete("hello there", user=who)

        def work(number: int) -> None:
            who = person(number)
            with instrument_tags(ids(who)):
                until_exhausted(lambda: go(who))

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(work, range(64)))
        check(way, sandbox, meter)
        assert_agrees(meter, sandbox)
        assert_whose(meter, sandbox)


@pytest.mark.parametrize("how", ["threads", "tasks", "streams"])
@pytest.mark.parametrize("way", ["wrapper", "settings", "handler"])
def test_64_callers_of_four_calls(way: str, how: str) -> None:
    """With no retry of theirs, and default settings: nobody is refused while there is room for a call.

    A handler cannot lower limits: it uses all but what one call may cost, 97 % of this budget. And
    on an event loop it cannot wait: there it refuses what is only busy.
    """
    if (way, how) == ("handler", "tasks"):
        pytest.skip("a handler's methods are blocking, and an event loop must not be blocked")

    async def several() -> list[list[BudgetExceeded]]:
        return await asyncio.gather(*(afour(lambda: model.achat(HELLO)) for _ in range(64)))

    def call() -> None:
        if how == "streams":
            list(model.stream_chat(HELLO))
        else:
            model.chat(HELLO)

    with (
        provider() as sandbox,
        Meter("memory://", budgets=["$1"]) as meter,
        opened(way, meter, llm(sandbox)) as model,
    ):
        if how == "tasks":
            refused = arun(several())
        else:
            with ThreadPoolExecutor(64) as pool:
                refused = list(pool.map(lambda _: four(call), range(64)))
        assert_used_up(sandbox, meter, refused, Decimal("0.01") if way in LOWERS else CALL)


@pytest.mark.parametrize("way", WAYS)
def test_64_tasks(way: str) -> None:
    async def calls(who: str) -> None:
        with instrument_tags(ids(who)):
            await auntil_exhausted(lambda: model.achat(HELLO, user=who))

    async def run() -> None:
        await asyncio.gather(*(calls(person(n)) for n in range(64)))

    with (
        provider() as sandbox,
        Meter("memory://", budgets=[BUDGET]) as meter,
        opened(way, meter, llm(sandbox)) as model,
    ):
        arun(run())
        check(way, sandbox, meter)
        assert_agrees(meter, sandbox)
        assert_whose(meter, sandbox)


@pytest.mark.parametrize("way", WAYS)
def test_64_streams_a_third_broken_off(way: str) -> None:
    """The provider here bills a stream that is hung up on in full, the worst it could do."""
    with (
        provider() as sandbox,
        Meter("memory://", budgets=[BUDGET]) as meter,
        opened(way, meter, llm(sandbox)) as model,
    ):

        def stream(who: str, broken: bool) -> None:
            chunks = model.stream_chat(HELLO, user=who)
            for number, _ in enumerate(chunks):
                if broken and number == 2:
                    chunks.close()
                    break

        def work(number: int) -> None:
            who = person(number)
            with instrument_tags(ids(who)):
                until_exhausted(lambda: stream(who, number % 3 == 0))

        with ThreadPoolExecutor(64) as pool, no_collection():
            list(pool.map(work, range(64)))
        check(way, sandbox, meter)
        assert_whose(meter, sandbox, exact=False)


@pytest.mark.parametrize("way", WAYS)
def test_64_async_streams_a_third_broken_off_and_some_cancelled(way: str, sqlite_store: str) -> None:
    async def stream(number: int) -> None:
        count = 0
        async for _ in await model.astream_chat(HELLO, user=person(number)):
            count += 1
            if number % 3 == 0 and count == 2:
                break
            if number % 7 == 0 and count == 3:
                raise asyncio.CancelledError

    async def call(number: int) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.ensure_future(stream(number))

    async def calls(number: int) -> None:
        with instrument_tags(ids(person(number))):
            await auntil_exhausted(lambda: call(number))

    async def run() -> None:
        await asyncio.gather(*(calls(n) for n in range(64)))
        await asyncio.get_running_loop().shutdown_asyncgens()
        await asyncio.sleep(0.2)

    with (
        provider() as sandbox,
        Meter(sqlite_store, budgets=[BUDGET]) as meter,
        opened(way, meter, llm(sandbox)) as model,
    ):
        asyncio.run(run())
        check(way, sandbox, meter)
        assert_whose(meter, sandbox, exact=False)


@pytest.mark.parametrize("way", WAYS)
def test_an_index_of_many_batches(way: str) -> None:
    """Batches of ten texts of 440 tokens, by eight builders, until the budget is used up."""
    text = "the cost of a call is known before it is made " * 40
    budget = "$0.0013"
    with (
        Sandbox() as sandbox,
        Meter("memory://", budgets=[budget]) as meter,
        opened(way, meter, embedder(sandbox, embed_batch_size=5)) as model,
    ):
        models = {who: model.model_copy(update={"additional_kwargs": {"user": who}}) for who in PEOPLE}

        def build(builder: int) -> None:
            who = person(builder)
            while True:
                documents = [Document(text=text, metadata={"n": builder}) for _ in range(15)]
                try:
                    with instrument_tags(ids(who)):
                        VectorStoreIndex.from_documents(documents, embed_model=models[who])
                except BudgetExceeded as error:
                    if not error.busy:
                        return

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(build, range(8)))
        cap = Decimal(budget[1:])
        assert sandbox.bill.total() <= cap
        # A handler is not told the texts: it holds the longest that a batch can be ($0.00082).
        assert sandbox.bill.total() >= cap * (30 if way == "handler" else 95) / 100
        assert_sound(meter)
        assert_whose(meter, sandbox)
