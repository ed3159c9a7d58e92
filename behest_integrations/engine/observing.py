"""What is counted of the store's work, and told to whoever keeps metrics: telemetry, the gateway.

Where nobody does, an engine has none of this, and calls nothing of it. No ids are told, and words of a few.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal, Protocol

Asked = Literal["reserve", "settle"]
Level = Literal["holds", "slices", "queue"]
Event = Literal["expired", "assumed"]


class StoreWatcher(Protocol):
    """Whoever keeps metrics. Told from whatever thread, and must be quick."""

    def asked(self, what: Asked, seconds: float) -> None:
        """The store has answered a caller, so long after it was asked: what it waited for included."""

    def transacted(self, seconds: float, operations: int) -> None:
        """A transaction with so many operations has ended."""

    def changed(self, level: Level, by: int) -> None:
        """This process has more, or fewer: calls in flight that hold something, slices of budgets,
        operations that wait for the writer."""

    def retried(self, why: str) -> None:
        """A transaction is run again."""

    def refused(self, reason: str, unit: str) -> None:
        """A call did not fit in a budget."""

    def happened(self, event: Event, count: int) -> None:
        """``expired``: holds whose process has died, or whose time was up. ``assumed``: calls that are
        booked with their worst case, because their outcome is not known."""

    def over(self, unit: str) -> None:
        """A call came to more than its worst case."""


class StoreObserver:
    """Tells all watchers; it is what a ledger tells of its transactions.

    Args:
        slices: how many slices this process has now.
    """

    def __init__(self, slices: Callable[[], int]) -> None:
        self.watchers: list[StoreWatcher] = []
        self._slices = slices
        self._lock = threading.Lock()
        self._known: dict[Level, int] = {"slices": 0, "queue": 0}

    def transacted(self, seconds: float, operations: int, waiting: int) -> None:
        with self._lock:
            now: dict[Level, int] = {"slices": self._slices(), "queue": waiting}
            more = {level: count - self._known[level] for level, count in now.items()}
            self._known = now
        for watcher in self.watchers:
            watcher.transacted(seconds, operations)
            for level, by in more.items():
                if by:
                    watcher.changed(level, by)

    def retried(self, why: str) -> None:
        for watcher in self.watchers:
            watcher.retried(why)

    def asked(self, what: Asked, seconds: float) -> None:
        for watcher in self.watchers:
            watcher.asked(what, seconds)

    def held(self, by: int) -> None:
        for watcher in self.watchers:
            watcher.changed("holds", by)

    def refused(self, reason: str, unit: str) -> None:
        for watcher in self.watchers:
            watcher.refused(reason, unit)

    def happened(self, event: Event, count: int = 1) -> None:
        for watcher in self.watchers:
            watcher.happened(event, count)

    def over(self, units: tuple[str, ...]) -> None:
        for watcher in self.watchers:
            for unit in units:
                watcher.over(unit)
