"""The dashboard's pages as they are sent: true to the ledger, and safe against hostile ids."""

from __future__ import annotations

import html
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import httpx
import pytest
from big_ledger import fill
from click.testing import CliRunner
from starlette.testclient import TestClient
from support import slow

from behest_integrations import BudgetExceeded, Meter, Usage
from behest_integrations.cli import main
from behest_integrations.cli.dashboard import address_of, application
from behest_integrations.dashboard import words
from behest_integrations.engine.outcomes import Outcome
from behest_integrations.ledger import closing
from behest_integrations.reports import Line, extents, report
from behest_integrations.reports.ranking import ranking
from behest_integrations.reports.series import series
from behest_integrations.reports.shown import Asked
from behest_integrations.reports.spending import report_of
from behest_integrations.reports.standing import standings
from behest_integrations.rules.pace import pace
from behest_integrations.rules.units import format_usd
from behest_integrations.wire import bound_request

BODY = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 400}
DAY = 86_400_000
HOSTILE = ('<script>alert("x")</script>', "\u202egnp.evil\u202c مرحبا", "long-" + "w" * 251)


def call(meter: Meter, session: str, user: str = "ada", *, output: int = 100, **who: str) -> None:
    """A call that went well, through the engine as any door's."""
    with meter.session(session, user=user, **who):
        meter.reserve(meter.plan("chat", "gpt-4o", bound_request("chat", BODY))).settle(Usage(200, output))


def pages(meter: Meter, *, token: str | None = None) -> TestClient:
    app = application(meter.ledger, "UTC", token, "test.db")
    return TestClient(app, base_url="http://localhost", follow_redirects=False)


def text_of(page: str) -> str:
    """What a person reads, in one line."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


@pytest.fixture
def meter(sqlite_store: str) -> Iterator[Meter]:
    budgets = ["$100/month per user", "$0.0105 per session", "3 calls per session"]
    with Meter(sqlite_store, budgets=budgets, wait=0) as meter:
        yield meter


PATHS = (
    "", "/limits", "/list", "/list?by=user", "/list?by=model&sort=calls", "/list?by=tag:feature&sort=recent",
    "/calls", "/calls?status=assumed", "/session?id=s-1", "/user?id=ada", "/keys", "/plot",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_every_page_is_there_also_where_nothing_is(meter: Meter, path: str) -> None:
    client = pages(meter)
    empty = client.get(f"/dashboard{path}")
    assert empty.status_code == (404 if "session" in path else 200)
    call(meter, "s-1")
    full = client.get(f"/dashboard{path}")
    assert full.status_code == 200
    assert "unsafe" not in full.headers["content-security-policy"]
    assert full.headers["cache-control"] == "no-store"
    if path != "/plot":
        assert not re.search(r"""(?i)<[^>]+\s(style|on\w+)\s*=|<script(?![^>]*\ssrc=)|<style""", full.text)
        assert not re.search(r"""(?i)(src|href|action)=["']?(https?:)?//""", full.text)


def test_it_says_what_the_ledger_says(meter: Meter) -> None:
    for number in range(3):
        call(meter, "s-1", output=100 + number)
    with pytest.raises(BudgetExceeded), meter.session("s-1", user="ada"):
        meter.reserve(meter.plan("chat", "gpt-4o", bound_request("chat", BODY)))
    spent = report(meter.ledger).total
    overview = pages(meter).get("/dashboard").text
    assert f'title="{format_usd(spent.cost)}"' in overview
    said = text_of(overview)
    assert "Refused 1 by a budget, before the call" in said
    assert "“3 calls per session” of session s-1 is used up Further calls are refused." in said
    session = text_of(pages(meter).get("/dashboard/session?id=s-1").text)
    assert "3 of 3 calls 100 % used up for good 1 refused" in session
    assert session.index("Calls in order") < session.index("gpt-4o", session.index("Calls in order"))


