"""What a long history takes: reports, pages, an export, proofs, pruning, a copy; over SQLite and PostgreSQL.

`BEHEST_ENTRIES=1000000 pytest -m benchmark -n 0 -s tests/benchmarks/test_books_speed.py`; default: 200,000.
`-k sqlite` or `-k postgresql` for one of them. The median of several: seconds of the clock, which other work
on the machine makes longer; of this process's CPU; and of the server's. The most memory that the process had.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
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
from behest_integrations.reports.standing import standings

pytestmark = pytest.mark.benchmark
ENTRIES = int(os.environ.get("BEHEST_ENTRIES", "200000"))


def timed(what: str, work: Callable[[], Any], target: str = "", *, times: int = 1) -> float:
    """Print what it takes; seconds of CPU."""
    took = []
    for _ in range(times):
        server, clock, cpu = _server(), time.perf_counter(), time.process_time()
        work()
        took.append((time.perf_counter() - clock, time.process_time() - cpu, _server() - server))
    clock, cpu, server = (statistics.median(values) for values in zip(*took, strict=True))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"  {what:44} {clock:8.3f} s   CPU {cpu:8.3f} s   server {server:7.3f} s   {most:5.0f} MB   {target}",
        flush=True,
    )
    return float(cpu + server)


def _server() -> float:
    return postgres.server_cpu() if postgres.server.cache_info().currsize else 0.0


def command(*args: str) -> str:
    said = CliRunner().invoke(main, list(args))
    assert said.exit_code == 0, said.output
    return said.output


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A year of entries, closed and sealed."""
    path = tmp_path_factory.mktemp("books") / "b.db"
    fill(path, ENTRIES, days=365)
    print(f"\n{ENTRIES:,} entries of a year, SQLite ({path.stat().st_size / 1e6:,.0f} MB)")
    ledger = open_store(f"sqlite:///{path}")
    timed("blocks closed and sealed, in one go", lambda: close_blocks(ledger, ledger.now_ms()))
    ledger.close()
    print(f"  with blocks: {path.stat().st_size / 1e6:,.0f} MB")
    return path


def test_a_long_history_in_sqlite(books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{shutil.copy(books, tmp_path / 'b.db')}"
    rolled = open_store(url)
    fast = timed("report by model, by blocks", lambda: report_of(rolled, ("model",), Asked()))
    rolled.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "read_blocks", lambda connection: Blocks((), NONE, ()))
        raw = open_store(url)
        slow = timed("report by model, entry by entry", lambda: report_of(raw, ("model",), Asked()))
        raw.close()
    assert fast * 4 < slow or ENTRIES < 100_000
    measure(url)


def test_a_long_history_in_postgresql(books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    there = postgres.new_url()
    print(f"{ENTRIES:,} entries, PostgreSQL")
    timed("behest db copy, read back and proved", lambda: command("db", "copy", str(books), there))
    measure(there)


def measure(url: str) -> None:
    ledger = open_store(url)
    now = datetime.now(timezone.utc)
    month = Asked(since=now - timedelta(days=30), now=now)
    goal = "(target at 1,000,000: 0.2 s)"
    reports: dict[str, Callable[[], Any]] = {
        "report by user,model of 30 days": lambda: report_of(ledger, ("user", "model"), month),
        "the 50 dearest sessions": lambda: ranking(ledger, "session", Asked(), limit=50),
        "a chart of a year by day": lambda: series(ledger, Asked(), DAY),
        "the same, in Berlin": lambda: series(ledger, Asked(zone="Europe/Berlin"), DAY),
        "how budgets stand": lambda: standings(ledger, Asked()),
    }
    for by in ("user", "model", "day", "project", "stage", "tag:feature", "session"):
        reports[f"report by {by}"] = lambda by=by: report_of(ledger, (by,), Asked())  # type: ignore[misc]
    for name, report in reports.items():
        report()
        timed(name, report, goal, times=5)
    with TestClient(application(ledger, "UTC", None, "b.db"), base_url="http://localhost") as pages:
        for range_ in ("30d", "all"):

            def page(range_: str = range_) -> None:
                assert pages.get(f"/dashboard?range={range_}").status_code == 200

            page()
            timed(f"the dashboard's overview, {range_}", page, goal, times=5)
    ledger.close()
    timed("behest verify, the first", lambda: command("verify", "--store", url))
    timed("behest verify, again", lambda: command("verify", "--store", url))
    timed("behest verify --sealed", lambda: command("verify", "--sealed", "--store", url))
    timed(
        "behest export --format csv",
        lambda: command("export", "--format", "csv", "-o", "e.csv", "--store", url),
    )
    timed(
        "behest prune of 65 days", lambda: command("prune", "--older-than", "300d", "--yes", "--store", url)
    )
    timed("behest verify, of what was pruned", lambda: command("verify", "--store", url))
