"""Blocks: reports that add them up say what entries say, and whatever is changed of those is noticed."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import postgres
import pytest
import sqlalchemy as sa
from big_ledger import BUDGETS, fill
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from support import HELLO, client

from behest_integrations import Meter, Usage
from behest_integrations.cli import main
from behest_integrations.ledger import Entry, Ledger, closing, following, open_store, schema, spans
from behest_integrations.ledger.pruning import prune
from behest_integrations.ledger.sql import SQLLedger
from behest_integrations.prices import Price, Pricing
from behest_integrations.prices.terms import named, read_named, terms_of
from behest_integrations.reports import Asked, prove, verify
from behest_integrations.reports.ranking import ORDERS, Ranked, ranking
from behest_integrations.reports.series import DAY, series
from behest_integrations.reports.spending import report_of
from behest_integrations.sandbox import Sandbox
from behest_integrations.wire import RequestBound

_DAY = 86_400_000
NOW = 1_793_500_000_000


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "BLOCK", 50)
    monkeypatch.setattr(spans, "SPAN", 2)


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SQLLedger]:
    url = f"sqlite:///{tmp_path}/b.db" if request.param == "sqlite" else postgres.new_url()
    with Meter(f"sqlite:///{tmp_path}/made.db"):
        pass
    fill(tmp_path / "made.db", 230, days=4, now=NOW / 1000, seed=3)
    if request.param == "sqlite":
        (tmp_path / "made.db").rename(tmp_path / "b.db")
    else:
        said = CliRunner().invoke(main, ["db", "copy", str(tmp_path / "made.db"), url])
        assert said.exit_code == 0, said.output
    opened = open_store(url)
    assert isinstance(opened, SQLLedger)
    yield opened
    opened.close()


def run(ledger: SQLLedger, sql: str) -> None:
    """Change a ledger behind its back."""
    within = (ledger._engine.get_execution_options().get("schema_translate_map") or {}).get(None)
    with ledger._engine.execution_options(write=True).begin() as connection:
        if within:
            connection.exec_driver_sql(f'SET LOCAL search_path TO "{within}"')
        connection.exec_driver_sql(sql)


def all_reports(ledger: Ledger) -> list[Any]:
    since = datetime.fromtimestamp(NOW / 1000 - 2.2 * 86400, timezone.utc)
    found: list[Any] = []
    for asked in (Asked(), Asked(tenant="acme", since=since, zone="Asia/Kolkata")):
        for by in (
            ("session",), ("user", "model"), ("day",), ("hour", "model"), ("tag:feature",),
            ("session", "stage"),
        ):  # fmt: skip
            found.append(report_of(ledger, by, asked))
    return found


# ── reports ────────────────────────────────────────────────────────────────────────────

_NAMES = st.sampled_from([None, "a", "b", ""])
_ENTRIES = st.builds(
    Entry,
    call_id=st.uuids().map(str),
    at=st.integers(NOW - 3 * _DAY, NOW),
    status=st.sampled_from(["settled", "settled", "estimated", "assumed", "failed"]),
    session_id=_NAMES,
    user_id=_NAMES,
    project=_NAMES,
    tenant=_NAMES,
    tags=st.dictionaries(st.sampled_from(["x", "y'"]), st.sampled_from(["1", "2"]), max_size=2),
    stage=_NAMES,
    operation=st.sampled_from(["chat", "embeddings"]),
    model=st.sampled_from(["m", "n"]),
    input_tokens=st.integers(0, 1000),
    output_tokens=st.integers(0, 1000),
    cost=st.none() | st.integers(-(10**6), 10**9),
    calls=st.integers(0, 1),
    reversal=st.sampled_from([0, 0, 0, 1]),
    flags=st.sampled_from(["", "over_bound"]),
)
_GROUPS = st.lists(
    st.sampled_from(
        ["session", "user", "project", "tenant", "model", "operation", "stage", "hour", "day", "month",
         "tag:x", "tag:y'"]
    ),
    min_size=1, max_size=2, unique=True,
)  # fmt: skip
_ZONES = st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kolkata", "Asia/Kathmandu"])
_TIMES = st.none() | st.integers(NOW - 3 * _DAY, NOW)


def expected(entries: list[Entry], by: list[str], asked: Asked) -> dict[tuple[Any, ...], list[int]]:
    """What a report has to say, added up from the entries one by one."""
    sums: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0] * 8)
    forms = {"hour": "%Y-%m-%dT%H:00%z", "day": "%Y-%m-%d", "month": "%Y-%m"}
    columns = {"session": "session_id", "user": "user_id"}
    for e in entries:
        at = datetime.fromtimestamp(e.at / 1000, ZoneInfo(asked.zone))
        if (asked.since and at < asked.since) or (asked.until and at >= asked.until):
            continue
        whose = {"session_id": asked.session, "user_id": asked.user, "tenant": asked.tenant}
        if any(v is not None and getattr(e, n) != v for n, v in whose.items()):
            continue
        if any(e.tags.get(name) != value for name, value in asked.tags):
            continue
        key = tuple(
            at.strftime(forms[name])
            if name in forms
            else e.tags.get(name[4:])
            if name.startswith("tag:")
            else getattr(e, columns.get(name, name))
            for name in by
        )
        of = {e.status: e.cost or 0}
        added = (
            e.calls, e.input_tokens, e.output_tokens, e.cost or 0, of.get("assumed", 0),
            of.get("estimated", 0), e.calls if e.cost is None else 0,
            (1 - 2 * e.reversal) if e.status == "failed" else 0,
        )  # fmt: skip
        sums[key] = [a + b for a, b in zip(sums[key], added, strict=True)]
    return dict(sums)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A ledger's file, so that not each example has to make its tables."""
    path = tmp_path_factory.mktemp("empty") / "b.db"
    open_store(f"sqlite:///{path}").close()
    return path.read_bytes()


