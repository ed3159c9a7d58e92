"""What is to be written when a call is over, and what the store could not take: kept, tried again."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

from ..ledger.book import Booked, Rows, cancel
from ..ledger.operations import Operation
from ..rules.errors import StoreError
from .observing import StoreObserver
from .steps import Steps

log = logging.getLogger("behest")

Writing = Callable[[Rows], Booked]


def dropping(call_id: str) -> Writing:
    """Drop a hold whose call never left."""
    return Operation(lambda rows: Booked(cancel(rows, call_id=call_id)), takes=(call_id,))


class Unwritten:
    """Entries that wait for the store to come back.

    Args:
        after: told what each write did, once it is done.
    """

    def __init__(self, after: Callable[[Booked], None]) -> None:
        self._waiting: deque[Writing] = deque()
        self._retry_at = 0.0
        self._after = after
        self.observer: StoreObserver | None = None
        """Told how long it takes to write one."""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, work: Writing) -> None:
        """Write it with the next chance."""
        self._waiting.append(work)

    def keep(self, work: Writing, error: BaseException) -> None:
        """The provider has answered; the caller gets the answer, and this is written later."""
        self._waiting.append(work)
        self._retry_at = time.monotonic() + 1.0
        log.error("an entry could not be written and is kept to be retried: %s", error)

    def hurry(self) -> None:
        """Try again now, however recently it failed."""
        self._retry_at = 0.0

    def writing(self, work: Writing) -> Steps[None]:
        """Write `work`, or keep it."""
        observer = self.observer
        began = time.monotonic() if observer is not None else 0.0
        try:
            booked = yield work
        except GeneratorExit:
            # Cancelled meanwhile: it is being written, or is written again, which is the same.
            self._waiting.append(work)
            raise
        except StoreError as error:
            self.keep(work, error)
            return
        finally:
            if observer is not None:
                observer.asked("settle", time.monotonic() - began)
        self._after(booked)

    def retrying(self) -> Steps[None]:
        """Write what waits, in its order, until the store fails again."""
        if time.monotonic() < self._retry_at:
            return
        while self._waiting:
            try:
                work = self._waiting.popleft()
            except IndexError:
                return
            try:
                booked = yield work
            except GeneratorExit:
                self._waiting.appendleft(work)
                raise
            except StoreError as error:
                self._waiting.appendleft(work)
                self._retry_at = time.monotonic() + 1.0
                log.error("%d entries wait to be written: %s", len(self._waiting), error)
                return
            self._after(booked)
