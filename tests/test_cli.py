"""The `behest` command: what a person who answers for the bill sees, and what a script reads."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sqlite3
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import click
import pytest
import warm
from click.testing import CliRunner
from support import HELLO, client, until_exhausted

from behest_integrations import Meter, Unbounded, UnknownPrice, session
from behest_integrations.cli import main, store
from behest_integrations.cli.advice import in_shell
from behest_integrations.config import Config, tomllib
from behest_integrations.sandbox import Sandbox
from behest_integrations.wire import RequestBound

IDS = [("chat-ada", "ada"), ("会話-1", "bob"), ("=cmd|'/c calc'!A0", "eve"), ("x" * 200, "long")]


def behest(*args: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return warm.behest(*args, cwd=cwd, env={**os.environ, **env})


def test_it_is_a_command_of_its_own() -> None:
    """The others are forks of a process that has imported it."""
    said = subprocess.run(
        [sys.executable, "-m", "behest_integrations.cli", "prices", "gpt-4o"],
        capture_output=True, text=True, timeout=120, encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    again = behest("prices", "gpt-4o")
    assert (said.returncode, said.stdout, said.stderr) == (0, again.stdout, again.stderr)
    assert behest("prices", "no-such-model").returncode == 1


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with a few sessions, a refusal, a stage and a call in flight."""
    path = tmp_path_factory.mktemp("cli") / "ledger.db"
    budgets = ["$0.01 per session", "$5/day per user", "1000 calls/minute", "$9 per 24h rolling"]
    with Sandbox() as sandbox, Meter(f"sqlite:///{path}", budgets=budgets) as meter:
        metered = meter.openai(client(sandbox))
        for id, user in IDS:
            with meter.session(id, user=user, project="apollo", tags={"team": f"team of {user}"}):
                metered.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=50)
                with meter.budget("$1", name="research"):
                    metered.chat.completions.create(model="gpt-4o-mini", messages=HELLO, max_tokens=50)
        with session("chat-ada"):
            until_exhausted(
                lambda: metered.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=64)
            )
        meter.reserve(meter.plan("chat", "gpt-4o", RequestBound(1000, output_limit=0)))
        (path.parent / "bill").write_text(str(sandbox.bill.total()))
    return path


def test_a_report_in_a_pipe_is_plain_whole_and_adds_up(ledger: Path) -> None:
    said = behest("report", "--store", str(ledger))
    assert said.returncode == 0, said.stderr
    assert "\x1b" not in said.stdout
    for id, _user in IDS[:3]:
        assert id in said.stdout
    assert said.stdout.replace(" ", "").replace("\n", "").count("x") >= 200
    assert "total" in said.stdout
    assert "research" in said.stdout


def test_a_report_fits_in_80_columns_with_colours(ledger: Path) -> None:
    said = behest(
        "report", "--store", str(ledger), "--by", "session,user,model", FORCE_COLOR="1", COLUMNS="80"
    )
    assert "\x1b[" in said.stdout

    for line in re.sub(r"\x1b\[[0-9;]*m", "", said.stdout).splitlines():
        assert len(line) <= 80, line


@pytest.mark.parametrize(
    "by", ["session", "user", "project", "model", "day", "tag:team", "stage", "user,model"]
)
def test_every_group_adds_up_to_the_providers_bill(ledger: Path, by: str) -> None:
    said = behest("report", "--store", str(ledger), "--by", by, "--json")
    data = json.loads(said.stdout)
    assert data["by"] == by.split(",")
    total = Decimal(data["total"]["cost_usd"])
    assert total == Decimal((ledger.parent / "bill").read_text())
    assert sum(Decimal(line["cost_usd"]) for line in data["lines"]) == total


def test_csv_is_csv_and_starts_no_formula(ledger: Path) -> None:
    said = behest("report", "--store", str(ledger), "--csv")
    rows = list(csv.DictReader(io.StringIO(said.stdout)))
    assert {row["session"] for row in rows} >= {"chat-ada", "会話-1", "'=cmd|'/c calc'!A0"}
    assert sum(Decimal(row["cost_usd"]) for row in rows) == Decimal((ledger.parent / "bill").read_text())


