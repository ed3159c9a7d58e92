"""Budgets are values: their text, their windows, their filters."""

from __future__ import annotations

import string
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from behest_integrations import Attribution, Budget, BudgetSyntaxError, ConfigError
from behest_integrations.rules.budgets import MAX_AMOUNT, Filter, parse_allowance, to_nano
from behest_integrations.rules.units import format_amount

EXAMPLES = [
    "$0.50 per session",
    "$5/day per user",
    "50k tokens/day per user",
    "10 calls/minute per user",
    "$200/month per project",
    "$1000/month",
    "2M output tokens/week per user and model",
    "$20 per 24h rolling per user",
    "$5/day for model gpt-4o*",
    "$5/day per user for tag feature=support",
    "$0.000000001 as dust",
    "1.5k input tokens/hour in Europe/Paris per tenant and project as fair-use",
    '$1 per "tag:cost centre" for tag "a b"="ü = 1"',
    "$5/day per user, warn only",
    "10 calls, warn only",
    "$5/week from Sunday in Europe/Paris per user for model gpt-4o* as early, warn only",
    "$1 for user a,, warn only",
    '$1 for user "a b", warn only',
    '$1 for user "only, warn only"',
]


@pytest.mark.parametrize("text", EXAMPLES)
def test_a_text_prints_back_the_same(text: str) -> None:
    assert str(Budget.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("$5.00 / day per user", "$5/day per user"),
        ("$5 per day per user", "$5/day per user"),
        ("50000 tokens per day", "50k tokens/day"),
        ("1 call / minute", "1 calls/minute"),
        ("$20 per 1440m rolling", "$20 per 24h rolling"),
        ("$1_000/month", "$1000/month"),
        ("$1 per USER and Session", "$1 per user and session"),
        ("$1 per user  ,Warn Only", "$1 per user, warn only"),
        ("$1 per user , warn only", "$1 per user, warn only"),
        ("$1 per user,warn only", "$1 per user, warn only"),
        ("$1 per user warn only", "$1 per user, warn only"),
    ],
)
def test_other_spellings_mean_the_same(text: str, same: str) -> None:
    assert Budget.parse(text) == Budget.parse(same)
    assert str(Budget.parse(text)) == same


def test_an_object_is_the_same_value_as_its_text() -> None:
    built = Budget(
        Decimal("5"), "usd", "day", per=("user",), filters=(Filter("model", "gpt-4o*"),), zone="Europe/Paris"
    )
    assert built == Budget.parse("$5/day in Europe/Paris per user for model gpt-4o*")
    assert Budget("0.10").amount == 100_000_000


@pytest.mark.parametrize(
    ("text", "word", "hint"),
    [
        ("", "", "amount"),
        ("5 per session", "per", "tokens"),
        ("$5/fortnight", "fortnight", "minute, hour, day"),
        ("$5 per sesion", "sesion", "session, user"),
        ("$5 per 24h", "", "rolling"),
        ("$5/day per user per model", "per", "and"),
        ("$5/day/week", "/", "per"),
        ("$-5", "$-5", "amount"),
        ("$0.0000000001", "$0.0000000001", "billionth"),
        ("1.5 calls", "1.5", "whole number"),
        ("10 calls in Europe/Paris", "in", "calendar window"),
        ("10 calls/day in Europe/Pariss", "Europe/Pariss", "time zone"),
        ("$5/day from Sunday", "from", "with a week"),
        ("$5/week from Sonntag", "Sonntag", "a day, such as Sunday"),
        ("$5/week from Sunday from Monday", "from", "once"),
        ("$5 for tag feature", "", "="),
        ("$5 for colour red", "colour", "model"),
        ("$5 as a/b", "a/b", "name"),
        ('$5 for user "open', '"', "quote"),
        ("$5 per user and user", "", "twice"),
        ("$5 per user warn", "warn", "warn only"),
        ("$5 per user, warn only as x", "user,", "session, user"),
        (", warn only", "", "amount"),
        ("$99999999999999", "$99999999999999", "at most"),
    ],
)
def test_a_bad_text_says_which_word_and_shows_the_grammar(text: str, word: str, hint: str) -> None:
    with pytest.raises(BudgetSyntaxError) as caught:
        Budget.parse(text)
    assert caught.value.word == word
    assert hint in str(caught.value)
    assert "A budget is:" in str(caught.value)
    assert text[caught.value.position :].startswith(word)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Budget(1.5),  # type: ignore[arg-type]
        lambda: Budget(-1),
        lambda: Budget(MAX_AMOUNT + 1),
        lambda: Budget(1, "euros"),  # type: ignore[arg-type]
        lambda: Budget(1, per=("nobody",)),
        lambda: Budget(1, window="day", rolling=timedelta(hours=1)),
        lambda: Budget(1, rolling=timedelta(milliseconds=1500)),
        lambda: Budget(1, zone="Europe/Paris"),
        lambda: Budget(1, name="a name"),
        lambda: Budget(1, first_day="Sunday"),
        lambda: Budget(1, window="week", first_day="Sonntag"),
        lambda: Budget(1, window="week", first_day=6),  # type: ignore[arg-type]
        lambda: Budget.parse(5),  # type: ignore[arg-type]
    ],
)
def test_impossible_parts_are_refused_at_once(build: object) -> None:
    with pytest.raises(ConfigError):
        build()  # type: ignore[operator]


