"""`behest budgets`: each bucket, how full it is, and when it turns over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..ledger import Ledger, schema
from ..rules.budgets import Budget, budget_of_shape, describe_scope
from ..rules.units import format_amount, format_usd
from .look import bar, count, resets
from .shown import Asked, Shown, explained, reading


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


@dataclass(frozen=True)
class _Books:
    """What the ledger says of budgets, at one moment.

    Attributes:
        rules: the budgets last in force, by shape. limits: their amounts as changed since.
        own: the limits of some scopes alone, by shape and scope.
        refused: by bucket.
    """

    buckets: Sequence[sa.Row[Any]]
    rules: Mapping[str, sa.Row[Any]]
    limits: Mapping[str, int | None]
    own: Mapping[tuple[str, str], int]
    refused: Mapping[int, int]


def buckets(ledger: Ledger, *, now_ms: int, everything: bool = False) -> list[BucketLine]:
    """The buckets of the budgets last used with this store.

    Args:
        now_ms: the time, in ms since 1970: windows that have passed are left out.
        everything: list those too.

    Raises:
        StoreError: the store cannot be read.
    """
    books = _read(ledger)
    slots: dict[tuple[str, str], list[tuple[int, int]]] = {}
    with explained(ledger):
        for row in books.buckets:
            slots.setdefault((row.budget, row.scope), []).append((row.start, row.spent))
        lines = [_line(row, books, slots[row.budget, row.scope], now_ms) for row in books.buckets]
    return [x for x in lines if x is not None and (everything or x.end is None or x.end > now_ms)]


def _read(ledger: Ledger) -> _Books:
    b, r, known, limits = schema.buckets, schema.refusals, schema.budgets, schema.limits
    own = schema.own_limits
    refused = sa.select(r.c.bucket, sa.func.sum(r.c.count).label("n")).group_by(r.c.bucket)
    with reading(ledger) as connection:
        return _Books(
            buckets=list(connection.execute(sa.select(b).order_by(b.c.budget, b.c.scope, b.c.start))),
            rules={row.shape: row for row in connection.execute(sa.select(known))},
            limits={row.text: row.amount for row in connection.execute(sa.select(limits))},
            own={(row.budget, row.scope): row.amount for row in connection.execute(sa.select(own))},
            refused={row.bucket: row.n for row in connection.execute(refused)},
        )


def _line(
    row: sa.Row[Any], books: _Books, slots: Sequence[tuple[int, int]], now_ms: int
) -> BucketLine | None:
    """A bucket as a line; None for a slot of a rolling window, which its own line has in it."""
    rule = books.rules.get(row.budget)
    limit: int | None
    if rule is not None:
        budget = Budget.parse(rule.text)
        limit = books.limits.get(row.budget, budget.amount)
        if limit is not None:
            limit = books.own.get((row.budget, row.scope), limit)
        text = str(budget if limit is None else replace(budget, amount=limit))
    else:
        # A stage's budget, or one that is configured no more: its shape says what it counts.
        budget, limit = budget_of_shape(row.budget, row.unit), None
        text = row.budget.removeprefix("stage ")
    spent, end = row.spent, None
    if budget.rolling_ms:
        if row.start:
            return None
        after = now_ms - budget.rolling_ms - budget.slot_ms
        spent = sum(s for at, s in slots if at > after and at > 0)
    elif budget.window:
        end = budget.window_at(row.start, rule.zone if rule is not None else "UTC").end
    return BucketLine(
        text,
        describe_scope(budget, row.scope),
        row.unit,
        row.start,
        end,
        limit,
        spent,
        row.held,
        books.refused.get(row.id, 0),
    )


def show_budgets(ledger: Ledger, asked: Asked, *, everything: bool = False) -> Shown:
    """Each bucket: spent, held, left, and when it resets."""
    lines = buckets(ledger, now_ms=int(asked.at.timestamp() * 1000), everything=everything)
    legend = Text("█ spent  ▒ held by calls in flight  ░ left", style="dim")
    return Shown(
        [asdict(line) for line in lines],
        lambda: Group(budget_table(lines, asked.at), legend),
        columns=list(BucketLine.__dataclass_fields__),
        empty="No budget has been used yet.",
    )


def budget_table(lines: Sequence[BucketLine], now: datetime) -> Table:
    """Each bucket: how full it is and when it turns over."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("budget, whose", overflow="fold", min_width=18)
    table.add_column("", no_wrap=True)
    for header in ("spent", "held", "left", "resets"):
        table.add_column(header, justify="right", overflow="fold")
    for line in lines:
        limit = line.limit
        table.add_row(
            _name(line),
            bar(line.spent, line.held, limit, 10) if limit is not None else "",
            _amount(line.spent, line.unit),
            _amount(line.held, line.unit) if line.held else "",
            _amount(max(0, limit - line.spent - line.held), line.unit) if limit is not None else "no limit",
            resets(line.end, now),
        )
    return table


def _name(line: BucketLine) -> Text:
    name = Text(line.budget)
    if line.scope:
        name.append(f"\n  {line.scope}", style="dim")
    if line.refused:
        name.append(f"\n  {count(line.refused)} refused", style="red")
    return name


def _amount(n: int, unit: str) -> str:
    """Without the unit, which the budget's name says."""
    return format_usd(n) if unit == "usd" else format_amount(n, unit).split(" ", 1)[0]
