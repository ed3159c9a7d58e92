"""The one path down: bound → reserve → settle or release, sync and async.

The logic is written once, as generators that say which store operation or pause they
need; two small drivers run them, one blocking and one on an event loop.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import random
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from . import attribution as who_module
from .admission import Ask, Need
from .attribution import NOBODY, Attribution, SessionScope, check_id, decorate
from .budgets import (
    Budget,
    check_zone,
    describe_scope,
    format_amount,
    parse_allowance,
)
from .errors import BudgetExceeded, ConfigError, Shortfall, StoreError, Unbounded, UnknownPrice
from .ledger.base import Ledger, Work
from .ledger.book import (
    Booked,
    Bucket,
    Claim,
    Entry,
    Refused,
    Reserved,
    Rows,
    ThresholdEvent,
    cancel,
    expire,
    reserve,
    settle,
)
from .pricing import FEMTO_PER_NANO, ModelPricing, Price, Pricing
from .usage import Usage
from .wire import METERED_OPERATIONS, STORED_CONTEXT, RequestBound

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

    _Client = TypeVar("_Client", OpenAI, AsyncOpenAI)

log = logging.getLogger("behest")

T = TypeVar("T")
OnUnknown = Literal["assume", "estimate", "release"]
OnStoreError = Literal["refuse", "allow"]

_UNBOUNDED_UNITS = ("usd", "tokens", "input_tokens", "output_tokens")
_MAX_REMEMBERED = 10_000


class _Pause(NamedTuple):
    seconds: float


_Steps = Generator["_Pause | Work[Any]", Any, T]


def _run(ledger: Ledger, steps: _Steps[T]) -> T:
    """Drive `steps` to the end, blocking."""
    try:
        step = next(steps)
        while True:
            try:
                answer: Any = None
                if isinstance(step, _Pause):
                    time.sleep(step.seconds)
                else:
                    answer = ledger.submit(step)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        steps.close()  # after a cancellation: the steps undo what they had begun


async def _arun(ledger: Ledger, steps: _Steps[T]) -> T:
    """Drive `steps` to the end, on the event loop."""
    try:
        step = next(steps)
        while True:
            try:
                answer: Any = None
                if isinstance(step, _Pause):
                    await asyncio.sleep(step.seconds)
                else:
                    answer = await ledger.asubmit(step)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        steps.close()  # after a cancellation: the steps undo what they had begun


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
class _Stage:
    """A block of code with budgets of its own, as entered once."""

    meter: int
    name: str
    path: str
    budgets: tuple[Budget, ...]


_stages: ContextVar[tuple[_Stage, ...]] = ContextVar("behest_stages", default=())


class StageScope:
    """Budgets for a block of code; see `Meter.budget`. Works as `with`, `async with`, decorator."""

    def __init__(self, meter: Meter, budgets: Sequence[Budget], name: str) -> None:
        self._meter = meter
        self._budgets = tuple(budgets)
        self._name = name
        self._run: str | None = None
        self._tokens: list[Token[tuple[_Stage, ...]]] = []

    def __enter__(self) -> StageScope:
        outer = _stages.get()
        if self._run is None:
            self._run = f"{self._name}#{os.urandom(6).hex()}"
        path = f"{outer[-1].path}/{self._name}" if outer else self._name
        budgets = tuple(replace(b, stage=self._run) for b in self._budgets)
        self._tokens.append(_stages.set((*outer, _Stage(id(self._meter), self._name, path, budgets))))
        return self

    def __exit__(self, *exc: object) -> None:
        _stages.reset(self._tokens.pop())

    async def __aenter__(self) -> StageScope:
        return self.__enter__()

    async def __aexit__(self, *exc: object) -> None:
        self.__exit__()

    def __call__(self, function: Callable[..., Any]) -> Any:
        return decorate(function, lambda: StageScope(self._meter, self._budgets, self._name))

    def spend(self) -> list[Balance]:
        """The stage's own budgets as they stand."""
        budgets = [replace(b, stage=self._run) for b in self._budgets]
        return self._meter._ledger.submit(
            lambda rows: self._meter._balances(rows, budgets, who_module.current(), "")
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


class Hold:
    """A call in flight and what is reserved for it. Ends exactly once, however often told.

    Attributes:
        id: the call's id, also of its entry.
        output_limit: the output tokens to ask the provider for (per choice); None: as sent.
        lowered_from: what the caller wanted, if less than that fits.
        amounts: what is held, by unit.
    """

    __slots__ = (
        "__weakref__",
        "_meter",
        "_rank",
        "amounts",
        "claims",
        "id",
        "lowered_from",
        "output_limit",
        "plan",
        "started",
    )  # fmt: skip

    def __init__(
        self,
        meter: Meter,
        plan: Plan,
        id: str,
        started: int,
        claims: Sequence[Claim],
        reserved: Reserved | None,
    ) -> None:
        self._meter = meter
        self.plan = plan
        self.id = id
        self.started = started
        self.claims = claims
        want = plan.ask.want
        output = reserved.output if reserved else want
        self.amounts: Mapping[str, int] = (
            reserved.amounts if reserved else {u: n.amount(want) for u, n in plan.ask.needs.items()}
        )
        self.output_limit = output if plan.sends_limit else None
        self.lowered_from = want if output < want else None
        self._rank = -1

    # Each way to end, once for blocking callers and once for coroutines; `post` is for
    # finalisers and cancelled tasks, which must not wait.

    def settle(self, usage: Usage, **said: Any) -> None:
        """Book the provider's own usage. `said`: see `Outcome`."""
        self.end(Outcome("settled", usage, **said))

    async def asettle(self, usage: Usage, **said: Any) -> None:
        """`settle` for coroutines."""
        await self.aend(Outcome("settled", usage, **said))

    def release(self) -> None:
        """The call never left: drop the hold as if it had not been reserved."""
        self.end(Outcome("cancelled"))

    def end(self, outcome: Outcome) -> None:
        """End the hold with any outcome."""
        steps = self._meter._end_steps(self, outcome)
        if steps is not None:
            _run(self._meter._ledger, steps)

    async def aend(self, outcome: Outcome) -> None:
        """`end` for coroutines."""
        steps = self._meter._end_steps(self, outcome)
        if steps is not None:
            await _arun(self._meter._ledger, steps)

    def post(self, outcome: Outcome) -> None:
        """`end` soon, without waiting: for finalisers and cancelled tasks."""
        self._meter._post_end(self, outcome)


@dataclass(frozen=True)
class Outcome:
    """How a call ended.

    Attributes:
        status: ``settled`` (the provider's usage), ``estimated`` (counted by us),
            ``assumed`` (unknown: the worst case is booked), ``failed`` (the provider says
            that it was not billed) or ``cancelled`` (it never left).
        usage: for the first two.
        model, service_tier, provider_id: as the reply says.
        note: for people: what happened. Never text of a prompt or an answer.
        flags: short words for queries.
    """

    status: Literal["settled", "estimated", "assumed", "failed", "cancelled"]
    usage: Usage | None = None
    model: str | None = None
    service_tier: str | None = None
    provider_id: str | None = None
    note: str = ""
    flags: tuple[str, ...] = ()


_RANKS = {"assumed": 0, "estimated": 1, "failed": 2, "cancelled": 2, "settled": 2}


class Meter:
    """Meters calls and holds them to budgets, over one store.

    Args:
        store: ``sqlite:///FILE``, ``memory://``, or a `Ledger`. Default: the environment's
            ``BEHEST_STORE``, else ``sqlite:///behest.db`` in the working folder.
        budgets: texts or `Budget`s; a call must fit in all that apply to it.
        prices: your own prices by model, over the price list's.
        aliases: names of deployments or proxies, and the models that they stand for.
        allow: what cannot be bounded but may go ahead, with the most that it may cost a
            request: ``{"web_search": "$0.05", "images": "$0.08"}``.
        timezone: of calendar windows that name none.
        default_output_tokens: the output limit sent, and reserved, where the caller sets none.
        min_output_tokens: output limits are not lowered below this.
        lower_limits: whether output limits may be lowered near the cap at all.
        wait: seconds to wait for calls in flight when the budget is busy. 0: refuse at once.
        lease: seconds after which a call whose process has died is booked as assumed.
        on_unknown: what to book where the outcome is unknown (a lost connection, a stream
            closed early, a reply without usage): ``assume`` the worst case; ``estimate``
            from what was seen, where anything was; or ``release`` (books nothing: the
            budget can then be passed).
        on_store_error: ``refuse`` calls while the store is out, or ``allow`` them (the
            budget can then be passed) and write them down later.
        store_timeout: seconds to wait for another process's write.
        durability: see `SQLLedger`.
        thresholds: percentages of a limit at which `on_threshold` is called, once a bucket.
        on_threshold: called with a `ThresholdEvent`, on the thread that settled the call.
        service_tier: the tier of your provider's project, if you know it; calls that name
            none are then bounded by its price and not by the dearest tier's.
        project, tenant: for calls that name none.
        clock: milliseconds since 1970 (for tests).

    Raises:
        ConfigError: something cannot be used as given.
        StoreError: the store cannot be opened.
    """

    def __init__(
        self,
        store: str | Ledger | None = None,
        *,
        budgets: Iterable[str | Budget] = (),
        prices: Mapping[str, Price | Iterable[Price]] | None = None,
        aliases: Mapping[str, str] | None = None,
        allow: Mapping[str, str | list[str] | tuple[str, ...]] | None = None,
        timezone: str = "UTC",
        default_output_tokens: int = 4096,
        min_output_tokens: int = 16,
        lower_limits: bool = True,
        wait: float = 0.0,
        lease: float = 900.0,
        on_unknown: OnUnknown = "assume",
        on_store_error: OnStoreError = "refuse",
        store_timeout: float = 5.0,
        durability: Literal["process", "power"] = "process",
        thresholds: Sequence[int] = (50, 80, 100),
        on_threshold: Callable[[ThresholdEvent], object] | None = None,
        service_tier: str | None = None,
        project: str | None = None,
        tenant: str | None = None,
        clock: Callable[[], int] | None = None,
    ) -> None:
        if isinstance(budgets, (str, Budget)):
            budgets = [budgets]
        self.timezone = check_zone(timezone)
        self._budgets = _distinct(_as_budget(b) for b in budgets)
        self.pricing = Pricing(prices, aliases)
        self._allow = {name: parse_allowance(amount) for name, amount in (allow or {}).items()}
        self._default_output = _at_least(1, default_output_tokens, "default_output_tokens")
        self._min_output = _at_least(1, min_output_tokens, "min_output_tokens")
        self._lower = lower_limits
        self._wait = _not_negative(wait, "wait")
        self._lease_ms = int(_not_negative(lease, "lease") * 1000)
        self.on_unknown = _one_of(on_unknown, ("assume", "estimate", "release"), "on_unknown")
        self._on_store_error = _one_of(on_store_error, ("refuse", "allow"), "on_store_error")
        if any(isinstance(t, bool) or not isinstance(t, int) or t < 1 for t in thresholds):
            raise ConfigError(f"thresholds are whole percentages of at least 1: {thresholds!r}")
        self._thresholds = tuple(sorted(set(thresholds)))
        self._on_threshold = on_threshold
        self._service_tier = service_tier
        self._defaults = Attribution(project=project, tenant=tenant)
        self._clock = clock or (lambda: int(time.time() * 1000))
        self._next_sweep = 0
        self._unwritten: deque[Callable[[Rows], Booked]] = deque()
        self._retry_at = 0.0
        self._contexts: OrderedDict[str, int] = OrderedDict()
        self._contexts_lock = threading.Lock()
        self._attached: dict[str, Any] = {}
        self.finalizers: set[weakref.finalize[..., Any]] = set()
        """What doors would have the garbage collector do, done at exit if it has not been."""
        self._ledger = store if isinstance(store, Ledger) else _open(store, store_timeout, durability)
        self._remember_budgets()
        _register(self)

    @classmethod
    def from_toml(cls, path: str | Path = "behest.toml", **overrides: Any) -> Meter:
        """A meter from a file; keyword arguments win over what the file says.

        Raises:
            ConfigError: the file cannot be read or says something that cannot be used.
        """
        from .config import load

        return cls(**{**load(path).arguments(), **overrides})

    # ── who ────────────────────────────────────────────────────────────────────────────

    def session(
        self,
        session_id: str | None = None,
        *,
        user: str | None = None,
        project: str | None = None,
        tenant: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> SessionScope:
        """Attribute every call made inside; see `behest_integrations.session`."""
        return who_module.session(session_id, user=user, project=project, tenant=tenant, tags=tags)

    def budget(self, *budgets: str | Budget, name: str) -> StageScope:
        """Cap a block of code, within whatever already applies.

            with meter.budget("$2", name="research"):
                ...

        Stages nest, and reports show them as a tree. Each time that a block is entered
        it has its budget anew; the budgets around it still hold.

        Args:
            name: what reports call the stage; no "/" and no "#".

        Raises:
            ConfigError: a budget or the name cannot be used.
        """
        check_id(name, "a stage's name")
        if "/" in name or "#" in name:
            raise ConfigError(f"a stage's name has no '/' and no '#': {name!r}")
        if not budgets:
            raise ConfigError("a stage needs at least one budget, e.g. meter.budget('$2', name='research')")
        return StageScope(self, _distinct(_as_budget(b) for b in budgets), name)

    # ── budgets ────────────────────────────────────────────────────────────────────────

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets in force, with the limits that were set since."""
        overrides = self._ledger.submit(lambda rows: dict(rows.overrides()))
        current = []
        for budget in self._budgets:
            amount = overrides.get(str(budget), budget.amount)
            if amount is not None:
                current.append(replace(budget, amount=amount))
        return tuple(current)

    def add_budget(self, budget: str | Budget) -> Budget:
        """Add a budget to this meter. Calls in flight are not counted in it.

        Raises:
            ConfigError: it does not parse, or counts what another one counts.
        """
        added = _as_budget(budget)
        self._budgets = _distinct([*self._budgets, added])
        self._remember_budgets()
        return added

    def set_limit(self, budget: str | Budget, amount: str | int) -> None:
        """Raise or lower a budget, at once and for every process on the same store.

        Below what is already spent it simply admits no more. What was spent stays.

        Args:
            budget: the budget as it was configured.
            amount: as text (``"$10"``, ``"50k tokens"``), or in the budget's unit
                (nano-dollars for ``usd``).

        Raises:
            ConfigError: no such budget, or not an amount of its unit.
        """
        found = self._configured(budget)
        if isinstance(amount, str):
            amounts = parse_allowance(amount)
            if found.unit not in amounts:
                raise ConfigError(f"{amount!r} is not an amount of {found.unit}")
            amount = amounts[found.unit]
        checked = replace(found, amount=amount)
        self._ledger.submit(lambda rows: rows.set_override(str(found), checked.amount))

    def remove_budget(self, budget: str | Budget) -> None:
        """Stop enforcing a budget, at once and for every process on the same store."""
        found = self._configured(budget)
        self._ledger.submit(lambda rows: rows.set_override(str(found), None))

    def reset_limit(self, budget: str | Budget) -> None:
        """Go back to the limit that was configured."""
        found = self._configured(budget)
        self._ledger.submit(lambda rows: rows.drop_override(str(found)))

    def _configured(self, budget: str | Budget) -> Budget:
        wanted = _as_budget(budget)
        for candidate in self._budgets:
            if candidate == wanted:
                return candidate
        known = ", ".join(f'"{b}"' for b in self._budgets) or "none"
        raise ConfigError(f'no budget "{wanted}" in this meter; configured: {known}')

    def _remember_budgets(self) -> None:
        remember = getattr(self._ledger, "remember_budgets", None)
        if remember is not None and self._budgets:
            listed = [(b.shape, str(b), b.zone or self.timezone) for b in self._budgets]
            try:
                remember(listed, self._clock())
            except StoreError as error:
                if self._on_store_error == "refuse":
                    raise
                log.warning("%s", error)

    def spend(
        self,
        session: str | None = None,
        *,
        user: str | None = None,
        project: str | None = None,
        tenant: str | None = None,
        tags: Mapping[str, str] | None = None,
        model: str = "",
    ) -> list[Balance]:
        """The buckets that a call of these would count in, as they stand.

        Budgets per model are listed only if `model` is given.

        Raises:
            StoreError: the store cannot be read.
        """
        who = self._who(
            who_module.session(session, user=user, project=project, tenant=tenant, tags=tags).attribution
        )
        budgets = [b for b in self._applicable(who, model) if model or "model" not in b.per]
        return self._ledger.submit(lambda rows: self._balances(rows, budgets, who, model))

    def _balances(self, rows: Rows, budgets: Iterable[Budget], who: Attribution, model: str) -> list[Balance]:
        now = self._clock()
        overrides = rows.overrides()
        found = []
        for budget in budgets:
            claim = self._claim(budget, who, model, now)
            limit = overrides.get(claim.text, claim.limit)
            if limit is None:
                continue
            bucket = rows.bucket(*claim.key) or Bucket(0, *claim.key, claim.unit)
            spent = bucket.spent
            if claim.rolling_ms:
                spent = rows.rolling_spent(claim.budget, claim.scope, now - claim.rolling_ms - claim.slot_ms)
            found.append(
                Balance(
                    str(replace(budget, amount=limit, stage=None)),
                    describe_scope(budget, claim.scope),
                    claim.unit,
                    limit,
                    spent,
                    bucket.held,
                    _when(claim.end),
                )
            )
        return found

    # ── planning ───────────────────────────────────────────────────────────────────────

    def _who(self, explicit: Attribution) -> Attribution:
        return explicit.over(who_module.current()).over(self._defaults)

    def _applicable(self, who: Attribution, model: str) -> list[Budget]:
        found = [b for b in self._budgets if not b.filters or b.applies_to(who, model)]
        for stage in _stages.get():
            if stage.meter == id(self):
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
            UnknownPrice: a budget in dollars applies and the model has no price.
            Unbounded: a budget applies that something in the request cannot be bounded in.
        """
        who = who.over(who_module.current()).over(fallback).over(self._defaults)
        budgets = self._applicable(who, model)
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
        stages = _stages.get()
        stage = next((s.path for s in reversed(stages) if s.meter == id(self)), None)
        fields: dict[str, Any] = {
            "session_id": who.session_id,
            "user_id": who.user_id,
            "project": who.project,
            "tenant": who.tenant,
            "tags": who.tags,
            "stage": stage,
            "operation": operation,
            "provider": pricing.provider if pricing else provider,
            "model": model,
        }
        return Plan(
            operation,
            model,
            provider,
            who,
            stage,
            tuple(budgets),
            ask,
            pricing,
            allowance,
            sends_limit,
            fields,
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

    def _claim(self, budget: Budget, who: Attribution, model: str, now: int) -> Claim:
        rolling = budget.rolling_ms
        window = None if rolling else budget.window_at(now, self.timezone)
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

    # ── reserving ──────────────────────────────────────────────────────────────────────

    def reserve(self, plan: Plan) -> Hold:
        """Hold the worst case of `plan` in every budget that applies.

        Raises:
            BudgetExceeded: it does not fit in one of them.
            StoreError: the store is out (unless ``on_store_error="allow"``).
        """
        return _run(self._ledger, self._reserve_steps(plan))

    async def areserve(self, plan: Plan) -> Hold:
        """`reserve` for coroutines."""
        return await _arun(self._ledger, self._reserve_steps(plan))

    def _reserve_steps(self, plan: Plan) -> _Steps[Hold]:
        # Ids that grow with time keep the store's trees together; the rest is random, so that
        # processes, and children of a fork, never share one.
        call_id = f"{self._clock():012x}{os.urandom(8).hex()}"
        deadline = time.monotonic() + self._wait if self._wait else 0.0
        pause = 0.005
        sweep = False
        if self._unwritten:
            yield from self._retry_steps()
        while True:
            now = self._clock()
            sweep = sweep or now >= self._next_sweep
            if sweep:
                self._next_sweep = now + 1000
            waiting = bool(deadline) and time.monotonic() < deadline
            claims = [self._claim(b, plan.who, plan.model, now) for b in plan.budgets]
            try:
                result: Reserved | Refused = yield self._reserve_work(
                    call_id, claims, plan, now, sweep, waiting
                )
            except GeneratorExit:
                # Cancelled while the store was asked, and it may have said yes: operations
                # are run in order, so this one finds the hold if there is one.
                self._ledger.post(lambda rows: cancel(rows, call_id=call_id), _log_failed)
                raise
            except StoreError as error:
                if self._on_store_error == "refuse":
                    raise
                log.error("the call goes ahead unmetered for now, as you chose (on_store_error): %s", error)
                return Hold(self, plan, call_id, now, claims, None)
            if isinstance(result, Reserved):
                return Hold(self, plan, call_id, now, claims, result)
            self._announce(result.events)
            if not sweep:
                sweep = True  # holds of the dead may be in the way
                continue
            if result.reason != "busy" or not waiting:
                raise self._exceeded(result, plan)
            yield _Pause(pause * (0.5 + random.random()))
            pause = min(pause * 1.5, 0.1)
            sweep = False

    def _reserve_work(
        self, call_id: str, claims: Sequence[Claim], plan: Plan, now: int, sweep: bool, waiting: bool
    ) -> Work[Reserved | Refused]:
        def work(rows: Rows) -> Reserved | Refused:
            if sweep:
                expire(rows, now=now, book=self.on_unknown != "release")
            return reserve(
                rows,
                call_id=call_id,
                claims=claims,
                ask=plan.ask,
                call={**plan.fields, "started": now},
                now=now,
                lease=self._lease_ms,
                count=sweep,
                count_busy=not waiting,
            )

        return work

    def _exceeded(self, refused: Refused, plan: Plan) -> BudgetExceeded:
        claim = refused.claim
        budget = next(b for b in plan.budgets if b.text == claim.text)
        shortfall = Shortfall(
            budget=str(replace(budget, amount=refused.limit, stage=None)),
            scope=describe_scope(budget, claim.scope),
            unit=claim.unit,
            limit=refused.limit,
            spent=refused.spent,
            held=refused.held,
            asked=refused.asked,
            resets_at=_when(claim.end),
        )
        error = BudgetExceeded(shortfall, refused.reason)
        log.info("%s", error)
        return error

    # ── ending ─────────────────────────────────────────────────────────────────────────

    def _end_steps(self, hold: Hold, outcome: Outcome) -> _Steps[None] | None:
        rank = _RANKS[outcome.status]
        if rank <= hold._rank:
            return None
        hold._rank = rank
        return self._write_steps(self._end_work(hold, outcome))

    def _post_end(self, hold: Hold, outcome: Outcome) -> None:
        rank = _RANKS[outcome.status]
        if rank <= hold._rank:
            return
        hold._rank = rank
        work = self._end_work(hold, outcome)

        def failed(error: BaseException) -> None:
            self._keep(work, error)

        self._ledger.post(self._announcing(work), failed)

    def _announcing(self, work: Callable[[Rows], Booked]) -> Callable[[Rows], Booked]:
        """For posted operations nobody waits for: their events are told from the writer."""

        def run(rows: Rows) -> Booked:
            booked = work(rows)
            self._after(booked)
            return booked

        return run

    def _write_steps(self, work: Callable[[Rows], Booked]) -> _Steps[None]:
        try:
            booked = yield work
        except GeneratorExit:
            # Cancelled meanwhile: it is being written, or is written again, which is the same.
            self._unwritten.append(work)
            raise
        except StoreError as error:
            self._keep(work, error)
            return
        self._after(booked)

    def _keep(self, work: Callable[[Rows], Booked], error: BaseException) -> None:
        """The provider has answered; the caller gets the answer, and this is written later."""
        self._unwritten.append(work)
        self._retry_at = time.monotonic() + 1.0
        log.error("an entry could not be written and is kept to be retried: %s", error)

    def _retry_steps(self) -> _Steps[None]:
        if time.monotonic() < self._retry_at:
            return
        while self._unwritten:
            try:
                work = self._unwritten.popleft()
            except IndexError:
                return
            try:
                booked = yield work
            except GeneratorExit:
                self._unwritten.appendleft(work)
                raise
            except StoreError as error:
                self._unwritten.appendleft(work)
                self._retry_at = time.monotonic() + 1.0
                log.error("%d entries wait to be written: %s", len(self._unwritten), error)
                return
            self._after(booked)

    def _after(self, booked: Booked) -> None:
        if booked.over:
            log.error(
                "the provider billed more than the worst case of the request (in %s): the truth is "
                "booked and the budget admits no more than it has left; check the model's price",
                ", ".join(booked.over),
            )
        self._announce(booked.events)

    def _announce(self, events: Iterable[ThresholdEvent]) -> None:
        for raw in events:
            event = replace(raw, scope=describe_scope(Budget.parse(raw.budget), raw.scope))
            log.warning(
                'budget "%s"%s has reached %d %%: %s of %s',
                event.budget,
                f" for {event.scope}" if event.scope else "",
                event.percent,
                format_amount(event.spent, event.unit),
                format_amount(event.limit, event.unit),
            )
            if self._on_threshold is not None:
                try:
                    self._on_threshold(event)
                except Exception:
                    log.exception("on_threshold failed")

    def _end_work(self, hold: Hold, outcome: Outcome) -> Callable[[Rows], Booked]:
        if outcome.status == "cancelled":
            return lambda rows: Booked(cancel(rows, call_id=hold.id))
        plan = hold.plan
        status: str = outcome.status
        flags = list(outcome.flags)
        if status == "assumed" and self.on_unknown == "release":
            flags.append("released")
        amounts, usage, cost = self._amounts(hold, outcome)
        if plan.allowance and status != "failed":
            flags.append("allowance")
            status = "estimated" if status == "settled" else status
        now = self._clock()

        def work(rows: Rows) -> Booked:
            entry = Entry(
                **plan.fields,
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
            return settle(rows, entry=entry, amounts=amounts, claims=hold.claims, now=now)

        return work

    def _amounts(self, hold: Hold, outcome: Outcome) -> tuple[Mapping[str, int], dict[str, Any], int | None]:
        """(what to book by unit, the entry's tokens, its cost in nano-dollars)."""
        plan = hold.plan
        if outcome.status == "failed":
            return {}, {}, 0
        if outcome.usage is None:
            if self.on_unknown == "release":
                return {}, {}, 0
            held = dict(hold.amounts)
            tokens = {n: held.get(n, 0) for n in ("input_tokens", "output_tokens")}
            return held, tokens, held.get("usd")
        usage = outcome.usage
        amounts = {
            "tokens": usage.total_tokens,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "calls": 1,
        }
        # An allowance is booked as given: what it is for is not in the reply's usage.
        cost = plan.allowance.get("usd")
        pricing = self._reply_pricing(plan, outcome.model)
        if pricing is not None and plan.operation in METERED_OPERATIONS:
            cost = pricing.cost(usage, outcome.service_tier) + (cost or 0)
        if cost is not None:
            amounts["usd"] = cost
        return amounts, {n: getattr(usage, n) for n in _USAGE_FIELDS}, cost

    def _reply_pricing(self, plan: Plan, model: str | None) -> ModelPricing | None:
        """The pricing of the model that answered, where it names another than was asked."""
        own = plan.pricing
        if model is None or model == plan.model or (own is not None and own.source != "genai-prices"):
            return own
        try:
            return self.pricing.find(model, plan.provider)
        except UnknownPrice:
            return own

    # ── keeping house ──────────────────────────────────────────────────────────────────

    def sweep(self) -> int:
        """Book the holds whose lease has run out; how many."""
        total = 0
        while True:
            now = self._clock()
            ended = self._ledger.submit(
                lambda rows, now=now: expire(rows, now=now, book=self.on_unknown != "release")  # type: ignore[misc]
            )
            total += len(ended)
            if not ended:
                return total

    def flush(self) -> None:
        """Write everything that is still to be written.

        Raises:
            StoreError: the store is still out; nothing is lost, it is kept.
        """
        self._ledger.flush()
        self._retry_at = 0.0
        _run(self._ledger, self._retry_steps())
        if self._unwritten:
            raise StoreError(f"{len(self._unwritten)} entries could not be written yet; they are kept")

    @property
    def unwritten(self) -> int:
        """Entries that wait for the store to come back."""
        return len(self._unwritten)

    def close(self) -> None:
        """Write what is left and let go of the store. The meter cannot be used afterwards."""
        try:
            self.flush()
        finally:
            self._ledger.close()

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def ledger(self) -> Ledger:
        """The store: for reports, verification and repair."""
        return self._ledger

    def attached(self, name: str, make: Callable[[], T]) -> T:
        """What a door keeps with this meter, made at first use."""
        found: T = self._attached.setdefault(name, make())
        return found

    # ── doors ──────────────────────────────────────────────────────────────────────────

    def openai(
        self,
        client: _Client,
        *,
        provider: str | None = None,
        send_attribution: bool = False,
    ) -> _Client:
        """A client like `client`, of its own class, whose every call is metered.

        Args:
            client: an OpenAI, AsyncOpenAI, AzureOpenAI, AsyncAzureOpenAI or a subclass.
            provider: whose prices apply; default: by the client's base URL.
            send_attribution: send the session and user on to the provider as
                `X-Session-Id` and `X-End-User-Id` (for a Behest endpoint).

        Raises:
            MissingExtra: the `openai` package is not installed.
            ConfigError: not an OpenAI client.
        """
        from .integrations.openai import meter_client

        return meter_client(self, client, provider=provider, send_attribution=send_attribution)


_USAGE_FIELDS = (
    "input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens",
    "reasoning_tokens", "input_audio_tokens", "output_audio_tokens",
)  # fmt: skip


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


def _as_budget(value: str | Budget) -> Budget:
    return value if isinstance(value, Budget) else Budget.parse(value)


def _distinct(budgets: Iterable[Budget]) -> tuple[Budget, ...]:
    found: dict[str, Budget] = {}
    for budget in budgets:
        other = found.setdefault(budget.shape, budget)
        if other is not budget:
            raise ConfigError(
                f'"{other}" and "{budget}" count the same thing; keep one, or name one, '
                f'e.g. "{budget} as second"'
            )
    return tuple(found.values())


def _at_least(least: int, value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return value


def _not_negative(value: float, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 10**9:
        raise ConfigError(f"{name} must be a number of seconds of at least 0, not {value!r}")
    return value


def _one_of(value: T, known: tuple[T, ...], name: str) -> T:
    if value not in known:
        raise ConfigError(f"{name} is one of {', '.join(map(repr, known))}, not {value!r}")
    return value


def _log_failed(error: BaseException) -> None:
    log.error("a hold could not be dropped and will end by its lease: %s", error)


def _when(ms: int | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, timezone.utc)


DEFAULT_STORE = "sqlite:///behest.db"


def _open(store: str | None, timeout: float, durability: Literal["process", "power"]) -> Ledger:
    url = store or os.environ.get("BEHEST_STORE") or DEFAULT_STORE
    if not isinstance(url, str):
        raise ConfigError(f"a store is a URL such as 'sqlite:///behest.db', not {url!r}")
    if url in ("memory://", "memory", "memory:"):
        from .ledger.memory import MemoryLedger

        return MemoryLedger()
    from .ledger.sql import SQLLedger

    return SQLLedger(url, timeout=timeout, durability=durability)


_meters: weakref.WeakSet[Meter] = weakref.WeakSet()


def _register(meter: Meter) -> None:
    if not _meters:
        atexit.register(_flush_all)
    _meters.add(meter)


def _flush_all() -> None:
    for meter in list(_meters):
        try:
            for finalizer in list(meter.finalizers):
                finalizer()
            meter.flush()
        except Exception as error:
            # Their holds are in the store and will be booked at the worst case.
            log.critical("at exit: %s", error)
