"""From how a call ended to what is written down: its amounts, its entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..ledger.book import Booked, Entry, Rows, settle, unknown
from ..prices import ModelPricing, Terms
from ..prices.rates import round_nano
from ..prices.terms import named, terms_of
from ..rules.errors import UnknownPrice
from ..rules.units import unit_of
from ..wire import METERED_OPERATIONS
from ..wire.fields import ONE, times
from ..wire.overheads import Learnt, server_name
from .holds import Hold
from .outcomes import Outcome
from .plan import TOOL, Plan
from .planning import Planner
from .writing import Writing, dropping

_USAGE_FIELDS = (
    "input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens",
    "reasoning_tokens", "input_audio_tokens", "output_audio_tokens",
)  # fmt: skip


def booking(
    hold: Hold, outcome: Outcome, planner: Planner, flags: list[str], *, release: bool
) -> tuple[Mapping[str, int], dict[str, Any], int | None, Terms | None]:
    """(what to book by unit, the entry's tokens, its cost in nano-dollars, by what it was priced).

    Args:
        flags: what is to be noticed about it is added here.
        release: book nothing where the usage is unknown.
    """
    plan = hold.plan
    if outcome.status == "failed":
        return {}, {}, 0, None
    usage = outcome.usage
    if usage is None:
        return (*unknown(hold.amounts, book=not release), None)
    inputs, output = usage.input_tokens, usage.output_tokens
    amounts = {
        "tokens": inputs + output,
        "input_tokens": inputs,
        "output_tokens": output,
        "calls": 0 if plan.operation == TOOL else 1,
    }
    for name in plan.shape.units:
        if name not in amounts and name != "usd":
            unit = unit_of(name)
            assert unit is not None
            amounts[name] = unit.booked(usage)
    # An allowance is booked as given, unless the reply tells how often what it is for was used.
    told = plan.allowance and _are_told(plan, outcome)
    cost = None if told else plan.allowance.get("usd")
    tokens: dict[str, Any] = {n: getattr(usage, n) for n in _USAGE_FIELDS}
    terms: Terms | None = None
    besides = 0
    if plan.operation in METERED_OPERATIONS and plan.pricing is not None:
        reply = planner.pricing.for_reply(plan.pricing, plan.model, outcome.model, plan.provider, plan.models)
        tier, size = outcome.service_tier, plan.search_context
        most = -1
        for p in reply.pricings:
            multiplier = _multiplier(plan, p, outcome, flags)
            nano = p.cost(usage, tier, multiplier=multiplier, search_context=size)
            uses = (
                round_nano(sum(p.uses.get(n, 0) * c for n, c in outcome.uses.items())) if outcome.uses else 0
            )
            if nano + uses > most:
                most, besides = nano + uses, uses + (cost or 0)
                terms = terms_of(p, usage, tier, multiplier, size)
        if terms is not None:
            tokens["rates"] = named(terms, besides, usage.cache_write_1h_tokens)
        cost = most + (cost or 0)
        if reply.other:
            flags.append("other_model")
        if not reply.known or any(p.unpriced(usage, tier, search_context=size) for p in reply.pricings):
            flags.append("unpriced")
    if cost is not None:
        amounts["usd"] = cost
    return amounts, tokens, cost, terms


def _are_told(plan: Plan, outcome: Outcome) -> bool:
    """Whether the reply tells all that an allowance was for, and it has a price."""
    if plan.pricing is None or outcome.uses is None:
        return False
    return all(name in outcome.uses and name in plan.pricing.uses for name in plan.features)


def _multiplier(
    plan: Plan, pricing: ModelPricing, outcome: Outcome, flags: list[str]
) -> tuple[int, int] | None:
    """What the price of the tokens is multiplied by: as the reply says, else as was asked for."""
    if not outcome.terms:
        return plan.multiplier
    try:
        said = pricing.multiplier(outcome.terms)
    except UnknownPrice:
        flags.append("unpriced")
        return plan.multiplier
    over, under = times(said or ONE, plan.dearer or ONE)
    return None if over == under else (over, under)


def _keep(rows: Rows, server: str, model: str, learnt: Learnt) -> None:
    """Add what has been learnt to what is kept: others have learnt, too."""
    kept = rows.lessons().get((server, model))
    rows.keep_lesson(server, model, (learnt if kept is None else Learnt.from_row(kept) | learnt).as_row())


def end_work(hold: Hold, outcome: Outcome, planner: Planner, *, release: bool, now: int) -> Writing:
    """The store operation that ends `hold`."""
    if outcome.status == "cancelled":
        return dropping(hold.id)
    plan = hold.plan
    status: str = outcome.status
    flags = list(outcome.flags)
    if status == "assumed" and release:
        flags.append("released")
    learnt: Learnt | None = None
    if plan.sized is not None and status == "settled" and outcome.usage is not None:
        where, size, bound = plan.sized
        learnt = planner.lessons.learn(where, plan.model, size, bound, outcome.usage.input_tokens)
    amounts, usage, cost, terms = booking(hold, outcome, planner, flags, release=release)
    told = outcome.usage is not None and _are_told(plan, outcome)
    if plan.allowance and status != "failed" and plan.operation != TOOL and not told:
        flags.append("allowance")
        status = "estimated" if status == "settled" else status

    def work(rows: Rows) -> Booked:
        entry = Entry(
            **plan.shape.fields,
            call_id=hold.id,
            at=now,
            status=status,
            started=hold.started,
            service_tier=outcome.service_tier,
            **usage,
            cost=cost,
            calls=amounts.get("calls", 0),
            output_limit=hold.output_limit,
            lowered_from=hold.lowered_from,
            flags=",".join(flags),
            note=outcome.note,
            provider_id=outcome.provider_id,
        )
        if outcome.model:
            entry.model = outcome.model
        if learnt is not None and plan.sized is not None:
            _keep(rows, server_name(plan.sized.where), plan.model, learnt)
        if terms is not None:
            rows.keep_terms(terms.id, terms.text)
        book = settle if hold.draw is None else hold.draw.settle
        return book(rows, entry=entry, amounts=amounts, claims=hold.claims, now=now)

    return work
