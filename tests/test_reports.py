"""Where people look: budgets of one user, what is over, periods side by side, a page, a line, a frame."""

from __future__ import annotations

import json
import os
import re
import sys
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from support import client

from behest_integrations import ConfigError, Meter, MissingExtra, reports
from behest_integrations.cli import main
from behest_integrations.reports import Asked
from behest_integrations.reports.compare import compare, previous
from behest_integrations.reports.forecast import forecasts
from behest_integrations.reports.page import page
from behest_integrations.rules.usage import Usage
from behest_integrations.sandbox import Sandbox
from behest_integrations.wire import RequestBound

NOON = 1_767_960_000_000  # 2026-01-09 12:00 UTC, a Friday
DAY = 86_400_000


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> int:
        return self.now


def spend(meter: Meter, tokens: int = 1000, model: str = "gpt-4o") -> None:
    """gpt-4o is $2.50 a million tokens in."""
    meter.reserve(meter.plan("chat", model, RequestBound(tokens, output_limit=0))).settle(Usage(tokens))


def ask(*args: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, args)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BEHEST_STORE", raising=False)
    return tmp_path


HOSTILE = "<script>alert('x')</script>"


@pytest.fixture
def ledger(here: Path) -> Path:
    """Two tenants' ada, a stage that ran many times, and a user who would like to be a tag."""
    budgets = ["$1/day per user", "100 calls per session", "$50"]
    with Meter("sqlite:///behest.db", budgets=budgets) as meter:
        for tenant, user, calls in (("acme", "ada", 3), ("other", "ada", 1), ("acme", HOSTILE, 2)):
            with meter.session(f"of-{user[:3]}", user=user, tenant=tenant):
                for _ in range(calls):
                    spend(meter, 100_000)
        for _ in range(30):
            with meter.budget("$0.10", name="job"):
                spend(meter, 4000)
        with meter.budget("$0.10", name="job"):
            spend(meter, 8000)
    return here / "behest.db"


# ── budgets ────────────────────────────────────────────────────────────────────────────


def test_balances_of_one_user_of_one_tenant(store: str) -> None:
    with Meter(store, budgets=["$1/day per user", "5 calls per session and model", "$9"]) as meter:
        for tenant in ("acme", "other"):
            with meter.session("s", user="ada", tenant=tenant):
                spend(meter)
        with meter.budget("$1", name="job"), meter.session("t", user="bob"):
            spend(meter)
        (one,) = meter.balances(user="ada", tenant="acme")
        assert (one.scope, one.spent, one.limit) == ("user ada (tenant acme)", 2_500_000, 10**9)
        assert one.resets_at is not None
        assert len(meter.balances(user="ada")) == 2
        assert meter.balances(user="nobody") == []
        assert {b.unit for b in meter.balances(session="s", tenant="acme")} == {"calls"}
        (whole,) = [b for b in meter.balances() if not b.scope]
        assert whole.spent == 7_500_000
        assert not any("stage" in b.scope for b in meter.balances())


def test_budgets_of_one_user_of_one_tenant(ledger: Path) -> None:
    (one,) = json.loads(ask("budgets", "--user", "ada", "--tenant", "acme", "--json"))
    assert (one["user"], one["tenant"], one["spent"]) == ("ada", "acme", 750_000_000)
    assert len(json.loads(ask("budgets", "--user", "ada", "--json"))) == 2
    assert "user nobody alone" in ask("budgets", "--user", "nobody")


def test_stages_that_are_over_are_one_line_with_their_limit(ledger: Path) -> None:
    said = ask("budgets")
    assert "31 runs over" in said
    assert "the most: $0.02" in said
    assert said.count("stage job") == 1
    lines = json.loads(ask("budgets", "--json"))
    (job,) = [line for line in lines if line["stage"]]
    assert (job["runs"], job["limit"], job["dearest"]) == (31, 100_000_000, 20_000_000)
    assert job["spent"] == 30 * 10_000_000 + 20_000_000
    every = [line for line in json.loads(ask("budgets", "--all", "--json")) if line["stage"]]
    assert len(every) == 31
    assert {line["budget"] for line in every} == {"$0.10"}


