"""Leases while things go wrong: the store is out or full, a limit is lowered while slices are out.

What breaks in mid-load is in `test_postgres_faults`, with leases and without; all of it at once, by seeds,
in `test_lease_simulation`. What counts is the sandbox's bill.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import postgres
import psycopg
import pytest
from click.testing import CliRunner
from proxy import Proxy
from support import ANSWER, HELLO, MODEL, assert_agrees, assert_sound, client, holds
from test_leases import leases, lending
from test_postgres_faults import BOUND, HOWS, TIMEOUT, How, check, load, until

from behest_integrations import BudgetExceeded, Meter, StoreError
from behest_integrations.cli import main
from behest_integrations.engine.leases import TICK
from behest_integrations.ledger.book import LEASE
from behest_integrations.reports import verify
from behest_integrations.sandbox import Sandbox


def test_of_a_store_that_is_gone_calls_are_drawn_for_a_while_and_then_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No more than was held, for no longer than eight tenths of the lease; and all goes on by itself."""
    monkeypatch.setattr("behest_integrations.engine.leases.LASTS_MS", 4000)
    with Proxy(postgres.server()) as proxy, Sandbox() as sandbox:
        url = postgres.url_of(proxy.uri, prepare_threshold="None")
        with lending(url, "1000 calls", store_timeout=TIMEOUT) as meter:
            metered = meter.openai(client(sandbox))

            def call() -> None:
                metered.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=5)

            until(lambda: _made(call) and leases(meter).drawn > 1)
            before = sandbox.requests
            (warmed,) = meter.spend()
            meter._next_sweep = meter.ledger.now_ms() + 10**6  # else that asks the store once a second
            proxy.refuses = True
            proxy.cut()
            began = time.monotonic()
            while _made(call):
                pass
            refused_after = time.monotonic() - began
            drawn = sandbox.requests - before
            proxy.refuses = False
            until(lambda: _made(call))
            meter.flush()
            assert (meter.unwritten, holds(meter)) == (0, 0)
            meter.sweep()
            assert verify(meter.ledger) == []
            (after,) = meter.spend()
            assert after.spent == sandbox.requests == len(meter.ledger.snapshot()[2])
            assert 0 < drawn <= warmed.held
            assert refused_after < 3.2 + 2 * BOUND


def _made(call: Callable[[], None]) -> bool:
    try:
        call()
    except StoreError:
        return False
    return True


# ── a disk that is full ────────────────────────────────────────────────────────────────

FULL = 6 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system, on which the server keeps all of a ledger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with psycopg.connect(postgres.server(), autocommit=True) as connection:
        ((data,),) = connection.execute("SHOW data_directory").fetchall()
        owner = os.stat(data)
        options = f"size={FULL},uid={owner.st_uid},gid={owner.st_gid},mode=700"
        for parent in (tmp_path, *tmp_path.parents):
            if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 1:
                parent.chmod(parent.stat().st_mode | 0o11)  # it is another user's server
        mounting = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if (
            os.geteuid()
            or not shutil.which("mount")
            or subprocess.run(mounting, capture_output=True).returncode
        ):
            pytest.skip("a file system can be mounted by root alone")
        name = f"disk_{os.getpid()}"
        try:
            connection.execute(f"CREATE TABLESPACE {name} LOCATION '{folder}'")
            yield folder
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize(
    "how", [HOWS["each asks the store"], HOWS["calls are drawn"]], ids=["asked", "drawn"]
)
def test_a_disk_that_is_full_refuses_calls_until_there_is_room(disk: Path, how: How) -> None:
    url = postgres.new_url(options=f"-cdefault_tablespace%3Ddisk_{os.getpid()}")
    filler = disk / "filler"
    with Sandbox(latency=0.01, output_tokens=ANSWER) as sandbox, how.meter(url) as meter:
        filled: list[int] = []

        def fill() -> None:
            """Full, for half a second, twice."""
            if len(filled) < 2 and sandbox.requests >= (len(filled) + 1) * 5:
                filled.append(sandbox.requests)
                with filler.open("wb", buffering=0) as file:
                    try:
                        while file.write(b"\0" * 4096):
                            pass
                    except OSError:
                        pass
                time.sleep(0.5)
                filler.unlink()

        load(meter, sandbox, fill)
        assert len(filled) == 2
        check(meter, sandbox, how)
    with psycopg.connect(postgres.server(), autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA {postgres.schema_of(url)} CASCADE")
        connection.execute(f"DROP TABLESPACE disk_{os.getpid()}")


# ── a limit that is lowered ────────────────────────────────────────────────────────────

REACHES_WITHIN = TICK + 1.0
"""Seconds: the slices of a process are renewed each half second; and a transaction, on a slow machine."""


@pytest.mark.parametrize("budget", ["$1000", "$1000 per user"])
def test_a_limit_that_is_lowered_holds_while_hosts_have_slices_of_it(budget: str) -> None:
    url = postgres.new_url()
    meters = [lending(url, budget) for _ in range(2)]
    done = threading.Event()
    refused: list[BudgetExceeded] = []

    def work(meter: Meter) -> None:
        metered = meter.openai(client(sandbox))
        with meter.session("s", user="ada"):
            while not done.is_set():
                try:
                    metered.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=4)
                except BudgetExceeded as error:
                    refused.append(error)
                    done.wait(0.02)

    def lent() -> int:
        return sum(hold.call["operation"] == LEASE for hold in meters[0].ledger.snapshot()[1])

    with Sandbox(latency=0.02, output_tokens=4) as sandbox, ThreadPoolExecutor(6) as pool:
        working = [pool.submit(work, meter) for meter in meters for _ in range(3)]
        try:
            until(lambda: lent() == 2 and all(leases(meter).drawn > 20 for meter in meters))
            assert not refused
            whose = ["--user", "ada"] if "user" in budget else []
            changed = ["budgets", "set", budget, "$0.0001", *whose, "--store", url]
            said = CliRunner().invoke(main, changed)
            assert said.exit_code == 0, said.output
            time.sleep(REACHES_WITHIN)
            made = sandbox.requests
            time.sleep(1)
            assert sandbox.requests == made
            assert refused
        finally:
            done.set()
        for one in working:
            one.result(20)
        for meter in meters:
            meter.flush()
        assert_sound(meters[0])
        assert_agrees(meters[0], sandbox)
    for meter in meters:
        meter.close()
