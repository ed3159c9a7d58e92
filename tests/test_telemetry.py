"""What an OpenTelemetry SDK is told: names of one table, a span for each call, no id on a metric."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry import metrics, trace
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import generate_latest
from support import HELLO, aclient, arun, client

from behest_integrations import BudgetExceeded, Meter, Price, Usage
from behest_integrations.engine import telemetry as names
from behest_integrations.engine.outcomes import Outcome
from behest_integrations.gateway.metrics import Metrics
from behest_integrations.rules.budgets import to_nano
from behest_integrations.sandbox import Sandbox
from behest_integrations.wire import RequestBound

PRICES = {"m": Price(input="1", output="1")}


class Told:
    """What the SDK has been told."""

    def __init__(self) -> None:
        self.spans_in = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        self.tracing = TracerProvider()
        self.tracing.add_span_processor(SimpleSpanProcessor(self.spans_in))
        self.metering = MeterProvider([self.reader])

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.spans_in.get_finished_spans()

    def points(self) -> list[tuple[str, str, dict[str, Any], Any]]:
        """Each metric's name and unit, and the attributes and data of each of its points."""
        data = self.reader.get_metrics_data()
        return [
            (metric.name, metric.unit, dict(point.attributes), point)
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
        ]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    made = Told()
    monkeypatch.setattr(trace, "get_tracer", made.tracing.get_tracer)
    monkeypatch.setattr(metrics, "get_meter", made.metering.get_meter)
    yield made
    made.tracing.shutdown()
    made.metering.shutdown()


def check(told: Told, *ids: str) -> None:
    """All names are of the table, and no id is on a metric."""
    for span in told.spans:
        assert set(span.attributes or ()) <= names.SPAN_ATTRIBUTES | {"of another"}
    for name, unit, attributes, _ in told.points():
        assert unit == names.METRICS[name][0]
        assert set(attributes) <= names.METRICS[name][1]
        assert not set(attributes.values()) & set(ids)


def test_each_call_is_a_span_with_what_the_provider_billed(told: Told, store: str) -> None:
    with Sandbox() as sandbox, Meter(store, budgets=["$1"], telemetry=True) as meter:
        metered = meter.openai(client(sandbox), provider="openai")
        with (
            told.tracing.get_tracer("app").start_as_current_span("work"),
            meter.session("conv-1", user="ada", project="p", tenant="t"),
        ):
            metered.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=20)
            stream = metered.chat.completions.create(
                model="gpt-4o", messages=HELLO, max_tokens=20, stream=True
            )
            list(stream)

            async def call() -> None:
                await meter.openai(aclient(sandbox), provider="openai").chat.completions.create(
                    model="gpt-4o", messages=HELLO, max_tokens=20
                )

            arun(call())
        meter.flush()
        *calls, work = told.spans
        assert [span.name for span in calls] == ["chat gpt-4o"] * 3
        for span in calls:
            said = dict(span.attributes or {})
            assert span.parent is not None
            assert span.parent.span_id == work.context.span_id
            assert said[names.CONVERSATION] == "conv-1"
            assert (said[names.USER], said[names.PROJECT], said[names.TENANT]) == ("ada", "p", "t")
            assert said[names.STATUS] == "settled"
            assert (span.end_time or 0) >= (span.start_time or 0)
        spent = sum(round((span.attributes or {})[names.COST] * 10**9) for span in calls)  # type: ignore[operator]
        assert spent == to_nano(sandbox.bill.total())
        check(told, "conv-1", "ada", "p", "t")
        tokens = {a[names.TOKEN_TYPE]: p.sum for n, _, a, p in told.points() if n.endswith("token.usage")}
        billed = sandbox.bill.lines
        assert tokens["input"] == sum(line.input_tokens for line in billed)
        assert tokens["output"] == sum(line.output_tokens for line in billed)
        of_calls = {name for name in names.METRICS if name.startswith("gen_ai.")}
        of_store = {f"behest.store.{n}" for n in ("operation.duration", "transaction.duration")}
        of_store |= {"behest.store.transaction.operations", "behest.holds"}
        assert {n for n, *_ in told.points()} - {"behest.store.queue"} == of_calls | of_store


