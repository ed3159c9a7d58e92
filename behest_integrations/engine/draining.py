"""Streams that are read on though whoever asked for them has left: in the background, and bounded.

Their holds stand until they are over, so that nothing gets past a limit meanwhile. A thread waits
for what is handed over, because a stream may be left in the garbage collector, where none can be started.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
import time
import weakref
from collections import deque
from typing import Protocol

log = logging.getLogger("behest")

MOST_SECONDS = 120.0
"""For which one stream is read on."""
MOST_BYTES = 16 * 1024 * 1024
"""Of one stream, that are read on."""
MOST_AT_ONCE = 64
"""Streams that are read on side by side; what is left beyond that is closed."""
LONGEST_WAIT = 30.0
"""Seconds that a flush waits for them."""
_LOOK = 0.005


class Reading(Protocol):
    """A stream that can be read on."""

    def read(self) -> None:
        """Read it to its end, blocking, and end its hold."""

    async def aread(self) -> None:
        """`read`, on the event loop that it belongs to."""

    def cut(self) -> None:
        """End its hold if it has not ended, without waiting; and stop reading."""


class Drains:
    """What is being read on, for one engine. Safe for threads, forks and finalisers."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._slots = deque(range(MOST_AT_ONCE))
        # Each with its loop; None: it is read in a thread.
        self._open: dict[Reading, asyncio.AbstractEventLoop | None] = {}
        self._handed: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def expect(self) -> None:
        """A stream has begun that may be left: what will read it on is made ready."""
        if self._pid != os.getpid():  # the parent's are not here
            self._begin()
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(
                    target=_dispatch, args=(self._handed,), name="behest-drains", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is ending
                    return
                self._thread = thread
                weakref.finalize(self, self._handed.put, None).atexit = False

    def take(self, reading: Reading, loop: asyncio.AbstractEventLoop | None = None) -> bool:
        """Have it read on from now on; whether it is.

        Args:
            loop: that it belongs to; None: it is read in a thread of its own.
        """
        if self._pid != os.getpid() or (loop is None and self._thread is None):
            return False
        if loop is not None and loop.is_closed():
            return False
        try:
            self._slots.pop()
        except IndexError:
            log.warning("%d streams are being read on: one more that was left is closed", MOST_AT_ONCE)
            return False
        self._open[reading] = loop
        if loop is None:
            self._handed.put(_Job(self, reading))
            return True
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is loop:
            self._read_on(loop, reading)
        else:
            try:
                loop.call_soon_threadsafe(self._read_on, loop, reading)
            except RuntimeError:  # it has just been closed
                self._over(reading)
                return False
        return True

    def _read_on(self, loop: asyncio.AbstractEventLoop, reading: Reading) -> None:
        task = loop.create_task(_bounded(reading))

        def done(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                log.debug("a stream was not read to its end: %s", type(error).__name__)
            reading.cut()
            self._over(reading)

        # Also called where the loop ends before the task has begun.
        task.add_done_callback(done)

    def _over(self, reading: Reading) -> None:
        if self._open.pop(reading, _NONE) is not _NONE:
            self._slots.append(0)

    def wait(self, seconds: float = LONGEST_WAIT) -> None:
        """Return when all that is being read is over, or after so long.

        On an event loop's own thread, what that loop reads is not waited for.
        """
        if not self._open or self._pid != os.getpid():
            return
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not any(
                loop is None or (loop is not here and loop.is_running()) for loop in list(self._open.values())
            ):
                return
            time.sleep(_LOOK)

    def give_up(self) -> None:
        """End what is still being read, as it stands; and read nothing on any more."""
        self._slots.clear()
        for reading in list(self._open):
            reading.cut()


_NONE = object()


async def _bounded(reading: Reading) -> None:
    await asyncio.wait_for(reading.aread(), MOST_SECONDS)


class _Job:
    """A stream to be read on in a thread."""

    def __init__(self, drains: Drains, reading: Reading) -> None:
        self._drains = drains
        self.reading = reading
        self.deadline = time.monotonic() + MOST_SECONDS
        self.over = False

    def run(self) -> None:
        try:
            self.reading.read()
        except Exception as error:
            log.debug("a stream was not read to its end: %s", type(error).__name__)
        finally:
            self.reading.cut()
            self.over = True
            self._drains._over(self.reading)


def _dispatch(handed: queue.SimpleQueue[_Job | None]) -> None:
    """Start a thread for each that is handed over, and cut what takes too long."""
    under_way: deque[_Job] = deque()
    while True:
        while under_way and under_way[0].over:
            under_way.popleft()
        left = under_way[0].deadline - time.monotonic() if under_way else None
        try:
            job = handed.get(timeout=None if left is None else max(0.0, left))
        except queue.Empty:
            under_way.popleft().reading.cut()
            continue
        if job is None:
            return
        under_way.append(job)
        try:
            threading.Thread(target=job.run, name="behest-drain", daemon=True).start()
        except RuntimeError:  # no more threads
            job.run()
        del job
