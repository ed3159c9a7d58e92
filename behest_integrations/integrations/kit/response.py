"""A reply's body, watched as it passes; one core, and a loop each for blocking and awaited reading."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from ...calls.exchange import Exchange
from ...calls.passing import Passing
from ...engine.holds import Hold
from ...engine.outcomes import Outcome


class Watch(Passing):
    """Sees a response's body pass, and ends the hold when it ends, however it ends.

    It sits in front of the response's `iter_bytes`, below every variant that the SDK
    offers (streams, raw responses, streaming responses).
    """

    def __init__(self, response: Any, exchange: Exchange, hold: Hold, only_whole: bool) -> None:
        events = "text/event-stream" in response.headers.get("content-type", "")
        super().__init__(exchange, events=events, only_whole=only_whole)
        self.hold = hold
        self.source: Any = None
        self.reading = False
        """Whether the body is being read right now: the HTTP library closes a response
        itself when it has read all of it, and that is not an early end."""
        weakref.finalize(response, self.dropped).atexit = False
        # At exit the meter sees to it, before its last write.
        exchange.engine.finalizers.add(self.dropped)

    def can_drain(self) -> bool:
        """Whether the rest is worth reading before the response is closed."""
        return self.drainable and not self.ended and (self.source is not None or self.reader is None)

    def outcome(self, note: str = "", flag: str = "") -> Outcome | None:
        self.exchange.engine.finalizers.discard(self.dropped)
        return super().outcome(note, flag)

    def dropped(self) -> None:
        self.post("the stream was dropped before its end", "dropped")

    def post(self, note: str, flag: str) -> None:
        outcome = self.outcome(note, flag)
        if outcome is not None:
            self.hold.post(outcome)


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
    response: Any, exchange: Exchange, hold: Hold, *, asynchronous: bool, only_whole: bool = False
) -> None:
    watch = Watch(response, exchange, hold, only_whole)
    # The functions must not keep the response alive: a stream that is dropped is collected,
    # and ends its hold then.
    ref = weakref.ref(response)
    hold.hang_up = lambda: _close(ref(), asynchronous)
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
        if response is None:
            return  # it is being collected, and its finaliser ends the hold
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
            type(response).close(response)
            _end(watch, "the stream was closed before its end", "closed_early")

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
            async for data in watch.source:
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
            watch.post(f"the stream broke: {type(error).__name__}", "broken")
            raise
        outcome = watch.outcome()
        if outcome is not None:
            await watch.hold.aend(outcome)

    async def aclose() -> None:
        response = ref()
        if response is None:
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
            # Posted before anything else is awaited: a cancelled task may not get further.
            watch.post("the stream was closed before its end", "closed_early")
            await type(response).aclose(response)

    return aiter_bytes, aclose
