"""A call before it is made: whom it is for, what it may come to, which budgets it meets."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from ..ledger.admission import Ask, Need
from ..ledger.book import Bucket, Claim, Rows, Standing
from ..prices.pricing import FEMTO_PER_NANO, ModelPricing, Pricing
from ..rules.attribution import NOBODY, Attribution, check_required, current, parse_required
from ..rules.budgets import Budget, check_zone, describe_scope, format_amount, parse_allowance
from ..rules.errors import ConfigError, Unbounded, UnknownPrice
from ..rules.usage import Usage
from ..wire import METERED_OPERATIONS, STORED_CONTEXT, RequestBound
from .contexts import warn_if_lost
from .stages import Stage, active

_UNBOUNDED_UNITS = ("usd", "tokens", "input_tokens", "output_tokens")
_MAX_REMEMBERED = 10_000


@dataclass(frozen=True)
class Balance:
    """One bucket as it stands. Amounts are in the budget's unit (nano-dollars for ``usd``).

    Attributes:
        budget: the budget's text, with the limit now in force.
        scope: whom the bucket is for ("" for everyone).
        resets_at: when the window turns over; None: never, or rolling.
    """

    budget: str
    scope: str
    unit: str
    limit: int
    spent: int
    held: int
    resets_at: datetime | None

    @property
    def left(self) -> int:
        """What is neither spent nor held, never below 0."""
        return max(0, self.limit - self.spent - self.held)

    def __str__(self) -> str:
        whom = f" ({self.scope})" if self.scope else ""
        return (
            f"{self.budget}{whom}: {format_amount(self.spent, self.unit)} spent, "
            f"{format_amount(self.held, self.unit)} held, {format_amount(self.left, self.unit)} left"
        )


@dataclass(frozen=True)
class Plan:
    """A call before it is made: who, what, and the worst that it may come to."""

    operation: str
    model: str
    provider: str | None
    who: Attribution
    stage: str | None
    budgets: tuple[Budget, ...]
    ask: Ask
    pricing: ModelPricing | None
    allowance: Mapping[str, int]
    sends_limit: bool
    fields: Mapping[str, Any]


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
        service_tier: str | None,
        defaults: Attribution,
        thresholds: Sequence[int],
        require: str | Iterable[str] = (),
    ) -> None:
        self._owner = owner
        self.budgets = distinct(budgets)
        self.pricing = pricing
        self.zone = check_zone(zone)
        self._allow = {name: parse_allowance(amount) for name, amount in allow.items()}
        self._default_output = _at_least(1, default_output, "default_output_tokens")
        self._min_output = _at_least(1, min_output, "min_output_tokens")
        self._lower = lower
        self._service_tier = service_tier
        self._defaults = defaults
        self._required = parse_required(require)
        if any(isinstance(t, bool) or not isinstance(t, int) or t < 1 for t in thresholds):
            raise ConfigError(f"thresholds are whole percentages of at least 1: {thresholds!r}")
        self._thresholds = tuple(sorted(set(thresholds)))
        self._contexts: OrderedDict[str, int] = OrderedDict()
        self._contexts_lock = threading.Lock()

    def who(self, explicit: Attribution, fallback: Attribution = NOBODY) -> Attribution:
        """Whom a call is for: said on the call, else the scope, else the client, else the meter."""
        return explicit.over(current()).over(fallback).over(self._defaults)

    def _checked(self, explicit: Attribution, fallback: Attribution, stages: list[Stage]) -> Attribution:
        """`who` of a call that is about to be made: of nobody else, and of somebody where required."""
        said = explicit.over(current()).over(fallback)
        warn_if_lost(self._owner, said, stages)
        who = said.over(self._defaults)
        if self._required:
            check_required(who, self._required)
        return who

    def applicable(self, who: Attribution, model: str, stages: Iterable[Stage] | None = None) -> list[Budget]:
        """The budgets that a call counts in: the meter's, and those of the stages around it."""
        found = [b for b in self.budgets if not b.filters or b.applies_to(who, model)]
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
    ) -> Plan:
        """What a call may come to, in every unit that a budget counts.

        Args:
            operation: ``chat``, ``responses``, ``embeddings``, …
            model: as sent to the provider.
            bound: how large the request can get.
            provider: a price list's provider id, if known.
            who: attribution said on the call itself.
            fallback: attribution from the client or framework; the session scope wins.

        Raises:
            Unattributed: it does not say all that the meter requires.
            UnknownPrice: a budget in dollars applies and the model has no price.
            Unbounded: a budget applies that something in the request cannot be bounded in.
        """
        stages = active(self._owner)
        who = self._checked(who, fallback, stages)
        budgets = self.applicable(who, model, stages)
        units = {b.unit for b in budgets}
        pricing = self._price(model, provider, required="usd" in units and operation in METERED_OPERATIONS)
        if pricing is not None and bound.output_limit != 0 and not pricing.has_output and "usd" in units:
            raise UnknownPrice(model, provider, "(It has a price for input tokens only.)")
        features = dict(bound.features)
        if operation not in METERED_OPERATIONS:
            features.setdefault(
                operation, f"Calls to {operation!r} are not billed by tokens known beforehand"
            )
        inputs = self._input_bound(bound, pricing)
        if inputs is None:
            inputs = bound.extra_input
            features.setdefault(*STORED_CONTEXT)
        allowance = self._allowance(features, units)
        limited = bound.output_limit != 0 and bool(bound.limit_fields)
        want = bound.output_limit if bound.output_limit is not None else self._default_output
        sends_limit = limited and not units.isdisjoint(("usd", "tokens", "output_tokens"))
        floor = min(self._min_output, want) if sends_limit and self._lower else want
        ask = Ask(_needs(bound, inputs, pricing, allowance, self._service_tier), want, floor)
        return Plan(
            operation,
            model,
            provider,
            who,
            stages[-1].path if stages else None,
            tuple(budgets),
            ask,
            pricing,
            allowance,
            sends_limit,
            _fields(who, stages, operation, pricing.provider if pricing else provider, model),
        )

    def plan_cost(self, name: str, nano: int, *, who: Attribution, fallback: Attribution) -> Plan:
        """The plan of a tool whose cost is known; it is no call of a model, and counts as none."""
        stages = active(self._owner)
        who = self._checked(who, fallback, stages)
        needs = {unit: Need(0) for unit in ("tokens", "input_tokens", "output_tokens", "calls")}
        needs["usd"] = Need(nano)
        return Plan(
            operation="tool",
            model=name,
            provider=None,
            who=who,
            stage=stages[-1].path if stages else None,
            budgets=tuple(self.applicable(who, name, stages)),
            ask=Ask(needs, 0, 0),
            pricing=None,
            allowance={"usd": nano},
            sends_limit=False,
            fields=_fields(who, stages, "tool", None, name),
        )

    def _price(self, model: str, provider: str | None, *, required: bool) -> ModelPricing | None:
        try:
            return self.pricing.find(model, provider)
        except UnknownPrice:
            if required:
                raise
            return None

    def _allowance(self, features: Mapping[str, str], units: set[Any]) -> dict[str, int]:
        total: dict[str, int] = {}
        for feature, why in features.items():
            allowed = self._allow.get(feature)
            for unit in _UNBOUNDED_UNITS:
                if unit in units and (allowed is None or (unit == "usd" and "usd" not in allowed)):
                    raise Unbounded(feature, why, unit=unit)
            for unit, amount in (allowed or {}).items():
                total[unit] = total.get(unit, 0) + amount
        return total

    def _input_bound(self, bound: RequestBound, pricing: ModelPricing | None) -> int | None:
        if bound.input_tokens is not None:
            return bound.input_tokens
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
                while len(self._contexts) > _MAX_REMEMBERED:
                    self._contexts.popitem(last=False)

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
            self._thresholds,
        )

    def balances(
        self, rows: Rows, budgets: Iterable[Budget], who: Attribution, model: str, now: int
    ) -> list[Balance]:
        """The buckets of `budgets` for `who`, as they stand."""
        overrides = rows.overrides()
        found = []
        for budget in budgets:
            claim = self.claim(budget, who, model, now)
            limit = overrides.get(claim.text, claim.limit)
            if limit is None:
                continue
            bucket = rows.bucket(*claim.key) or Bucket(0, *claim.key, claim.unit)
            spent = bucket.spent
            if claim.rolling_ms:
                spent = rows.rolling_spent(claim.budget, claim.scope, now - claim.rolling_ms - claim.slot_ms)
            found.append(self.balance([budget], Standing(claim, limit, spent, bucket.held)))
        return found

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
        )

    def reply_pricing(self, plan: Plan, model: str | None) -> ModelPricing | None:
        """The pricing of the model that answered, where it names another than was asked."""
        own = plan.pricing
        if model is None or model == plan.model or (own is not None and own.source != "genai-prices"):
            return own
        try:
            return self.pricing.find(model, plan.provider)
        except UnknownPrice:
            return own


