"""What was spent lately of budgets that have no window: their rate is that of the last 7 days."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

from ..ledger import schema
from ..rules.budgets import Budget
from ..rules.pace import HOUR
from .lines import first_id

LATELY = 7 * 24 * HOUR
_e = schema.entries
_OF_UNIT: Mapping[str, sa.ColumnElement[Any]] = {
    "usd": _e.c.cost,
    "tokens": _e.c.input_tokens + _e.c.output_tokens,
    "input_tokens": _e.c.input_tokens,
    "output_tokens": _e.c.output_tokens,
    "calls": _e.c.calls,
}
"""What an entry has of a unit: what was booked of it."""


class Lately(NamedTuple):
    """So much since then: in the last 7 days, or since the first of it if that is less."""

    spent: int
    since: int


def is_everybodys(budget: Budget) -> bool:
    """Whether all calls count in it, so that the sum of entries is its own."""
    return not budget.per and not budget.filters and budget.unit in _OF_UNIT


def _within(connection: sa.Connection, now: int) -> tuple[sa.ColumnElement[bool], ...]:
    return _e.c.at >= now - LATELY, _e.c.id >= first_id(connection, now - LATELY)


def of_everybody(connection: sa.Connection, now: int) -> Mapping[str, Lately]:
    """What all calls came to, by unit."""
    sums = [sa.func.coalesce(sa.func.sum(column), 0).label(unit) for unit, column in _OF_UNIT.items()]
    statement = sa.select(sa.func.min(_e.c.at).label("first"), *sums).where(*_within(connection, now))
    row = connection.execute(statement).one()
    since = row.first if row.first is not None else now
    return {unit: Lately(int(getattr(row, unit)), since) for unit in _OF_UNIT}


def of_buckets(connection: sa.Connection, ids: set[int], now: int) -> Mapping[int, Lately]:
    """What was booked, by bucket. It looks at each entry."""
    found: dict[int, Lately] = {}
    statement = sa.select(_e.c.at, _e.c.bookings).where(*_within(connection, now)).order_by(_e.c.id)
    for at, bookings in connection.execute(statement):
        parts: list[Any] = json.loads(bookings) if isinstance(bookings, str) else bookings
        for id, _unit, amount in parts:
            if id in ids:
                spent, first = found.get(id, Lately(0, at))
                found[id] = Lately(spent + amount, min(first, at))
    return found
