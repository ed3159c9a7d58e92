"""When the store is out: calls are refused with a clear error, and no entry is lost."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import HELLO, aclient, assert_agrees, assert_sound, client, entries, holds

from behest_integrations import BudgetExceeded, ConfigError, Meter, StoreError, Usage
from behest_integrations.sandbox import Sandbox
from behest_integrations.wire import RequestBound


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def make(path: Path, **options: Any) -> Meter:
    return Meter(f"sqlite:///{path}", **{"budgets": ["$1"], "store_timeout": 0.2, **options})


def call(meter: Meter, sandbox: Sandbox) -> None:
    meter.openai(client(sandbox)).chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=20)


def lock(path: Path) -> sqlite3.Connection:
    """Another program's write transaction."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    return other


def test_a_locked_store_refuses_calls_and_then_goes_on(sandbox: Sandbox, path: Path) -> None:
    with make(path) as meter:
        other = lock(path)
        with pytest.raises(StoreError, match="locked by another process") as caught:
            call(meter, sandbox)
        assert caught.value.retryable
        assert sandbox.requests == 0
        other.execute("ROLLBACK")
        call(meter, sandbox)
        assert_agrees(meter, sandbox)


def test_an_asynchronous_caller_is_refused_too_and_the_loop_goes_on(sandbox: Sandbox, path: Path) -> None:
    async def run(meter: Meter) -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.01)

        ticking = asyncio.ensure_future(tick())
        async with meter.openai(aclient(sandbox)) as metered:
            with pytest.raises(StoreError, match="locked"):
                await metered.chat.completions.create(model="gpt-4o", messages=HELLO)
        ticking.cancel()
        return ticks

    with make(path) as meter:
        other = lock(path)
        assert asyncio.run(run(meter)) >= 5
        other.close()
    assert sandbox.requests == 0


def test_an_entry_that_cannot_be_written_is_kept_and_retried(sandbox: Sandbox, path: Path) -> None:
    """The store goes out while the provider answers: the caller gets the answer."""
    with make(path) as meter:
        hold = meter.reserve(meter.plan("chat", "gpt-4o", RequestBound(100, output_limit=0)))
        other = lock(path)
        hold.settle(Usage(50))
        assert meter.unwritten == 1
        with pytest.raises(StoreError, match="kept"):
            meter.flush()
        other.execute("ROLLBACK")
        meter.flush()
        assert meter.unwritten == 0
        assert [e.status for e in entries(meter)] == ["settled"]
        assert_sound(meter)


def test_what_was_kept_is_written_by_the_next_call(sandbox: Sandbox, path: Path) -> None:
    with make(path) as meter:
        hold = meter.reserve(meter.plan("chat", "gpt-4o", RequestBound(100, output_limit=0)))
        other = lock(path)
        hold.settle(Usage(50))
        other.execute("ROLLBACK")
        time.sleep(1.05)
        call(meter, sandbox)
        assert meter.unwritten == 0
        assert len(entries(meter)) == 2


