"""What a budget can count: one row a unit, and how amounts are written.

A new unit is a row in `UNITS`, or one that another package registers under the entry point
`behest_integrations.units` (a `Unit`). Dollars need prices: how much they may come to is worked
out where prices are known (`engine.planning`), and they are special in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from .usage import Usage

NANO = 1_000_000_000
"""Nano-dollars in a dollar: money is kept as integers of 1e-9 USD."""


class Need(NamedTuple):
    """What a call needs of one unit, as a function of its output limit.

    ``ceil((fixed + per_output * output) / scale)``: the scale keeps money exact below a
    nano-dollar until the one rounding, upward, at the end.
    """

    fixed: int
    per_output: int = 0
    scale: int = 1

    def amount(self, output: int) -> int:
        return -(-(self.fixed + self.per_output * output) // self.scale)

    def most_output(self, left: int, want: int) -> int:
        """The largest output, at most `want`, that fits in `left`; -1 if not even 0 does."""
        room = left * self.scale - self.fixed
        if room < 0:
            return -1
        return want if not self.per_output else min(want, room // self.per_output)


class Worst(NamedTuple):
    """The most tokens that a request can come to.

    Attributes:
        inputs: of the prompt.
        extra: of output that the output limit does not bound.
        choices: how many times the output limit can be used up.
    """

    inputs: int
    extra: int
    choices: int


@dataclass(frozen=True)
class Unit:
    """Something that a budget counts.

    Attributes:
        name: in code, in the store and on the wire; `words` is how it is written in a budget.
        bound: the most that a request needs of it.
        booked: how much of it a call has used, by its usage.
        output: whether the output limit bounds it, so that lowering the limit helps.
        bounded: whether it needs a bound of the request's tokens (`calls` does not).
    """

    name: str
    words: str
    bound: Callable[[Worst], Need]
    booked: Callable[[Usage], int]
    output: bool = False
    bounded: bool = True


UNITS: dict[str, Unit] = {
    unit.name: unit
    for unit in (
        Unit(
            "tokens",
            "tokens",
            lambda w: Need(w.inputs + w.extra, w.choices),
            lambda u: u.input_tokens + u.output_tokens,
            output=True,
        ),
        Unit("input_tokens", "input tokens", lambda w: Need(w.inputs), lambda u: u.input_tokens),
        Unit(
            "output_tokens",
            "output tokens",
            lambda w: Need(w.extra, w.choices),
            lambda u: u.output_tokens,
            output=True,
        ),
        Unit("calls", "calls", lambda w: Need(1), lambda u: 1, bounded=False),
    )
}
"""By name; dollars (``usd``, written ``$5``) are beside them."""

GROUP = "behest_integrations.units"
_looked = False


def known_units() -> dict[str, Unit]:
    """`UNITS`, with those that other installed packages register."""
    global _looked
    if not _looked:
        _looked = True
        from importlib.metadata import entry_points  # slow, and only for a unit that is not ours

        for point in entry_points(group=GROUP):
            unit = point.load()
            if not isinstance(unit, Unit):
                raise TypeError(f"the entry point {point.name!r} of {GROUP} is no Unit: {unit!r}")
            UNITS.setdefault(unit.name, unit)
    return UNITS


def unit_of(name: str) -> Unit | None:
    """The unit of this name; None if there is none, and for ``usd``."""
    return UNITS.get(name) or known_units().get(name)


# ── how amounts are written ────────────────────────────────────────────────────────────


def to_usd(nano: int) -> Decimal:
    """Integer nano-dollars as USD."""
    return Decimal(nano).scaleb(-9)


def format_usd(nano: int) -> str:
    """Nano-dollars as exact text: ``$5``, ``$0.50``, ``$0.00015``."""
    sign, nano = ("-", -nano) if nano < 0 else ("", nano)
    whole, fraction = divmod(nano, NANO)
    if not fraction:
        return f"{sign}${whole}"
    digits = f"{fraction:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}${whole}.{digits}"


def format_amount(amount: int, unit: str) -> str:
    """An amount as it is written in a budget: ``$0.50``, ``50k tokens``, ``10 calls``."""
    if unit == "usd":
        return format_usd(amount)
    known = UNITS.get(unit)
    return f"{_format_count(amount)} {known.words if known else unit.replace('_', ' ')}"


def _format_count(n: int) -> str:
    for suffix, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if n and n % (size // 10) == 0 and abs(n) >= size:
            whole, tenth = divmod(n, size)
            return f"{whole}{suffix}" if not tenth else f"{whole}.{tenth * 10 // size}{suffix}"
    return str(n)
