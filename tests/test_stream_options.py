"""Servers that refuse `stream_options`: what works without us works with us, and nothing passes a limit.

Mistral answered 422 to it, and pydantic's servers do, that forbid extra fields; others answer 400.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI, UnprocessableEntityError
from recording import Answer, Received, Recorder
from support import HELLO, arun, assert_sound, entries

from behest_integrations import BudgetExceeded, Meter

WORDS = ["one", " two", " three", " four"]
SAID = ("Content-Type", "text/event-stream")


def chunk(**fields: Any) -> dict[str, Any]:
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-4o-2024-08-06",
        **fields,
    }


def streamed(received: Received) -> Answer:
    said = [{"index": 0, "delta": {"content": word}, "finish_reason": None} for word in WORDS]
    said.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    events = [json.dumps(chunk(choices=[choice])) for choice in said]
    if (received.json.get("stream_options") or {}).get("include_usage"):
        usage = {"prompt_tokens": 8, "completion_tokens": 4, "total_tokens": 12}
        events.append(json.dumps(chunk(choices=[], usage=usage)))
    return Answer(body="".join(f"data: {e}\n\n" for e in [*events, "[DONE]"]).encode(), headers=(SAID,))


def refusing(status: int) -> Callable[[Received], Answer]:
    def answer(received: Received) -> Answer:
        if "stream_options" in received.json:
            detail = {"detail": [{"type": "extra_forbidden", "loc": ["body", "stream_options"]}]}
            return Answer(status, json.dumps(detail).encode())
        return streamed(received)

    return answer


@pytest.fixture
def provider() -> Iterator[Recorder]:
    with Recorder(refusing(422)) as recorder:
        yield recorder


def text(provider: Recorder, meter: Meter, model: str = "gpt-4o", **options: Any) -> list[Any]:
    client = meter.openai(OpenAI(base_url=provider.base_url, api_key="none", max_retries=0))
    asked: dict[str, Any] = {"model": model, "messages": HELLO, "max_tokens": 64, **options}
    return list(client.chat.completions.create(stream=True, **asked))


async def atext(provider: Recorder, meter: Meter, model: str = "gpt-4o", **options: Any) -> list[Any]:
    async with meter.openai(AsyncOpenAI(base_url=provider.base_url, api_key="none", max_retries=0)) as client:
        asked: dict[str, Any] = {"model": model, "messages": HELLO, "max_tokens": 64, **options}
        return [c async for c in await client.chat.completions.create(stream=True, **asked)]


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_it_is_asked_again_without_them_and_that_is_remembered(
    status: int, asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with Recorder(refusing(status)) as provider, Meter("memory://", budgets=["$1"]) as meter:
        for _ in range(3):
            seen = arun(atext(provider, meter)) if asynchronous else text(provider, meter)
            assert "".join(c.choices[0].delta.content or "" for c in seen) == "".join(WORDS)
        assert ["stream_options" in r.json for r in provider.received] == [True, False, False, False]
        first, second = provider.received[:2]
        assert second.json == {n: v for n, v in first.json.items() if n != "stream_options"}
        assert second.headers["authorization"] == first.headers["authorization"]
        # gpt-4o shows all that it writes: what was seen is the answer, and is counted from above.
        assert [(e.status, e.input_tokens, e.output_tokens) for e in entries(meter)] == [
            ("estimated", 8, e.output_tokens) for e in entries(meter)
        ]
        assert all(4 <= e.output_tokens <= 8 for e in entries(meter))
        assert caplog.text.count("stream_options") == 1
        assert_sound(meter)


@pytest.mark.parametrize("model", ["o4-mini", "gemini-2.5-flash", "deepseek-reasoner", "grok-4"])
def test_a_model_that_thinks_unseen_is_booked_at_its_worst_case(model: str, provider: Recorder) -> None:
    with Meter("memory://", budgets=["$1"]) as meter:
        text(provider, meter, model)
        (entry,) = entries(meter)
        assert (entry.status, entry.output_tokens, entry.flags) == ("assumed", 64, "no_usage")


def test_a_limit_holds_at_such_a_server(provider: Recorder) -> None:
    with Meter("memory://", budgets=["300 output tokens"]) as meter:
        calls = 0
        try:
            while calls < 1000:
                text(provider, meter)
                calls += 1
        except BudgetExceeded:
            pass
        billed = calls * len(WORDS)  # each word is a token
        assert billed <= 300
        assert calls > 300 / 2 / 64  # and it is not the worst case that is booked


def test_what_is_wrong_otherwise_is_said_as_it_is_said(provider: Recorder) -> None:
    message = json.dumps({"error": {"message": "messages: at least one", "param": "messages"}}).encode()
    provider.answer = lambda received: Answer(400, message)
    with Meter("memory://", budgets=["$1"]) as meter:
        with pytest.raises(BadRequestError, match="at least one"):
            text(provider, meter)
        assert [e.status for e in entries(meter)] == ["failed"]
        # Nothing has been learnt of the server: the next stream is asked for its usage.
        provider.answer = streamed
        provider.received.clear()
        text(provider, meter)
        assert entries(meter)[-1].status == "settled"
        # It tells usage when asked: what it refuses now is refused for another reason.
        provider.answer = lambda received: Answer(400, message)
        provider.received.clear()
        with pytest.raises(BadRequestError, match="at least one"):
            text(provider, meter)
        assert len(provider.received) == 1
        assert_sound(meter)


def test_who_asks_for_usage_is_told_that_it_is_refused(provider: Recorder) -> None:
    with Meter("memory://", budgets=["$1"]) as meter:
        with pytest.raises(UnprocessableEntityError):
            text(provider, meter, stream_options={"include_usage": True})
        assert len(provider.received) == 1


def test_not_to_ask_is_a_choice(provider: Recorder) -> None:
    provider.answer = streamed
    with Meter("memory://", budgets=["$1"], stream_usage=False) as meter:
        text(provider, meter)
        text(provider, meter, "o4-mini")
        assert not any("stream_options" in r.json for r in provider.received)
        assert [e.status for e in entries(meter)] == ["estimated", "assumed"]
        # Who asks for it gets it.
        assert text(provider, meter, stream_options={"include_usage": True})[-1].usage
        assert entries(meter)[-1].status == "settled"


def test_langchain_at_such_a_server(provider: Recorder) -> None:
    chat_model = pytest.importorskip("langchain_openai").ChatOpenAI
    with Meter("memory://", budgets=["$1"]) as meter:
        model = meter.langchain_model(
            chat_model(model="gpt-4o", base_url=provider.base_url, api_key="none", max_tokens=64)
        )
        assert "".join(c.text for c in model.stream("hello")) == "".join(WORDS)

        async def go() -> str:
            return "".join([c.text async for c in model.astream("hello")])

        assert asyncio.run(go()) == "".join(WORDS)
        assert [e.status for e in entries(meter)] == ["estimated"] * 2
        assert_sound(meter)


def test_llama_index_at_such_a_server(provider: Recorder) -> None:
    like = pytest.importorskip("llama_index.llms.openai_like").OpenAILike
    with Meter("memory://", budgets=["$1"]) as meter:
        asked: Any = {"api_base": provider.base_url, "api_key": "none", "max_tokens": 64}
        model = meter.llama_index(like(model="gpt-4o", is_chat_model=True, **asked))
        *_, last = model.stream_complete("hello")
        assert last.text == "".join(WORDS)
        assert [e.status for e in entries(meter)] == ["estimated"]
        assert_sound(meter)
