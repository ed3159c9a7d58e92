"""Reports for people: tables and bars that fit in 80 columns and behave in a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from ..ledger import Ledger
from ..rules.units import format_amount, format_usd
from .queries import BucketLine, Line, Report, StageNode, report


def console(file: TextIO | None = None) -> Console:
    """The terminal, or 100 plain columns in a pipe, where nothing is to be cut."""
    out = Console(highlight=False, file=file)
    if not out.is_terminal:
        width = max(100, out.width if out.width != 80 else 100)
        out = Console(highlight=False, file=file, width=width, soft_wrap=False)
    return out


def count(n: int) -> str:
    return f"{n:,}"


def usd(nano: int) -> Text:
    return Text(format_usd(nano), justify="right")


def _name(value: str | None) -> Text:
    """An id as it is, or a word for its absence that cannot be taken for an id."""
    return Text("(none)", style="dim italic") if value is None else Text(value)


def report_table(found: Report) -> Table:
    """A report's lines, and their total."""
    table = Table(box=None, pad_edge=False, show_footer=True, header_style="bold", footer_style="bold")
    for i, name in enumerate(found.by):
        table.add_column(name, footer="total" if i == 0 else "", overflow="fold", min_width=8)
    total = found.total
    optional: list[tuple[str, int, Callable[[Line], str]]] = [
        ("unpriced", total.unpriced, lambda x: count(x.unpriced)),
        ("failed", total.failed, lambda x: count(x.failed)),
        ("refused", total.refused, lambda x: count(x.refused)),
        ("estimated", total.estimated, lambda x: format_usd(x.estimated)),
        ("assumed", total.assumed, lambda x: format_usd(x.assumed)),
    ]
    shown = [(name, show) for name, worth, show in optional if worth]
    right: list[tuple[str, str]] = [
        ("calls", count(total.calls)),
        ("in", count(total.input_tokens)),
        ("out", count(total.output_tokens)),
        *((name, show(total)) for name, show in shown),
        ("cost", format_usd(total.cost)),
    ]
    for header, footer in right:
        table.add_column(header, footer=footer, justify="right", no_wrap=True)
    for line in found.lines:
        table.add_row(
            *(_name(k) for k in line.key),
            count(line.calls),
            count(line.input_tokens),
            count(line.output_tokens),
            *(show(line) for _, show in shown),
            format_usd(line.cost),
        )
    return table


def print_report(ledger: Ledger, by: Sequence[str] = ("session",), *, file: TextIO | None = None) -> None:
    """Print what was spent, by session, user, model, …: see `report`."""
    console(file).print(report_table(report(ledger, by)))


def stage_tree(nodes: Sequence[StageNode]) -> Tree:
    """Stages and what they spent, as a tree."""

    def label(node: StageNode) -> str:
        line: Line = node.line
        return f"{escape(node.name)}  [bold]{format_usd(line.cost)}[/]  [dim]{count(line.calls)} calls[/]"

    tree = Tree("stages", guide_style="dim")

    def grow(branch: Tree, children: Iterable[StageNode]) -> None:
        for child in children:
            grow(branch.add(label(child)), child.children)

    grow(tree, nodes)
    return tree


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


def budget_table(lines: Sequence[BucketLine], now: datetime) -> Table:
    """Each bucket: how full it is and when it turns over."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("budget, whose", overflow="fold", min_width=18)
    table.add_column("", no_wrap=True)
    for header in ("spent", "held", "left", "resets"):
        table.add_column(header, justify="right", overflow="fold")
    for line in lines:
        name = Text(line.budget)
        if line.scope:
            name.append(f"\n  {line.scope}", style="dim")
        if line.refused:
            name.append(f"\n  {count(line.refused)} refused", style="red")
        limit = line.limit

        def amount(n: int, unit: str = line.unit) -> str:
            return format_amount(n, unit).split(" ", 1)[0] if unit != "usd" else format_usd(n)

        table.add_row(
            name,
            bar(line.spent, line.held, limit, 10) if limit is not None else "",
            amount(line.spent),
            amount(line.held) if line.held else "",
            amount(max(0, limit - line.spent - line.held)) if limit is not None else "no limit",
            resets(line.end, now),
        )
    return table


def resets(end_ms: int | None, now: datetime) -> str:
    """When a window turns over: soon as a duration, later as a date."""
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
    return f"{at:%b %d %H:%M}"


def key_table(keys: Iterable[Mapping[str, Any]]) -> Table:
    """The gateway's keys, as the fields of each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("key", "tenant", "project", "tier", "end users", "name", "created", "state"):
        table.add_column(name, overflow="fold")
    for key in keys:
        made = datetime.fromtimestamp(key["created"] / 1000, timezone.utc)
        table.add_row(
            key["id"],
            Text(key["tenant"]),
            Text(key["project"]),
            _name(key["tier"]),
            "any" if key["end_users"] else "none",
            Text(key["name"]),
            f"{made:%Y-%m-%d}",
            Text("revoked", style="red") if key["revoked"] else Text("in use", style="green"),
        )
    return table