asked_of_anything = given(
    entries=st.lists(_ENTRIES, min_size=1, max_size=40),
    closed=st.integers(0, 40),
    block=st.integers(1, 9),
    asked=st.lists(
        st.tuples(
            _GROUPS, _ZONES, _TIMES, _TIMES, _NAMES, _NAMES, _NAMES, st.sampled_from([(), (), (("x", "1"),)])
        ),
        min_size=6,
        max_size=6,
    ),
)


@settings(max_examples=6, deadline=None)
@asked_of_anything
def test_a_report_is_the_sum_of_its_entries(
    tmp_path_factory: pytest.TempPathFactory, empty: bytes, **drawn: Any
) -> None:
    """However many of them are in blocks, and whatever is asked."""
    assert_the_sum_of_its_entries(tmp_path_factory, empty, **drawn)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@asked_of_anything
def test_so_are_many_more(tmp_path_factory: pytest.TempPathFactory, empty: bytes, **drawn: Any) -> None:
    assert_the_sum_of_its_entries(tmp_path_factory, empty, **drawn)


def assert_the_sum_of_its_entries(
    tmp_path_factory: pytest.TempPathFactory,
    empty: bytes,
    entries: list[Entry],
    closed: int,
    block: int,
    asked: list[Any],
) -> None:
    path = tmp_path_factory.mktemp("b") / "b.db"
    path.write_bytes(empty)
    ledger = open_store(f"sqlite:///{path}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(closing, "BLOCK", block)
        for some in (entries[:closed], entries[closed:]):
            ledger.submit(lambda rows, some=some: [rows.add_entry(e) for e in some])  # type: ignore[misc]
            if some is not entries[closed:]:
                closing.close_blocks(ledger, NOW + _DAY)
    for by, zone, since, until, session, user, tenant, tags in asked:
        times = [
            None if ms is None else datetime.fromtimestamp(ms / 1000, timezone.utc) for ms in (since, until)
        ]
        question = Asked(times[0], times[1], session, user, None, tenant, zone, tags=tags)
        question = Asked(**{**vars(question), "now": datetime.fromtimestamp(NOW / 1000, timezone.utc)})
        found = {
            line.key: [
                line.calls, line.input_tokens, line.output_tokens, line.cost, line.assumed, line.estimated,
                line.unpriced, line.failed,
            ]
            for line in report_of(ledger, by, question).lines
        }  # fmt: skip
        assert found == expected(entries, by, question)
    ledger.close()


def test_blocks_change_no_report(ledger: SQLLedger) -> None:
    before = all_reports(ledger), ranking(ledger, "session", Asked()), ranking(ledger, "tag:feature", Asked())
    charted = Asked(zone="Europe/Berlin", now=datetime.fromtimestamp(NOW / 1000, timezone.utc))
    chart = series(ledger, charted, DAY)
    assert closing.close_blocks(ledger, NOW, most=2) == 2  # and goes on where it was
    assert all_reports(ledger) == before[0]
    assert closing.close_blocks(ledger, NOW) >= 2
    assert all_reports(ledger) == before[0]
    assert ranking(ledger, "session", Asked()) == before[1]
    assert ranking(ledger, "tag:feature", Asked()) == before[2]
    assert series(ledger, charted, DAY) == chart
    closing.close_blocks(ledger, NOW + _DAY)  # what is less than a block, when its day is over
    assert all_reports(ledger) == before[0]
    assert verify(ledger) == []


def test_a_ranking_by_pages_is_the_report_in_its_order(ledger: SQLLedger) -> None:
    run(ledger, "UPDATE entries SET session_id = 'shared' WHERE id BETWEEN 20 AND 90")  # by several tenants
    run(ledger, "UPDATE entries SET session_id = NULL WHERE id BETWEEN 100 AND 130")
    closing.close_blocks(ledger, NOW)
    for by, order in (*(("session", order) for order in ORDERS), ("user", "cost"), ("tag:feature", "calls")):
        groups = (by,) if by.startswith("tag") else (by, "tenant")
        lines = {line.key: line for line in report_of(ledger, groups, Asked()).lines}
        found = list[Ranked]()
        for offset in range(0, len(lines), 5):
            page = ranking(ledger, by, Asked(), order=order, limit=5, offset=offset)
            found += page.lines
            assert page.more == (offset + 5 < len(lines))
        told = {line.key[: len(groups)]: line for line in found}
        assert len(told) == len(found) == len(lines)
        for key, line in told.items():
            numbers = {n: v for n, v in vars(lines[key]).items() if n != "key"}
            assert numbers == {n: getattr(line, n) for n in numbers}
        places = [line.last if order == "recent" else getattr(line, order) for line in found]
        assert places == sorted(places, reverse=True)


def test_entries_that_turn_up_late_are_in_reports_at_once(ledger: SQLLedger) -> None:
    """A host that is slow, or whose clock is: its entry comes before others that are closed already."""
    if ledger._engine.dialect.name != "postgresql":
        pytest.skip("one writer at a time gives ids in order")
    closing.close_blocks(ledger, NOW + _DAY)
    names = ", ".join(f'"{c.name}"' for c in schema.entries.columns if c.name not in ("id", "call_id"))
    run(
        ledger,
        f"INSERT INTO entries (id, call_id, {names}) SELECT -5, 'late', {names} FROM entries WHERE id = 7",
    )
    run(ledger, "UPDATE entries SET bookings = '[]', cost = 0, rates = NULL WHERE id = -5")
    assert next(str(f) for f in verify(ledger)).startswith("call: there are 231 entries, and were 230")
    run(ledger, "INSERT INTO unclosed VALUES (-5)")
    assert report_of(ledger, ("user",), Asked()).total.calls == sum(e.calls for e in ledger.snapshot()[2])
    assert verify(ledger) == []
    assert closing.close_blocks(ledger, NOW + 9 * _DAY) == 1
    assert report_of(ledger, ("user",), Asked()).total.calls == sum(e.calls for e in ledger.snapshot()[2])
    assert verify(ledger) == []


def test_calls_are_made_while_blocks_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_FIRST", 0.0)
    monkeypatch.setattr(following, "_AGAIN", 0.05)
    with Meter(f"sqlite:///{tmp_path}/b.db", budgets=["1000 calls"]) as meter:
        for _ in range(220):
            meter.reserve(meter.plan("chat", "m", RequestBound(1, output_limit=0))).settle(Usage(1))
            meter.ledger.follow()
        until = time.monotonic() + 20
        while time.monotonic() < until:
            meter.ledger.follow()
            with meter.ledger.reading().connect() as connection:
                blocks = connection.scalar(sa.select(sa.func.count()).select_from(schema.blocks))
            if blocks == 4:
                break
            time.sleep(0.05)
        assert blocks == 4
        assert verify(meter.ledger) == []


def test_what_is_measured_over_is_what_settles_write(tmp_path: Path) -> None:
    fill(tmp_path / "made.db", 200, days=1)
    with (
        Sandbox() as sandbox,
        Meter(f"sqlite:///{tmp_path}/real.db", budgets=BUDGETS) as meter,
        meter.session("s", user="u", project="p", tenant="t", tags={"feature": "f"}),
    ):
        metered = meter.openai(client(sandbox))
        metered.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=20)
    shapes = []
    for name in ("made", "real"):
        opened = open_store(f"sqlite:///{tmp_path}/{name}.db")
        proof = prove(opened)
        assert (proof.flaws, proof.findings, dict(proof.unproven)) == ([], [], {})
        _, _, entries = opened.snapshot()
        e = next(e for e in entries if (e.model, e.status, e.stage) == ("gpt-4o", "settled", None))
        shapes.append(
            {n: (type(v := getattr(e, n)), v == 0) for n in e.__slots__ if n != "cached_input_tokens"}
        )
        shapes[-1]["bookings"] = [(unit, amount == e.cost) for _, unit, amount in e.bookings]
        shapes[-1]["call_id"] = len(e.call_id)
        opened.close()
    assert shapes[0] == shapes[1]


