"""The engine: plan → reserve → settle or release, sync and async, over one store.

It opens no door and knows no framework: what does is above it. Over 500 lines, so that a call's way
from its plan to its end is read in one place.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from ..ledger.base import Ledger, Work
from ..ledger.book import (
    Booked,
    Claim,
    Refused,
    Reserved,
    Rows,
    Standing,
    cancel,
    expire,
    reserve,
)
from ..ledger.operations import Operation
from ..rules.attribution import NOBODY, Attribution
from ..rules.balance import Balance, Shortfall
from ..rules.budgets import Budget
from ..rules.errors import BudgetExceeded, CallRefused, LoopDetected, StoreError
from ..wire import RequestBound
from ..wire.hangups import OnAbandoned, bills_on
from .alerts import Alerts
from .auditing import Auditor
from .booking import end_work
from .draining import Drains
from .holds import Hold
from .layers import enclosing, take_offer
from .leases import Leases
from .leases import Work as LeaseWork
from .limits import BudgetChanges
from .notices import Notices
from .observing import StoreObserver, StoreWatcher
from .outcomes import Outcome
from .owners import has_died, this_process
from .plan import Outer, Plan
from .planning import Planner, when
from .refusing import NoRoom, around_it, say_tier
from .steps import Steps, arun, in_line, run
from .waiting import Lines, Place
from .writing import Unwritten, Writing, dropping

if TYPE_CHECKING:
    from ..policy import Policing, Verdict
    from .downgrade import Downgrade
    from .guards import Guarding
    from .telemetry import Telemetry

log = logging.getLogger("behest")

T = TypeVar("T")
E = TypeVar("E", bound="BudgetExceeded | LoopDetected")
OnUnknown = Literal["assume", "estimate", "release"]
OnStoreError = Literal["refuse", "allow"]


def now_ms() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


class Engine:
    """Meters calls and holds them to budgets.

    Args:
        ledger: where the books are kept.
        planner: what calls may come to, and which budgets they meet.
        wait: seconds to wait for calls in flight when a budget is busy; 0: none.
        lease_ms: after how long a call whose process has died is booked as assumed.
        on_unknown, on_store_error: see `Meter`. alerts: who is told of what.
        clock: milliseconds since 1970; default: the store's.
        allow_fields: fields of requests that are let through though they are not known.
        stream_usage: whether streams are asked for their usage.
        telemetry: told of each call and refusal; None: nobody is.
        policy: what may be asked at all; None: anything.
        on_abandoned: by provider, and "" for all others; see `Meter`.
        hosts: that serve models, besides those that are known.
        guarding: what keeps sessions from going on without end; None: nothing does.
        downgrade: which cheaper models stand in for others, and when; None: none does.
        leases: whether slices are taken of budgets that many processes write.
    """

    def __init__(
        self,
        ledger: Ledger,
        planner: Planner,
        *,
        wait: float,
        lease_ms: int,
        on_unknown: OnUnknown,
        on_store_error: OnStoreError,
        alerts: Alerts,
        clock: Callable[[], int] | None = None,
        allow_fields: frozenset[str] = frozenset(),
        stream_usage: bool = True,
        telemetry: Telemetry | None = None,
        policy: Policing | None = None,
        on_abandoned: Mapping[str, OnAbandoned] | None = None,
        hosts: frozenset[str] = frozenset(),
        downgrade: Downgrade | None = None,
        leases: bool = False,
        guarding: Guarding | None = None,
    ) -> None:
        self._ledger = ledger
        self._clock = clock or ledger.now_ms
        self._planner = planner
        self.pricing = planner.pricing
        self.token = os.urandom(16).hex()
        """Names this engine, also where it was pickled and made anew."""
        self.lease_ms = lease_ms
        self.on_unknown: OnUnknown = on_unknown
        self.allow_fields = allow_fields
        self.stream_usage = stream_usage
        self.hosts = hosts
        self._telemetry = telemetry
        self._counting: Callable[[Booked], None] | None = None
        self.policy = policy
        self.downgrade = downgrade
        self.guarding = guarding
        self.auditor: Auditor | None = None
        if policy is not None or guarding is not None:
            everything = policy is not None and policy.policy.audit.allowed
            self.auditor = Auditor(ledger, everything, self._clock)
        self.notices = Notices()
        self.closed = False
        """Whether it is let go of: what has not ended then, nobody makes any more."""
        self.kept: dict[Any, Any] = {}
        """What doors keep with this engine; see `PerEngine`."""
        self.finalizers: set[Callable[[], None]] = set()
        """What doors would have the garbage collector do, done at exit if it has not been."""
        self._wait = wait
        self._on_store_error = on_store_error
        self._alerts = alerts
        alerts.open(ledger, self._clock)
        self._next_sweep = 0
        self._unwritten = Unwritten(self._after)
        self._on_abandoned: Mapping[str, OnAbandoned] = on_abandoned or {"": "auto"}
        self.drains = Drains()
        self._lines = Lines()
        self._leases: Leases | None = None
        if leases:
            self._leases = Leases(
                ledger.post,
                clock=self._clock,
                hot=ledger.contended,
                parts=ledger.locks_rows,
                write_events=alerts.write,
                tell_events=alerts.tell,
            )
        self._observer: StoreObserver | None = None
        if telemetry is not None:
            self.watch_store(telemetry.store)

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
        layer: str = "",
        outer: Hold | None = None,
        where: str = "",
        verdict: Verdict | None = None,
        asked: str | None = None,
    ) -> Plan:
        """What a call may come to, in every unit that a budget counts.

        The layer around this one, if the same call has passed one, is replaced when the plan is
        reserved, and what it knew of whom the call is for stands under what is said here.

        Args:
            operation: ``chat``, ``responses``, ``embeddings``, …
            model: as sent to the provider.
            bound: how large the request can get.
            provider: a price list's provider id, if known.
            who: attribution said on the call itself.
            fallback: attribution from the client or framework; the session scope wins.
            layer: whose plan it is, where a layer must not take over holds of its own.
            outer: the hold of the layer around, where the door knows it.
            where: the server that it goes to, if known: bills of one say nothing of another's.
            verdict: what the policy has decided of it; see `ruling`.
            asked: the model that was asked for, where this one would stand in for it: nobody is told if
                it cannot.

        Raises:
            UnknownPrice: a budget in dollars applies and the model has no price.
            Unbounded: a budget applies that something in the request cannot be bounded in.
        """
        stands_in = asked is not None
        if outer is None:
            outer = take_offer(self, operation, model, layer)
        if outer is not None:
            who = who.over(outer.plan.who)
            if asked is None and outer.plan.model == model:
                asked = outer.plan.asked_model
                stands_in = False
        try:
            return self._planner.plan(
                operation, model, bound, provider=provider, who=who, fallback=fallback, outer=outer,
                where=where, verdict=verdict, asked=asked,
            )  # fmt: skip
        except CallRefused as error:
            if self.auditor is not None and not stands_in:
                self.auditor.refused(error, self._planner.who(who, fallback), operation, model)
            raise

    def now(self) -> int:
        """Milliseconds since 1970, by the clock of this engine."""
        return self._clock()

    @property
    def planner(self) -> Planner:
        """What calls may come to."""
        return self._planner

    # ── reserving ──────────────────────────────────────────────────────────────────────

    def reserve(self, plan: Plan) -> Hold:
        """Hold the worst case of `plan` in every budget that applies.

        Raises:
            BudgetExceeded: it does not fit in one of them.
            StoreError: the store is out (unless ``on_store_error="allow"``).
        """
        return run(self._ledger, self.reserving(plan))

    async def areserve(self, plan: Plan) -> Hold:
        """`reserve` for coroutines."""
        return await arun(self._ledger, self.reserving(plan))

    def reserving(self, plan: Plan, *, wait: bool = True, trial: bool = False) -> Steps[Hold]:
        """The steps of `reserve`, for what is itself written as steps.

        Args:
            wait: whether a busy budget may be waited for, if the meter is to wait at all.
            trial: something else will be made of the call if it does not fit at once and in full.

        Raises:
            NoRoom: it was a trial, and does not.
        """
        now = self._clock()
        # Ids that grow with time keep the store's trees together; the rest is random, so that
        # processes, and children of a fork, never share one.
        call_id = f"{now:012x}{os.urandom(8).hex()}"
        if self.guarding is not None:
            yield from self._in_time(plan, now)
        replaces, plan.outer = plan.outer, None
        if isinstance(replaces, Hold) and replaces.draw is not None:
            replaces.draw.put_back()
        if self._unwritten:
            yield from self._unwritten.retrying()
        patience = self._wait if wait else 0.0
        deadline: float | None = None
        place: Place | None = None
        sweep = swept = False
        within = enclosing(self)
        try:
            if trial and self._lines:
                self._check_lines(plan, now)
            elif self._lines and patience and replaces is None and not within:
                # Who holds room for an outer layer of the same call must not wait for it, nor for
                # those who wait for what this call is made inside of.
                place = self._lines.behind_others(self._planner.claims(plan, now))
                if place is not None:
                    deadline = yield from in_line(place, time.monotonic() + patience)
                    now = self._clock()
            while True:
                if sweep or now >= self._next_sweep:
                    self._next_sweep = now + 1000
                    self._ledger.follow()
                    sweep = swept = True
                waiting = patience > 0 if deadline is None else time.monotonic() < deadline
                claims = self._planner.claims(plan, now)
                ask = _Asking(call_id, plan, claims, now, sweep, swept, waiting, replaces, place, trial, [])
                try:
                    result: Reserved | Refused = yield from self._admitting(ask)
                except GeneratorExit:
                    # Cancelled while the store was asked, and it may have said yes: operations
                    # are run in order, so this one finds the hold if there is one.
                    self._ledger.post(self._dropping(call_id, claims), _log_failed)
                    raise
                except StoreError as error:
                    if self._on_store_error == "refuse":
                        raise
                    log.error(
                        "the call goes ahead unmetered for now, as you chose (on_store_error): %s", error
                    )
                    if replaces is not None:
                        if self._observer is not None and _is_held(replaces):
                            self._observer.held(-1)
                        replaces.hand_over()
                        self._unwritten.add(dropping(replaces.id))
                    return Hold(self, plan, call_id, now, claims, None)
                if isinstance(result, Reserved):
                    hold = Hold(self, plan, call_id, now, claims, result)
                    if self._telemetry is not None:
                        hold.seen = self._telemetry.begun()
                    if self._observer is not None and not _is_held(replaces):
                        self._observer.held(1)
                    if replaces is not None:
                        replaces.hand_over(hold)
                        hold.lowered_from = hold.lowered_from or replaces.lowered_from
                    return hold
                if replaces is not None:
                    if self._observer is not None and _is_held(replaces):
                        self._observer.held(-1)
                    replaces.hand_over()
                    replaces = None
                if trial:
                    raise NoRoom(result.claim.unit)
                if result.events:
                    self._alerts.tell(result.events)
                worth_waiting = result.reason == "busy" and waiting
                if within and worth_waiting and around_it(result, within):
                    # It would wait for its own end. Asked once more, as one that does not wait.
                    deadline, sweep = time.monotonic(), True
                    continue
                if worth_waiting:
                    if deadline is None:
                        deadline = time.monotonic() + patience
                    if place is None:
                        place = Place(self._lines, result.claim.key, before=bool(within))
                    else:
                        place.move(result.claim.key)
                if not swept:
                    sweep = True  # holds of the dead may be in the way
                elif not worth_waiting:
                    raise self._exceeded(result, plan, around_it(result, within))
                else:
                    assert place is not None
                    assert deadline is not None
                    sweep = False
                    say_tier(self.notices, result, plan)
                    deadline = yield from in_line(place, deadline)
                now = self._clock()
        finally:
            if place is not None:
                place.leave()

    def _in_time(self, plan: Plan, now: int) -> Steps[None]:
        assert self.guarding is not None
        try:
            yield from self.guarding.within_time(self.auditor, plan, now)
        except StoreError:
            if self._on_store_error == "refuse":
                raise

    def _check_lines(self, plan: Plan, now: int) -> None:
        """Others wait for room already: whoever is only trying does not go before them."""
        claims = self._planner.claims(plan, now)
        key = self._lines.line_of(claims)
        if key is not None:
            raise NoRoom(next(claim.unit for claim in claims if claim.key == key))

    def _admitting(self, ask: _Asking) -> Steps[Reserved | Refused]:
        """From a slice in this process's hands, or by asking the store."""
        leases, plan = self._leases, ask.plan
        result: Reserved | Refused
        if leases is None:
            if self._observer is None:
                result = yield self._reserve_work(ask)
            else:
                result = yield from self._ask_store(self._reserve_work(ask), ask)
            return result
        # The store writes what is written besides a hold, and sweeps now and then.
        audited = self.auditor is not None and plan.verdict is not None
        # What the layer around holds in the store ends there, in one with what is held in its place.
        around = ask.replaces
        kept = isinstance(around, Hold) and (around.reserved is None or around.reserved.drawn is None)
        if not (ask.sweep or ask.place or audited or kept) and (drawn := leases.draw(ask.claims, plan.ask)):
            return drawn
        part = None
        if not ask.place:
            part = leases.part(
                ask.claims, plan.ask, lambda claims: self._reserve_work(ask._replace(claims=claims))
            )
        if part is not None and (found := (yield from self._ask_store(part, ask))) is not None:
            result = found
        else:
            result = yield from self._ask_store(leases.asking(self._reserve_work(ask), plan.ask), ask)
        return result

    def _ask_store(self, work: Operation[T], ask: _Asking) -> Steps[T]:
        """Run it; what concerns leases is told how it ended, and who watches, how long that took."""
        observer = self._observer
        began = time.monotonic() if observer is not None else 0.0
        try:
            result: T = yield work
        except BaseException as error:
            if isinstance(work, LeaseWork):
                work.failed(error)
            raise
        finally:
            if observer is not None:
                observer.asked("reserve", time.monotonic() - began)
        if isinstance(work, LeaseWork):
            work.done(result)
        if ask.expired:
            self._expired(len(ask.expired))
        return result

    def _expired(self, count: int) -> None:
        """So many holds have been ended for others."""
        if self._observer is not None and count:
            self._observer.happened("expired", count)
            if self.on_unknown != "release":
                self._observer.happened("assumed", count)

    def _dropping(self, call_id: str, claims: Sequence[Claim]) -> Work[bool]:
        def work(rows: Rows) -> bool:
            dropped = cancel(rows, call_id=call_id)
            self._lines.wake(claims)
            return dropped

        return Operation(work, claims=claims, takes=(call_id,))

    def _reserve_work(self, ask: _Asking) -> Operation[Reserved | Refused]:
        call_id, plan, claims, now, sweep, swept, waiting, replaces, place, trial, expired = ask
        owner = this_process()
        decision = None
        if self.auditor is not None and plan.verdict is not None:
            decision = self.auditor.allowed(plan, plan.verdict, call_id)

        def work(rows: Rows) -> Reserved | Refused:
            if sweep:
                expired[:] = expire(rows, now=now, book=self.on_unknown != "release", has_died=has_died)
                self._planner.lessons.recall(rows.lessons())
            result = reserve(
                rows,
                call_id=call_id,
                claims=claims,
                ask=plan.ask if not trial else plan.ask._replace(floor=plan.ask.want),
                call=plan.shape.fields,
                now=now,
                lease=self.lease_ms,
                count=swept and not trial,
                count_busy=not waiting,
                replaces=replaces.id if replaces is not None else None,
                sharing=place.behind if place is not None else 0,
                owner=owner,
            )
            if decision is not None and isinstance(result, Reserved):
                rows.add_audit(decision)
            if isinstance(result, Refused) and result.events:
                self._alerts.write(rows, now, result.events)
            return result

        return Operation(
            work,
            claims=claims,
            takes=(replaces.id,) if replaces is not None else (),
            makes=call_id,
            now=now,
            sweeps=sweep,
        )

    def standing(self, hold: Hold) -> Balance | None:
        """The budget that has the least left of those that `hold` is in, as of when it was made."""
        tightest = hold.reserved.tightest if hold.reserved is not None else None
        return None if tightest is None else self._planner.balance(hold.plan.budgets, tightest)

    def _exceeded(self, refused: Refused, plan: Plan, around: int) -> BudgetExceeded | LoopDetected:
        error = self.guarding.counted(refused, plan) if self.guarding is not None else None
        return self._told(error or self._short(refused, plan, around), plan)

    def _short(self, refused: Refused, plan: Plan, around: int) -> BudgetExceeded:
        say_tier(self.notices, refused, plan)
        there = Standing(refused.claim, refused.limit, refused.spent, refused.held)
        balance = self._planner.balance(plan.budgets, there)
        short = Shortfall(
            **vars(balance), asked=refused.asked, frees_at=when(refused.frees), around=around,
            key=refused.claim.key[:2],
        )  # fmt: skip
        return BudgetExceeded(short, "exhausted" if around else refused.reason, now=when(self._clock()))

    def _told(self, error: E, plan: Plan) -> E:
        """A refusal, when all have been told of it."""
        if self.auditor is not None:
            self.auditor.refused(error, plan.who, plan.operation, plan.model)
        if self._telemetry is not None:
            self._telemetry.refused(error, plan)
        if self._observer is not None:
            unit = error.shortfall.unit if isinstance(error, BudgetExceeded) else "calls"
            self._observer.refused(error.reason, unit)
        log.info("%s", error)
        return error

    # ── ending ─────────────────────────────────────────────────────────────────────────

    def ending(self, hold: Hold, outcome: Outcome) -> Steps[None] | None:
        """The steps that end `hold`; None if nothing new was learnt."""
        if self._observer is not None and _is_held(hold):
            self._observer.held(-1)
        if not hold.takes(outcome) or self._put_back(hold, outcome):
            return None
        return self._unwritten.writing(self._end_work(hold, outcome))

    def _put_back(self, hold: Hold, outcome: Outcome) -> bool:
        """Whether that is all: the call never left, and what it had was drawn from a slice."""
        if outcome.status != "cancelled" or hold.draw is None or not hold.draw.put_back():
            return False
        self._lines.wake(hold.claims)
        self._after(Booked(True, call=(hold, outcome)))
        return True

    def post_end(self, hold: Hold, outcome: Outcome) -> None:
        """End `hold` soon, without waiting."""
        observer = self._observer
        if observer is not None and _is_held(hold):
            observer.held(-1)
        if not hold.takes(outcome) or self._put_back(hold, outcome):
            return
        work = self._end_work(hold, outcome)
        after = self._after
        if observer is not None:
            began = time.monotonic()

            def after(booked: Booked) -> None:
                observer.asked("settle", time.monotonic() - began)
                self._after(booked)

        # Nobody waits for it: its events are told from the writer.
        self._ledger.post(work, lambda error: self._unwritten.keep(work, error), after)

    def _end_work(self, hold: Hold, outcome: Outcome) -> Writing:
        release = self.on_unknown == "release"
        now = self._clock()
        work = end_work(hold, outcome, self._planner, release=release, now=now)

        def waking(rows: Rows) -> Booked:
            booked = work(rows)
            if self._lines:
                self._lines.wake(hold.claims)
            if booked.events or booked.over or booked.unpriced:
                self._alerts.write(rows, self._clock(), booked.events, booked, hold.plan.model)
            if self._telemetry is None and self._counting is None and self._observer is None:
                return booked
            return booked._replace(call=(hold, outcome))

        draw = hold.draw
        if draw is None or outcome.status == "cancelled":
            return Operation(waking, claims=hold.claims, takes=(hold.id,), now=now, settles=True)
        draw.ending = True
        locks = hold.claims if draw.over else draw.locks
        return Operation(waking, claims=locks, takes=draw.takes(), now=now, settles=True)

    def _after(self, booked: Booked) -> None:
        if booked.drawn is not None:
            booked.drawn.ended()
        if booked.call is not None and booked.written:
            if self._telemetry is not None:
                self._telemetry.ended(booked, self._clock())
            if self._counting is not None:
                self._counting(booked)
            if self._observer is not None and booked.call[1].status == "assumed":
                self._observer.happened("assumed")
        if booked.over:
            if self._observer is not None:
                self._observer.over(booked.over)
            log.error(
                "the provider billed more than the worst case of the request (in %s): the truth is "
                "booked and the budget admits no more than it has left; check the model's price",
                ", ".join(booked.over),
            )
        if booked.events or booked.over or booked.unpriced:
            self._alerts.tell(booked.events)

    def count_calls(self, told: Callable[[Booked], None]) -> None:
        """Have each call's end told: its `call` is the hold, and the outcome. From whatever thread."""
        self._counting = told

    def watch_store(self, watcher: StoreWatcher) -> None:
        """Have it told what the store does; there may be several. From whatever thread."""
        if self._observer is None:
            leases = self._leases
            self._observer = StoreObserver((lambda: 0) if leases is None else leases.__len__)
            self._observer.watchers.append(watcher)
            self._ledger.watcher = self._unwritten.observer = self._observer
        else:
            self._observer.watchers.append(watcher)

    def reads_on(
        self, provider: str | None, said: OnAbandoned | None = None, *, goes_on: bool = False
    ) -> bool:
        """Whether a provider's stream is read on in the background when its reader has left.

        Args:
            said: by whoever knows this provider better than the meter's own setting.
            goes_on: whether what is made was asked to be made, and billed, whoever reads it.
        """
        chosen = said or self._on_abandoned.get(provider or "") or self._on_abandoned[""]
        return goes_on or bills_on(provider) if chosen == "auto" else chosen == "drain"

    # ── balances ───────────────────────────────────────────────────────────────────────

    def balances_of(self, who: Attribution, fallback: Attribution = NOBODY) -> Work[list[Balance]]:
        """The store operation that tells the buckets of `who`, but for those per model."""
        planner, now, whose = self._planner, self._clock(), self._planner.who(who, fallback)
        budgets = [b for b in planner.applicable(whose, "") if "model" not in b.per]
        return Operation(lambda rows: planner.balances(rows, budgets, whose, "", now), reads=True)

    def share_used(self, who: Attribution, fallback: Attribution = NOBODY) -> Work[int]:
        """The store operation that tells how full, in percent, the fullest budget of `who` is that holds."""
        balances = self.balances_of(who, fallback)

        def work(rows: Rows) -> int:
            hard = (b for b in balances(rows) if not b.soft)
            return max((100 * (b.spent + b.held) // max(1, b.limit) for b in hard), default=0)

        return Operation(work, reads=True)

    def stage_balances(self, budgets: Sequence[Budget]) -> list[Balance]:
        """The buckets of a stage's budgets, as they stand."""
        return self.read_balances(budgets, self._planner.who(NOBODY), "")

    def read_balances(self, budgets: Sequence[Budget], who: Attribution, model: str) -> list[Balance]:
        """The buckets of some budgets that a call of `who` to `model` would count in, as they stand.

        Raises:
            StoreError: the store cannot be read.
        """
        tell, now = self._planner.balances, self._clock()
        return self._ledger.submit(Operation(lambda rows: tell(rows, budgets, who, model, now), reads=True))

    def changes(self, by: str | None = None, why: str | None = None) -> BudgetChanges:
        """What changes the limits of its budgets; `by` and `why` are for the audit."""
        return BudgetChanges(self._ledger, self._planner.budgets, self._clock, by=by, why=why)

    # ── keeping house ──────────────────────────────────────────────────────────────────

    def recall(self) -> None:
        """Read what bills have taught other processes; it is read again about once a second."""
        self._planner.lessons.recall(self._ledger.submit(Operation(lambda rows: rows.lessons(), reads=True)))

    def sweep(self) -> int:
        """Book the holds whose lease has run out; how many."""
        total = 0
        while True:
            now = self._clock()
            ended = self._ledger.submit(
                lambda rows, now=now: expire(  # type: ignore[misc]
                    rows, now=now, book=self.on_unknown != "release", has_died=has_died
                )
            )
            total += len(ended)
            self._expired(len(ended))
            if not ended:
                return total

    def flush(self) -> None:
        """Write everything that is still to be written; streams that are read on are waited for.

        Raises:
            StoreError: the store is still out; nothing is lost, it is kept.
        """
        problem = "the store is out"
        self.drains.wait()
        self._alerts.flush()
        try:
            self._ledger.flush()
            self._unwritten.hurry()
            run(self._ledger, self._unwritten.retrying())
        except StoreError as error:
            if not self._unwritten:
                raise
            problem = str(error)
        if self._leases is not None:
            self._hand_back(self._leases)
        count = len(self._unwritten)
        if count:
            raise StoreError(
                f"{count} {'entry' if count == 1 else 'entries'} could not be written yet and "
                f"{'is' if count == 1 else 'are'} kept: {problem}"
            )

    def _hand_back(self, leases: Leases) -> None:
        out: StoreError | None = None
        for work in leases.retire_all():
            try:
                if out is None:
                    work.done(self._ledger.submit(work))
            except StoreError as error:
                out = error
            if out is not None:  # it is tried again, or ends by its lease
                work.failed(out)

    @property
    def unwritten(self) -> int:
        """Entries that wait for the store to come back."""
        return len(self._unwritten)

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


def _is_held(hold: Outer | None) -> bool:
    """Whether it is counted as a call in flight for which something is held."""
    return isinstance(hold, Hold) and hold.reserved is not None and hold.open


def _log_failed(error: BaseException) -> None:
    log.error("a hold could not be dropped and will end by its lease: %s", error)


class _Asking(NamedTuple):
    """One attempt to reserve.

    Attributes:
        sweep, swept: whether holds of the dead are to be ended with it, and have been by its end.
        waiting: whether a refusal that is only `busy` will be tried again.
        place: in the line of a bucket.
        trial: see `Engine.reserving`.
        expired: which holds it has ended for others, once it is done.
    """

    call_id: str
    plan: Plan
    claims: Sequence[Claim]
    now: int
    sweep: bool
    swept: bool
    waiting: bool
    replaces: Outer | None
    place: Place | None
    trial: bool
    expired: list[str]
