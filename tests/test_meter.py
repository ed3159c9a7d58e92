"""The meter on its own: holds, waiting, changing budgets, thresholds, stages, balances."""

from __future__ import annotations

import asyncio
import pickle
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_sound, entries, holds

from behest_integrations import (
    Budget,
    BudgetExceeded,
    ConfigError,
    Meter,
    Price,
    ThresholdEvent,
    Usage,
    session,
)
from behest_integrations.calls.exchange import Exchange
from behest_integrations.engine.holds import Hold
from behest_integrations.engine.outcomes import Outcome
from behest_integrations.engine.plan import Plan
from behest_integrations.ledger.admission import Ask, BucketState, Denied, Granted, Need, decide
from behest_integrations.reports import stages
from behest_integrations.reports.budgets import buckets
from behest_integrations.wire import RequestBound

# $1 per million tokens: a token costs 1,000 nano-dollars.
PRICES = {"m": Price(input="1", output="1")}
DAY = 86_400_000


class Clock:
    """Milliseconds since 1970, moved by hand."""

    def __init__(self, at: datetime) -> None:
        self.now = int(at.timestamp() * 1000)

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock(datetime(2026, 11, 24, 12, tzinfo=timezone.utc))


def hold(meter: Meter, tokens: int = 1000, model: str = "m") -> Hold:
    """Reserve for a prompt of `tokens` and no output."""
    return meter.reserve(meter.plan("chat", model, RequestBound(tokens, output_limit=0)))


def spend(meter: Meter, tokens: int = 1000) -> None:
    hold(meter, tokens).settle(Usage(tokens))


# ── holds ──────────────────────────────────────────────────────────────────────────────


def test_what_is_held_counts_until_the_truth_is_known(store: str) -> None:
    with Meter(store, budgets=["$0.003"], prices=PRICES, wait=0) as meter:
        first, _second = hold(meter), hold(meter)
        with pytest.raises(BudgetExceeded) as caught:
            hold(meter, 1001)
        assert caught.value.busy
        assert caught.value.shortfall.held == 2_000_000
        first.settle(Usage(10))
        hold(meter, 1990).release()
        (balance,) = meter.spend()
        assert (balance.spent, balance.held, balance.left) == (10_000, 1_000_000, 1_990_000)
        assert str(balance) == "$0.003: $0.00001 spent, $0.001 held, $0.00199 left"


def test_a_hold_ends_once_however_often_it_is_told(store: str) -> None:
    with Meter(store, budgets=["$1"], prices=PRICES) as meter:
        it = hold(meter)
        it.settle(Usage(10))
        it.settle(Usage(20))
        it.release()
        it.end(Outcome("assumed"))
        assert [(e.status, e.cost) for e in entries(meter)] == [("settled", 10_000)]
        assert_sound(meter)


def test_a_late_settle_replaces_the_assumption(store: str, clock: Clock) -> None:
    with Meter(store, budgets=["$1/day", "$1"], prices=PRICES, lease=60, clock=clock) as meter:
        it = hold(meter)
        clock.now += 61_000
        assert meter.sweep() == 1
        assert [(e.status, e.cost, e.flags) for e in entries(meter)] == [("assumed", 1_000_000, "expired")]
        it.settle(Usage(10))
        lines = [(e.status, e.cost, e.reversal) for e in entries(meter)]
        assert lines == [("assumed", 1_000_000, 0), ("assumed", -1_000_000, 1), ("settled", 10_000, 0)]
        assert [b.spent for b in meter.spend()] == [10_000, 10_000]
        assert_sound(meter)


def test_holds_of_the_dead_are_found_by_the_next_call(store: str, clock: Clock) -> None:
    with Meter(store, budgets=["2 calls"], lease=60, clock=clock) as meter:
        hold(meter), hold(meter)
        clock.now += 61_000
        with pytest.raises(BudgetExceeded) as caught:
            hold(meter)
        assert not caught.value.busy  # they were booked at the worst case
        assert [e.status for e in entries(meter)] == ["assumed", "assumed"]


