"""What a long history takes: reports, a page, an export, proofs, a copy; over SQLite and PostgreSQL.

`BEHEST_ENTRIES=1000000 pytest -m benchmark -n 0 -s tests/benchmarks/test_books_speed.py`; default: 200,000.
Seconds of the clock, and of this process's CPU (of PostgreSQL's server there are none in it).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parent.parent))
import postgres
from big_ledger import fill

from behest_integrations.cli import main
from behest_integrations.cli.dashboard import application
from behest_integrations.ledger import open_store
from behest_integrations.ledger.blocks import NONE, Blocks
from behest_integrations.ledger.closing import close_blocks
from behest_integrations.reports import Asked, lines
from behest_integrations.reports.ranking import ranking
from behest_integrations.reports.series import DAY, series
from behest_integrations.reports.spending import report_of

pytestmark = pytest.mark.benchmark
ENTRIES = int(os.environ.get("BEHEST_ENTRIES", "200000"))


def timed(what: str, work: Callable[[], Any], target: str = "") -> float:
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    spent = time.process_time() - cpu
    took = time.perf_counter() - clock
    print(f"  {what:44} {took:8.3f} s   CPU {spent:8.3f} s   {target}", flush=True)
    return spent


def command(*args: str) -> str:
    said = CliRunner().invoke(main, list(args))
    assert said.exit_code == 0, said.output
    return said.output


def test_a_long_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "b.db"
    fill(path, ENTRIES, days=365)
    print(f"\n{ENTRIES:,} entries of a year, SQLite ({path.stat().st_size / 1e6:,.0f} MB)")
    ledger = open_store(f"sqlite:///{path}")
    timed("blocks closed and sealed, in one go", lambda: close_blocks(ledger, ledger.now_ms()))
    print(f"  with blocks: {path.stat().st_size / 1e6:,.0f} MB")
    ledger.close()
    measure(f"sqlite:///{path}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "read_blocks", lambda connection: Blocks((), NONE, ()))
        raw = open_store(f"sqlite:///{path}")
        slow = timed("report by model, entry by entry", lambda: report_of(raw, ("model",), Asked()))
        raw.close()
    rolled = open_store(f"sqlite:///{path}")
    fast = timed("report by model, by blocks", lambda: report_of(rolled, ("model",), Asked()))
    rolled.close()
    assert fast * 4 < slow or ENTRIES < 100_000
    there = postgres.new_url()
    print(f"{ENTRIES:,} entries, PostgreSQL")
    timed("behest db copy, read back and proved", lambda: command("db", "copy", str(path), there))
    measure(there)


def measure(url: str) -> None:
    ledger = open_store(url)
    now = datetime.now(timezone.utc)
    month = Asked(since=now - timedelta(days=30), now=now)
    goal = "(target at 1,000,000: 0.2 s)"
    for by in ("session", "user", "model", "day", "tag:feature"):
        timed(f"report by {by}", lambda by=by: report_of(ledger, (by,), Asked()), goal)
    timed("report by user,model of 30 days", lambda: report_of(ledger, ("user", "model"), month), goal)
    timed("the 50 dearest sessions", lambda: ranking(ledger, "session", Asked(), limit=50), goal)
    timed(
        "a chart of a year by day, in Berlin", lambda: series(ledger, Asked(zone="Europe/Berlin"), DAY), goal
    )
    with TestClient(application(ledger, "UTC", None, "b.db"), base_url="http://localhost") as pages:
        for range_ in ("30d", "all"):

            def page(range_: str = range_) -> None:
                assert pages.get(f"/dashboard?range={range_}").status_code == 200

            page()
            timed(f"the dashboard's overview, {range_}", page, "(target: 1 s)")
    ledger.close()
    timed("behest verify, the first", lambda: command("verify", "--store", url))
    timed("behest verify, again", lambda: command("verify", "--store", url))
    timed("behest verify --sealed", lambda: command("verify", "--sealed", "--store", url))
    timed(
        "behest export --format csv",
        lambda: command("export", "--format", "csv", "-o", "e.csv", "--store", url),
    )
