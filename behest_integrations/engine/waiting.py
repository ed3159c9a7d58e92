"""Calls that wait for room in a busy budget: first come, first served.

Those that wait for one bucket stand in a line. The first is woken by each call that ends there, and
looks by itself now and then, because calls of other processes end too. When it goes ahead, or gives
up, the next is first. Whoever comes while there is a line stands at its end.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections import deque
from collections.abc import Iterable

from ..ledger.book import Claim

Key = tuple[str, str, int]
"""Of a bucket: see `Claim.key`."""

_SOONEST, _LATEST = 0.04, 0.12


def until_next_look() -> float:
    """Seconds until the first in a line looks whether others have made room; at random, so that
    processes take turns."""
    return random.uniform(_SOONEST, _LATEST)


class Waiter:
    """A thread or a task that stands in a line."""

    __slots__ = ("_event", "_future", "_loop", "_woken")

    def __init__(self) -> None:
        self._woken = False
        self._event: threading.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._future: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """From whatever thread: there may be room."""
        self._woken = True  # first: whoever is about to sleep looks at it last
        if self._event is not None:
            self._event.set()
        if self._loop is not None and self._future is not None:
            try:
                self._loop.call_soon_threadsafe(_done, self._future)
            except RuntimeError:
                pass  # its loop has been closed

    def sleep(self, seconds: float) -> None:
        """Until it is woken, or so long."""
        if self._event is None:
            self._event = threading.Event()
        if not self._woken:
            self._event.wait(seconds)
        self._woken = False
        self._event.clear()

    async def asleep(self, seconds: float) -> None:
        """`sleep` for coroutines."""
        loop = asyncio.get_running_loop()
        self._loop, self._future = loop, loop.create_future()
        if not self._woken:
            timer = loop.call_later(seconds, _done, self._future)
            try:
                await self._future
            finally:
                timer.cancel()
        self._woken = False


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Lines:
    """Who waits in this process, by bucket. Safe for threads, forks and finalisers."""

    def __init__(self) -> None:
        self._lines: dict[Key, deque[Waiter]] = {}
        # A finaliser may end a hold, and so wake somebody, while its very thread is in here.
        self._lock = threading.RLock()
        self._pid = os.getpid()

    def __bool__(self) -> bool:
        return bool(self._lines)

    def line_of(self, claims: Iterable[Claim]) -> Key | None:
        """The bucket among these in which somebody waits already."""
        if self._pid != os.getpid():  # those who waited are the parent's
            self._pid, self._lock, self._lines = os.getpid(), threading.RLock(), {}
        return next((claim.key for claim in claims if claim.key in self._lines), None)

    def behind_others(self, claims: Iterable[Claim]) -> Place | None:
        """A place at the end of the line of one of these, if there is one."""
        key = self.line_of(claims)
        return None if key is None else Place(self, key)

    def join(self, key: Key, waiter: Waiter, *, before: bool = False) -> None:
        """Stand at the end of the line, or before all others."""
        with self._lock:
            line = self._lines.setdefault(key, deque())
            if before:
                line.appendleft(waiter)
            else:
                line.append(waiter)

    def leave(self, key: Key, waiter: Waiter) -> None:
        """Go ahead, or give up: the next is first."""
        with self._lock:
            line = self._lines.get(key)
            if line is None or waiter not in line:
                return
            first = line[0] is waiter
            line.remove(waiter)
            if not line:
                del self._lines[key]
            elif first:
                line[0].wake()

    def standing(self, key: Key) -> deque[Waiter]:
        """The line of a bucket, to look at."""
        return self._lines.get(key, _NOBODY)

    def wake(self, claims: Iterable[Claim]) -> None:
        """A call has ended that held room in these."""
        for claim in claims:
            line = self._lines.get(claim.key)
            if line:
                try:
                    line[0].wake()
                except IndexError:
                    pass  # it has just been left


_NOBODY: deque[Waiter] = deque()


class Place:
    """Somebody's place in the line of a bucket.

    Args:
        before: at its head: others may wait for what ends only after this call.
    """

    __slots__ = ("_before", "_lines", "key", "waiter")

    def __init__(self, lines: Lines, key: Key, *, before: bool = False) -> None:
        self.waiter = Waiter()
        self.key = key
        self._lines = lines
        self._before = before
        lines.join(key, self.waiter, before=before)

    @property
    def first(self) -> bool:
        line = self._lines.standing(self.key)
        return not line or line[0] is self.waiter

    @property
    def behind(self) -> int:
        """How many wait behind this one."""
        line = self._lines.standing(self.key)
        return len(line) - 1 if line and line[0] is self.waiter else 0

    def move(self, key: Key) -> None:
        """Wait for another bucket, if it is another."""
        if key != self.key:
            self.leave()
            self.key = key
            self._lines.join(key, self.waiter, before=self._before)

    def leave(self) -> None:
        """Go ahead, or give up."""
        self._lines.leave(self.key, self.waiter)
