"""`behest report`: sums over the ledger, by who and what. Reversals carry minus signs, so sums are right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from decimal import Decimal
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from rich.table import Table
from rich.text import Text

from ..ledger import Ledger, schema
from ..rules.errors import ConfigError
from ..rules.near import say_near
from ..rules.units import format_usd, to_usd
from .lines import FILTERS, Clock, Wanted, totals
from .lines import lines as lines_of
from .look import count, id_or_none, show
from .shown import Asked, Shown, reading

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_r = schema.refusals

Column = sa.ColumnElement[Any]

GROUPS = (
    "session", "user", "project", "tenant", "model", "operation", "stage", "hour", "day", "month", "tag:NAME"
)  # fmt: skip
_HOUR = 3_600_000
_PERIODS = {
    "hour": ("%Y-%m-%dT%H:00%z", _HOUR), "day": ("%Y-%m-%d", 24 * _HOUR), "month": ("%Y-%m", 24 * _HOUR),
}  # fmt: skip
_COLUMNS = {**FILTERS, "operation": "operation", "stage": "stage"}
"""The columns of entries that lines are grouped by, by what people call them."""
_REFUSED: dict[str, Column] = {
    "session": _r.c.session_id,
    "user": _r.c.user_id,
    "project": _r.c.project,
    "tenant": _r.c.tenant,
    "model": _r.c.model,
    "operation": _r.c.operation,
}


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
        mine, theirs = self.__dict__, other.__dict__
        for name in theirs:
            if name != "key":
                mine[name] += theirs[name]

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


_ADDED = tuple(field.name for field in fields(Line) if field.name not in ("key", "refused"))


@dataclass
class Report:
    """Lines by `by`, dearest first (periods in their order), and their total."""

    by: tuple[str, ...]
    lines: list[Line]
    total: Line
    others: Line | None = None
    """The sum of the lines that `top` has left out; how many they were is in `left_out`."""
    left_out: int = 0

    def top(self, most: int) -> Report:
        """The `most` dearest lines, and the sum of the others. Periods stay in their order."""
        if len(self.lines) <= most:
            return self
        dearest = sorted(range(len(self.lines)), key=lambda i: -self.lines[i].cost)[:most]
        others = Line(())
        for place in sorted(set(range(len(self.lines))) - set(dearest)):
            others.add(self.lines[place])
        lines = [self.lines[place] for place in sorted(dearest)]
        return Report(self.by, lines, self.total, others, len(self.lines) - most)

    def dataframe(self, library: str | None = None) -> Any:
        """The lines as a DataFrame of polars or of pandas, whichever is installed; USD as `Decimal`.

        Args:
            library: ``polars`` or ``pandas``; None: the one that is imported already, else that
                which is installed.

        Raises:
            MissingExtra: neither is installed.
        """
        from .frames import dataframe

        return dataframe([line.as_dict(self.by) for line in self.lines], self.by, library)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from .html import text_of

        return text_of(html_table(self))


# ── the query ──────────────────────────────────────────────────────────────────────────


class _Group(NamedTuple):
    """What lines are grouped by: a column of entries, a tag, or a step of time in ms; the column of refusals
    (None: they do not know it), and what its values are called."""

    column: str | None = None
    tag: str | None = None
    step: int = 0
    refusals: Column | None = None
    told: Callable[[Any], str | None] = lambda value: value

    @property
    def is_period(self) -> bool:
        return self.step > 0


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
    return report_of(ledger, by, Asked(since, until, session, user, project, tenant, zone))


def report_of(ledger: Ledger, by: Sequence[str], asked: Asked) -> Report:
    """The same, as it is asked."""
    groups = [_group(name, asked.zone) for name in by]
    lines: dict[tuple[str | None, ...], Line] = {}
    total = Line(())
    with reading(ledger) as connection:
        for line in (*_spent(connection, groups, asked), *_refused(connection, groups, asked)):
            if (known := lines.setdefault(line.key, line)) is not line:
                known.add(line)
    for name in (*_ADDED, "refused"):
        setattr(total, name, sum(map(attrgetter(name), lines.values())))
    return Report(tuple(by), _in_order(lines.values(), groups), total)


def cost_of(ledger: Ledger, asked: Asked) -> int:
    """What was spent in all, in nano-dollars.

    Raises:
        StoreError: the store cannot be read.
    """
    with reading(ledger) as connection:
        source = lines_of(connection, Wanted(), asked)
        return int(connection.execute(sa.select(totals(source)["cost"])).scalar_one())


def check_groups(by: Sequence[str]) -> None:
    """Find out before anything else whether there can be a report by these.

    Raises:
        ConfigError: an unknown group, or one that is named twice.
    """
    for name in by:
        _group(name, "UTC")
    if not by or len(set(by)) != len(by):
        raise ConfigError(f"a report names each of its groups once, not {','.join(by)!r}")


def _group(name: str, zone: str) -> _Group:
    if name in _COLUMNS:
        return _Group(_COLUMNS[name], refusals=_REFUSED.get(name))
    if name in _PERIODS:
        # By steps of UTC in SQL and by periods here: only Python knows the zone.
        form, step = _PERIODS[name]
        return _Group(step=step, told=partial(_period, form=form, zone=ZoneInfo(zone)))
    if name.startswith("tag:") and name[4:]:
        return _Group(tag=name[4:])
    raise ConfigError(f"cannot report by {name!r}{say_near(name, GROUPS)}: one of {', '.join(GROUPS)}")


def _period(ms: int, *, form: str, zone: ZoneInfo) -> str:
    return datetime.fromtimestamp(ms / 1000, zone).strftime(form)


def _spent(connection: sa.Connection, groups: Sequence[_Group], asked: Asked) -> Iterator[Line]:
    """The sums of entries. Several lines may have one key: a period has many steps."""
    steps = [group.step for group in groups if group.is_period]
    clock = Clock(connection, ZoneInfo(asked.zone), asked) if steps else None
    tags = [group.tag for group in groups if group.tag is not None]
    names = [group.column for group in groups if group.column is not None]
    source = lines_of(
        connection, Wanted(names, tags=tags, step=clock.step(min(steps)) if clock else 0), asked
    )
    keys = []
    for place, group in enumerate(groups):
        if group.is_period:
            assert clock is not None
            column: Column = clock.floor(source.c.at, group.step)
        else:
            column = source.c[group.column or f"tag{tags.index(group.tag or '')}"]
        keys.append(column.label(f"k{place}"))
    sums = totals(source)
    assert tuple(sums) == _ADDED
    statement = sa.select(*keys, *sums.values()).group_by(*keys)
    width, is_plain = len(keys), not any(group.is_period for group in groups)
    for rows in connection.execute(statement).partitions(1000):
        for row in rows:
            key = row[:width]
            if not is_plain:
                key = tuple(group.told(value) for group, value in zip(groups, key, strict=True))
            # PostgreSQL's sums of whole numbers come as decimals.
            yield Line(key, *map(int, row[width:]))


def _refused(connection: sa.Connection, groups: Sequence[_Group], asked: Asked) -> Iterator[Line]:
    """How many calls were refused, where refusals know of all groups.

    They are counted by their last time: with `since` these are at least so many. They know no tags.
    """
    columns = [group.refusals for group in groups if group.refusals is not None]
    if len(columns) < len(groups) or asked.tags:
        return
    keys = [column.label(f"k{i}") for i, column in enumerate(columns)]
    statement = sa.select(*keys, sa.func.sum(_r.c.count)).group_by(*keys)
    for row in connection.execute(refusals_asked(statement, asked)):
        yield Line(tuple(row[:-1]), refused=int(row[-1] or 0))


def refusals_asked(statement: sa.Select[Any], asked: Asked) -> sa.Select[Any]:
    """A selection of refusals, of those alone that are asked about."""
    if asked.since is not None:
        statement = statement.where(_r.c.at >= int(asked.since.timestamp() * 1000))
    if asked.until is not None:
        statement = statement.where(_r.c.at < int(asked.until.timestamp() * 1000))
    for name in FILTERS:
        value = getattr(asked, name)
        if value is not None:
            statement = statement.where(_REFUSED[name] == value)
    return statement


def _in_order(lines: Iterable[Line], groups: Sequence[_Group]) -> list[Line]:
    """By period where there is one; then the dearest first, and by name."""
    period = next((i for i, group in enumerate(groups) if group.is_period), None)

    def place(line: Line) -> tuple[Any, ...]:
        when = (line.key[period] or "") if period is not None else ""
        key = line.key
        return when, -line.cost, key if None not in key else tuple(name or "" for name in key)

    return sorted(lines, key=place)


# ── the table ──────────────────────────────────────────────────────────────────────────

_ALWAYS: Mapping[str, Callable[[Line], str]] = {
    "calls": lambda line: count(line.calls),
    "in": lambda line: count(line.input_tokens),
    "out": lambda line: count(line.output_tokens),
}
_WHERE_THERE_ARE_ANY: Mapping[str, Callable[[Line], str]] = {
    "unpriced": lambda line: count(line.unpriced),
    "failed": lambda line: count(line.failed),
    "refused": lambda line: count(line.refused),
    "estimated": lambda line: format_usd(line.estimated),
    "assumed": lambda line: format_usd(line.assumed),
}


def report_columns(found: Report) -> dict[str, Callable[[Line], str]]:
    """The columns of numbers that a report has anything for, with how each is told of a line."""
    return {
        **_ALWAYS,
        **{name: tell for name, tell in _WHERE_THERE_ARE_ANY.items() if getattr(found.total, name)},
        "cost": lambda line: format_usd(line.cost),
    }


def report_table(found: Report) -> Table:
    """A report's lines, and their total."""
    columns = report_columns(found)
    table = Table(box=None, pad_edge=False, show_footer=True, header_style="bold", footer_style="bold")
    for i, name in enumerate(found.by):
        table.add_column(name, footer="total" if i == 0 else "", overflow="fold", min_width=8)
    for header, tell in columns.items():
        table.add_column(header, footer=tell(found.total), justify="right", no_wrap=True)
    for line in found.lines:
        table.add_row(*map(id_or_none, line.key), *(tell(line) for tell in columns.values()))
    if found.others is not None:
        others = found.others
        others_are = Text(f"({count(found.left_out)} others)", style="dim italic")
        blank = [""] * (len(found.by) - 1)
        table.add_row(others_are, *blank, *(tell(others) for tell in columns.values()))
    return table


