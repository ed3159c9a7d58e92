"""A provider's answer whose head says success: read as far as it takes to know that it is one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
import anyio
import anyio.to_thread
from pydantic_core import from_json

from ..calls.exchange import Exchange
from ..calls.passing import Passing
from ..engine.holds import Hold
from .leaving import Rest

EVENTS = "text/event-stream"
LARGE = 50_000
"""Bytes from which a body is worked on in a thread: to count the tokens of more than that takes
milliseconds, in which the event loop would serve nobody."""
_MOST_ANSWER = 64 * 1024 * 1024
_MOST_ERROR = 64 * 1024
_PARTS = ("choices", "output", "data", "content", "candidates")
"""One of these is in whatever is an answer."""


class BrokenOff(Exception):
    """An answer that has ended before its end. Its hold has ended."""


class FailedInside(Exception):
    """A success of HTTP that is an error all the same. Its hold has ended.

    Attributes:
        error: what the provider says of it.
    """

    def __init__(self, error: Mapping[str, object]) -> None:
        super().__init__("an error in a success")
        self.error = error


@dataclass
class Answer:
    """An answer that is one, as far as it has been read; the hold of a stream is still open.

    Attributes:
        content: what is for the caller: the whole, or the beginning of a stream.
        passing: the rest of a stream.
    """

    response: aiohttp.ClientResponse
    exchange: Exchange
    hold: Hold
    content: bytes
    passing: Passing | None = None


async def begin(response: aiohttp.ClientResponse, exchange: Exchange, hold: Hold) -> Answer:
    """Read a whole answer, or a stream up to its first event.

    A whole one is read to its end even if the client has hung up: it is billed, and what is known of it is
    better than the worst that it could have been.

    Raises:
        BrokenOff, FailedInside: it is no answer.
    """
    if response.content_type == EVENTS:
        return await _first(response, exchange, hold)
    try:
        async with response:
            content = await read_at_most(response, _MOST_ANSWER)
    except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
        await hold.aend(exchange.interrupted(f"the answer broke off: {type(error).__name__}", "broken"))
        raise BrokenOff from error
    except BaseException:
        hold.post(exchange.interrupted("the gateway was stopped before the end", "cancelled"))
        raise
    if len(content) > LARGE:
        content = await anyio.to_thread.run_sync(exchange.read_body, content)
    else:
        content = exchange.read_body(content)
    await hold.aend(exchange.complete())
    if exchange.reply.error and len(content) <= _MOST_ERROR:
        failure = _failure(content)
        if failure is not None:
            raise FailedInside(failure)
    return Answer(response, exchange, hold, content)


async def _first(response: aiohttp.ClientResponse, exchange: Exchange, hold: Hold) -> Answer:
    passing, shown = Passing(exchange, events=True), b""
    try:
        while not shown and not _done(passing):
            data = await response.content.readany()
            if not data:
                break
            shown = passing.feed(data)
        if exchange.reply.error and not exchange.reply.answered:
            failure = _failure(shown)
            if failure is not None:
                await end(hold, passing, "the provider failed", "failed_inside")
                response.close()
                raise FailedInside(failure)
    except (aiohttp.ClientError, asyncio.TimeoutError) as error:
        await end(hold, passing, f"the stream broke: {type(error).__name__}", "broken")
        response.close()
        raise BrokenOff from error
    except BaseException as error:
        left = isinstance(error, asyncio.CancelledError) and Rest(exchange, hold, response, passing).taken()
        if not left:
            post(hold, passing, "the client hung up before the end", "closed_early")
            response.close()
        raise
    return Answer(response, exchange, hold, shown, passing)


def _done(passing: Passing) -> bool:
    return passing.reader is not None and passing.reader.done


def _failure(content: bytes) -> Mapping[str, object] | None:
    """The error that a whole body, or the first event of a stream, is; None if it is anything else."""
    for line in content.split(b"\n") if content.lstrip()[:1] != b"{" else (content,):
        text = line.removeprefix(b"data:").strip()
        if not text.startswith(b"{"):
            continue
        try:
            said = from_json(text)
        except ValueError:
            return None
        if not isinstance(said, dict) or any(said.get(part) for part in _PARTS):
            return None
        error = said.get("error") or (said if said.get("type") == "error" else None)
        if isinstance(error, str):
            return {"message": error}
        return error if isinstance(error, dict) else None
    return None


async def read_at_most(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The whole body.

    Raises:
        ValueError: it is longer.
    """
    parts: list[bytes] = []
    size = 0
    async for data in response.content.iter_any():
        size += len(data)
        if size > most:
            raise ValueError(f"more than {most} bytes")
        parts.append(data)
    return b"".join(parts)


# ── how a stream ends ──────────────────────────────────────────────────────────────────


async def end(hold: Hold, passing: Passing, note: str = "", flag: str = "") -> None:
    """End the hold, if it has not ended and how is known."""
    outcome = passing.outcome(note, flag)
    if outcome is not None:
        await hold.aend(outcome)


def post(hold: Hold, passing: Passing, note: str, flag: str) -> None:
    """The same, without waiting."""
    outcome = passing.outcome(note, flag)
    if outcome is not None:
        hold.post(outcome)


async def drain(response: aiohttp.ClientResponse, passing: Passing, seconds: float) -> None:
    """Read what is left of a stream that has been generated, and nobody reads: its usage may be in it."""
    with (
        anyio.move_on_after(seconds, shield=True),
        contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError),
    ):
        async for data in response.content.iter_any():
            passing.feed(data)
        passing.rest()