def test_release_by_choice_books_nothing(store: str, clock: Clock) -> None:
    with Meter(store, budgets=["1 calls"], lease=60, clock=clock, on_unknown="release") as meter:
        hold(meter)
        clock.now += 61_000
        hold(meter).end(Outcome("assumed"))
        hold(meter)
        assert [e.calls for e in entries(meter)] == [0, 0]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_caller_may_wait_for_calls_in_flight(store: str, asynchronous: bool) -> None:
    with Meter(store, budgets=["1 calls per session"], wait=10) as meter:
        it = hold(meter)
        threading.Timer(0.1, it.release).start()
        if asynchronous:
            plan = meter.plan("chat", "m", RequestBound(1, output_limit=0))
            asyncio.run(meter.areserve(plan)).release()
        else:
            hold(meter).release()


def test_waiting_ends(store: str) -> None:
    with Meter(store, budgets=["1 calls"], wait=0.15) as meter:
        hold(meter)
        started = time.monotonic()
        with pytest.raises(BudgetExceeded):
            hold(meter)
        assert 0.1 < time.monotonic() - started < 5


def test_nobody_waits_for_what_cannot_help(store: str) -> None:
    with Meter(store, budgets=["1 calls"], wait=60) as meter:
        spend(meter)
        with pytest.raises(BudgetExceeded):
            hold(meter)


def test_a_task_cancelled_while_it_reserves_leaves_no_hold(sqlite_store: str) -> None:
    async def run(meter: Meter) -> None:
        plan = meter.plan("chat", "m", RequestBound(1, output_limit=0))
        for steps in range(12):
            task = asyncio.ensure_future(meter.areserve(plan))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            found = await asyncio.gather(task, return_exceptions=True)
            if isinstance(found[0], Hold):
                found[0].release()

    with Meter(sqlite_store, budgets=["1000 calls"]) as meter:
        asyncio.run(run(meter))
        assert_sound(meter)
        assert meter.spend()[0].spent == 0


# ── the pure decision ──────────────────────────────────────────────────────────────────

needs = st.builds(Need, st.integers(0, 10**6), st.integers(0, 1000), st.sampled_from([1, 10**6]))
states = st.lists(
    st.builds(
        BucketState,
        st.sampled_from(["usd", "tokens"]),
        st.integers(0, 10**6),
        st.integers(0, 10**6),
        st.integers(0, 10**6),
    ),
    max_size=5,
)


@settings(max_examples=400)
@given(
    states, st.fixed_dictionaries({"usd": needs, "tokens": needs}), st.integers(0, 500), st.integers(0, 500)
)
def test_a_grant_fits_everywhere_and_one_token_more_would_not(
    found: list[BucketState], wanted: dict[str, Need], a: int, b: int
) -> None:
    ask = Ask(wanted, max(a, b), min(a, b))
    decision = decide(found, ask)

    def fits(output: int) -> bool:
        return all(s.spent + s.held + wanted[s.unit].amount(output) <= s.limit for s in found)

    if isinstance(decision, Granted):
        assert ask.floor <= decision.output <= ask.want
        assert fits(decision.output)
        assert decision.output == ask.want or not fits(decision.output + 1)
    else:
        assert isinstance(decision, Denied)
        assert not fits(ask.floor)


# ── budgets that change ────────────────────────────────────────────────────────────────


def test_a_budget_is_raised_lowered_and_removed_in_flight(store: str) -> None:
    with Meter(store, budgets=["3 calls per session"]) as meter:
        spend(meter), spend(meter)
        meter.set_limit("3 calls per session", "1 calls")  # below what is spent: admits no more
        with pytest.raises(BudgetExceeded, match="limit 1 call"):
            hold(meter)
        assert meter.budgets == (Budget.parse("1 calls per session"),)
        meter.set_limit("3 calls per session", 4)
        spend(meter)
        meter.remove_budget("3 calls per session")
        spend(meter), spend(meter)
        assert meter.budgets == ()
        assert meter.spend() == []
        meter.reset_limit("3 calls per session")
        with pytest.raises(BudgetExceeded):
            hold(meter)
        assert_sound(meter)