def test_reports_can_be_narrowed(ledger: Path) -> None:
    one = json.loads(behest("report", "--store", str(ledger), "--session", "会話-1", "--json").stdout)
    assert [line["session"] for line in one["lines"]] == ["会話-1"]
    none = json.loads(behest("report", "--store", str(ledger), "--until", "2020-01-01", "--json").stdout)
    assert none["lines"] == []
    said = behest("report", "--store", str(ledger), "--until", "2020-01-01")
    assert said.stdout == "No such calls (until 2020-01-01 00:00).\n"


def test_budgets_show_each_bucket(ledger: Path) -> None:
    said = behest("budgets", "--store", str(ledger))
    assert said.returncode == 0, said.stderr
    for words in ("$0.01 per session", "session chat-ada", "1 refused", "$5/day per user", "never", "█", "▒"):
        assert words in said.stdout, words
    lines = json.loads(behest("budgets", "--store", str(ledger), "--json").stdout)
    by_scope = {(line["budget"], line["scope"]): line for line in lines}
    ada = by_scope["$0.01 per session", "session chat-ada"]
    assert ada["refused"] == 1
    assert 0 < ada["spent"] <= ada["limit"] == 10_000_000
    assert by_scope["$9 per 24h rolling", ""]["held"] > 0


def test_verify_proves_and_repair_mends(ledger: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy.db"
    with sqlite3.connect(ledger) as source:
        source.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(ledger, copy)
    said = behest("verify", "--store", str(copy))
    assert said.returncode == 0, said.stderr
    assert "all sums agree" in said.stdout
    with sqlite3.connect(copy) as other:
        other.execute("UPDATE buckets SET spent = spent + 1000000000 WHERE id = 1")
    other.close()
    said = behest("verify", "--store", str(copy))
    assert said.returncode == 1
    assert "but the ledger adds up to" in said.stdout
    assert behest("repair", "--store", str(copy)).returncode == 1  # it asks, and nobody says yes
    assert behest("repair", "--store", str(copy), "--yes").returncode == 0
    assert behest("verify", "--store", str(copy)).returncode == 0


def test_prices(tmp_path: Path) -> None:
    said = behest("prices", "gpt-4o")
    assert "$2.50" in said.stdout or "$2.5" in said.stdout
    assert "genai-prices" in said.stdout
    (tmp_path / "behest.toml").write_text('[prices.own]\ninput = "1.25"\noutput = "5"\n')
    said = behest("prices", "own", cwd=tmp_path)
    assert "$1.25" in said.stdout
    assert "your own price" in said.stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("report", "--store", "nowhere.db"), "there is no ledger at nowhere.db"),
        (("budgets",), "there is no ledger at behest.db"),
        (("verify", "--store", "://"), "not a store"),
        (("prices", "no-such-model"), "No price is known"),
        (("report", "--by", "colour"), "there is no ledger"),
        (("report", "--since", "yesterday"), "is not a date"),
    ],
)
def test_mistakes_get_a_sentence_and_no_traceback(tmp_path: Path, args: tuple[str, ...], says: str) -> None:
    said = behest(*args, cwd=tmp_path)
    assert said.returncode != 0
    assert says in said.stderr
    assert "Traceback" not in said.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_group_names_those_there_are(ledger: Path) -> None:
    said = behest("report", "--store", str(ledger), "--by", "colour")
    assert said.returncode == 1
    assert "one of session, user" in said.stderr


def test_the_demo_agrees_with_the_providers_bill(tmp_path: Path) -> None:
    said = behest("demo", "--fast", "--store", str(tmp_path / "demo.db"))
    assert said.returncode == 0, said.stdout + said.stderr
    assert "agree to the nano-dollar, and no cap was passed" in said.stdout
    assert "Budget " in said.stdout
    assert behest("verify", "--store", str(tmp_path / "demo.db")).returncode == 0
    again = behest("demo", "--fast", "--store", str(tmp_path / "demo.db"))
    assert again.returncode == 1
    assert "exists already" in again.stderr