ids = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=24)
scopes = st.sampled_from(["session", "user", "project", "tenant", "model"]) | ids.map(lambda t: f"tag:{t}")
filters = st.builds(
    Filter, st.sampled_from(["model", "user", "session", "project", "tenant"]), ids
) | st.builds(Filter, st.just("tag"), ids, ids)


@st.composite
def budgets(draw: st.DrawFn) -> Budget:
    kind = draw(st.sampled_from(["lifetime", "calendar", "rolling"]))
    return Budget(
        amount=draw(st.integers(0, MAX_AMOUNT)),
        unit=draw(st.sampled_from(["usd", "tokens", "input_tokens", "output_tokens", "calls"])),
        window=draw(st.sampled_from(["minute", "hour", "day", "week", "month"]))
        if kind == "calendar"
        else None,
        rolling=timedelta(seconds=draw(st.integers(1, 10**7))) if kind == "rolling" else None,
        per=tuple(draw(st.lists(scopes, max_size=3, unique=True))),
        filters=tuple(draw(st.lists(filters, max_size=3))),
        name=draw(st.none() | st.text(string.ascii_letters + string.digits + "_-.", min_size=1, max_size=20)),
        zone=draw(st.sampled_from([None, "Asia/Kathmandu", "America/New_York"]))
        if kind == "calendar"
        else None,
        soft=draw(st.booleans()),
    )


@given(budgets())
def test_any_budget_prints_a_text_that_means_it(budget: Budget) -> None:
    assert Budget.parse(str(budget)) == budget


@given(st.text(max_size=60))
def test_any_text_is_a_budget_or_a_clear_error(text: str) -> None:
    try:
        budget = Budget.parse(text)
    except BudgetSyntaxError:
        return
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    ("text", "at", "begins"),
    [
        ("$5/week", "2026-01-11T23:30", "2026-01-05"),  # a Sunday, of the week from Monday the 5th
        ("$5/week from Sunday", "2026-01-11T23:30", "2026-01-11"),
        ("$5/week from Sunday", "2026-01-10T23:30", "2026-01-04"),
        ("$5/week from saturday", "2026-01-11T23:30", "2026-01-10"),
        ("$5/week from Sunday in America/New_York per user", "2026-01-11T03:00", "2026-01-04T05:00"),
        (
            "$5/week from Sunday in Europe/Paris",
            "2026-03-29T12:00",
            "2026-03-28T23:00",
        ),  # clocks change in it
    ],
)
def test_a_week_begins_on_the_day_that_is_said(text: str, at: str, begins: str) -> None:
    budget = Budget.parse(text)
    assert str(budget).lower() == text.lower()
    assert Budget.parse(str(budget)) == budget

    def ms(text: str) -> int:
        return int(datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp() * 1000)

    window = budget.window_at(ms(at))
    assert window.start == ms(begins)
    assert window.end is not None
    assert budget.window_at(window.end - 1) == window
    assert budget.window_at(window.end).start == window.end


def test_a_week_from_monday_is_a_week() -> None:
    assert Budget.parse("$5/week from Monday per user") == Budget.parse("$5/week per user")
    assert Budget.parse("$5/week from Sunday").shape != Budget.parse("$5/week").shape