def test_what_is_not_certain_is_called_out_with_what_to_do(sqlite_store: str) -> None:
    with Meter(sqlite_store, budgets=["900 calls"]) as meter:
        for outcome in ("assume", "settle"):
            with meter.session("s"):
                hold = meter.reserve(
                    meter.plan(
                        "chat", "no-such-model", bound_request("chat", {**BODY, "model": "no-such-model"})
                    )
                )
                if outcome == "settle":
                    hold.settle(Usage(9, 9))
                else:
                    hold.end(Outcome("assumed", note="the line went dead"))
        said = text_of(pages(meter).get("/dashboard").text)
        assert "call without a price: they are in no sum of dollars" in said.replace("calls", "call")
        assert "Give the model's price in behest.toml under [prices]" in said
        assert "is assumed: how they ended is not known" in said
        calls = text_of(pages(meter).get("/dashboard/calls?status=assumed").text)
        assert "the line went dead" in calls


@pytest.mark.parametrize("id", HOSTILE)
def test_hostile_ids_are_text(meter: Meter, id: str) -> None:
    call(meter, id, id, project=id, tenant=id, tags={"feature": id})
    client = pages(meter)
    for path in (
        "",
        "/list?by=session",
        "/list?by=user",
        "/list?by=project",
        "/list?by=tag:feature",
        "/calls",
        "/limits",
    ):
        page = client.get(f"/dashboard{path}").text
        assert html.escape(id, quote=False) in page.replace("&#34;", '"'), path
        assert "<script>alert" not in page
    overview = client.get("/dashboard").text
    for kind in ("session", "user"):
        link = html.unescape(re.search(rf'href="(/dashboard/{kind}\?[^"]+)"', overview)[1])  # type: ignore[index]
        own = client.get(link)
        assert own.status_code == 200
        assert "<script>alert" not in own.text


def test_filters_narrow_and_urls_keep_them(meter: Meter) -> None:
    call(meter, "s-1", "ada", project="red", tags={"feature": "chat"})
    call(meter, "s-2", "bob", project="blue", tags={"feature": "rag"})
    client = pages(meter)
    for query in ("user=bob", "project=blue", "tag=feature%3Drag", "session=s-2"):
        said = client.get(f"/dashboard?range=1h&{query}").text
        assert re.search(r"<dt>Calls</dt><dd[^>]*>1</dd>", said), query
        # Limits are of now, and know no tags.
        assert "s-1" not in text_of(said).partition("Top sessions")[2]
        assert f"/dashboard/limits?range=1h&amp;{query}" in said
    nobody = client.get("/dashboard?user=nobody").text
    assert "Nothing was spent in this time." in nobody
    yesterday = (datetime.now(timezone.utc) - timedelta(days=1)).isoformat(timespec="seconds")
    before = client.get("/dashboard", params={"to": yesterday}).text
    assert re.search(r"<dt>Calls</dt><dd[^>]*>0</dd>", before)


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("range=1y", "There is no range “1y”"),
        ("from=tomorrow", "“from” is a date such as"),
        ("from=2026-02-01&to=2026-01-01", "“from” is a time before “to”"),
        ("tag=feature", "A tag is asked for as NAME=VALUE"),
        ("tz=Mars/Olympus", "unknown time zone"),
        (f"user={'x' * 700}", "longer than"),
    ],
)
def test_what_cannot_be_asked_is_said_so(meter: Meter, query: str, why: str) -> None:
    answer = pages(meter).get(f"/dashboard?{query}")
    assert answer.status_code == 400
    assert why in text_of(answer.text)


def test_nothing_is_sent_again_until_something_happens(meter: Meter) -> None:
    client = pages(meter)
    call(meter, "s-1")
    seen = re.search(r'data-version="([^"]+)"', client.get("/dashboard").text)[1]  # type: ignore[index]
    minute = seen.rpartition("-")[2]
    assert client.get("/dashboard", headers={"X-Seen": seen}).status_code in (204, 200)
    call(meter, "s-1")
    again = client.get("/dashboard", headers={"X-Seen": seen})
    assert again.status_code == 200
    assert re.search(rf'data-version="([^"]+)-({minute}|{int(minute) + 1})"', again.text)


