"""PostgreSQL and the way to it break: nothing is let through, no hold stays, and all goes on by itself.

The faults are real: sessions that are ended, a network that cuts, swallows or hangs up on one side, a
server and clients that are killed in mid-load; without leases, and with them (`HOWS`). What counts is the
sandbox's bill.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import postgres
import psutil
import psycopg
import pytest
from proxy import Proxy
from sqlalchemy.engine import make_url
from support import ANSWER, HELLO, MODEL, client, holds
from test_leases import Everything, Shared
from test_postgres import ended, held

from behest_integrations import BudgetExceeded, Meter, StoreError, Usage
from behest_integrations.ledger import open_store
from behest_integrations.ledger.book import Reserved
from behest_integrations.reports import verify
from behest_integrations.sandbox import Sandbox
from behest_integrations.wire import RequestBound

COMMIT = b"COMMIT\x00"
TIMEOUT = 1.0
BOUND = 2 * (TIMEOUT + 2)
"""Seconds in which a call is refused, or has its answer, whatever the store does: its own turn and the one
before it, each with a connection that takes two seconds more."""


class How(NamedTuple):
    """What is allowed, and which of its buckets are taken to be hot; None: no leases."""

    cap: Decimal
    each: Decimal
    hot: Any = None

    def meter(self, url: str, **said: Any) -> Meter:
        budgets = [f"${self.cap}", f"${self.each}/day per user"]
        meter = Meter(url, budgets=budgets, wait=2, leases=self.hot is not None, **said)
        if self.hot is not None:
            assert meter._leases is not None
            meter._leases._hot, meter._leases._often = self.hot(), 1
        return meter


HOWS = {
    "each asks the store": How(Decimal(1), Decimal("0.60")),
    "calls are drawn": How(Decimal(3), Decimal("1.70"), Everything),
    "holds have parts": How(Decimal(3), Decimal("1.70"), Shared),
}


@pytest.fixture(params=HOWS)
def how(request: pytest.FixtureRequest) -> How:
    return HOWS[request.param]


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy(postgres.server()) as proxy:
        yield proxy


@pytest.fixture
def url(proxy: Proxy) -> str:
    return postgres.url_of(proxy.uri, prepare_threshold="None")


def load(
    meter: Meter, sandbox: Sandbox, breaking: Callable[[], None], *, drawn: int = 20
) -> list[StoreError]:
    """Calls of 8 threads until the budget is used up, while things break. The refusals for the store.

    Args:
        drawn: how many calls are drawn from slices at least, with leases.
    """
    metered = meter.openai(client(sandbox))
    refused: list[StoreError] = []
    done = threading.Event()

    def work(number: int) -> None:
        who = f"u{number % 2}"
        with meter.session(f"of {who}", user=who):
            for _ in range(2000):
                try:
                    metered.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=ANSWER, user=who)
                except StoreError as error:
                    refused.append(error)
                    time.sleep(0.02)
                except BudgetExceeded as error:
                    if not error.busy:
                        return
                    time.sleep(0.02)
        raise AssertionError("the budget was never used up")

    def break_on() -> None:
        while not done.wait(0.02):
            breaking()

    breaker = threading.Thread(target=break_on)
    breaker.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
    finally:
        done.set()
        breaker.join(20)
    assert meter._leases is None or meter._leases.drawn >= drawn
    return refused


def check(meter: Meter, sandbox: Sandbox, how: How, *, used: float = 0.95) -> None:
    """Nothing was let through, no hold is stuck, and every call has its entry."""
    deadline = time.monotonic() + 20
    while meter.unwritten and time.monotonic() < deadline:
        with suppress(StoreError):
            meter.flush()
    meter.flush()
    meter.sweep()
    assert how.cap * Decimal(used) <= sandbox.bill.total() <= how.cap
    assert max(sandbox.bill.by_user().values()) <= how.each
    assert holds(meter) == 0
    assert verify(meter.ledger) == []
    booked = sum(e.cost or 0 for e in meter.ledger.snapshot()[2])
    assert booked >= sandbox.bill.total() * 10**9


def test_sessions_are_ended_in_mid_load(how: How) -> None:
    url = postgres.new_url()
    with (
        Sandbox(latency=0.01, output_tokens=ANSWER) as sandbox,
        how.meter(url) as meter,
        psycopg.connect(postgres.server(), autocommit=True) as other,
    ):
        rng = random.Random(3)

        def storm() -> None:
            link = getattr(meter.ledger, "_link", None)
            if link is not None and rng.random() < 0.5:
                other.execute("SELECT pg_terminate_backend(%s)", [link.backend])

        load(meter, sandbox, storm)
        check(meter, sandbox, how)


def test_a_network_that_cuts_delays_and_hangs_up_on_one_side(proxy: Proxy, url: str, how: How) -> None:
    with (
        Sandbox(latency=0.01, output_tokens=ANSWER) as sandbox,
        how.meter(url, store_timeout=TIMEOUT) as meter,
    ):
        rng = random.Random(5)

        def storm() -> None:
            what = rng.randrange(4)
            if what == 0:
                proxy.cut()
            elif what == 1:
                proxy.half_close()
            elif what == 2:
                proxy.delay = rng.choice((0, 0.005))

        load(meter, sandbox, storm)
        proxy.delay = 0
        check(meter, sandbox, how)


@pytest.mark.parametrize("when", ["before it is written", "after it is written"])
def test_a_commit_that_is_not_answered_is_done_once(proxy: Proxy, url: str, when: str) -> None:
    ledger = open_store(url, timeout=10)
    cuts: list[int] = []

    def watch(data: bytes) -> str | None:
        if COMMIT not in data or len(cuts) >= 2:
            return None
        cuts.append(1)
        return "cut" if when.startswith("before") else "cut after"

    proxy.watch = watch
    assert isinstance(held(ledger, "1"), Reserved)
    assert ended(ledger, "1").written
    assert len(cuts) == 2
    assert [(b.spent, b.held) for b in ledger.snapshot()[0]] == [(1, 0)]
    assert len(ledger.snapshot()[2]) == 1
    assert verify(ledger) == []
    ledger.close()


def test_a_hold_of_which_nobody_knew_is_dropped_when_the_server_is_back(proxy: Proxy, url: str) -> None:
    """The caller was refused, since it could not be known whether it was held; and it was."""
    ledger = open_store(url, timeout=0.5)
    assert isinstance(held(ledger, "1"), Reserved)

    def watch(data: bytes) -> str | None:
        if COMMIT not in data:
            return None
        proxy.refuses = True
        return "cut after"

    proxy.watch = watch
    with pytest.raises(StoreError, match="cannot be reached"):
        held(ledger, "2")
    proxy.watch, proxy.refuses = (lambda data: None), False
    with open_direct(url) as other:
        assert {hold.id for hold in other.snapshot()[1]} == {"1", "2"}
        assert ended(ledger, "1").written
        ledger.flush()
        assert other.snapshot()[1] == []
        assert verify(other) == []
    ledger.close()


class open_direct:
    """The same ledger, past the proxy."""

    def __init__(self, url: str) -> None:
        self._ledger = open_store(postgres.url_of(postgres.server(), schema=postgres.schema_of(url)))

    def __enter__(self) -> Any:
        return self._ledger

    def __exit__(self, *exc: object) -> None:
        self._ledger.close()


@pytest.mark.parametrize("how", ["swallows", "refuses"])
def test_a_store_that_is_out_refuses_in_time_and_goes_on_by_itself(proxy: Proxy, url: str, how: str) -> None:
    with Sandbox() as sandbox, Meter(url, budgets=["5 calls"], store_timeout=TIMEOUT) as meter:
        metered = meter.openai(client(sandbox))

        def call() -> None:
            metered.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=5)

        call()
        in_flight = meter.reserve(meter.plan("chat", "gpt-4o", RequestBound(9, output_limit=0)))
        setattr(proxy, how, True)
        if how == "refuses":
            proxy.cut()
        began = time.monotonic()
        for _ in range(2):
            with pytest.raises(StoreError, match="cannot be reached"):
                call()
        assert time.monotonic() - began < 2 * BOUND
        in_flight.settle(Usage(3))
        assert (sandbox.requests, meter.unwritten) == (1, 1)
        setattr(proxy, how, False)
        proxy.cut()
        call()
        meter.flush()
        assert (sandbox.requests, meter.unwritten, holds(meter)) == (2, 0, 0)
        assert [balance.spent for balance in meter.spend()] == [3]
        assert verify(meter.ledger) == []


CLIENT = """
import sys
sys.path.insert(0, sys.argv[3])
from test_postgres_faults import HOWS, load
class There:
    base_url = sys.argv[2]