def test_a_change_reaches_every_meter_on_the_store(sqlite_store: str) -> None:
    with Meter(sqlite_store, budgets=["5 calls"]) as one, Meter(sqlite_store, budgets=["5 calls"]) as other:
        one.set_limit("5 calls", "0 calls")
        with pytest.raises(BudgetExceeded):
            hold(other)


def test_a_budget_is_added(store: str) -> None:
    with Meter(store) as meter:
        spend(meter)
        assert meter.add_budget("1 calls") == Budget.parse("1 calls")
        spend(meter)
        with pytest.raises(BudgetExceeded):
            hold(meter)


def test_a_changed_amount_in_the_configuration_keeps_what_was_spent(sqlite_store: str) -> None:
    with Meter(sqlite_store, budgets=["5 calls per user"]) as meter:
        spend(meter), spend(meter)
    with Meter(sqlite_store, budgets=["3 calls per user"]) as meter:
        spend(meter)
        with pytest.raises(BudgetExceeded):
            hold(meter)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.set_limit("9 calls per user", "1 calls"), 'configured: "5 calls"'),
        (lambda m: m.set_limit("5 calls", "$5"), "not an amount of calls"),
        (lambda m: m.set_limit("5 calls", -1), "amount"),
        (lambda m: m.add_budget("7 calls"), "count the same thing"),
        (lambda m: m.budget(name="x"), "at least one budget"),
        (lambda m: m.budget("$1", name="a/b"), "no '/'"),
    ],
)
def test_impossible_changes_are_refused_and_change_nothing(change: Any, says: str) -> None:
    with Meter("memory://", budgets=["5 calls"]) as meter:
        with pytest.raises(ConfigError, match=says):
            change(meter)
        assert meter.budgets == (Budget.parse("5 calls"),)


@pytest.mark.parametrize(
    "options",
    [
        {"budgets": ["5 calls", "6 calls"]},
        {"budgets": ["5 cals"]},
        {"timezone": "Mars/Olympus"},
        {"default_output_tokens": 0},
        {"min_output_tokens": "16"},
        {"wait": -1},
        {"lease": "long"},
        {"on_unknown": "hope"},
        {"on_store_error": "ignore"},
        {"durability": "forever"},
        {"thresholds": (0.5,)},
        {"allow": {"images": "cheap"}},
        {"prices": {"m": 5}},
        {"project": ""},
        {"store": "mysql://x"},
        {"store": "sqlite://"},
        {"store": 5},
    ],
)
def test_impossible_settings_are_refused_at_once(options: dict[str, Any], tmp_path: Any) -> None:
    with pytest.raises(ConfigError):
        Meter(**{"store": f"sqlite:///{tmp_path}/b.db", **options})


# ── windows ────────────────────────────────────────────────────────────────────────────


def test_a_day_turns_over_at_midnight_where_the_user_lives(store: str, clock: Clock) -> None:
    with Meter(store, budgets=["1 calls/day"], timezone="Asia/Tokyo", clock=clock) as meter:
        spend(meter)
        with pytest.raises(BudgetExceeded) as caught:
            hold(meter)
        assert caught.value.resets_at == datetime(2026, 11, 24, 15, tzinfo=timezone.utc)
        assert "resets at 2026-11-24 15:00:00 UTC" in str(caught.value)
        clock.now = int(caught.value.resets_at.timestamp() * 1000)
        spend(meter)


def test_a_call_counts_in_the_window_in_which_it_was_let_through(store: str, clock: Clock) -> None:
    with Meter(store, budgets=["2 calls/day"], clock=clock) as meter:
        it = hold(meter)
        clock.now += DAY
        it.settle(Usage(1))
        spend(meter), spend(meter)
        assert_sound(meter)


