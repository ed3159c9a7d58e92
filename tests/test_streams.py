"""Streams: usage is asked for, and however a stream ends, so does its hold."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from typing import Any

import pytest
from openai import APIError, OpenAI
from support import HELLO, aclient, assert_agrees, assert_sound, assert_whose, client, entries, holds

from behest_integrations import Meter, session
from behest_integrations.sandbox import Sandbox
from behest_integrations.wire import Reply, SSEReader


def stream(c: OpenAI, **options: Any) -> Any:
    return c.chat.completions.create(
        model="gpt-4o", messages=HELLO, stream=True, user="ada", **{"max_tokens": 64, **options}
    )


def settled(meter: Meter) -> None:
    """Wait for a hold that is ended without anyone waiting for it."""
    for _ in range(200):
        if not holds(meter):
            return
        time.sleep(0.01)
    raise AssertionError("the hold has not ended")


def test_the_usage_chunk_is_hidden_from_those_who_did_not_ask(sandbox: Sandbox) -> None:
    with Meter("memory://") as meter:
        metered = meter.openai(client(sandbox))
        plain = list(stream(client(sandbox)))
        seen = list(stream(metered))
        assert [c.choices[0].delta for c in seen] == [c.choices[0].delta for c in plain]
        assert all(c.choices for c in seen)
        asked = list(stream(metered, stream_options={"include_usage": True}))
        assert asked[-1].choices == []
        assert asked[-1].usage.total_tokens
        refused = list(stream(metered, stream_options={"include_usage": False}))
        assert all(c.choices for c in refused)
        assert [e.status for e in entries(meter)] == ["settled"] * 3


def read_some(opened: Any) -> Any:
    reading = iter(opened)
    for _ in range(3):  # the first chunk has no text
        next(reading)
    return opened


def read_three(c: OpenAI) -> None:
    for number, _ in enumerate(stream(c)):
        if number == 2:
            break
    gc.collect()  # the SDK's streams are cycles


def closed(c: OpenAI) -> None:
    read_some(stream(c)).close()


def closed_unread(c: OpenAI) -> None:
    stream(c).close()


def left_the_block(c: OpenAI) -> None:
    with stream(c) as opened:
        read_some(opened)


def raised_inside(c: OpenAI) -> None:
    def read() -> None:
        with stream(c) as opened:
            read_some(opened)
            raise KeyError

    with pytest.raises(KeyError):
        read()


def dropped(c: OpenAI) -> None:
    read_some(stream(c))
    gc.collect()


def dropped_unread(c: OpenAI) -> None:
    stream(c)
    gc.collect()


def raw_closed(c: OpenAI) -> None:
    with c.chat.completions.with_streaming_response.create(
        model="gpt-4o", messages=HELLO, max_tokens=64, stream=True, user="ada"
    ) as response:
        reading = response.iter_bytes(16)
        for _ in range(40):
            next(reading)


EARLY: list[Callable[[OpenAI], None]] = [
    read_three, closed, closed_unread, left_the_block, raised_inside, dropped, dropped_unread, raw_closed,
]  # fmt: skip


@pytest.mark.parametrize("end", EARLY, ids=lambda f: f.__name__)
def test_a_stream_that_ends_early_books_its_worst_case(store: str, end: Callable[[OpenAI], None]) -> None:
    with Sandbox(chunk_delay=0.02) as sandbox, Meter(store, budgets=["$1"]) as meter:
        with session("of ada", user="ada"):
            end(meter.openai(client(sandbox)))
        settled(meter)
        (entry,) = entries(meter)
        assert entry.status == "assumed"
        assert entry.note
        assert entry.flags in ("closed_early", "dropped")
        sandbox.stop()
        assert (entry.cost or 0) >= sandbox.bill.total() * 10**9 > 0
        assert_sound(meter)
        assert_whose(meter, sandbox, exact=False)


@pytest.mark.parametrize("end", EARLY, ids=lambda f: f.__name__)
def test_or_what_was_seen_if_so_chosen(end: Callable[[OpenAI], None]) -> None:
    with (
        Sandbox(chunk_delay=0.02, abandoned="sent") as sandbox,
        Meter("memory://", budgets=["$1"], on_unknown="estimate") as meter,
    ):
        end(meter.openai(client(sandbox)))
        settled(meter)
        (entry,) = entries(meter)
        assert entry.status in ("estimated", "assumed")
        if entry.status == "estimated":
            assert 0 < entry.output_tokens < 64
        else:
            assert end in (closed_unread, dropped_unread)  # nothing had been seen
        assert_sound(meter)


def test_a_stream_read_to_its_last_word_is_settled_even_without_the_rest(sandbox: Sandbox) -> None:
    """Callers often stop at finish_reason; the usage is then already on its way."""
    with Meter("memory://", budgets=["$1"]) as meter:
        for chunk in stream(meter.openai(client(sandbox))):
            if chunk.choices[0].finish_reason:
                break
        gc.collect()
        settled(meter)
        assert [e.status for e in entries(meter)] == ["settled"]
        assert_agrees(meter, sandbox)


def test_a_connection_that_dies_half_way(sandbox: Sandbox, store: str) -> None:
    sandbox.fault("cut")
    with Meter(store, budgets=["$1"]) as meter:
        # The error is httpx's or the SDK's, by version.
        with session("of ada", user="ada"), pytest.raises(Exception) as caught:  # noqa: PT011
            list(stream(meter.openai(client(sandbox))))
        assert "Budget" not in str(caught.value)
        settled(meter)
        (entry,) = entries(meter)
        assert (entry.status, entry.flags) == ("assumed", "broken")
        assert (entry.cost or 0) >= sandbox.bill.total() * 10**9 > 0
        assert_sound(meter)
        assert_whose(meter, sandbox, exact=False)


def test_a_stream_without_usage(sandbox: Sandbox) -> None:
    sandbox.fault("no_usage")
    with Meter("memory://", budgets=["$1"]) as meter:
        list(stream(meter.openai(client(sandbox))))
        (entry,) = entries(meter)
        assert (entry.status, entry.flags) == ("assumed", "no_usage")


def test_an_error_before_the_stream_begins(sandbox: Sandbox) -> None:
    sandbox.fault("status", status=429)
    with Meter("memory://", budgets=["$1"]) as meter:
        with pytest.raises(APIError):
            stream(meter.openai(client(sandbox)))
        assert [e.status for e in entries(meter)] == ["failed"]
        assert_sound(meter)


@pytest.mark.parametrize("how", ["break", "cancel", "close", "drop"])
def test_asynchronous_streams_that_end_early(store: str, how: str) -> None:
    async def run(meter: Meter, sandbox: Sandbox) -> None:
        async with meter.openai(aclient(sandbox)) as metered:

            async def consume() -> None:
                opened = await metered.chat.completions.create(
                    model="gpt-4o", messages=HELLO, max_tokens=64, stream=True
                )
                async for _ in opened:
                    if how == "break":
                        break
                    if how == "close":
                        await opened.close()
                        return
                    if how == "drop":
                        return

            task = asyncio.create_task(consume())
            if how == "cancel":
                await asyncio.sleep(0.15)
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            del task
            gc.collect()
            for _ in range(200):
                if not holds(meter):
                    return
                await asyncio.sleep(0.01)

    with Sandbox(chunk_delay=0.05) as sandbox, Meter(store, budgets=["$1"]) as meter:
        asyncio.run(run(meter, sandbox))
        settled(meter)
        (entry,) = entries(meter)
        assert entry.status == "assumed"
        sandbox.stop()
        assert (entry.cost or 0) >= sandbox.bill.total() * 10**9 > 0
        assert_sound(meter)


def test_a_task_cancelled_while_the_answer_is_awaited(store: str) -> None:
    async def run(meter: Meter, sandbox: Sandbox) -> None:
        async with meter.openai(aclient(sandbox)) as metered:
            task = asyncio.ensure_future(
                metered.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=64)
            )
            await asyncio.sleep(0.15)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with Sandbox(latency=0.4) as sandbox, Meter(store, budgets=["$1"]) as meter:
        asyncio.run(run(meter, sandbox))
        settled(meter)
        assert [e.status for e in entries(meter)] == ["assumed"]
        assert_sound(meter)


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_the_reader_gives_the_stream_back_whatever_its_pieces(size: int) -> None:
    events = (
        b": a comment\n\n",
        b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"\\u00fc"}}],"usage":null}\r\n\r\n',
        b'event: x\ndata: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}\n\n',
        b"data: [DONE]\n\n",
        b"data: no blank line",
    )
    whole = b"".join(events)
    reply = Reply()
    reader = SSEReader(reply, hide_usage=True)
    out = b"".join(reader.feed(whole[i : i + size]) for i in range(0, len(whole), size)) + reader.finish()
    assert out == b"".join(e for i, e in enumerate(events) if i != 3)
    assert reply.usage is not None
    assert (reply.usage.input_tokens, reply.usage.output_tokens, reply.model) == (3, 4, "m")
    assert reader.done


@pytest.mark.parametrize("size", [None, 1, 100, 100_000])
def test_bytes_come_in_the_pieces_asked_for(sandbox: Sandbox, size: int | None) -> None:
    with (
        Meter("memory://") as meter,
        meter.openai(client(sandbox)).chat.completions.with_streaming_response.create(
            model="gpt-4o", messages=HELLO, max_tokens=9, stream=True
        ) as response,
    ):
        pieces = list(response.iter_bytes(size))
    assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
    assert size is None or {len(p) for p in pieces[:-1]} <= {size}
