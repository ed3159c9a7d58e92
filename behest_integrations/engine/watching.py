"""What no single call shows: budgets that burn too fast, sessions that spend beyond what is usual.

Looked at every now and then, by one process for all; what has been told of a bucket's window, or of a
session, is told no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

from ..ledger.base import Ledger
from ..ledger.book import Claim, Rows, crossing
from ..ledger.outbox import message_id
from ..rules.budgets import Budget, describe_scope, scope_values
from ..rules.errors import ConfigError
from ..rules.pace import pace
from ..rules.units import format_amount, format_usd
from .alert import Alert
from .alerting import AlertSettings
from .outbox import write_alert
from .sinks import Sink

if TYPE_CHECKING:
    import sqlalchemy as sa

_Row = Any
"""A row of a statement: its columns are its attributes."""
_DAY = 86_400_000
_LEAST_SPENT = 10
"""What runs out is told once a window, and so not before a tenth of the limit is spent."""
_LEAST_SESSIONS = 20
"""What is usual is known of so many sessions."""
_NEWEST = 200_000
"""Entries that are looked through for what is usual."""


def watch(ledger: Ledger, settings: AlertSettings, sinks: Sequence[Sink], now: int) -> int:
    """Look, and put what is new in the outbox; how many.

    Args:
        now: milliseconds since 1970, as the meters that write the ledger have it.
    """
    found = [*(burning(ledger, now) if settings.burn_rate else ())]
    if settings.anomaly is not None:
        found += unusual(ledger, settings.anomaly, now)
    if not found:
        return 0

    def write(rows: Rows) -> int:
        return sum(write_alert(rows, alert, sinks) for alert in found)

    return ledger.submit(write)


def burning(ledger: Ledger, now: int) -> list[Alert]:
    """Buckets whose spending so far, if it goes on, uses up their limit before their window ends."""
    from ..ledger import schema
    from ..ledger.in_force import LimitsInForce

    b, g = schema.buckets, schema.budgets
    with ledger.reading().connect() as connection:
        known = {row.shape: row for row in _all(connection, g)}
        limits = LimitsInForce(connection, now)
        open_ones = _all(connection, b, b.c.start >= now - 366 * _DAY)
    alerts = []
    for row in open_ones:
        rule = known.get(row.budget)
        if rule is None or not row.start or not row.spent:
            continue
        try:
            budget = Budget.parse(rule.text)
        except ConfigError:
            continue
        if budget.rolling_ms or not budget.window:
            continue
        limit = limits.of(row.budget, row.scope, budget.amount)
        end = budget.window_at(row.start, rule.zone).end
        if limit is None or end is None or not row.start <= now < end:
            continue
        said = pace(spent=row.spent, limit=limit, since=row.start, end=end, now=now)
        if said is not None and said.out_at is not None and row.spent * _LEAST_SPENT >= limit:
            alerts.append(_burns(row, replace(budget, amount=limit), said.out_at, end, now))
    return alerts


def _all(connection: sa.Connection, table: sa.Table, *only: sa.ColumnElement[bool]) -> Sequence[_Row]:
    return connection.execute(table.select().where(*only)).fetchall()


def _burns(row: _Row, budget: Budget, out: int, end: int, now: int) -> Alert:
    from datetime import datetime, timezone

    scope = describe_scope(budget, row.scope)
    at, until = (datetime.fromtimestamp(ms / 1000, timezone.utc) for ms in (out, end))
    text = (
        f'budget "{budget}"{f" for {scope}" if scope else ""}: {format_amount(row.spent, row.unit)} of '
        f"{format_amount(budget.amount, row.unit)} are spent, and at this rate it is used up at "
        f"{at:%Y-%m-%d %H:%M} UTC, before its window ends at {until:%Y-%m-%d %H:%M} UTC"
    )
    claim = Claim(row.budget, row.scope, row.start, row.unit, budget.amount, str(budget))
    details = {
        "budget": str(budget), "scope": scope, "unit": row.unit, "spent": row.spent, "limit": budget.amount,
        "runs_out": out, "window_ends": end, **scope_values(budget, row.scope),
    }  # fmt: skip
    return Alert(crossing(claim, "burn_rate"), "burn_rate", now, text, details)


def unusual(ledger: Ledger, times: int, now: int) -> Iterator[Alert]:
    """Sessions of the last day that have spent so many times the median of their project's sessions."""
    import sqlalchemy as sa

    from ..ledger import schema

    e = schema.entries
    newest = sa.select(sa.func.coalesce(sa.func.max(e.c.id), 0) - _NEWEST).scalar_subquery()
    statement = (
        sa.select(
            e.c.tenant, e.c.project, e.c.session_id, sa.func.sum(e.c.cost).label("cost"),
            sa.func.max(e.c.at).label("last"),
        )
        .where(e.c.id > newest, e.c.at >= now - 7 * _DAY, e.c.session_id.is_not(None))
        .group_by(e.c.tenant, e.c.project, e.c.session_id)
    )  # fmt: skip
    kinds: dict[tuple[str | None, str | None], list[_Row]] = {}
    with ledger.reading().connect() as connection:
        for row in connection.execute(statement):
            kinds.setdefault((row.tenant, row.project), []).append(row)
    for (tenant, project), rows in kinds.items():
        costs = [row.cost or 0 for row in rows]
        if len(costs) < _LEAST_SESSIONS:
            continue
        usual = int(median(costs))
        for row in rows:
            spent = row.cost or 0
            if usual and spent >= times * usual and row.last >= now - _DAY:
                text = (
                    f"session {row.session_id} has spent {format_usd(spent)}, {spent // usual} times what is "
                    f"usual{f' in the project {project}' if project else ''} ({format_usd(usual)})"
                )
                details = {
                    "session": row.session_id, "project": project, "tenant": tenant, "unit": "usd",
                    "spent": spent, "usual": usual,
                }  # fmt: skip
                yield Alert(
                    message_id("anomaly", tenant, project, row.session_id), "anomaly", now, text, details
                )
