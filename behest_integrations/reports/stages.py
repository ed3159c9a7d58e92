"""Spending as the tree of `meter.budget(...)` blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rich.console import Group
from rich.markup import escape
from rich.tree import Tree

from ..ledger import Ledger
from ..rules.units import format_usd
from .look import count
from .shown import Asked, Shown
from .spending import Line, report_of


@dataclass
class StageNode:
    """A stage and the stages inside it; a node's line includes its children's."""

    name: str
    line: Line
    children: list[StageNode]


def stages(ledger: Ledger, *, session: str | None = None) -> list[StageNode]:
    """Spending as the tree of `meter.budget(...)` blocks; calls outside any are left out."""
    return stage_nodes(ledger, Asked(session=session))


def stage_nodes(ledger: Ledger, asked: Asked) -> list[StageNode]:
    """The same, for whom is asked."""
    roots: list[StageNode] = []
    for line in report_of(ledger, ("stage",), asked).lines:
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


def stage_tree(nodes: Sequence[StageNode]) -> Tree:
    """Stages and what they spent, as a tree."""

    def label(node: StageNode) -> str:
        line = node.line
        return f"{escape(node.name)}  [bold]{format_usd(line.cost)}[/]  [dim]{count(line.calls)} calls[/]"

    tree = Tree("stages", guide_style="dim")

    def grow(branch: Tree, children: Iterable[StageNode]) -> None:
        for child in children:
            grow(branch.add(label(child)), child.children)

    grow(tree, nodes)
    return tree


def with_stages(shown: Shown, ledger: Ledger, asked: Asked) -> Shown:
    """A report with the tree of stages under its table, for people, if there are any."""
    tree = stage_nodes(ledger, asked) if shown.rows else []
    return replace(shown, table=lambda: Group(shown.table(), "", stage_tree(tree))) if tree else shown
