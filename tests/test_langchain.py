"""LangChain and LangGraph: each way to call is metered, attributed and stopped before the provider."""

from __future__ import annotations

import asyncio
import copy
import pickle
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, TypedDict

import pytest

pytest.importorskip("langchain_openai")
pytest.importorskip("langchain.agents")

from anthropic_fake import AnthropicFake
from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import BaseChatModel, FakeListLLM, GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langchain_core.tools import tool
from langchain_core.tracers._streaming import _StreamingCallbackHandler
from langchain_openai import OpenAI as TextModel
from langchain_support import (
    ALL_WAYS,
    HANDED_ON,
    HELLO,
    LOWERS,
    Agent,
    by_callback,
    by_wrapper,
    chat,
    embedder,
    opened,
    skip_unless_handed_on,
)
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt
from support import (
    arun,
    assert_agrees,
    assert_sound,
    client,
    entries,
    holds,
    kill_in_mid_call,
    slow,
    until_exhausted,
)

from behest_integrations import BudgetExceeded, ConfigError, Meter, Price, session
from behest_integrations.reports import report, verify
from behest_integrations.rules.budgets import to_nano
from behest_integrations.sandbox import Sandbox

SMALL = {"model": "gpt-4o-mini", "max_tokens": 60}


@pytest.fixture
def meter() -> Iterator[Meter]:
    with Meter("memory://", budgets=["$1 per session"]) as made:
        yield made


# ── every way to call ──────────────────────────────────────────────────────────────────


def _chain(model: Any) -> Any:
    return ChatPromptTemplate.from_messages([("user", "{question}")]) | model | StrOutputParser()


class State(TypedDict):
    text: str


def _graph(model: Any) -> Any:
    builder = StateGraph(State)
    builder.add_node("ask", lambda state: {"text": str(model.invoke(state["text"]).content)})
    builder.add_edge(START, "ask")
    builder.add_edge("ask", END)
    return builder.compile()


def _graph_of_graphs(model: Any) -> Any:
    builder = StateGraph(State)
    builder.add_node("inner", _graph(model))
    builder.add_node("again", _graph(model))
    builder.add_edge(START, "inner")
    builder.add_edge("inner", "again")
    builder.add_edge("again", END)
    return builder.compile()


@tool
def search(q: str) -> str:
    """Look something up."""
    return f"found {q}"


async def _events(model: Any) -> None:
    async for _ in _chain(model).astream_events({"question": HELLO}, version="v2"):
        pass


async def _atext(model: Any) -> None:
    async for _ in _chain(model).astream({"question": HELLO}):
        pass


def _parallel(model: Any) -> None:
    RunnableParallel(a=_chain(model), b=_chain(model), c=model).invoke({"question": HELLO})


PATHS: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "invoke": (1, lambda m: _chain(m).invoke({"question": HELLO})),
    "ainvoke": (1, lambda m: arun(_chain(m).ainvoke({"question": HELLO}))),
    "stream": (1, lambda m: list(_chain(m).stream({"question": HELLO}))),
    "astream": (1, lambda m: arun(_atext(m))),
    "batch": (3, lambda m: m.batch([HELLO] * 3)),
    "abatch": (3, lambda m: arun(m.abatch([HELLO] * 3))),
    "astream_events": (1, lambda m: arun(_events(m))),
    "parallel": (2, lambda m: RunnableParallel(a=_chain(m), b=_chain(m)).invoke({"question": HELLO})),
    "with_retry": (1, lambda m: m.with_retry(stop_after_attempt=2).invoke(HELLO)),
    "with_fallbacks": (1, lambda m: m.with_fallbacks([m]).invoke(HELLO)),
    "node": (1, lambda m: _graph(m).invoke({"text": HELLO})),
    "subgraphs": (2, lambda m: _graph_of_graphs(m).invoke({"text": HELLO})),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("way", ["callback", "model's callbacks", "wrapper", "both", "instrument"])
def test_every_path_is_metered_and_refused(way: str, path: str, sandbox: Sandbox, meter: Meter) -> None:
    calls, go = PATHS[path]
    with opened(way, meter, chat(sandbox, **SMALL, stream_usage=True)) as model:
        with session("s-1", user="u-1"):
            go(model)
        assert len(sandbox.bill.lines) == calls
        assert_agrees(meter, sandbox)
        booked = entries(meter)
        assert [e.status for e in booked] == ["settled"] * calls
        assert {(e.session_id, e.user_id, e.model, e.provider) for e in booked} == {
            ("s-1", "u-1", "gpt-4o-mini", "openai")
        }
        meter.set_limit("$1 per session", "$0.0000001")
        before = sandbox.requests
        with session("s-2"), pytest.raises(BudgetExceeded) as caught:
            go(model)
        assert sandbox.requests == before
        assert not caught.value.busy
    assert_sound(meter)


