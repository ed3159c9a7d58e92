"""The books in PostgreSQL: the rows of a batch of operations, locked and read at once, written at once.

Two round trips a batch. The first begins, locks all the buckets that the operations are known to need, in
the order of their keys, takes their holds, and reads the limits. Then the operations are run, on what is
in memory. The second writes all that they changed, and commits.

Nobody ever waits for a lock out of order, so there is no deadlock: what an operation turns out to need
besides is locked only where nobody else has it. Otherwise the batch is begun again (`Again`), with that
among what is locked first. A bucket that is not there yet is written at the end; whoever has been quicker
makes that fail, and the batch is run again as well.

Over 500 lines, because it is all of `book.Rows`, in one place.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import fields
from operator import attrgetter
from typing import Any

from pydantic_core import from_json

from ..rules.usage import Usage
from .audit import Chain, Decision, Pruned, Record
from .book import REFUSED, Books, Bucket, Claim, Entry, Grant, HoldRecord, KnownBudget, Lessons, encode
from .buckets import BucketsAtHand
from .contention import Contention
from .ids import RANDOM_BITS, first_id_at
from .link import Result, Statement
from .outbox import Message
from .postgres_sql import SQL, SWEPT, Wanted, as_json, storable
from .sql import entry_of, lessons_of, read_books
from .statements import ENTRY_ORDER, Statements

Key = tuple[str, str, int]
_MOST_HOLDS = 20_000


class Again(Exception):
    """The batch has to be begun anew, with what `Wanted` has now; nothing of it was written."""


class PostgresRows(BucketsAtHand):
    """Rows over a connection; see `book.Rows`."""

    def __init__(self, statements: Statements, sql: SQL, contended: Contention) -> None:
        self._contended = contended
        self._statements = statements
        self._sql = sql
        self._wanted = Wanted(())
        self._known_lessons: Lessons = {}
        self._last_id = 0
        self.own_holds: dict[str, HoldRecord] = {}
        """Holds that were written here. What is in one never changes; whether it is there is asked."""
        self._chain: Chain | None = None
        """Where this connection appends to the audit, as far as it has been written."""
        self._next_chain: Chain | None = None
        self._kept_terms: set[str] = set()
        self.reading = False
        """Whether the operation that is being run only reads."""
        self.xid = ""
        self.server_ms = 0
        self._forget()

    def _forget(self) -> None:
        self._by_key: dict[Key, Bucket | None] = {}
        self._by_id: dict[int, Bucket] = {}
        self._slots: dict[tuple[str, str], dict[int, Bucket]] = {}
        self._rolling: dict[tuple[str, str], tuple[int, dict[int, int]]] = {}
        self._limits: dict[str, int | None] = {}
        self._own_limited: frozenset[str] = frozenset()
        self._own_limits: dict[tuple[str, str], int | None] = {}
        self._grants: dict[tuple[str, str], list[Grant]] = {}
        self._lessons: Lessons | None = None
        self._due: list[str] | None = None
        self._owners: list[str] | None = None
        self._fetched: dict[str, HoldRecord] = {}
        self._gone: set[str] = set()
        self._new_buckets: dict[int, Bucket] = {}
        self._changed: set[int] = set()
        self._unread: dict[int, tuple[int, int]] = {}
        """What is added at the end to buckets that nobody has read or locked, by id."""
        self._new_holds: dict[str, HoldRecord] = {}
        self._new_entries: list[Entry] = []
        self._new_audit: list[Decision] = []
        self._next_chain = self._chain
        self._last_of: dict[str, Entry] = {}
        self._refused: dict[tuple[int, str], dict[str, Any]] = {}
        self._late: dict[tuple[Any, ...], Statement] = {}

    def attach(self, exchange: Any) -> None:
        """What runs statements, from now on: a list of them, and their results."""
        self._exchange = exchange

    # ── the two round trips ────────────────────────────────────────────────────────────

    def opening(self, wanted: Wanted) -> list[Statement]:
        """The first: begin, read, lock. What nobody has to wait for is read before what is locked."""
        self._forget()
        self._wanted = wanted
        sql = self._sql
        said: list[Statement] = [("BEGIN ISOLATION LEVEL READ COMMITTED", ()), (sql.opening, ())]
        if wanted.whole:
            said.append((sql.whole, ()))
        keys = as_json([{"b": b, "s": s, "t": t} for b, s, t in sorted(wanted.keys)])
        said.append((sql.limits, (keys,)))
        if wanted.swept_at:
            said.append((sql.due, (str(wanted.swept_at), str(SWEPT))))
            said.append((self._statements.owners, ()))
            said.append((self._statements.lessons, ()))
        if wanted.ids:
            said.append((sql.lock_with_ids, (keys, as_json(sorted(wanted.ids)))))
        elif wanted.keys:
            said.append((sql.lock, (keys,)))
        if wanted.holds:
            said.append((sql.take_holds, (as_json(sorted(wanted.holds)),)))
        if wanted.rolling:
            slots = [{"b": b, "s": s, "t": t} for (b, s), t in wanted.rolling.items()]
            said.append((sql.rolling, (as_json(slots),)))
        return said

    def begin(self, results: list[Result]) -> None:
        """What the first round trip gave."""
        wanted = self._wanted
        results = results[::-1]
        results.pop()
        ((self.xid, self.server_ms, *_),) = results.pop().rows()
        if wanted.whole:
            results.pop()
        own: set[str] = set()
        for budget, scope, _ in wanted.keys:
            self._own_limits[budget, scope] = None
            self._grants[budget, scope] = []
        for kind, budget, scope, amount, expires in results.pop().rows():
            if not kind:
                self._limits[budget] = amount
            elif kind == "grant":
                self._grants[budget, scope].append(Grant(budget, scope, amount, expires))
            elif scope:
                self._own_limits[budget, scope] = amount
            else:
                own.add(budget)
        self._own_limited = frozenset(own)
        if wanted.swept_at:
            self._due = [id for (id,) in results.pop().rows()]
            self._owners = [owner for (owner,) in results.pop().rows()]
            self._take_lessons(results.pop())
        for key in wanted.keys:
            self._by_key[key] = None
        if wanted.ids or wanted.keys:
            for row in results.pop().rows():
                bucket = self._keep(Bucket(*row))
                self._contended.found((bucket.budget, bucket.scope, bucket.start), bucket.spent, bucket.held)
        if wanted.holds:
            self._gone.update(wanted.holds)
            for row in results.pop().rows():
                hold = self._hold(row)
                self._fetched[hold.id] = hold
        if wanted.rolling:
            for whose, after in wanted.rolling.items():
                self._rolling[whose] = (after, {})
            for budget, scope, start, spent in results.pop().rows():
                self._rolling[budget, scope][1][start] = spent

    def writing(self) -> list[Statement]:
        """The second: all that was changed."""
        sql, said = self._sql, list[Statement]()
        by_id, new = self._by_id, self._new_buckets
        if changed := [by_id[id] for id in self._changed if id not in new]:
            values = [{"i": b.id, "s": b.spent, "h": b.held, "n": b.notified} for b in changed]
            said.append((sql.set_buckets, (as_json(values),)))
        if new:
            # In their order: who is about to write the same ones waits for each in turn.
            made = sorted(new.values(), key=lambda b: (b.budget, b.scope, b.start))
            said.append((sql.add_buckets, (as_json([_fields(b) for b in made]),)))
        if self._refused:
            rows = [self._refused[key] for key in sorted(self._refused)]
            said.append((sql.add_refusals, (as_json(rows),)))
        # Those that were fetched to be ended, and have not been.
        if holds := [*self._fetched.values(), *self._new_holds.values()]:
            said.append((sql.add_holds, (as_json([_hold_values(h) for h in holds]),)))
        if self._new_entries:
            said.append((sql.add_entries, (as_json([self._entry_values(e) for e in self._new_entries]),)))
        if self._new_audit:
            said.append((sql.add_audit, (as_json(self._linked(self._new_audit)),)))
        said += [self._late[key] for key in sorted(self._late)]
        if unread := {id: sums for id, sums in self._unread.items() if any(sums)}:
            # Last of all, so that they are locked for no trip, only until the commit. Somebody who has
            # them may wait for what is locked here: not for long, and then they are locked in order.
            self._wanted.ids.update(unread)
            values = [{"i": id, "s": spent, "h": held} for id, (spent, held) in sorted(unread.items())]
            said.append((sql.not_long, ()))
            said.append((sql.add_to_buckets, (as_json(values), str(len(values)))))
        return said

    def written(self) -> None:
        """That has been done."""
        late = list(self._late)
        for id in self._changed:
            bucket = self._by_id[id]
            self._contended.left((bucket.budget, bucket.scope, bucket.start), bucket.spent, bucket.held)
        if len(self.own_holds) > _MOST_HOLDS:
            self.own_holds.clear()
        self.own_holds.update(self._new_holds)
        self._gone.difference_update(self._fetched, self._new_holds)
        for done in (
            self._new_buckets, self._changed, self._refused, self._fetched, self._new_holds,
            self._new_entries, self._new_audit, self._last_of, self._late, self._unread,
        ):  # fmt: skip
            done.clear()
        self._chain = self._next_chain
        self._kept_terms.update(key[1] for key in late if key[0] == 6)

    def flush(self) -> None:
        """Write now what is to be read with SQL."""
        if statements := self.writing():
            self._exchange(statements)
            self.written()

    def _run(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        return self._exchange([(sql, _told(*values))])[0].rows()  # type: ignore[no-any-return]

    def _id(self) -> int:
        """Made here, so that nobody has to ask for it: by time, so that trees grow at their end, then
        at random. Larger than any that was seen."""
        made = first_id_at(int(time.time() * 1000)) | int.from_bytes(os.urandom(3), "big") >> 24 - RANDOM_BITS
        self._last_id = max(made, self._last_id + 1)
        return self._last_id

    # ── limits ─────────────────────────────────────────────────────────────────────────

    def overrides(self) -> Mapping[str, int | None]:
        return self._limits

    def set_override(self, budget: str, amount: int | None) -> None:
        self._limits[budget] = amount
        told = None if amount is None else str(amount)
        self._late[0, budget] = (self._statements.set_override, (budget, told))

    def drop_override(self, budget: str) -> None:
        self._limits.pop(budget, None)
        self._late[0, budget] = (self._statements.drop_override, (budget,))

    def own_limited(self) -> frozenset[str]:
        return self._own_limited

    def own_limit(self, budget: str, scope: str) -> int | None:
        if not scope:
            return None  # a row of this scope is only the mark that there are others
        if (budget, scope) not in self._own_limits:
            rows = self._run(self._statements.own_limit, scope, budget)
            self._own_limits[budget, scope] = rows[0][0] if rows else None
        return self._own_limits[budget, scope]

    def set_own_limit(self, budget: str, scope: str, amount: int | None) -> None:
        self._own_limits[budget, scope] = amount
        if amount is None:
            self._late[1, budget, scope] = (self._statements.drop_own_limit, (scope, budget))
        else:
            self._mark_own(budget)
            self._late[1, budget, scope] = (self._statements.set_own_limit, (scope, budget, str(amount)))

    def grants(self, budget: str, scope: str) -> Sequence[Grant]:
        if (budget, scope) not in self._grants:
            rows = self._run(self._statements.grants, scope, budget)
            self._grants[budget, scope] = [Grant(*row) for row in rows]
        return self._grants[budget, scope]

    def add_grant(self, grant: Grant) -> None:
        budget, scope, _, _ = grant
        self._grants[budget, scope] = [*self.grants(budget, scope), grant]
        self._mark_own(budget)
        id = self._id()
        self._late[4, budget, scope, id] = (self._sql.add_grants, (as_json([{"id": id, **grant._asdict()}]),))

    def _mark_own(self, budget: str) -> None:
        """Say that some scope of a budget has a limit of its own, or a grant."""
        if budget not in self._own_limited:
            self._own_limited |= {budget}
            self._late[1, budget, ""] = (self._statements.set_own_limit, ("", budget, "0"))

    # ── buckets ────────────────────────────────────────────────────────────────────────

    def load(self, claims: Sequence[Claim]) -> None:
        pass  # what an operation claims has been fetched for the whole batch

    def _keep(self, bucket: Bucket) -> Bucket:
        self._by_key[bucket.budget, bucket.scope, bucket.start] = self._by_id[bucket.id] = bucket
        if bucket.start:
            self._slots.setdefault((bucket.budget, bucket.scope), {})[bucket.start] = bucket
        if (unread := self._unread.pop(bucket.id, None)) is not None:
            self.change_bucket(bucket.id, *unread)
        return bucket

    def add_to_bucket(self, id: int, spent: int, held: int) -> None:
        if id in self._by_id:
            self.change_bucket(id, spent, held)
        else:
            before = self._unread.get(id, (0, 0))
            self._unread[id] = (before[0] + spent, before[1] + held)

    def bucket(self, budget: str, scope: str, start: int) -> Bucket | None:
        key = (budget, scope, start)
        if key in self._by_key:
            return self._by_key[key]
        told = (budget, scope, str(start))
        if not self.reading:
            self._wanted.keys.add(key)  # for the next time, if another has it now
        found = self._lock_one(self._sql.try_key, self._sql.key, told)
        if found is None and not self.reading:
            self._by_key[key] = None
        return found

    def bucket_by_id(self, id: int) -> Bucket | None:
        found = self._by_id.get(id)
        if found is None:
            if not self.reading:
                self._wanted.ids.add(id)
            found = self._lock_one(self._sql.try_id, self._sql.id, (str(id),))
        return found

    def _lock_one(self, trying: str, looking: str, values: tuple[str, ...]) -> Bucket | None:
        """A bucket, locked unless it is only read; None: there is none.

        Raises:
            Again: another has it.
        """
        if self.reading:
            rows = self._exchange([(looking, values)])[0].rows()
            return Bucket(*rows[0]) if rows else None
        mine, there = self._exchange([(trying, values), (looking, values)])
        if rows := mine.rows():
            return self._keep(Bucket(*rows[0]))
        if there.count:
            raise Again
        return None

    def new_bucket(self, budget: str, scope: str, start: int, unit: str) -> Bucket:
        bucket = Bucket(self._id(), budget, scope, start, unit)
        self._new_buckets[bucket.id] = bucket
        return self._keep(bucket)

    def rolling_spent(self, budget: str, scope: str, after: int) -> int:
        whose = (budget, scope)
        known = self._rolling.get(whose)
        if known is None or after < known[0]:
            slots = as_json([{"b": budget, "s": scope, "t": after}])
            found = self._exchange([(self._sql.rolling, (slots,))])[0].rows()
            known = self._rolling[whose] = (after, {start: spent for _, _, start, spent in found})
        ours = self._slots.get(whose, {})
        total = sum(spent for start, spent in known[1].items() if start > after and start not in ours)
        return total + sum(bucket.spent for start, bucket in ours.items() if start > after)

    def count_refusal(self, id: int, call: Mapping[str, Any], now: int) -> None:
        who = {name: call.get(name) for name in REFUSED}
        key = (id, encode(tuple(who.values())))
        row = self._refused.setdefault(key, {**who, "bucket": id, "who": key[1], "count": 0, "at": now})
        row["count"] += 1
        row["at"] = now

    # ── holds ──────────────────────────────────────────────────────────────────────────

    def _hold(self, row: tuple[Any, ...]) -> HoldRecord:
        id, expires, bookings, call, owner = row
        known = self.own_holds.pop(id, None)
        if known is not None:
            return known
        return HoldRecord(id, expires, [tuple(b) for b in from_json(bookings)], from_json(call), owner)

    def add_hold(self, hold: HoldRecord) -> None:
        self._new_holds[hold.id] = hold

    def take_hold(self, id: str) -> HoldRecord | None:
        hold = self._new_holds.pop(id, None) or self._fetched.pop(id, None)
        if hold is not None or id in self._gone:
            return hold
        mine, there = self._exchange([(self._sql.try_hold, (id,)), (self._sql.hold, (id,))])
        if rows := mine.rows():
            self._gone.add(id)
            return self._hold(rows[0])
        if there.count:  # another is about to end it: wait for that, in order
            self._wanted.holds.add(id)
            raise Again
        return None

    def expired_holds(self, now: int, most: int) -> list[str]:
        if self._due is not None and most <= SWEPT and now == self._wanted.swept_at and not self._new_holds:
            return [id for id in self._due if id not in self._gone][:most]
        self.flush()
        return [id for (id,) in self._run(self._sql.due, now, most)]

    def owners(self) -> Iterable[str]:
        if self._owners is None:
            self.flush()
            self._owners = [owner for (owner,) in self._run(self._statements.owners)]
        return self._owners

    def holds_of(self, owner: str, most: int) -> list[str]:
        self.flush()
        return [id for (id,) in self._run(self._sql.of_owner, owner, most)]

    # ── entries ────────────────────────────────────────────────────────────────────────

    def add_entry(self, entry: Entry) -> None:
        self._new_entries.append(entry)
        if not entry.reversal:
            self._last_of[entry.call_id] = entry

    def _entry_values(self, entry: Entry) -> dict[str, Any]:
        return {"id": self._id(), **{name: getattr(entry, name) for name in ENTRY_ORDER}}

    def last_entry(self, call_id: str) -> Entry | None:
        if (new := self._last_of.get(call_id)) is not None:
            return copy(new)
        # Whoever else replaces it at this moment is waited for, and then it is read again.
        told = (call_id,)
        sql = self._sql
        *_, newest, last = self._exchange(
            [(sql.lock_call, told), (sql.last_id, told), (self._statements.last_entry, told)]
        )
        rows = last.rows()
        if not rows:
            return None
        self._last_id = max(self._last_id, newest.rows()[0][0])
        return entry_of(rows[0])

    def add_audit(self, decision: Decision) -> None:
        self._new_audit.append(decision)

    def _linked(self, decisions: Iterable[Decision]) -> list[dict[str, Any]]:
        """Decisions as the next records of this connection's chain, which grows if they are written."""
        if self._chain is None:
            found = self._run(self._statements.newest_audit)
            self._next_chain = Chain(found[0][0] if found else "")
        else:
            self._next_chain = copy(self._chain)
        return [{"id": self._id(), **self._next_chain.link(d)._asdict()} for d in decisions]

    def audit(self) -> list[Record]:
        self.flush()
        return [Record(*row) for row in self._run(self._statements.all_audit)]

    def drop_audit(self, pruned: Pruned) -> None:
        self.flush()
        for chain, (seq, _hash) in pruned.chains.items():
            self._exchange([(self._statements.drop_audit, (chain, str(seq)))])

    def usage_of_response(
        self, response: str, tenant: str | None, project: str | None, user: str | None
    ) -> Usage | None:
        self.flush()
        for inputs, outputs, *whose, its_user in self._run(self._statements.response, response):
            if whose == [tenant, project] and user in (None, its_user):
                return Usage(inputs, outputs)
        return None

    # ── what is to be told ─────────────────────────────────────────────────────────────

    def add_message(self, message: Message) -> bool:
        if (5, message.id, message.sink) in self._late:
            return False
        (added,) = self._exchange([(self._statements.add_message, _told(*_message(message)))])
        return bool(added.count)

    def set_message(self, message: Message) -> None:
        told = _told(*_message(message))
        self._late[5, message.id, message.sink] = (self._statements.set_message, told)

    def open_messages(self, most: int) -> list[Message]:
        self.flush()
        return [Message(*row) for row in self._run(self._statements.open_messages)[:most]]

    def all_messages(self) -> list[Message]:
        self.flush()
        return [Message(*row) for row in self._run(self._statements.all_messages)]

    # ── what is known besides ──────────────────────────────────────────────────────────

    def remember_budget(self, budget: KnownBudget) -> None:
        told = _told(*budget)
        self._late[2, budget.shape] = (self._statements.remember_budget, told)

    def known_budgets(self) -> Iterable[KnownBudget]:
        self.flush()
        return [KnownBudget(*row) for row in self._run(self._statements.all_budgets)]

    def _take_lessons(self, result: Result) -> Lessons:
        found = lessons_of(result.rows())
        if found != self._known_lessons:  # who recalls them looks whether they are the same
            self._known_lessons = found
        self._lessons = self._known_lessons
        return self._lessons

    def lessons(self) -> Lessons:
        return self._lessons if self._lessons is not None else self._read_lessons()

    def _read_lessons(self) -> Lessons:
        return self._take_lessons(self._exchange([(self._statements.lessons, ())])[0])

    def keep_lesson(self, server: str, model: str, values: tuple[int, ...]) -> None:
        known = self.lessons().get((server, model))
        if known is not None and (3, server, model) not in self._late:
            # What is written was made from what was read: by now it may be another.
            rows = self._run(self._sql.try_lesson, server, model)
            if not rows or tuple(rows[0][2:]) != known:
                raise Again
        told = _told(server, model, *values)
        new = known is None
        add = self._statements.add_lesson if new else self._statements.keep_lesson
        if (3, server, model) in self._late:
            add = self._late[3, server, model][0]
        self._late[3, server, model] = (add, told)
        self._lessons = self._known_lessons = {**self.lessons(), (server, model): values}

    def keep_terms(self, id: str, text: str) -> None:
        if id not in self._kept_terms:
            self._late[6, id] = (self._statements.keep_terms, (id, text))

    def terms(self) -> Mapping[str, str]:
        self.flush()
        return dict(self._run(self._statements.terms))

    def everything(self) -> Books:
        if not self._wanted.whole:
            self._wanted.whole = True
            raise Again
        self.flush()
        return read_books(self._run, self._statements)


_message = attrgetter(*(field.name for field in fields(Message)))


def _told(*values: object) -> tuple[str | None, ...]:
    """Parameters of a statement, as the text that they are sent as."""
    return tuple(None if value is None else storable(str(value)) for value in values)


def _fields(bucket: Bucket) -> dict[str, Any]:
    return {name: getattr(bucket, name) for name in Bucket.__slots__}


def _hold_values(hold: HoldRecord) -> dict[str, Any]:
    return {
        "id": hold.id,
        "expires": hold.expires,
        "bookings": encode(hold.bookings),
        "call": encode(hold.call),
        "owner": hold.owner,
    }
