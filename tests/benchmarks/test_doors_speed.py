"""What each door adds to a call, as a ratio to the same call of its framework without it; asserts no times.

The provider is a transport in the process that answers at once, the books are in memory, three budgets apply:
of a real call, of hundreds of milliseconds, this is little. Bare and metered calls are made in turns.

pytest -n 0 -m benchmark tests/benchmarks/test_doors_speed.py -s
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from measure import BUDGETS, MESSAGES, bare_client, httpx, interleaved, reply, say
from openai import AsyncOpenAI

from behest_integrations import Meter

pytestmark = pytest.mark.benchmark

Call = Callable[[], Any]
ASKED = MESSAGES[1]["content"]
ANSWER = "Paris, about two million. " * 8
DOORS: dict[str, Callable[[Meter], Any]] = {}


def door(name: str) -> Callable[[Any], Any]:
    """A function from a meter to a bare call and a metered one; or that yields both, and ends after that."""

    def add(function: Any) -> Any:
        DOORS[name] = function
        return function

    return add


def answering(library: Any, body: dict[str, Any]) -> Any:
    """A transport of `httpx` or `httpx2` that gives this answer to everything."""
    content = json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    return library.MockTransport(lambda _: library.Response(200, content=content, headers=headers))


def async_client() -> AsyncOpenAI:
    transport = httpx.AsyncClient(transport=httpx.MockTransport(reply))
    return AsyncOpenAI(base_url="http://provider.test/v1", api_key="none", http_client=transport)


@contextmanager
def loop() -> Iterator[Callable[[Any], Any]]:
    running = asyncio.new_event_loop()
    yield running.run_until_complete
    running.close()


@door("OpenAI")
def openai(meter: Meter) -> tuple[Call, Call]:
    def ask(client: Any) -> Any:
        return client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, max_tokens=200)

    bare, metered = bare_client(), meter.openai(bare_client(), provider="openai")
    return lambda: ask(bare), lambda: ask(metered)


@door("Anthropic")
def anthropic(meter: Meter) -> tuple[Call, Call]:
    anthropic = pytest.importorskip("anthropic")
    library = sys.modules[anthropic.DefaultHttpxClient.__mro__[1].__module__.split(".")[0]]
    usage = {"input_tokens": 80, "output_tokens": 60}
    body = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-haiku-4-5",
        "content": [{"type": "text", "text": ANSWER}], "stop_reason": "end_turn", "usage": usage,
    }  # fmt: skip

    def made() -> Any:
        client = library.Client(transport=answering(library, body))
        return anthropic.Anthropic(api_key="none", http_client=client)

    def ask(client: Any) -> Any:
        return client.messages.create(
            model="claude-haiku-4-5", messages=[MESSAGES[1]], system=MESSAGES[0]["content"], max_tokens=200
        )

    bare, metered = made(), meter.anthropic(made())
    return lambda: ask(bare), lambda: ask(metered)


@door("google-genai")
def google_genai(meter: Meter) -> tuple[Call, Call]:
    genai = pytest.importorskip("google.genai")
    import httpx

    parts = [{"text": ANSWER}]
    body = {
        "candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 80, "candidatesTokenCount": 60, "totalTokenCount": 140},
        "modelVersion": "gemini-2.5-flash",
    }

    def made() -> Any:
        arguments = {"transport": answering(httpx, body)}
        return genai.Client(api_key="none", http_options={"client_args": arguments})

    def ask(client: Any) -> Any:
        config = {"max_output_tokens": 200, "system_instruction": MESSAGES[0]["content"]}
        return client.models.generate_content(model="gemini-2.5-flash", contents=ASKED, config=config)

    bare, metered = made(), meter.google_genai(made())
    return lambda: ask(bare), lambda: ask(metered)


@door("httpx")
def by_hand(meter: Meter) -> tuple[Call, Call]:
    def ask(client: Any) -> Any:
        body = {"model": "gpt-4o-mini", "messages": MESSAGES, "max_tokens": 200}
        return client.post("https://api.openai.com/v1/chat/completions", json=body).json()

    bare = httpx.Client(transport=httpx.MockTransport(reply))
    metered = meter.httpx(httpx.Client(transport=httpx.MockTransport(reply)))
    return lambda: ask(bare), lambda: ask(metered)


def chat_openai() -> Any:
    langchain_openai = pytest.importorskip("langchain_openai")
    transport = httpx.Client(transport=httpx.MockTransport(reply))
    return langchain_openai.ChatOpenAI(
        model="gpt-4o-mini", max_completion_tokens=200, api_key="none", http_client=transport
    )


@door("LangChain, callback")
def langchain(meter: Meter) -> tuple[Call, Call]:
    model = chat_openai()
    metered = model.with_config(callbacks=[meter.langchain()])
    return lambda: model.invoke(ASKED), lambda: metered.invoke(ASKED)


@door("LangChain, wrapped model")
def langchain_model(meter: Meter) -> tuple[Call, Call]:
    model = chat_openai()
    metered = meter.langchain_model(model)
    return lambda: model.invoke(ASKED), lambda: metered.invoke(ASKED)


@door("LlamaIndex, handler")
def llama_index_handler(meter: Meter) -> tuple[Call, Call]:
    callbacks = pytest.importorskip("llama_index.core.callbacks")
    return llama_index_with(
        lambda made: made(callback_manager=callbacks.CallbackManager([meter.llama_index_handler()]))
    )


@door("LlamaIndex, wrapped model")
def llama_index(meter: Meter) -> tuple[Call, Call]:
    return llama_index_with(lambda made: meter.llama_index(made()))


def llama_index_with(metered_by: Callable[[Any], Any]) -> tuple[Call, Call]:
    llms = pytest.importorskip("llama_index.llms.openai")
    from llama_index.core.llms import ChatMessage

    def made(**options: Any) -> Any:
        transport = httpx.Client(transport=httpx.MockTransport(reply))
        return llms.OpenAI(
            model="gpt-4o-mini", max_tokens=200, api_key="none", http_client=transport, **options
        )

    bare, metered, hello = made(), metered_by(made), [ChatMessage(ASKED)]
    return lambda: bare.chat(hello), lambda: metered.chat(hello)


@door("LiteLLM")
def litellm(meter: Meter) -> Iterator[tuple[Call, Call]]:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask the network
    litellm = pytest.importorskip("litellm")
    asked: Any = {
        "model": "openai/gpt-4o-mini",
        "messages": MESSAGES,
        "max_tokens": 200,
        "client": bare_client(),
    }

    metering: list[Any] = []

    def ask(metered: bool) -> Any:
        # It is for the whole process: begun and ended where the turns change.
        if metered != bool(metering):
            metering.append(meter.litellm()) if metered else metering.pop().remove()
        return litellm.completion(**asked)

    yield lambda: ask(False), lambda: ask(True)
    ask(False)


@door("Pydantic AI")
def pydantic_ai(meter: Meter) -> Iterator[tuple[Call, Call]]:
    pytest.importorskip("pydantic_ai")
    from pydantic_ai import direct
    from pydantic_ai.messages import ModelRequest
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    def made() -> Any:
        provider = OpenAIProvider(openai_client=async_client())
        return OpenAIChatModel("gpt-4o-mini", provider=provider, settings={"max_tokens": 200})

    bare, metered, hello = made(), meter.pydantic_ai(made()), [ModelRequest.user_text_prompt(ASKED)]
    with loop() as run:
        yield (
            lambda: run(direct.model_request(bare, hello)),
            lambda: run(direct.model_request(metered, hello)),
        )


@door("OpenAI Agents")
def openai_agents(meter: Meter) -> Iterator[tuple[Call, Call]]:
    pytest.importorskip("agents")
    from agents import Agent, ModelSettings, Runner, set_tracing_disabled
    from agents.models.openai_chatcompletions import OpenAIChatCompletionsModel

    set_tracing_disabled(True)

    def made(by: Callable[[Any], Any]) -> Any:
        model = by(OpenAIChatCompletionsModel("gpt-4o-mini", async_client()))
        return Agent(name="a", model=model, model_settings=ModelSettings(max_tokens=200))

    bare, metered = made(lambda model: model), made(meter.openai_agents)
    with loop() as run:
        yield lambda: run(Runner.run(bare, ASKED)), lambda: run(Runner.run(metered, ASKED))


@pytest.mark.parametrize("name", DOORS)
def test_time_added_by_a_door(name: str) -> None:
    aliases = {"gpt-4o-mini": "gpt-4o-mini"}
    with Meter("memory://", budgets=BUDGETS, aliases=aliases) as meter:
        made = DOORS[name](meter)
        bare, metered = next(made) if isinstance(made, Iterator) else made
        with meter.session("conversation-1", user="user-1"):
            work = {"bare": bare, "metered": metered}
            interleaved(work, rounds=2, each=10)
            found = interleaved(work, rounds=25, each=10)
        assert len(meter.ledger.snapshot()[2]) == 27 * 10
        added = found["metered"] - found["bare"]
        say(
            f"  {name:<26} bare {found['bare'] * 1e6:7.0f} µs   metered {added * 1e6:+6.0f} µs   "
            f"{added / found['bare']:5.2f} × bare"
        )
        if isinstance(made, Iterator):
            next(made, None)
