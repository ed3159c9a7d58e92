"""Helpers for the tests of LangChain: models against the sandbox, and each way to meter them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from support import ANSWER, MODEL, PEOPLE, ids

from behest_integrations import Meter
from behest_integrations.sandbox import Sandbox

HELLO = "hello there"


def chat(sandbox: Sandbox, **options: Any) -> ChatOpenAI:
    """A plain model: its calls are the $0.03 call of the other tests."""
    settings = {"model": MODEL, "max_tokens": ANSWER, "max_retries": 0, "timeout": 30, **options}
    return ChatOpenAI(base_url=sandbox.base_url, api_key="none", **settings)


def embedder(sandbox: Sandbox, **options: Any) -> OpenAIEmbeddings:
    return OpenAIEmbeddings(
        base_url=sandbox.base_url,
        api_key="none",
        model="text-embedding-3-small",
        check_embedding_ctx_length=False,
        **options,
    )


class Agent:
    """An agent with no tools, asked as a model is."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph

    @staticmethod
    def _input(text: str) -> Any:
        return {"messages": [{"role": "user", "content": text}]}

    def invoke(self, text: str, config: Any = None) -> Any:
        return self.graph.invoke(self._input(text), config)["messages"][-1]

    async def ainvoke(self, text: str, config: Any = None) -> Any:
        return (await self.graph.ainvoke(self._input(text), config))["messages"][-1]

    def stream(self, text: str, config: Any = None) -> Any:
        for message, _ in self.graph.stream(self._input(text), config, stream_mode="messages"):
            yield message

    async def astream(self, text: str, config: Any = None) -> Any:
        async for message, _ in self.graph.astream(self._input(text), config, stream_mode="messages"):
            yield message


def by_callback(meter: Meter, model: Any) -> Any:
    return model.with_config(callbacks=[meter.langchain()])


def by_models_callbacks(meter: Meter, model: Any) -> Any:
    return model.model_copy(update={"callbacks": [meter.langchain()]})


def by_wrapper(meter: Meter, model: Any) -> Any:
    return meter.langchain_model(model)


def by_both(meter: Meter, model: Any) -> Any:
    return meter.langchain_model(model).with_config(callbacks=[meter.langchain()])


def by_middleware(meter: Meter, model: Any) -> Any:
    return Agent(create_agent(model, middleware=[meter.langchain_middleware()]))


def by_agents_callback(meter: Meter, model: Any) -> Any:
    return Agent(create_agent(model).with_config(callbacks=[meter.langchain()]))


@contextmanager
def opened(way: str, meter: Meter, model: Any) -> Iterator[Any]:
    """`model`, metered in the way of this name."""
    if way == "instrument":
        with meter.instrument_langchain():
            yield model
    else:
        yield WAYS[way](meter, model)


@contextmanager
def opened_for_each(way: str, meter: Meter, sandbox: Sandbox) -> Iterator[dict[str, Any]]:
    """`opened` for a model of each of those who call, which marks its requests with whose it is."""
    models = {who: chat(sandbox, model_kwargs={"user": who}) for who in PEOPLE}
    if way == "instrument":
        with meter.instrument_langchain():
            yield models
    else:
        yield {who: WAYS[way](meter, model) for who, model in models.items()}


def run_of(who: str) -> Any:
    """The config of a run for `who`."""
    return {"metadata": ids(who)}


WAYS: dict[str, Callable[[Meter, Any], Any]] = {
    "callback": by_callback,
    "model's callbacks": by_models_callbacks,
    "agent's callback": by_agents_callback,
    "wrapper": by_wrapper,
    "both": by_both,
    "middleware": by_middleware,
}
ALL_WAYS = [*WAYS, "instrument"]
HANDED_ON = sys.version_info >= (3, 11)
"""Whether LangGraph can hand callbacks and a thread's id on to what an asynchronous node calls."""


def skip_unless_handed_on(way: str) -> None:
    """For tests of an asynchronous graph."""
    if way in ("agent's callback", "middleware") and not HANDED_ON:
        pytest.skip("before Python 3.11, LangGraph hands neither callbacks nor ids on in asynchronous nodes")


LOWERS = ("wrapper", "both", "middleware")
"""The ways that can lower an output limit, and so use up the budget."""
