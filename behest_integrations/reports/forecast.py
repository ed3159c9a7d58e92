"""When a budget runs out, if it is spent on as it was lately: the line of `rules.pace`.

- A window of the calendar: as much per hour as in this window so far.
- A lifetime: as much per hour as in the last 7 days, or since its first call if that is less.
- A rolling window: as much per hour as in its last sixth, while what is older leaves it.

A window that turns over before that does not run out. Of one that has hardly begun nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa

from ..ledger import Ledger
from ..rules.budgets import Budget
from ..rules.pace import HOUR, pace
from .lately import Lately, is_everybodys, of_buckets, of_everybody
from .shown import reading


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
    """What becomes of each bucket that has a limit and is not a stage's, as far as anything can be said.

    Args:
        lines: each with the rows of its buckets.

    Raises:
        StoreError: the store cannot be read.
    """
    wanted = [(rows, line) for rows, line in lines if line.limit is not None and line.stage is None]
    lifetimes = [(rows[0].id, _parsed(line.budget)) for rows, line in wanted if _is_lifetime(rows, line)]
    lately: dict[int, Lately] = {}
    if lifetimes:
        with reading(ledger) as connection:
            everybodys = of_everybody(connection, now_ms)
            others = {id for id, budget in lifetimes if not is_everybodys(budget)}
            lately |= of_buckets(connection, others, now_ms) if others else {}
            lately |= {id: everybodys[b.unit] for id, b in lifetimes if is_everybodys(b)}
    found = {}
    for rows, line in wanted:
        assert line.limit is not None
        if len(rows) > 1:
            found[line] = _rolling(rows, _parsed(line.budget), line.limit, now_ms)
            continue
        rate = Lately(line.spent, line.start) if line.end is not None else lately.get(rows[0].id)
        said = None
        if rate is not None:
            said = pace(
                spent=line.spent,
                limit=line.limit,
                since=rate.since,
                end=line.end,
                now=now_ms,
                lately=rate.spent,
            )
        if line.spent >= line.limit:
            found[line] = Forecast(0, _when(now_ms))
        elif said is not None:
            found[line] = Forecast(said.an_hour, None if said.out_at is None else _when(said.out_at))
        elif rate is None or not rate.spent:
            found[line] = Forecast(0, None)
    return found


_parsed = lru_cache(maxsize=256)(Budget.parse)


def _is_lifetime(rows: Sequence[sa.Row[Any]], line: Filled) -> bool:
    return line.end is None and len(rows) == 1


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
            return Forecast(lately * HOUR // during, _when(at))
    return Forecast(lately * HOUR // during, None)


def _when(ms: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(ms / 1000, timezone.utc)
    except (OverflowError, OSError, ValueError):
        return None  # in more years than a date has
