"""Sums over the ledger, by who and what. Reversals carry minus signs, so sums are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from ..ledger import Ledger, schema
from ..rules.errors import ConfigError
from ..rules.units import to_usd

_e = schema.entries
_r = schema.refusals

GROUPS = (
    "session", "user", "project", "tenant", "model", "operation", "stage", "hour", "day", "month", "tag:NAME"
)  # fmt: skip
_PERIODS = {"hour": "%Y-%m-%dT%H:00%z", "day": "%Y-%m-%d", "month": "%Y-%m"}
_COLUMNS = {
    "session": _e.c.session_id,
    "user": _e.c.user_id,
    "project": _e.c.project,
    "tenant": _e.c.tenant,
    "model": _e.c.model,
    "operation": _e.c.operation,
    "stage": _e.c.stage,
}
_REFUSED = {
    "session": _r.c.session_id,
    "user": _r.c.user_id,
    "project": _r.c.project,
    "tenant": _r.c.tenant,
    "model": _r.c.model,
}
_HOUR = 3_600_000


@dataclass
class Line:
    """One line of a report. `cost` in nano-dollars.

    Attributes:
        assumed, estimated: how much of the cost is not the provider's own word.
        unpriced: calls whose cost is not known (budgets in tokens or calls need none).
    """

    key: tuple[str | None, ...]
    calls: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost: int = 0
    assumed: int = 0
    estimated: int = 0
    unpriced: int = 0
    failed: int = 0
    refused: int = 0

    def add(self, other: Line) -> None:
        for f in fields(self):
            if f.name != "key":
                setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))

    @property
    def cost_usd(self) -> Decimal:
        return to_usd(self.cost)

    def as_dict(self, by: Sequence[str]) -> dict[str, Any]:
        """For JSON and CSV: amounts in USD as exact text."""
        values = asdict(self)
        del values["key"]
        for name in ("cost", "assumed", "estimated"):
            values[f"{name}_usd"] = format(to_usd(values.pop(name)), "f")
        return {**dict(zip(by, self.key, strict=True)), **values}


@dataclass
class Report:
    """Lines by `by`, dearest first, and their total."""

    by: tuple[str, ...]
    lines: list[Line]
    total: Line


def report(
    ledger: Ledger,
    by: Sequence[str] = ("session",),
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    session: str | None = None,
    user: str | None = None,
    project: str | None = None,
    tenant: str | None = None,
    zone: str = "UTC",
) -> Report:
    """What was spent, by `by`.

    Args:
        by: of `GROUPS`; several give their combinations.
        since, until: when the call was booked; `until` is not included.
        session, user, project, tenant: only theirs.
        zone: the time zone in which ``hour``, ``day`` and ``month`` are meant.

    Raises:
        ConfigError: an unknown group.
        StoreError: the store cannot be read.
    """
    keys: list[sa.ColumnElement[Any]] = []
    only = {"session": session, "user": user, "project": project, "tenant": tenant}
    period = ""
    for name in by:
        if name in _COLUMNS:
            keys.append(_COLUMNS[name])
        elif name in _PERIODS and not period:
            period = name
            # Grouped by quarter-hours in SQL and by periods here: only Python knows the zone,
            # and no zone's hour or midnight begins inside a quarter.
            keys.append(_e.c.at - _e.c.at % (_HOUR // 4))
        elif name.startswith("tag:") and name[4:]:
            keys.append(_e.c.tags[name[4:]].as_string())
        else:
            raise ConfigError(f"cannot report by {name!r}: one of {', '.join(GROUPS)}")
    total = sa.func.coalesce
    priced = total(sa.func.sum(_e.c.cost), 0)

    def cost_if(status: str) -> sa.ColumnElement[int]:
        return total(sa.func.sum(sa.case((_e.c.status == status, _e.c.cost), else_=0)), 0)

    columns: list[sa.ColumnElement[Any]] = [
        sa.func.sum(_e.c.calls),
        sa.func.sum(_e.c.input_tokens),
        sa.func.sum(_e.c.cached_input_tokens),
        sa.func.sum(_e.c.output_tokens),
        sa.func.sum(_e.c.reasoning_tokens),
        priced,
        cost_if("assumed"),
        cost_if("estimated"),
        sa.func.sum(sa.case((_e.c.cost.is_(None), _e.c.calls), else_=0)),
        sa.func.sum(sa.case((_e.c.status == "failed", 1 - 2 * _e.c.reversal), else_=0)),
    ]
    labelled = [key.label(f"k{i}") for i, key in enumerate(keys)]
    statement = sa.select(*labelled, *columns).group_by(*labelled)
    statement = _where(statement, _e, since, until, only)
    lines: dict[tuple[str | None, ...], Line] = {}
    whole = Line(())
    with ledger.reading().connect() as connection:
        for row in connection.execute(statement):
            key = list(row[: len(keys)])
            if period:
                place = by.index(period)
                at = datetime.fromtimestamp(key[place] / 1000, ZoneInfo(zone))
                key[place] = at.strftime(_PERIODS[period])
            line = Line(tuple(key), *row[len(keys) :])
            lines.setdefault(line.key, Line(line.key)).add(line)
            whole.add(line)
        if all(name in _REFUSED for name in by):
            for key_, count in _refusals(connection, by, since, until, only):
                lines.setdefault(key_, Line(key_)).refused += count
                whole.refused += count
    ordered = sorted(lines.values(), key=lambda x: (-x.cost, [k or "" for k in x.key]))
    if period:
        place = by.index(period)
        ordered.sort(key=lambda x: x.key[place] or "")
    return Report(tuple(by), ordered, whole)


def _where(
    statement: sa.Select[Any],
    table: sa.Table,
    since: datetime | None,
    until: datetime | None,
    only: Mapping[str, str | None],
) -> sa.Select[Any]:
    if since is not None:
        statement = statement.where(table.c.at >= int(since.timestamp() * 1000))
    if until is not None:
        statement = statement.where(table.c.at < int(until.timestamp() * 1000))
    columns = _COLUMNS if table is _e else _REFUSED
    for name, value in only.items():
        if value is not None:
            statement = statement.where(columns[name] == value)
    return statement


def _refusals(
    connection: sa.Connection,
    by: Sequence[str],
    since: datetime | None,
    until: datetime | None,
    only: Mapping[str, str | None],
) -> list[tuple[tuple[str | None, ...], int]]:
    """Refusals are counted by their last time: with `since` these are at least so many."""
    columns = [_REFUSED[name].label(f"k{i}") for i, name in enumerate(by)]
    statement = sa.select(*columns, sa.func.sum(_r.c.count)).group_by(*columns)
    statement = _where(statement, _r, since, until, only)
    return [(tuple(row[:-1]), int(row[-1])) for row in connection.execute(statement)]


@dataclass
class StageNode:
    """A stage and the stages inside it; a node's line includes its children's."""

    name: str
    line: Line
    children: list[StageNode]


def stages(ledger: Ledger, *, session: str | None = None) -> list[StageNode]:
    """Spending as the tree of `meter.budget(...)` blocks; calls outside any are left out."""
    roots: list[StageNode] = []
    for line in report(ledger, ("stage",), session=session).lines:
        path = line.key[0]
        if path is None:
            continue
        level = roots
        for name in path.split("/"):
            node = next((n for n in level if n.name == name), None)
            if node is None:
                node = StageNode(name, Line((name,)), [])
                level.append(node)
            node.line.add(line)
            level = node.children
    return roots


@dataclass(frozen=True)
class BucketLine:
    """A bucket for people: whose, how full. Amounts in `unit` (nano-dollars for ``usd``)."""

    budget: str
    scope: str
    unit: str
    start: int
    end: int | None
    limit: int | None
    spent: int
    held: int
    refused: int


def buckets(ledger: Ledger, *, now_ms: int, everything: bool = False) -> list[BucketLine]:
    """The buckets of the budgets last used with this store.

    Args:
        now_ms: the time, in ms since 1970: windows that have passed are left out.
        everything: list those too.
    """
    from dataclasses import replace

    from ..rules.budgets import Budget, budget_of_shape, describe_scope

    b, known, limits = schema.buckets, schema.budgets, schema.limits
    found: list[BucketLine] = []
    with ledger.reading().connect() as connection:
        rules = {row.shape: row for row in connection.execute(sa.select(known))}
        overrides = {row.text: row.amount for row in connection.execute(sa.select(limits))}
        counted = {
            row.bucket: row.n
            for row in connection.execute(
                sa.select(_r.c.bucket, sa.func.sum(_r.c.count).label("n")).group_by(_r.c.bucket)
            )
        }
        rows = list(connection.execute(sa.select(b).order_by(b.c.budget, b.c.scope, b.c.start)))
    slots: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for row in rows:
        slots.setdefault((row.budget, row.scope), []).append((row.start, row.spent))
    for row in rows:
        shape = row.budget.removeprefix("stage ")
        rule = rules.get(row.budget)
        if rule is not None:
            budget = Budget.parse(rule.text)
            limit = overrides.get(rule.text, budget.amount)
            text = str(budget if limit is None else replace(budget, amount=limit))
        else:
            # A stage's budget, or one that is configured no more: its shape says what it counts.
            budget, limit, text = budget_of_shape(row.budget, row.unit), None, shape
        spent = row.spent
        if budget.rolling_ms:
            if row.start:
                continue
            after = now_ms - budget.rolling_ms - budget.slot_ms
            spent = sum(s for at, s in slots[row.budget, row.scope] if at > after and at > 0)
            end: int | None = None
        else:
            window = budget.window_at(row.start, rule.zone if rule is not None else "UTC")
            end = window.end if budget.window else None
        if end is not None and end <= now_ms and not everything:
            continue
        scope = describe_scope(budget, row.scope)
        found.append(
            BucketLine(text, scope, row.unit, row.start, end, limit, spent, row.held, counted.get(row.id, 0))
        )
    return found
