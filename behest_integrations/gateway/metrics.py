"""What a scraper may know: counts, times and what was spent, and no ids.

What was spent is a counter, as dashboards like it, and floats: it is to be looked at. What a lease's end
books, and a truth that replaces what was assumed before, is not in it. The books are in the ledger.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from ..meter import Meter
from .store_metrics import StoreMetrics

if TYPE_CHECKING:
    from ..engine.holds import Hold
    from ..engine.outcomes import Outcome
    from ..ledger.book import Booked
    from ..rules.usage import Usage

OTHER = "_OTHER"
"""Models without a price: any caller could make up such a name."""
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Where workers keep their counts, so that any of them can tell those of all."""
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The gateway's own counts, in a registry of their own."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._registry = registry = CollectorRegistry()
        self.in_flight = Gauge(
            "behest_gateway_calls_in_flight",
            "Calls being relayed",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._unwritten = Gauge(
            "behest_gateway_unwritten_entries",
            "Entries that wait for the store to come back",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.hung_up = Counter(
            "behest_gateway_hang_ups", "Streams that the client left before their end", registry=registry
        )
        self._refused = Counter(
            "behest_gateway_refusals", "Requests answered with an error", ["code"], registry=registry
        )
        self._attempts = Counter(
            "behest_gateway_attempts",
            "Requests sent to providers, by status or error",
            ["provider", "outcome"],
            registry=registry,
        )
        self._first = Histogram(
            "behest_gateway_first_byte_seconds",
            "Until the first event of a stream",
            ["operation"],
            registry=registry,
            buckets=_SECONDS,
        )
        self._whole = Histogram(
            "behest_gateway_call_seconds",
            "Until the end of an answer",
            ["operation"],
            registry=registry,
            buckets=_SECONDS,
        )

        spent = ["provider", "model", "operation", "status"]
        self._spent = Counter("behest_spend_usd", "What calls have cost, in USD", spent, registry=registry)
        self._calls = Counter("behest_calls", "Calls of models that have ended", spent, registry=registry)
        self._tokens = Counter(
            "behest_tokens",
            "Tokens by class, each in one: cached_input and cache_write are not in input, reasoning not in "
            "output",
            ["provider", "model", "operation", "type"],
            registry=registry,
        )
        self.store = StoreMetrics(registry)
        # What is looked up for each call; there are few.
        self._attempted = lru_cache(maxsize=256)(self._attempts.labels)
        self._first_of = lru_cache(maxsize=16)(self._first.labels)
        self._whole_of = lru_cache(maxsize=16)(self._whole.labels)

    def ended(self, booked: Booked) -> None:
        """A call has been booked; see `Engine.count_calls`."""
        hold: Hold
        outcome: Outcome
        hold, outcome = booked.call
        if outcome.status == "cancelled" or booked.replaced:
            return
        plan = hold.plan
        pricing = plan.pricing
        model = OTHER if pricing is None else pricing.model
        where = ((pricing.provider if pricing is not None else None) or "", model, plan.operation)
        self._calls.labels(*where, outcome.status).inc()
        if booked.cost is not None and booked.cost > 0:
            self._spent.labels(*where, outcome.status).inc(booked.cost / 10**9)
        if outcome.usage is not None:
            for kind, count in _classes(outcome.usage).items():
                if count > 0:
                    self._tokens.labels(*where, kind).inc(count)

    def refused(self, code: str) -> None:
        self._refused.labels(code).inc()

    def attempt(self, provider: str, outcome: str) -> None:
        self._attempted(provider, outcome).inc()

    def first_byte(self, operation: str, seconds: float) -> None:
        self._first_of(operation).observe(seconds)

    def answered(self, operation: str, seconds: float) -> None:
        self._whole_of(operation).observe(seconds)

    def text(self) -> bytes:
        """All counts, of every worker, as Prometheus reads them."""
        self._unwritten.set(self._meter.unwritten)
        if not os.environ.get(FOLDER):
            return generate_latest(self._registry)
        everybody = CollectorRegistry()
        MultiProcessCollector(everybody)  # type: ignore[no-untyped-call]
        return generate_latest(everybody)


def _classes(usage: Usage) -> dict[str, int]:
    """A call's tokens, each in one class."""
    return {
        "input": usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens,
        "cached_input": usage.cached_input_tokens,
        "cache_write": usage.cache_write_tokens,
        "output": usage.output_tokens - usage.reasoning_tokens,
        "reasoning": usage.reasoning_tokens,
    }