# ── what is noticed ────────────────────────────────────────────────────────────────────


def kinds(ledger: Ledger, *, whole: bool = False) -> set[str]:
    return {flaw.kind for flaw in prove(ledger, whole=whole).flaws}


@pytest.mark.parametrize("closed", [False, True])
def test_a_cost_and_tokens_that_were_changed_are_found(tmp_path: Path, closed: bool) -> None:
    for place, (column, budgets) in enumerate(
        (("cost", ["$1 per session"]), ("cost", ["9 calls"]), ("input_tokens", ["$1 per session"]))
    ):
        with (
            Sandbox() as sandbox,
            Meter(f"sqlite:///{tmp_path}/{place}.db", budgets=budgets) as meter,
            meter.session("s"),
        ):
            metered = meter.openai(client(sandbox))
            for _ in range(3):
                metered.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=20)
            if closed:
                closing.close_blocks(meter.ledger, meter.ledger.now_ms() + _DAY)
            proof = prove(meter.ledger)
            assert (proof.flaws, proof.findings, dict(proof.unproven)) == ([], [], {})
            assert isinstance(meter.ledger, SQLLedger)
            run(meter.ledger, f"UPDATE entries SET {column} = {column} / 2 WHERE id = 2")
            assert "entry" in kinds(meter.ledger)


