"""`behest report --compare previous`: a period beside the one before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from rich.table import Table
from rich.text import Text

from ..ledger import Ledger
from ..rules.errors import ConfigError
from ..rules.units import format_usd, to_usd
from .look import count, id_or_none
from .shown import Asked, Shown
from .spending import Line, check_groups, report_of

Key = tuple[str | None, ...]


@dataclass(frozen=True)
class Compared:
    """One line: what it was in the period, and what it was before."""

    key: Key
    now: Line
    before: Line

    @property
    def change(self) -> str:
        """Of the cost, for people: ``+12 %``, ``new``, ``gone``."""
        new, old = self.now.cost, self.before.cost
        if not old:
            return "new" if new else ""
        if not new:
            return "gone"
        return f"{(new - old) * 100 / old:+.0f} %"

    def as_dict(self, by: Sequence[str]) -> dict[str, Any]:
        """For JSON and CSV: USD as exact text."""
        names = dict(zip(by, self.key, strict=True))
        sums = {"calls": self.now.calls, "calls_before": self.before.calls}
        costs = {"cost_usd": self.now.cost, "cost_usd_before": self.before.cost}
        costs["difference_usd"] = self.now.cost - self.before.cost
        return {**names, **sums, **{name: format(to_usd(cost), "f") for name, cost in costs.items()}}


def previous(asked: Asked) -> Asked:
    """The period before one: as many months where it is whole months, as many days where it is whole
    days (in its zone), else as much time.

    Raises:
        ConfigError: it has no beginning.
    """
    if asked.since is None:
        raise ConfigError("a comparison needs a period that has a beginning")
    zone = ZoneInfo(asked.zone)
    since, until = asked.since.astimezone(zone), (asked.until or asked.at).astimezone(zone)
    if all(_is_midnight(at) for at in (since, until)):
        if since.day == until.day == 1:
            months = (until.year - since.year) * 12 + until.month - since.month
            month = since.year * 12 + since.month - 1 - months
            start = since.replace(year=month // 12, month=month % 12 + 1)
        else:  # a day is a day, also where the clocks are changed in it
            start = since - timedelta(days=(until.date() - since.date()).days)
        return replace(asked, since=start, until=asked.since)
    return replace(asked, since=asked.since - (until - since), until=asked.since)


def _is_midnight(at: datetime) -> bool:
    return at.time() == datetime.min.time()


def compare(ledger: Ledger, asked: Asked, by: Sequence[str] = ("session",)) -> list[Compared]:
    """Every line of either period, the dearest first.

    Raises:
        ConfigError: an unknown group, or no beginning.
        StoreError: the store cannot be read.
    """
    check_groups(by)
    now = {line.key: line for line in report_of(ledger, by, asked).lines}
    before = {line.key: line for line in report_of(ledger, by, previous(asked)).lines}
    found = [
        Compared(key, now.get(key, Line(key)), before.get(key, Line(key)))
        for key in dict.fromkeys([*now, *before])
    ]
    return sorted(found, key=lambda one: (-one.now.cost, -one.before.cost))


def show_comparison(
    ledger: Ledger, asked: Asked, by: Sequence[str] = ("session",), *, top: int | None = None
) -> Shown:
    """A period beside the one before it."""
    lines = compare(ledger, asked, by)
    total = _sum((), lines)
    told, rest = (lines, []) if top is None else (lines[:top], lines[top:])
    rows = [line.as_dict(by) for line in told]
    earlier = previous(asked)
    span = [at.isoformat() if at else None for at in (earlier.since, earlier.until)]
    others = {"others": _sum((), rest).as_dict(()), "left_out": len(rest)} if rest else {}
    return Shown(
        rows,
        lambda: _table(told, rest, total, by, earlier),
        data={"by": list(by), "previous": span, "lines": rows, **others, "total": total.as_dict(())},
        columns=[*by, *total.as_dict(())],
        empty=f"No such calls ({asked.narrowed}), and none in the period before.",
    )


def _sum(key: Key, lines: Sequence[Compared]) -> Compared:
    now, before = Line(key), Line(key)
    for line in lines:
        now.add(line.now)
        before.add(line.before)
    return Compared(key, now, before)


def _table(
    lines: Sequence[Compared], rest: Sequence[Compared], total: Compared, by: Sequence[str], earlier: Asked
) -> Table:
    table = Table(box=None, pad_edge=False, show_footer=True, header_style="bold", footer_style="bold")
    assert earlier.since is not None
    assert earlier.until is not None
    table.caption = f"before: {earlier.since:%Y-%m-%d %H:%M} to {earlier.until:%Y-%m-%d %H:%M}"
    table.caption_justify = "left"
    for place, name in enumerate(by):
        table.add_column(name, footer="" if place else "total", overflow="fold", min_width=8)
    for header, footer in zip(("calls", "before", "cost", "before", "change"), _cells(total), strict=True):
        table.add_column(header, footer=footer, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*map(id_or_none, line.key), *_cells(line))
    if rest:
        others = Text(f"({count(len(rest))} others)", style="dim italic")
        table.add_row(others, *[""] * (len(by) - 1), *_cells(_sum((), rest)))
    return table


def _cells(line: Compared) -> tuple[str, ...]:
    now, before = line.now, line.before
    return count(now.calls), count(before.calls), format_usd(now.cost), format_usd(before.cost), line.change
