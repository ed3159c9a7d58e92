"""Models that frameworks bring for tests and tutorials ask nobody: a budget in dollars lets them through."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Any

import pytest
from support import assert_agrees, assert_sound, client, entries

from behest_integrations import Meter, Price, UnknownPrice
from behest_integrations.integrations.kit.stand_ins import _STAND_INS, stands_in
from behest_integrations.sandbox import Sandbox


@pytest.mark.parametrize("module", sorted(_STAND_INS))
def test_they_are_where_they_are_looked_for(module: str) -> None:
    pytest.importorskip(module.partition(".")[0])
    found = pytest.importorskip(module)
    for name in _STAND_INS[module]:
        cls = getattr(found, name)
        assert stands_in(cls) == "in-memory"
        assert stands_in(type(name, (cls,), {"__module__": __name__})) is None


def langchain(meter: Meter) -> Any:
    fake = pytest.importorskip("langchain_core.language_models.fake_chat_models")
    with meter.instrument_langchain():
        fake.FakeListChatModel(responses=["a"]).invoke("hi")
    picture = {"type": "image_url", "image_url": {"url": "https://127.0.0.1/a.png"}}
    model = meter.langchain_model(fake.FakeListChatModel(responses=["a"]))
    model.invoke([{"role": "user", "content": [picture]}])

    class Own(fake.FakeListChatModel):  # type: ignore[misc, name-defined]
        """It may ask whom it likes."""

    return meter.langchain_model(Own(responses=["a"])).invoke("hi")


def llama_index(meter: Meter) -> Any:
    core = pytest.importorskip("llama_index.core")
    mock = import_module("llama_index.core.llms.mock")
    with meter.instrument_llama_index():
        index = core.VectorStoreIndex.from_documents(
            [core.Document(text="hi")], embed_model=core.MockEmbedding(embed_dim=4)
        )
        index.as_query_engine(llm=mock.MockLLM(max_tokens=5)).query("hi")

        class Own(mock.MockLLM):  # type: ignore[misc, name-defined]
            """It may ask whom it likes."""

        return Own(max_tokens=5).complete("hi")


def pydantic_ai(meter: Meter) -> Any:
    ai = pytest.importorskip("pydantic_ai")
    test = import_module("pydantic_ai.models.test")
    with meter.instrument_pydantic_ai():
        ai.Agent(test.TestModel()).run_sync("hi")

        class Own(test.TestModel):  # type: ignore[misc, name-defined]
            """It may ask whom it likes."""

        return ai.Agent(Own()).run_sync("hi")


@pytest.mark.parametrize("asked", [langchain, llama_index, pydantic_ai])
def test_they_cost_nothing_and_what_is_made_of_them_may(asked: Any) -> None:
    with Meter("memory://", budgets=["$1 per session"]) as meter:
        with pytest.raises(UnknownPrice):
            asked(meter)
        assert entries(meter)
        assert {(e.provider, e.cost) for e in entries(meter)} == {("in-memory", 0)}
        assert_sound(meter)


def test_a_price_that_is_given_to_one_counts() -> None:
    fake = pytest.importorskip("langchain_core.language_models.fake_chat_models")
    prices = {"fake-list-chat-model": Price(input="1", output="1")}
    with Meter("memory://", budgets=["$1"], prices=prices) as meter:
        meter.langchain_model(fake.FakeListChatModel(responses=["a"])).invoke("hi")
        assert [e.cost > 0 for e in entries(meter) if e.cost is not None] == [True]


def test_a_function_that_answers_is_no_call_but_what_it_asks_is() -> None:
    ai = pytest.importorskip("pydantic_ai")
    function = import_module("pydantic_ai.models.function")
    messages = import_module("pydantic_ai.messages")
    with Sandbox() as sandbox, Meter("memory://", budgets=["$1"]) as meter:
        metered = meter.openai(client(sandbox))

        def answer(asked: Any, info: Any) -> Any:
            said = metered.chat.completions.create(
                model="gpt-4o", messages=[{"role": "user", "content": "hi"}]
            )
            return messages.ModelResponse(parts=[messages.TextPart(said.choices[0].message.content)])

        with meter.instrument_pydantic_ai():
            ai.Agent(function.FunctionModel(answer), name="clerk").run_sync("hi")
        (entry,) = entries(meter)
        assert (entry.model, entry.tags) == ("gpt-4o", {"agent": "clerk"})
        assert_agrees(meter, sandbox)


class _Conversation:
    """A session as OpenAI's is: it has no id before it has begun."""

    session_settings = None

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.begun = False

    @property
    def session_id(self) -> str:
        if not self.begun:
            raise ValueError("Session ID not yet available.")
        return "conv_1"

    async def get_items(self, limit: int | None = None, **_: Any) -> list[Any]:
        self.begun = True
        return self.items

    async def add_items(self, items: list[Any], **_: Any) -> None:
        self.items += items

    async def pop_item(self) -> Any:
        return self.items.pop()

    async def clear_session(self) -> None:
        self.items.clear()


def test_a_session_without_an_id_yet_is_none() -> None:
    """https://github.com/openai/openai-agents-python, examples/memory/openai_session_example.py"""
    agents = pytest.importorskip("agents")
    testing = pytest.importorskip("agents.testing")
    agents.set_tracing_disabled(True)
    session = _Conversation()

    async def main(meter: Meter) -> None:
        script = [[testing.assistant_message("hi")], [testing.assistant_message("hi")]]
        agent = agents.Agent(name="a", model=meter.openai_agents(testing.ScriptedModel(script)))
        for _ in range(2):
            await agents.Runner.run(agent, "hi", session=session)

    with Meter("memory://", budgets=["$1"]) as meter:
        asyncio.run(main(meter))
        assert [e.session_id for e in entries(meter)] == [None, "conv_1"]
