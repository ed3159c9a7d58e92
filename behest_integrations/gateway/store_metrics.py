"""What a scraper may know of the store: how long it takes, what is held and taken, what went wrong. No ids.

Gauges are of this gateway's own processes, so that those of all gateways can be added up.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ..engine.observing import Asked, Event, Level

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_OPERATIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class StoreMetrics:
    """Is told by the engine; see `engine.observing.StoreWatcher`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, what: str) -> Gauge:
            return Gauge(name, what, registry=registry, multiprocess_mode="livesum")

        seconds = Histogram(
            "behest_store_operation_seconds",
            "From asking the store to its answer, waiting included",
            ["operation"],
            registry=registry,
            buckets=_SECONDS,
        )
        self._asked: dict[Asked, Histogram] = {
            "reserve": seconds.labels("reserve"),
            "settle": seconds.labels("settle"),
        }
        self._seconds = Histogram(
            "behest_store_transaction_seconds",
            "Transactions of the store, what was run again included",
            registry=registry,
            buckets=_SECONDS,
        )
        self._operations = Histogram(
            "behest_store_transaction_operations",
            "Operations in a transaction",
            registry=registry,
            buckets=_OPERATIONS,
        )
        self._levels: dict[Level, Gauge] = {
            "holds": gauge("behest_holds_open", "Calls in flight for which something is held"),
            "slices": gauge("behest_slices_out", "Slices of budgets that are held to admit calls from"),
            "queue": gauge("behest_store_queue", "Operations that wait for the writer"),
        }
        self._retries = Counter(
            "behest_store_retries", "Transactions that were run again", ["reason"], registry=registry
        )
        self._refusals = Counter(
            "behest_budget_refusals",
            "Calls that did not fit in a budget",
            ["reason", "unit"],
            registry=registry,
        )
        self._events: dict[Event, Counter] = {
            "expired": Counter(
                "behest_expired_holds", "Holds of the dead, and of those whose time was up", registry=registry
            ),
            "assumed": Counter(
                "behest_assumed_calls",
                "Calls and slices booked with all that was held, their outcome not being known",
                registry=registry,
            ),
        }
        self._over = Counter(
            "behest_over_bound", "Calls that came to more than their worst case", ["unit"], registry=registry
        )

    def asked(self, what: Asked, seconds: float) -> None:
        self._asked[what].observe(seconds)

    def transacted(self, seconds: float, operations: int) -> None:
        self._seconds.observe(seconds)
        self._operations.observe(operations)

    def changed(self, level: Level, by: int) -> None:
        self._levels[level].inc(by)

    def retried(self, why: str) -> None:
        self._retries.labels(why).inc()

    def refused(self, reason: str, unit: str) -> None:
        self._refusals.labels(reason, unit).inc()

    def happened(self, event: Event, count: int) -> None:
        self._events[event].inc(count)

    def over(self, unit: str) -> None:
        self._over.labels(unit).inc()
