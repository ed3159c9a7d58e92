"""Answers that were cut off because a budget had no room for more, where a framework makes an error of that.

The limit of an answer is lowered near the cap. Some frameworks take an answer that ends there for a failure
of the model: whoever called is then told what it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ...engine.holds import Hold
from ...rules.balance import Shortfall
from ...rules.errors import BudgetExceeded

_noted: ContextVar[list[Hold] | None] = ContextVar("behest_noted", default=None)


@contextmanager
def noting(holds: list[Hold]) -> Iterator[None]:
    """Have the holds of calls made inside noted."""
    token = _noted.set(holds)
    try:
        yield
    finally:
        _noted.reset(token)


def note(hold: Hold) -> None:
    """A door has reserved a call."""
    holds = _noted.get()
    if holds is not None:
        holds.append(hold)


def cut_off(holds: list[Hold]) -> BudgetExceeded | None:
    """What to tell of an answer that ended at its limit; None if that was the caller's own."""
    hold = holds[-1] if holds else None
    if hold is None or hold.lowered_from is None or hold.output_limit is None:
        return None
    engine = hold.keeper
    standing = getattr(engine, "standing", None)
    balance = standing(hold) if standing is not None else None
    if balance is None:
        return None
    need = hold.plan.ask.needs.get(balance.unit)
    asked = need.amount(hold.lowered_from) if need is not None else 0
    return BudgetExceeded(Shortfall(**vars(balance), asked=asked, cut_at=hold.output_limit), "exhausted")


def hang_up(holds: list[Hold]) -> Any:
    """The last of these calls is left before its end: its SDK leaves that to the garbage collector, and till
    then the provider goes on, and what it holds is held.

    Returns:
        What may have to be awaited.
    """
    hanging_up = holds[-1].last.hang_up if holds else None
    return hanging_up() if hanging_up is not None else None
