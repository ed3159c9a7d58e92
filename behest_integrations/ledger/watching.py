"""How a store does: who is told of its transactions, and what is logged where they are slow."""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

log = logging.getLogger("behest")

SLOW_SECONDS = 0.5
"""From which on a transaction is called slow, if nobody has said otherwise."""
_PAUSE = 60.0
"""Seconds between two lines of a log about one store."""


class TransactionWatcher(Protocol):
    """Whoever counts what a store does. Told from whatever thread has written, so it must be quick."""

    def transacted(self, seconds: float, operations: int, waiting: int) -> None:
        """A transaction has ended, done or not.

        Args:
            seconds: from its begin to its end, all that it was run again included.
            operations: how many were in it.
            waiting: how many have come since and wait for the next.
        """

    def retried(self, why: str) -> None:
        """A transaction is run again.

        Args:
            why: one of a few words; see `postgres`.
        """


class Slowness:
    """Says that a store is slow: once a minute at most, with how often it has been since the last time.

    Args:
        where: the store, as messages call it.
        advice: what to look at.
    """

    def __init__(self, where: str, advice: str) -> None:
        self._where = where
        self._advice = advice
        self._lock = threading.Lock()
        self._said_at: float | None = None
        self._times = 0
        self._worst = 0.0

    def noticed(self, seconds: float, operations: int, bound: float) -> None:
        """A transaction took that long."""
        now = time.monotonic()
        with self._lock:
            self._times += 1
            self._worst = max(self._worst, seconds)
            if self._said_at is not None and now - self._said_at < _PAUSE:
                return
            since, times, worst = self._said_at, self._times, self._worst
            self._said_at, self._times, self._worst = now, 0, 0.0
        before = (
            ""
            if since is None
            else f" {times} took longer than that in {now - since:.0f} s, {worst:.2f} s at most."
        )
        log.warning(
            "%s is slow: a transaction of %d %s took %.2f s, and calls wait (store_slow is %g s).%s %s",
            self._where, operations, "operation" if operations == 1 else "operations", seconds, bound, before,
            self._advice,
        )  # fmt: skip
