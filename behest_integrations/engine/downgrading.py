"""A call as it was asked for, or of a cheaper model: where a budget in dollars is nearly used up, or the
model that was asked for does not fit.

Which model stands in is decided before anything is reserved; what is reserved, and how, is the engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol, TypeVar

from ..ledger.base import Work
from ..ledger.book import Limits, Rows
from ..ledger.operations import Operation
from ..rules.errors import CallRefused, ConfigError
from .holds import Hold
from .plan import Plan
from .refusing import NoRoom
from .steps import Steps

if TYPE_CHECKING:
    from .engine import Engine


class Planned(Protocol):
    """A call that has a plan."""

    @property
    def plan(self) -> Plan: ...


C = TypeVar("C", bound=Planned)


def reserving_either(engine: Engine, asked: C, instead: Callable[[str], C | None]) -> Steps[tuple[C, Hold]]:
    """The steps that reserve a call as it was asked for, or with a cheaper model; the call that is made.

    Cheaper comes before shorter: the model that was asked for fits if its whole answer does.

    Args:
        instead: the same call of another model; None, or a refusal: it cannot be made of that.

    Raises:
        BudgetExceeded: neither fits.
        StoreError: as for `Engine.reserving`.
    """
    downgrade = engine.downgrade
    chain = downgrade.after(asked.plan.model) if downgrade is not None else ()
    if not chain or downgrade is None or "usd" not in asked.plan.shape.hard or _is_decided(asked.plan):
        return asked, (yield from engine.reserving(asked.plan))
    outer = asked.plan.outer
    candidates = _cheaper(asked, chain, instead)
    if not (yield share_used(engine, asked.plan)) >= downgrade.at:
        call: C | None = asked
        following: C | None = None
    else:
        call, following = next(candidates, None), None
        if call is None:
            return asked, (yield from engine.reserving(asked.plan))
    while True:
        assert call is not None
        call.plan.outer = outer
        following = next(candidates, None)
        if following is None:
            return call, (yield from engine.reserving(call.plan))
        try:
            return call, (yield from engine.reserving(call.plan, trial=True))
        except NoRoom as none:
            if none.unit != "usd":  # no price would make it fit
                call.plan.outer = outer
                return call, (yield from engine.reserving(call.plan))
        call = following


def _is_decided(plan: Plan) -> bool:
    """Whether the layer around it has a cheaper model in it already."""
    return plan.asked_model is not None


def _cheaper(asked: C, chain: tuple[str, ...], instead: Callable[[str], C | None]) -> Iterator[C]:
    """The same call of each model of the chain that can be asked it, and for less."""
    for name in chain:
        try:
            other = instead(name)
        except (CallRefused, ConfigError):
            continue
        if other is not None and _costs_less(other.plan, asked.plan) and _takes_in(other.plan):
            yield other


def _costs_less(plan: Plan, asked: Plan) -> bool:
    """At the same length of answer."""
    most = asked.ask.needs["usd"].amount(asked.ask.want)
    return plan.ask.needs["usd"].amount(asked.ask.want) < most


def _takes_in(plan: Plan) -> bool:
    """Whether its prompt is not too long for it, as far as that is known."""
    window = plan.pricing.context_window if plan.pricing is not None else None
    return window is None or plan.ask.needs["input_tokens"].amount(0) <= window


def share_used(engine: Engine, plan: Plan) -> Work[int]:
    """The store operation that tells how full, in percent, the fullest budget in dollars of a call is,
    without what the layer around it holds for it. Those that only warn are of no account."""
    planner, now, outer = engine.planner, engine.now(), plan.outer
    claims = [claim for claim in planner.claims(plan, now) if claim.unit == "usd" and not claim.soft]

    def work(rows: Rows) -> int:
        limits, most = Limits(rows, now), 0
        for claim in claims:
            there = planner.standing(rows, limits, claim, now)
            if there is not None:
                own = outer.holds_in(claim.key, "usd") if isinstance(outer, Hold) else 0
                most = max(most, 100 * (there.spent + there.held - own) // max(1, there.limit))
        return most

    return Operation(work, reads=True)
