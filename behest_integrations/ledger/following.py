"""Closes blocks in the background of a process that writes, so that nobody has to ask for it."""

from __future__ import annotations

import logging
import threading
import time
import weakref

import sqlalchemy as sa

from ..rules.errors import BehestError
from .base import Ledger
from .closing import close_blocks

log = logging.getLogger("behest")

_FIRST = 3.0
_AGAIN = 5.0
_REST = 0.002


class Follower:
    """Looks every few seconds, while calls are made, whether there is anything to close, in a thread of
    its own that rests between every few entries."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _FIRST
        self._thread: threading.Thread | None = None
        self._ended = False

    def look(self, ledger: Ledger) -> None:
        """Let it begin, if it is time; returns at once."""
        now = time.monotonic()
        if now < self._next or self._ended or (self._thread is not None and self._thread.is_alive()):
            return
        self._next = now + _AGAIN
        self._thread = threading.Thread(
            target=_close, args=(weakref.ref(ledger), self), name="behest-blocks", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError:  # the interpreter is ending
            self._thread = None

    def end(self) -> None:
        """Stop, and wait until it has."""
        self._ended = True
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(5.0)

    def rest(self) -> None:
        """Let others go on. It is where it is stopped.

        Raises:
            Ended: the ledger is closed.
        """
        if self._ended:
            raise Ended
        time.sleep(_REST)


class Ended(Exception):
    """The ledger is closed; what was not done is done next time."""


def _close(of: weakref.ref[Ledger], follower: Follower) -> None:
    ledger = of()
    if ledger is None:
        return
    try:
        while close_blocks(ledger, ledger.now_ms(), rest=follower.rest, most=1):
            follower.rest()
    except Ended:
        pass
    except (sa.exc.SQLAlchemyError, BehestError, OSError) as error:
        # Nothing is missing for it: reports read the entries instead.
        log.debug("no block was closed: %s", error)
    except Exception:
        log.exception("closing blocks failed")
