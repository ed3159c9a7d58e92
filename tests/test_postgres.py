"""The ledger in PostgreSQL: the same hard limit for any number of processes, and what is its own.

What every store must do is in `store_suite`, and what happens when things break in `test_postgres_faults`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import postgres
import psycopg
import pytest
from click.testing import CliRunner
from store_suite import CALL, LIFETIME, NOW, ROLLING, ask, entry
from support import (
    ANSWER,
    HELLO,
    MODEL,
    assert_agrees,
    assert_each_within,
    assert_sound,
    assert_whose,
    auntil_exhausted,
    forkserver,
    person,
)

from behest_integrations import BudgetExceeded, ConfigError, Meter, StoreError, Usage
from behest_integrations.cli import main
from behest_integrations.gateway.keys import KeyStore
from behest_integrations.ledger import Claim, open_store
from behest_integrations.ledger.book import Reserved, Rows, reserve, settle
from behest_integrations.ledger.operations import Operation
from behest_integrations.ledger.stores import store_class
from behest_integrations.reports import repair, verify
from behest_integrations.sandbox import Sandbox
from behest_integrations.wire import RequestBound

CAP, EACH = Decimal(2), Decimal(1)
BUDGETS = ["$2", "$1/day per user", "$1 per session"]


@pytest.fixture
def url() -> str:
    return postgres.new_url()


@pytest.fixture
def sql(url: str) -> Iterator[psycopg.Connection]:
    """Somebody else's connection, in the ledger's schema."""
    open_store(url).close()
    with psycopg.connect(postgres.server(), autocommit=True) as connection:
        connection.execute(f"SET search_path TO {postgres.schema_of(url)}")
        yield connection


def held(ledger: Any, id: str, *claims: Claim, now: int = NOW) -> Any:
    claims = claims or (LIFETIME,)
    return ledger.submit(
        Operation(
            lambda rows: reserve(rows, call_id=id, claims=claims, ask=ask(), call=CALL, now=now, lease=1000),
            claims=claims,
            makes=id,
            now=now,
        )
    )


def ended(ledger: Any, id: str, *claims: Claim, now: int = NOW) -> Any:
    claims = claims or (LIFETIME,)
    return ledger.submit(
        Operation(
            lambda rows: settle(rows, entry=entry(id), amounts={"calls": 1}, claims=claims, now=now),
            claims=claims,
            takes=(id,),
            now=now,
            settles=True,
        )
    )


# ── the hard limit ─────────────────────────────────────────────────────────────────────


def _process(base_url: str, store: str, ready: Any) -> None:
    from openai import AsyncOpenAI

    async def run() -> None:
        metered = meter.openai(AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0))

        async def calls(who: str) -> None:
            with meter.session(f"of {who}", user=who):
                await auntil_exhausted(
                    lambda: metered.chat.completions.create(
                        model=MODEL, messages=HELLO, max_tokens=ANSWER, user=who
                    )
                )

        await asyncio.gather(*(calls(person(number)) for number in range(32)))
        await metered.close()

    with Meter(store, budgets=BUDGETS) as meter:
        ready.wait(240)
        asyncio.run(run())


def test_4_processes_of_32_tasks(url: str) -> None:
    """A budget that all share, and those of each user and each session: none is passed, all are used."""
    spawn = forkserver()
    with Sandbox(latency=0.05, output_tokens=ANSWER) as sandbox, Meter(url, budgets=BUDGETS) as meter:
        ready = spawn.Barrier(4)
        workers = [spawn.Process(target=_process, args=(sandbox.base_url, url, ready)) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(240)
            assert worker.exitcode == 0
        spent = sandbox.bill.total()
        assert CAP * 99 / 100 <= spent <= CAP
        assert_each_within(sandbox, EACH, EACH * 99 / 100)
        assert_sound(meter)
        assert_agrees(meter, sandbox)
        assert_whose(meter, sandbox)


# ── others are in the way ──────────────────────────────────────────────────────────────

FAILS_NOW_AND_THEN = """
CREATE SEQUENCE tries;
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF nextval('{schema}.tries') % 3 <> 0 THEN RAISE EXCEPTION 'in the way' USING ERRCODE = '{state}'; END IF;
  RETURN NEW; END $$;
