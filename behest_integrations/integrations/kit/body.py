"""A reply's body as an iterator of bytes, watched as it passes: for HTTP libraries that are not httpx."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from ...calls.exchange import Exchange
from ...calls.passing import Passing
from ...engine.holds import Hold
from ...engine.outcomes import Outcome

CLOSED = "the stream was closed before its end", "closed_early"
"""What is noted of a stream whose reader has left."""


class WatchedBody(Passing):
    """Sees a response's body pass, and ends the hold when it ends, however it ends."""

    def __init__(self, exchange: Exchange, hold: Hold, events: bool) -> None:
        super().__init__(exchange, events=events)
        self.hold = hold
        exchange.engine.finalizers.add(self.dropped)

    def outcome(self, note: str = "", flag: str = "") -> Outcome | None:
        self.exchange.engine.finalizers.discard(self.dropped)
        return super().outcome(note, flag)

    def dropped(self) -> None:
        """The program ends."""
        self.post("the stream was dropped before its end", "dropped")

    def post(self, note: str, flag: str) -> None:
        outcome = self.outcome(note, flag)
        if outcome is not None:
            self.hold.post(outcome)

    def end(self, note: str = "", flag: str = "") -> None:
        outcome = self.outcome(note, flag)
        if outcome is not None:
            self.hold.end(outcome)

    @property
    def has_more(self) -> bool:
        """Whether the rest is worth reading before the response is closed."""
        return self.drainable and not self.ended

    def read(self, source: Iterator[bytes]) -> Iterator[bytes]:
        try:
            for data in source:
                out = self.feed(data)
                if out:
                    yield out
            last = self.rest()
        except GeneratorExit:
            raise  # its reader has left; it is released next
        except BaseException as error:
            self.end(f"the stream broke: {type(error).__name__}", "broken")
            raise
        self.end()
        if last:
            yield last

    async def aread(self, source: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            async for data in source:
                out = self.feed(data)
                if out:
                    yield out
            last = self.rest()
        except GeneratorExit:
            raise
        except BaseException as error:
            # Posted: a cancelled task must not wait here.
            self.post(f"the stream broke: {type(error).__name__}", "broken")
            raise
        outcome = self.outcome()
        if outcome is not None:
            await self.hold.aend(outcome)
        if last:
            yield last