def _fields(
    who: Attribution, stages: Sequence[Stage], operation: str, provider: str | None, model: str
) -> dict[str, Any]:
    """What is known of an entry before the call."""
    return {
        "session_id": who.session_id,
        "user_id": who.user_id,
        "project": who.project,
        "tenant": who.tenant,
        "tags": who.tags,
        "stage": stages[-1].path if stages else None,
        "operation": operation,
        "provider": provider,
        "model": model,
    }


def _needs(
    bound: RequestBound,
    inputs: int,
    pricing: ModelPricing | None,
    allowance: Mapping[str, int],
    service_tier: str | None,
) -> dict[str, Need]:
    out, extra = (0 if bound.output_limit == 0 else bound.choices), bound.extra_output
    needs = {
        "tokens": Need(inputs + extra + allowance.get("tokens", 0), out),
        "input_tokens": Need(inputs + allowance.get("input_tokens", 0)),
        "output_tokens": Need(extra + allowance.get("output_tokens", 0), out),
        "calls": Need(1),
    }
    if pricing is not None or "usd" in allowance:
        fixed = rate = 0
        if pricing is not None:
            fixed, rate = pricing.bound(
                inputs,
                service_tier=bound.service_tier or service_tier,
                input_audio=bound.input_audio,
                output_audio=bound.output_audio,
            )
        fixed += rate * extra + allowance.get("usd", 0) * FEMTO_PER_NANO
        needs["usd"] = Need(fixed, rate * out, FEMTO_PER_NANO)
    return needs


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
                f'e.g. "{budget} as second"'
            )
    return tuple(found.values())


def when(ms: int | None) -> datetime | None:
    """Milliseconds since 1970 as a time in UTC."""
    return None if ms is None else datetime.fromtimestamp(ms / 1000, timezone.utc)


def _at_least(least: int, value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return value
