"""Spending over time by model, in steps from a second to a month: what a chart is drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from operator import add
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from ..ledger import Ledger, schema
from .lines import QUARTER, Clock, Wanted, lines, narrowed, totals
from .shown import Asked, reading
from .spending import Line, refusals_asked

_e, _r = schema.entries, schema.refusals

_HOUR = 3600
DAY = 86_400
MONTH = 30 * DAY
STEPS = (1, 5, 15, 60, 300, 900, 3600, 3 * 3600, 6 * 3600, DAY, 7 * DAY, MONTH)
"""Seconds of a step. From an hour on they begin where the clock of the time zone says; `MONTH` is a
month of the calendar, and a week begins on Monday."""


@dataclass
class Detail(Line):
    """A line with all that a chart tells apart.

    Attributes:
        over_bound: calls that cost more than their worst case.
        assumed_calls, estimated_calls: how many calls `assumed` and `estimated` are the cost of.
    """

    cache_write_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    over_bound: int = 0
    assumed_calls: int = 0
    estimated_calls: int = 0


@dataclass(frozen=True)
class Series:
    """Spending by step and model.

    Attributes:
        step: in seconds, one of `STEPS`.
        starts: when each step begins, in ms since 1970; also of steps in which nothing was spent.
        cells: by model, then by start.
        models: all of each model, the dearest first. total: all of it.
    """

    step: int
    starts: tuple[int, ...]
    cells: Mapping[str, Mapping[int, Detail]]
    models: Mapping[str, Detail]
    total: Detail


def step_for(seconds: float, *, most: int = 100) -> int:
    """The shortest of `STEPS` that divides so many seconds into at most `most`."""
    return next((step for step in STEPS if seconds <= step * most), STEPS[-1])


def series(ledger: Ledger, asked: Asked, step: int) -> Series:
    """Spending by model in steps of `step` seconds, from `asked.since` until `asked.until` or now.

    Raises:
        StoreError: the store cannot be read.
    """
    zone = ZoneInfo(asked.zone)
    cells: dict[str, dict[int, Detail]] = {}
    models: dict[str, Detail] = {}
    total = Detail(())
    with reading(ledger) as connection:
        # What begins with an hour or a midnight is summed by shorter steps here, for only Python knows
        # the zone.
        clock = Clock(connection, zone, asked) if step >= _HOUR else None
        unit = clock.step(step * 1000) if clock else min(step * 1000, QUARTER)
        source = lines(connection, Wanted(("model",), step=unit), asked)
        sums = _detailed(source)
        begin = clock.floor(source.c.at, min(step, DAY) * 1000) if clock else source.c.at
        keys = (begin.label("t"), source.c.model)
        found: dict[tuple[int, str], list[int]] = {}
        for at, model, *amounts in connection.execute(sa.select(*keys, *sums.values()).group_by(*keys)):
            start = _start(at, step, zone)
            before = found.get((start, model))
            found[start, model] = amounts if before is None else [*map(add, before, amounts)]
        for (start, model), amounts in found.items():
            # PostgreSQL's sums of whole numbers come as decimals.
            detail = Detail((model,), **dict(zip(sums, map(int, amounts), strict=True)))
            cells.setdefault(model, {})[start] = detail
            models.setdefault(model, Detail((model,))).add(detail)
            total.add(detail)
        if not asked.tags:
            refused = sa.select(sa.func.coalesce(sa.func.sum(_r.c.count), 0))
            total.refused = int(connection.execute(refusals_asked(refused, asked)).scalar_one())
    ordered = sorted(models.values(), key=lambda line: (-line.cost, -line.calls, line.key[0] or ""))
    # Each line's key is the model that it is of.
    by_model = {str(line.key[0]): line for line in ordered}
    seen = [start for of_model in cells.values() for start in of_model]
    first = asked.since.timestamp() * 1000 if asked.since else min(seen, default=asked.at.timestamp() * 1000)
    last = (asked.until or asked.at).timestamp() * 1000
    return Series(step, _starts(int(first), int(last), step, zone), cells, by_model, total)


def _detailed(source: sa.FromClause) -> dict[str, sa.ColumnElement[int]]:
    more = ("cache_write_tokens", "input_audio_tokens", "output_audio_tokens", "over_bound")
    sums = totals(source, more)
    for status in ("assumed", "estimated"):
        of_status = sa.case((source.c.status == status, source.c.lines), else_=0)
        sums[f"{status}_calls"] = sa.func.coalesce(sa.func.sum(of_status), 0)
    return sums


@lru_cache(maxsize=100_000)
def _start(ms: int, step: int, zone: ZoneInfo) -> int:
    """When the step that `ms` lies in begins."""
    if step < 3600:
        return ms - ms % (step * 1000)
    local = datetime.fromtimestamp(ms / 1000, zone).replace(minute=0, second=0, microsecond=0)
    if step < DAY:
        local = local.replace(hour=local.hour - local.hour % (step // 3600))
    else:
        local = local.replace(hour=0, fold=0)
        if step == 7 * DAY:
            local -= timedelta(days=local.weekday())
        elif step >= MONTH:
            local = local.replace(day=1)
    return int(local.timestamp() * 1000)


def _starts(first: int, last: int, step: int, zone: ZoneInfo) -> tuple[int, ...]:
    found = [_start(first, step, zone)]
    while len(found) < 2000:
        # A day may have 25 hours, and a month 31 days; two steps on are never needed.
        ahead = found[-1] + step * 1000
        if step >= DAY:
            ahead += (6 * 3600 + (2 * DAY if step >= MONTH else 0)) * 1000
        after = _start(ahead, step, zone)
        if after <= found[-1]:  # an hour that the clock repeats
            after = ahead
        if after >= last:
            break
        found.append(after)
    return tuple(found)


def known_since(ledger: Ledger, asked: Asked) -> tuple[datetime, datetime] | None:
    """When the first and the last entry that is asked for were booked; None if there is none."""
    by_id = narrowed(sa.select(_e.c.at).limit(1), asked)
    with reading(ledger) as connection:
        first = connection.execute(by_id.order_by(_e.c.id)).scalar()
        last = connection.execute(by_id.order_by(_e.c.id.desc())).scalar()
    if first is None or last is None:
        return None
    return (
        datetime.fromtimestamp(first / 1000, timezone.utc),
        datetime.fromtimestamp(last / 1000, timezone.utc),
    )
