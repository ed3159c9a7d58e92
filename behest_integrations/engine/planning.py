"""From a request to a plan, with one meter's budgets and settings."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from ..ledger.admission import Ask
from ..ledger.book import Bucket, Claim, Limits, Rows, Standing
from ..prices import ModelPricing, Pricing
from ..prices.providers import multiplier_for_url
from ..rules.attribution import (
    NOBODY,
    Attribution,
    check_required,
    current,
    parse_required,
    run_around,
)
from ..rules.balance import Balance
from ..rules.budgets import Budget, check_zone, describe_scope, parse_allowance
from ..rules.errors import ConfigError, Unbounded, UnknownPrice
from ..rules.units import UNITS, Need
from ..rules.usage import Usage
from ..wire import METERED_OPERATIONS, STORED_CONTEXT, RequestBound
from ..wire.overheads import Lessons
from .contexts import warn_if_lost
from .plan import TOOL, Cost, Outer, Plan, Shape, Sized, needed_unit
from .stages import Stage, active
from .worst import multiplier_of, needs_of

if TYPE_CHECKING:
    from ..policy import Verdict

_MOST_REMEMBERED = 10_000
_MOST_SHAPES = 4096
_NOTHING: Mapping[str, int] = {}
_BOUNDED: frozenset[str] = frozenset()
_ORDER = {unit: place for place, unit in enumerate(("usd", *UNITS))}


class Planner:
    """Turns requests into plans, with one meter's budgets and settings."""

    def __init__(
        self,
        *,
        owner: object,
        budgets: Iterable[str | Budget],
        pricing: Pricing,
        allow: Mapping[str, str | list[str] | tuple[str, ...]],
        zone: str,
        default_output: int,
        min_output: int,
        lower: bool,
        service_tier: str | Mapping[str, str] | None,
        defaults: Attribution,
        thresholds: Sequence[int],
        require: str | Iterable[str] = (),
        steps: Budget | None = None,
    ) -> None:
        self._owner = owner
        self._shapes: dict[tuple[Any, ...], Shape] = {}
        self.budgets = distinct(budgets)
        self.pricing = pricing
        self.zone = check_zone(zone)
        self._allow = {name: parse_allowance(amount) for name, amount in allow.items()}
        self._default_output = _at_least(1, default_output, "default_output_tokens")
        self._min_output = _at_least(1, min_output, "min_output_tokens")
        self._lower = lower
        self._tiers = _tiers(service_tier)
        self._defaults = defaults
        self._required = parse_required(require)
        self._steps = steps
        """Counts the calls of each session, for the loop guard."""
        if any(isinstance(t, bool) or not isinstance(t, int) or t < 1 for t in thresholds):
            raise ConfigError(f"thresholds are whole percentages of at least 1: {thresholds!r}")
        self._thresholds = tuple(sorted(set(thresholds)))
        self.lessons = Lessons()
        """What bills have taught of models whose tokenizer is not known."""
        self._contexts: OrderedDict[str, int] = OrderedDict()
        self._contexts_lock = threading.Lock()

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The meter's own budgets."""
        return self._budgets

    @budgets.setter
    def budgets(self, budgets: tuple[Budget, ...]) -> None:
        self._budgets = budgets
        self._shapes.clear()

    def who(self, explicit: Attribution, fallback: Attribution = NOBODY) -> Attribution:
        """Whom a call is for: said on the call, else the scope, else the client, else the meter."""
        who = _said(explicit, fallback)
        return who if self._defaults is NOBODY else who.over(self._defaults)

    def _shape(
        self,
        operation: str,
        model: str,
        provider: str | None,
        explicit: Attribution,
        fallback: Attribution,
        asked: str | None = None,
    ) -> Shape:
        who = _said(explicit, fallback)
        stages = active(self._owner)
        warn_if_lost(self._owner, who, stages)
        if self._defaults is not NOBODY:
            who = who.over(self._defaults)
        if self._required:
            check_required(who, self._required)
        key = (operation, model, provider, who, asked, *map(id, stages))
        found = self._shapes.get(key)
        if found is not None and found.stages == stages:
            pricing = found.pricing
            # What has no price today has none until the meter is made anew.
            if pricing is None or pricing.valid_until > time.time():
                return found
        budgets = self._budgets
        shape = self._new_shape(operation, model, provider, who, stages, asked)
        if budgets is self._budgets:
            if len(self._shapes) >= _MOST_SHAPES:
                self._shapes.clear()
            self._shapes[key] = shape
        return shape

    def _new_shape(
        self,
        operation: str,
        model: str,
        provider: str | None,
        who: Attribution,
        stages: tuple[Stage, ...],
        asked: str | None,
    ) -> Shape:
        budgets = tuple(self.applicable(who, model, stages))
        if self._steps is not None and (stages or who.session_id is not None) and operation != TOOL:
            budgets = (*budgets, stages[-1].within(self._steps) if stages else self._steps)
        metered = operation in METERED_OPERATIONS
        pricing = None
        if operation != TOOL:
            priced = metered and any(b.unit == "usd" and not b.soft for b in budgets)
            pricing = self._price(model, provider, required=priced)
        fields = {
            "session_id": who.session_id,
            "user_id": who.user_id,
            "project": who.project,
            "tenant": who.tenant,
            "tags": who.tags,
            "stage": stages[-1].path if stages else None,
            "operation": operation,
            "provider": pricing.provider if pricing else provider,
            "model": model,
            "asked_model": asked,
        }
        return Shape(who, stages, budgets, pricing, fields)

    def applicable(self, who: Attribution, model: str, stages: Iterable[Stage] | None = None) -> list[Budget]:
        """The budgets that a call counts in: the meter's, and those of the stages around it."""
        found = [b for b in self._budgets if not b.filters or b.applies_to(who, model)]
        for stage in active(self._owner) if stages is None else stages:
            found += [b for b in stage.budgets if b.applies_to(who, model)]
        return found

    def plan(
        self,
        operation: str,
        model: str,
        bound: RequestBound,
        *,
        provider: str | None = None,
        who: Attribution = NOBODY,
        fallback: Attribution = NOBODY,
        outer: Outer | None = None,
        where: str = "",
        verdict: Verdict | None = None,
        asked: str | None = None,
    ) -> Plan:
        """What a call may come to, in every unit that a budget counts.

        Args:
            operation: ``chat``, ``responses``, ``embeddings``, …
            model: as sent to the provider.
            bound: how large the request can get.
            provider: a price list's provider id, if known.
            who: attribution said on the call itself.
            fallback: attribution from the client or framework; the session scope wins.
            verdict: what the policy has decided of it.
            asked: the model that was asked for, where this one stands in for it.

        Raises:
            Unattributed: it does not say all that the meter requires.
            UnknownPrice: a budget in dollars applies and the model has no price.
            Unbounded: a budget applies that something in the request cannot be bounded in.
        """
        shape = self._shape(operation, model, provider, who, fallback, asked)
        pricing, units, hard = shape.pricing, shape.units, shape.hard
        metered = operation in METERED_OPERATIONS
        if pricing is not None and bound.output_limit != 0 and not pricing.has_output and "usd" in hard:
            raise UnknownPrice(model, provider, "(It has a price for input tokens only.)")
        features = bound.features
        for name in (model, *bound.models) if metered else ():
            acting = self.pricing.searching(name)
            if acting is not None and acting.feature is not None:
                features = {acting.feature: acting.why, **features}
        if not metered:
            why = f"Calls to {operation!r} are not billed by tokens known beforehand"
            features = {operation: why, **features}
        inputs = bound.input_tokens
        if inputs is None:
            inputs = self._stored_input(bound, pricing)
            if inputs is None:
                inputs = bound.extra_input
                features = {STORED_CONTEXT[0]: STORED_CONTEXT[1], **features}
        sized = None
        if bound.size is not None and inputs == bound.size.total:
            inputs = self.lessons.bound("" if bound.models else where, model, bound.size)
            sized = Sized(where, bound.size, inputs)
        allowance, unbounded = self._allowance(features, shape) if features else (_NOTHING, _BOUNDED)
        limit = bound.output_limit
        default, ceiling = self._default_output, None
        if verdict is not None and (ceiling := verdict.ceiling) is not None:
            default = min(default, ceiling)
        want = limit if limit is not None else max(default, bound.least_output)
        sends_limit = limit != 0 and bool(bound.limit_fields) and (shape.limited or ceiling is not None)
        floor = min(max(self._min_output, bound.least_output), want) if sends_limit and self._lower else want
        if bound.service_tier is None and self._tiers:
            bound = bound._replace(service_tier=self._tier(provider, pricing))
        cost: Cost | None = None
        multiplier: tuple[int, int] | None = None
        if pricing is not None:
            multiplier = multiplier_of(bound, pricing, where, model)
            cost = self._cost(bound, inputs, pricing, multiplier, required="usd" in hard)
            for other in bound.models:
                # Any of them may answer: what it may come to is the dearest's.
                priced = self._price(other, provider, required="usd" in hard)
                if priced is None or cost is None:
                    continue
                dearer = multiplier_of(bound, priced, where, other)
                one = self._cost(bound, inputs, priced, dearer, required="usd" in hard)
                if one is not None:
                    cost = Cost(max(cost.fixed, one.fixed), max(cost.per_output, one.per_output))
        needs = needs_of(bound, inputs, cost, allowance, units)
        if "usd" in units and "usd" not in hard and cost is None and (metered or "usd" not in needs):
            unbounded |= {"usd"}
        ask = Ask(needs, want, floor, unbounded)
        return Plan(
            operation,
            model,
            provider,
            shape,
            ask,
            allowance,
            sends_limit,
            outer,
            multiplier,
            bound.search_context,
            sized,
            bound.models,
            bound.service_tier,
            verdict,
            multiplier_for_url(where, model) if where and pricing is not None and not pricing.own else None,
            frozenset(features),
        )

    def _tier(self, provider: str | None, pricing: ModelPricing | None) -> str | None:
        """The tier of a provider's project, as far as it has been said."""
        known = provider or (pricing.provider if pricing is not None else None) or ""
        return self._tiers.get(known) or self._tiers.get("")

    def _cost(
        self,
        bound: RequestBound,
        inputs: int,
        pricing: ModelPricing,
        multiplier: tuple[int, int] | None,
        *,
        required: bool,
    ) -> Cost | None:
        """What a call may cost; None where a class that can occur has no price and none is needed."""
        try:
            return Cost(
                *pricing.bound(
                    inputs,
                    service_tier=bound.service_tier,
                    input_audio=bound.input_audio,
                    output_audio=bound.output_audio,
                    multiplier=multiplier,
                    search_context=bound.search_context,
                    cache_writes=bound.cache_writes,
                )
            )
        except UnknownPrice:
            if required:
                raise
            return None

    def plan_cost(self, name: str, nano: int, *, who: Attribution, fallback: Attribution) -> Plan:
        """The plan of a tool whose cost is known; it is no call of a model, and counts as none."""
        shape = self._shape(TOOL, name, None, who, fallback)
        needs = {unit: Need(0) for unit in (*UNITS, *shape.units)}
        needs["usd"] = Need(nano)
        return Plan(TOOL, name, None, shape, Ask(needs, 0, 0), {"usd": nano}, False)

    def _price(self, model: str, provider: str | None, *, required: bool) -> ModelPricing | None:
        try:
            return self.pricing.find(model, provider)
        except UnknownPrice:
            if required:
                raise
            return None

    def _allowance(self, features: Mapping[str, str], shape: Shape) -> tuple[dict[str, int], frozenset[str]]:
        """What is allowed for what cannot be bounded, by unit; and the units that it leaves unbounded, in
        which only budgets count that refuse nothing."""
        total: dict[str, int] = {}
        unbounded = _BOUNDED
        for feature, why in features.items():
            allowed = self._allow.get(feature)
            for unit in sorted(shape.units, key=lambda u: _ORDER.get(u, 99)):
                if unit != "usd" and not needed_unit(unit).bounded:
                    continue
                if allowed is None or (unit == "usd" and "usd" not in allowed):
                    if unit in shape.hard:
                        raise Unbounded(feature, why, unit=unit)
                    unbounded |= {unit}
            for unit, amount in (allowed or {}).items():
                total[unit] = total.get(unit, 0) + amount
        return total, unbounded

    def _stored_input(self, bound: RequestBound, pricing: ModelPricing | None) -> int | None:
        """The input of a request that continues what the provider has stored."""
        if bound.previous is not None:
            # A response's own input included all before it, and its output is added now.
            with self._contexts_lock:
                before = self._contexts.get(bound.previous)
            if before is not None:
                return before + bound.extra_input
        return pricing.context_window if pricing is not None else None

    def remember_context(self, response_id: str | None, usage: Usage | None) -> None:
        """Note how long a stored conversation has become, to bound what continues it."""
        if response_id and usage is not None:
            with self._contexts_lock:
                self._contexts[response_id] = usage.total_tokens
                while len(self._contexts) > _MOST_REMEMBERED:
                    self._contexts.popitem(last=False)

    def claims(self, plan: Plan, now: int) -> tuple[Claim, ...]:
        """The buckets that a call of now counts in."""
        return plan.shape.claims_at(now, self.claim)

    def claim(self, budget: Budget, who: Attribution, model: str, now: int) -> Claim:
        """The bucket of `budget` that a call of now counts in."""
        rolling = budget.rolling_ms
        window = None if rolling else budget.window_at(now, self.zone)
        shape = f"stage {budget.shape}" if budget.stage is not None else budget.shape
        return Claim(
            shape,
            budget.scope_key(who, model),
            window.start if window else 0,
            budget.unit,
            budget.amount,
            budget.text,
            window.end if window else None,
            rolling,
            budget.slot_ms if rolling else 0,
            self._thresholds if self._steps is None or budget.text != self._steps.text else (),
            budget.soft,
        )

    def balances(
        self, rows: Rows, budgets: Iterable[Budget], who: Attribution, model: str, now: int
    ) -> list[Balance]:
        """The buckets of `budgets` for `who`, as they stand."""
        limits = Limits(rows, now)
        found = []
        for budget in budgets:
            claim = self.claim(budget, who, model, now)
            there = self.standing(rows, limits, claim, now)
            if there is not None:
                found.append(self.balance([budget], there))
        return found

    @staticmethod
    def standing(rows: Rows, limits: Limits, claim: Claim, now: int) -> Standing | None:
        """A claim's bucket as it stands; None where its budget has been removed."""
        limit = limits.of(claim)
        if limit is None:
            return None
        bucket = rows.bucket(*claim.key) or Bucket(0, *claim.key, claim.unit)
        spent = bucket.spent
        if claim.rolling_ms:
            spent = rows.rolling_spent(claim.budget, claim.scope, now - claim.rolling_ms - claim.slot_ms)
        return Standing(claim, limit, spent, bucket.held)

    def balance(self, budgets: Iterable[Budget], standing: Standing) -> Balance:
        """What `standing` says, for people; it is of one of `budgets`."""
        claim = standing.claim
        budget = next(b for b in budgets if b.text == claim.text)
        same = standing.limit == budget.amount and budget.stage is None
        return Balance(
            budget.text if same else str(replace(budget, amount=standing.limit, stage=None)),
            describe_scope(budget, claim.scope),
            claim.unit,
            standing.limit,
            standing.spent,
            standing.held,
            when(claim.end),
            claim.soft,
        )


