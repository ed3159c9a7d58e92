"""Budgets that warn only: counted and shown as any other, and nobody is stopped by one."""

from __future__ import annotations

import json
import logging
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
import postgres
import pytest
from click.testing import CliRunner
from gateway_support import Gateway, chat
from starlette.testclient import TestClient
from support import HELLO, assert_agrees, assert_sound, client

from behest_integrations import BudgetExceeded, ConfigError, Meter, Price, Usage
from behest_integrations.cli import main
from behest_integrations.cli.dashboard import application
from behest_integrations.engine.alert import Alert
from behest_integrations.engine.outcomes import Outcome
from behest_integrations.engine.watching import burning
from behest_integrations.ledger.book import ThresholdEvent
from behest_integrations.rules.budgets import to_nano
from behest_integrations.sandbox import Sandbox
from behest_integrations.wire import RequestBound, bound_request

SOFT = "$5/day per user, warn only"
PRICES = {"m": Price(input="1000", output="1000")}  # $1 for a thousand tokens
NOON = 1_767_960_000_000  # 2026-01-09 12:00 UTC


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    kinds = {"memory": lambda: "memory://", "sqlite": lambda: f"sqlite:///{tmp_path}/ledger.db"}
    return {**kinds, "postgres": postgres.new_url}[request.param]()  # type: ignore[no-any-return]


def call(meter: Meter, tokens: int = 1000) -> int:
    """A call of so many tokens; how many it was let have."""
    bound = RequestBound(0, output_limit=tokens, limit_fields=("max_tokens",))
    hold = meter.reserve(meter.plan("chat", "m", bound))
    assert hold.lowered_from is None
    hold.settle(Usage(0, tokens))
    return hold.amounts["output_tokens"]


def ask(*args: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, args, env={"COLUMNS": "120"})
    assert done.exit_code == code, done.output
    return done.output


# ── it stops nobody, and counts all ────────────────────────────────────────────────────