def test_a_file_that_its_database_finds_damaged(tmp_path: Path) -> None:
    fill(tmp_path / "b.db", 2000, days=2)
    with sqlite3.connect(tmp_path / "b.db") as file:
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (size,) = file.execute("PRAGMA page_size").fetchone()
        (root,) = file.execute("SELECT rootpage FROM sqlite_master WHERE name = 'entries_call'").fetchone()
    file.close()
    whole = (tmp_path / "b.db").read_bytes()
    (tmp_path / "b.db").write_bytes(whole[: (root - 1) * size] + bytes(size) + whole[root * size :])
    said = CliRunner().invoke(main, ["verify", "--store", str(tmp_path / "b.db")])
    assert said.exit_code == 1
    assert "database: its own check says:" in said.output
    assert "Traceback" not in said.output


def test_what_was_proved_is_passed_over_and_can_be_proved_again(tmp_path: Path) -> None:
    fill(tmp_path / "b.db", 330, days=4)

    def ask(*args: str, code: int = 0) -> dict[str, Any]:
        said = CliRunner().invoke(main, ["verify", "--store", str(tmp_path / "b.db"), "--json", *args])
        assert said.exit_code == code, said.output
        return dict(json.loads(said.output))

    assert ask()["looked_at"] == 330
    assert ask()["looked_at"] < 100
    sealed = ask("--sealed")
    assert sealed["looked_at"] == 330
    assert ask("--holds", sealed["seal"])["flaws"] == []
    assert ask("--holds", "f" * 64, code=1)["flaws"][0]["what"].endswith("is not there")
    for sql, incremental in (
        ("UPDATE entries SET cost = cost + 1 WHERE id = 3", True),  # of the sum of all entries
        ("UPDATE entries SET user_id = 'somebody' WHERE id = 3", False),
        ("DELETE FROM entries WHERE id = 3", True),
        ("UPDATE rollups SET cost = cost + 1 WHERE kind = 3 AND block = 2 AND seq = 0", True),
        ("UPDATE rollups SET cost = cost + 1 WHERE kind = 101 AND block = 2 AND seq = 0", True),  # of a span
        ("DELETE FROM rollups WHERE kind = 103 AND block = 4", True),
        ("UPDATE block_sums SET spent = spent + 1 WHERE block = 1", True),  # the counters are others, then
        ("DELETE FROM blocks WHERE id = (SELECT max(id) FROM blocks)", True),
        ("UPDATE seals SET digest = 'x' WHERE block = 2", True),
    ):
        whole = (tmp_path / "b.db").read_bytes()
        with sqlite3.connect(tmp_path / "b.db") as file:
            file.execute(sql)
        file.close()
        opened = open_store(f"sqlite:///{tmp_path}/b.db")
        whole_proof, quick = prove(opened, whole=True), prove(opened)
        opened.close()
        assert whole_proof.flaws or whole_proof.findings, sql
        assert bool(quick.flaws or quick.findings) == incremental, sql
        (tmp_path / "b.db").write_bytes(whole)
        for beside in ("b.db-wal", "b.db-shm"):
            (tmp_path / beside).unlink(missing_ok=True)


