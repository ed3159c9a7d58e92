"""A store: books in a file that is read and written whole in each transaction."""

from __future__ import annotations

import copy
import fcntl
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from behest_integrations import StoreError, Usage
from behest_integrations.ledger.audit import Chain, Decision, Pruned, Record
from behest_integrations.ledger.base import Durability, Ledger
from behest_integrations.ledger.book import (
    REFUSED,
    Books,
    Bucket,
    Claim,
    Entry,
    Grant,
    HoldRecord,
    KnownBudget,
    Lessons,
)
from behest_integrations.ledger.outbox import Message


class ToyRows:
    """See `Rows`."""

    def __init__(self) -> None:
        self.buckets: list[Bucket] = []
        self.holds: dict[str, HoldRecord] = {}
        self.entries: list[Entry] = []
        self.limits: dict[str, int | None] = {}
        self.refusals: dict[tuple[Any, ...], dict[str, Any]] = {}
        self.budgets: dict[str, KnownBudget] = {}
        self.taught: dict[tuple[str, str], tuple[int, ...]] = {}
        self.own: dict[tuple[str, str], int] = {}
        self.granted: list[Grant] = []
        self.chain = Chain("")
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
        return frozenset([*(budget for budget, _scope in self.own), *(g.budget for g in self.granted)])

    def own_limit(self, budget: str, scope: str) -> int | None:
        return self.own.get((budget, scope))

    def grants(self, budget: str, scope: str) -> Sequence[Grant]:
        return [g for g in self.granted if (g.budget, g.scope) == (budget, scope)]

    def add_grant(self, grant: Grant) -> None:
        self.granted.append(grant)

    def set_own_limit(self, budget: str, scope: str, amount: int | None) -> None:
        self.own.pop((budget, scope), None)
        if amount is not None:
            self.own[budget, scope] = amount

    def load(self, claims: Sequence[Claim]) -> None:
        """All of it is here."""

    def bucket(self, budget: str, scope: str, start: int) -> Bucket | None:
        key = (budget, scope, start)
        return next((b for b in self.buckets if (b.budget, b.scope, b.start) == key), None)

    def bucket_by_id(self, id: int) -> Bucket | None:
        return self.buckets[id - 1] if 0 < id <= len(self.buckets) else None

    def new_bucket(self, budget: str, scope: str, start: int, unit: str) -> Bucket:
        self.buckets.append(Bucket(len(self.buckets) + 1, budget, scope, start, unit))
        return self.buckets[-1]

    def change_bucket(self, id: int, spent: int, held: int) -> None:
        bucket = self.bucket_by_id(id)
        if bucket is None:
            raise StoreError(f"bucket {id} is missing: the books are damaged", retryable=False)
        bucket.spent += spent
        bucket.held += held

    def set_notified(self, id: int, notified: int) -> None:
        self.buckets[id - 1].notified = notified

    def set_sums(self, id: int, spent: int, held: int) -> None:
        self.buckets[id - 1].spent, self.buckets[id - 1].held = spent, held

    def rolling_spent(self, budget: str, scope: str, after: int) -> int:
        mine = [b for b in self.buckets if (b.budget, b.scope) == (budget, scope)]
        return sum(b.spent for b in mine if b.start > after and b.start)

    def count_refusal(self, id: int, call: Mapping[str, Any], now: int) -> None:
        who = {name: call.get(name) for name in REFUSED}
        row = self.refusals.setdefault((id, *who.values()), {**who, "bucket": id, "count": 0})
        row |= {"count": row["count"] + 1, "at": now}

    def add_hold(self, hold: HoldRecord) -> None:
        self.holds[hold.id] = hold

    def take_hold(self, id: str) -> HoldRecord | None:
        return self.holds.pop(id, None)

    def expired_holds(self, now: int, most: int) -> list[str]:
        return [id for _, id in sorted((h.expires, h.id) for h in self.holds.values() if h.expires <= now)][
            :most
        ]

    def owners(self) -> set[str]:
        return {h.owner for h in self.holds.values()}

    def holds_of(self, owner: str, most: int) -> list[str]:
        return [h.id for h in self.holds.values() if h.owner == owner][:most]

    def add_entry(self, entry: Entry) -> None:
        self.entries.append(entry)

    def last_entry(self, call_id: str) -> Entry | None:
        mine = [e for e in self.entries if e.call_id == call_id and not e.reversal]
        return copy.copy(mine[-1]) if mine else None

    def usage_of_response(
        self, response: str, tenant: str | None, project: str | None, user: str | None
    ) -> Usage | None:
        for e in reversed(self.entries):
            mine = (e.operation, e.provider_id, e.tenant, e.project) == (
                "responses",
                response,
                tenant,
                project,
            )
            if mine and user in (None, e.user_id) and not e.reversal:
                return Usage(e.input_tokens, e.output_tokens)
        return None

    def remember_budget(self, budget: KnownBudget) -> None:
        self.budgets[budget.shape] = budget

    def known_budgets(self) -> list[KnownBudget]:
        return list(self.budgets.values())

    def lessons(self) -> Lessons:
        return self.taught

    def keep_lesson(self, server: str, model: str, values: tuple[int, ...]) -> None:
        self.taught[server, model] = values

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
        self.decided.append(self.chain.link(decision))

    def audit(self) -> list[Record]:
        return list(self.decided)

    def drop_audit(self, pruned: Pruned) -> None:
        self.decided = [r for r in self.decided if r.seq > pruned.chains.get(r.chain, (0, ""))[0]]

    def keep_terms(self, id: str, text: str) -> None:
        self.priced[id] = text

    def terms(self) -> Mapping[str, str]:
        return self.priced

    def everything(self) -> Books:
        refusals, budgets = list(self.refusals.values()), list(self.budgets.values())
        holds = list(self.holds.values())
        kept = (self.limits, budgets, self.taught, self.own)
        return copy.deepcopy(
            Books(self.buckets, holds, self.entries, refusals, *kept, self.decided, self.granted, self.priced)
        )


class ToyLedger(Ledger):
    """`toy:///FILE`."""

    shared = True

    def __init__(self, url: str, *, timeout: float = 5, durability: Durability = "process") -> None:
        super().__init__(url)
        self.path = self._path(url)
        self._begin()
        self._commit()

    @staticmethod
    def _path(url: str) -> Path:
        return Path(url.partition("://")[2])

    @classmethod
    def exists(cls, url: str) -> bool:
        return cls._path(url).exists()

    def _begin(self) -> ToyRows:
        self._locked = self.path.with_suffix(".lock").open("w")
        fcntl.lockf(self._locked, fcntl.LOCK_EX)
        self._rows: ToyRows = pickle.loads(self.path.read_bytes()) if self.path.exists() else ToyRows()
        return self._rows

    def _commit(self) -> None:
        part = self.path.with_suffix(".part")
        part.write_bytes(pickle.dumps(self._rows))
        part.replace(self.path)
        self._locked.close()

    def _rollback(self) -> None:
        self._locked.close()
