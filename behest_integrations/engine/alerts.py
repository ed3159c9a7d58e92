"""What is told when a bucket has reached a share of its limit: to the log at once, and to whoever
has asked for it from a thread of its own, so that no caller and no event loop waits for that."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import queue
import threading
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from typing import Any, cast

from ..ledger.book import ThresholdEvent
from ..rules.budgets import Budget, describe_scope, scope_values
from ..rules.units import format_amount

log = logging.getLogger("behest")

_IDLE = 5.0
"""Seconds after which the thread ends."""
_LONGEST = 10.0
"""Seconds that a flush waits for what is still to be told."""


class Alerts:
    """Tells events.

    Args:
        told: called with each event; it may be a coroutine function.
    """

    def __init__(self, told: Callable[[ThresholdEvent], object] | None) -> None:
        self._told = told
        self._events: queue.SimpleQueue[ThresholdEvent | threading.Event] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def tell(self, events: Iterable[ThresholdEvent]) -> None:
        """Log them, and hand them to the thread that tells them.

        A call that takes a bucket past several of its thresholds at once is one line of the log, and
        an event for each.
        """
        told = []
        for raw in events:
            budget = Budget.parse(raw.budget)
            who: dict[str, Any] = {**scope_values(budget, raw.scope)}
            told.append(replace(raw, scope=describe_scope(budget, raw.scope), **who))
        for event in {(event.budget, event.scope): event for event in told}.values():  # the highest of each
            log.warning(
                'budget "%s"%s has reached %d %%: %s of %s',
                event.budget,
                f" for {event.scope}" if event.scope else "",
                event.percent,
                format_amount(event.spent, event.unit),
                format_amount(event.limit, event.unit),
            )
        for event in told:
            if self._told is not None:
                self._events.put(event)
                self._start()

    def flush(self) -> None:
        """Return when all events so far have been told, or after some seconds."""
        thread = self._thread
        if thread is None or not thread.is_alive() or thread is threading.current_thread():
            return
        done = threading.Event()
        self._events.put(done)
        if not done.wait(_LONGEST):
            log.error("on_threshold has not returned for %g s: the program goes on without it", _LONGEST)

    def _start(self) -> None:
        with self._lock:
            if self._pid != os.getpid():  # the parent's thread is not here
                self._pid, self._thread = os.getpid(), None
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="behest-alerts", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:  # the interpreter is ending
                    self._thread = None

    def _run(self) -> None:
        while True:
            try:
                event = self._events.get(timeout=_IDLE)
            except queue.Empty:
                with self._lock:
                    if self._events.empty():
                        self._thread = None
                        return
                continue
            if isinstance(event, threading.Event):
                event.set()
                continue
            try:
                assert self._told is not None
                answer = self._told(event)
                if inspect.isawaitable(answer):
                    asyncio.run(_awaited(answer))
            except Exception:
                log.exception("on_threshold failed")


async def _awaited(answer: Any) -> None:
    await cast("Coroutine[Any, Any, object]", answer)