def test_the_sandbox_serves_from_the_command_line() -> None:
    import socket
    import time
    import urllib.request

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serving = subprocess.Popen(
        [sys.executable, "-m", "behest_integrations.cli", "sandbox", "--port", str(port)],
        stdout=subprocess.PIPE,
    )
    try:
        for _ in range(200):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models") as answer:
                    assert b"gpt-4o" in answer.read()
                break
            except OSError:
                time.sleep(0.05)
        else:
            raise AssertionError("it does not answer")
    finally:
        serving.terminate()
        serving.wait(10)


# ── answers that help ──────────────────────────────────────────────────────────────────


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and no store in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BEHEST_STORE", raising=False)
    return tmp_path


def ask(*args: str, code: int | None = None) -> str:
    """What a command says, to whichever stream, in this process."""
    done = CliRunner().invoke(main, args)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    assert code is None or done.exit_code == code, done.output
    return done.output


def test_help_says_whole_sentences() -> None:
    for args in (("--help",), ("keys", "--help")):
        said = ask(*args, code=0)
        assert "..." not in said.replace("[ARGS]...", "")
        for line in said.partition("Commands:")[2].strip().splitlines():
            assert len(line) <= 80
            assert line.endswith(".")


def test_every_command_that_is_listed_is_there() -> None:
    with click.Context(main) as ctx:
        for name in main.list_commands(ctx):
            command = main.get_command(ctx, name)
            assert command is not None
            assert command.help


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("reprot",), 'did you mean "report"'),
        (("keys", "lst"), 'did you mean "list"'),
        (("prices", "gpt-4o-mni"), "near: gpt-4o-mini"),
        (("prices", "gpt-4o", "--provider", "opnai"), 'did you mean "openai"'),
        (("verify", "--store", "memory://"), "ends with its program"),
        (("keys", "create", "--tenant", "t", "--project", "p", "--tier", "fre"), 'did you mean "free"'),
        (("keys", "revoke", "abc"), "there is no ledger at behest.db"),
        (("report", "--since", "2026-02-01", "--until", "2026-01-01"), "--since is a time before --until"),
        (("report", "--timezone", "Mars/Olympus"), "Mars/Olympus"),
        (("sandbox", "--port", "99999"), "99999"),
        (("sandbox", "--latency", "-1"), "-1"),
        (("demo", "--store", "postgresql://localhost/behest"), "in a file"),
        (("run", "nowhere.py"), "does not exist"),
    ],
)
def test_what_is_wrong_is_answered_with_what_is_right(here: Path, args: tuple[str, ...], says: str) -> None:
    said = ask(*args)
    assert says in said
    assert list(here.iterdir()) == []


def test_a_price_that_is_asked_for_is_no_call_that_was_refused(here: Path) -> None:
    said = ask("prices", "my-model", code=1)
    assert "refused" not in said
    assert "Meter(" not in said
    toml = said.partition("as text:")[2].partition("or name")[0]
    (here / "behest.toml").write_text(toml)
    assert "$0.15" in ask("prices", "my-model", code=0)


