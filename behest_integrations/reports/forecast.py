"""When a budget runs out, if it is spent on as it was lately. A straight line, which everybody can check.

- A window of the calendar: as much per hour as in this window so far.
- A lifetime: as much per hour as in the last 7 days, or since its first call if that is less.
- A rolling window: as much per hour as in its last sixth, while what is older leaves it.

A window that turns over before that does not run out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa

from ..ledger import Ledger, schema
from ..rules.budgets import Budget
from .shown import reading

_HOUR = 3_600_000
_LATELY = 7 * 24 * _HOUR
_LEAST = 60_000
"""A rate over less than a minute says nothing."""


class Filled(Protocol):
    """A bucket, as `budgets.BucketLine` tells it."""

    @property
    def budget(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int | None: ...
    @property
    def limit(self) -> int | None: ...
    @property
    def spent(self) -> int: ...
    @property
    def stage(self) -> str | None: ...


L = TypeVar("L", bound=Filled)


@dataclass(frozen=True)
class Forecast:
    """What becomes of a bucket.

    Attributes:
        an_hour: what is spent an hour, in the bucket's unit.
        at: when nothing is left; None: not before it resets, or not at all.
    """

    an_hour: int
    at: datetime | None

    def say(self, now: datetime) -> str:
        """For a cell of a table."""
        if self.at is None:
            return "no"
        if self.at <= now:
            return "now"
        hours = (self.at - now).total_seconds() / 3600
        if hours < 1:
            return f"in {max(1, round(hours * 60))}m"
        if hours < 24:
            return f"in {hours:.0f}h"
        return f"{self.at:%b %d}" if hours < 24 * 300 else f"{self.at:%Y-%m}"


def forecasts(
    ledger: Ledger, lines: Sequence[tuple[Sequence[sa.Row[Any]], L]], now_ms: int
) -> Mapping[L, Forecast]:
    """What becomes of each bucket that has a limit and is not a stage's.

    Args:
        lines: each with the rows of its buckets.

    Raises:
        StoreError: the store cannot be read.
    """
    wanted = [(rows, line) for rows, line in lines if line.limit is not None and line.stage is None]
    lifetimes = {rows[0].id for rows, line in wanted if line.end is None and len(rows) == 1}
    lately = _lately(ledger, lifetimes, now_ms - _LATELY) if lifetimes else {}
    found = {}
    for rows, line in wanted:
        assert line.limit is not None
        if len(rows) > 1:
            found[line] = _rolling(rows, Budget.parse(line.budget), line.limit, now_ms)
        elif line.end is not None:
            found[line] = _straight(line.spent, now_ms - line.start, line.spent, line.limit, now_ms, line.end)
        else:
            spent, first = lately.get(rows[0].id, (0, now_ms))
            found[line] = _straight(spent, now_ms - first, line.spent, line.limit, now_ms, None)
    return found


def _straight(spent: int, during: int, so_far: int, limit: int, now: int, end: int | None) -> Forecast:
    during = max(during, _LEAST)
    an_hour = spent * _HOUR // during
    if so_far >= limit:
        return Forecast(an_hour, _when(now))
    if not spent:
        return Forecast(0, None)
    at = now + (limit - so_far) * during // spent
    return Forecast(an_hour, None if end is not None and at >= end else _when(at))


def _rolling(rows: Iterable[sa.Row[Any]], budget: Budget, limit: int, now: int) -> Forecast:
    """Slot by slot: what leaves the window, and what comes into it."""
    length, slot = budget.rolling_ms, budget.slot_ms
    there = {row.start: row.spent for row in rows if row.start}
    during = length // 6
    lately = sum(spent for start, spent in there.items() if start >= now - during)
    for step in range(length // slot + 2):
        at = now + step * slot
        left = sum(spent for start, spent in there.items() if start > at - length - slot)
        if left + lately * step * slot // during >= limit:
            return Forecast(lately * _HOUR // during, _when(at))
    return Forecast(lately * _HOUR // during, None)


def _when(ms: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(ms / 1000, timezone.utc)
    except (OverflowError, OSError, ValueError):
        return None  # in more years than a date has


def _lately(ledger: Ledger, ids: set[int], since: int) -> dict[int, tuple[int, int]]:
    """By bucket: what was booked since, and when the first of that was."""
    e = schema.entries
    found: dict[int, tuple[int, int]] = {}
    with reading(ledger) as connection:
        rows = connection.execute(sa.select(e.c.at, e.c.bookings).where(e.c.at >= since).order_by(e.c.id))
        for at, bookings in rows:
            parts: list[Any] = json.loads(bookings) if isinstance(bookings, str) else bookings
            for id, _unit, amount in parts:
                if id in ids:
                    spent, first = found.get(id, (0, at))
                    found[id] = (spent + amount, min(first, at))
    return found
