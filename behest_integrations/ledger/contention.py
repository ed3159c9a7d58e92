"""What other processes write as often as this one: measured at each transaction, guessed by nobody.

Of a server it is single buckets, whose rows are locked; of a file it is all of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Key = tuple[str, str, int]
_MOST = 20_000
_VISITS, _WITHIN = 8, 4.0
"""So many transactions of this process within so many seconds, from which on a bucket is busy. They are
fewer the longer each waits for others; how many calls are in them is for whoever takes slices to see."""
_STAYS = 10.0
"""Seconds for which it is taken to be so."""


class Contention:
    """Told of each bucket that a transaction has locked, and of what it left there.

    A bucket is contended if this process locks it often and, half of the time, finds that somebody
    else has changed it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left: dict[Key, tuple[int, int]] = {}
        self._visits: dict[Key, list[float]] = {}
        self._until: dict[Key, float] = {}

    def found(self, key: Key, spent: int, held: int) -> None:
        """A transaction has locked it, and these are its sums."""
        left = self._left.get(key)
        if left is None:
            if len(self._left) >= _MOST:
                self._left.clear()
                self._visits.clear()
            self._left[key] = (spent, held)
            return
        now = self._clock()
        visits = self._visits.setdefault(key, [now, 0, 0])
        if now - visits[0] > _WITHIN:
            visits[:] = [now, 0, 0]
        visits[1] += 1
        visits[2] += left != (spent, held)
        if visits[1] >= _VISITS:
            if visits[2] * 2 >= visits[1]:
                self._until[key] = now + _STAYS
            visits[:] = [now, 0, 0]

    def left(self, key: Key, spent: int, held: int) -> None:
        """It has been written with these."""
        if key in self._left:
            self._left[key] = (spent, held)

    def __contains__(self, key: object) -> bool:
        assert isinstance(key, tuple)
        until = self._until.get(key)
        if until is None:
            return False
        if until < self._clock():
            self._until.pop(key, None)
            return False
        return True


class SharedFile:
    """All buckets of a file that takes one writer at a time. They are contended if others write it often."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = self._until = 0.0
        self._met = 0

    def met(self) -> None:
        """A transaction has found that others have written since this process's last one."""
        now = self._clock()
        if now - self._since > _WITHIN:
            self._since, self._met = now, 0
        self._met += 1
        if self._met >= _VISITS:
            self._until = now + _STAYS
            self._since, self._met = now, 0

    def __contains__(self, key: object) -> bool:
        return self._clock() < self._until
