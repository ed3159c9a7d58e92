"""Budgets are changed while they are in force: by whom, why, for whom, and for how long."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from click.testing import CliRunner

from behest_integrations import BudgetExceeded, ConfigError, Meter
from behest_integrations.cli import main
from behest_integrations.engine.watching import burning
from behest_integrations.reports import report
from behest_integrations.reports.budgets import buckets
from behest_integrations.reports.shown import Asked
from behest_integrations.reports.standing import standings
from behest_integrations.rules.usage import Usage
from behest_integrations.wire import RequestBound

NOON = 1_767_960_000_000  # 2026-01-09 12:00 UTC
HOUR = 3_600_000


class Clock:
    now = NOON

    def __call__(self) -> int:
        return self.now


def call(meter: Meter, calls: int = 1) -> int:
    """Try so many calls; how many were let through."""
    made = 0
    for _ in range(calls):
        try:
            meter.reserve(meter.plan("chat", "gpt-4o", RequestBound(1, output_limit=0))).settle(Usage(1))
            made += 1
        except BudgetExceeded:
            pass
    return made


def ask(*args: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, args)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    assert done.exit_code == code, done.output
    return done.output


# ── grants ─────────────────────────────────────────────────────────────────────────────


def test_a_grant_is_for_one_and_ends_by_itself(store: str) -> None:
    clock = Clock()
    budget = "3 calls per user"
    with Meter(store, budgets=[budget], clock=clock, wait=0) as meter:
        meter.grant(budget, "2 calls", user="ada", until=timedelta(hours=2), by="kim", why="month's end")
        meter.grant(budget, 1, user="ada", until=timedelta(hours=1))
        with meter.session(user="bob"):
            assert call(meter, 9) == 3
        with meter.session(user="ada"):
            assert call(meter, 4) == 4
            (balance,) = meter.spend(user="ada")
            assert (balance.limit, balance.left) == (6, 2)
            (line,) = [x for x in buckets(meter.ledger, now_ms=clock.now) if x.user == "ada"]
            assert (line.limit, line.budget) == (6, "6 calls per user")
            clock.now += HOUR  # the first of them is over: 5 in all, 4 of them spent
            assert call(meter, 9) == 1
            clock.now += HOUR
            assert call(meter, 9) == 0
            (balance,) = meter.spend(user="ada")
            assert (balance.limit, balance.spent, balance.left) == (3, 5, 0)
            meter.set_limit(budget, "6 calls", user="ada")
            assert call(meter, 9) == 1


def test_a_grant_of_a_budget_for_everybody_and_with_a_limit_of_its_own(store: str) -> None:
    clock = Clock()
    with Meter(store, budgets=["2 calls", "9 calls per user as each"], clock=clock, wait=0) as meter:
        meter.set_limit("9 calls per user as each", "1 call", user="ada")
        meter.grant("each", "1 call", user="ada", until=timedelta(hours=1))
        meter.grant("2 calls", "3 calls", until=datetime.fromisoformat("2026-01-09T12:30+00:00"))
        with meter.session(user="ada"):
            assert call(meter, 9) == 2
        assert call(meter, 9) == 3


def who_burns(meter: Meter) -> dict[str, int]:
    return {alert.details["scope"]: alert.details["limit"] for alert in burning(meter.ledger, NOON)}


def test_whoever_looks_sees_the_limit_that_is_in_force(store: str) -> None:
    clock = Clock()
    each, everybody = "4 calls/day per user", "8 calls/day as all"
    with Meter(store, budgets=[each, everybody], clock=clock, wait=0) as meter:
        for user in ("ada", "bob"):
            with meter.session(user=user):
                assert call(meter, 3) == 3
        assert who_burns(meter) == {"user ada": 4, "user bob": 4, "": 8}
        meter.grant(each, "4 calls", user="ada", until=timedelta(hours=2))
        meter.grant(everybody, "8 calls", until=timedelta(hours=2))
        assert who_burns(meter) == {"user bob": 4}

        limits = {"": 16, "user ada": 8, "user bob": 4}
        asked = Asked(now=datetime.fromtimestamp(NOON / 1000, timezone.utc))
        shown = [x for rule in standings(meter.ledger, asked) for x in rule.standings]
        assert {x.scope: x.limit for x in shown} == limits
        assert {x.scope: x.limit for x in buckets(meter.ledger, now_ms=NOON)} == limits
        assert [x.limit for x in meter.balances(user="ada")] == [8]
        with meter.session(user="bob"):
            assert call(meter, 9) == 1
        with meter.session(user="ada"):
            assert call(meter, 9) == 5
        assert call(meter, 9) == 4  # nobody's own limit, and what is left of everybody's


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"until": timedelta(hours=1)}, "say whom the grant is for"),
        ({"until": timedelta(hours=-1), "user": "ada"}, "ends in the future"),
        ({"until": datetime(2026, 2, 1), "user": "ada"}, "time zone"),
        ({"until": timedelta(hours=1), "session": "s"}, "name that, not session"),
        ({"until": timedelta(hours=1), "user": "ada", "amount": "$5"}, "not an amount of calls"),
        ({"until": timedelta(hours=1), "user": "ada", "budget": "3 calls per usr"}, "did you mean"),
    ],
)  # fmt: skip
def test_a_grant_that_cannot_be(more: dict[str, object], says: str) -> None:
    with Meter("memory://", budgets=["3 calls per user"], clock=Clock()) as meter:
        given: dict[str, object] = {"budget": "3 calls per user", "amount": "2 calls", **more}
        with pytest.raises(ConfigError, match=says):
            meter.grant(given.pop("budget"), given.pop("amount"), **given)  # type: ignore[arg-type]


def test_a_grant_of_another_process_holds_at_once(sqlite_store: str) -> None:
    with Meter(sqlite_store, budgets=["1 call per user"], wait=0) as meter, meter.session(user="ada"):
        assert call(meter, 9) == 1
        with Meter(sqlite_store, budgets=["1 call per user"]) as other:
            other.grant("1 call per user", "2 calls", user="ada", until=timedelta(hours=1))
        assert call(meter, 9) == 2


def test_a_paused_budget_has_its_limit_back_when_it_is_resumed(store: str) -> None:
    from behest_integrations.engine.limits import BudgetChanges

    with Meter(store, budgets=["2 calls", "9 calls as other"], wait=0) as meter:
        changes = BudgetChanges(meter.ledger, meter.budgets, lambda: NOON, by="kim", why="an incident")
        (budget, _other) = meter.budgets
        changes.set(budget, "3 calls", None)
        for _ in range(2):  # to pause twice is to pause
            changes.pause(budget)
        with pytest.raises(ConfigError, match="is paused"):
            changes.raise_by(budget, "1 call", None)
        assert call(meter, 5) == 5
        for _ in range(2):
            changes.resume(budget)
        assert [b.amount for b in meter.budgets] == [3, 9]
        assert call(meter, 9) == 3
        assert changes.raise_by(budget, "1 call", None) == 4
        changes.reset(budget, None)
        assert meter.budgets[0].amount == 2


# ── the command line ───────────────────────────────────────────────────────────────────


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Makes calls of ada, each time by a meter of its own, as another process would."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BEHEST_STORE", raising=False)

    def make(tries: int) -> int:
        budgets = ["2 calls per user", "100 calls as all"]
        with Meter("sqlite:///behest.db", budgets=budgets, wait=0) as meter, meter.session(user="ada"):
            return call(meter, tries)

    return make


def test_a_budget_is_changed_from_the_command_line(calls: Callable[..., int]) -> None:
    budget = "2 calls per user"
    assert calls(9) == 2
    said = ask("budgets", "raise", budget, "1 call", "--user", "ada", "--by", "kim", "--why", "month's end")
    assert said == '"2 calls per user" of user ada: the limit is 3 calls.\n'
    assert calls(9) == 1
    assert "2 calls more until" in ask("budgets", "grant", budget, "2 calls", "--user", "ada", "--for", "2h")
    assert calls(9) == 2
    assert "set" in ask("budgets", "--help")
    ask("budgets", "set", budget, "7 calls", "--user", "ada")
    assert calls(9) == 4  # 7 and the 2 that were granted, 5 of them spent
    assert "is paused" in ask("budgets", "pause", budget)
    assert calls(3) == 3
    assert "is in force" in ask("budgets", "resume", budget)
    assert calls(9) == 0
    ask("budgets", "reset", budget, "--user", "ada")
    assert calls(9) == 0
    assert "all" in ask("budgets", "set", "all", "5 calls")
    (line,) = [x for x in json.loads(ask("budgets", "--json")) if not x["scope"]]
    assert line["limit"] == 5
    told = [json.loads(x) for x in ask("audit", "--kind", "budget", "--json").splitlines()]
    assert told[0]["actor"] == "kim"
    assert told[0]["details"] == {"what": "raised by 1 calls", "scope": "user ada", "why": "month's end"}
    assert [record["details"]["what"].split()[0] for record in told] == [
        "raised", "granted", "set", "removed", "resumed", "reset", "set",
    ]  # fmt: skip
    assert all(record["actor"] for record in told)
    assert "all sums agree" in ask("verify")


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("set", "2 calls per usr", "5 calls"), 1, 'did you mean "2 calls per user"'),
        (("set", "2 calls per user", "$5"), 1, "not an amount of calls"),
        (("set", "2 calls per user", "-5 calls"), 2, "-5"),
        (("set", "2 calls per user", "5 calls", "--session", "s"), 1, "name that, not session"),
        (("set", "all", "5 calls", "--user", "ada"), 1, "name nobody, not user"),
        (("set", "2 calls per user", "5 calls", "--tag", "x"), 2, "NAME=VALUE"),
        (("set", "2 calls per user", "5 calls", "--user", ""), 2, "it is empty"),
        (("set", "2 calls per user"), 2, "Missing argument"),
        (("grant", "2 calls per user", "5 calls", "--user", "ada"), 2, "say --for 2h"),
        (("grant", "2 calls per user", "5 calls", "--user", "ada", "--for", "soon"), 2, "30m, 2h, 7d"),
        (("grant", "2 calls per user", "5 calls", "--user", "ada", "--until", "2020-01-01"), 1, "has passed"),
        (("grant", "2 calls per user", "5 calls", "--for", "2h"), 1, "say whom"),
        (("pause", "2 calls per user", "--store", "nowhere.db"), 1, "there is no ledger at nowhere.db"),
        (("puase", "2 calls per user"), 2, 'did you mean "pause"'),
    ],
)
def test_a_change_that_cannot_be_meant(
    calls: Callable[..., int], args: tuple[str, ...], code: int, says: str
) -> None:
    assert calls(1) == 1
    assert says in ask("budgets", *args, code=code)
    assert "Nothing" in ask("audit", "--kind", "budget")


def test_refusals_are_in_the_report_by_operation(store: str) -> None:
    with Meter(store, budgets=["1 call"], wait=0) as meter:
        call(meter, 3)
        assert [line.limit for line in buckets(meter.ledger, now_ms=NOON)] == [1]
        with pytest.raises(BudgetExceeded):
            meter.reserve(meter.plan("embeddings", "text-embedding-3-small", RequestBound(1, output_limit=0)))
        found = {
            line.key[0]: (line.calls, line.refused) for line in report(meter.ledger, ("operation",)).lines
        }
    assert found == {"chat": (1, 2), "embeddings": (0, 1)}