@settings(max_examples=60, deadline=None)
@given(
    length=st.sampled_from([60, 90, 3600]),
    limit=st.integers(1, 6),
    gaps=st.lists(st.integers(0, 2_000_000), min_size=5, max_size=40),
)
def test_a_rolling_window_admits_no_more_in_any_interval(length: int, limit: int, gaps: list[int]) -> None:
    clock = Clock(datetime(2026, 1, 1, tzinfo=timezone.utc))
    budget = Budget(limit, "calls", rolling=timedelta(seconds=length))
    admitted: list[int] = []
    with Meter("memory://", budgets=[budget], clock=clock) as meter:
        for gap in gaps:
            clock.now += gap % (length * 700)
            try:
                spend(meter, 1)
                admitted.append(clock.now)
            except BudgetExceeded:
                pass
        # Everything is free again one window, and the slot that it ends in, later.
        clock.now += length * 1000 + budget.slot_ms + 1
        spend(meter, 1)
    for i, at in enumerate(admitted):
        assert sum(1 for other in admitted[i:] if other - at < length * 1000) <= limit


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 100_000),
    spent=st.lists(st.tuples(st.integers(0, 40_000), st.integers(1, 9)), min_size=1, max_size=12),
    asked=st.integers(1, 10),
)
def test_retry_after_is_when_it_fits_and_no_later(
    length: int, spent: list[tuple[int, int]], asked: int
) -> None:
    clock = Clock(datetime(2026, 1, 1, 0, 20, tzinfo=timezone.utc))
    budget = Budget(20, "tokens", rolling=timedelta(seconds=length))
    with Meter("memory://", budgets=[budget], clock=clock) as meter:

        def fits(many: int) -> float | None:
            """None if it does, else seconds until it will."""
            try:
                held = meter.reserve(meter.plan("chat", "m", RequestBound(many, output_limit=0)))
            except BudgetExceeded as error:
                assert error.reason == "exhausted"
                assert error.retry_after is not None
                return error.retry_after
            held.release()
            return None

        for pause, many in spent:
            clock.now += pause * 100
            if fits(many) is None:
                meter.reserve(meter.plan("chat", "m", RequestBound(many, output_limit=0))).settle(Usage(many))
        after = fits(asked)
        if after is not None:
            began, whole = clock.now, round(after * 1000)
            clock.now = began + whole - 1
            assert fits(asked) is not None
            clock.now = began + whole
            assert fits(asked) is None


def test_retry_after_of_windows_of_calls_in_flight_and_of_what_only_more_helps(store: str) -> None:
    clock = Clock(datetime(2026, 1, 1, 0, 20, tzinfo=timezone.utc))
    with Meter(store, budgets=["2 calls/hour", "5 calls"], clock=clock, wait=0) as meter:
        first = hold(meter)
        hold(meter).settle(Usage(1))
        with pytest.raises(BudgetExceeded) as caught:
            hold(meter)
        assert caught.value.retry_after == 1
        assert pickle.loads(pickle.dumps(caught.value)).retry_after == 1
        first.settle(Usage(1))
        with pytest.raises(BudgetExceeded) as caught:
            hold(meter)
        assert caught.value.resets_at is not None
        assert caught.value.retry_after == (caught.value.resets_at.timestamp() * 1000 - clock.now) / 1000
        for _ in range(3):
            clock.now += 3_600_000
            hold(meter).settle(Usage(1))
        clock.now += 3_600_000
        with pytest.raises(BudgetExceeded) as caught:
            hold(meter)
        assert caught.value.retry_after is None


# ── limits of one's own ────────────────────────────────────────────────────────────────


def uses(meter: Meter, most: int = 12, **who: str) -> int:
    """How many calls are let through for somebody."""
    with session(**who):
        for done in range(most):
            try:
                spend(meter)
            except BudgetExceeded:
                return done
    return most


def test_one_user_has_a_limit_of_their_own(store: str) -> None:
    budget = "2 calls/day per user"
    with Meter(store, budgets=[budget]) as meter:
        meter.set_limit(budget, "5 calls", user="ada", tenant="acme")
        meter.set_limit(budget, "3 calls", user="a*")
        assert uses(meter, user="ada", tenant="acme") == 5
        assert uses(meter, user="ada") == 2  # another tenant's, and so another user
        assert uses(meter, user="a*") == 3
        assert uses(meter, user="abc") == 2  # an id is no pattern
        with session(user="ada", tenant="acme"), pytest.raises(BudgetExceeded) as caught:
            hold(meter)
        assert caught.value.shortfall.limit == 5
        assert caught.value.budget == "5 calls/day per user"
        # What one has of its own is kept when the limit of all is changed.
        meter.set_limit(budget, "4 calls")
        assert (uses(meter, user="ada"), uses(meter, user="ada", tenant="acme")) == (2, 0)
        meter.reset_limit(budget, user="ada", tenant="acme")
        meter.reset_limit(budget)
        assert uses(meter, user="ada", tenant="acme") == 0
        assert meter.spend(user="a*")[0].limit == 3
        assert [
            (line.scope, line.limit) for line in buckets(meter.ledger, now_ms=int(time.time() * 1000))
        ] == [
            ("user a*", 3),
            ("user abc", 2),
            ("user ada", 2),
            ("user ada (tenant acme)", 2),
        ]
        assert_sound(meter)


