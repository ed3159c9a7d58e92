"""What is told when a bucket has reached a share of its limit: to the log at once, and to whoever
has asked for it from a thread of its own, so that no caller and no event loop waits for that.

`on_threshold` is told by the process in which it happens, once. Who is named in ``[alerts]`` is told by way
of the ledger's outbox, also where that process dies (see `outbox`).
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from ..ledger.base import Ledger
from ..ledger.book import Booked, Rows, ThresholdEvent
from ..ledger.outbox import message_id
from ..rules.budgets import Budget, describe_scope, scope_values
from ..rules.units import format_amount
from .alert import Alert, tell

if TYPE_CHECKING:
    from .alerting import AlertSettings
    from .outbox import Outbox

log = logging.getLogger("behest")

_IDLE = 5.0
"""Seconds after which the thread ends."""
_LONGEST = 10.0
"""Seconds that a flush waits for what is still to be told."""


class Alerts:
    """Tells events.

    Args:
        told: called with each event; it may be a coroutine function.
        settings: who else is told, and of what.
        on_alert: called with each `Alert`, by one process of all that share the ledger.
    """

    def __init__(
        self,
        told: Callable[[ThresholdEvent], object] | None,
        settings: AlertSettings | None = None,
        on_alert: Callable[[Alert], object] | None = None,
    ) -> None:
        self._told = told
        self._settings, self._on_alert = settings, on_alert
        self._box: Outbox | None = None
        self._over_bound = self._unpriced = False
        self._events: queue.SimpleQueue[ThresholdEvent | threading.Event] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def open(self, ledger: Ledger, clock: Callable[[], int]) -> None:
        """Tell by way of this ledger's outbox, if anybody is named who is told so."""
        if self._settings is None and self._on_alert is None:
            return
        from .alerting import AlertSettings  # here: who names nobody needs none of it
        from .outbox import Outbox
        from .sinks import sinks_of
        from .watching import watch

        said = self._settings or AlertSettings()
        sinks, look = sinks_of(said, self._on_alert), None
        self._over_bound, self._unpriced = said.over_bound, said.unpriced
        if said.burn_rate or said.anomaly is not None:
            look = (said.every, lambda: watch(ledger, said, sinks, clock()))
        self._box = Outbox(ledger, sinks, retry=said.retry, look=look)

    @property
    def outbox(self) -> Outbox | None:
        """Where alerts wait to be told; None: nobody is named."""
        return self._box

    def write(
        self,
        rows: Rows,
        now: int,
        events: Sequence[ThresholdEvent],
        booked: Booked | None = None,
        model: str = "",
    ) -> None:
        """Put what has come true in the outbox, in the transaction in which it does.

        Args:
            booked: what a call has ended with, of the `model`.
        """
        if self._box is None:
            return
        alerts = []
        for event in events:
            told = _described(event)
            alerts.append(Alert(event.id, "threshold", now, _sentence(told), vars(told)))
        if booked is not None and booked.over and self._over_bound:
            text = f"{model} was billed beyond the worst case of a request: check its price"
            alerts.append(_of_model("over_bound", model, now, text, {"units": booked.over}))
        if booked is not None and booked.unpriced and self._unpriced:
            text = f"a call of {model} has no price, or not all of it: write it in behest.toml, [prices]"
            alerts.append(_of_model("unpriced", model, now, text, {}))
        self._box.write(rows, alerts)

    def wake(self) -> None:
        """Tell what stands in the outbox, also what other processes have left there."""
        if self._box is not None:
            self._box.wake()

    def close(self) -> None:
        """The ledger is let go of."""
        if self._box is not None:
            self._box.close()

    def tell(self, events: Iterable[ThresholdEvent]) -> None:
        """Log them, and hand them to the thread that tells them.

        A call that takes a bucket past several of its thresholds at once is one line of the log, and
        an event for each.
        """
        self.wake()
        told = [_described(raw) for raw in events]
        for event in {(event.budget, event.scope): event for event in told}.values():  # the highest of each
            log.warning("%s", _sentence(event))
        for event in told:
            if self._told is not None:
                self._events.put(event)
                self._start()

    def flush(self) -> None:
        """Return when all events so far have been told, or after some seconds."""
        if self._box is not None:
            self._box.flush(_LONGEST)
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
                tell(self._told, event)
            except Exception:
                log.exception("on_threshold failed")


def _described(raw: ThresholdEvent) -> ThresholdEvent:
    """An event as it is told: whom it is for in words, and in parts."""
    budget = Budget.parse(raw.budget)
    who: dict[str, Any] = {**scope_values(budget, raw.scope)}
    return replace(raw, scope=describe_scope(budget, raw.scope), **who)


def _sentence(event: ThresholdEvent) -> str:
    whose = f" for {event.scope}" if event.scope else ""
    spent, limit = format_amount(event.spent, event.unit), format_amount(event.limit, event.unit)
    said = f'budget "{event.budget}"{whose} has reached {event.percent} %: {spent} of {limit}'
    over = event.spent - event.limit
    if over > 0 and Budget.parse(event.budget).soft:
        said += f", {format_amount(over, event.unit)} over: it warns only, and calls go on"
    return said


def _of_model(
    kind: Literal["over_bound", "unpriced"], model: str, now: int, text: str, more: dict[str, Any]
) -> Alert:
    """Told once a day and model."""
    id = message_id(kind, model, now // 86_400_000)
    return Alert(id, kind, now, text, {"model": model, **more})