@given(st.integers(0, 10**18), st.sampled_from(["usd", "tokens", "calls", "input_tokens"]))
def test_amounts_print_exactly(amount: int, unit: str) -> None:
    assert parse_allowance(format_amount(amount, unit)) == {unit: amount}


def test_money_is_never_a_float() -> None:
    with pytest.raises(ConfigError, match="float"):
        to_nano(0.1)  # type: ignore[arg-type]
    assert to_nano("0.1") == to_nano(Decimal("0.1")) == 100_000_000


# ── scopes and filters ─────────────────────────────────────────────────────────────────


def test_scope_keys_of_different_people_never_meet() -> None:
    budget = Budget.parse("$1 per user and session")
    keys = {
        budget.scope_key(Attribution(user_id=u, session_id=s), "m")
        for u, s in [("a", "b"), ("a,b", None), (None, "a,b"), ("None", None), (None, None), ('a","b', "c")]
    }
    assert len(keys) == 6


def test_filters_say_whose_calls_count() -> None:
    budget = Budget.parse("$1 for model gpt-4o* for tag feature=support")
    support = Attribution(tags={"feature": "support"})
    assert budget.applies_to(support, "gpt-4o-mini")
    assert not budget.applies_to(support, "o3")
    assert not budget.applies_to(Attribution(), "gpt-4o")
    assert Budget.parse('$1 for user "a b"').applies_to(Attribution(user_id="a b"), "m")
    assert not Budget.parse("$1 for model GPT-4O").applies_to(support, "gpt-4o")


# ── windows ────────────────────────────────────────────────────────────────────────────


def ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def test_days_of_daylight_saving_have_23_and_25_hours() -> None:
    paris = ZoneInfo("Europe/Paris")
    day = Budget.parse("$1/day in Europe/Paris")
    lengths = []
    for date in [(2026, 3, 29), (2026, 6, 1), (2026, 10, 25)]:
        window = day.window_at(ms(datetime(*date, 12, tzinfo=paris)))
        assert window.end is not None
        assert window.start == ms(datetime(*date, tzinfo=paris))
        lengths.append((window.end - window.start) // 3_600_000)
    assert lengths == [23, 24, 25]


def test_a_day_without_midnight_begins_when_the_clocks_have_moved() -> None:
    # In Beirut the clocks go from 00:00 to 01:00: 29 March 2026 has no midnight.
    day = Budget.parse("$1/day in Asia/Beirut")
    beirut = ZoneInfo("Asia/Beirut")
    window = day.window_at(ms(datetime(2026, 3, 29, 12, tzinfo=beirut)))
    assert window.start == ms(datetime(2026, 3, 28, 22, tzinfo=timezone.utc))
    before = day.window_at(window.start - 1)
    assert before.end == window.start


def test_weeks_begin_on_monday_and_months_on_the_first() -> None:
    at = ms(datetime(2026, 11, 24, 15, tzinfo=timezone.utc))
    week = Budget.parse("$1/week").window_at(at)
    assert week.start == ms(datetime(2026, 11, 23, tzinfo=timezone.utc))
    month = Budget.parse("$1/month").window_at(at, "Asia/Tokyo")
    assert month.start == ms(datetime(2026, 10, 31, 15, tzinfo=timezone.utc))
    assert month.end == ms(datetime(2026, 11, 30, 15, tzinfo=timezone.utc))


@given(
    st.datetimes(datetime(2000, 1, 1), datetime(2037, 1, 1), timezones=st.just(timezone.utc)),
    st.sampled_from(["minute", "hour", "day", "week", "month"]),
    st.sampled_from(
        ["UTC", "Europe/Paris", "America/St_Johns", "Asia/Kathmandu", "Australia/Lord_Howe", "Asia/Beirut",
         "America/Sao_Paulo", "Africa/Cairo", "Pacific/Apia"]
    ),
)  # fmt: skip
def test_windows_tile_time(at: datetime, window: str, zone: str) -> None:
    """Each moment lies in exactly one window, and windows follow each other without a gap."""
    budget = Budget.parse(f"$1/{window} in {zone}")
    now = ms(at)
    found = budget.window_at(now)
    assert found.end is not None
    assert found.start <= now < found.end
    assert budget.window_at(found.start) == found
    assert budget.window_at(found.end - 1) == found
    assert budget.window_at(found.end).start == found.end
