"""Invariants 1 to 6, checked after each step of random histories, on each store.

A model in plain Python says what each call must have been booked as; the ledger, the
buckets and the holds must agree with it whatever happens in whatever order.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import postgres
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from behest_integrations import Budget, BudgetExceeded, Meter, Price, Usage
from behest_integrations.engine.holds import Hold
from behest_integrations.engine.outcomes import Outcome
from behest_integrations.reports import repair, verify
from behest_integrations.rules.budgets import to_nano
from behest_integrations.wire import RequestBound

BUDGETS = (
    "$0.10 per session",
    "$0.30/day in Europe/Paris per user",
    "20k tokens per 1h rolling",
    "12k output tokens/hour for tag feature=support",
    "9 calls/minute per user and model",
    "$0.03/hour per user, warn only",
)
PRICES = {"m": Price(input="3", output="17", cached_input="0.7"), "dear": Price(input="11", output="90")}
START = 1_793_500_000_000  # shortly before the end of daylight saving time in Paris, 2026
HOUR = 3_600_000
PEOPLE = st.sampled_from([("s1", "u1"), ("s2", "u1"), ("s3", "u2"), (None, None)])
TAGS = st.sampled_from([{}, {"feature": "support"}])


class Books(RuleBasedStateMachine):
    store = "memory"
    open_calls: Bundle[Hold] = Bundle("open_calls")
    ended_calls: Bundle[Hold] = Bundle("ended_calls")

    @initialize()
    def begin(self) -> None:
        self.now = START
        self.folder = tempfile.TemporaryDirectory()
        self.url = self.new_store()
        self.meter = self.make_meter()
        self.booked: dict[str, int | None] = {}  # call id → nano-dollars; None: in flight
        self.worst: dict[str, int] = {}
        self.highest = {text: Budget.parse(text).amount for text in BUDGETS}
        self.refused = 0

    def new_store(self) -> str:
        return "memory://"

    def make_meter(self) -> Meter:
        return Meter(
            self.url,
            budgets=BUDGETS,
            prices=PRICES,
            lease=600,
            wait=0,  # nobody else is there, to make room
            clock=lambda: self.now,
            min_output_tokens=10,
            default_output_tokens=200,
        )

    def teardown(self) -> None:
        if hasattr(self, "meter"):
            self.meter.close()
            self.folder.cleanup()

    # ── what may happen ────────────────────────────────────────────────────────────────

    @rule(
        target=open_calls,
        who=PEOPLE,
        tags=TAGS,
        model=st.sampled_from(["m", "dear"]),
        prompt=st.integers(1, 3000),
        limit=st.one_of(st.none(), st.integers(1, 2000)),
        choices=st.integers(1, 3),
    )
    def reserve(self, who: Any, tags: Any, model: str, prompt: int, limit: int | None, choices: int) -> Any:
        session, user = who
        bound = RequestBound(
            prompt, choices=choices, output_limit=limit, limit_fields=("max_completion_tokens",)
        )
        before = self.sums()
        due = self.due()
        with self.meter.session(session, user=user, tags=tags):
            try:
                hold = self.meter.reserve(self.meter.plan("chat", model, bound))
            except BudgetExceeded as error:
                assert not error.shortfall.soft
                assert error.shortfall.asked > error.shortfall.left
                self.note_expired(due)
                if not due:
                    assert self.sums() == before, "a refusal changed something (invariant 3)"
                self.refused += 1
                return multiple()
        self.note_expired(due)
        want = limit if limit is not None else 200
        assert hold.output_limit is not None
        assert min(10, want) <= hold.output_limit <= want
        self.booked[hold.id] = None
        self.worst[hold.id] = hold.amounts["usd"]
        return hold

    @rule(target=ended_calls, hold=consumes(open_calls), data=st.data())
    def settle(self, hold: Hold, data: Any) -> Hold:
        usage = self.draw_usage(hold, data)
        hold.settle(usage)
        self.expect(hold, self.cost(hold, usage))
        return hold

    @rule(hold=ended_calls, data=st.data())
    def settle_again(self, hold: Hold, data: Any) -> None:
        """A second report changes nothing; after an expiry it replaces the assumption."""
        known = self.booked[hold.id]
        usage = self.draw_usage(hold, data)
        late = Hold(self.meter, hold.plan, hold.id, hold.started, hold.claims, None)
        late.settle(usage)
        if known == -1:  # assumed, or expired
            self.expect(hold, self.cost(hold, usage))

    @rule(target=ended_calls, hold=consumes(open_calls))
    def fail(self, hold: Hold) -> Hold:
        hold.end(Outcome("failed", note="HTTP 429"))
        self.expect(hold, 0)
        return hold

    @rule(target=ended_calls, hold=consumes(open_calls))
    def assume(self, hold: Hold) -> Hold:
        hold.end(Outcome("assumed", note="no answer"))
        self.expect(hold, -1)
        return hold

    @rule(hold=consumes(open_calls))
    def release(self, hold: Hold) -> None:
        hold.release()
        known = self.booked.pop(hold.id)
        if known == -1:
            self.booked[hold.id] = -1  # too late: it had been booked

    @rule(step=st.sampled_from([1, 1000, 59_000, 10 * 60_000, HOUR, 5 * HOUR, 24 * HOUR]))
    def time_passes(self, step: int) -> None:
        self.now += step

    @rule()
    def sweep(self) -> None:
        due = self.due()
        assert self.meter.sweep() == len(due)
        self.note_expired(due)

    @rule(budget=st.sampled_from(BUDGETS), percent=st.sampled_from([0, 10, 50, 100, 130]))
    def change_budget(self, budget: str, percent: int) -> None:
        amount = Budget.parse(budget).amount * percent // 100
        self.meter.set_limit(budget, amount)
        self.highest[budget] = max(self.highest[budget], amount)

    @rule(budget=st.sampled_from(BUDGETS))
    def reset_budget(self, budget: str) -> None:
        self.meter.reset_limit(budget)

    @precondition(lambda self: self.store != "memory")
    @rule()
    def restart(self) -> None:
        self.meter.close()
        self.meter = self.make_meter()
        for hold in self.holds_alive():
            hold.keeper = self.meter

    @rule()
    def repair_finds_nothing(self) -> None:
        assert repair(self.meter.ledger) == []

    # ── helpers ────────────────────────────────────────────────────────────────────────

    def holds_alive(self) -> list[Hold]:
        names = [v.name for b in ("open_calls", "ended_calls") for v in self.bundle(b)]
        return [self.names_to_values[name] for name in names]

    def draw_usage(self, hold: Hold, data: Any) -> Usage:
        prompt = data.draw(st.integers(0, hold.amounts["input_tokens"]))
        output = data.draw(st.integers(0, hold.amounts["output_tokens"]))
        cached = data.draw(st.integers(0, prompt))
        return Usage(prompt, output, cached, reasoning_tokens=output // 2)

    def cost(self, hold: Hold, usage: Usage) -> int:
        cost = self.meter.pricing.find(hold.plan.model).cost(usage)
        assert cost <= self.worst[hold.id], "the bound was too low (invariant 2)"
        return cost

    def expect(self, hold: Hold, cost: int) -> None:
        """The first word on a call counts, unless it was only an assumption (-1)."""
        known = self.booked[hold.id]
        if known is None or (known == -1 and cost != -1):
            self.booked[hold.id] = cost

    def due(self) -> set[str]:
        """Calls whose lease has run out and whose hold is still there."""
        return {h.id for h in self.meter.ledger.snapshot()[1] if h.expires <= self.now}

    def note_expired(self, due: set[str]) -> None:
        """Reserving may have swept up what was due; then it is booked at its worst."""
        for call_id in due - {h.id for h in self.meter.ledger.snapshot()[1]}:
            assert self.booked[call_id] is None
            self.booked[call_id] = -1

    def sums(self) -> Any:
        buckets, holds, entries = self.meter.ledger.snapshot()
        return ([(b.id, b.spent, b.held) for b in buckets if b.spent or b.held], len(holds), len(entries))

    def bundle(self, name: str) -> Any:
        return self.bundles.get(name, [])

    # ── what must be true ──────────────────────────────────────────────────────────────

    @invariant()
    def the_books_hold(self) -> None:
        if not hasattr(self, "meter"):
            return
        buckets, holds, entries = self.meter.ledger.snapshot()
        assert verify(self.meter.ledger) == []  # invariant 6
        rules = {Budget.parse(text).shape: text for text in BUDGETS}
        for bucket in buckets:
            assert bucket.spent >= 0
            assert bucket.held >= 0
            top = self.highest[rules[bucket.budget]]
            if Budget.parse(rules[bucket.budget]).soft:
                continue  # it counts, and stops nobody
            assert bucket.spent + bucket.held <= top, "invariant 1"
        for text in BUDGETS:
            budget = Budget.parse(text)
            if not budget.rolling_ms:
                continue
            # In any interval of its length, not only in the one that ends now.
            slots = sorted((b.start, b.spent) for b in buckets if b.budget == budget.shape and b.start)
            for start, _ in slots:
                inside = sum(
                    s for at, s in slots if start <= at <= start + budget.rolling_ms - budget.slot_ms
                )
                assert inside <= self.highest[text], "a rolling window was passed"
        in_flight = {h.id for h in holds}
        assert in_flight == {c for c, cost in self.booked.items() if cost is None}  # invariant 4
        net: dict[str, int] = {}
        calls: dict[str, int] = {}
        for entry in entries:
            net[entry.call_id] = net.get(entry.call_id, 0) + (entry.cost or 0)
            calls[entry.call_id] = calls.get(entry.call_id, 0) + entry.calls
        expected = {
            c: (self.worst[c] if cost == -1 else cost) for c, cost in self.booked.items() if cost is not None
        }
        assert net == expected  # nothing twice, nothing lost
        assert all(n in (0, 1) for n in calls.values())


class MemoryBooks(Books):
    store = "memory"


class SQLiteBooks(Books):
    store = "sqlite"

    def new_store(self) -> str:
        return f"sqlite:///{Path(self.folder.name)}/b.db"


class PostgresBooks(Books):
    store = "postgres"

    def new_store(self) -> str:
        return postgres.new_url()


_quick = settings(
    max_examples=15,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestMemory = MemoryBooks.TestCase
# To verify books in memory makes a database of them, and that is done after each step.
TestMemory.settings = settings(_quick, max_examples=12)
TestSQLite = SQLiteBooks.TestCase
TestSQLite.settings = _quick
TestPostgres = PostgresBooks.TestCase
TestPostgres.settings = settings(_quick, max_examples=2)


@pytest.mark.slow
@pytest.mark.parametrize(("books", "number"), [(MemoryBooks, 40), (SQLiteBooks, 100), (PostgresBooks, 8)])
def test_more_histories(books: type[Books], number: int) -> None:
    run_state_machine_as_test(books, settings=settings(_quick, max_examples=number))


@pytest.mark.soak
@pytest.mark.parametrize("books", [MemoryBooks, SQLiteBooks, PostgresBooks])
def test_long_histories(books: type[Books]) -> None:
    run_state_machine_as_test(books, settings=settings(_quick, max_examples=1500, stateful_step_count=60))


def test_expiry_books_the_worst_case_and_a_late_report_replaces_it(store: str) -> None:
    now = [START]
    with Meter(store, budgets=["$1"], prices=PRICES, lease=60, clock=lambda: now[0]) as meter:
        hold = meter.reserve(meter.plan("chat", "m", RequestBound(1000, output_limit=100)))
        worst = hold.amounts["usd"]
        assert worst == to_nano("0.0047")
        now[0] += 61_000
        assert meter.sweep() == 1
        assert meter.spend()[0].spent == worst
        hold.settle(Usage(10, 10))
        hold.settle(Usage(500, 50))
        assert meter.spend()[0].spent == to_nano("0.0002")
        statuses = [(e.status, e.reversal, e.cost) for e in meter.ledger.snapshot()[2]]
        assert statuses == [("assumed", 0, worst), ("assumed", 1, -worst), ("settled", 0, to_nano("0.0002"))]
        assert verify(meter.ledger) == []


def test_repair_restores_what_was_tampered_with(sqlite_store: str) -> None:
    import sqlite3

    with Meter(sqlite_store, budgets=["$1"], prices=PRICES) as meter:
        meter.reserve(meter.plan("chat", "m", RequestBound(1000, output_limit=100))).settle(Usage(10, 10))
        open_hold = meter.reserve(meter.plan("chat", "m", RequestBound(1000, output_limit=100)))
        before = meter.spend()
        with sqlite3.connect(sqlite_store.removeprefix("sqlite:///")) as tamper:
            tamper.execute("UPDATE buckets SET spent = 0, held = 0")
        tamper.close()
        (finding,) = verify(meter.ledger)
        assert (finding.spent, finding.held) == (to_nano("0.0002"), open_hold.amounts["usd"])
        assert len(repair(meter.ledger)) == 1
        assert verify(meter.ledger) == []
        assert meter.spend() == before