def test_a_session_that_is_forgotten_leaves_the_seals_whole(ledger: SQLLedger) -> None:
    closing.close_blocks(ledger, NOW)
    line = max(
        report_of(ledger, ("session", "tenant", "project"), Asked()).lines, key=lambda line: line.calls
    )
    session, tenant, project = line.key
    assert session is not None
    total = report_of(ledger, ("model",), Asked())
    assert ledger.forget_session(session, tenant=tenant, project=project) >= line.calls
    assert verify(ledger) == []
    by = report_of(ledger, ("session",), Asked())
    assert session not in {x.key[0] for x in by.lines}
    assert line.cost in {x.cost for x in by.lines if (x.key[0] or "").startswith("forgotten-")}
    assert report_of(ledger, ("model",), Asked()) == total
    with ledger.reading().connect() as connection:
        assert "forgotten" in connection.execute(sa.select(schema.seals.c.kind)).scalars().all()
        texts = [
            str(row)
            for table in (schema.entries, schema.rollups)
            for row in connection.execute(sa.select(table))
        ]
    assert not any(session in text for text in texts)


def test_what_is_touched_is_not_made_good(ledger: SQLLedger) -> None:
    closing.close_blocks(ledger, NOW)
    run(ledger, "UPDATE entries SET stage = 'another' WHERE id = 5")
    entry = ledger.snapshot()[2][4]
    ledger.forget_session(entry.session_id or "", tenant=entry.tenant, project=entry.project)
    assert any("it was not as sealed before" in str(found) for found in verify(ledger))


# ── pruning ────────────────────────────────────────────────────────────────────────────


def test_pruning_changes_no_report_no_counter_and_no_proof(ledger: SQLLedger) -> None:
    cast = "::json" if ledger._engine.dialect.name == "postgresql" else ""
    traced = """('{"feature": "chat", "trace": "' || id || '"}')"""
    run(ledger, f"UPDATE entries SET tags = {traced}{cast} WHERE id < 50")
    closing.close_blocks(ledger, NOW + _DAY)
    before, buckets, count = all_reports(ledger), ledger.snapshot()[0], len(ledger.snapshot()[2])
    done = prune(ledger, NOW, 2)
    assert done.blocks >= 1
    assert done.skipped == 0
    assert done.before - done.after == count - len(ledger.snapshot()[2]) > 20
    assert all_reports(ledger) == before
    assert sorted(map(str, ledger.snapshot()[0])) == sorted(map(str, buckets))
    assert verify(ledger) == []
    assert prune(ledger, NOW, 2) == (0, 0, 0, 0)
    # Later calls come after what there was, and a forgotten session is forgotten in sums, too.
    with Meter(ledger, budgets=["9 calls"]) as meter:
        meter.reserve(meter.plan("chat", "m", RequestBound(1, output_limit=0))).settle(Usage(1))
        assert verify(ledger) == []
        session, tenant, project = report_of(ledger, ("session", "tenant", "project"), Asked()).lines[0].key
        ledger.forget_session(session or "", tenant=tenant, project=project)
        assert verify(ledger) == []
        run(ledger, "UPDATE entries SET cost = cost + 1 WHERE lines IS NOT NULL")
        assert {"seal", "block"} <= kinds(ledger, whole=True)


