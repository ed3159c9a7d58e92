"""Every command with what it was not made for: a sentence that helps, a code that says so, no trace."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from support import older_ledger

from behest_integrations import ConfigError, Meter, StoreError
from behest_integrations.cli import main
from behest_integrations.engine.alerts import Alerts
from behest_integrations.ledger import open_store
from behest_integrations.ledger.book import ThresholdEvent
from behest_integrations.ledger.stores import open_to_read
from behest_integrations.reports import report, verify
from behest_integrations.rules.usage import Usage
from behest_integrations.wire import RequestBound


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BEHEST_STORE", raising=False)
    return tmp_path


def ask(*args: str, code: int) -> str:
    done = CliRunner().invoke(main, args)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done.output


def make_ledger(path: Path) -> None:
    with Meter(f"sqlite:///{path}", budgets=["10 calls per user"]) as meter, meter.session("s", user="ada"):
        meter.reserve(meter.plan("chat", "gpt-4o", RequestBound(10, output_limit=0))).settle(Usage(10))


def newer(path: Path) -> None:
    make_ledger(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()


def somebody_elses(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()


STORES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "there is no ledger at"),
    "folder": (Path.mkdir, "is a folder"),
    "empty": (Path.touch, "is empty"),
    "binary": (lambda path: path.write_bytes(os.urandom(4096)), "not an SQLite file"),
    "text": (lambda path: path.write_text("hello\n" * 200), "not an SQLite file"),
    "newer": (newer, "it is at 9999"),
    "another's": (somebody_elses, "has other tables (theirs)"),
}


@pytest.mark.parametrize("kind", STORES)
def test_a_store_that_is_none(here: Path, kind: str) -> None:
    make, says = STORES[kind]
    store = here / "some.db"
    make(store)
    before = store.read_bytes() if store.is_file() else None
    for args in (
        ("report",), ("budgets",), ("verify",), ("keys", "revoke", "x"), ("repair", "--yes"),
    ):  # fmt: skip
        if kind == "empty" and args[0] in ("keys", "repair"):
            continue  # what is written there makes the ledger
        said = ask(*args, "--store", str(store), code=1)
        assert says in said
        assert "some.db" in said
        assert [path.name for path in here.iterdir()] == (
            [] if before is None and kind == "missing" else ["some.db"]
        )
    assert before is None or kind == "newer" or store.read_bytes() == before


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("report", "--store", ""), 2, "it is empty"),
        (("run", "--store", " ", "x.py"), 2, "it is empty"),
        (("report", "--store", "mysql://x"), 1, "no store of the kind mysql://"),
        (("report", "--json", "--csv"), 2, "not both"),
        (("report", "extra"), 2, "unexpected extra argument"),
        (("report", "--since", "99999999-01-01"), 2, "is not a date"),
        (("report", "--timezone", "../../etc/passwd"), 1, "unknown time zone"),
        (("prices", ""), 2, "name a model"),
        (("prices", "gpt-4o", "--provider", "anthropic"), 1, "It has one at"),
        (("prices", "ünknöwn-" + "x" * 300), 1, "[prices."),
        (("run",), 2, "Missing argument"),
        (("run", "."), 2, "is a directory"),
        (("serve", "--host", "256.1.1.1"), 1, "cannot listen on 256.1.1.1"),
        (("serve", "--port", "80x"), 2, "80x"),
        (("serve", "--config", "."), 2, "is a directory"),
        (("keys", "create"), 2, "Missing option"),
        (("keys", "create", "--tenant", "t", "--project", ""), 1, "the project is empty"),
        (("keys", "create", "--tenant", "t", "--project", "p", "--store", "no/x.db"), 1, "does not exist"),
        (("sandbox", "--latency", "nan"), 2, "a number of seconds"),
        (("sandbox", "--host", "256.1.1.1"), 1, "--host or --port"),
        (("demo", "--store", "no/such.db"), 1, "folder does not exist"),
        (("demo", "--store", ""), 2, "it is empty"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(here: Path, args: tuple[str, ...], code: int, says: str) -> None:
    assert says in ask(*args, code=code)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'budgets = ["$5"', "it is not TOML"),
        (b"\xff\xfe\x00", "it is not text in UTF-8"),
        (b'thresholds = ["80"]', "thresholds.0: it must be a whole number"),
        (b"lease = true", "lease: it must be a number"),
        (b"wait = -3", "at least 0"),
        (b"store = 5", "store: it must be text"),
        (b'require = ["colour"]', "'colour'"),
        (b"gateway = 5", "gateway: it must be a table"),
        (b'[[budgets]]\namount = "$5"\nwindow = "fortnight"', "^^^^^^^^^"),
        (b"[prices.m]\ninput = -1", "between $0"),
    ],
)
def test_a_file_that_cannot_be_used(here: Path, content: bytes, says: str) -> None:
    (here / "behest.toml").write_bytes(content)
    (here / "p.py").write_text("raise SystemExit(7)")
    assert says in ask("run", "--budget", "$1", "p.py", code=1)


def test_a_file_that_is_a_folder_or_begins_with_a_mark(here: Path) -> None:
    make_ledger(here / "some.db")
    (here / "behest.toml").mkdir()
    assert "Is a directory" in ask("report", code=1)
    (here / "behest.toml").rmdir()
    (here / "behest.toml").write_bytes(b'\xef\xbb\xbfstore = "some.db"\n')  # as Notepad writes it
    assert "total" in ask("report", code=0)


def test_no_calls_at_all_and_none_of_these(here: Path) -> None:
    make_ledger(here / "behest.db")
    assert "No such calls (user nobody)" in ask("report", "--user", "nobody", code=0)
    assert json.loads(ask("report", "--user", "nobody", "--json", code=0))["lines"] == []


# ── looking changes nothing ────────────────────────────────────────────────────────────


def test_looking_at_a_ledger_writes_nothing(here: Path) -> None:
    make_ledger(here / "behest.db")
    before = (here / "behest.db").read_bytes()
    for args in (("report",), ("budgets",), ("keys", "list"), ("prices", "gpt-4o")):
        ask(*args, code=0)
        assert [path.name for path in here.iterdir()] == ["behest.db"]
    assert (here / "behest.db").read_bytes() == before


def test_a_ledger_opened_to_be_read_can_not_be_written(here: Path) -> None:
    make_ledger(here / "some.db")
    ledger = open_to_read("sqlite:///some.db")
    assert report(ledger, ("user",)).lines[0].key == ("ada",)
    assert verify(ledger) == []
    with pytest.raises(StoreError, match="opened to be read"):
        ledger.submit(lambda rows: rows.set_override("calls", 5))
    with pytest.raises(ConfigError, match="there is no ledger at nowhere"):
        open_to_read("sqlite:///nowhere.db")
    assert not Path("nowhere.db").exists()


def test_a_ledger_on_a_read_only_disk_is_read(here: Path) -> None:
    """Without a way to write beside it, SQLite opens a file with a log only as one that never changes."""
    make_ledger(here / "some.db")
    uri = "file:some.db?mode=ro&immutable=1"
    with sqlite3.connect(uri, uri=True) as connection:
        assert connection.execute("SELECT count(*) FROM entries").fetchone() == (1,)
    connection.close()
    if os.geteuid() != 0:  # root may write anywhere
        (here / "some.db").chmod(0o444)
        here.chmod(0o555)
    try:
        assert "ada" in ask("report", "--by", "user", "--store", "some.db", code=0)
        assert "all sums agree" in ask("verify", "--store", "some.db", code=0)
    finally:
        here.chmod(0o755)


def test_a_ledger_of_an_older_schema_is_read_as_it_is(here: Path) -> None:
    older_ledger(here / "behest.db", "0005")
    before = (here / "behest.db").read_bytes()
    assert "ada" in ask("report", "--by", "user", code=0)
    assert (here / "behest.db").read_bytes() == before
    assert "No keys yet" in ask("keys", "list", code=0)
    open_store("sqlite:///behest.db").close()  # who writes brings it up to date
    assert (here / "behest.db").read_bytes() != before
    assert "ada" in ask("report", "--by", "user", code=0)


# ── terminals and pipes ────────────────────────────────────────────────────────────────


def behest(*args: str) -> list[str]:
    return [sys.executable, "-m", "behest_integrations.cli", *args]


def test_letters_that_a_terminal_has_not_are_stood_in_for(here: Path) -> None:
    make_ledger(here / "behest.db")
    done = subprocess.run(
        behest("budgets"), capture_output=True, timeout=120, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 0, done.stderr
    assert b"#" in done.stdout
    assert b"# spent" in done.stdout


def test_a_disk_that_is_full_is_a_sentence(here: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    make_ledger(here / "behest.db")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(behest("report"), stdout=full, stderr=subprocess.PIPE, timeout=120)
    assert done.returncode == 1
    assert b"No space left" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_reader_that_has_read_enough_is_no_error(here: Path) -> None:
    make_ledger(here / "behest.db")
    process = subprocess.Popen(behest("report"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    process.wait(60)


def test_an_interrupt_is_said_so(here: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        stderr=subprocess.PIPE,
    )
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Interrupted." in said
    assert b"Traceback" not in said


INTERRUPTED = f"""
import os
from behest_integrations.cli import main, tools
tools.check_free = lambda *args: os.kill(os.getpid(), {int(signal.SIGINT)})
main(["sandbox"])
"""


# ── one crossing, one line ─────────────────────────────────────────────────────────────


def test_a_call_that_crosses_several_thresholds_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    told: list[ThresholdEvent] = []
    with Meter("memory://", budgets=["10 tokens", "5 calls"], on_threshold=told.append) as meter:
        meter.reserve(meter.plan("chat", "m", RequestBound(10, output_limit=0))).settle(Usage(10))
    assert [event.percent for event in told] == [50, 80, 100]
    (line,) = caplog.messages
    assert 'budget "10 tokens" has reached 100 %: 10 tokens of 10 tokens' in line
    assert Alerts(None).tell([]) is None


# ── requests are told in their own names ───────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content: it must be text, or a list"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages.0.content.0: it must be an object"),
        ({"messages": "hello"}, "messages: it must be a list"),
        ({"messages": [{"content": "x"}]}, "messages.0.role: it is missing"),
        ({"messages": [], "stream": "yes", "n": 0.5}, "messages: list should have at least 1 item"),
        ({"messages": [{"role": "user", "content": 0.5}]}, "messages.0.content: it must be text, or a list"),
    ],
)
def test_a_request_that_cannot_be_used_names_no_inner_part(body: dict[str, object], says: str) -> None:
    from behest_integrations.gateway.bodies import parse
    from behest_integrations.gateway.problems import Problem
    from behest_integrations.gateway.settings import LimitSettings
    from behest_integrations.gateway.shapes import ChatCompletionRequest

    raw = json.dumps({"model": "gpt-4o", **body}).encode()
    with pytest.raises(Problem) as caught:
        parse(raw, ChatCompletionRequest, LimitSettings())
    said = str(caught.value)
    assert said.startswith(says)
    assert caught.value.body["error"]["param"] == said.partition(":")[0]
    for inner in (".str", "list[", "Input should", "dict"):
        assert inner not in said
