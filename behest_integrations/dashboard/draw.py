"""SVG, drawn on the server from the numbers that stand in a table beside it.

Bars are in a box of 1000 by 100 that is stretched to its place, and words are HTML around it: so they
stay legible at any width. No style attributes: the pages' policy allows none. Colours are classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal

from markupsafe import Markup

WIDTH, HEIGHT = 1000, 100
COLOURS = 8
"""Classes ``c0`` to ``c7`` are series by their rank; ``c8`` is all that come after them."""


@dataclass(frozen=True)
class Bar:
    """A column of a chart: what is stacked in it, from below, and what it says when it is pointed at."""

    parts: Sequence[tuple[int, int]]
    """(colour, amount)"""
    title: str


def stacked(bars: Sequence[Bar], top: int, label: str) -> Markup:
    """Columns side by side; `top` is the amount at the upper edge."""
    pieces = [_svg("bars", HEIGHT, label)]
    slot = WIDTH / max(1, len(bars))
    gap = min(3.0, slot * 0.18)
    for place, bar in enumerate(bars):
        left = place * slot
        hit = Markup('<g><title>{}</title><rect class="hit" x="{}" y="0" width="{}" height="{}"/>')
        pieces.append(hit.format(bar.title, _n(left), _n(slot), HEIGHT))
        base = float(HEIGHT)
        for colour, amount in bar.parts:
            if amount <= 0:
                continue
            height = max(0.6, HEIGHT * amount / top) if top > 0 else 0.0
            base = max(0.0, base - height)
            pieces.append(Markup('<rect class="c{}" x="{}" y="{}" width="{}" height="{}"/>').format(
                colour, _n(left + gap / 2), _n(base), _n(slot - gap), _n(height)))  # fmt: skip
        pieces.append(Markup("</g>"))
    pieces.append(Markup("</svg>"))
    return Markup("").join(pieces)


def gauge(spent: int, held: int, limit: int, label: str) -> Markup:
    """How full a budget is: spent, held by calls in flight, left."""
    full = _part(spent, limit)
    waiting = min(WIDTH - full, _part(held, limit))
    state = "over" if spent >= limit else "near" if spent * 5 >= limit * 4 else "fine"
    return Markup(
        '<svg class="gauge {}" viewBox="0 0 {} 8" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<rect class="rest" width="{}" height="8"/><rect class="spent" width="{}" height="8"/>'
        '<rect class="held" x="{}" width="{}" height="8"/></svg>'
    ).format(state, WIDTH, label, WIDTH, full, full, waiting)


def strip(parts: Sequence[tuple[int, int, str]], label: str) -> Markup:
    """One bar across, of (colour, amount, title)."""
    whole = sum(amount for _, amount, _ in parts)
    pieces = [_svg("strip", 8, label)]
    left = 0
    for colour, amount, title in parts:
        if amount <= 0:
            continue
        width = _part(amount, whole)
        pieces.append(
            Markup('<rect class="c{}" x="{}" width="{}" height="8"><title>{}</title></rect>').format(
                colour, left, width, title
            )
        )
        left += width
    return Markup("").join([*pieces, Markup("</svg>")])


def _svg(kind: str, height: int, label: str) -> Markup:
    return Markup(
        '<svg class="{}" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">'
    ).format(kind, WIDTH, height, label)


def _part(part: int, whole: int) -> int:
    """Of `WIDTH`; what is not nothing is seen."""
    if part <= 0:
        return 0
    return max(4, min(WIDTH, part * WIDTH // whole)) if whole > 0 else WIDTH


def scale(most: int) -> int:
    """A round number that is at least `most`, for a chart's upper edge."""
    if most <= 0:
        return 1
    power = int(Decimal(most).log10().to_integral_value(ROUND_FLOOR))
    for digits in (10, 15, 20, 25, 30, 40, 50, 60, 80, 100):
        at: int = digits * 10**power // 10
        if at >= most:
            return at
    return most


def ranks(names: Sequence[str]) -> Mapping[str, int]:
    """A colour for each, in their order."""
    return {name: min(place, COLOURS) for place, name in enumerate(names)}


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


__all__ = ["Bar", "gauge", "ranks", "scale", "stacked", "strip"]
