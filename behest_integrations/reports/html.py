"""HTML as elements. They are made, and never put together as text: so an id that looks like a tag is
shown as the text that it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element, tostring

Cell = Element | str


def el(tag: str, *inside: Cell, **attributes: str) -> Element:
    """An element with text and elements inside; `class_` is its class."""
    made = Element(tag, {name.rstrip("_").replace("_", "-"): v for name, v in attributes.items()})
    for part in inside:
        if isinstance(part, Element):
            made.append(part)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + part
        else:
            made.text = (made.text or "") + part
    return made


def text_of(element: Element) -> str:
    """An element as HTML."""
    return tostring(element, encoding="unicode", method="html")


def id_cell(value: str | None) -> Element:
    """An id, which does not turn the line around whatever script it is in; or a word for its absence."""
    return el("i", "(none)", class_="dim") if value is None else el("bdi", value)


def table(
    headers: Sequence[str], rows: Iterable[Sequence[Cell]], foot: Sequence[Cell] | None, text_columns: int
) -> Element:
    """A table.

    Args:
        foot: its last row; None: none.
        text_columns: how many columns, from the left, are text; the others are numbers.
    """

    def cells(kind: str, row: Sequence[Cell]) -> Element:
        scope = {"scope": "col"} if kind == "th" else {}
        return el(
            "tr",
            *(
                el(kind, cell, **scope, **({"class_": "n"} if place >= text_columns else {}))
                for place, cell in enumerate(row)
            ),
        )

    made = el("table", el("thead", cells("th", headers)), el("tbody", *(cells("td", row) for row in rows)))
    if foot is not None:
        made.append(el("tfoot", cells("td", foot)))
    return made