def _said(explicit: Attribution, fallback: Attribution) -> Attribution:
    """Whom a call is for, as far as the call, its run, its scope and its client say."""
    who = current()
    said, own = run_around()
    if said is not NOBODY:
        who = said.over(who)
    if explicit is not NOBODY:
        who = explicit.over(who)
    if fallback is not NOBODY:
        who = who.over(fallback)
    return who if own is NOBODY else who.over(own)


def _tiers(said: str | Mapping[str, str] | None) -> dict[str, str]:
    tiers = dict(said) if isinstance(said, Mapping) else {"": said} if said is not None else {}
    if not all(isinstance(word, str) and word for pair in tiers.items() for word in pair[1:]):
        raise ConfigError(f"service_tier is a tier, or tiers by provider, not {said!r}")
    return tiers


def as_budget(value: str | Budget) -> Budget:
    """A budget from its text, or as it is."""
    return value if isinstance(value, Budget) else Budget.parse(value)


def distinct(budgets: Iterable[str | Budget]) -> tuple[Budget, ...]:
    """The budgets, parsed.

    Raises:
        ConfigError: two of them count the same thing.
    """
    found: dict[str, Budget] = {}
    for budget in map(as_budget, budgets):
        other = found.setdefault(budget.shape, budget)
        if other is not budget:
            raise ConfigError(
                f'"{other}" and "{budget}" count the same thing; keep one, or name one, '
                f'e.g. "{replace(budget, name="second")}"'
            )
    return tuple(found.values())


def when(ms: int | None) -> datetime | None:
    """Milliseconds since 1970 as a time in UTC."""
    return None if ms is None else datetime.fromtimestamp(ms / 1000, timezone.utc)


def _at_least(least: int, value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return value
