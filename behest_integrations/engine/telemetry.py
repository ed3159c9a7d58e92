"""Calls as OpenTelemetry sees them: a span for each, histograms of tokens, time and cost.

The names are those of the GenAI conventions, which move: all of them are in this module, and what has no
name there begins with ``behest.``. Only `opentelemetry-api` is needed, which does nothing without an SDK.
Where another instrumentation has made the span of a call, that span is told what we know; a second one
is not made. Ids are on spans, never on metrics. Costs are floats here, and here alone: they are to be
looked at. The books are in the ledger.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from ..rules.errors import BudgetExceeded, LoopDetected, need

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import Counter, Histogram, Meter, UpDownCounter
    from opentelemetry.trace import Span

    from ..ledger.book import Booked
    from .holds import Hold
    from .observing import Asked, Event, Level
    from .outcomes import Outcome
    from .plan import Plan

# https://github.com/open-telemetry/semantic-conventions-genai; the cost is proposed there (#443).
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
RESPONSE_ID = "gen_ai.response.id"
CONVERSATION = "gen_ai.conversation.id"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
COST = "gen_ai.usage.cost.amount"
COST_CURRENCY = "gen_ai.usage.cost.currency"
COST_SOURCE = "gen_ai.usage.cost.source"
TOKEN_TYPE = "gen_ai.token.type"
STATUS = "behest.status"
STORE_OPERATION, RETRY_REASON = "behest.store.operation", "behest.store.retry.reason"
USER, PROJECT, TENANT = "behest.user", "behest.project", "behest.tenant"
REASON, UNIT = "behest.refusal.reason", "behest.unit"

SPAN_ATTRIBUTES = frozenset(
    {
        OPERATION, PROVIDER, REQUEST_MODEL, RESPONSE_MODEL, RESPONSE_ID, CONVERSATION, INPUT_TOKENS,
        OUTPUT_TOKENS, CACHED_TOKENS, COST, COST_CURRENCY, COST_SOURCE, STATUS, USER, PROJECT, TENANT,
    }
)  # fmt: skip
_MODELS = frozenset({OPERATION, PROVIDER, REQUEST_MODEL, RESPONSE_MODEL})
METRICS = {
    "gen_ai.client.token.usage": ("{token}", _MODELS | {TOKEN_TYPE}),
    "gen_ai.client.operation.duration": ("s", _MODELS | {STATUS}),
    "gen_ai.client.operation.cost": ("USD", _MODELS | {STATUS}),
    "behest.refusals": ("{call}", frozenset({OPERATION, REQUEST_MODEL, REASON, UNIT})),
    "behest.store.operation.duration": ("s", frozenset({STORE_OPERATION})),
    "behest.store.transaction.duration": ("s", frozenset()),
    "behest.store.transaction.operations": ("{operation}", frozenset()),
    "behest.store.queue": ("{operation}", frozenset()),
    "behest.store.retries": ("{transaction}", frozenset({RETRY_REASON})),
    "behest.holds": ("{call}", frozenset()),
    "behest.slices": ("{slice}", frozenset()),
    "behest.holds.expired": ("{hold}", frozenset()),
    "behest.calls.assumed": ("{call}", frozenset()),
    "behest.calls.over_bound": ("{call}", frozenset({UNIT})),
}
"""By name: the unit, and the attributes that it may have."""

# The first two as the conventions advise.
_BOUNDS = {
    "gen_ai.client.token.usage": [4**n for n in range(14)],
    "gen_ai.client.operation.duration": [0.01 * 2**n for n in range(14)],
    "gen_ai.client.operation.cost": [1e-5 * 4**n for n in range(12)],
    "behest.store.operation.duration": [0.0005 * 2**n for n in range(15)],
    "behest.store.transaction.duration": [0.0005 * 2**n for n in range(15)],
    "behest.store.transaction.operations": [2**n for n in range(9)],
}

_MOST_MODELS = 100
OTHER = "_OTHER"
"""Names of models come from outside: metrics have so many, and then this one."""


class Telemetry:
    """Tells an OpenTelemetry SDK, if there is one, of calls and refusals.

    Raises:
        MissingExtra: the `otel` extra is not installed.
    """

    def __init__(self) -> None:
        with need("OpenTelemetry", "otel"):
            from opentelemetry import context, metrics, trace
        self._context, self._trace = context, trace
        self._tracer = trace.get_tracer("behest_integrations")
        meter = metrics.get_meter("behest_integrations")
        made = [
            meter.create_histogram(name, METRICS[name][0], explicit_bucket_boundaries_advisory=bounds)
            for name, bounds in _BOUNDS.items()
        ]
        self._tokens, self._seconds, self._cost, *of_store = made
        self.store = StoreTelemetry(meter, *of_store)
        """Is told what the store does; see `observing.StoreWatcher`."""
        self._refusals = meter.create_counter("behest.refusals", METRICS["behest.refusals"][0])
        self._models: set[str] = set()
        self._lock = threading.Lock()

    def begun(self) -> Context:
        """Where a call is made: kept with its hold, for its end may be seen elsewhere."""
        return self._context.get_current()

    def refused(self, error: BudgetExceeded | LoopDetected, plan: Plan) -> None:
        """A call did not fit in a budget, or its session has made too many."""
        self._refusals.add(
            1,
            {
                OPERATION: plan.operation,
                REQUEST_MODEL: self._bounded(plan.model),
                REASON: error.reason,
                UNIT: error.shortfall.unit if isinstance(error, BudgetExceeded) else "calls",
            },
        )

    def ended(self, booked: Booked, now: int) -> None:
        """A call has been booked.

        Args:
            booked: its `call` is the hold that has ended, and the outcome.
            now: milliseconds since 1970.
        """
        hold: Hold
        outcome: Outcome
        hold, outcome = booked.call
        if outcome.status == "cancelled":
            return
        plan = hold.plan
        usage, model = outcome.usage, outcome.model or plan.model
        common: dict[str, Any] = {OPERATION: plan.operation, REQUEST_MODEL: plan.model, RESPONSE_MODEL: model}
        if plan.provider:
            common[PROVIDER] = plan.provider
        bounded = {**common, REQUEST_MODEL: self._bounded(plan.model), RESPONSE_MODEL: self._bounded(model)}
        context = hold.seen
        if usage is not None:
            for kind, count in (("input", usage.input_tokens), ("output", usage.output_tokens)):
                if count:
                    self._tokens.record(count, {**bounded, TOKEN_TYPE: kind}, context)
        with_status = {**bounded, STATUS: outcome.status}
        self._seconds.record(max(0, now - hold.started) / 1000, with_status, context)
        if booked.cost is not None:
            self._cost.record(booked.cost / 10**9, with_status, context)
        self._span(hold, {**common, **_facts(plan, outcome, booked)}, now)

    def _span(self, hold: Hold, facts: dict[str, Any], now: int) -> None:
        there = self._trace.get_current_span(hold.seen)
        if _of_a_call(there):
            if there.is_recording():
                there.set_attributes(facts)
            return
        span = self._tracer.start_span(
            f"{hold.plan.operation} {hold.plan.model}",
            context=hold.seen,
            kind=self._trace.SpanKind.CLIENT,
            attributes=facts,
            start_time=hold.started * 1_000_000,
        )
        if facts[STATUS] in ("failed", "assumed"):
            span.set_status(self._trace.StatusCode.ERROR)
        span.end(max(now, hold.started) * 1_000_000)

    def _bounded(self, model: str) -> str:
        if model in self._models:
            return model
        with self._lock:
            if len(self._models) >= _MOST_MODELS:
                return OTHER
            self._models.add(model)
        return model


class StoreTelemetry:
    """What the store does, as metrics: no ids, and attributes of a few words."""

    def __init__(
        self, meter: Meter, asked: Histogram, transactions: Histogram, operations: Histogram
    ) -> None:
        def counter(name: str) -> Counter:
            return meter.create_counter(name, METRICS[name][0])

        def level(name: str) -> UpDownCounter:
            return meter.create_up_down_counter(name, METRICS[name][0])

        self._asked, self._transactions, self._operations = asked, transactions, operations
        self._levels: dict[Level, UpDownCounter] = {
            "holds": level("behest.holds"),
            "slices": level("behest.slices"),
            "queue": level("behest.store.queue"),
        }
        self._events: dict[Event, Counter] = {
            "expired": counter("behest.holds.expired"),
            "assumed": counter("behest.calls.assumed"),
        }
        self._retries = counter("behest.store.retries")
        self._over = counter("behest.calls.over_bound")

    def asked(self, what: Asked, seconds: float) -> None:
        self._asked.record(seconds, {STORE_OPERATION: what})

    def transacted(self, seconds: float, operations: int) -> None:
        self._transactions.record(seconds)
        self._operations.record(operations)

    def changed(self, level: Level, by: int) -> None:
        self._levels[level].add(by)

    def retried(self, why: str) -> None:
        self._retries.add(1, {RETRY_REASON: why})

    def refused(self, reason: str, unit: str) -> None:
        """Is counted with its call; see `Telemetry.refused`."""

    def happened(self, event: Event, count: int) -> None:
        self._events[event].add(count)

    def over(self, unit: str) -> None:
        self._over.add(1, {UNIT: unit})


def _of_a_call(span: Span) -> bool:
    """Whether a span is that of a call of a model, by another instrumentation."""
    attributes = getattr(span, "attributes", None) or {}
    return OPERATION in attributes or "gen_ai.system" in attributes or "llm.request.type" in attributes


def _facts(plan: Plan, outcome: Outcome, booked: Booked) -> dict[str, Any]:
    """What a span is told beside the names."""
    who, usage = plan.who, outcome.usage
    facts: dict[str, Any] = {STATUS: outcome.status}
    if usage is not None:
        facts |= {INPUT_TOKENS: usage.input_tokens, OUTPUT_TOKENS: usage.output_tokens}
        if usage.cached_input_tokens:
            facts[CACHED_TOKENS] = usage.cached_input_tokens
    if booked.cost is not None:
        facts |= {COST: booked.cost / 10**9, COST_CURRENCY: "USD", COST_SOURCE: "local"}
    said = {
        CONVERSATION: who.session_id, USER: who.user_id, PROJECT: who.project, TENANT: who.tenant,
        RESPONSE_ID: outcome.provider_id,
    }  # fmt: skip
    return {**facts, **{name: value for name, value in said.items() if value}}
