"""The one path down: bound → reserve → settle or release, sync and async."""

from __future__ import annotations

import atexit
import logging
import os
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from .engine.calls import Hold, Outcome, booking
from .engine.contexts import bind
from .engine.costs import CostScope
from .engine.planning import Balance, Plan, Planner, as_budget, distinct
from .engine.stages import StageScope
from .engine.steps import Pause, Steps, arun, run
from .ledger.base import Ledger, Work
from .ledger.book import (
    Booked,
    Claim,
    Entry,
    Refused,
    Reserved,
    Rows,
    Standing,
    ThresholdEvent,
    cancel,
    expire,
    reserve,
    settle,
)
from .prices.pricing import Price, Pricing
from .rules import attribution as who_module
from .rules.attribution import NOBODY, Attribution, SessionScope, check_id, parse_required
from .rules.budgets import Budget, describe_scope, format_amount, parse_allowance
from .rules.errors import BudgetExceeded, ConfigError, Shortfall, StoreError
from .rules.usage import Usage
from .wire import RequestBound

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings
    from langchain_core.language_models import BaseChatModel, BaseLLM
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.base.llms.base import BaseLLM as LlamaLLM
    from llama_index.core.settings import _Settings
    from openai import AsyncOpenAI, OpenAI

    from .integrations.instrument import Instrumented
    from .integrations.langchain import Instrumentation as LangChainInstrumentation
    from .integrations.langchain.handler import BehestCallbackHandler
    from .integrations.langchain.middleware import BudgetMiddleware
    from .integrations.llama_index import Instrumentation as LlamaIndexInstrumentation
    from .integrations.llama_index.handler import BehestHandler
    from .integrations.llama_index.settings import MeteredSettings
    from .integrations.openai.client import Instrumentation as OpenAIInstrumentation

    _Model = TypeVar("_Model", bound=BaseChatModel | BaseLLM)
    _Embeddings = TypeVar("_Embeddings", bound=Embeddings)
    _LLM = TypeVar("_LLM", bound=LlamaLLM | BaseEmbedding)
    _Client = TypeVar("_Client", bound=OpenAI | AsyncOpenAI)

log = logging.getLogger("behest")