def test_a_span_that_another_instrumentation_has_made_is_told_more_and_no_second_is_made(
    told: Told, store: str
) -> None:
    with Meter(store, budgets=["$1"], prices=PRICES, telemetry=True) as meter:
        tracer = told.tracing.get_tracer("another")
        with tracer.start_as_current_span("chat m", attributes={names.OPERATION: "chat", "of another": 1}):
            hold = meter.reserve(meter.plan("chat", "m", RequestBound(10, output_limit=10)))
            hold.settle(Usage(10, 5))
        with tracer.start_as_current_span("chat m", attributes={names.OPERATION: "chat"}):
            late = meter.reserve(meter.plan("chat", "m", RequestBound(10, output_limit=10)))
        late.settle(Usage(10, 5))  # its span is over
        first, second = told.spans
        assert (first.attributes or {})["of another"] == 1
        assert (first.attributes or {})[names.COST] == 0.000015
        assert names.COST not in (second.attributes or {})
        check(told)


def test_refusals_failures_and_calls_that_never_left(told: Told, store: str) -> None:
    with Meter(store, budgets=["$0.001 per user"], prices=PRICES, wait=0, telemetry=True) as meter:
        with meter.session("s", user="ada"):
            plan = meter.plan("chat", "m", RequestBound(500, output_limit=0))
            meter.reserve(plan).end(Outcome("failed"))
            meter.reserve(meter.plan("chat", "m", RequestBound(500, output_limit=0))).release()
            meter.reserve(meter.plan("chat", "m", RequestBound(900, output_limit=0))).end(Outcome("assumed"))
            with pytest.raises(BudgetExceeded):
                meter.reserve(meter.plan("chat", "m", RequestBound(500, output_limit=0)))
        statuses = [(span.attributes or {})[names.STATUS] for span in told.spans]
        assert statuses == ["failed", "assumed"]
        assert all(not span.status.is_ok for span in told.spans)
        (refused,) = [(a, p.value) for n, _, a, p in told.points() if n == "behest.refusals"]
        named = {names.OPERATION: "chat", names.REQUEST_MODEL: "m", names.REASON: "exhausted"}
        assert refused == ({**named, names.UNIT: "usd"}, 1)
        check(told, "s", "ada")


def test_models_on_metrics_are_so_many(told: Told) -> None:
    with Meter("memory://", budgets=["9M tokens"], telemetry=True) as meter:
        for n in range(names._MOST_MODELS + 20):
            meter.reserve(meter.plan("chat", f"m{n}", RequestBound(5, output_limit=5))).settle(Usage(5, 5))
        models = {a[names.REQUEST_MODEL] for _, _, a, _ in told.points() if names.REQUEST_MODEL in a}
        assert len(models) == names._MOST_MODELS + 1
        assert names.OTHER in models