def test_a_stage_in_flight_is_not_folded_away(store: str) -> None:
    from behest_integrations.reports.budgets import buckets

    with Meter(store) as meter:
        for _ in range(3):
            with meter.budget("$1", name="job"):
                spend(meter)
        with meter.budget("$1", name="job"):
            hold = meter.reserve(meter.plan("chat", "gpt-4o", RequestBound(10, output_limit=0)))
            folded = buckets(meter.ledger, now_ms=NOON)
            assert sorted(line.runs for line in folded) == [1, 3]
            hold.release()


def test_a_check_for_cron(ledger: Path) -> None:
    said = ask("budgets", "--check", "70", code=1)
    assert "user ada (tenant acme)" in said
    assert "other" not in said
    assert "None of" in ask("budgets", "--check", code=0)  # 80 %, where none is said
    assert json.loads(ask("budgets", "--check", "70", "--json", code=1))[0]["tenant"] == "acme"
    assert "not in the range" in ask("budgets", "--check", "0", code=2)


def test_a_forecast_is_a_line_that_one_can_check(store: str) -> None:
    from behest_integrations.reports.budgets import _lines

    clock = Clock()
    budgets = ["$0.10/day", "$1/month as month", "$0.05 as all", "10 calls per 24h rolling", "$9 as never"]
    with Meter(store, budgets=budgets, clock=clock, wait=0) as meter:
        for _ in range(6):  # $0.0025 an hour, from noon to 18:00
            spend(meter)
            clock.now += 3_600_000
        known = _lines(meter.ledger, clock.now, False, Asked())
        found = {line.budget: f for line, f in forecasts(meter.ledger, known, clock.now).items()}
    hours = {
        text: f.at and round((f.at.timestamp() * 1000 - NOON) / 3_600_000, 1) for text, f in found.items()
    }
    assert hours == {
        "$0.10/day": None,  # at $0.015 in 18 hours it resets first
        "$1/month as month": None,
        "$0.05 as all": 20.0,  # $0.015 in 6 hours: $0.035 more take 14
        "10 calls per 24h rolling": pytest.approx(9.6, abs=0.8),  # 4 in the last 4 hours; 4 are left
        "$9 as never": pytest.approx(3600, abs=1),
    }
    assert found["$0.10/day"].an_hour == 15_000_000 // 18


def test_all_who_say_when_a_budget_runs_out_say_the_same(sqlite_store: str) -> None:
    """The command, the dashboard and the alert; of a window, a lifetime, a limit of one's own, a grant."""
    from behest_integrations.engine.watching import burning
    from behest_integrations.reports.budgets import _lines
    from behest_integrations.reports.standing import standings

    clock = Clock()
    budgets = [
        "$0.007/day per user",
        "$0.013/week as week",
        "$0.05 as all",
        "900k tokens as tokens",
        "$0.9/month",
    ]
    with Meter(sqlite_store, budgets=budgets, clock=clock, wait=0) as meter:
        for user in ("ada", "bob"):
            for _ in range(2):
                with meter.session(user=user):
                    spend(meter)
                clock.now += 3_600_000 // 2
        meter.set_limit("$0.007/day per user", "$0.03", user="bob")
        meter.grant("$0.013/week as week", "$0.001", until=timedelta(days=9))
        clock.now += 3_600_000
        at = datetime.fromtimestamp(clock.now / 1000, timezone.utc)
        known = _lines(meter.ledger, clock.now, False, Asked())
        commanded = {
            (line.budget, line.scope): f.at and int(f.at.timestamp() * 1000)
            for line, f in forecasts(meter.ledger, known, clock.now).items()
        }
        shown = {
            (s.budget, s.scope): s.pace and s.pace.out_at
            for rule in standings(meter.ledger, Asked(now=at))
            for s in rule.standings
        }
        told = {
            (a.details["budget"], a.details["scope"]): a.details["runs_out"]
            for a in burning(meter.ledger, clock.now)
        }
    assert commanded == shown
    out = {of: when for of, when in shown.items() if when is not None}
    assert told == {of: when for of, when in out.items() if "/" in of[0]}
    assert set(told) == {("$0.007/day per user", "user ada"), ("$0.014/week as week", "")}
    assert {"$0.05 as all", "900k tokens as tokens"} <= {budget for budget, _ in out}


def test_a_forecast_in_a_terminal(ledger: Path) -> None:
    said = ask("budgets", "--forecast")
    assert "runs out" in said
    assert "as in the last 7 days" in said.replace("\n", " ").replace("  ", " ")
    assert max(map(len, said.splitlines())) <= 80
    lines = json.loads(ask("budgets", "--forecast", "--json"))
    assert all("runs_out" in line for line in lines)