P = ParamSpec("P")
T = TypeVar("T")
OnUnknown = Literal["assume", "estimate", "release"]
OnStoreError = Literal["refuse", "allow"]


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
        session, user, project, tenant: for calls that name none, in whatever thread they are.
        require: what every call must say, or is refused: ``session``, ``user``, ``project``,
            ``tenant``, ``tag:NAME``.
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
        prices: Mapping[str, Price | Sequence[Price]] | None = None,
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
        session: str | None = None,
        user: str | None = None,
        project: str | None = None,
        tenant: str | None = None,
        require: str | Iterable[str] = (),
        clock: Callable[[], int] | None = None,
    ) -> None:
        given = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        budgets = given["budgets"] = [budgets] if isinstance(budgets, (str, Budget)) else list(budgets)
        require = given["require"] = parse_required(require)
        self._given: Mapping[str, Any] = given
        self.token = os.urandom(16).hex()
        """Names this meter, also where it was pickled and made anew."""
        self.pricing = Pricing(prices, aliases)
        self._planner = Planner(
            owner=self,
            budgets=budgets,
            pricing=self.pricing,
            allow=allow or {},
            zone=timezone,
            default_output=default_output_tokens,
            min_output=min_output_tokens,
            lower=lower_limits,
            service_tier=service_tier,
            defaults=Attribution(session_id=session, user_id=user, project=project, tenant=tenant),
            thresholds=thresholds,
            require=require,
        )
        self._wait = _not_negative(wait, "wait")
        self.lease_ms = int(_not_negative(lease, "lease") * 1000)
        self.on_unknown = _one_of(on_unknown, ("assume", "estimate", "release"), "on_unknown")
        self._on_store_error = _one_of(on_store_error, ("refuse", "allow"), "on_store_error")
        self._on_threshold = on_threshold
        self._clock = clock or (lambda: int(time.time() * 1000))
        self._next_sweep = 0
        self._unwritten: deque[Callable[[Rows], Booked]] = deque()
        self._retry_at = 0.0
        self._attached: dict[str, Any] = {}
        self.finalizers: set[Callable[[], None]] = set()
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

    def bind(self, function: Callable[P, T]) -> Callable[P, T]:
        """`function`, run in the sessions and stages of this place wherever it is called.

            with meter.budget("$1", name="sum"):
                pool.map(meter.bind(summarise), documents)

        For threads, pools and callbacks; see `behest_integrations.bind`.
        """
        return bind(function)

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
        return StageScope(self, distinct(budgets), name)

    def cost(
        self, amount: str, *, name: str, who: Attribution = NOBODY, fallback: Attribution = NOBODY
    ) -> CostScope:
        """Hold what a tool or service costs to the same budgets: `with`, `async with`, decorator.

            @meter.cost("$0.005", name="search")
            def search(query): ...

        It is reserved before the block, and booked after it, however the block ends.

        Args:
            amount: USD for each use, as text.
            name: what reports call it, in the place of a model.
            who, fallback: as for `plan`.

        Raises:
            ConfigError: not an amount of USD, or not a name.
        """
        allowance = parse_allowance(amount)
        if set(allowance) != {"usd"}:
            raise ConfigError(f"a cost is an amount in USD such as '$0.005', not {amount!r}")
        return CostScope(self, check_id(name, "a name"), allowance["usd"], who, fallback)

    def plan_cost(
        self, name: str, nano: int, *, who: Attribution = NOBODY, fallback: Attribution = NOBODY
    ) -> Plan:
        """The plan of something that costs so many nano-dollars; see `cost`."""
        return self._planner.plan_cost(name, nano, who=who, fallback=fallback)

    # ── budgets ────────────────────────────────────────────────────────────────────────

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets in force, with the limits that were set since."""
        overrides = self._ledger.submit(lambda rows: dict(rows.overrides()))
        current = []
        for budget in self._planner.budgets:
            amount = overrides.get(str(budget), budget.amount)
            if amount is not None:
                current.append(replace(budget, amount=amount))
        return tuple(current)

    def add_budget(self, budget: str | Budget) -> Budget:
        """Add a budget to this meter. Calls in flight are not counted in it.

        Raises:
            ConfigError: it does not parse, or counts what another one counts.
        """
        added = as_budget(budget)
        self._planner.budgets = distinct([*self._planner.budgets, added])
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
        wanted = as_budget(budget)
        for candidate in self._planner.budgets:
            if candidate == wanted:
                return candidate
        known = ", ".join(f'"{b}"' for b in self._planner.budgets) or "none"
        raise ConfigError(f'no budget "{wanted}" in this meter; configured: {known}')

    def _remember_budgets(self) -> None:
        remember = getattr(self._ledger, "remember_budgets", None)
        if remember is not None and self._planner.budgets:
            listed = [(b.shape, str(b), b.zone or self._planner.zone) for b in self._planner.budgets]
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
        planner, now = self._planner, self._clock()
        who = planner.who(
            who_module.session(session, user=user, project=project, tenant=tenant, tags=tags).attribution
        )
        budgets = [b for b in planner.applicable(who, model) if model or "model" not in b.per]
        return self._ledger.submit(lambda rows: planner.balances(rows, budgets, who, model, now))

    def balances_of(self, who: Attribution, fallback: Attribution = NOBODY) -> Work[list[Balance]]:
        """The store operation that tells the buckets of `who`, but for those per model."""
        planner, now, whose = self._planner, self._clock(), self._planner.who(who, fallback)
        budgets = [b for b in planner.applicable(whose, "") if "model" not in b.per]
        return lambda rows: planner.balances(rows, budgets, whose, "", now)

    def share_used(self, who: Attribution, fallback: Attribution = NOBODY) -> Work[int]:
        """The store operation that tells how full, in percent, the fullest budget of `who` is."""
        balances = self.balances_of(who, fallback)

        def work(rows: Rows) -> int:
            return max((100 * (b.spent + b.held) // max(1, b.limit) for b in balances(rows)), default=0)

        return work

    def stage_balances(self, budgets: Sequence[Budget]) -> list[Balance]:
        """For `StageScope.spend`."""
        who, now = self._planner.who(NOBODY), self._clock()
        return self._ledger.submit(lambda rows: self._planner.balances(rows, budgets, who, "", now))

    # ── planning ───────────────────────────────────────────────────────────────────────

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
        return self._planner.plan(operation, model, bound, provider=provider, who=who, fallback=fallback)

    def remember_context(self, response_id: str | None, usage: Usage | None) -> None:
        """Note how long a stored conversation has become, to bound what continues it."""
        self._planner.remember_context(response_id, usage)

    # ── reserving ──────────────────────────────────────────────────────────────────────

    def reserve(self, plan: Plan, *, replaces: Hold | None = None) -> Hold:
        """Hold the worst case of `plan` in every budget that applies.

        Args:
            replaces: the hold of an outer layer of the same call; this one takes its place.

        Raises:
            BudgetExceeded: it does not fit in one of them.
            StoreError: the store is out (unless ``on_store_error="allow"``).
        """
        return run(self._ledger, self.reserving(plan, replaces))

    async def areserve(self, plan: Plan, *, replaces: Hold | None = None) -> Hold:
        """`reserve` for coroutines."""
        return await arun(self._ledger, self.reserving(plan, replaces))

    def reserving(self, plan: Plan, replaces: Hold | None = None, *, wait: bool = True) -> Steps[Hold]:
        """The steps of `reserve`, for what is itself written as steps.

        Args:
            wait: whether a busy budget may be waited for, if the meter is to wait at all.
        """
        # Ids that grow with time keep the store's trees together; the rest is random, so that
        # processes, and children of a fork, never share one.
        call_id = f"{self._clock():012x}{os.urandom(8).hex()}"
        deadline = time.monotonic() + self._wait if self._wait and wait else 0.0
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
            claims = [self._planner.claim(b, plan.who, plan.model, now) for b in plan.budgets]
            try:
                result: Reserved | Refused = yield self._reserve_work(
                    call_id, claims, plan, now, sweep, waiting, replaces
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
                if replaces is not None:
                    replaces.hand_over()
                    self._unwritten.append(_dropping(replaces.id))
                return Hold(self, plan, call_id, now, claims, None)
            hold = None
            if isinstance(result, Reserved):
                hold = Hold(self, plan, call_id, now, claims, result)
            if replaces is not None:
                replaces.hand_over(hold)
                if hold is not None:
                    hold.lowered_from = hold.lowered_from or replaces.lowered_from
                replaces = None
            if hold is not None:
                return hold
            assert isinstance(result, Refused)
            self._announce(result.events)
            if not sweep:
                sweep = True  # holds of the dead may be in the way
                continue
            if result.reason != "busy" or not waiting:
                raise self._exceeded(result, plan)
            yield Pause(pause * (0.5 + random.random()))
            pause = min(pause * 1.5, 0.1)
            sweep = False

    def _reserve_work(
        self,
        call_id: str,
        claims: Sequence[Claim],
        plan: Plan,
        now: int,
        sweep: bool,
        waiting: bool,
        replaces: Hold | None,
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
                lease=self.lease_ms,
                count=sweep,
                count_busy=not waiting,
                replaces=replaces.id if replaces is not None else None,
            )

        return work

    def standing(self, hold: Hold) -> Balance | None:
        """The budget that has the least left of those that `hold` is in, as of when it was made."""
        if hold.tightest is None:
            return None
        return self._planner.balance(hold.plan.budgets, hold.tightest)

    def _exceeded(self, refused: Refused, plan: Plan) -> BudgetExceeded:
        claim = refused.claim
        there = Standing(claim, refused.limit, refused.spent, refused.held)
        balance = self._planner.balance(plan.budgets, there)
        shortfall = Shortfall(**vars(balance), asked=refused.asked)
        error = BudgetExceeded(shortfall, refused.reason)
        log.info("%s", error)
        return error

    # ── ending ─────────────────────────────────────────────────────────────────────────

    def ending(self, hold: Hold, outcome: Outcome) -> Steps[None] | None:
        """The steps that end `hold`; None if nothing new was learnt."""
        return self._write_steps(self._end_work(hold, outcome)) if hold.takes(outcome) else None

    def post_end(self, hold: Hold, outcome: Outcome) -> None:
        """End `hold` soon, without waiting."""
        if not hold.takes(outcome):
            return
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

    def _write_steps(self, work: Callable[[Rows], Booked]) -> Steps[None]:
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

    def _retry_steps(self) -> Steps[None]:
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
            return _dropping(hold.id)
        plan = hold.plan
        status: str = outcome.status
        flags = list(outcome.flags)
        if status == "assumed" and self.on_unknown == "release":
            flags.append("released")
        amounts, usage, cost = booking(hold, outcome, self._planner, release=self.on_unknown == "release")
        if plan.allowance and status != "failed" and plan.operation != "tool":
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
        problem = "the store is out"
        try:
            self._ledger.flush()
            self._retry_at = 0.0
            run(self._ledger, self._retry_steps())
        except StoreError as error:
            if not self._unwritten:
                raise
            problem = str(error)
        if self._unwritten:
            count = len(self._unwritten)
            raise StoreError(
                f"{count} {'entry' if count == 1 else 'entries'} could not be written yet and "
                f"{'is' if count == 1 else 'are'} kept: {problem}"
            )

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

    def run(self, steps: Steps[T]) -> T:
        """Do what `steps` say, blocking."""
        return run(self._ledger, steps)

    async def arun(self, steps: Steps[T]) -> T:
        """`run` for coroutines."""
        return await arun(self._ledger, steps)

    @property
    def ledger(self) -> Ledger:
        """The store: for reports, verification and repair."""
        return self._ledger

    def attached(self, name: str, make: Callable[[], T]) -> T:
        """What a door keeps with this meter, made at first use."""
        found: T = self._attached.setdefault(name, make())
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        """In its own process a pickled meter is itself again; in another one it is made anew
        over the same store, once for all that was pickled with it."""
        store = self._given["store"]
        shared = not isinstance(store, Ledger) and not _in_memory(_url(store))
        given = {**self._given, "store": _url(store)} if shared else None
        return _revive, (self.token, given)

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
        from .integrations.openai.client import meter_client

        return meter_client(self, client, provider=provider, send_attribution=send_attribution)

    def langchain(
        self,
        *,
        run_tags: bool = False,
        metadata_tags: Sequence[str] = (),
        tool_prices: Mapping[str, str] | None = None,
    ) -> BehestCallbackHandler:
        """A LangChain callback handler: `config={"callbacks": [meter.langchain()]}`.

        It refuses before the provider is called. It cannot lower an output limit: set one on
        the model, or use `langchain_model`.

        Args:
            run_tags: book the run's tags; `key:value` becomes that tag.
            metadata_tags: names in the run's metadata to book as tags.
            tool_prices: USD for each use of a tool, by its name: `{"search": "$0.005"}`.

        Raises:
            MissingExtra: `langchain-core` is not installed.
            ConfigError: a price is not an amount in USD.
        """
        from .integrations.langchain import callback_handler

        return callback_handler(self, run_tags=run_tags, metadata_tags=metadata_tags, tool_prices=tool_prices)

    def langchain_model(
        self, model: _Model, *, provider: str | None = None, limit_field: str | None = None
    ) -> _Model:
        """A model like `model`, of its own class, metered, that lowers its output limit near the cap.

        Args:
            model: any chat model or LLM of LangChain.
            provider: whose prices apply; default: what the model says of itself.
            limit_field: the model's field for its output limit; default: the usual names.

        Raises:
            MissingExtra: `langchain-core` is not installed.
            ConfigError: not a model, or metered already.
        """
        from .integrations.langchain import wrap_model

        return wrap_model(self, model, provider=provider, limit_field=limit_field)

    def langchain_embeddings(self, embeddings: _Embeddings, *, provider: str | None = None) -> _Embeddings:
        """Embeddings like `embeddings`, of their own class, metered.

        Their usage is not told by LangChain: where their client is not OpenAI's, it is counted,
        and booked as `estimated`.

        Raises:
            MissingExtra: `langchain-core` is not installed.
            ConfigError: not embeddings, or metered already.
        """
        from .integrations.langchain import wrap_embeddings

        return wrap_embeddings(self, embeddings, provider=provider)

    def langchain_middleware(
        self,
        *,
        on_exceeded: Literal["raise", "end"] = "raise",
        cheaper: BaseChatModel | None = None,
        cheaper_at: int = 80,
        tool_prices: Mapping[str, str] | None = None,
    ) -> BudgetMiddleware:
        """Middleware for `create_agent(..., middleware=[meter.langchain_middleware()])`.

        Args:
            on_exceeded: ``raise`` `BudgetExceeded`, or ``end`` the agent with a message that
                says why.
            cheaper: the model to go on with once a budget has been used up to `cheaper_at`.
            cheaper_at: percent of the fullest budget that applies.
            tool_prices: USD for each use of a tool, by its name.

        Raises:
            MissingExtra: `langchain` is not installed.
            ConfigError: an option cannot be used.
        """
        from .integrations.langchain import agent_middleware

        return agent_middleware(
            self, on_exceeded=on_exceeded, cheaper=cheaper, cheaper_at=cheaper_at, tool_prices=tool_prices
        )

    def instrument_langchain(self, **options: Any) -> LangChainInstrumentation:
        """Meter every LangChain run of this process, with no callback passed.

        Args:
            options: as for `langchain`.

        Returns:
            What ends it: `.remove()`, or `with`.

        Raises:
            MissingExtra: `langchain-core` is not installed.
        """
        from .integrations.langchain import Instrumentation, callback_handler

        return Instrumentation(callback_handler(self, **options))

    @overload
    def llama_index(
        self, target: _LLM, *, provider: str | None = None, limit_field: str | None = None
    ) -> _LLM: ...

    @overload
    def llama_index(
        self, target: _Settings, *, provider: str | None = None, limit_field: str | None = None
    ) -> MeteredSettings: ...

    def llama_index(self, target: Any, *, provider: str | None = None, limit_field: str | None = None) -> Any:
        """Meter LlamaIndex's `Settings`: all that its LLM and embedding model are asked.

            meter.llama_index(Settings)

        Or a single LLM or embedding model: then the result is one like it, of its own class.

        Args:
            target: `Settings`, an LLM, or an embedding model.
            provider: whose prices apply; default: what the model says of itself.
            limit_field: the model's field for its output limit; default: the usual names.

        Returns:
            For `Settings`, what ends it: `.remove()`, or `with`.

        Raises:
            MissingExtra: `llama-index-core` is not installed.
            ConfigError: none of these, or metered already.
        """
        from .integrations.llama_index import wrap

        return wrap(self, target, provider=provider, limit_field=limit_field)

    def llama_index_handler(self) -> BehestHandler:
        """A handler for your own callback manager: `CallbackManager([meter.llama_index_handler()])`.

        It refuses before the provider is called. It cannot lower an output limit: set one on
        the model, or use `llama_index(model)`.

        Raises:
            MissingExtra: `llama-index-core` is not installed.
        """
        from .integrations.llama_index import make_handler

        return make_handler(self)

    def instrument_openai(self) -> OpenAIInstrumentation:
        """Meter every OpenAI client that is made from now on, whoever makes it.

        Returns:
            What ends it: `.remove()`, or `with`.

        Raises:
            MissingExtra: the `openai` package is not installed.
        """
        from .integrations.openai.client import Instrumentation

        return Instrumentation(self)

    def instrument_llama_index(self) -> LlamaIndexInstrumentation:
        """Meter every model of LlamaIndex that is made from now on, with no handler passed.

        Returns:
            What ends it: `.remove()`, or `with`.

        Raises:
            MissingExtra: `llama-index-core` is not installed.
            ConfigError: LlamaIndex has a global handler already.
        """
        from .integrations.llama_index import Instrumentation

        return Instrumentation(self)

    def instrument(self) -> Instrumented:
        """Meter OpenAI clients, LangChain and LlamaIndex, each as soon as it is imported.

        Threads and pools take sessions and stages along by themselves meanwhile.

        Returns:
            What ends it: `.remove()`, or `with`.
        """
        from .integrations.instrument import Instrumented

        return Instrumented(self)


def _not_negative(value: float, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 10**9:
        raise ConfigError(f"{name} must be a number of seconds of at least 0, not {value!r}")
    return value


def _one_of(value: T, known: tuple[T, ...], name: str) -> T:
    if value not in known:
        raise ConfigError(f"{name} is one of {', '.join(map(repr, known))}, not {value!r}")
    return value


def _dropping(call_id: str) -> Callable[[Rows], Booked]:
    return lambda rows: Booked(cancel(rows, call_id=call_id))


def _log_failed(error: BaseException) -> None:
    log.error("a hold could not be dropped and will end by its lease: %s", error)


DEFAULT_STORE = "sqlite:///behest.db"


def _url(store: str | None) -> str:
    url = store or os.environ.get("BEHEST_STORE") or DEFAULT_STORE
    if not isinstance(url, str):
        raise ConfigError(f"a store is a URL such as 'sqlite:///behest.db', not {url!r}")
    return url


def _in_memory(url: str) -> bool:
    return url in ("memory://", "memory", "memory:")


def _open(store: str | None, timeout: float, durability: Literal["process", "power"]) -> Ledger:
    url = _url(store)
    if _in_memory(url):
        from .ledger.memory import MemoryLedger

        return MemoryLedger()
    from .ledger.sql import SQLLedger

    return SQLLedger(url, timeout=timeout, durability=durability)


_meters: weakref.WeakSet[Meter] = weakref.WeakSet()
_reviving = threading.Lock()


def _register(meter: Meter) -> None:
    if not _meters:
        atexit.register(_flush_all)
    _meters.add(meter)


def _revive(token: str, given: Mapping[str, Any] | None) -> Meter:
    """For unpickling."""
    with _reviving:
        living = next((m for m in _meters if m.token == token), None)
        if living is None:
            if given is None:
                raise ConfigError(
                    "a meter whose ledger is in memory cannot go to another process: use a store "
                    "that both can open, such as 'sqlite:///behest.db'"
                )
            living = Meter(**given)
            living.token = token
        return living


def _flush_all() -> None:
    for meter in list(_meters):
        try:
            for finalizer in list(meter.finalizers):
                finalizer()
            meter.flush()
        except Exception as error:
            # Their holds are in the store and will be booked at the worst case.
            log.critical("at exit: %s", error)
