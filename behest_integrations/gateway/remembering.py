"""What is asked for with every request, and remembered for a moment."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")

SECONDS = 5.0
"""How long an answer of the store is believed, if it does not say before that something has changed."""
MOST = 10_000


class Remembered(Generic[T]):
    """A few answers, each for a while.

    Args:
        most: how many; the oldest are forgotten first.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._items: OrderedDict[str, tuple[float, T]] = OrderedDict()
        self.cleared = 0
        """How often all was forgotten: an answer that was asked for before that is not to be put in."""

    def get(self, name: str, now: float) -> T | None:
        item = self._items.get(name)
        return item[1] if item is not None and item[0] > now else None

    def put(self, name: str, value: T, until: float) -> None:
        self._items[name] = (until, value)
        self._items.move_to_end(name)
        while len(self._items) > self._most:
            self._items.popitem(last=False)

    def clear(self) -> None:
        self._items.clear()
        self.cleared += 1