# ── spending ───────────────────────────────────────────────────────────────────────────


def test_the_dearest_lines_and_the_sum_of_the_others(ledger: Path) -> None:
    whole = json.loads(ask("report", "--by", "tenant,user", "--json"))
    top = json.loads(ask("report", "--by", "tenant,user", "--top", "1", "--json"))
    assert top["lines"] == whole["lines"][:1]
    assert top["total"] == whole["total"]
    assert top["left_out"] == 3
    costs = [Decimal(line["cost_usd"]) for line in (*top["lines"], top["others"])]
    assert sum(costs) == Decimal(top["total"]["cost_usd"])
    assert "(3 others)" in ask("report", "--by", "tenant,user", "--top", "1")
    assert "left_out" not in json.loads(ask("report", "--top", "9", "--json"))
    assert "not in the range" in ask("report", "--top", "0", code=2)


@pytest.mark.parametrize(
    ("zone", "since", "until", "before"),
    [
        ("UTC", "2026-03-01", "2026-04-01", "2026-02-01"),
        ("UTC", "2026-01-01", "2026-07-01", "2025-07-01"),
        ("UTC", "2026-03-05", "2026-03-08", "2026-03-02"),
        ("UTC", "2026-03-05T06:00", "2026-03-05T07:30", "2026-03-05T04:30"),
        (
            "Europe/Paris",
            "2026-03-30",
            "2026-04-06",
            "2026-03-23",
        ),  # an hour shorter, and a week all the same
    ],
)
def test_the_period_before(zone: str, since: str, until: str, before: str) -> None:
    from zoneinfo import ZoneInfo

    start, end, earlier = (
        datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)) for text in (since, until, before)
    )
    found = previous(Asked(since=start, until=end, zone=zone))
    assert (found.since, found.until) == (earlier, start)


def test_a_period_beside_the_one_before(store: str) -> None:
    clock = Clock()
    with Meter(store, clock=clock) as meter:
        for day, users in ((0, ("ada", "gone")), (7, ("ada", "ada", "new"))):
            clock.now = NOON + day * DAY
            for user in users:
                with meter.session(user=user):
                    spend(meter)
        since = datetime.fromtimestamp((NOON + 6 * DAY) / 1000, timezone.utc)
        until = datetime.fromtimestamp((NOON + 13 * DAY) / 1000, timezone.utc)
        found = compare(meter.ledger, Asked(since=since, until=until), ("user",))
    assert [(c.key, c.now.calls, c.before.calls, c.change) for c in found] == [
        (("ada",), 2, 1, "+100 %"), (("new",), 1, 0, "new"), (("gone",), 0, 1, "gone"),
    ]  # fmt: skip


def test_a_comparison_in_a_terminal(ledger: Path) -> None:
    said = ask("report", "--since", "2h", "--compare", "previous", "--by", "user", "--top", "1")
    assert "change" in said
    assert "others)" in said
    data = json.loads(ask("report", "--since", "1d", "--compare", "previous", "--by", "user", "--json"))
    assert sum(Decimal(line["cost_usd"]) for line in data["lines"]) == Decimal(data["total"]["cost_usd"])
    assert "say --since" in ask("report", "--compare", "previous", code=2)


# ── a page ─────────────────────────────────────────────────────────────────────────────


