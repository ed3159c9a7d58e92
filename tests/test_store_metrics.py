"""What is told of the store's own work: as OpenTelemetry's metrics, as Prometheus', and in the log."""

from __future__ import annotations

import logging
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import postgres
import psycopg
import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from behest_integrations import BudgetExceeded, Meter, Price, Usage
from behest_integrations.engine import telemetry as names
from behest_integrations.engine.holds import Hold
from behest_integrations.engine.outcomes import Outcome
from behest_integrations.gateway.metrics import Metrics
from behest_integrations.ledger import open_store
from behest_integrations.wire import RequestBound

PRICES = {"m": Price(input=1, output=1)}
STORES = ("memory", "sqlite", "postgres")


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return postgres.new_url()
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/b.db"


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(metrics, "get_meter", provider.get_meter)
    yield reader
    provider.shutdown()


def told(reader: InMemoryMetricReader) -> dict[str, float]:
    """Sums, and counts of histograms, of OpenTelemetry's metrics of the store; names as METRICS has them."""
    found: dict[str, float] = {}
    data: Any = reader.get_metrics_data()
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        if not metric.name.startswith("behest."):
            continue
        unit, attributes = names.METRICS[metric.name]
        assert metric.unit == unit
        for point in metric.data.data_points:
            assert set(point.attributes) <= attributes
            words = [str(point.attributes[a]) for a in sorted(point.attributes) if a.startswith("behest.")]
            found[" ".join([metric.name, *words])] = getattr(point, "value", getattr(point, "count", None))
    return found


def scraped(gateway: Metrics) -> dict[str, float]:
    """The same of Prometheus'."""
    lines = re.findall(r"(?m)^(behest_\w+)(?:{([^}]*)})? (\S+)$", gateway.text().decode())
    return {" ".join([name, *re.findall(r'"([^"]*)"', said)]): float(value) for name, said, value in lines}


def hold(meter: Meter, tokens: int = 100, **whose: Any) -> Hold:
    bound = RequestBound(tokens, output_limit=tokens)
    return meter.reserve(meter.plan("chat", "m", bound, provider="openai", **whose))


def test_what_the_store_does_is_counted_and_comes_back_to_nothing(
    store: str, reader: InMemoryMetricReader
) -> None:
    with Meter(store, budgets=["2000 tokens"], prices=PRICES, telemetry=True, wait=0, lease=0.2) as meter:
        gateway = Metrics(meter)
        meter.watch_store(gateway.store)
        first, second, third, lost = (hold(meter) for _ in range(4))
        replaced = meter.reserve(
            meter.plan("chat", "m", RequestBound(100, output_limit=100), provider="openai", outer=third)
        )
        assert third.last is replaced
        assert told(reader)["behest.holds"] == scraped(gateway)["behest_holds_open"] == 4
        with pytest.raises(BudgetExceeded):
            hold(meter, 900)
        first.settle(Usage(1500, 20))  # more than its bound
        first.settle(Usage(1500, 20))
        second.release()
        replaced.post(Outcome("assumed", note="no answer"))
        meter.flush()
        with pytest.raises(BudgetExceeded):
            hold(meter, 900)
        assert told(reader)["behest.holds"] == scraped(gateway)["behest_holds_open"] == 1
        time.sleep(0.25)
        assert meter.sweep() == 1
        lost.release()  # too late: it was taken for dead
        meter.flush()
        said, seen = told(reader), scraped(gateway)
        assert said["behest.holds"] == seen["behest_holds_open"] == 0
        assert said.get("behest.store.queue", 0) == seen["behest_store_queue"] == 0
        assert said["behest.holds.expired"] == seen["behest_expired_holds_total"] == 1
        assert said["behest.calls.assumed"] == seen["behest_assumed_calls_total"] == 2
        assert said["behest.calls.over_bound tokens"] == seen["behest_over_bound_total tokens"] == 1
        assert seen["behest_budget_refusals_total busy tokens"] == 1
        assert seen["behest_budget_refusals_total exhausted tokens"] == 1
        # Each reserve and each end was asked of the store once: five and two refused; two refused ones
        # may be asked twice, for holds of the dead might be in the way.
        reserves = said["behest.store.operation.duration reserve"]
        assert reserves == seen["behest_store_operation_seconds_count reserve"]
        assert 7 <= reserves <= 9
        settles = said["behest.store.operation.duration settle"]
        assert settles == seen["behest_store_operation_seconds_count settle"] == 4
        transactions = said["behest.store.transaction.duration"]
        assert transactions >= seen["behest_store_transaction_seconds_count"] >= reserves
        assert seen["behest_store_transaction_operations_sum"] >= reserves + settles
        assert not [name for name in said if name.startswith("behest.store.retries")]


def test_what_is_run_again_is_counted_by_why(reader: InMemoryMetricReader) -> None:
    with (
        Meter(postgres.new_url(), budgets=["$1"], prices=PRICES, telemetry=True) as meter,
        psycopg.connect(postgres.server(), autocommit=True) as other,
    ):
        gateway = Metrics(meter)
        meter.watch_store(gateway.store)
        hold(meter).release()
        link: Any = getattr(meter.ledger, "_link")  # noqa: B009
        other.execute("SELECT pg_terminate_backend(%s)", [link.backend])
        hold(meter).release()
        assert told(reader)["behest.store.retries lost"] >= 1
        assert scraped(gateway)["behest_store_retries_total lost"] >= 1


def test_slices_that_are_out_are_counted(
    reader: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = open_store(postgres.new_url())
    monkeypatch.setattr(ledger, "contended", _Everything())
    with Meter(ledger, budgets=["$100"], prices=PRICES, telemetry=True, leases=True) as meter:
        gateway = Metrics(meter)
        meter.watch_store(gateway.store)
        deadline = time.monotonic() + 10
        while scraped(gateway)["behest_slices_out"] < 1 and time.monotonic() < deadline:
            hold(meter).release()
        assert told(reader)["behest.slices"] == scraped(gateway)["behest_slices_out"] == 1
        while not (drawn := hold(meter)).draw and time.monotonic() < deadline:
            drawn.release()
        assert told(reader)["behest.holds"] == scraped(gateway)["behest_holds_open"] == 1
        drawn.release()
        assert told(reader)["behest.holds"] == scraped(gateway)["behest_holds_open"] == 0
        meter.flush()
        meter.ledger.flush()
        assert told(reader)["behest.slices"] == scraped(gateway)["behest_slices_out"] == 0


class _Everything:
    def __contains__(self, key: object) -> bool:
        return True


def test_a_slow_store_is_logged_once_a_minute(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "b.db"
    with Meter(f"sqlite:///{file}", budgets=["$1"], prices=PRICES, store_slow=0.2) as meter:
        hold(meter).release()
        caplog.clear()
        for _ in range(2):
            other = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            ends = threading.Timer(0.4, other.rollback)
            ends.start()
            hold(meter).release()
            ends.join()
            other.close()
    said = [r.getMessage() for r in caplog.records if "is slow" in r.getMessage()]
    assert len(said) == 1
    found = re.search(r"of 1 operation took (\d\.\d\d) s.*store_slow is 0\.2 s.*Look at", said[0])
    assert found is not None
    assert float(found[1]) >= 0.2
    assert str(file) in said[0]


def test_a_store_that_is_quick_enough_is_not(store: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Meter(store, budgets=["$1"], prices=PRICES, store_slow=60) as meter:
        hold(meter).release()
    assert "is slow" not in caplog.text