CREATE TRIGGER fails BEFORE INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION fail();
"""


@pytest.mark.parametrize("state", ["40001", "40P01"])
@pytest.mark.parametrize("table", ["holds", "entries"])
def test_what_was_in_the_way_is_tried_again(
    url: str, sql: psycopg.Connection, state: str, table: str
) -> None:
    with Meter(url, budgets=["6 calls"]) as meter:
        sql.execute(FAILS_NOW_AND_THEN.format(state=state, table=table, schema=postgres.schema_of(url)))
        plan = meter.plan("chat", "m", RequestBound(1, output_limit=0))
        for _ in range(6):
            meter.reserve(plan).settle(Usage(1))
        with pytest.raises(BudgetExceeded):
            meter.reserve(plan)
        assert meter.unwritten == 0
        assert_sound(meter)


def test_what_is_always_in_the_way_is_a_refusal_in_time(url: str, sql: psycopg.Connection) -> None:
    with Meter(url, budgets=["6 calls"], store_timeout=0.3) as meter:
        failing = FAILS_NOW_AND_THEN.replace("% 3", "% 100000")
        sql.execute(failing.format(state="40001", table="holds", schema=postgres.schema_of(url)))
        with pytest.raises(StoreError, match="in the way"):
            meter.reserve(meter.plan("chat", "m", RequestBound(1, output_limit=0)))
        sql.execute("DROP TRIGGER fails ON holds")
        meter.reserve(meter.plan("chat", "m", RequestBound(1, output_limit=0))).settle(Usage(1))
        assert_sound(meter)


def test_no_statement_of_a_calls_is_compiled(url: str) -> None:
    """Servers with LLVM compile what they take for dear, which ours are to them: see `_settings`."""
    ledger = open_store(url)
    settings = "SELECT current_setting('jit'), current_setting('enable_seqscan')"
    assert ledger.submit(lambda rows: rows._run(settings)) == [("off", "off")]  # type: ignore[attr-defined]
    ledger.close()


def test_whoever_leads_waits_for_those_who_came_the_last_time(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they have is one transaction; and nobody waits who was alone."""
    monkeypatch.setattr("behest_integrations.ledger.postgres._LONGEST_GATHERING", 10.0)
    ledger: Any = open_store(url)
    sizes: list[int] = []
    run_all = ledger._run_all
    ledger._run_all = lambda batch: (sizes.append(len(batch)), run_all(batch))
    ledger._gathered, ledger._took = 2, 100.0
    callers = [threading.Thread(target=held, args=(ledger, name)) for name in ("early", "late")]
    for caller in callers:
        caller.start()
        time.sleep(0.05)
    for caller in callers:
        caller.join(20)
    assert sizes == [2]
    ledger._gathered, ledger._took = 1, 100.0
    began = time.monotonic()
    held(ledger, "alone")
    assert sizes == [2, 1]
    assert time.monotonic() - began < 10
    ledger._gathered = 2
    ledger._took = 0.1  # but not for long
    began = time.monotonic()
    held(ledger, "alone again")
    assert time.monotonic() - began < 10
    ledger.close()


DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"


def test_buckets_in_any_order_and_no_deadlock(url: str, sql: psycopg.Connection) -> None:
    """Operations that say what they need, and operations that do not, in opposite orders."""
    claims = [LIFETIME._replace(budget=f"calls {n}", limit=10**6) for n in range(4)] + [ROLLING]
    before = sql.execute(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    ).fetchone()
    ledgers = [open_store(url, timeout=60) for _ in range(3)]
    failed: list[BaseException] = []

    def work(me: int) -> None:
        mine = claims[me:] + claims[:me]
        mine = mine[::-1] if me % 2 else mine
        try:
            for n in range(12):
                now, id = NOW + n * 20_000, f"{me}-{n}"
                ledger = ledgers[me % 3]
                if me % 3:
                    assert isinstance(held(ledger, id, *mine, now=now), Reserved)
                    assert ended(ledger, id, *mine, now=now).written
                else:
                    said = {"call_id": id, "claims": mine, "ask": ask(), "call": CALL, "now": now, "lease": 1}
                    ledger.submit(lambda rows, said=said: reserve(rows, **said))
                    ledger.submit(
                        lambda rows, id=id, now=now: settle(
                            rows, entry=entry(id), amounts={"calls": 1}, claims=mine, now=now
                        )
                    )
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert not failed
    sums = {b.budget: b.spent for b in ledgers[0].snapshot()[0] if b.unit == "calls"}
    assert sums == {f"calls {n}": 72 for n in range(4)}
    assert verify(ledgers[0]) == []
    for ledger in ledgers:
        ledger.close()
    after = sql.execute(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    ).fetchone()
    assert after == before