def test_a_price_is_told_whole() -> None:
    said = ask("prices", "gpt-5.4", code=0)
    for words in ("context window", "genai-prices", "standard", "priority", "prompt over", "cached input"):
        assert words in said
    assert "…" not in said
    assert max(map(len, said.splitlines())) <= 80


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (("gpt-4o",), "no price for:    input audio, output audio"),
        (("sonar-pro", "--provider", "perplexity"), "a request, context low"),
        (("claude-opus-4-6",), 'speed "fast":'),
        (("gemini-2.5-flash",), "input audio"),
        (("text-embedding-3-small",), "has no price: the model writes none"),
        (("openai/gpt-4o",), "gpt-4o at openai"),
    ],
)
def test_what_else_a_price_hangs_on_is_told(model: tuple[str, ...], says: str) -> None:
    said = ask("prices", *model, code=0)
    assert says in said
    assert "$100 " not in said  # what is booked for a class without a rate is no price of it


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ('budget = ["$5"]', "budget: there is no such setting; did you mean budgets?"),
        ("[prices.m]\ninput = 0.15", 'prices.m.input: write it as text: input = "0.15"'),
        (
            '[prices.m]\ninput = "1"\ninptu = "1"',
            "prices.m.inptu: there is no such setting; did you mean input?",
        ),
        ('[prices.m]\noutput = "1"', "prices.m.input: it is missing"),
        ("budgets = [5]", "budgets.0: it must be text, in quotes, or a table"),
        ('budgets = [{ amount = "$5", perr = ["user"] }]', "did you mean per?"),
        ('budgets = "$5"', "budgets: it must be a list"),
        ('on_unknown = "hope"', "on_unknown: one of 'assume'"),
        ("[gateway.provider.x]", "provider: there is no such setting; did you mean providers?"),
        (
            '[gateway.providers.x]\nbase_url = "http://x"\napi_key = "sk-secret"',
            "providers.x.api_key: there is no such setting; did you mean api_key_env?",
        ),
        (
            '[gateway.providers.x]\nbase_url = "http://x"\napi_key_env = "sk-secret"',
            "providers.x.api_key_env",
        ),
    ],
)
def test_a_file_that_is_wrong_is_told_in_its_own_names(here: Path, toml: str, says: str) -> None:
    (here / "behest.toml").write_text(toml)
    said = ask("keys", "create", "--tenant", "t", "--project", "p", code=1)
    assert says in said
    for inner in ("Extra inputs", "_PriceTable", "_BudgetTable", "int_from_float", "sk-secret"):
        assert inner not in said


def test_looking_for_keys_makes_no_ledger(here: Path) -> None:
    assert "there is no ledger at behest.db" in ask("keys", "list", code=0)
    assert json.loads(ask("keys", "list", "--json", code=0)) == []
    assert list(here.iterdir()) == []


def test_a_key_can_be_revoked_by_its_text(here: Path) -> None:
    key = ask("keys", "create", "--tenant", "t", "--project", "p", code=0).strip().splitlines()[-1]
    said = ask("keys", "revoke", key, code=0)
    assert "is revoked" in said
    assert key not in said


