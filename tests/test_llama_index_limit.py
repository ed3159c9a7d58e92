"""Through LlamaIndex, too, nothing is let through: whatever way in, and at the sandbox's bill."""

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
from llama_index_support import HELLO, LOWERS, WAYS, embedder, llm, no_collection, opened
from support import ANSWER, arun, assert_agrees, assert_sound, auntil_exhausted, until_exhausted

from behest_integrations import BudgetExceeded, Meter
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


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ask", ["chat", "complete"])
def test_64_threads(way: str, ask: str, sqlite_store: str) -> None:
    with (
        provider() as sandbox,
        Meter(sqlite_store, budgets=["$1 per session"]) as meter,
        opened(way, meter, llm(sandbox)) as model,
    ):
        go: Any = (lambda: model.chat(HELLO)) if ask == "chat" else (lambda: model.complete("hello there"))
        with ThreadPoolExecutor(64) as pool:
            list(pool.map(lambda _: until_exhausted(go), range(64)))
        check(way, sandbox, meter)
        assert_agrees(meter, sandbox)


@pytest.mark.parametrize("way", WAYS)
def test_64_tasks(way: str) -> None:
    async def run() -> None:
        await asyncio.gather(*(auntil_exhausted(lambda: model.achat(HELLO)) for _ in range(64)))

    with (
        provider() as sandbox,
        Meter("memory://", budgets=["$1 per session"]) as meter,
        opened(way, meter, llm(sandbox)) as model,
    ):
        arun(run())
        check(way, sandbox, meter)
        assert_agrees(meter, sandbox)


@pytest.mark.parametrize("way", WAYS)
def test_64_streams_a_third_broken_off(way: str) -> None:
    """The provider here bills a stream that is hung up on in full, the worst it could do."""
    with (
        provider() as sandbox,
        Meter("memory://", budgets=["$1 per session"]) as meter,
        opened(way, meter, llm(sandbox)) as model,
    ):

        def stream(broken: bool) -> None:
            chunks = model.stream_chat(HELLO)
            for number, _ in enumerate(chunks):
                if broken and number == 2:
                    chunks.close()
                    break

        with ThreadPoolExecutor(64) as pool, no_collection():
            list(pool.map(lambda n: until_exhausted(lambda: stream(n % 3 == 0)), range(64)))
        check(way, sandbox, meter)


@pytest.mark.parametrize("way", WAYS)
def test_64_async_streams_a_third_broken_off_and_some_cancelled(way: str, sqlite_store: str) -> None:
    async def stream(number: int) -> None:
        count = 0
        async for _ in await model.astream_chat(HELLO):
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
        opened(way, meter, llm(sandbox)) as model,
    ):
        asyncio.run(run())
        check(way, sandbox, meter)


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

        def build(builder: int) -> None:
            while True:
                documents = [Document(text=text, metadata={"n": builder}) for _ in range(15)]
                try:
                    VectorStoreIndex.from_documents(documents, embed_model=model)
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
