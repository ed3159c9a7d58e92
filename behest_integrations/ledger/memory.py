"""The books in memory: for tests and notebooks. They end with the process.

A forked child would count on its own copy, and so pass the budget: there it refuses.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import replace
from typing import Any

from ..rules.errors import StoreError
from ..rules.usage import Usage
from .audit import Chain, Decision, Pruned, Record
from .base import Durability, Ledger
from .book import REFUSED, Books, Bucket, Claim, Entry, Grant, HoldRecord, KnownBudget, Lessons
from .outbox import Message


class _MemoryRows:
    def __init__(self) -> None:
        self.buckets: dict[tuple[str, str, int], Bucket] = {}
        self.by_id: dict[int, Bucket] = {}
        self.slots: dict[tuple[str, str], list[int]] = {}
        self.holds: dict[str, HoldRecord] = {}
        self.entries: list[Entry] = []
        self.last: dict[str, Entry] = {}
        self.limits: dict[str, int | None] = {}
        self.refusals: dict[tuple[Any, ...], dict[str, Any]] = {}
        self.responses: dict[str, list[Entry]] = {}
        self.budgets: dict[str, KnownBudget] = {}
        self.taught: dict[tuple[str, str], tuple[int, ...]] = {}
        self.own: dict[tuple[str, str], int] = {}
        self.having_own: frozenset[str] = frozenset()
        self.granted: dict[tuple[str, str], list[Grant]] = {}
        self.chain: Chain | None = None
        self.decided: list[Record] = []
        self.messages: dict[tuple[str, str], Message] = {}
        self.priced: dict[str, str] = {}

    def overrides(self) -> Mapping[str, int | None]:
        return self.limits

    def set_override(self, budget: str, amount: int | None) -> None:
        self.limits[budget] = amount

    def drop_override(self, budget: str) -> None:
        self.limits.pop(budget, None)

    def own_limited(self) -> frozenset[str]:
        return self.having_own

    def own_limit(self, budget: str, scope: str) -> int | None:
        return self.own.get((budget, scope))

    def set_own_limit(self, budget: str, scope: str, amount: int | None) -> None:
        if amount is None:
            self.own.pop((budget, scope), None)
        else:
            self.own[budget, scope] = amount
            self.having_own |= {budget}

    def grants(self, budget: str, scope: str) -> Sequence[Grant]:
        return self.granted.get((budget, scope), ())

    def add_grant(self, grant: Grant) -> None:
        self.granted.setdefault((grant.budget, grant.scope), []).append(grant)
        self.having_own |= {grant.budget}

    def load(self, claims: Sequence[Claim]) -> None:
        pass  # all of it is here

    def bucket(self, budget: str, scope: str, start: int) -> Bucket | None:
        return self.buckets.get((budget, scope, start))

    def bucket_by_id(self, id: int) -> Bucket | None:
        return self.by_id.get(id)

    def new_bucket(self, budget: str, scope: str, start: int, unit: str) -> Bucket:
        bucket = Bucket(len(self.by_id) + 1, budget, scope, start, unit)
        self.buckets[budget, scope, start] = self.by_id[bucket.id] = bucket
        if start:
            bisect.insort(self.slots.setdefault((budget, scope), []), start)
        return bucket

    def change_bucket(self, id: int, spent: int, held: int) -> None:
        bucket = self.by_id.get(id)
        if bucket is None:
            raise StoreError(f"bucket {id} is missing: the books are damaged", retryable=False)
        bucket.spent += spent
        bucket.held += held

    def add_to_bucket(self, id: int, spent: int, held: int) -> None:
        self.change_bucket(id, spent, held)

    def set_notified(self, id: int, notified: int) -> None:
        self.by_id[id].notified = notified

    def rolling_spent(self, budget: str, scope: str, after: int) -> int:
        starts = self.slots.get((budget, scope), [])
        return sum(
            self.buckets[budget, scope, start].spent for start in starts[bisect.bisect_right(starts, after) :]
        )

    def count_refusal(self, id: int, call: Mapping[str, Any], now: int) -> None:
        who = {name: call.get(name) for name in REFUSED}
        row = self.refusals.setdefault((id, *who.values()), {**who, "bucket": id, "count": 0, "at": now})
        row["count"] += 1
        row["at"] = now

    def add_hold(self, hold: HoldRecord) -> None:
        self.holds[hold.id] = hold

    def take_hold(self, id: str) -> HoldRecord | None:
        return self.holds.pop(id, None)

    def expired_holds(self, now: int, most: int) -> list[str]:
        due = sorted((h.expires, h.id) for h in self.holds.values() if h.expires <= now)
        return [id for _, id in due[:most]]

    def owners(self) -> Iterable[str]:
        return ()

    def holds_of(self, owner: str, most: int) -> list[str]:
        return []

    def add_entry(self, entry: Entry) -> None:
        self.entries.append(entry)
        if not entry.reversal:
            self.last[entry.call_id] = entry
            if entry.operation == "responses" and entry.provider_id:
                self.responses.setdefault(entry.provider_id, []).append(entry)

    def add_message(self, message: Message) -> bool:
        if (message.id, message.sink) in self.messages:
            return False
        self.messages[message.id, message.sink] = replace(message)
        return True

    def set_message(self, message: Message) -> None:
        self.messages[message.id, message.sink] = replace(message)

    def open_messages(self, most: int) -> list[Message]:
        there = (replace(m) for m in self.messages.values() if m.done is None)
        return sorted(there, key=lambda m: m.due)[:most]

    def all_messages(self) -> list[Message]:
        return [replace(m) for m in self.messages.values()]

    def add_audit(self, decision: Decision) -> None:
        if self.chain is None:
            self.chain = Chain("")
        self.decided.append(self.chain.link(decision))

    def audit(self) -> Sequence[Record]:
        return self.decided  # one writer, one chain

    def drop_audit(self, pruned: Pruned) -> None:
        self.decided = [r for r in self.decided if r.seq > pruned.chains.get(r.chain, (0, ""))[0]]

    def last_entry(self, call_id: str) -> Entry | None:
        entry = self.last.get(call_id)
        return copy(entry) if entry is not None else None

    def usage_of_response(
        self, response: str, tenant: str | None, project: str | None, user: str | None
    ) -> Usage | None:
        for entry in reversed(self.responses.get(response, ())):
            if (entry.tenant, entry.project) == (tenant, project) and user in (None, entry.user_id):
                return Usage(entry.input_tokens, entry.output_tokens)
        return None

    def remember_budget(self, budget: KnownBudget) -> None:
        self.budgets[budget.shape] = budget

    def known_budgets(self) -> Iterable[KnownBudget]:
        return list(self.budgets.values())

    def lessons(self) -> Lessons:
        return self.taught

    def keep_lesson(self, server: str, model: str, values: tuple[int, ...]) -> None:
        self.taught = {**self.taught, (server, model): values}

    def keep_terms(self, id: str, text: str) -> None:
        self.priced[id] = text

    def terms(self) -> Mapping[str, str]:
        return dict(self.priced)

    def everything(self) -> Books:
        # Nobody changes what is in a row, but for its own fields.
        return Books(
            [*map(copy, self.by_id.values())],
            deepcopy(list(self.holds.values())),
            [*map(copy, self.entries)],
            [dict(row) for row in self.refusals.values()],
            dict(self.limits),
            list(self.budgets.values()),
            dict(self.taught),
            dict(self.own),
            list(self.decided),
            [grant for granted in self.granted.values() for grant in granted],
            dict(self.priced),
        )

    def set_sums(self, id: int, spent: int, held: int) -> None:
        self.by_id[id].spent, self.by_id[id].held = spent, held


class MemoryLedger(Ledger):
    """Books that live as long as the process. Takes what every store takes, and needs none of it."""

    def __init__(
        self, url: str = "memory://", *, timeout: float = 5, durability: Durability = "process"
    ) -> None:
        super().__init__("memory://")
        self._rows = _MemoryRows()

    @classmethod
    def exists(cls, url: str) -> bool:
        return False  # whoever opens it begins with empty books

    def _begin(self) -> _MemoryRows:
        if os.getpid() != self._pid:
            raise StoreError(
                "This meter keeps its books in memory and the process has forked: each process would "
                "count on its own and together they would pass the budget. Use a file that they "
                "share, e.g. Meter('sqlite:///behest.db'), or make the meter after the fork.",
                retryable=False,
            )
        return self._rows

    def _commit(self) -> None:
        pass

    def _rollback(self) -> None:
        pass