def test_one_order_of_stores_for_every_command(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--store, then the environment, then the file, then behest.db."""
    from behest_integrations.config import load
    from behest_integrations.gateway.server import Plan

    def keys_in() -> str:
        ask("keys", "create", "--tenant", "t", "--project", "p", code=0)
        (made,) = here.glob("*.db")
        for file in here.glob("*.db*"):
            file.unlink()
        return made.name

    def served() -> str:
        plan = Plan("behest.toml" if Path("behest.toml").exists() else None, store.url_given(None), True)
        with plan.meter(*plan.load()) as meter:
            name = Path(meter.ledger.url.removeprefix("sqlite:///")).name
        for file in here.glob("*.db*"):
            file.unlink()
        return name

    assert keys_in() == served() == "behest.db"
    (here / "behest.toml").write_text('store = "sqlite:///file.db"')
    assert keys_in() == served() == "file.db"
    monkeypatch.setenv("BEHEST_STORE", "sqlite:///environment.db")
    assert keys_in() == served() == "environment.db"
    assert load().arguments()["store"] == "sqlite:///environment.db"
    ask("keys", "create", "--tenant", "t", "--project", "p", "--store", "said.db", code=0)
    assert (here / "said.db").exists()


def test_a_report_in_a_pipe_is_80_columns_wide(ledger: Path) -> None:
    for by in ("session", "session,user,model", "user,model,project"):
        said = behest("report", "--store", str(ledger), "--by", by, COLUMNS="80").stdout
        assert max(map(len, said.splitlines())) <= 80, said
        assert "…" not in said
    said = behest("budgets", "--store", str(ledger), COLUMNS="80").stdout
    assert max(map(len, said.splitlines())) <= 80, said


def test_no_number_is_cut_however_narrow_it_is(ledger: Path) -> None:
    wide = behest("report", "--store", str(ledger), COLUMNS="200").stdout
    total = next(line for line in wide.splitlines() if line.startswith("total")).split()
    narrow = behest("report", "--store", str(ledger), COLUMNS="30").stdout
    assert next(line for line in narrow.splitlines() if line.startswith("total")).split() == total


def test_a_damaged_ledger_is_a_sentence(ledger: Path, tmp_path: Path) -> None:
    """Each page in turn is zeros; what reads it says so, or did not need it."""
    with sqlite3.connect(ledger) as source:
        source.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    source.close()
    whole = ledger.read_bytes()
    size = int.from_bytes(whole[16:18], "big")
    damaged = tmp_path / "damaged.db"
    told = 0
    for start in range(0, len(whole), size):
        for command in ("report", "verify", "budgets"):
            for leftover in tmp_path.glob("damaged.db*"):
                leftover.unlink()
            damaged.write_bytes(whole[:start] + bytes(size) + whole[start + size :])
            said = ask(command, "--store", str(damaged))
            told += "damaged" in said or "malformed" in said
    assert told > 10


def test_advice_in_a_shell_is_a_line_of_the_file() -> None:
    for error in (
        UnknownPrice('it\'s "mine" (new)', None),
        Unbounded("web_search", "a search"),
        Unbounded("images", "an image", unit="tokens"),
    ):
        said = in_shell(str(error))
        assert "Meter(" not in said
        lines = re.findall(r"`([^…]+?)`", said)
        assert lines
        for line in lines:
            Config.model_validate(tomllib.loads(line)).arguments()
    assert in_shell("try Meter(wait=30).").startswith("try `wait = 30`.")
    assert in_shell("Meter( is a class") == "Meter( is a class"


def test_a_report_of_another_package_is_a_command(ledger: Path, tmp_path: Path) -> None:
    """One file and one entry point, as `reports.shown` says; no file of ours is touched."""
    (tmp_path / "toy_reports.py").write_text(
        "import sqlalchemy as sa\n"
        "from behest_integrations.ledger import schema\n"
        "from behest_integrations.reports import Shown, reading\n"
        "from behest_integrations.reports.look import rows_table\n"
        "def dearest(ledger, asked):\n"
        "    'The dearest calls.'\n"
        "    e = schema.entries\n"
        "    query = sa.select(e.c.session_id, e.c.cost).order_by(e.c.cost.desc()).limit(2)\n"
        "    with reading(ledger) as connection:\n"
        "        rows = [dict(row) for row in connection.execute(query).mappings()]\n"
        "    return Shown(rows, lambda: rows_table(rows))\n"
    )
    info = tmp_path / "toy_reports-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-reports\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[behest_integrations.reports]\ndearest = toy_reports:dearest\nbroken = toy_reports:nothing\n"
        "report = toy_reports:dearest\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    said = behest("--help", PYTHONPATH=path)
    assert "The dearest calls." in said.stdout
    assert "cannot be loaded" in said.stdout
    assert "What was spent" in said.stdout
    rows = json.loads(behest("dearest", "--store", str(ledger), "--json", PYTHONPATH=path).stdout)
    assert len(rows) == 2
    assert "session_id" in behest("dearest", "--store", str(ledger), PYTHONPATH=path).stdout
    assert "no ledger" in behest("dearest", "--store", "nowhere.db", PYTHONPATH=path).stderr


def test_the_old_place_of_print_report_still_has_it() -> None:
    from behest_integrations import reports

    with pytest.warns(DeprecationWarning, match="behest_integrations.reports"):
        from behest_integrations.reports.tables import print_report
    assert print_report is reports.print_report