class Seen(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open += [] if tag in ("meta", "br") else [tag]
        self.links += [
            str(v) for n, v in attrs if n in ("src", "href", "action", "srcset") or n.startswith("on")
        ]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_a_page_that_can_be_mailed(ledger: Path, here: Path) -> None:
    assert "Written to page.html" in ask("report", "--by", "tenant,user", "--html", "page.html")
    text = (here / "page.html").read_text()
    seen = Seen(text)
    assert seen.open == []
    assert "script" not in seen.tags
    assert HOSTILE in seen.text
    assert seen.links == []
    assert "http" not in text.replace("http-equiv", "")
    assert "url(" not in text
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text
    data = json.loads(ask("report", "--by", "tenant,user", "--json"))
    for line in (*data["lines"], data["total"]):
        cost = f"${Decimal(line['cost_usd']).normalize():f}"
        assert any(said.startswith(cost) for said in seen.text), cost
    assert "svg" in seen.tags
    assert "75 %" in seen.text
    assert any("gpt-4o" in said for said in seen.text)


def test_a_page_of_nothing_and_of_a_year(store: str) -> None:
    clock = Clock()
    with Meter(store, clock=clock) as meter:
        assert "<svg" not in page(meter.ledger, Asked())
        for week in range(30):
            clock.now = NOON + week * 7 * DAY
            spend(meter, model="gpt-4o" if week % 2 else "gpt-4o-mini")
        assert "By month (UTC) and model" in page(meter.ledger, Asked(), ("model",))


def test_a_page_is_of_spending_alone(ledger: Path, here: Path) -> None:
    assert "has no page" in ask("budgets", "--html", "x.html", code=2)
    assert "not both" in ask("report", "--html", "x.html", "--json", code=2)
    assert "cannot read or write 'no/x.html'" in ask("report", "--html", "no/x.html", code=1)
    assert ask("report", "--html", "-").startswith("<!doctype html>")
    assert not (here / "x.html").exists()


# ── a line, a screen, a frame ──────────────────────────────────────────────────────────


def test_a_line_for_a_prompt(here: Path) -> None:
    assert ask("statusline") == ""  # nothing to say, in any folder
    assert "no ledger at nowhere.db" in ask("statusline", "--store", "nowhere.db", code=1)
    with Meter("sqlite:///behest.db", budgets=["$1/day per user", "1000 calls"]) as meter:
        for user, calls in (("ada", 3), ("bob", 1)):
            with meter.session(user=user):
                for _ in range(calls):
                    spend(meter, 100_000)
    said = ask("statusline")
    assert re.fullmatch(r"\$1 today, 4 calls · 75 % of \$1/day per user \(user ada\), resets in .*\n", said)
    assert "25 %" in ask("statusline", "--user", "bob")
    assert json.loads(ask("statusline", "--json"))["percent"] == 75


def test_watching_needs_a_terminal_and_ends_with_an_interrupt(ledger: Path) -> None:
    assert "needs a terminal" in ask("report", "--watch", code=2)
    if sys.platform == "win32":
        return
    import pty

    pid, terminal = pty.fork()
    if not pid:
        os.execv(sys.executable, [sys.executable, "-m", "behest_integrations.cli", "report", "--watch"])
    seen = b""
    while b"total" not in seen:
        seen += os.read(terminal, 4096)
    with Meter("sqlite:///behest.db") as meter, meter.session("a-new-one"):
        spend(meter)
    while b"a-new-one" not in seen:
        seen += os.read(terminal, 4096)
    os.write(terminal, b"\x03")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)


def test_a_notebook_shows_a_table(sandbox: Sandbox, store: str) -> None:
    with Meter(store) as meter:
        call = meter.openai(client(sandbox)).chat.completions.create
        with meter.session(user=HOSTILE):
            call(model="gpt-4o", messages=[{"role": "user", "content": "hi"}], max_tokens=20)
        found = meter.report("user")
        assert found.total.cost_usd == sandbox.bill.total()
        html = found._repr_html_()
        assert html.startswith("<table>")
        assert HOSTILE in Seen(html).text
        assert meter.report(["user", "model"], user="nobody").lines == []
        with pytest.raises(ConfigError, match="cannot report by"):
            meter.report("colour")


def test_a_frame_is_exact(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Meter(store) as meter:
        with meter.session(user="ada"):
            spend(meter, 7)
        found = meter.report(("user", "model"))
        with pytest.raises(ConfigError, match="polars or pandas"):
            found.dataframe("excel")
        polars = pytest.importorskip("polars")
        frame = found.dataframe("polars")
        assert frame["cost_usd"].dtype == polars.Decimal(38, 9)
        assert frame["cost_usd"].sum() == Decimal("0.0000175")
        assert frame["user"].to_list() == ["ada"]
        assert meter.report("user", user="nobody").dataframe("polars").height == 0
        monkeypatch.setattr("behest_integrations.reports.frames.find_spec", lambda name: None)
        with pytest.raises(MissingExtra, match=r"behest-integrations\[frames\]"):
            found.dataframe()


def test_a_ledger_is_opened_to_be_read(ledger: Path) -> None:
    assert reports.report(reports.open("behest.db"), ("tenant",)).total.calls == 37
    assert reports.report(reports.open(ledger)).total.calls == 37
    with pytest.raises(ConfigError, match=r"there is no ledger at behset\.db"):
        reports.open("behset.db")
    assert sorted(path.name for path in ledger.parent.glob("behs*")) == []
