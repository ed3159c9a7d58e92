"""Tells what stands in the ledger's outbox, from a thread of its own, until it has been told.

A message is written in the transaction in which it comes true, so that no death of a process loses it.
Whoever takes it puts off its time first, and so no other process takes it meanwhile. A receiver who hangs
may get it again, under the same id.
"""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from ..ledger.base import Ledger
from ..ledger.book import Rows
from ..ledger.outbox import NOBODY, Message
from ..rules.errors import BehestError
from .alert import Alert
from .sinks import Sink

log = logging.getLogger("behest")

_MOST_TRIES = 15
_LONGEST_PAUSE = 3600.0
_IDLE = 5.0
_LOOK = 1000


def wall_ms() -> int:
    """Milliseconds since 1970, of the clock on the wall: receivers know no other."""
    return time.time_ns() // 1_000_000


def write_alert(rows: Rows, alert: Alert, sinks: Iterable[Sink]) -> bool:
    """Put an alert in the outbox, for each who wants it; whether it is new to anybody."""
    body = json.dumps(alert.as_dict(), ensure_ascii=False)
    at = wall_ms()
    fresh = [rows.add_message(Message(alert.id, s.name, at, body, at)) for s in sinks if s.wants(alert.kind)]
    return any(fresh)


class Outbox:
    """Delivers messages to those sinks that this process has.

    Args:
        retry: seconds before what failed is tried again; twice as long each time.
        look: what is to be looked at every now and then, and after how many seconds again; it
            returns whether it wrote anything.
    """

    def __init__(
        self,
        ledger: Ledger,
        sinks: Sequence[Sink],
        *,
        retry: float = 2.0,
        look: tuple[float, Callable[[], object]] | None = None,
    ) -> None:
        self._ledger = ledger
        self.sinks = {sink.name: sink for sink in sinks}
        self._retry = retry
        # For so long a message is its taker's: longer than a sink takes to connect and to answer.
        self._lease = int(2000 * max((sink.timeout for sink in sinks), default=0.0)) + 1000
        self._look = look
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._one = threading.RLock()
        """Held while a message is told: whoever flushes waits for it."""
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._closed = False

    def wake(self) -> None:
        """There may be something to be told."""
        if self._pid != os.getpid():  # the parent's thread, and what it held, are not here
            self._pid, self._thread = os.getpid(), None
            self._lock, self._one, self._wake = threading.Lock(), threading.RLock(), threading.Event()
        self._wake.set()
        with self._lock:
            if self._closed or (self._thread is not None and self._thread.is_alive()):
                return
            self._thread = threading.Thread(
                target=_work, args=(weakref.ref(self), self._wake), name="behest-outbox", daemon=True
            )
            try:
                self._thread.start()
            except RuntimeError:  # the interpreter is ending: the next process tells it
                self._thread = None

    def close(self) -> None:
        """Stop. What is left is told by the next process."""
        with self._lock:
            self._closed = True
        self._wake.set()

    def pause(self) -> float | None:
        """Seconds until something is due; None: nothing is to be told, or looked at."""
        due = [m.due for m in self._mine(self._ledger.submit(lambda rows: rows.open_messages(_LOOK)))]
        left = [max(0.0, (min(due) - wall_ms()) / 1000)] if due else []
        if self._look is not None:
            left.append(self._look[0])
        return min(left, default=None)

    def _mine(self, messages: Iterable[Message]) -> list[Message]:
        return [m for m in messages if m.sink in self.sinks]

    def write(self, rows: Rows, alerts: Iterable[Alert]) -> None:
        """Put alerts in the outbox, in somebody's transaction."""
        for alert in alerts:
            write_alert(rows, alert, self.sinks.values())

    def flush(self, seconds: float) -> None:
        """Tell what is due, as far as it takes no longer than that. The rest stays in the ledger."""
        try:
            self.deliver(until=time.monotonic() + seconds)
        except BehestError as error:
            log.warning("alerts wait for the ledger: %s", error)

    def deliver(self, *, until: float = float("inf")) -> int:
        """Tell everything that is due; how many were told.

        Args:
            until: the monotonic clock's time after which none is begun.
        """
        told = 0
        while (left := until - time.monotonic()) > 0:
            if not self._one.acquire(timeout=min(left, threading.TIMEOUT_MAX)):
                break
            try:
                taken = self._ledger.submit(self._take)
                if taken is None:
                    break
                told += self._send(taken)
            finally:
                self._one.release()
        return told

    def _take(self, rows: Rows) -> Message | None:
        now = wall_ms()
        due = next((m for m in self._mine(rows.open_messages(_LOOK)) if m.due <= now), None)
        if due is None:
            return None
        taken = replace(due, due=now + self._lease, tries=due.tries + 1)
        rows.set_message(taken)
        return taken

    def _send(self, message: Message) -> bool:
        try:
            self.sinks[message.sink].send(alert_in(message.body))
        except Exception as error:
            after = self._failed(message, f"{type(error).__name__}: {error}"[:300])
        else:
            after = replace(message, done=wall_ms(), error="")
        self._ledger.submit(lambda rows: rows.set_message(after))
        return after.done is not None and not after.error

    def _failed(self, message: Message, error: str) -> Message:
        if message.tries >= _MOST_TRIES:
            log.error("an alert could not be told to %s and is given up: %s", message.sink, error)
            return replace(message, done=wall_ms(), error=error)
        pause = min(self._retry * 2 ** (message.tries - 1), _LONGEST_PAUSE) * random.uniform(0.8, 1.2)
        log.warning(
            "an alert could not be told to %s and is tried again in %.0f s: %s", message.sink, pause, error
        )
        return replace(message, due=wall_ms() + int(pause * 1000), error=error)

    def look(self) -> None:
        """Look at what is looked at every now and then, if no other process has."""
        if self._look is None:
            return
        every, work = self._look
        if self._ledger.submit(lambda rows: _my_turn(rows, int(every * 1000))):
            work()


def _my_turn(rows: Rows, every: int) -> bool:
    """Whether nobody has looked for so long; then it is this process's turn."""
    now = wall_ms()
    last = next((m for m in rows.open_messages(_LOOK) if m.sink == NOBODY), None)
    if last is not None and last.due > now:
        return False
    rows.set_message(Message("look", NOBODY, now, "{}", now + every))
    return True


def alert_in(body: str) -> Alert:
    """The alert that a message is about."""
    said: dict[str, Any] = json.loads(body)
    return Alert(**said)


def _work(ref: weakref.ref[Outbox], wake: threading.Event) -> None:
    """The thread. It ends when nothing is left, or nobody has the outbox any more."""
    while True:
        wake.clear()
        box = ref()
        if box is None or box._closed:
            return
        try:
            box.look()
            box.deliver()
            pause = box.pause()
        except BehestError as error:
            log.warning("alerts wait for the ledger: %s", error)
            pause = _IDLE
        except Exception:
            log.exception("telling alerts failed")
            pause = _IDLE
        with box._lock:
            if box._closed or (pause is None and not wake.is_set()):
                box._thread = None
                return
        del box
        wake.wait(pause)