def test_it_is_off_unless_asked_for_and_then_nothing_of_it_is_imported() -> None:
    code = (
        "import sys; from behest_integrations import Meter; Meter('memory://');"
        "print(any(n.startswith('opentelemetry') or n.endswith('.telemetry') for n in sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"


GRAFANA = Path(__file__).parent.parent / "quickstarts" / "grafana"
_OF_PROMQL = {
    "sum", "by", "rate", "increase", "histogram_quantile", "le", "h", "s", "m", "d", "__rate_interval",
}  # fmt: skip


def test_grafanas_dashboard_and_rules_read_metrics_and_labels_that_exist() -> None:
    reader = PrometheusMetricReader()
    provider = MeterProvider([reader])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "get_meter", provider.get_meter)
        with Meter("memory://", budgets=["$0.001"], prices=PRICES, wait=0, telemetry=True) as meter:
            hold = meter.reserve(
                meter.plan("chat", "m", RequestBound(500, output_limit=0), provider="openai")
            )
            gateway = Metrics(meter)
            meter.count_calls(gateway.ended)
            meter.watch_store(gateway.store)
            hold.settle(Usage(500))
            with pytest.raises(BudgetExceeded):
                meter.reserve(meter.plan("chat", "m", RequestBound(900, output_limit=0)))
            gateway.refused("x")
            gateway.attempt("p", "200")
            gateway.first_byte("chat", 1)
            gateway.answered("chat", 1)
            gateway.store.retried("lost")
            gateway.store.over("usd")
            said = generate_latest().decode() + gateway.text().decode()
    provider.shutdown()
    series = {
        name: set(re.findall(r"(\w+)=", labels)) for name, labels in re.findall(r"(?m)^(\w+)(.*) ", said)
    }
    board = json.loads((GRAFANA / "dashboard.json").read_text())
    rules = yaml.safe_load((GRAFANA / "rules.yaml").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    assert len(asked) > 15
    for expression in asked:
        bare = re.sub(r'"[^"]*"', "", expression)
        words = set(re.findall(r"[a-zA-Z_]\w*", bare)) - _OF_PROMQL
        read = words & set(series)
        assert read, f"{expression} reads no metric that exists"
        labels = set().union(*(series[name] for name in read))
        assert words - read <= labels, (
            f"{expression}: {words - read - labels} are no metrics or labels of {read}"
        )
    legends = {
        w for p in board["panels"] for t in p["targets"] for w in re.findall(r"{{(\w+)}}", t["legendFormat"])
    }
    assert legends <= set().union(*series.values())


def test_what_the_gateway_counts_is_what_was_booked_and_its_labels_are_bounded() -> None:
    """Names that callers make up, and their ids, are no labels; sums are the ledger's."""
    with Meter("memory://", prices=PRICES, wait=0) as meter:
        gateway = Metrics(meter)
        meter.count_calls(gateway.ended)

        def call(model: str, outcome: Outcome) -> None:
            bound = RequestBound(500, output_limit=500)
            with meter.session("a session", user="a user", project="a project"):
                meter.reserve(meter.plan("chat", model, bound, provider="openai")).end(outcome)

        call("m", Outcome("settled", Usage(100, 40, cached_input_tokens=30, reasoning_tokens=15)))
        call("gpt-4o-2024-08-06", Outcome("settled", Usage(10, 4)))
        call("ft:gpt-4o-2024-08-06:acme::B1", Outcome("settled", Usage(10, 4)))
        call("m", Outcome("assumed", note="no answer"))
        call("m", Outcome("failed"))
        call("m", Outcome("cancelled"))
        for n in range(30):
            call(f"made up {n}", Outcome("settled", Usage(1, 1)))
        total = sum(entry.cost or 0 for entry in meter.ledger.snapshot()[2])
        text = gateway.text().decode()
    found = re.findall(r"(?m)^(behest_(?:spend_usd|calls|tokens)_total){(.*)} (\S+)$", text)
    sums: dict[str, float] = {}
    labels: dict[str, set[str]] = {}
    for name, said, value in found:
        sums[name] = sums.get(name, 0) + float(value)
        for label, text in re.findall(r'(\w+)="([^"]*)"', said):
            labels.setdefault(label, set()).add(text)
    assert round(sums["behest_spend_usd_total"] * 10**9) == total
    assert sums["behest_calls_total"] == 35
    assert sums["behest_tokens_total"] == 140 + 14 + 14 + 60
    assert labels == {
        "provider": {"openai", ""},
        "model": {"m", "gpt-4o", "ft:gpt-4o", "_OTHER"},
        "operation": {"chat"},
        "status": {"settled", "assumed", "failed"},
        "type": {"input", "cached_input", "output", "reasoning"},
    }