def test_a_limit_of_ones_own_holds_in_every_process(sqlite_store: str) -> None:
    with (
        Meter(sqlite_store, budgets=["2 calls per user"]) as one,
        Meter(sqlite_store, budgets=["2 calls per user"]) as other,
    ):
        assert uses(other, user="ada") == 2
        one.set_limit("2 calls per user", "4 calls", user="ada")
        assert uses(other, user="ada") == 2
        one.set_limit("2 calls per user", 1, user="bob")
        assert uses(other, user="bob") == 1


@pytest.mark.parametrize(
    ("budget", "who", "said"),
    [
        ("2 calls per user", {"session": "s"}, "per user: name that, not session"),
        ("2 calls per user", {"user": "u", "project": "p"}, "name that, not project, user"),
        ("2 calls per user and project", {"user": "u"}, "per user and project"),
        ("2 calls", {"user": "u"}, "for everybody together"),
        ("2 calls per project", {"project": "p", "tenant": "t"}, "per project"),
    ],
)
def test_a_scope_that_is_none_of_the_budgets(budget: str, who: dict[str, str], said: str) -> None:
    with Meter("memory://", budgets=[budget]) as meter:
        for change in (lambda: meter.set_limit(budget, 5, **who), lambda: meter.reset_limit(budget, **who)):  # type: ignore[arg-type]
            with pytest.raises(ConfigError, match=said):
                change()


def test_a_limit_is_changed_by_the_text_that_is_shown(store: str) -> None:
    budget = "2 calls/day per user for model gpt-* for project p as mine"
    with Meter(store, budgets=[budget]) as meter:
        meter.set_limit(budget, "5 calls")
        (shown,) = meter.budgets
        meter.set_limit(shown, "6 calls")
        meter.set_limit(str(meter.budgets[0]), "7 calls")
        with session(user="u", project="p"):
            (balance,) = meter.spend(model="gpt-4o")
        meter.set_limit(balance.budget, "8 calls")
        meter.set_limit("2 calls/day per user for project p for model gpt-* as mine", "9 calls")
        assert meter.budgets[0].amount == 9
        meter.reset_limit(balance.budget)
        assert str(meter.budgets[0]) == budget


