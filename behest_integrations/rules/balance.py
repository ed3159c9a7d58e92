"""A bucket as it stands, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from .units import format_amount

Reason = Literal["exhausted", "busy", "too_large"]


@dataclass(frozen=True)
class Balance:
    """One bucket as it stands. Amounts are in the budget's unit (nano-dollars for ``usd``).

    Attributes:
        budget: the budget's text, with the limit now in force.
        scope: whom the bucket is for, e.g. ``user u-7`` ("" for everyone).
        unit: what is counted: ``usd``, ``tokens``, …
        limit, spent, held: the bucket's state.
        resets_at: when the window turns over; None: never, or rolling.
        soft: it warns only: more than the limit may be spent.
    """

    budget: str
    scope: str
    unit: str
    limit: int
    spent: int
    held: int
    resets_at: datetime | None
    soft: bool = False

    @property
    def left(self) -> int:
        """What is neither spent nor held, never below 0."""
        return max(0, self.limit - self.spent - self.held)

    @property
    def over(self) -> int:
        """What is spent beyond the limit."""
        return max(0, self.spent - self.limit)

    def __str__(self) -> str:
        whom = f" ({self.scope})" if self.scope else ""
        left = f"{format_amount(self.left, self.unit)} left"
        if self.soft and self.over:
            left = f"{format_amount(self.over, self.unit)} over"
        return (
            f"{self.budget}{whom}: {format_amount(self.spent, self.unit)} spent, "
            f"{format_amount(self.held, self.unit)} held, {left}"
        )


@dataclass(frozen=True, kw_only=True)
class Shortfall(Balance):
    """The bucket that refused a call.

    Attributes:
        asked: the smallest amount with which the call could have gone ahead.
        frees_at: when so much of a rolling window will have left it that the call fits.
        around: what is held by what the call is made inside of (a tool with a price), where that
            alone leaves too little: it ends only after the call.
        key: the bucket's shape and scope key, by which the ledger knows it.
        cut_at: the output tokens that it left for an answer, which was cut off there; 0: the call was
            not made.
    """

    asked: int
    frees_at: datetime | None = None
    around: int = 0
    key: tuple[str, str] = field(default=("", ""), repr=False)
    cut_at: int = 0

    def say(self, reason: Reason, now: datetime) -> str:
        """The refusal for people: what happened, the numbers, what to do next."""

        def amount(n: int) -> str:
            return format_amount(n, self.unit)

        whom = f" for {self.scope}" if self.scope else ""
        numbers = (
            f"limit {amount(self.limit)}, spent {amount(self.spent)}, held by calls in flight "
            f"{amount(self.held)}; this call needs at least {amount(self.asked)}"
        )
        if self.around:
            advice = (
                f"Of that, {amount(self.around)} are held by what this call is made inside of, which ends "
                "only after it, so waiting would not help: raise the budget, or make the call outside."
            )
        elif reason == "too_large":
            advice = (
                "It would not fit even if nothing were spent: shorten the prompt, "
                "choose a cheaper model, or raise the budget."
            )
        elif reason == "busy":
            advice = (
                "Calls in flight hold the rest: try again when they end, or let the meter wait longer: "
                "Meter(wait=60)."
            )
        elif self.resets_at is not None:
            seconds = max(0, round((self.resets_at - now).total_seconds()))
            advice = f"It resets at {self.resets_at:%Y-%m-%d %H:%M:%S %Z} (in {seconds} s)."
        elif self.frees_at is not None:
            seconds = max(0, round((self.frees_at - now).total_seconds()))
            advice = f"Enough of it frees up at {self.frees_at:%Y-%m-%d %H:%M:%S %Z} (in {seconds} s)."
        else:
            advice = "Raise the budget to go on."
        what = "refused the call before it reached the provider"
        if self.cut_at:
            what = f"had room for {self.cut_at:,} tokens of an answer, which was cut off there"
        return f'Budget "{self.budget}"{whom} {what}: {numbers}. {advice}'