def test_allow_by_choice_lets_calls_through_and_writes_them_later(
    sandbox: Sandbox, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with make(path, on_store_error="allow") as meter:
        other = lock(path)
        for _ in range(3):
            call(meter, sandbox)
        assert sandbox.requests == 3
        assert meter.unwritten == 3
        assert "as you chose" in caplog.text
        other.execute("ROLLBACK")
        meter.flush()
        assert_agrees(meter, sandbox)
        assert_sound(meter)
        assert meter.spend()[0].spent == sandbox.bill.total() * 10**9


def test_a_deleted_file_is_noticed_and_never_made_anew(sandbox: Sandbox, path: Path) -> None:
    meter = make(path)
    call(meter, sandbox)
    path.unlink()
    for _ in range(2):
        with pytest.raises(StoreError, match="was deleted while in use") as caught:
            call(meter, sandbox)
    assert not caught.value.retryable
    assert not path.exists()
    assert sandbox.requests == 1


def test_a_replaced_file_is_noticed(sandbox: Sandbox, path: Path, tmp_path: Path) -> None:
    meter = make(path)
    call(meter, sandbox)
    make(tmp_path / "other.db").close()
    os.replace(tmp_path / "other.db", path)
    with pytest.raises(StoreError, match="replaced by another file"):
        call(meter, sandbox)


@pytest.mark.parametrize("content", [b"this is no database, but long enough to be one" * 40, b"short"])
def test_a_file_that_is_no_ledger_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged or is not"):
        make(path)
    assert path.read_bytes() == content


def test_a_database_of_somebody_elses_is_left_alone(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE customers (name TEXT)")
    other.commit()
    other.close()
    with pytest.raises(StoreError, match="other tables"):
        make(path)
    assert [r[0] for r in sqlite3.connect(path).execute("SELECT name FROM sqlite_master")] == ["customers"]


def test_a_page_that_was_overwritten(sandbox: Sandbox, path: Path) -> None:
    with make(path) as meter:
        for _ in range(50):
            call(meter, sandbox)
    content = bytearray(path.read_bytes())
    for at in range(2048, len(content), 2048):
        content[at : at + 64] = b"\xff" * 64
    path.write_bytes(bytes(content))
    before = sandbox.requests
    with pytest.raises(StoreError):
        call(make(path), sandbox)
    assert sandbox.requests == before


def test_a_ledger_of_a_newer_version_is_left_alone(path: Path) -> None:
    make(path).close()
    other = sqlite3.connect(path)
    other.execute("UPDATE alembic_version SET version_num = '9999'")
    other.commit()
    other.close()
    with pytest.raises(StoreError, match="newer version"):
        make(path)


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="folder does not exist"):
        make(tmp_path / "no" / "ledger.db")


READ_ONLY = """
import sys
from behest_integrations import Meter, StoreError
from behest_integrations.wire import RequestBound
try:
    meter = Meter(f"sqlite:///{sys.argv[1]}", budgets=["5 calls"])
    meter.reserve(meter.plan("chat", "m", RequestBound(1, output_limit=0)))
except StoreError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX permissions")
def test_a_read_only_file(path: Path) -> None:
    make(path, budgets=["5 calls"]).close()
    path.chmod(0o444)
    path.parent.chmod(0o555)
    command = [sys.executable, "-c", READ_ONLY, str(path)]
    if os.geteuid() == 0:  # root may write whatever the permissions say
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("needs setpriv to stop being root")
        for folder in path.parents:
            if folder != path.parent and not os.stat(folder).st_mode & 0o001:
                folder.chmod(0o711)
        command = [setpriv, "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all", *command]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if "Operation not permitted" in said.stderr:
            pytest.skip("privileges cannot be dropped here")
        assert "cannot be written" in said.stdout, said.stdout + said.stderr
    finally:
        path.parent.chmod(0o755)


FULL_DISK = """
import resource, signal, sys
from behest_integrations import Meter, StoreError
from behest_integrations.wire import RequestBound
from behest_integrations import Usage
meter = Meter(f"sqlite:///{sys.argv[1]}", budgets=["100000 calls"])
# Files of this process may not grow beyond this: what a full disk is to SQLite.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
done = 0
try:
    for _ in range(5000):
        hold = meter.reserve(meter.plan("chat", "m", RequestBound(1, output_limit=0)))
        hold.settle(Usage(1))
        done += 1
except StoreError as error:
    print("refused:", error)
waiting = meter.unwritten
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
meter.flush()
hold = meter.reserve(meter.plan("chat", "m", RequestBound(1, output_limit=0)))
hold.settle(Usage(1))
meter.close()
print("done", done + 1)
"""


def test_a_full_disk_refuses_calls_loses_nothing_and_goes_on(path: Path) -> None:
    pytest.importorskip("resource")
    said = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, timeout=120
    )
    assert "refused:" in said.stdout, said.stdout + said.stderr
    done = int(said.stdout.split("done ")[1])
    assert 10 < done < 5000
    with make(path) as meter:
        assert len([e for e in entries(meter) if e.status == "settled"]) == done
        assert_sound(meter)


def _in_child(meter: Meter, queue: Any) -> None:
    try:
        meter.reserve(meter.plan("chat", "m", RequestBound(1, output_limit=0))).settle(Usage(1))
        queue.put("ok")
    except StoreError as error:
        queue.put(str(error))


def test_a_forked_child_uses_the_file_but_not_a_copy_of_the_memory(path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    for meter, expected in ((make(path, budgets=["2 calls"]), "ok"), (Meter("memory://"), "forked")):
        with meter:
            queue = fork.Queue()
            child = fork.Process(target=_in_child, args=(meter, queue))
            child.start()
            assert expected in queue.get(timeout=20)
            child.join(20)
            if expected == "ok":
                meter.reserve(meter.plan("chat", "m", RequestBound(1, output_limit=0))).release()
                assert meter.spend()[0].spent == 1


def test_a_closed_meter_says_so(path: Path) -> None:
    meter = make(path)
    meter.close()
    meter.close()
    with pytest.raises((StoreError, ConfigError)):
        meter.reserve(meter.plan("chat", "gpt-4o", RequestBound(1, output_limit=0)))


def test_verify_finds_and_repair_mends_what_somebody_changed(sandbox: Sandbox, path: Path) -> None:
    from behest_integrations.reports import repair, verify

    with make(path, budgets=["$0.10 per session", "5 calls/day"]) as meter:
        call(meter, sandbox)
        held = meter.reserve(meter.plan("chat", "gpt-4o", RequestBound(100, output_limit=0)))
        truth = [(b.spent, b.held) for b in meter.spend()]
        other = sqlite3.connect(path)
        other.execute("UPDATE buckets SET spent = spent + 7, held = held - 1")
        other.commit()
        other.close()
        findings = verify(meter.ledger)
        assert len(findings) == 2
        assert "but the ledger adds up to $0.00022" in str(findings[0])
        assert len(repair(meter.ledger)) == 2
        assert verify(meter.ledger) == []
        assert [(b.spent, b.held) for b in meter.spend()] == truth
        held.release()
        assert_sound(meter)


def test_refusals_go_on_being_right_after_a_store_came_back(sandbox: Sandbox, path: Path) -> None:
    with make(path, budgets=["2 calls"]) as meter:
        call(meter, sandbox)
        other = lock(path)
        with pytest.raises(StoreError):
            call(meter, sandbox)
        other.close()
        call(meter, sandbox)
        with pytest.raises(BudgetExceeded):
            call(meter, sandbox)
        assert holds(meter) == 0
    assert sandbox.requests == 2
