"""The `behest` command: what a person who answers for the bill sees, and what a script reads."""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from support import HELLO, client, until_exhausted

from behest_integrations import Meter, session
from behest_integrations.sandbox import Sandbox
from behest_integrations.wire import RequestBound

IDS = [("chat-ada", "ada"), ("会話-1", "bob"), ("=cmd|'/c calc'!A0", "eve"), ("x" * 200, "long")]


def behest(*args: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "behest_integrations.cli", *args],
        capture_output=True, text=True, cwd=cwd, timeout=120, encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **env},
    )  # fmt: skip


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
    import re

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
    assert said.stdout == "No calls yet.\n"


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
