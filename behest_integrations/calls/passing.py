"""The body of one reply, seen as it passes to whoever reads it."""

from __future__ import annotations

import threading

from ..engine.outcomes import Outcome
from ..wire import SSEReader
from ..wire.frames import FrameReader
from .exchange import Exchange


class Passing:
    """The body of one reply, seen as it passes to whoever reads it; then how the call ended.

    Args:
        events: whether it is said to be server-sent events; if not, it is looked at.
        only_whole: the hold is not to end unless the reply has been received whole.
    """

    def __init__(self, exchange: Exchange, *, events: bool, only_whole: bool = False) -> None:
        self.exchange = exchange
        self.only_whole = only_whole
        self.over = False
        self.left = False
        """Whether its reader has left, and it is read on."""
        self._reader = exchange.reader(events=events)
        self._ended = threading.Lock()

    @property
    def reader(self) -> SSEReader | FrameReader | None:
        """The reader of the events, if it is events."""
        return self._reader.events

    @property
    def ended(self) -> bool:
        """Whether the outcome has been taken."""
        return self._ended.locked()

    def feed(self, data: bytes) -> bytes:
        """What of `data`, and of what came before, can be passed on now."""
        return self._reader.feed(data)

    def rest(self) -> bytes:
        """What is left to be passed on, now that the body is over."""
        self.over = True
        return self._reader.finish()

    @property
    def done(self) -> bool:
        """Whether all that there is has been received."""
        return self.over or self._reader.done

    @property
    def drainable(self) -> bool:
        """Whether reading on costs nothing: all is generated (and billed), its usage is not in."""
        if self.done:
            return False
        return self.reader is None or (self.exchange.generated and not self.exchange.reply.final_usage)

    def outcome(self, note: str = "", flag: str = "") -> Outcome | None:
        """How the call ended, told once; None if it has been told, or is not known yet.

        Args:
            note, flag: what happened, if the reply is not whole.
        """
        if not self._ended.acquire(False):
            return None
        done = self.done
        if done and self.exchange.reply.final_usage:
            outcome = self.exchange.complete()
        elif self.only_whole:
            return None
        else:
            outcome = self.exchange.complete() if done else self.exchange.interrupted(note, flag)
        if self.left and outcome.status != "assumed":
            return outcome._replace(
                note="its reader left; the rest was read in the background",
                flags=(*outcome.flags, "drained"),
            )
        return outcome