def test_it_reads_and_never_writes(meter: Meter) -> None:
    call(meter, "s-1")
    before = Path(meter.ledger.path).read_bytes(), meter.ledger.snapshot()  # type: ignore[attr-defined]
    client = pages(meter)
    for path in PATHS:
        client.get(f"/dashboard{path}")
    assert (Path(meter.ledger.path).read_bytes(), meter.ledger.snapshot()) == before  # type: ignore[attr-defined]
    assert client.post("/dashboard").status_code == 405


def test_without_a_token_it_answers_to_this_machine_alone(meter: Meter) -> None:
    client = pages(meter)
    assert client.get("/dashboard", headers={"Host": "evil.example"}).status_code == 401
    assert client.get("/", headers={"Host": "127.0.0.1:8090"}).headers["location"] == "/dashboard"


def test_with_a_token_nobody_gets_in_without_it(meter: Meter) -> None:
    call(meter, "s-1")
    client = pages(meter, token="right")
    for path in PATHS:
        refused = client.get(f"/dashboard{path}")
        assert refused.status_code == 401
        assert "s-1" not in refused.text
    assert "is not the token" in client.post("/dashboard/sign-in", data={"secret": "wrong"}).text
    foreign = client.post(
        "/dashboard/sign-in", data={"secret": "right"}, headers={"Sec-Fetch-Site": "cross-site"}
    )
    assert "set-cookie" not in foreign.headers
    entered = client.post("/dashboard/sign-in", data={"secret": "right"})
    assert entered.status_code == 303
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "s-1" in client.get("/dashboard").text
    client.post("/dashboard/sign-out")
    client.cookies.clear()
    assert client.get("/dashboard").status_code == 401
    assert address_of("10.0.0.1", 80, "t") == "http://10.0.0.1:80/dashboard/sign-in#token=t"


def test_off_this_machine_there_is_a_token(meter: Meter) -> None:
    store = ["--store", str(meter.ledger.path)]  # type: ignore[attr-defined]
    said = CliRunner().invoke(main, ["dashboard", *store, "--host", "0.0.0.0", "--no-token", "--no-open"])
    assert said.exit_code == 2
    assert "without a token the dashboard listens on loopback alone" in said.output