def test_what_the_ledger_has_otherwise_is_said_at_start(
    sqlite_store: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Meter(sqlite_store, budgets=["$5", "3 calls"]) as meter:
        assert not caplog.records
        meter.remove_budget("$5")
        meter.set_limit("3 calls", 4)
    with Meter(sqlite_store, budgets=["$5", "3 calls"]) as meter:
        assert 'budget "$5" is configured, and not in force' in caplog.text
        assert 'budget "3 calls" has been set to 4 calls' in caplog.text
        meter.reset_limit("$5")
        meter.reset_limit("3 calls")
        caplog.clear()
    with Meter(sqlite_store, budgets=["$9", "3 calls"]) as meter:
        (record,) = caplog.records
        assert 'the ledger knows the budget "$9" as "$5", of another configuration' in record.getMessage()


def test_a_hold_for_a_tier_that_may_not_be_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """gpt-4o is $2.50 and $10, in the priority tier more: https://platform.openai.com/docs/pricing"""
    bound = RequestBound(100, output_limit=100)  # $0.00125 at its ordinary price
    with Meter("memory://", budgets=["$0.0013"]) as meter:
        for _ in range(2):
            with pytest.raises(BudgetExceeded):
                meter.reserve(meter.plan("chat", "gpt-4o", bound))
        assert caplog.text.count("would have fitted at its ordinary price") == 1
        assert 'Meter(service_tier="default")' in caplog.text
        caplog.clear()
        with pytest.raises(BudgetExceeded):
            meter.reserve(meter.plan("chat", "gpt-4o", bound._replace(output_limit=200)))
    with Meter("memory://", budgets=["$0.0013"], service_tier="default") as meter:
        meter.reserve(meter.plan("chat", "gpt-4o", bound)).release()
        with pytest.raises(BudgetExceeded):
            meter.reserve(meter.plan("chat", "gpt-4o", bound._replace(output_limit=200)))
    assert "ordinary price" not in caplog.text


def test_it_is_told_where_calls_wait_and_not_where_a_cap_is_used_up(caplog: pytest.LogCaptureFixture) -> None:
    bound = RequestBound(100, output_limit=100, limit_fields=("max_tokens",))
    with Meter("memory://", budgets=["$0.0013"], wait=0) as meter:
        meter.reserve(meter.plan("chat", "gpt-4o", bound._replace(output_limit=90))).settle(Usage(100, 90))
        # At the ordinary price there would be room for a few words, and not for what was asked.
        with pytest.raises(BudgetExceeded):
            meter.reserve(meter.plan("chat", "gpt-4o", bound))
        assert "ordinary price" not in caplog.text
    with Meter("memory://", budgets=["$0.003"], wait=0) as meter:
        first = meter.reserve(meter.plan("chat", "gpt-4o", bound))
        second = meter.reserve(meter.plan("chat", "gpt-4o", bound))  # lowered: at the ordinary price two fit
        with pytest.raises(BudgetExceeded):
            meter.reserve(meter.plan("chat", "gpt-4o", bound._replace(output_limit=50)))
        assert "ordinary price" in caplog.text
        first.release()
        second.release()


def test_the_tier_of_one_providers_project() -> None:
    def held(meter: Meter, provider: str) -> int:
        hold = meter.reserve(
            meter.plan("chat", "gpt-4o", RequestBound(100, output_limit=100), provider=provider)
        )
        hold.release()
        return hold.amounts["usd"]

    with Meter("memory://", budgets=["$1"]) as meter:
        dear = held(meter, "openai")
    with Meter("memory://", budgets=["$1"], service_tier={"openai": "default"}) as meter:
        assert held(meter, "openai") == 1_250_000 < dear
        assert held(meter, "azure") > 1_250_000
        asked = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 100}
        plain = Exchange(meter, "chat", asked, provider="azure").plan.ask.needs["usd"]
        said = Exchange(meter, "chat", asked, provider="azure", service_tier="default").plan.ask.needs["usd"]
        assert said.amount(100) < plain.amount(100)
    with pytest.raises(ConfigError, match="service_tier"):
        Meter("memory://", service_tier={"openai": ""})


def test_3000_limits_of_users_own_cost_a_call_no_more_than_one(store: str) -> None:
    """Counted, and not timed: what a call does, of a user who has one; in a process of many users."""

    def counted(limited: int) -> float:
        with Meter(
            store if limited < 2 else store.replace("ledger", "other"), budgets=["$5/day per user"]
        ) as meter:
            for number in range(limited):
                meter.set_limit("$5/day per user", "$20", user=f"u{number}")
            bound, many = RequestBound(100, output_limit=100), 0

            def seen(frame: object, event: str, arg: object) -> None:
                nonlocal many
                many += event in ("call", "c_call")

            for turn in range(2):  # what is made when a user first calls, is made
                sys.setprofile(seen if turn else None)
                try:
                    for number in range(60):
                        with session(user=f"u{number % 30}"):
                            meter.reserve(meter.plan("chat", "gpt-4o", bound)).settle(Usage(10, 10))
                finally:
                    sys.setprofile(None)
            assert meter.spend(user="u3")[0].limit == (20 if limited > 3 else 5) * 10**9
            return many / 60

    none, all_of_them = counted(0), counted(3000)
    assert none < all_of_them <= 1.1 * none


# ── thresholds ─────────────────────────────────────────────────────────────────────────