def test_pruning_by_the_command(tmp_path: Path) -> None:
    fill(tmp_path / "b.db", 330, days=9)

    def ask(*args: str, code: int = 0) -> str:
        said = CliRunner().invoke(main, [*args, "--store", str(tmp_path / "b.db")])
        assert said.exit_code == code, said.output
        return said.output

    before = ask("report", "--by", "user,model", "--json")
    assert "is a number of days" in ask("prune", "--older-than", "soon", code=2)
    with sqlite3.connect(tmp_path / "b.db") as file:
        ask("verify")
        file.execute("UPDATE entries SET stage = 'another' WHERE id = 1")
    file.close()
    assert "1 blocks are not as they were sealed" in ask("prune", "--older-than", "1w", "--yes", code=1)
    with sqlite3.connect(tmp_path / "b.db") as file:
        assert file.execute("SELECT max(lines) FROM entries").fetchone()[0] is None
    file.close()
    assert re.search(
        r"\d+ entries in \d blocks are \d+ sums now", ask("prune", "--older-than", "2d", "--yes", code=1)
    )
    assert ask("report", "--by", "user,model", "--json") == before


def test_a_copy_has_the_same_blocks(tmp_path: Path) -> None:
    fill(tmp_path / "b.db", 120, days=4)
    run_verify = ["verify", "--store", str(tmp_path / "b.db")]
    assert CliRunner().invoke(main, run_verify).exit_code == 0
    there, back = postgres.new_url(), f"sqlite:///{tmp_path}/back.db"
    for source, target in ((str(tmp_path / "b.db"), there), (there, back)):
        said = CliRunner().invoke(main, ["db", "copy", source, target])
        assert said.exit_code == 0, said.output
    ledgers = [open_store(url) for url in (f"sqlite:///{tmp_path}/b.db", there, back)]
    heads = {prove(ledger, whole=True).head for ledger in ledgers}
    assert len(heads) == 1
    assert "" not in heads
    assert all_reports(ledgers[0]) == all_reports(ledgers[1]) == all_reports(ledgers[2])
    for ledger in ledgers:
        ledger.close()


# ── by what a call was priced ──────────────────────────────────────────────────────────


@given(
    st.sampled_from(
        ["gpt-4o", "claude-sonnet-4-5", "claude-opus-4-6", "gemini-2.5-pro", "gpt-4o-search-preview", "own"]
    ),
    st.lists(st.integers(0, 400_000), min_size=7, max_size=7),
    st.sampled_from([None, "default", "flex", "priority", "batch"]),
    st.sampled_from([None, (11, 10), (6, 1)]),
    st.sampled_from([None, "low", "high"]),
    st.integers(0, 10**9),
)  # fmt: skip
def test_terms_cost_what_the_pricing_does(
    model: str,
    n: list[int],
    tier: str | None,
    multiplier: tuple[int, int] | None,
    size: str | None,
    extra: int,
) -> None:
    pricing = Pricing({"own": Price(input="1.1", output="3", cache_write_1h="7", request="0.01")}).find(model)
    usage = Usage(n[0] + n[2] + n[3], n[1] + n[4], n[2], n[3], n[4], cache_write_1h_tokens=min(n[3], n[5]))
    terms = terms_of(pricing, usage, tier, multiplier, size)
    if terms is None:  # the dearest of several
        assert pricing.unpriced(usage, tier, search_context=size)
        return
    assert terms.cost(usage) == pricing.cost(usage, tier, multiplier=multiplier, search_context=size)
    assert read_named(named(terms, extra, usage.cache_write_1h_tokens)) == (
        terms.id, extra, usage.cache_write_1h_tokens,
    )  # fmt: skip


def test_rates_that_were_changed_are_found(tmp_path: Path) -> None:
    with Sandbox() as sandbox, Meter(f"sqlite:///{tmp_path}/b.db", budgets=["9 calls"]) as meter:
        meter.openai(client(sandbox)).chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=20)
        assert verify(meter.ledger) == []
        assert isinstance(meter.ledger, SQLLedger)
        run(meter.ledger, """UPDATE terms SET text = replace(text, '0', '1')""")
        assert kinds(meter.ledger) == {"entry"}
        run(meter.ledger, "DELETE FROM terms")
        assert kinds(meter.ledger) == {"entry"}


def test_what_cannot_be_proved_is_said(tmp_path: Path) -> None:
    fill(tmp_path / "b.db", 60, days=1)
    with sqlite3.connect(tmp_path / "b.db") as file:
        file.execute("UPDATE entries SET rates = NULL")
    file.close()
    said = CliRunner().invoke(main, ["verify", "--store", str(tmp_path / "b.db")])
    assert said.exit_code == 0, said.output
    assert "costs: booked before rates were kept" in said.output
