"""A reply's body, watched as it passes; one core, and a loop each for blocking and awaited reading."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from ...calls.exchange import Exchange
from ...calls.passing import Passing
from ...engine.draining import MOST_BYTES
from ...engine.holds import Hold
from ...engine.outcomes import Outcome

_SHUTDOWN = socket.socket.shutdown  # of the connection itself, whatever is wrapped around it
_CLOSED = "the stream was closed before its end", "closed_early"
_DROPPED = "the stream was dropped before its end", "dropped"
_TOO_LONG = "the stream was left, and not read to its end: it took too long", "closed_early"


class Watch(Passing):
    """Sees a response's body pass, and ends the hold when it ends, however it ends.

    It sits in front of the response's `iter_bytes`, below every variant that the SDK
    offers (streams, raw responses, streaming responses).
    """

    def __init__(
        self, response: Any, exchange: Exchange, hold: Hold, only_whole: bool, awaited: bool
    ) -> None:
        events = "text/event-stream" in response.headers.get("content-type", "")
        super().__init__(exchange, events=events, only_whole=only_whole)
        self.hold = hold
        self.client: object = None
        """Kept for as long as its stream may have to be read on."""
        self.source: Any = None
        self.step: asyncio.Future[bytes | None] | None = None
        """The chunk that is being awaited, where that goes on when its reader is cancelled."""
        self.reading = False
        """Whether the body is being read right now: the HTTP library closes a response
        itself when it has read all of it, and that is not an early end."""
        self.reads_on = not only_whole and exchange.reads_on
        self._loop = asyncio.get_running_loop() if awaited else None
        again: Callable[[], Any] | None = None
        if self.reads_on:
            self._drains = exchange.engine.drains
            if not awaited:
                self._drains.expect()
            again = _remade(response)
        weakref.finalize(response, self.dropped, again).atexit = False
        # At exit the meter sees to it, before its last write.
        exchange.engine.finalizers.add(self.dropped)

    def can_drain(self) -> bool:
        """Whether the rest is worth reading before the response is closed."""
        return self.drainable and not self.ended and (self.source is not None or self.reader is None)

    def read_on(self, response: Any) -> bool:
        """Have the rest read in the background, if that is to be; whether it is."""
        if self.left:
            return True
        if response is None or not self.reads_on or self.ended or self.done:
            return False
        self.left = True  # first: it may be over at once
        self.left = self._drains.take(_Rest(self, response), self._loop)
        return self.left

    def outcome(self, note: str = "", flag: str = "") -> Outcome | None:
        self.exchange.engine.finalizers.discard(self.dropped)
        self.hold.read_on = self.client = None
        return super().outcome(note, flag)

    def dropped(self, again: Callable[[], Any] | None = None) -> None:
        """Nobody has the response any more.

        Args:
            again: makes another of what was in it, to be read on.
        """
        if again is not None and self.source is None and not self.ended and self.read_on(again()):
            return
        self.post(*_DROPPED)

    def post(self, note: str, flag: str) -> None:
        outcome = self.outcome(note, flag)
        if outcome is not None:
            self.hold.post(outcome)


def _remade(response: Any) -> Callable[[], Any] | None:
    """What makes a response of the same stream, without keeping this one alive."""
    stream = getattr(response.stream, "_stream", None)  # what is around it knows the response
    if stream is None:
        return None
    made, status, headers, request = type(response), response.status_code, response.headers, response.request

    def again() -> Any:
        return made(status, headers=headers, stream=stream, request=request)

    return again


class _Rest:
    """What is left of a body whose reader has left."""

    def __init__(self, watch: Watch, response: Any) -> None:
        self._watch = watch
        self._response = response
        self._size = 0

    def _enough(self, data: bytes) -> bool:
        watch = self._watch
        watch.feed(data)
        self._size += len(data)
        return watch.done or watch.ended or self._size > MOST_BYTES

    def read(self) -> None:
        watch, response = self._watch, self._response
        try:
            if watch.source is None:
                watch.source = type(response).iter_bytes(response)
            for data in watch.source:
                if self._enough(data):
                    break
            else:
                watch.rest()
        except Exception as error:
            _end(watch, f"the stream broke: {type(error).__name__}", "broken")
        finally:
            _end(watch, *_TOO_LONG)
            type(response).close(response)

    async def aread(self) -> None:
        watch, response = self._watch, self._response
        try:
            if watch.source is None:
                watch.source = type(response).aiter_bytes(response)
            step = watch.step or _next(watch.source)
            while True:
                data = await step
                if data is None:
                    watch.rest()
                    break
                if self._enough(data):
                    break
                step = _next(watch.source)
            outcome = watch.outcome(*_TOO_LONG)
            if outcome is not None:
                await watch.hold.aend(outcome)
        except Exception as error:
            watch.post(f"the stream broke: {type(error).__name__}", "broken")
        finally:
            # Posted before anything else is awaited: the loop may be ending.
            watch.post(*_TOO_LONG)
            await type(response).aclose(response)

    def cut(self) -> None:
        self._watch.post(*_TOO_LONG)
        if self._watch._loop is None and not self._response.is_closed:
            # It may be waiting for a byte that never comes.
            _shut_down(self._response)


def _shut_down(response: Any) -> None:
    """Have whoever reads from a response's connection see its end."""
    if response.http_version not in ("HTTP/1.0", "HTTP/1.1"):
        return  # others may be using it
    with contextlib.suppress(Exception):
        connection = response.extensions["network_stream"].get_extra_info("socket")
        _SHUTDOWN(connection, socket.SHUT_RDWR)


