"""How a report looks: the console, and what tables are made of. Whole in 80 columns and in a pipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ..rules.units import format_usd


def console(file: TextIO | None = None) -> Console:
    """The terminal, or as many plain columns as there are: `COLUMNS`, or 80."""
    return Console(highlight=False, file=file)


def show(found: RenderableType, file: TextIO | None = None) -> None:
    """Print, in the width that there is. Ids fold; where that is not enough, lines are longer than
    that, for no number is ever cut."""
    out = console(file)
    parts = found.renderables if isinstance(found, Group) else [found]
    out.width = max(out.width, *(_least(part, out) for part in parts if isinstance(part, Table)), 0)
    out.print(found)


def _least(table: Table, out: Console) -> int:
    """The width below which something is cut that does not fold."""
    wide = out.options.update(width=10_000)
    width = 2 * len(table.columns)  # rich 13 pads the last one as well
    for column in table.columns:
        if column.no_wrap:
            cells = (column.header, *column.cells, column.footer)
            width += max(Measurement.get(out, wide, cell).maximum for cell in cells)
        else:
            width += column.min_width or 8
    return width


def count(n: int) -> str:
    return f"{n:,}"


def usd(nano: int) -> Text:
    return Text(format_usd(nano), justify="right")


def id_or_none(value: str | None) -> Text:
    """An id as it is, or a word for its absence that cannot be taken for an id."""
    return Text("(none)", style="dim italic") if value is None else Text(value)


def rows_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows as they are: text on the left, numbers on the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, value in rows[0].items() if rows else ():
        number = isinstance(value, int)
        table.add_column(name, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in rows:
        table.add_row(*(count(v) if isinstance(v, int) else id_or_none(v) for v in row.values()))
    return table


def bar(spent: int, held: int, limit: int, width: int = 20) -> Text:
    """Spent, held and left; at least one cell for anything that is not nothing."""
    if limit <= 0:
        return Text("█" * width, style="red")
    full = min(width, -(-spent * width // limit)) if spent else 0
    waiting = min(width - full, -(-held * width // limit)) if held else 0
    style = "red" if spent >= limit else "yellow" if spent * 5 >= limit * 4 else "green"
    text = Text("█" * full, style=style)
    text.append("▒" * waiting, style="blue")
    text.append("░" * (width - full - waiting), style="dim")
    return text


def resets(end_ms: int | None, now: datetime, *, short: bool = False) -> str:
    """When a window turns over: soon as a duration, later as a date (`short`: without the hour)."""
    if end_ms is None:
        return "never"
    at = datetime.fromtimestamp(end_ms / 1000, timezone.utc)
    seconds = int((at - now).total_seconds())
    if seconds < 0:
        return "passed"
    if seconds < 3600:
        return f"in {seconds // 60}m{seconds % 60:02d}s"
    if seconds < 86400:
        return f"in {seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{at:%b %d}" if short else f"{at:%b %d %H:%M}"