def test_the_demo_is_seen_while_it_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "behest_integrations.cli", "demo", "--dashboard", "--no-open", "--fast"]
    demo = subprocess.Popen(
        [*command, "--store", str(tmp_path / "demo.db")], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert demo.stdout is not None
    try:
        address = next(line for line in demo.stdout if "dashboard is at" in line).split()[-1]
        spent = ""
        while not spent.startswith("$0.1"):
            assert demo.poll() is None
            spent = re.search(r"<dt>Spent</dt><dd[^>]*>([^<]*)", httpx.get(address, timeout=60).text)[1]  # type: ignore[index]
        next(line for line in demo.stdout if "stays at" in line)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(30) == 0
    finally:
        demo.kill()


def test_static_files_are_ours_alone(meter: Meter) -> None:
    client = pages(meter)
    for name in (
        "htmx.min.js",
        "uPlot.iife.min.js",
        "uPlot.min.css",
        "dashboard.css",
        "dashboard.js",
        "icon.svg",
    ):
        assert client.get(f"/dashboard/static/{name}").status_code == 200
    for name in ("..%2fapp.py", "VERSIONS", "none.js", "%2e%2e/app.py"):
        assert client.get(f"/dashboard/static/{name}").status_code == 404


# ── the numbers behind the pages ───────────────────────────────────────────────────────


def test_a_series_adds_up_to_the_report_in_any_step_and_zone(tmp_path: Path) -> None:
    fill(tmp_path / "b.db", 2_000, days=40, now=datetime(2026, 11, 10, 12, tzinfo=timezone.utc).timestamp())
    with Meter(f"sqlite:///{tmp_path}/b.db") as meter:
        spent = report(meter.ledger, ("day",), zone="America/New_York")
        for step in (60, 3600, 6 * 3600, 86400, 7 * 86400, 30 * 86400):
            found = series(meter.ledger, Asked(zone="America/New_York"), step)
            assert found.total.cost == spent.total.cost
            cells = [(at, cell.cost) for of_model in found.cells.values() for at, cell in of_model.items()]
            assert sum(cost for _, cost in cells) == spent.total.cost
            if step >= 3600:  # finer ones are cut off at 2,000
                assert {at for at, _ in cells} <= set(found.starts)
            if step == 86400:
                # The clocks go back on 1 November: that day has 25 hours.
                days: dict[str, int] = {}
                for at, cost in cells:
                    day = f"{datetime.fromtimestamp(at / 1000, ZoneInfo('America/New_York')):%Y-%m-%d}"
                    days[day] = days.get(day, 0) + cost
                assert days == {str(line.key[0]): line.cost for line in spent.lines}


@pytest.mark.parametrize("step", [37, slow(7)])
def test_what_is_passed_over_is_nothing_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Whatever the order in which entries came, and while others are booked."""
    monkeypatch.setattr(closing, "BLOCK", 16)
    now = datetime.now(timezone.utc)
    fill(tmp_path / "b.db", 600, days=10, now=now.timestamp())
    with sqlite3.connect(tmp_path / "b.db") as connection:
        # Written late, and by a clock that is ahead.
        connection.execute("UPDATE entries SET at = at - 400000000 WHERE id % 37 = 0")
        connection.execute("UPDATE entries SET at = at + 300000000 WHERE id % 41 = 0")
    connection.close()
    with Meter(f"sqlite:///{tmp_path}/b.db") as meter:
        closing.close_blocks(meter.ledger, int(now.timestamp() * 1000))
        for _ in range(2):
            passed = 0
            for hours in range(1, 260, step):
                asked = Asked(since=now - timedelta(hours=hours), now=now)
                found = extents.located(meter.ledger, asked)
                passed = max(passed, found.first_id or 0)
                assert report_of(meter.ledger, ("user",), found) == report_of(meter.ledger, ("user",), asked)
            assert passed > 100
            for _ in range(40):
                call(meter, "s-new")


def sums(line: Line) -> dict[str, int]:
    return {f.name: getattr(line, f.name) for f in fields(Line) if f.name != "key"}


@pytest.mark.parametrize("by", ["session", "user", "project", "tenant", "model", "stage", "tag:feature"])
def test_a_ranking_is_the_first_lines_of_the_report(tmp_path: Path, by: str) -> None:
    fill(tmp_path / "b.db", 400, days=10)
    with Meter(f"sqlite:///{tmp_path}/b.db") as meter:
        groups = (by, "tenant") if by in ("session", "user", "project") else (by,)
        lines = {(*line.key, None)[:2]: sums(line) for line in report(meter.ledger, groups).lines}
        first = ranking(meter.ledger, by, Asked(), limit=3)
        rest = ranking(meter.ledger, by, Asked(), limit=1000, offset=3)
        both = [*first.lines, *rest.lines]
        assert first.more == bool(rest.lines)
        assert not rest.more
        assert {line.key: sums(line) for line in both} == lines
        assert [line.cost for line in both] == sorted((line.cost for line in both), reverse=True)
        recent = ranking(meter.ledger, by, Asked(), order="recent", limit=1000).lines
        assert [line.last for line in recent] == sorted((line.last for line in recent), reverse=True)


def test_standings_are_the_buckets_that_are_theirs(tmp_path: Path) -> None:
    fill(tmp_path / "b.db", 2_000, days=1)
    with Meter(f"sqlite:///{tmp_path}/b.db") as meter:
        rules = standings(meter.ledger, Asked(), top=1000)
        buckets = meter.ledger.snapshot()[0]
        sessions = next(r for r in rules if r.per == ("session",))
        assert sessions.count == len([b for b in buckets if b.budget == "usd per session"])
        assert sum(s.spent for s in sessions.standings) == report(meter.ledger).total.cost
        ours = standings(meter.ledger, Asked(tenant="acme", project="support"), top=1000, strict=True)
        assert ours
        assert {s.whose["tenant"] for r in ours for s in r.standings if r.per != ("project",)} == {"acme"}
        # Another tenant has a project of that name: its budget counts both, and is neither's alone.
        assert ("project",) not in {r.per for r in ours}
        whole = standings(meter.ledger, Asked(tenant="initech", project="billing"), top=9, strict=True)
        assert ("project",) in {r.per for r in whole}


def test_limits_of_ones_own_and_raised_ones_are_shown_as_they_are(sqlite_store: str) -> None:
    with Meter(sqlite_store, budgets=["$1/day per user"]) as meter:
        call(meter, "s", "ada", tenant="acme")
        call(meter, "s", "bob", tenant="acme")
        meter.set_limit("$1/day per user", "$2", user="ada", tenant="acme")
        (rule,) = standings(meter.ledger, Asked())
        assert {(s.whose["user"], s.limit) for s in rule.standings} == {("ada", 2 * 10**9), ("bob", 10**9)}
        meter.set_limit("$1/day per user", "$3")
        (rule,) = standings(meter.ledger, Asked(user="bob"))
        assert [(s.budget, s.limit) for s in rule.standings] == [("$3/day per user", 3 * 10**9)]


@pytest.mark.parametrize(
    ("spent", "limit", "since", "end", "now", "says"),
    [
        (67, 100, 0, 30 * DAY, 16 * DAY, (16 * DAY + 33 * 16 * DAY // 67, 67 + 67 * 14 // 16)),
        (10, 100, 0, 30 * DAY, 16 * DAY, (None, 10 + 10 * 14 // 16)),
        (50, 100, 0, None, DAY, (2 * DAY, None)),
        (0, 100, 0, 30 * DAY, 16 * DAY, None),
        (100, 100, 0, 30 * DAY, 16 * DAY, None),
        (1, 100, 0, 30 * DAY, DAY, None),
    ],
)
def test_pace(
    spent: int, limit: int, since: int, end: int | None, now: int, says: tuple[int | None, int | None] | None
) -> None:
    found = pace(spent=spent, limit=limit, since=since, end=end, now=now)
    assert (found and (found.out_at, found.by_end)) == says


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (words.money, 0, "$0"),
        (words.money, 67_200_000_000, "$67.20"),
        (words.money, 1_234_567_000_000_000, "$1,234,567.00"),
        (words.money, 12_340_000, "$0.0123"),
        (words.money, 500_000_000, "$0.50"),
        (words.money, 2_100, "$0.0000021"),
        (words.money, -12_340_000, "−$0.0123"),
        (words.number, 99_999, "99,999"),
        (words.number, 123_456, "123k"),
        (words.number, 1_234_567, "1.23M"),
        (words.percent, 999, "99.9 %"),
        (words.percent, 1, "0.1 %"),
        (words.percent, 670, "67 %"),
    ],
)
def test_how_amounts_are_written(write: Callable[[int], str], value: int, text: str) -> None:
    assert write(value) == text


def test_the_sentence(sqlite_store: str) -> None:
    """$67 of $100, 67 %, out on the 24th at this rate."""
    now = datetime(2026, 11, 16, 12, tzinfo=timezone.utc)
    with Meter(
        sqlite_store, budgets=["$0.01/month per user"], clock=lambda: int(now.timestamp() * 1000)
    ) as meter:
        call(meter, "s", output=620)
        (rule,) = standings(meter.ledger, Asked(now=now))
        said = words.stands(rule.standings[0], ZoneInfo("UTC"), now)
    assert said == "$0.0067 of $0.01, 67 %, out on the 24th at this rate"