def test_it_is_counted_and_refuses_nothing_lowers_nothing_and_lets_nobody_wait(
    store: str, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[ThresholdEvent] = []
    alerts: list[Alert] = []
    settings: dict[str, Any] = {"alerts": {"burn_rate": False, "anomaly": None}, "on_alert": alerts.append}
    with Meter(store, budgets=[SOFT], prices=PRICES, on_threshold=told.append, **settings) as meter:
        with meter.session(user="ada"), caplog.at_level(logging.WARNING, "behest"):
            begun = time.monotonic()
            assert [call(meter) for _ in range(6)] == [1000] * 6
            # One in flight has all of it, and twice more: the next neither waits nor gets less.
            bound = RequestBound(0, output_limit=10_000, limit_fields=("max_tokens",))
            hold = meter.reserve(meter.plan("chat", "m", bound))
            assert call(meter) == 1000
            assert time.monotonic() - begun < 5
            (balance,) = meter.spend(user="ada")
            assert (balance.spent, balance.held, balance.left) == (to_nano(7), to_nano(10), 0)
            assert (balance.soft, balance.over, balance.budget) == (True, to_nano(2), SOFT)
            assert str(balance).endswith("$7 spent, $10 held, $2 over")
            hold.release()
        meter.flush()
        assert [(e.percent, e.budget, e.user) for e in told] == [
            (50, SOFT, "ada"), (80, SOFT, "ada"), (100, SOFT, "ada"),
        ]  # fmt: skip
        assert sorted(a.details["percent"] for a in alerts if a.kind == "threshold") == [50, 80, 100]
        (last,) = [r.getMessage() for r in caplog.records if "100 %" in r.getMessage()]
        assert last == f'budget "{SOFT}" for user ada has reached 100 %: $5 of $5'
        with meter.session(user="bob"), caplog.at_level(logging.WARNING, "behest"):
            call(meter, 6000)
        assert f'"{SOFT}" for user bob has reached 100 %: $6 of $5, $1 over: it warns only' in caplog.text
        assert meter.balances(user="bob")[0].soft
        assert_sound(meter)


def test_one_that_holds_beside_it_holds_as_before(store: str) -> None:
    hard = "$4 per user"
    with Meter(store, budgets=["$1 per user as early, warn only", hard], prices=PRICES, wait=0) as meter:
        with meter.session(user="ada"):
            assert [call(meter), call(meter)] == [1000, 1000]
            bound = RequestBound(0, output_limit=9000, limit_fields=("max_tokens",))
            hold = meter.reserve(meter.plan("chat", "m", bound))
            assert hold.output_limit == 2000  # what is left of the one that holds
            standing = meter.standing(hold)
            assert standing is not None
            assert standing.budget == hard
            hold.settle(Usage(0, 2000))
            with pytest.raises(BudgetExceeded) as refused:
                call(meter)
        assert refused.value.shortfall.budget == hard
        assert {b.budget: (b.spent, b.left) for b in meter.spend(user="ada")} == {
            "$1 per user as early, warn only": (to_nano(4), 0), hard: (to_nano(4), 0),
        }  # fmt: skip


def test_what_has_only_warned_and_is_to_hold_keeps_what_was_spent(sqlite_store: str) -> None:
    soft, hard = "$3 per user, warn only", "$3 per user"
    with Meter(sqlite_store, budgets=[soft], prices=PRICES, user="ada") as meter:
        assert [call(meter) for _ in range(2)]
    with Meter(sqlite_store, budgets=[hard], prices=PRICES, user="ada", wait=0) as meter:
        call(meter)
        with pytest.raises(BudgetExceeded):
            call(meter)
    with pytest.raises(ConfigError, match='"\\$1 per user as second, warn only"'):
        Meter("memory://", budgets=["$3 per user", "$1 per user, warn only"])


@pytest.mark.parametrize("unit", ["$0.01", "10 tokens", "10 output tokens"])
def test_nothing_is_refused_for_want_of_a_price_or_a_bound(store: str, unit: str) -> None:
    searching = {"model": "gpt-4o", "messages": HELLO, "web_search_options": {}}
    with Meter(store, budgets=[f"{unit} per user, warn only"], wait=0) as meter, meter.session(user="ada"):
        for body in (searching, {"model": "nobody-knows", "messages": HELLO, "new_field": 1}):
            plan = meter.plan("chat", str(body["model"]), bound_request("chat", body))
            hold = meter.reserve(plan)
            hold.settle(Usage(500, 90_000))
            lost = meter.reserve(plan)
            lost.end(Outcome("assumed", note="no answer"))
        buckets, _, entries = meter.ledger.snapshot()
        # The truth is booked, and it was not beyond a bound that nobody knew.
        spent = {"$0.01": to_nano("0.90125"), "10 tokens": 181_000, "10 output tokens": 180_000}[unit]
        assert buckets[0].spent >= spent
        assert not any("over_bound" in e.flags for e in entries)
        assert [e.cost is None for e in entries] == [False, False, True, True]
        assert_sound(meter)


def test_the_output_limit_is_the_callers(sandbox: Sandbox, store: str) -> None:
    """No default is sent where nothing is to be bounded; the bill is the provider's."""
    with Meter(store, budgets=["$0.000001 per session, warn only"]) as meter:
        seen: list[httpx.Request] = []
        http = httpx.Client(event_hooks={"request": [seen.append]})
        openai = meter.openai(client(sandbox, http_client=http))
        with meter.session("s"):
            openai.chat.completions.create(model="gpt-4o", messages=HELLO)
            openai.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=30)
        sent = [json.loads(request.content) for request in seen]
        assert [body.get("max_tokens", body.get("max_completion_tokens")) for body in sent] == [None, 30]
        assert_agrees(meter, sandbox)
        (balance,) = meter.spend("s")
        assert balance.spent == to_nano(sandbox.bill.total()) > balance.limit