@pytest.mark.parametrize("way", ["agent's callback", "middleware", "instrument"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_agents_with_tools(way: str, asynchronous: bool, sandbox: Sandbox, meter: Meter) -> None:
    if asynchronous:
        skip_unless_handed_on(way)
    model = chat(sandbox, **SMALL)
    extra = [meter.langchain_middleware()] if way == "middleware" else []
    agent = create_agent(model, tools=[search], middleware=extra)
    if way == "agent's callback":
        agent = agent.with_config(callbacks=[meter.langchain()])

    def go() -> Any:
        asked = {"messages": [{"role": "user", "content": HELLO}]}
        return arun(agent.ainvoke(asked)) if asynchronous else agent.invoke(asked)

    with opened("instrument", meter, model) if way == "instrument" else nullcontext():
        found = go()
        assert [m.type for m in found["messages"]] == ["human", "ai", "tool", "ai"]
        assert len(entries(meter)) == len(sandbox.bill.lines) == 2
        assert_agrees(meter, sandbox)
        meter.set_limit("$1 per session", "$0.0000001")
        with pytest.raises(BudgetExceeded):
            go()
    assert sandbox.requests == 2
    assert_sound(meter)


def test_a_retry_does_not_ask_the_provider_again(sandbox: Sandbox, meter: Meter) -> None:
    model = by_callback(meter, chat(sandbox, **SMALL)).with_retry(
        stop_after_attempt=3, wait_exponential_jitter=False
    )
    sandbox.fault("status", status=429, times=1)
    model.invoke(HELLO)
    assert [e.status for e in entries(meter)] == ["failed", "settled"]
    assert_agrees(meter, sandbox)


@pytest.mark.parametrize("way", ["wrapper", "both", "middleware"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_each_attempt_of_a_client_that_retries_is_a_call(
    way: str, asynchronous: bool, sandbox: Sandbox, meter: Meter
) -> None:
    """The provider here bills the answers that it fails to deliver."""
    with opened(way, meter, chat(sandbox, **SMALL, max_retries=2)) as model:
        sandbox.fault("status", status=500, times=2)
        arun(model.ainvoke(HELLO)) if asynchronous else model.invoke(HELLO)
        assert [e.status for e in entries(meter)] == ["assumed", "assumed", "settled"]
        assert sum(e.cost or 0 for e in entries(meter)) >= to_nano(sandbox.bill.total())
        assert_sound(meter)


def test_a_model_that_retries_out_of_sight_is_told_of_once(
    meter: Meter, caplog: pytest.LogCaptureFixture
) -> None:
    class Retries(Detailed):
        max_retries: int = 2

    for _ in range(2):
        meter.langchain_model(Retries())
    assert len([r for r in caplog.records if "max_retries=0" in r.getMessage()]) == 1


def test_the_wrapper_lowers_what_is_asked_for(sandbox: Sandbox) -> None:
    sandbox.output_tokens = 1000
    with Meter("memory://", budgets=["$0.0004 per session"]) as meter:
        model = by_wrapper(meter, chat(sandbox, model="gpt-4o-mini", max_tokens=300))
        assert model.invoke(HELLO).usage_metadata["output_tokens"] == 300
        lowered = model.invoke(HELLO)
        assert 16 <= lowered.usage_metadata["output_tokens"] < 300
        assert lowered.response_metadata["finish_reason"] == "length"
        assert model.max_tokens == 300
        first, second = entries(meter)
        assert (first.lowered_from, second.lowered_from) == (None, 300)
        # Bound to the call, and not to the model, as well.
        meter.set_limit("$0.0004 per session", "$0.0005")
        assert model.bind(max_tokens=1000).invoke(HELLO).usage_metadata["output_tokens"] < 300
        assert_agrees(meter, sandbox)
        assert sandbox.bill.total() <= Decimal("0.0005")


# ── what is booked ─────────────────────────────────────────────────────────────────────


class Detailed(BaseChatModel):
    """Says its usage in all the detail that LangChain has words for."""

    usage: Any = None
    answers: int = 1

    @property
    def _llm_type(self) -> str:
        return "detailed"

    def _get_ls_params(self, stop: Any = None, **kwargs: Any) -> Any:
        return {
            "ls_provider": "house",
            "ls_model_name": "house-1",
            "ls_model_type": "chat",
            "ls_max_tokens": 500,
        }

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        said = [
            ChatGeneration(message=AIMessage("hello", usage_metadata=self.usage)) for _ in range(self.answers)
        ]
        return ChatResult(generations=said)


HOUSE = {"house-1": Price(input="1", output="2", cached_input="0.1", cache_write="1.25")}


@pytest.mark.parametrize("way", ["callback", "wrapper"])
def test_the_details_of_the_usage(way: str) -> None:
    usage = {
        "input_tokens": 200,
        "output_tokens": 50,
        "total_tokens": 250,
        "input_token_details": {"cache_read": 100, "cache_creation": 20, "audio": 10},
        "output_token_details": {"reasoning": 30, "audio": 5},
    }
    with (
        Meter("memory://", budgets=["$1"], prices=HOUSE) as meter,
        opened(way, meter, Detailed(usage=usage)) as m,
    ):
        m.invoke("x" * 300)
        (entry,) = entries(meter)
        assert (entry.input_tokens, entry.output_tokens) == (200, 50)
        assert (entry.cached_input_tokens, entry.cache_write_tokens) == (100, 20)
        assert (entry.reasoning_tokens, entry.input_audio_tokens, entry.output_audio_tokens) == (30, 10, 5)
        assert entry.cost == 80 * 1000 + 100 * 100 + 20 * 1250 + 50 * 2000
        assert_sound(meter)


@pytest.mark.parametrize("way", ["callback", "wrapper"])
def test_usage_without_its_input_is_completed(way: str) -> None:
    """As streams of some versions of langchain-anthropic have it."""
    usage = {"input_tokens": 0, "output_tokens": 50, "total_tokens": 50}
    with (
        Meter("memory://", budgets=["$1"], prices=HOUSE) as meter,
        opened(way, meter, Detailed(usage=usage)) as model,
    ):
        model.invoke("x" * 300)
        (entry,) = entries(meter)
        assert (entry.status, entry.output_tokens) == ("estimated", 50)
        # From above: what a template that is not known may add is in it.
        assert 300 <= entry.input_tokens <= 640


@pytest.mark.parametrize("way", ["callback", "wrapper", "instrument"])
def test_a_stream_without_usage_is_counted_and_marked(way: str, sandbox: Sandbox, meter: Meter) -> None:
    sandbox.fault("no_usage", times=1)
    with opened(way, meter, chat(sandbox, **SMALL)) as model:
        list(model.stream(HELLO))
    entry = entries(meter)[-1]  # what a metered client within has assumed is reversed
    (line,) = sandbox.bill.lines
    assert (entry.status, entry.flags) == ("estimated", "no_usage")
    assert line.input_tokens <= entry.input_tokens <= line.input_tokens + 8
    assert line.output_tokens <= entry.output_tokens <= line.output_tokens + 2
    assert report(meter.ledger).total.output_tokens == entry.output_tokens
    assert_sound(meter)


def test_the_wrapper_asks_streams_for_their_usage(sandbox: Sandbox, meter: Meter) -> None:
    model = chat(sandbox, **SMALL)
    list(by_callback(meter, model).stream(HELLO))
    list(by_wrapper(meter, model).stream(HELLO))
    asked, wrapped = entries(meter)
    assert wrapped.status == "settled"
    assert asked.status in ("settled", "estimated")  # newer versions of ChatOpenAI ask by themselves
    assert (wrapped.input_tokens, wrapped.output_tokens) == (
        sandbox.bill.lines[1].input_tokens,
        sandbox.bill.lines[1].output_tokens,
    )


@pytest.mark.parametrize("way", ["callback", "wrapper", "both", "instrument"])
def test_cache_hits_cost_nothing(way: str, sandbox: Sandbox, meter: Meter) -> None:
    with opened(way, meter, chat(sandbox, **SMALL, cache=InMemoryCache())) as model:
        for _ in range(3):
            model.invoke(HELLO)
            arun(model.ainvoke(HELLO))
    assert len(sandbox.bill.lines) == len(entries(meter)) == 1
    assert_agrees(meter, sandbox)
    assert_sound(meter)


@pytest.mark.parametrize("way", ["callback", "wrapper", "instrument"])
def test_several_answers_to_one_question(way: str, sandbox: Sandbox, meter: Meter) -> None:
    with opened(way, meter, chat(sandbox, **SMALL, n=3)) as model:
        model.invoke(HELLO)
    assert_agrees(meter, sandbox)
    assert entries(meter)[0].output_tokens == sandbox.bill.lines[0].output_tokens > 100


@pytest.mark.parametrize("way", ["callback", "wrapper", "both", "instrument"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_batch_of_a_text_model_is_one_request(
    way: str, asynchronous: bool, sandbox: Sandbox, meter: Meter
) -> None:
    model = TextModel(
        base_url=sandbox.base_url,
        api_key="none",
        model="gpt-3.5-turbo-instruct",
        max_tokens=20,
        max_retries=0,
    )
    with opened(way, meter, model) as text:
        if asynchronous:
            arun(text.abatch(["one", "two", "three"]))
        else:
            text.batch(["one", "two", "three"])
        text.invoke("four")
    assert_agrees(meter, sandbox)
    assert sum(e.output_tokens for e in entries(meter)) == sum(b.output_tokens for b in sandbox.bill.lines)
    assert_sound(meter)


@pytest.mark.parametrize("kind", ["chat", "text"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_refusal_in_a_batch_leaves_nothing_held(kind: str, asynchronous: bool, sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["2 calls"]) as meter, meter.instrument_langchain():
        name = "gpt-3.5-turbo-instruct"
        text = TextModel(base_url=sandbox.base_url, api_key="none", model=name, max_tokens=20)
        model: Any = chat(sandbox, **SMALL) if kind == "chat" else text
        prompts: Any = [[HumanMessage(HELLO)]] * 3 if kind == "chat" else [HELLO] * 3

        def go() -> Any:
            return arun(model.agenerate(prompts)) if asynchronous else model.generate(prompts)

        with pytest.raises(BudgetExceeded):
            go()
        assert sandbox.requests == 0
        assert_sound(meter)
        assert entries(meter) == []
        assert len(model.batch([HELLO] * 2)) == 2


def test_two_chat_calls_begun_side_by_side_are_two_entries(sandbox: Sandbox, meter: Meter) -> None:
    model = chat(sandbox, **SMALL)
    with meter.instrument_langchain():
        model.generate([[HumanMessage("one")], [HumanMessage("two")]])
        arun(model.agenerate([[HumanMessage("one")], [HumanMessage("two")]]))
        meter.langchain_model(model).generate([[HumanMessage("one")], [HumanMessage("two")]])
    assert len(entries(meter)) == len(sandbox.bill.lines) == 6
    assert_agrees(meter, sandbox)
    assert_sound(meter)


# ── who ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", ["callback", "wrapper", "instrument"])
def test_who_is_taken_from_the_run_where_nothing_else_says(way: str, sandbox: Sandbox, meter: Meter) -> None:
    with opened(way, meter, chat(sandbox, **SMALL)) as model:
        model.invoke(HELLO, {"metadata": {"session_id": "m-1", "user_id": "u-1"}})
        model.invoke(HELLO, {"metadata": {"conversation_id": 7}})
        _graph(model).invoke({"text": HELLO}, {"configurable": {"thread_id": "t-1"}})
        with session("scope", user="u-2"):
            _graph(model).invoke({"text": HELLO}, {"configurable": {"thread_id": "t-2"}})
            model.invoke(HELLO, {"metadata": {"session_id": "m-2"}})
    who = [(e.session_id, e.user_id) for e in entries(meter)]
    assert who == [("m-1", "u-1"), ("7", None), ("t-1", None), ("scope", "u-2"), ("m-2", "u-2")]


async def _read(chunks: Any) -> None:
    async for _ in chunks:
        pass


async def _side_by_side(model: Any, configs: Any) -> None:
    """Streams that are read in turns, by one task: they share its context."""
    streams = [model.astream(HELLO, c) for c in configs]
    while streams:
        for chunks in list(streams):
            try:
                await anext(chunks)
            except StopAsyncIteration:
                streams.remove(chunks)


class Chunks(_StreamingCallbackHandler):
    """LangGraph has one of these: it makes `invoke` ask for chunks."""

    def tap_output_aiter(self, run_id: Any, output: Any) -> Any:
        return output

    def tap_output_iter(self, run_id: Any, output: Any) -> Any:
        return output


class Listener(Chunks, BaseCallbackHandler):
    pass


def _for_chunks(config: Any) -> Any:
    return {**config, "callbacks": [Listener()]}


ASKS: dict[str, Callable[[Any, Any], Any]] = {
    "invoke": lambda m, c: m.invoke(HELLO, c),
    "ainvoke": lambda m, c: arun(m.ainvoke(HELLO, c)),
    "stream": lambda m, c: list(m.stream(HELLO, c)),
    "astream": lambda m, c: arun(_read(m.astream(HELLO, c))),
    "a chain's stream": lambda m, c: list(_chain(m).stream({"question": HELLO}, c)),
    "a chain's astream": lambda m, c: arun(_read(_chain(m).astream({"question": HELLO}, c))),
    "batch": lambda m, c: m.batch([HELLO], [c]),
    "abatch": lambda m, c: arun(m.abatch([HELLO], c)),
    "events": lambda m, c: arun(_read(m.astream_events(HELLO, c, version="v2"))),
    "a chain's events": lambda m, c: arun(
        _read(_chain(m).astream_events({"question": HELLO}, c, version="v2"))
    ),
    "invoke in chunks": lambda m, c: m.invoke(HELLO, _for_chunks(c)),
    "ainvoke in chunks": lambda m, c: arun(m.ainvoke(HELLO, _for_chunks(c))),
    "a stream of bound metadata": lambda m, c: list(m.with_config(c).stream(HELLO)),
    "a stream within a chain": lambda m, c: RunnableLambda(lambda _: list(m.stream(HELLO))).invoke("", c),
    "a graph's messages": lambda m, c: list(_graph(m).stream({"text": HELLO}, c, stream_mode="messages")),
}


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("way", ["callback", "wrapper", "both", "instrument"])
def test_whoever_asks_is_who_it_is_for(way: str, ask: str, sandbox: Sandbox, meter: Meter) -> None:
    """In every way to ask; and nothing of it stays for what its caller does next."""
    with opened(way, meter, chat(sandbox, **SMALL)) as model:
        for who in ("ada", "bob"):
            config = {"metadata": {"session_id": f"of {who}", "user_id": who}, "tags": ["one"]}
            ASKS[ask](model, config)
            model.invoke(HELLO)
            list(model.stream(HELLO))
    nobody = [(None, None)] * 2
    who = [(e.session_id, e.user_id) for e in entries(meter)]
    assert who == [("of ada", "ada"), *nobody, ("of bob", "bob"), *nobody]
    assert_agrees(meter, sandbox)
    assert_sound(meter)


def test_the_models_own_metadata_counts_in_streams_too(sandbox: Sandbox, meter: Meter) -> None:
    model = by_wrapper(meter, chat(sandbox, **SMALL, metadata={"user_id": "ada"}))
    model.invoke(HELLO)
    list(model.stream(HELLO, {"metadata": {"session_id": "s"}}))
    assert [(e.session_id, e.user_id) for e in entries(meter)] == [(None, "ada"), ("s", "ada")]


@pytest.mark.parametrize("way", ["callback", "wrapper", "both"])
def test_streams_read_side_by_side_are_each_for_their_own(way: str, sandbox: Sandbox, meter: Meter) -> None:
    people = [f"u-{n}" for n in range(5)]
    configs = [{"metadata": {"user_id": u, "session_id": u}} for u in people]
    with opened(way, meter, chat(sandbox, **SMALL)) as model:
        blocking = [model.stream(HELLO, c) for c in configs]
        while blocking:
            blocking = [chunks for chunks in blocking if next(chunks, None) is not None]
            if len(blocking) == 5:
                model.invoke(HELLO, {"metadata": {"user_id": "between"}})
        arun(_side_by_side(model, configs))
        arun(_side_by_side(model, [{}]))
    booked = [e.user_id for e in entries(meter) if e.user_id != "between"]
    assert sorted(map(str, booked)) == sorted([*people, *people, "None"])
    assert len(booked) < len(entries(meter))
    assert_agrees(meter, sandbox)
    assert_sound(meter)


@pytest.mark.parametrize("way", ["wrapper", "both", "middleware"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_threads_limit_holds_for_its_streams(way: str, asynchronous: bool, sandbox: Sandbox) -> None:
    if asynchronous:
        skip_unless_handed_on(way)
    cap = Decimal("0.0002")
    with Meter("memory://", budgets=["$0.0002 per session"]) as meter:
        with opened(way, meter, chat(sandbox, **SMALL)) as model:

            def ask(thread: str) -> None:
                asked = {"messages": [{"role": "user", "content": HELLO}]} if way == "middleware" else HELLO
                graph = model.graph if way == "middleware" else model
                config = {"configurable": {"thread_id": thread}, "metadata": {"thread_id": thread}}
                more = {"stream_mode": "messages"} if way == "middleware" else {}
                if asynchronous:
                    arun(_read(graph.astream(asked, config, **more)))
                else:
                    list(graph.stream(asked, config, **more))

            for thread in ("a", "b"):
                before = sandbox.bill.total()
                until_exhausted(lambda t=thread: ask(t))
                assert cap * 9 / 10 <= sandbox.bill.total() - before <= cap
        assert {e.session_id for e in entries(meter)} == {"a", "b"}
        assert_agrees(meter, sandbox)
        assert_sound(meter)


def test_threads_of_a_graph_are_sessions_with_budgets_of_their_own(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["2 calls per session"]) as meter:
        agent = create_agent(
            chat(sandbox, **SMALL), checkpointer=InMemorySaver(), middleware=[meter.langchain_middleware()]
        )
        for thread in ("a", "b"):
            config = {"configurable": {"thread_id": thread}}
            made = until_exhausted(lambda c=config: Agent(agent).invoke(HELLO, c))
            assert made == 2
        assert {e.session_id for e in entries(meter)} == {"a", "b"}


def test_tags_of_the_run_when_asked_for(sandbox: Sandbox, meter: Meter) -> None:
    model = chat(sandbox, **SMALL)
    config: Any = {"tags": ["feature:support", "beta"], "metadata": {"team": "blue"}}
    (_chain(model)).invoke({"question": HELLO}, {**config, "callbacks": [meter.langchain()]})
    handler = meter.langchain(run_tags=True, metadata_tags=["team"])
    (_chain(model)).invoke({"question": HELLO}, {**config, "callbacks": [handler]})
    plain, tagged = entries(meter)
    assert plain.tags == {}
    assert tagged.tags == {"feature": "support", "beta": "true", "team": "blue"}


@pytest.mark.parametrize("bad", [{"session_id": "a\nb"}, {"user_id": "x" * 2000}, {"session_id": ["x"]}])
def test_ids_that_cannot_be_ids_are_refused_before_the_call(bad: Any, sandbox: Sandbox, meter: Meter) -> None:
    for way in ("callback", "wrapper"):
        with opened(way, meter, chat(sandbox, **SMALL)) as model, pytest.raises(ConfigError):
            model.invoke(HELLO, {"metadata": bad})
    assert sandbox.requests == 0
    assert_sound(meter)


# ── one call, several layers ───────────────────────────────────────────────────────────


def test_a_call_seen_by_every_layer_is_one_entry(sandbox: Sandbox, meter: Meter) -> None:
    model = chat(sandbox, **SMALL)
    metered = meter.openai(client(sandbox))
    model.client, model.root_client = metered.chat.completions, metered
    with meter.instrument_langchain():
        for runnable in (
            model,
            model.with_config(callbacks=[meter.langchain(), meter.langchain()]),
            meter.langchain_model(model).with_config(callbacks=[meter.langchain()]),
        ):
            runnable.invoke(HELLO, {"metadata": {"session_id": "s"}})
            list(runnable.stream(HELLO, {"metadata": {"session_id": "s"}}))
    assert len(entries(meter)) == len(sandbox.bill.lines) == 6
    assert {e.session_id for e in entries(meter)} == {"s"}
    assert_agrees(meter, sandbox)
    assert_sound(meter)


def test_a_metered_call_within_a_stream_is_a_call_of_its_own(sandbox: Sandbox, meter: Meter) -> None:
    model = meter.langchain_model(chat(sandbox, **SMALL))
    for number, _ in enumerate(model.stream(HELLO)):
        if number < 2:
            model.invoke(HELLO)
    assert len(entries(meter)) == len(sandbox.bill.lines) == 3
    assert_agrees(meter, sandbox)


def test_two_meters_each_count(sandbox: Sandbox, meter: Meter) -> None:
    with Meter("memory://", budgets=["1 calls"]) as other:
        model = meter.langchain_model(chat(sandbox, **SMALL)).with_config(callbacks=[other.langchain()])
        model.invoke(HELLO)
        with pytest.raises(BudgetExceeded):
            model.invoke(HELLO)
        assert len(entries(meter)) == len(entries(other)) == 1
        assert_sound(other)


# ── the wrapper keeps what the model is ────────────────────────────────────────────────


def test_the_wrapper_is_still_the_model(sandbox: Sandbox, meter: Meter) -> None:
    from langchain_openai import ChatOpenAI
    from pydantic import BaseModel

    class City(BaseModel):
        name: str
        people: int

    plain = chat(sandbox, **SMALL)
    model = by_wrapper(meter, plain)
    assert isinstance(model, ChatOpenAI)
    assert type(model).__name__ == "ChatOpenAI"
    assert type(plain) is ChatOpenAI
    assert model.bind_tools([search]).invoke(HELLO).tool_calls[0]["name"] == "search"
    assert isinstance(model.with_structured_output(City).invoke(HELLO), City)
    assert isinstance(model.with_structured_output(City, method="function_calling").invoke(HELLO), City)
    assert model.model_copy(update={"max_tokens": 5}).invoke(HELLO).usage_metadata["output_tokens"] == 5
    assert len(entries(meter)) == len(sandbox.bill.lines) == 4
    assert_agrees(meter, sandbox)
    with pytest.raises(ConfigError, match="metered already"):
        meter.langchain_model(model)
    with pytest.raises(ConfigError, match="wrap the model itself"):
        meter.langchain_model(plain.bind_tools([search]))


def test_what_is_handed_to_langchain_can_be_pickled(sqlite_store: str) -> None:
    with Meter(sqlite_store, budgets=["$1 per session"]) as meter:
        for made in (meter.langchain(run_tags=True, tool_prices={"t": "$0.1"}), meter.langchain_middleware()):
            again = pickle.loads(pickle.dumps(made))
            assert type(again) is type(made)
            assert again.engine is meter
            assert copy.deepcopy(made).engine is meter
        code = (
            "import pickle, sys; h = pickle.load(sys.stdin.buffer); print(h._tool_prices, h.engine.budgets)"
        )
        given = pickle.dumps(meter.langchain(tool_prices={"t": "$0.1"}))
        there = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, check=True)
        assert b"{'t': 100000000}" in there.stdout


def test_the_wrapper_can_be_pickled(sandbox: Sandbox, sqlite_store: str) -> None:
    fake = GenericFakeChatModel(messages=iter([]))
    with Meter(sqlite_store, budgets=["$1 per session"], prices=HOUSE) as meter:
        model = meter.langchain_model(
            Detailed(usage={"input_tokens": 3, "output_tokens": 1, "total_tokens": 4})
        )
        again = pickle.loads(pickle.dumps(model))
        again.invoke(HELLO)
        assert len(entries(meter)) == 1
        assert again._behest.engine is meter
        meter.langchain_model(fake)  # what cannot be pickled can still be wrapped
        code = "import pickle, sys; m = pickle.load(sys.stdin.buffer); m.flush(); print(m.spend()[0])"
        there = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(meter), capture_output=True)
        assert b"$1 per session" in there.stdout, there.stderr
    with Meter("memory://") as meter:
        assert pickle.loads(pickle.dumps(meter)) is meter
        there = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(meter), capture_output=True)
        assert b"cannot go to another process" in there.stderr


# ── not OpenAI's ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("way", ALL_WAYS)
def test_a_fake_model_that_tells_nothing(way: str, counted: bool) -> None:
    """No usage, no model name, no provider: priced by its class's name, and marked.

    It is counted where it stands for a model that is known to show all that it writes.
    """
    known = {"generic-fake-chat-model": "gpt-4o"} if counted else {}
    prices = {"generic-fake-chat-model": Price(input="1", output="2")}
    answers = iter([AIMessage("one two three")] * 3)
    with (
        Meter(
            "memory://",
            budgets=["2 calls", "$1"],
            prices=prices,
            aliases=known,
            default_output_tokens=100,
        ) as meter,
        opened(way, meter, GenericFakeChatModel(messages=answers)) as model,
    ):
        model.invoke(HELLO)
        assert "".join(str(c.content) for c in model.stream(HELLO)) == "one two three"
        with pytest.raises(BudgetExceeded):
            model.invoke(HELLO)
        booked = entries(meter)
        assert [(e.status, e.model, e.output_tokens) for e in booked] == [
            ("estimated", "generic-fake-chat-model", 13)
            if counted
            else ("assumed", "generic-fake-chat-model", 100)
        ] * 2
        assert_sound(meter)


def test_a_text_model_that_tells_nothing(meter: Meter) -> None:
    with Meter("memory://", budgets=["3 calls", "2k tokens"], default_output_tokens=50) as meter:
        model = meter.langchain_model(FakeListLLM(responses=["one", "two"]))
        assert model.invoke("hello") == "one"
        assert "".join(model.stream("hello")) == "two"
        assert arun(model.ainvoke("hello")) == "one"
        with pytest.raises(BudgetExceeded):
            model.invoke("hello")
        # It may think in tokens that are not shown: nobody has said that it does not.
        assert {e.status for e in entries(meter)} == {"assumed"}


# ── embeddings ─────────────────────────────────────────────────────────────────────────


def test_embeddings(sandbox: Sandbox, meter: Meter) -> None:
    plain = embedder(sandbox)
    metered = meter.langchain_embeddings(plain)
    assert isinstance(metered, type(plain))
    with session("s"):
        assert len(metered.embed_documents(["one", "two words"])) == 2
        metered.embed_query("three little words")
        arun(metered.aembed_documents(["one", "two words"]))
    booked = entries(meter)
    assert {(e.operation, e.status, e.session_id, e.model) for e in booked} == {
        ("embeddings", "settled", "s", "text-embedding-3-small")
    }
    assert [e.input_tokens for e in booked] == [line.input_tokens for line in sandbox.bill.lines]
    meter.set_limit("$1 per session", "$0.000000001")
    with session("s"), pytest.raises(BudgetExceeded):
        metered.embed_query("no more")
    assert sandbox.requests == 3
    with pytest.raises(ConfigError):
        meter.langchain_embeddings(chat(sandbox))  # type: ignore[type-var]
    assert_sound(meter)


def test_other_embeddings() -> None:
    with Meter("memory://", budgets=["2 calls"], prices=HOUSE) as meter:
        metered = meter.langchain_embeddings(DeterministicFakeEmbedding(size=4))
        metered.embed_documents(["a", "b"])  # calls embed_query for each: one call all the same
        arun(metered.aembed_query("a"))
        with pytest.raises(BudgetExceeded):
            metered.embed_query("a")
        assert [(e.status, e.input_tokens) for e in entries(meter)] == [("estimated", 2), ("estimated", 1)]


# ── the agent's middleware, and tools ──────────────────────────────────────────────────


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("structured", [False, True])
def test_the_middleware_can_end_an_agent_with_an_answer(
    asynchronous: bool, structured: bool, sandbox: Sandbox
) -> None:
    from langchain.agents.structured_output import ToolStrategy
    from pydantic import BaseModel

    class City(BaseModel):
        name: str

    with Meter("memory://", budgets=["1 calls per session"]) as meter:
        agent = create_agent(
            chat(sandbox, **SMALL),
            tools=[search],
            middleware=[meter.langchain_middleware(on_exceeded="end")],
            response_format=ToolStrategy(City) if structured else None,
        )
        asked = {"messages": [{"role": "user", "content": HELLO}]}
        for _ in range(2):
            found = arun(agent.ainvoke(asked)) if asynchronous else agent.invoke(asked)
        last = found["messages"][-1]
        assert isinstance(last, AIMessage)
        assert "1 calls per session" in last.content
        assert "does not allow another step" in last.content
        assert sandbox.requests == 1
        assert_sound(meter)


def test_the_middleware_goes_cheaper_in_time(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$0.002 per session"]) as meter:
        cheaper = chat(sandbox, **SMALL)
        agent = create_agent(
            chat(sandbox, model="gpt-4o", max_tokens=60),
            middleware=[meter.langchain_middleware(cheaper=cheaper, cheaper_at=50)],
        )
        for _ in range(3):
            Agent(agent).invoke(HELLO)
        arun(Agent(agent).ainvoke(HELLO))
        models = [e.model for e in entries(meter)]
        assert models == ["gpt-4o", "gpt-4o", "gpt-4o-mini", "gpt-4o-mini"]
        assert [line.model for line in sandbox.bill.lines] == models


@tool
def failing(q: str) -> str:
    """Fail."""
    raise RuntimeError("no such thing")


@pytest.mark.parametrize("by", ["callback", "middleware"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_tools_at_a_price(by: str, asynchronous: bool, sandbox: Sandbox) -> None:
    if asynchronous and by == "callback":
        skip_unless_handed_on("agent's callback")
    with Meter("memory://", budgets=["$0.012 per session"]) as meter:
        prices = {"search": "$0.005"}
        extra = [meter.langchain_middleware(tool_prices=prices)] if by == "middleware" else []
        agent = create_agent(chat(sandbox, **SMALL), tools=[search], middleware=extra)
        config: Any = {} if extra else {"callbacks": [meter.langchain(tool_prices=prices)]}

        def go() -> None:
            asked = {"messages": [{"role": "user", "content": HELLO}]}
            arun(agent.ainvoke(asked, config)) if asynchronous else agent.invoke(asked, config)

        go()
        go()
        with pytest.raises(BudgetExceeded) as caught:
            go()
        assert "0.005" in str(caught.value)
        used = [e for e in entries(meter) if e.operation == "tool"]
        assert [(e.model, e.cost, e.calls) for e in used] == [("search", 5_000_000, 0)] * 2
        assert_sound(meter)


def test_the_middleware_tells_the_agent_that_a_tool_is_too_dear(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$0.004 per session"]) as meter:
        middleware = meter.langchain_middleware(tool_prices={"search": "$0.005"}, on_exceeded="end")
        agent = create_agent(chat(sandbox, **SMALL), tools=[search], middleware=[middleware])
        found = agent.invoke({"messages": [{"role": "user", "content": HELLO}]})
        told = found["messages"][2]
        assert (told.type, told.status) == ("tool", "error")
        assert "$0.004 per session" in told.content
        assert [e.operation for e in entries(meter)] == ["chat", "chat"]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("by", ["callback", "middleware"])
def test_a_tool_that_asks_a_model_does_not_wait_for_itself(by: str, asynchronous: bool) -> None:
    """It is refused at once: what the tool holds for its own price ends only after it."""
    with Sandbox() as sandbox, Meter("memory://", budgets=["$0.02"]) as meter:
        inner = meter.langchain_model(chat(sandbox, max_tokens=400))
        told: list[BudgetExceeded] = []

        @tool
        def search(q: str) -> str:
            """Look it up."""
            try:
                inner.invoke(HELLO)
            except BudgetExceeded as error:
                told.append(error)
            return "found"

        prices = {"search": "$0.0195"}
        request = {"name": "search", "args": {"q": "x"}, "id": "1", "type": "tool_call"}
        began = time.monotonic()
        if by == "callback":
            config: Any = {"callbacks": [meter.langchain(tool_prices=prices)]}
            _ = arun(search.ainvoke(request, config)) if asynchronous else search.invoke(request, config)
        else:
            middleware = meter.langchain_middleware(tool_prices=prices)
            asked = SimpleNamespace(tool_call=request)
            if asynchronous:

                async def ahandler(asked: Any) -> Any:
                    return await search.ainvoke(request)

                arun(middleware.awrap_tool_call(asked, ahandler))
            else:
                middleware.wrap_tool_call(asked, lambda asked: search.invoke(request))
        assert time.monotonic() - began < 20
        assert [error.shortfall.around for error in told] == [to_nano(Decimal("0.0195"))]
        assert sandbox.requests == 0
        assert_sound(meter)


def test_a_price_that_is_none(meter: Meter) -> None:
    for price in ("5 calls", "cheap"):
        with pytest.raises(ConfigError):
            meter.langchain(tool_prices={"search": price})
    with pytest.raises(ConfigError, match="on_exceeded"):
        meter.langchain_middleware(on_exceeded="stop")  # type: ignore[arg-type]


# ── when things go wrong ───────────────────────────────────────────────────────────────


class Troublemaker(BaseCallbackHandler):
    raise_error = True

    def __init__(self, *moments: str) -> None:
        self.moments = moments

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        if "start" in self.moments:
            raise RuntimeError("trouble")

    def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
        if "end" in self.moments:
            raise RuntimeError("trouble")

    def on_llm_new_token(self, *args: Any, **kwargs: Any) -> None:
        if "token" in self.moments:
            raise RuntimeError("trouble")


@pytest.mark.parametrize("moment", ["start", "token", "end"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("way", ["callback", "wrapper"])
def test_another_handler_that_raises(
    way: str, asynchronous: bool, first: bool, moment: str, sandbox: Sandbox
) -> None:
    now = [1_800_000_000_000]
    with Meter("memory://", budgets=["$1"], clock=lambda: now[0]) as meter:
        model = chat(sandbox, **SMALL)
        others: list[Any] = [Troublemaker(moment)]
        if way == "wrapper":
            model = by_wrapper(meter, model)
        else:
            others.insert(0 if first else 1, meter.langchain())

        async def stream() -> None:
            async for _ in model.astream(HELLO, {"callbacks": others}):
                pass

        def go() -> None:
            if asynchronous:
                arun(stream())
            else:
                list(model.stream(HELLO, {"callbacks": others}))

        with pytest.raises(RuntimeError, match="trouble"):
            go()
        meter.flush()
        assert holds(meter) <= 1
        # Whoever told nobody of its end is booked when the lease runs out, and not before.
        now[0] += 16 * 60 * 1000
        meter.sweep()
        assert_sound(meter)
        assert sum(e.cost or 0 for e in entries(meter)) >= sum(
            int(b.cost * 10**9) for b in sandbox.bill.lines
        )


def test_a_tool_that_fails(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1"]) as meter:
        handler = meter.langchain(tool_prices={"failing": "$0.01"})
        agent = create_agent(chat(sandbox, **SMALL), tools=[failing])
        with pytest.raises(RuntimeError, match="no such thing"):
            agent.invoke({"messages": [{"role": "user", "content": HELLO}]}, {"callbacks": [handler]})
        assert [e.operation for e in entries(meter)] == ["chat", "tool"]  # it was used, and costs
        assert_sound(meter)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_refusal_is_told_once(
    asynchronous: bool, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """Each parallel branch logged an "Error in BehestCallbackHandler" of its own."""
    with Meter("memory://", budgets=["$0.0000001"]) as meter:
        branches = RunnableParallel(**{f"b{i}": chat(sandbox, **SMALL) for i in range(5)})
        config: Any = {"callbacks": [meter.langchain()]}

        def go() -> None:
            arun(branches.ainvoke(HELLO, config)) if asynchronous else branches.invoke(HELLO, config)

        with pytest.raises(BudgetExceeded, match=r"limit \$0.0000001"):
            go()
    assert [r.message for r in caplog.records if r.levelno >= 30 and r.name.startswith("langchain")] == []


@tool
def approved(q: str) -> str:
    """Ask somebody first."""
    return str(interrupt(q))


@pytest.mark.parametrize("by", ["callback", "middleware", "node"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_interrupt_is_no_use(by: str, asynchronous: bool, sandbox: Sandbox) -> None:
    """LangGraph runs what has called `interrupt()` again from its beginning: it was charged twice.
    https://docs.langchain.com/oss/python/langgraph/interrupts"""
    if asynchronous and by != "middleware":
        skip_unless_handed_on("agent's callback")
    with Meter("memory://", budgets=["$0.007 per session"]) as meter:
        prices = {"approved": "$0.005"}
        config: Any = {"configurable": {"thread_id": "t"}}
        if by == "node":
            graph: Any = StateGraph(dict)
            graph.add_node("ask", meter.cost("$0.005", name="approved")(lambda state: {"a": interrupt("?")}))
            graph.add_edge(START, "ask")
            app = graph.compile(checkpointer=InMemorySaver())
            asked: Any = {}
        else:
            extra = [meter.langchain_middleware(tool_prices=prices)] if by == "middleware" else []
            config["callbacks"] = [] if extra else [meter.langchain(tool_prices=prices)]
            app = create_agent(
                chat(sandbox, **SMALL), tools=[approved], middleware=extra, checkpointer=InMemorySaver()
            )
            asked = {"messages": [{"role": "user", "content": HELLO}]}

        def go(what: Any) -> Any:
            return arun(app.ainvoke(what, config)) if asynchronous else app.invoke(what, config)

        assert "__interrupt__" in go(asked)
        assert [e for e in entries(meter) if e.operation == "tool"] == []
        assert holds(meter) == 0
        go(Command(resume="yes"))
        used = [e for e in entries(meter) if e.operation == "tool"]
        assert [(e.model, e.cost, e.status) for e in used] == [("approved", 5_000_000, "settled")]
        assert_sound(meter)


def test_a_graph_that_is_cancelled(sandbox: Sandbox, meter: Meter) -> None:
    skip_unless_handed_on("agent's callback")
    sandbox.latency = 5
    agent = create_agent(chat(sandbox, **SMALL), tools=[search])

    async def run() -> None:
        asked = {"messages": [{"role": "user", "content": HELLO}]}
        tasks = [
            asyncio.ensure_future(agent.ainvoke(asked, {"callbacks": [meter.langchain()]})),
            asyncio.ensure_future(
                create_agent(chat(sandbox, **SMALL), middleware=[meter.langchain_middleware()]).ainvoke(asked)
            ),
        ]
        await asyncio.sleep(0.6)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    arun(run())
    booked = entries(meter)
    assert [(e.status, e.flags) for e in booked] == [("assumed", "cancelled")] * 2
    assert_sound(meter)


def test_an_async_stream_that_is_left_ends_with_its_loop(sandbox: Sandbox, meter: Meter) -> None:
    async def run(model: Any) -> None:
        async for _ in model.astream(HELLO):
            break

    for way in ("callback", "wrapper"):
        with opened(way, meter, chat(sandbox, **SMALL)) as model:
            asyncio.run(run(model))
    assert [e.flags for e in entries(meter)] == ["closed_early"] * 2
    assert_sound(meter)


DIES = """
import sys
sys.path.insert(0, {tests!r})
from langchain_support import *
from langchain_support import ChatOpenAI
from behest_integrations import Meter
meter = Meter({store!r}, budgets=["$1 per session"], lease=1)
model = ChatOpenAI(base_url={url!r}, api_key="none", model="gpt-4", max_tokens=490, max_retries=0)
{way}(meter, model).invoke("hello")
"""


@pytest.mark.parametrize(
    "way",
    ["by_callback", *(slow(way) for way in ("by_wrapper", "by_middleware"))],
)
def test_a_process_that_is_killed(way: str, sqlite_store: str) -> None:
    from pathlib import Path

    with Sandbox(latency=30) as slow, Meter(sqlite_store, budgets=["$1 per session"]) as meter:
        code = textwrap.dedent(DIES).format(
            tests=str(Path(__file__).parent), store=sqlite_store, url=slow.base_url, way=way
        )
        kill_in_mid_call(code, slow)
        for _ in range(100):
            meter.sweep()
            if not holds(meter):
                break
            time.sleep(0.05)
        assert [e.status for e in entries(meter)] == ["assumed"]
        assert verify(meter.ledger) == []


def test_a_model_without_a_limit_is_told_of_once(
    sandbox: Sandbox, meter: Meter, caplog: pytest.LogCaptureFixture
) -> None:
    model = by_callback(meter, chat(sandbox, model="gpt-4o-mini", max_tokens=None))
    for _ in range(3):
        model.invoke(HELLO)
    said = [r.message for r in caplog.records if "no output limit" in r.message]
    assert len(said) == 1
    assert "max_tokens" in said[0]
    assert "langchain_model" in said[0]


def test_a_client_that_is_metered_sends_a_limit_and_nothing_is_told(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.output_tokens = 1000
    with Meter("memory://", budgets=["$1"], default_output_tokens=100) as meter:
        with meter.instrument():
            chat(sandbox, model="gpt-4o-mini", max_tokens=None).invoke(HELLO)
        assert sandbox.bill.lines[0].output_tokens == 100
        assert "no output limit" not in caplog.text
        assert_agrees(meter, sandbox)


@pytest.mark.skipif(HANDED_ON, reason="of Python 3.10")
def test_a_callback_that_is_not_handed_on_says_so(
    sandbox: Sandbox, meter: Meter, caplog: pytest.LogCaptureFixture
) -> None:
    agent = create_agent(chat(sandbox, **SMALL)).with_config(callbacks=[meter.langchain()])
    for _ in range(2):
        arun(Agent(agent).ainvoke(HELLO))
    assert len([r for r in caplog.records if "on Python 3.10" in r.getMessage()]) == 1


def test_instrumentation_ends(sandbox: Sandbox, meter: Meter) -> None:
    model = chat(sandbox, **SMALL)
    metering = meter.instrument_langchain()
    model.invoke(HELLO)
    metering.remove()
    metering.remove()
    model.invoke(HELLO)
    assert len(entries(meter)) == 1
    with meter.instrument_langchain():
        RunnableLambda(lambda x: model.invoke(x)).invoke(HELLO)
    model.invoke(HELLO)
    assert len(entries(meter)) == 2


def test_a_chunk_that_has_a_running_total_is_not_counted_twice() -> None:
    class Totals(Detailed):
        def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
            for text in ("one ", "two"):
                yield ChatGenerationChunk(message=AIMessageChunk(text))
            usage = {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}
            yield ChatGenerationChunk(message=AIMessageChunk("", usage_metadata=usage))

    for way in ("callback", "wrapper"):
        with Meter("memory://", budgets=["$1"], prices=HOUSE) as meter, opened(way, meter, Totals()) as model:
            list(model.stream(HELLO))
            assert [(e.input_tokens, e.output_tokens) for e in entries(meter)] == [(5, 2)]


# ── another provider's package ─────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", ALL_WAYS)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_model_of_anthropic(way: str, asynchronous: bool) -> None:
    if asynchronous:
        skip_unless_handed_on(way)
    anthropic = pytest.importorskip("langchain_anthropic")

    async def stream(model: Any) -> None:
        async for _ in model.astream(HELLO):
            pass

    with AnthropicFake() as provider, Meter("memory://", budgets=["$0.25 per session"]) as meter:
        plain = anthropic.ChatAnthropic(
            model="claude-sonnet-4-5", api_key="none", base_url=provider.url, max_tokens=490, max_retries=0
        )
        with opened(way, meter, plain) as model:
            if asynchronous:
                arun(model.ainvoke(HELLO))
                arun(stream(model))
            else:
                model.invoke(HELLO)
                list(model.stream(HELLO))
            booked = entries(meter)
            assert [(e.status, e.provider, e.model) for e in booked] == [
                ("settled", "anthropic", "claude-sonnet-4-5")
            ] * 2
            assert [(e.input_tokens, e.output_tokens) for e in booked] == provider.served
            assert {e.cached_input_tokens for e in booked} == {20}
            assert report(meter.ledger).total.cost == to_nano(provider.bill)

            with ThreadPoolExecutor(16) as pool:
                list(pool.map(lambda _: until_exhausted(lambda: model.invoke(HELLO)), range(16)))
        cap = Decimal("0.25")
        assert provider.bill <= cap
        assert provider.bill >= cap * (99 if way in LOWERS else 96) / 100
        assert_sound(meter)
