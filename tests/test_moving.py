"""`behest db copy`: all of a ledger is in the other database afterwards, or nothing of it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import postgres
import pytest
from click.testing import CliRunner
from support import HELLO, client

from behest_integrations import BudgetExceeded, Meter, Usage
from behest_integrations.cli import main
from behest_integrations.gateway.keys import KeyStore
from behest_integrations.ledger import open_store
from behest_integrations.reports import report, verify
from behest_integrations.sandbox import Sandbox
from behest_integrations.wire import RequestBound

BUDGETS = ["$0.01 per session", "5 calls/day per user", "9k tokens per 24h rolling"]
ODD = "a\\b\tc\nd\re\x01\x0b\\N"
"""What the lines of a COPY say in other ways."""


@pytest.fixture
def old(tmp_path: Path) -> str:
    """A ledger with a bit of everything."""
    url = f"sqlite:///{tmp_path}/old.db"
    with Sandbox() as sandbox, Meter(url, budgets=BUDGETS) as meter:
        metered = meter.openai(client(sandbox))
        for who in ("ada", "会話"):
            with meter.session(f"of {who}", user=who, tags={"team": f"{who}'s"}, project="p"):
                for _ in range(2):
                    metered.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=20)
                with meter.budget("$1", name="part"):
                    metered.chat.completions.create(model="gpt-4o-mini", messages=HELLO, max_tokens=20)
        meter.set_limit("5 calls/day per user", "3 calls", user="ada", tenant=None)
        meter.set_limit("9k tokens per 24h rolling", "8k tokens")
        meter.reserve(meter.plan("chat", "gpt-4o", RequestBound(100, output_limit=0)))  # in flight
        KeyStore(meter.ledger).create(tenant="t", project="p", name="one")
    with sqlite3.connect(tmp_path / "old.db") as file:
        file.execute("UPDATE entries SET note = ?, stage = ? WHERE id = 1", (ODD, "a\\N"))
    file.close()
    return url


def behest(*args: str) -> Any:
    return CliRunner().invoke(main, list(args))


def books(url: str) -> Any:
    ledger = open_store(url)
    try:
        assert verify(ledger) == []
        rows = ledger.submit(lambda rows: rows.everything())
        sums = [
            report(ledger, (by,)).lines for by in ("session", "user", "model", "day", "stage", "tag:team")
        ]
        return vars(rows), sums, ledger.keys().all()
    finally:
        ledger.close()


def test_all_of_it_goes_to_postgresql_and_back(old: str, tmp_path: Path) -> None:
    there, back = postgres.new_url(), f"sqlite:///{tmp_path}/back.db"
    for source, target in ((old, there), (there, back)):
        said = behest("db", "copy", source, target)
        assert said.exit_code == 0, said.output
        assert "all sums agree" in said.output
    whole = books(old)
    assert whole[0]["holds"]
    assert whole[0]["own_limits"]
    assert books(there) == whole
    assert books(back) == whole
    with Meter(there, budgets=BUDGETS) as meter:  # and goes on there
        with meter.session("of ada", user="ada"):
            plan = meter.plan("chat", "gpt-4o", RequestBound(1, output_limit=0))
        with pytest.raises(BudgetExceeded, match="3 calls/day per user"):
            meter.reserve(plan)
        assert verify(meter.ledger) == []


def test_a_ledger_with_books_of_its_own_is_not_copied_over(old: str) -> None:
    there = postgres.new_url()
    with Meter(there, budgets=["1 calls"]) as meter:
        meter.reserve(meter.plan("chat", "m", RequestBound(1, output_limit=0))).settle(Usage(1))
    before = books(there)
    said = behest("db", "copy", old, there)
    assert said.exit_code == 1
    assert "has books of its own" in said.output
    assert books(there) == before


def test_what_cannot_be_written_whole_is_not_written_at_all(old: str) -> None:
    there = postgres.new_url()
    file = sqlite3.connect(old.removeprefix("sqlite:///"))
    file.execute("UPDATE entries SET input_tokens = 'many' WHERE id = (SELECT max(id) FROM entries)")
    file.commit()
    file.close()
    said = behest("db", "copy", old, there)
    assert said.exit_code == 1
    assert "Traceback" not in said.output
    ledger = open_store(there)
    assert ledger.snapshot() == ([], [], [])
    ledger.close()
    with sqlite3.connect(old.removeprefix("sqlite:///")) as file:
        file.execute("UPDATE entries SET input_tokens = 8 WHERE input_tokens = 'many'")
    file.close()
    said = behest("db", "copy", old, there)  # and again, when it can be
    assert said.exit_code == 0, said.output
    assert books(there) == books(old)


def test_a_ledger_that_is_not_there(tmp_path: Path) -> None:
    said = behest("db", "copy", f"{tmp_path}/none.db", postgres.new_url())
    assert "there is no ledger at" in said.output