def test_a_stage_that_warns_only(store: str) -> None:
    with Meter(store, budgets=["$9"], prices=PRICES, wait=0) as meter:
        with meter.budget("$1, warn only", name="research") as stage:
            assert [call(meter) for _ in range(3)] == [1000] * 3
            (balance,) = stage.spend()
        assert (balance.soft, balance.over, balance.budget) == (True, to_nano(2), "$1, warn only")
        if store != "memory://":
            (line,) = [x for x in meter_lines(meter) if x.stage]
            assert (line.soft, line.limit, line.spent, line.percent) == (True, to_nano(1), to_nano(3), 300)
        assert_sound(meter)


def meter_lines(meter: Meter) -> list[Any]:
    from behest_integrations.reports.budgets import buckets

    return buckets(meter.ledger, now_ms=int(time.time() * 1000))


# ── where it is said, and shown ────────────────────────────────────────────────────────


def test_in_a_file_as_text_and_in_parts(tmp_path: Path) -> None:
    file = tmp_path / "behest.toml"
    file.write_text(
        f'budgets = ["{SOFT}", {{ amount = "$9", window = "week", per = ["user"], warn_only = true }}]\n'
    )
    with Meter.from_toml(file, store="memory://") as meter:
        assert [str(budget) for budget in meter.budgets] == [SOFT, "$9/week per user, warn only"]


def test_the_commands_say_it_and_by_how_much_it_is_over(sqlite_store: str, tmp_path: Path) -> None:
    budgets = [SOFT, "$8/day per user as cap"]
    with Meter(sqlite_store, budgets=budgets, prices=PRICES) as meter, meter.session(user="ada"):
        assert call(meter, 6500)
    at = ("--store", sqlite_store)
    told = ask("budgets", *at)
    assert "warn only" in told
    assert "$1.50 over" in told
    assert "81 % of $8/day per user as cap" in ask("statusline", *at)  # which will refuse soon
    ask("budgets", *at, "--check", "100", code=1)
    assert "$5/day per user, warn only" in ask("budgets", *at, "--check", "100", code=1)
    ask("verify", *at)
    ask("budgets", "raise", SOFT, "$5", *at)
    assert "$10/day per user, warn only" in ask("budgets", *at, "--csv")
    file = tmp_path / "page.html"
    ask("report", *at, "--html", str(file))
    assert "warn only" in file.read_text()


def test_the_dashboard_says_that_calls_go_on(sqlite_store: str) -> None:
    with Meter(sqlite_store, budgets=[SOFT], prices=PRICES) as meter:
        for user in ("ada", "bob"):
            with meter.session(user=user):
                assert call(meter, 6500)
        pages = TestClient(application(meter.ledger, "UTC", None, "test.db"), base_url="http://localhost")
        first, limits = (pages.get(f"/dashboard{page}").text for page in ("", "/limits"))
    assert "2 of 2 are over" in first
    assert "no call is refused for it" in first
    assert "Calls are refused" not in first
    assert "over by $1.50, it warns only, resets" in limits
    assert "used up" not in limits


def test_burn_alerts_fire(store: str) -> None:
    now = [NOON]
    with Meter(store, budgets=[SOFT], prices=PRICES, clock=lambda: now[0]) as meter:
        with meter.session(user="ada"):
            call(meter, 3000)
        if store != "memory://":
            (alert,) = burning(meter.ledger, NOON)
            assert (alert.kind, alert.details["user"]) == ("burn_rate", "ada")
            at = datetime.fromtimestamp(alert.details["runs_out"] / 1000, timezone.utc)
            assert at == datetime(2026, 1, 9, 20, tzinfo=timezone.utc)


def test_through_the_gateway(tmp_path: Path) -> None:
    budgets = ["$0.000001 per session, warn only"]
    with Sandbox() as sandbox, Gateway(tmp_path, sandbox, budgets=budgets) as gateway:
        with gateway.http(gateway.key()) as http:
            for _ in range(3):
                answer = http.post("/chat/completions", json=chat(), headers={"X-Session-Id": "s"})
                assert answer.status_code == 200
                assert answer.headers["X-Budget"] == budgets[0]
        assert answer.headers["X-Budget-Left"] == "$0"
        assert sandbox.requests == 3
