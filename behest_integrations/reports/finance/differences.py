"""A day and model of an invoice beside what is booked of it, and why they differ."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import date
from decimal import Decimal
from typing import Any

from ...prices import FEMTO_PER_NANO, Pricing
from ...prices.rates import Rates
from ...rules.errors import UnknownPrice
from ...rules.units import to_usd
from ...rules.usage import Usage
from .invoices import BilledLine

UNSEEN = "calls that were never seen here"
NOT_BILLED = "calls that were not billed"
ASSUMED = "worst cases and estimates against what was billed"
UNPRICED = "calls that had no price here"
PRICE = "another price"
ROUNDING = "rounding"
UNEXPLAINED = "not known: the invoice has no tokens"
CAUSES = (UNSEEN, NOT_BILLED, ASSUMED, UNPRICED, PRICE, ROUNDING, UNEXPLAINED)


@dataclass
class Booked:
    """What the books have of one day and model. Costs in nano-dollars.

    Attributes:
        unsure: of calls that are `assumed` or `estimated`, which the rest has in it.
    """

    calls: int = 0
    inputs: int = 0
    outputs: int = 0
    cached: int = 0
    cost: int = 0
    unsure_calls: int = 0
    unsure_inputs: int = 0
    unsure_outputs: int = 0
    unsure_cost: int = 0
    unpriced_inputs: int = 0
    unpriced_outputs: int = 0

    def add(self, other: Booked) -> None:
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))


@dataclass
class Difference:
    """A day and model: what was billed, what is booked, and why they differ.

    Attributes:
        model: as the invoice has it; as the books do where the invoice has none of it.
        billed: nano-dollars; None: the invoice has no costs.
        booked: of the day as the invoice means it.
        causes: nano-dollars by cause; they add up to `difference`.
        moved: nano-dollars that lie on this day and not on another, because days are of the invoice's
            time zone and not of the one that was asked for. They are in no `difference`.
    """

    day: date
    model: str
    billed: int | None
    line: BilledLine
    booked: Booked
    causes: dict[str, int] = field(default_factory=dict)
    moved: int = 0

    @property
    def difference(self) -> int:
        """Nano-dollars that were billed beyond what is booked."""
        return 0 if self.billed is None else self.billed - self.booked.cost

    @property
    def tokens(self) -> int:
        """Tokens that were billed beyond what is booked."""
        return self.inputs + self.outputs

    @property
    def inputs(self) -> int:
        """Of the prompt."""
        return 0 if self.line.inputs is None else self.line.inputs - self.booked.inputs

    @property
    def outputs(self) -> int:
        """Of the answer."""
        return 0 if self.line.outputs is None else self.line.outputs - self.booked.outputs

    @property
    def calls(self) -> int:
        """Calls that were billed beyond those that are booked."""
        return 0 if self.line.requests is None else self.line.requests - self.booked.calls

    @property
    def per_cent(self) -> Decimal | None:
        """The difference in per cent of what is booked, to a hundredth; None of nothing."""
        if not self.booked.cost or self.billed is None:
            return None
        return (Decimal(self.difference) * 100 / self.booked.cost).quantize(Decimal("0.01"))

    def as_dict(self) -> dict[str, Any]:
        """For JSON and CSV: amounts in USD as exact text."""
        return {
            "day": self.day.isoformat(),
            "model": self.model,
            "billed_usd": None if self.billed is None else format(to_usd(self.billed), "f"),
            "booked_usd": format(to_usd(self.booked.cost), "f"),
            "difference_usd": format(to_usd(self.difference), "f"),
            "per_cent": None if self.per_cent is None else str(self.per_cent),
            "tokens": self.tokens,
            "calls": self.calls,
            "causes": {cause: format(to_usd(nano), "f") for cause, nano in self.causes.items()},
            "on_another_day_usd": format(to_usd(self.moved), "f"),
        }


def causes_of(line: Difference, pricing: Pricing, provider: str | None) -> dict[str, int]:
    """Why a day differs. What the causes come to is the difference, to the nano-dollar."""
    if line.billed is None:
        return {}
    if not (line.difference or line.inputs or line.outputs or line.calls):
        return {}
    causes: dict[str, int] = {}
    left, booked = line.difference, line.booked
    billed, cost = line.line, _Worth(line, booked, pricing, provider)
    sure_calls = booked.calls - booked.unsure_calls
    if billed.inputs is None or billed.outputs is None:
        if not booked.calls and not booked.cost:
            causes[UNSEEN] = left
        else:
            causes[ASSUMED] = max(-booked.unsure_cost, min(0, left))
            causes[UNEXPLAINED] = left - causes[ASSUMED]
    else:
        more_in = billed.inputs - (booked.inputs - booked.unsure_inputs)
        more_out = billed.outputs - (booked.outputs - booked.unsure_outputs)
        more_calls = None if billed.requests is None else billed.requests - sure_calls
        theirs = _of_unsure(booked, more_in, more_out, more_calls)
        unseen = cost.of(more_in - theirs[0], more_out - theirs[1])
        causes[UNSEEN if unseen > 0 else NOT_BILLED] = unseen
        causes[ASSUMED] = (
            cost.of(*theirs) - booked.unsure_cost if booked.unsure_calls or booked.unsure_cost else 0
        )
        causes[UNPRICED] = cost.of(booked.unpriced_inputs, booked.unpriced_outputs)
        rest = left - unseen - causes[ASSUMED] - causes[UNPRICED]
        causes[ROUNDING if abs(rest) <= _rounding(billed, booked) else PRICE] = rest
    return {cause: nano for cause in CAUSES if (nano := causes.get(cause, 0))}


def _of_unsure(booked: Booked, more_in: int, more_out: int, more_calls: int | None) -> tuple[int, int]:
    """How many of the tokens that were billed beyond those that are known are of calls whose outcome
    is not known."""
    if not booked.unsure_calls:
        return 0, 0
    if more_calls is None:
        return max(0, min(more_in, booked.unsure_inputs)), max(0, min(more_out, booked.unsure_outputs))
    if more_calls <= booked.unsure_calls:
        return more_in, more_out
    return more_in * booked.unsure_calls // more_calls, more_out * booked.unsure_calls // more_calls


class _Worth:
    """What tokens of a day and model would have been booked at."""

    def __init__(self, line: Difference, booked: Booked, pricing: Pricing, provider: str | None) -> None:
        self._line, self._booked = line, booked
        self._rates: Rates | None = None
        try:
            self._rates = pricing.find(line.model, provider).standard.rates(1)
        except UnknownPrice:
            pass  # what is booked says something
        billed = line.line
        # Of the prompts' tokens so many were cached, and cost less.
        self._cached = (billed.cached or 0, billed.inputs or 0) if billed.cached is not None else (0, 0)

    def of(self, inputs: int, outputs: int) -> int:
        """Nano-dollars."""
        if self._rates is not None:
            sign_in, sign_out = (-1 if inputs < 0 else 1), (-1 if outputs < 0 else 1)
            part, whole = self._cached
            cached = abs(inputs) * part // whole if whole else 0
            prompt = self._rates.cost(Usage(abs(inputs), cached_input_tokens=cached)) - self._rates.request
            answer = self._rates.cost(Usage(0, abs(outputs))) - self._rates.request
            return (sign_in * prompt + sign_out * answer) // FEMTO_PER_NANO
        known = (
            self._booked.inputs
            + self._booked.outputs
            - self._booked.unpriced_inputs
            - self._booked.unpriced_outputs
        )
        if self._booked.cost and known:
            return self._booked.cost * (inputs + outputs) // known
        whole = (self._line.line.inputs or 0) + (self._line.line.outputs or 0)
        return (self._line.billed or 0) * (inputs + outputs) // whole if whole else 0


def _rounding(billed: BilledLine, booked: Booked) -> int:
    """The most that rounding comes to: of each call to the nano-dollar, of the invoice to its last digit."""
    exponent = billed.cost.as_tuple().exponent if billed.cost is not None else -9
    digit = 10 ** max(0, 9 + exponent) if isinstance(exponent, int) and exponent < 0 else 1
    return booked.calls + (billed.requests or 0) + digit + 2
