"""`behest budgets`: each bucket, how full it is, and when it turns over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..ledger import Ledger, schema
from ..ledger.book import STAGE
from ..ledger.in_force import LimitsInForce
from ..rules.balance import Balance
from ..rules.budgets import Budget, budget_of_shape, describe_scope, scope_values
from ..rules.units import format_amount, format_usd
from .forecast import Forecast, forecasts
from .look import bar, count, resets
from .shown import Asked, Shown, explained, reading

_parsed = lru_cache(maxsize=256)(Budget.parse)
_of_shape = lru_cache(maxsize=256)(budget_of_shape)


@dataclass(frozen=True)
class BucketLine:
    """A bucket for people: whose, how full. Amounts in `unit` (nano-dollars for ``usd``).

    Attributes:
        start, end: of its window, in ms since 1970.
        limit: None where no configuration says it any more.
        session, user, project, tenant, model, stage: whom it is for, in parts.
        runs: of a stage: how many finished ones are told in this line, which has their sums.
        dearest: of these, the most that one has spent.
        soft: it warns only: more than the limit may be spent.
    """

    budget: str
    scope: str
    unit: str
    start: int
    end: int | None
    limit: int | None
    spent: int
    held: int
    refused: int
    session: str | None = None
    user: str | None = None
    project: str | None = None
    tenant: str | None = None
    model: str | None = None
    stage: str | None = None
    runs: int = 1
    dearest: int | None = None
    soft: bool = False

    @property
    def percent(self) -> int | None:
        """How much of the limit is spent, rounded down; None where there is no limit."""
        if self.limit is None:
            return None
        spent = self.spent if self.dearest is None else self.dearest
        return spent * 100 // self.limit if self.limit else 100


@dataclass(frozen=True)
class _Books:
    """What the ledger says of budgets, at one moment.

    Attributes:
        rules: the budgets last in force, by shape.
        refused: by bucket.
    """

    buckets: Sequence[sa.Row[Any]]
    rules: Mapping[str, sa.Row[Any]]
    limits: LimitsInForce
    refused: Mapping[int, int]


def buckets(
    ledger: Ledger, *, now_ms: int, everything: bool = False, asked: Asked | None = None
) -> list[BucketLine]:
    """The buckets of the budgets last used with this store.

    Args:
        now_ms: the time, in ms since 1970: windows that have passed are left out.
        everything: list those too, and each run of a stage.
        asked: whose; None: everybody's.

    Raises:
        StoreError: the store cannot be read.
    """
    lines = [line for _rows, line in _lines(ledger, now_ms, everything, asked or Asked())]
    return lines if everything else _folded(lines)


def balances(ledger: Ledger, asked: Asked, *, now_ms: int) -> list[Balance]:
    """The buckets in use, and not of a stage, as they stand; see `Meter.balances`."""
    found = []
    for _rows, line in _lines(ledger, now_ms, False, asked):
        if line.stage is None and line.limit is not None:
            end = None if line.end is None else datetime.fromtimestamp(line.end / 1000, timezone.utc)
            found.append(
                Balance(line.budget, line.scope, line.unit, line.limit, line.spent, line.held, end, line.soft)
            )
    return found


def _lines(
    ledger: Ledger, now_ms: int, everything: bool, asked: Asked
) -> list[tuple[Sequence[sa.Row[Any]], BucketLine]]:
    """The lines, each with the rows of its buckets: a rolling window has one for every slot."""
    books = _read(ledger, now_ms)
    slots: dict[tuple[str, str], list[sa.Row[Any]]] = {}
    found: list[tuple[Sequence[sa.Row[Any]], BucketLine]] = []
    with explained(ledger):
        for row in books.buckets:
            slots.setdefault((row.budget, row.scope), []).append(row)
        for row in books.buckets:
            line = _line(row, books, slots[row.budget, row.scope], now_ms)
            if line is None or not (everything or line.end is None or line.end > now_ms):
                continue
            wanted = (getattr(asked, name) for name in ("session", "user", "project", "tenant"))
            theirs = (line.session, line.user, line.project, line.tenant)
            if all(one in (None, other) for one, other in zip(wanted, theirs, strict=True)):
                found.append((slots[row.budget, row.scope] if line.end is None else [row], line))
    return found


def _folded(lines: Iterable[BucketLine]) -> list[BucketLine]:
    """The runs of a stage in which nothing is in flight, in one line for each limit that it has had."""
    found: dict[object, BucketLine] = {}
    for place, line in enumerate(lines):
        key: object = (line.budget, line.scope) if line.stage is not None and not line.held else place
        before = found.get(key)
        if before is None:
            found[key] = line
            continue
        dearest = max(line.spent, before.spent if before.dearest is None else before.dearest)
        found[key] = replace(
            before,
            spent=before.spent + line.spent,
            refused=before.refused + line.refused,
            runs=before.runs + 1,
            dearest=dearest,
        )
    return list(found.values())


def _read(ledger: Ledger, now_ms: int) -> _Books:
    b, r, known = schema.buckets, schema.refusals, schema.budgets
    refused = sa.select(r.c.bucket, sa.func.sum(r.c.count).label("n")).group_by(r.c.bucket)
    with reading(ledger) as connection:
        return _Books(
            buckets=list(connection.execute(sa.select(b).order_by(b.c.budget, b.c.scope, b.c.start))),
            rules={row.shape: row for row in connection.execute(sa.select(known))},
            limits=LimitsInForce(connection, now_ms),
            refused={row.bucket: row.n for row in connection.execute(refused)},
        )


def _line(row: sa.Row[Any], books: _Books, slots: Sequence[sa.Row[Any]], now_ms: int) -> BucketLine | None:
    """A bucket as a line; None for a slot of a rolling window, which its own line has in it."""
    rule = books.rules.get(row.budget)
    if rule is not None:
        budget = _parsed(rule.text)
        limit = books.limits.of(row.budget, row.scope, budget.amount)
    else:
        # A stage's budget, or one that is configured no more: its shape says what it counts.
        budget = _of_shape(row.budget, row.unit)
        limit = books.limits.of_unknown(row.budget, row.scope)
    text = str(budget) if rule is not None else row.budget.removeprefix(STAGE)
    if limit is not None:
        text = str(replace(budget, amount=limit))
    spent, end = row.spent, None
    if budget.rolling_ms:
        if row.start:
            return None
        after = now_ms - budget.rolling_ms - budget.slot_ms
        spent = sum(slot.spent for slot in slots if slot.start > after and slot.start > 0)
    elif budget.window:
        end = budget.window_at(row.start, rule.zone if rule is not None else "UTC").end
    who: dict[str, Any] = {**scope_values(budget, row.scope)}
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
        **who,
        soft=budget.soft,
    )


# ── what is shown ──────────────────────────────────────────────────────────────────────


def show_budgets(
    ledger: Ledger,
    asked: Asked,
    *,
    everything: bool = False,
    check: int | None = None,
    forecast: bool = False,
) -> Shown:
    """Each bucket: spent, held, left, and when it resets.

    Args:
        check: show those alone of which so many percent are spent, and end with 1 if there are any.
        forecast: say when each runs out, if it is spent on as it was lately; see `reports.forecast`.
    """
    now_ms = int(asked.at.timestamp() * 1000)
    lines = buckets(ledger, now_ms=now_ms, everything=everything, asked=asked)
    looked_at = len(lines)
    if check is not None:
        lines = [line for line in lines if line.percent is not None and line.percent >= check]
    ahead: Mapping[BucketLine, Forecast] = {}
    if forecast:
        known = _lines(ledger, now_ms, everything, asked)
        shown = set(lines)
        ahead = forecasts(ledger, [(rows, line) for rows, line in known if line in shown], now_ms)
    legend = Text("█ spent  ▒ held by calls in flight  ░ left", style="dim")
    told = [legend, Text(HOW_IT_IS_FORECAST, style="dim")] if forecast else [legend]
    empty = f"No budget that is for {asked.narrowed} alone has been used yet." if asked.narrowed else ""
    if check is not None:
        empty = f"None of {looked_at} budgets has reached {check} %."
    return Shown(
        [asdict(line) | _told(ahead, line, forecast) for line in lines],
        lambda: Group(budget_table(lines, asked.at, ahead if forecast else None), *told),
        columns=[*BucketLine.__dataclass_fields__, *(("runs_out",) if forecast else ())],
        empty=empty or "No budget has been used yet.",
        exit_code=1 if check is not None and lines else 0,
    )


HOW_IT_IS_FORECAST = (
    "runs out: if it is spent on as in this window so far; of a lifetime, as in the last 7 days; of a "
    "rolling window, as in its last sixth."
)


def _told(ahead: Mapping[BucketLine, Forecast], line: BucketLine, forecast: bool) -> dict[str, Any]:
    if not forecast:
        return {}
    found = ahead.get(line)
    return {"runs_out": found.at.isoformat(timespec="seconds") if found and found.at else None}


def budget_table(
    lines: Sequence[BucketLine], now: datetime, ahead: Mapping[BucketLine, Forecast] | None = None
) -> Table:
    """Each bucket: how full it is and when it turns over; with `ahead`, when it runs out."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("budget, whose", overflow="fold", min_width=18)
    table.add_column("", no_wrap=True)
    held = ("held",) if ahead is None or any(line.held for line in lines) else ()
    for header in ("spent", *held, "left", "resets"):
        table.add_column(header, justify="right", overflow="fold", no_wrap=ahead is not None)
    if ahead is not None:
        table.add_column("runs out", justify="right", no_wrap=True)
    for line in lines:
        limit, folded = line.limit, line.dearest is not None
        fills = line.spent if line.dearest is None else line.dearest
        left = "no limit" if limit is None else _amount(max(0, limit - line.spent - line.held), line.unit)
        if limit is not None and line.soft and line.spent > limit:
            left = f"{_amount(line.spent - limit, line.unit)} over"
        row = [
            _name(line),
            bar(fills, line.held, limit, 10 if ahead is None else 6) if limit is not None else "",
            _amount(line.spent, line.unit),
            *[_amount(line.held, line.unit) if line.held else ""] * len(held),
            "" if folded else left,
            "" if folded else resets(line.end, now, short=ahead is not None),
        ]
        if ahead is not None:
            found = ahead.get(line)
            row.append(found.say(now) if found is not None else "")
        table.add_row(*row)
    return table


def _name(line: BucketLine) -> Text:
    name = Text(line.budget)
    if line.scope:
        name.append(f"\n  {line.scope}", style="dim")
    if line.dearest is not None:
        dearest = format_amount(line.dearest, line.unit)
        name.append(f"\n  {count(line.runs)} runs over\n  the most: {dearest}", style="dim")
    if line.refused:
        name.append(f"\n  {count(line.refused)} refused", style="red")
    return name


def _amount(n: int, unit: str) -> str:
    """Without the unit, which the budget's name says."""
    return format_usd(n) if unit == "usd" else format_amount(n, unit).split(" ", 1)[0]