def test_two_late_reports_of_one_call_are_booked_once(url: str) -> None:
    """Of a call that no budget counts there is no bucket to lock: its entry is."""
    one, two = open_store(url), open_store(url)
    late = entry("1", status="assumed", cost=9)
    one.submit(lambda rows: settle(rows, entry=late, amounts={}, claims=(), now=NOW))
    inside, go = threading.Event(), threading.Event()

    def slow(rows: Rows) -> Any:
        done = settle(rows, entry=entry("1", cost=5), amounts={}, claims=(), now=NOW)
        inside.set()
        go.wait(20)
        return done

    got: list[Any] = []
    first = threading.Thread(target=lambda: got.append(one.submit(slow)))
    first.start()
    assert inside.wait(20)
    second = threading.Thread(
        target=lambda: got.append(
            two.submit(lambda rows: settle(rows, entry=entry("1", cost=5), amounts={}, claims=(), now=NOW))
        )
    )
    second.start()
    go.set()
    first.join(20)
    second.join(20)
    assert sorted(booked.written for booked in got) == [False, True]
    assert sum(e.cost or 0 for e in one.snapshot()[2]) == 5
    one.close()
    two.close()


PAUSED = """
import os, signal, sys
sys.path[:0] = sys.argv[2:]
from store_suite import LIFETIME
from behest_integrations.ledger import open_store
from test_postgres import held, ended

ledger = open_store(sys.argv[1], timeout=1)
held(ledger, "first")
stopped = []
def work(rows):
    rows.change_bucket(rows.bucket(*LIFETIME.key).id, 0, 0)
    if not stopped:
        stopped.append(1)
        print("stopping", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
ledger.submit(work)
print("went on", ended(ledger, "first").written, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="POSIX")
def test_a_host_that_is_paused_with_locks_in_its_hands_loses_them(url: str) -> None:
    ledger = open_store(url, timeout=30)
    paths = [os.path.dirname(__file__)]
    child = subprocess.Popen([sys.executable, "-c", PAUSED, url, *paths], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "stopping\n"
        assert isinstance(held(ledger, "second"), Reserved)
        child.send_signal(signal.SIGCONT)
        # What it had begun is begun again, on a new connection.
        assert child.stdout.readline() == "went on True\n"
    finally:
        child.kill()
        child.communicate()
    assert [(b.spent, b.held) for b in ledger.snapshot()[0]] == [(1, 1)]
    assert verify(ledger) == []
    ledger.close()


# ── what is PostgreSQL's own ───────────────────────────────────────────────────────────


def test_tables_are_made_where_asked_for_and_not_otherwise(url: str) -> None:
    plain = url.replace("&upgrade=auto", "")
    with pytest.raises(StoreError, match="behest db upgrade") as caught:
        open_store(plain)
    assert not caught.value.retryable
    kind = store_class(plain)
    assert (kind.exists(plain), kind.version(plain)) == (False, None)

    def behest(*args: str) -> Any:
        return CliRunner().invoke(main, [*args, "--store", plain])

    missing = behest("db", "check")
    assert (missing.exit_code, "no tables yet" in missing.output) == (1, True)
    assert "before: none" in behest("db", "upgrade").output
    assert "Nothing to do" in behest("db", "upgrade").output
    assert behest("db", "check").exit_code == 0
    with Meter(plain, budgets=["1 calls"]) as meter:
        meter.reserve(meter.plan("chat", "m", RequestBound(1, output_limit=0))).settle(Usage(1))
    for command in (("verify",), ("budgets",), ("report", "--by", "model,day,tag:a"), ("keys", "list")):
        said = behest(*command)
        assert said.exit_code == 0, said.output
    assert "all sums agree" in behest("verify").output


def test_several_who_make_the_tables_at_once(url: str) -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            open_store(url).close()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed


def test_tables_of_somebody_elses_are_left_alone(url: str, sql: psycopg.Connection) -> None:
    schema = postgres.schema_of(url)
    sql.execute("CREATE SCHEMA other_of_" + schema)
    sql.execute(f"CREATE TABLE other_of_{schema}.customers (name text)")
    with pytest.raises(StoreError, match="other tables"):
        open_store(url.replace(f"schema={schema}", f"schema=other_of_{schema}"))


def test_a_newer_ledger_is_left_alone(url: str, sql: psycopg.Connection) -> None:
    sql.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="newer version"):
        open_store(url)


def test_two_schemas_are_two_ledgers(url: str) -> None:
    one, two = open_store(url), open_store(postgres.new_url())
    held(one, "1")
    KeyStore(one).create(tenant="t", project="p")
    assert [len(ledger.snapshot()[1]) for ledger in (one, two)] == [1, 0]
    assert [len(ledger.keys().all()) for ledger in (one, two)] == [1, 0]
    one.close()
    two.close()


def test_a_pooler_that_gives_each_transaction_another_session(url: str, sql: psycopg.Connection) -> None:
    """What was prepared is gone: it is noticed, and done without from then on."""
    ledger = open_store(url)
    held(ledger, "1")
    for _ in range(2):
        link = ledger._link  # type: ignore[attr-defined]
        link.exchange([("DEALLOCATE ALL", ())], time.monotonic() + 9)
        assert isinstance(held(ledger, "2"), Reserved)
        assert ended(ledger, "2").written
    assert ledger._prepares is False  # type: ignore[attr-defined]
    ledger.close()
    ledger = open_store(url + "&prepare_threshold=None")
    assert ledger._prepares is False  # type: ignore[attr-defined]
    held(ledger, "3")
    assert verify(ledger) == []
    ledger.close()


def test_windows_and_leases_are_by_the_servers_clock(
    url: str, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with Meter(url, budgets=["5 calls/minute"], lease=60) as meter:
        hold = meter.reserve(meter.plan("chat", "m", RequestBound(1, output_limit=0)))
        (now,) = sql.execute("SELECT (extract(epoch FROM now()) * 1000)::bigint").fetchone() or (0,)
        assert abs(hold.started - now) < 30_000
        ((start, expires),) = sql.execute("SELECT start, expires FROM buckets, holds").fetchall()
        assert (start % 60_000, expires) == (0, hold.started + 60_000)
        assert start <= hold.started < start + 60_000
        hold.release()


def test_repair_while_calls_are_made(url: str, sql: psycopg.Connection) -> None:
    limit = LIFETIME._replace(limit=10**6)
    ledger, other = open_store(url), open_store(url, timeout=30)
    stop, made = threading.Event(), []

    def work() -> None:
        while not stop.is_set() and len(made) < 2000:
            id = f"{len(made)}"
            held(other, id, limit)
            ended(other, id, limit)
            made.append(id)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(3):
            while not made:
                time.sleep(0.01)
            sql.execute("UPDATE buckets SET spent = spent + 1000")
            assert len(repair(ledger)) == 1
    finally:
        stop.set()
        thread.join(60)
    assert verify(ledger) == []
    assert ledger.snapshot()[0][0].spent == len(made)
    ledger.close()
    other.close()


def test_what_postgresql_cannot_store_is_replaced(url: str) -> None:
    ledger = open_store(url)
    odd = entry("1", note="a\x00b", model="m\ud800", provider_id='\\u0000"', tags={"k\x00": "v"})
    ledger.submit(lambda rows: rows.add_entry(odd))
    (kept,) = ledger.snapshot()[2]
    assert (kept.note, kept.model, kept.provider_id, kept.tags) == (
        "a\ufffdb", "m?", '\\u0000"', {"k\ufffd": "v"}
    )  # fmt: skip
    ledger.close()


def test_a_limit_that_another_host_lowers_holds_at_once(url: str) -> None:
    with Meter(url, budgets=["5 calls"]) as one, Meter(url, budgets=["5 calls"]) as two:
        plan = one.plan("chat", "m", RequestBound(1, output_limit=0))
        one.reserve(plan).settle(Usage(1))
        two.set_limit("5 calls", "1 calls")
        with pytest.raises(BudgetExceeded):
            one.reserve(plan)
        two.set_limit("5 calls", "2 calls")
        one.reserve(plan).settle(Usage(1))
        with pytest.raises(BudgetExceeded):
            two.reserve(plan)
        assert [balance.spent for balance in one.spend()] == [2]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql+psycopg2://h/d", "by psycopg"),
        ("postgresql+psycopg://h/d?upgrade=yes", "upgrade is 'auto'"),
    ],
)
def test_a_url_that_cannot_be_used(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        open_store(url)


def test_a_password_is_not_told() -> None:
    for call in (open_store, store_class("postgresql://").exists):
        with pytest.raises(StoreError) as caught:
            call("postgresql+psycopg://u:secret@127.0.0.1:1/d")
        assert "secret" not in str(caught.value)
        assert "cannot be reached" in str(caught.value)