def test_thresholds_fire_once_per_bucket(store: str, caplog: pytest.LogCaptureFixture) -> None:
    events: list[ThresholdEvent] = []
    with Meter(store, budgets=["10 calls per user"], on_threshold=events.append) as meter:
        for user in ("ada", "bob"):
            with session(user=user):
                for _ in range(10):
                    spend(meter)
                for _ in range(3):
                    with pytest.raises(BudgetExceeded):
                        hold(meter)
    assert [(e.percent, e.scope, e.spent) for e in events] == [
        (50, "user ada", 5), (80, "user ada", 8), (100, "user ada", 10),
        (50, "user bob", 5), (80, "user bob", 8), (100, "user bob", 10),
    ]  # fmt: skip
    assert 'budget "10 calls per user" for user ada has reached 80 %: 8 calls of 10 calls' in caplog.text


def test_a_refusal_is_no_crossing_but_for_the_last_twentieth(store: str) -> None:
    """A call that was too large for what was left fired 50, 80 and 100 % at 35 % spent, and the true
    crossings then never fired."""
    events: list[ThresholdEvent] = []
    with Meter(store, budgets=["100 tokens"], on_threshold=events.append) as meter:

        def tokens(many: int) -> Plan:
            return meter.plan("chat", "m", RequestBound(many, output_limit=0))

        steps: list[tuple[int, int, list[int]]]
        steps = [(35, 90, []), (20, 60, [50]), (30, 50, [50, 80]), (11, 9, [50, 80, 100])]
        for spent, refused, so_far in steps:
            meter.reserve(tokens(spent)).settle(Usage(spent))
            with pytest.raises(BudgetExceeded):
                meter.reserve(tokens(refused))
            meter.flush()
            assert [e.percent for e in events] == so_far
        assert [e.spent for e in events] == [55, 85, 96]


def test_an_event_says_in_parts_whom_it_is_for(store: str) -> None:
    events: list[ThresholdEvent] = []
    budgets = ["2 calls per user and session", "2 calls per project and model"]
    with Meter(store, budgets=budgets, thresholds=[100], on_threshold=events.append) as meter:
        with session("s", user="ada", tenant="acme", project="p"), meter.budget("2 calls", name="research"):
            spend(meter)
            spend(meter)
        meter.flush()
        parts = [(e.session, e.user, e.tenant, e.project, e.model, e.stage) for e in events]
    assert parts == [
        ("s", "ada", "acme", None, None, None),
        (None, None, None, "p", "m", None),
        (None, None, None, None, None, "research"),
    ]


async def test_telling_keeps_neither_a_caller_nor_a_loop(store: str) -> None:
    told: list[tuple[int, str]] = []

    async def tell(event: ThresholdEvent) -> None:
        await asyncio.sleep(0.5)
        told.append((event.percent, threading.current_thread().name))

    with Meter(store, budgets=["2 calls"], on_threshold=tell) as meter:
        began = time.monotonic()
        plan = meter.plan("chat", "m", RequestBound(1, output_limit=0))
        await (await meter.areserve(plan)).asettle(Usage(1))
        assert time.monotonic() - began < 0.4
        await asyncio.to_thread(meter.flush)
    assert told == [(50, "behest-alerts")]


def test_thresholds_fire_once_over_threads_and_processes_worth_of_meters(sqlite_store: str) -> None:
    events: list[ThresholdEvent] = []
    meters = [Meter(sqlite_store, budgets=["100 calls"], on_threshold=events.append) for _ in range(4)]

    def work(meter: Meter) -> None:
        for _ in range(25):
            spend(meter)

    threads = [threading.Thread(target=work, args=(m,)) for m in meters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for meter in meters:
        meter.close()
    assert sorted(e.percent for e in events) == [50, 80, 100]


def test_a_callback_that_fails_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_event: ThresholdEvent) -> None:
        raise ZeroDivisionError

    with Meter("memory://", budgets=["1 calls"], on_threshold=broken) as meter:
        spend(meter)
        meter.flush()
        assert "on_threshold failed" in caplog.text
        assert_sound(meter)


# ── stages ─────────────────────────────────────────────────────────────────────────────


