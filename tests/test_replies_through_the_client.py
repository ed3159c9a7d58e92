"""What a client is told by odd servers, and what is booked: nothing that cannot be true is the bill."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai import APIError, OpenAI
from support import HELLO, entries

from behest_integrations import Meter

TOTAL = {"prompt_tokens": 8, "completion_tokens": 4, "total_tokens": 12}
LATER = {**TOTAL, "completion_tokens": 5, "total_tokens": 13}
SILENT = {**TOTAL, "completion_tokens": 0, "total_tokens": 8}
ZEROS = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def chunk(text: str | None, finish: str | None = None, usage: Any = None) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o", "choices": choices,
            "usage": usage}  # fmt: skip


USAGE = {**chunk(None, usage=TOTAL), "choices": []}
WHOLE = [chunk("hi"), chunk(None, "stop"), USAGE, "[DONE]"]


def events(*said: Any) -> bytes:
    return b"".join(b"data: " + (s if isinstance(s, str) else json.dumps(s)).encode() + b"\n\n" for s in said)


def serving(content: bytes, kind: str = "text/event-stream", hook: Any = None) -> OpenAI:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": kind}, stream=httpx.ByteStream(content))

    hooks = {"response": [hook]} if hook else {}
    http = httpx.Client(transport=httpx.MockTransport(answer), event_hooks=hooks)
    return OpenAI(api_key="k", max_retries=0, http_client=http)


def booked(content: bytes, kind: str = "text/event-stream", hook: Any = None) -> tuple[list[Any], Any]:
    """The chunks that the caller sees, and the entry."""
    with Meter("memory://", budgets=["$1"]) as meter:
        seen = []
        try:
            for one in meter.openai(serving(content, kind, hook)).chat.completions.create(
                model="gpt-4o", messages=HELLO, max_tokens=64, stream=True
            ):
                seen.append(one)
        except APIError:
            pass
        (entry,) = entries(meter)
        return seen, entry


@pytest.mark.parametrize("kind", ["text/event-stream", "text/plain", "application/octet-stream"])
@pytest.mark.parametrize("hook", [None, lambda response: response.read()])
def test_a_stream_is_read_as_what_it_is(kind: str, hook: Any) -> None:
    seen, entry = booked(events(*WHOLE), kind, hook)
    assert len(seen) == 2
    assert all(c.choices for c in seen)
    assert (entry.status, entry.input_tokens, entry.output_tokens) == ("settled", 8, 4)


@pytest.mark.parametrize(
    "said",
    [
        [chunk("hi", usage=TOTAL), chunk(" there", usage=LATER)],
        [chunk("hi", usage=TOTAL), {"error": {"message": "overloaded"}}],
        [chunk("hi", usage=TOTAL), {"error": {"message": "overloaded"}}, "[DONE]"],
        [chunk("hi"), chunk(None, "stop"), {**USAGE, "usage": ZEROS}, "[DONE]"],
        [chunk("hi"), chunk("hi"), chunk(None, "stop"), {**USAGE, "usage": SILENT}, "[DONE]"],
    ],
)  # fmt: skip
def test_what_is_not_whole_or_cannot_be_true_is_booked_at_the_worst(said: list[Any]) -> None:
    _, entry = booked(events(*said))
    assert entry.status == "assumed"


def test_running_totals_with_an_end_are_settled() -> None:
    last = {**TOTAL, "completion_tokens": 6, "total_tokens": 14}
    _, entry = booked(events(chunk("a", usage=TOTAL), chunk("b", "stop", usage=last)))
    assert (entry.status, entry.output_tokens) == ("settled", 6)
    _, entry = booked(events(chunk("a", usage=TOTAL), chunk(None, "stop", TOTAL), {**USAGE, "usage": ZEROS}))
    assert (entry.status, entry.output_tokens) == ("settled", 4)


def test_zeros_beside_an_answer_are_booked_at_the_worst() -> None:
    message = {"role": "assistant", "content": "hello"}
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "gpt-4o", "usage": ZEROS,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}  # fmt: skip
    with Meter("memory://", budgets=["$1"]) as meter:
        metered = meter.openai(serving(json.dumps(body).encode(), "application/json"))
        metered.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=64)
        (entry,) = entries(meter)
    assert (entry.status, entry.flags) == ("assumed", "no_usage")