with HOWS[sys.argv[4]].meter(sys.argv[1], store_timeout=5) as meter:
    print("ready", flush=True)
    load(meter, There, lambda: None, drawn=0)  # who is left alone has nobody to contend with
"""


@pytest.mark.parametrize(
    "name",
    ["each asks the store", pytest.param("calls are drawn", marks=pytest.mark.slow), "holds have parts"],
)
def test_clients_and_the_server_are_killed_in_mid_load(name: str) -> None:
    folder = Path(tempfile.gettempdir()) / f"behest-pg-killed-{os.getpid()}"
    server = postgres.started(folder)
    url = postgres.url_of(server.get_uri())
    open_store(url).close()
    with Sandbox(latency=0.02, output_tokens=ANSWER) as sandbox:
        command = [sys.executable, "-c", CLIENT, url, sandbox.base_url, os.path.dirname(__file__), name]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        try:
            for process in running:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            until(lambda: sandbox.requests >= 4)
            running[0].send_signal(signal.SIGKILL)
            until(lambda: sandbox.requests >= 8)
            postmaster = psutil.Process(server.get_pid())
            sessions = postmaster.children(recursive=True)
            for process in (postmaster, *sessions):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs([postmaster, *sessions], timeout=20)
            (folder / "postmaster.pid").unlink(missing_ok=True)
            server.ensure_postgres_running()
            assert running[1].wait(120) == 0  # it has gone on by itself, and used the budget up
        finally:
            for process in running:
                process.kill()
                process.communicate()
        with HOWS[name].meter(url) as meter:
            # What the dead one had under way may have been billed, and is booked at its worst; with leases
            # also what it had for calls that it did not make.
            check(meter, sandbox, HOWS[name], used=0.5)
    server.cleanup()


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_server_that_only_reads_is_no_ledger() -> None:
    """A standby, or one in recovery, whose sessions are told so."""
    url = postgres.new_url()
    open_store(url).close()
    role = f"reads_{postgres.schema_of(url)}"
    with psycopg.connect(postgres.server(), autocommit=True) as other:
        other.execute(f"CREATE ROLE {role} LOGIN SUPERUSER")
        other.execute(f"ALTER ROLE {role} SET default_transaction_read_only = on")
        with pytest.raises(StoreError, match="only reads"):
            open_store(make_url(url).set(username=role).render_as_string(hide_password=False))
        other.execute(f"DROP ROLE {role}")