async def _next(source: Any) -> bytes | None:
    """The next chunk; None at the end."""
    try:
        return await source.__anext__()  # type: ignore[no-any-return]
    except StopAsyncIteration:
        return None


class _Pieces:
    """A body in the pieces that its reader asked for: of `size` bytes, or as they come."""

    def __init__(self, size: int | None) -> None:
        self.size = size
        self.left = b""

    def cut(self, data: bytes, *, last: bool = False) -> list[bytes]:
        if self.size is None:
            return [data] if data else []
        data = self.left + data
        whole = len(data) if last else len(data) // self.size * self.size
        self.left = data[whole:]
        return [data[i : i + self.size] for i in range(0, whole, self.size)]


def watch_response(
    response: Any,
    exchange: Exchange,
    hold: Hold,
    *,
    asynchronous: bool,
    client: object = None,
    only_whole: bool = False,
) -> None:
    """See the body of `response` pass, and end `hold` with it.

    Args:
        client: whose connection it is: the SDKs close theirs when they are collected.
    """
    watch = Watch(response, exchange, hold, only_whole, asynchronous)
    # The functions must not keep the response alive: a stream that is dropped is collected,
    # and ends its hold then.
    ref = weakref.ref(response)
    hold.hang_up = lambda: _close(ref(), asynchronous)
    if watch.reads_on:
        watch.client = client
        hold.read_on = lambda: watch.read_on(ref())
    if asynchronous:
        response.aiter_bytes, response.aclose = _async_patches(ref, watch)
    else:
        response.iter_bytes, response.close = _sync_patches(ref, watch)


def _close(response: Any, asynchronous: bool) -> Any:
    if response is None or response.is_closed:
        return None
    return response.aclose() if asynchronous else response.close()


def _sync_patches(ref: Callable[[], Any], watch: Watch) -> tuple[Any, Any]:
    def iter_bytes(chunk_size: int | None = None) -> Iterator[bytes]:
        response = ref()
        watch.source = type(response).iter_bytes(response)
        pieces = _Pieces(chunk_size)
        try:
            watch.reading = True
            for data in watch.source:
                for out in pieces.cut(watch.feed(data)):
                    watch.reading = False
                    yield out
                    watch.reading = True
            last = pieces.cut(watch.rest(), last=True)
            watch.reading = False
            for out in last:
                yield out
        except GeneratorExit:
            raise  # the consumer stopped; `close` follows
        except BaseException as error:
            _end(watch, f"the stream broke: {type(error).__name__}", "broken")
            raise
        _end(watch, "", "")

    def close() -> None:
        response = ref()
        if response is None or watch.left:
            return  # it is being collected, and its finaliser ends the hold; or read on
        if watch.reading:
            type(response).close(response)
            return
        try:
            if watch.can_drain():
                if watch.source is None:
                    watch.source = type(response).iter_bytes(response)
                for data in watch.source:
                    watch.feed(data)
                watch.rest()
        except Exception as error:
            _end(watch, f"the stream broke: {type(error).__name__}", "broken")
        finally:
            if not watch.read_on(response):
                type(response).close(response)
                _end(watch, *_CLOSED)

    return iter_bytes, close


def _end(watch: Watch, note: str, flag: str) -> None:
    outcome = watch.outcome(note, flag)
    if outcome is not None:
        watch.hold.end(outcome)


def _async_patches(ref: Callable[[], Any], watch: Watch) -> tuple[Any, Any]:
    async def aiter_bytes(chunk_size: int | None = None) -> AsyncIterator[bytes]:
        response = ref()
        watch.source = type(response).aiter_bytes(response)
        pieces = _Pieces(chunk_size)
        try:
            watch.reading = True
            while True:
                if watch.reads_on:
                    # Whoever reads may be cancelled: that must not break off what is read on.
                    watch.step = asyncio.ensure_future(_next(watch.source))
                    data = await asyncio.shield(watch.step)
                    watch.step = None
                else:
                    data = await _next(watch.source)
                if data is None:
                    break
                for out in pieces.cut(watch.feed(data)):
                    watch.reading = False
                    yield out
                    watch.reading = True
            last = pieces.cut(watch.rest(), last=True)
            watch.reading = False
            for out in last:
                yield out
        except GeneratorExit:
            raise
        except BaseException as error:
            if not (isinstance(error, asyncio.CancelledError) and watch.read_on(response)):
                watch.post(f"the stream broke: {type(error).__name__}", "broken")
            raise
        outcome = watch.outcome()
        if outcome is not None:
            await watch.hold.aend(outcome)

    async def aclose() -> None:
        response = ref()
        if response is None or watch.left:
            return
        if watch.reading:
            await type(response).aclose(response)
            return
        try:
            if watch.can_drain():
                if watch.source is None:
                    watch.source = type(response).aiter_bytes(response)
                async for data in watch.source:
                    watch.feed(data)
                watch.rest()
        except Exception as error:
            watch.post(f"the stream broke: {type(error).__name__}", "broken")
        finally:
            if not watch.read_on(response):
                # Posted before anything else is awaited: a cancelled task may not get further.
                watch.post(*_CLOSED)
                await type(response).aclose(response)

    return aiter_bytes, aclose