def test_a_stage_caps_a_block_within_what_already_applies(store: str) -> None:
    with Meter(store, budgets=["5 calls per session"]) as meter, session("s"):
        with meter.budget("2 calls", name="research") as research:
            spend(meter), spend(meter)
            with pytest.raises(BudgetExceeded) as caught:
                hold(meter)
            assert caught.value.budget == "2 calls"
            assert "stage research" in str(caught.value)
            (balance,) = research.spend()
            assert (balance.spent, balance.left) == (2, 0)
        with meter.budget("9 calls", name="write"):
            for _ in range(3):
                spend(meter)
            with pytest.raises(BudgetExceeded, match="5 calls per session"):
                hold(meter)
        assert_sound(meter)


def test_stages_nest_and_reports_show_the_tree(store: str) -> None:
    with Meter(store, prices=PRICES) as meter:
        with meter.budget("$1", name="research"):
            spend(meter)
            for _ in range(2):
                with meter.budget("$0.002", "5 calls", name="search"):
                    spend(meter)
                    with pytest.raises(BudgetExceeded, match="stage search"):
                        hold(meter, 2000)
            with meter.budget("$1", name="rank"):
                spend(meter)
        spend(meter)
        (root,) = stages(meter.ledger)
        assert (root.name, root.line.calls, root.line.cost) == ("research", 4, 4_000_000)
        assert {n.name: n.line.calls for n in root.children} == {"search": 2, "rank": 1}
        assert [e.stage for e in entries(meter)][-1] is None
        assert_sound(meter)


def test_a_decorated_function_has_its_budget_at_each_call(store: str) -> None:
    with Meter(store) as meter:

        @meter.budget("1 calls", name="step")
        def step() -> None:
            spend(meter)

        @meter.budget("1 calls", name="astep")
        async def astep() -> None:
            plan = meter.plan("chat", "m", RequestBound(1, output_limit=0))
            await (await meter.areserve(plan)).asettle(Usage(1))
            with pytest.raises(BudgetExceeded):
                await meter.areserve(plan)

        step(), step()
        asyncio.run(astep())
        assert [e.stage for e in entries(meter)] == ["step", "step", "astep"]


def test_a_stage_of_one_meter_is_nothing_to_another(store: str) -> None:
    with Meter(store) as meter, Meter("memory://") as other, meter.budget("0 calls", name="s"):
        spend(other)


def test_tasks_inside_a_stage_share_its_budget(store: str) -> None:
    async def run(meter: Meter) -> int:
        plan = meter.plan("chat", "m", RequestBound(1, output_limit=0))

        async def one() -> bool:
            try:
                await (
                    await meter.areserve(meter.plan("chat", "m", RequestBound(1, output_limit=0)))
                ).asettle(Usage(1))
            except BudgetExceeded:
                return False
            return True

        assert plan.budgets == ()
        async with meter.budget("3 calls", name="fan-out"):
            return sum(await asyncio.gather(*(one() for _ in range(10))))

    with Meter(store) as meter:
        assert asyncio.run(run(meter)) == 3


# ── balances ───────────────────────────────────────────────────────────────────────────


def test_spend_shows_every_budget_of_those_asked_for(store: str) -> None:
    with Meter(store, budgets=["$1 per session", "10 calls/day per user"], prices=PRICES) as meter:
        with session("s", user="u"):
            spend(meter)
            assert [b.spent for b in meter.spend()] == [1_000_000, 1]
        with session("t", user="u"):
            spend(meter)
        lines = meter.spend("s", user="u")
        assert [(b.scope, b.spent) for b in lines] == [("session s", 1_000_000), ("user u", 2)]
        assert lines[0].resets_at is None
        assert lines[1].resets_at is not None
        assert [b.spent for b in meter.spend("nobody")] == [0, 0]


def test_a_meter_in_a_with_block_writes_what_is_left(sqlite_store: str) -> None:
    with Meter(sqlite_store, budgets=["9 calls"]) as meter:
        hold(meter).post(Outcome("settled", Usage(1)))
    with Meter(sqlite_store, budgets=["9 calls"]) as meter:
        assert len(entries(meter)) == 1
        assert holds(meter) == 0
