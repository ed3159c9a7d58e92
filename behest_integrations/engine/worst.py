"""The worst that a bounded request comes to: in each unit, and by what its price is multiplied."""

from __future__ import annotations

from collections.abc import Mapping

from ..prices import FEMTO_PER_NANO, ModelPricing
from ..prices.providers import multiplier_for_url
from ..rules.units import UNITS, Need, Worst
from ..wire import RequestBound
from ..wire.fields import ONE, times
from .plan import Cost, needed_unit


def needs_of(
    bound: RequestBound,
    inputs: int,
    cost: Cost | None,
    allowance: Mapping[str, int],
    units: frozenset[str],
) -> dict[str, Need]:
    """What a request needs of each unit, by the output tokens that it is let have.

    Args:
        inputs: the most tokens of its prompt.
        cost: None where it has no price and needs none.
        allowance: what was allowed for what cannot be bounded.
        units: those that its budgets count.
    """
    extra = bound.extra_output
    choices = 0 if bound.output_limit == 0 else bound.choices
    worst = Worst(inputs, extra, choices)
    # What every entry tells, and what else a budget counts.
    needs = {name: unit.bound(worst) for name, unit in UNITS.items()}
    for name in units:
        if name not in needs and name != "usd":
            needs[name] = needed_unit(name).bound(worst)
    for name, more in allowance.items():
        if name != "usd":
            need = needs[name] if name in needs else needed_unit(name).bound(worst)
            needs[name] = need._replace(fixed=need.fixed + more)
    if cost is not None or "usd" in allowance:
        fixed, rate = cost or (0, 0)
        fixed += rate * extra + allowance.get("usd", 0) * FEMTO_PER_NANO
        needs["usd"] = Need(fixed, rate * choices, FEMTO_PER_NANO)
    return needs


def multiplier_of(
    bound: RequestBound, pricing: ModelPricing, where: str, model: str
) -> tuple[int, int] | None:
    """What the price of each token is multiplied by, for what is asked for and where."""
    dearer = multiplier_for_url(where, model) if where and not pricing.own else None
    if dearer is None and bound.multiplier is ONE and bound.tier_multiplier is ONE:
        return None
    over, under = times(bound.multiplier, dearer or ONE)
    tier = bound.service_tier or ""
    # A price of the user's own stands for whatever tier answers.
    named = pricing.own or tier in pricing.tiers or tier in pricing.ceilings
    if bound.tier_multiplier is not ONE and not named:
        over, under = over * bound.tier_multiplier[0], under * bound.tier_multiplier[1]
    return None if over == under else (over, under)