def html_table(found: Report) -> Element:
    """The same as HTML."""
    from .html import Cell, el, id_cell, table

    columns = report_columns(found)

    def numbers(line: Line) -> list[str]:
        return [tell(line) for tell in columns.values()]

    rows: list[Sequence[Cell]] = [[*map(id_cell, line.key), *numbers(line)] for line in found.lines]
    blank = [""] * (len(found.by) - 1)
    if found.others is not None:
        rows.append([el("i", f"({count(found.left_out)} others)"), *blank, *numbers(found.others)])
    foot = ["total", *blank, *numbers(found.total)]
    return table([*found.by, *columns], rows, foot, len(found.by))


def print_report(ledger: Ledger, by: Sequence[str] = ("session",), *, file: TextIO | None = None) -> None:
    """Print what was spent, by session, user, model, …: see `report`."""
    show(report_table(report(ledger, by)), file)


def show_spending(
    ledger: Ledger, asked: Asked, by: Sequence[str] = ("session",), *, top: int | None = None
) -> Shown:
    """What was spent: by session, user, project, model, day, tag.

    Args:
        top: only so many lines, the dearest, and the sum of the others.
    """
    check_groups(by)
    found = report_of(ledger, by, asked)
    if top is not None:
        found = found.top(top)
    rows = [line.as_dict(by) for line in found.lines]
    total = found.total.as_dict(())
    others = {} if found.others is None else {"others": found.others.as_dict(()), "left_out": found.left_out}
    return Shown(
        rows,
        lambda: report_table(found),
        data={"by": list(by), "lines": rows, **others, "total": total},
        columns=[*by, *total],
        empty=f"No such calls ({asked.narrowed})." if asked.narrowed else "No calls yet.",
    )
