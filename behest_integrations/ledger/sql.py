"""The books in an SQL database: its rows, whichever database it is.

The writer runs statements that were compiled once (`statements`) on a connection of its own, because
compiling and wrapping results each time would cost several times what the database itself does. What a
database has of its own (how it is opened, waited for, and what its errors mean) is in a file of its name.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar

import sqlalchemy as sa
from pydantic_core import from_json

from ..rules.usage import Usage
from .audit import Chain, Decision, Pruned, Record
from .base import Ledger
from .book import REFUSED, Books, Bucket, Claim, Entry, Grant, HoldRecord, KnownBudget, Lessons, encode
from .buckets import BucketsAtHand
from .keys import SQLKeys
from .outbox import Message
from .statements import ENTRY_ORDER, Statements

if TYPE_CHECKING:
    from .following import Follower

_TAGS, _BOOKINGS = ENTRY_ORDER.index("tags"), ENTRY_ORDER.index("bookings")
_entry_fields = attrgetter(*ENTRY_ORDER)
_MOST_IDS = 100_000
_MOST_BUCKETS = 20_000
_MOST_HOLDS = 20_000


class SQLRows(BucketsAtHand):
    """Rows over a driver's connection; see `book.Rows`.

    Each statement costs a trip through the driver and the interpreter's lock. So inside a
    transaction, which holds the write lock, what changes is written once, at its end, for all the
    operations of many callers; and what this connection has read or written is remembered for as
    long as nobody else has written, which `begin` is told.

    Args:
        run, run_many: the connection's ``execute`` and ``executemany``.
    """

    def __init__(
        self, run: Callable[..., Any], run_many: Callable[[str, Sequence[Any]], Any], statements: Statements
    ) -> None:
        self._run = run
        self._run_many = run_many
        self._sql = statements
        self._ids: dict[tuple[str, str, int], int] = {}
        self._by_key: dict[tuple[str, str, int], Bucket | None] = {}
        self._by_id: dict[int, Bucket] = {}
        self._limits: dict[str, int | None] | None = None
        self._lessons: Lessons | None = None
        self._own_limited: frozenset[str] | None = None
        self._own_limits: dict[tuple[str, str], int | None] = {}
        self._grants: dict[tuple[str, str], list[Grant]] = {}
        self._own_holds: dict[str, HoldRecord] = {}
        """Holds that were written here and are there, because nobody else has written since."""
        self._old_holds: dict[str, HoldRecord] = {}
        """Those that somebody else may have ended. What is in a hold never changes."""
        self._changed: set[int] = set()
        self._new_holds: dict[str, HoldRecord] = {}
        self._taken: list[tuple[str]] = []
        self._new_entries: list[Entry] = []
        self._new_audit: list[Decision] = []
        self._chain: Chain | None = None
        """Where this connection appends; a new one after a rollback, which may have been none."""
        self._kept_terms: set[str] = set()

    def begin(self, *, alone: bool) -> None:
        """A transaction has begun.

        Args:
            alone: whether nobody else has committed anything since this connection's last one.
        """
        if not alone or len(self._by_key) > _MOST_BUCKETS:
            self._by_key.clear()
            self._by_id.clear()
            self._forget_settings()
        if not alone:
            self._old_holds.update(self._own_holds)
        if not alone or len(self._own_holds) > _MOST_HOLDS:
            self._own_holds.clear()
        if len(self._old_holds) > _MOST_HOLDS:
            self._old_holds.clear()

    def forget(self) -> None:
        """After a rollback nothing is known, and ids that it handed out may go to other buckets."""
        for known in (
            self._ids, self._by_key, self._by_id, self._own_holds, self._old_holds,
            self._changed, self._new_holds, self._taken, self._new_entries, self._new_audit,
            self._kept_terms,
        ):  # fmt: skip
            known.clear()
        self._chain = None
        self._forget_settings()

    def _forget_settings(self) -> None:
        self._limits = self._lessons = self._own_limited = None
        self._own_limits.clear()
        self._grants.clear()

    def flush(self) -> None:
        """Write what has been changed, before it is read with SQL or committed."""
        if self._changed:
            by_id = self._by_id
            changed = [by_id[id] for id in self._changed]
            self._run_many(self._sql.set_bucket, [(b.spent, b.held, b.notified, b.id) for b in changed])
            self._changed.clear()
        if self._taken:
            self._write(self._sql.drop_hold, self._taken)
            self._taken.clear()
        if self._new_holds:
            holds = self._new_holds.values()
            self._write(
                self._sql.add_hold,
                [(h.id, h.expires, encode(h.bookings), encode(h.call), h.owner) for h in holds],
            )
            self._own_holds.update(self._new_holds)
            self._new_holds.clear()
        if self._new_entries:
            self._write(self._sql.add_entry, [entry_values(e) for e in self._new_entries])
            self._new_entries.clear()
        if self._new_audit:
            if self._chain is None:
                found = self._run(self._sql.newest_audit).fetchone()
                self._chain = Chain(found[0] if found is not None else "")
            link = self._chain.link
            self._write(self._sql.add_audit, [link(decision) for decision in self._new_audit])
            self._new_audit.clear()

    def _write(self, sql: str, rows: Sequence[Any]) -> None:
        if len(rows) == 1:
            self._run(sql, rows[0])
        else:
            self._run_many(sql, rows)

    def overrides(self) -> Mapping[str, int | None]:
        if self._limits is None:
            self._limits = dict(self._run(self._sql.overrides))
        return self._limits

    def set_override(self, budget: str, amount: int | None) -> None:
        self._run(self._sql.set_override, (budget, amount))
        self._limits = None

    def drop_override(self, budget: str) -> None:
        self._run(self._sql.drop_override, (budget,))
        self._limits = None

    def own_limited(self) -> frozenset[str]:
        if self._own_limited is None:
            self._own_limited = frozenset(budget for (budget,) in self._run(self._sql.own_limited))
        return self._own_limited

    def own_limit(self, budget: str, scope: str) -> int | None:
        if not scope:
            return None  # a row of this scope is only the mark that there are others
        key = (budget, scope)
        if key not in self._own_limits:
            row = self._run(self._sql.own_limit, (scope, budget)).fetchone()
            if len(self._own_limits) >= _MOST_BUCKETS:
                self._own_limits.clear()
            self._own_limits[key] = None if row is None else row[0]
        return self._own_limits[key]

    def set_own_limit(self, budget: str, scope: str, amount: int | None) -> None:
        if amount is None:
            self._run(self._sql.drop_own_limit, (scope, budget))
        else:
            self._run(self._sql.set_own_limit, (scope, budget, amount))
            self._run(self._sql.set_own_limit, ("", budget, 0))
        self._own_limited = None
        self._own_limits.clear()

    def grants(self, budget: str, scope: str) -> Sequence[Grant]:
        key = (budget, scope)
        if key not in self._grants:
            if len(self._grants) >= _MOST_BUCKETS:
                self._grants.clear()
            self._grants[key] = [Grant(*row) for row in self._run(self._sql.grants, (scope, budget))]
        return self._grants[key]

    def add_grant(self, grant: Grant) -> None:
        self._run(self._sql.add_grant, (grant.scope, grant.budget, grant.amount, grant.expires))
        self._run(self._sql.set_own_limit, ("", grant.budget, 0))
        self._own_limited = None
        self._grants.clear()

    def load(self, claims: Sequence[Claim]) -> None:
        known, ids = self._by_key, self._ids
        missing = [id for c in claims if (key := c.key) not in known and (id := ids.get(key)) is not None]
        if missing:
            for row in self._run(self._sql.by_ids(len(missing)), missing):
                self._keep(Bucket(*row))

    def _keep(self, bucket: Bucket) -> Bucket:
        key = (bucket.budget, bucket.scope, bucket.start)
        if len(self._ids) > _MOST_IDS:
            self._ids.clear()
        self._ids[key] = bucket.id
        self._by_key[key] = self._by_id[bucket.id] = bucket
        return bucket

    def bucket(self, budget: str, scope: str, start: int) -> Bucket | None:
        key = (budget, scope, start)
        try:
            return self._by_key[key]
        except KeyError:
            pass
        row = self._run(self._sql.bucket, key).fetchone()
        if row is None:
            self._by_key[key] = None
            return None
        return self._keep(Bucket(*row))

    def bucket_by_id(self, id: int) -> Bucket | None:
        found = self._by_id.get(id)
        if found is None:
            row = self._run(self._sql.by_ids(1), (id,)).fetchone()
            found = self._keep(Bucket(*row)) if row is not None else None
        return found

    def new_bucket(self, budget: str, scope: str, start: int, unit: str) -> Bucket:
        ((id,),) = self._run(self._sql.new_bucket, (budget, scope, start, unit)).fetchall()
        return self._keep(Bucket(id, budget, scope, start, unit))

    def keep_terms(self, id: str, text: str) -> None:
        if id not in self._kept_terms:
            self._run(self._sql.keep_terms, (id, text))
            self._kept_terms.add(id)

    def terms(self) -> Mapping[str, str]:
        return dict(self._run(self._sql.terms))

    def everything(self) -> Books:
        self.flush()
        return read_books(self._run, self._sql)

    def rolling_spent(self, budget: str, scope: str, after: int) -> int:
        self.flush()
        (total,) = self._run(self._sql.rolling, (budget, scope, after)).fetchone()
        return int(total)

    def count_refusal(self, id: int, call: Mapping[str, Any], now: int) -> None:
        who = tuple(call.get(name) for name in REFUSED)
        self._run(self._sql.count_refusal, (id, encode(who), *who, now))

    def add_hold(self, hold: HoldRecord) -> None:
        self._new_holds[hold.id] = hold

    def take_hold(self, id: str) -> HoldRecord | None:
        hold = self._new_holds.pop(id, None)
        if hold is not None:
            return hold
        hold = self._own_holds.pop(id, None)
        if hold is not None:
            self._taken.append((id,))
            return hold
        hold = self._old_holds.pop(id, None)
        if hold is not None:
            return hold if self._run(self._sql.drop_hold, (id,)).rowcount else None
        if self._taken:  # it may be among those
            self.flush()
        # All rows must be fetched, or a DELETE ... RETURNING leaves its statement open.
        found = self._run(self._sql.take_hold, (id,)).fetchall()
        if not found:
            return None
        expires, bookings, call, owner = found[0]
        return HoldRecord(id, expires, [tuple(b) for b in from_json(bookings)], from_json(call), owner)

    def expired_holds(self, now: int, most: int) -> list[str]:
        self.flush()
        return [id for (id,) in self._run(self._sql.expired, (now,)).fetchmany(most)]

    def owners(self) -> Iterable[str]:
        self.flush()
        return [owner for (owner,) in self._run(self._sql.owners)]

    def holds_of(self, owner: str, most: int) -> list[str]:
        self.flush()
        return [id for (id,) in self._run(self._sql.holds_of, (owner,)).fetchmany(most)]

    def add_entry(self, entry: Entry) -> None:
        self._new_entries.append(entry)

    def add_message(self, message: Message) -> bool:
        return bool(self._run(self._sql.add_message, _message_values(message)).rowcount)

    def set_message(self, message: Message) -> None:
        self._run(self._sql.set_message, _message_values(message))

    def open_messages(self, most: int) -> list[Message]:
        return [Message(*row) for row in self._run(self._sql.open_messages).fetchmany(most)]

    def all_messages(self) -> list[Message]:
        return [Message(*row) for row in self._run(self._sql.all_messages)]

    def add_audit(self, decision: Decision) -> None:
        self._new_audit.append(decision)

    def audit(self) -> list[Record]:
        self.flush()
        return [Record(*row) for row in self._run(self._sql.all_audit)]

    def drop_audit(self, pruned: Pruned) -> None:
        self.flush()
        for chain, (seq, _hash) in pruned.chains.items():
            self._run(self._sql.drop_audit, (chain, seq))

    def last_entry(self, call_id: str) -> Entry | None:
        self.flush()
        row = self._run(self._sql.last_entry, (call_id,)).fetchone()
        return entry_of(row) if row is not None else None

    def usage_of_response(
        self, response: str, tenant: str | None, project: str | None, user: str | None
    ) -> Usage | None:
        self.flush()
        found = self._run(self._sql.response, (response,)).fetchall()
        for inputs, outputs, its_tenant, its_project, its_user in found:
            if (its_tenant, its_project) == (tenant, project) and user in (None, its_user):
                return Usage(inputs, outputs)
        return None

    def remember_budget(self, budget: KnownBudget) -> None:
        self._run(self._sql.remember_budget, budget)

    def known_budgets(self) -> Iterable[KnownBudget]:
        return [KnownBudget(*row) for row in self._run(self._sql.all_budgets)]

    def lessons(self) -> Lessons:
        if self._lessons is None:
            self._lessons = lessons_of(self._run(self._sql.lessons))
        return self._lessons

    def keep_lesson(self, server: str, model: str, values: tuple[int, ...]) -> None:
        self._run(self._sql.keep_lesson, (server, model, *values))
        self._lessons = None


def lessons_of(rows: Iterable[Sequence[Any]]) -> Lessons:
    """Lessons from their rows."""
    return {(server, model): tuple(values) for server, model, *values in rows}


_message_values = attrgetter(*(field.name for field in fields(Message)))


def entry_values(entry: Entry) -> list[Any]:
    """An entry as the parameters of a statement."""
    values = list(_entry_fields(entry))
    values[_TAGS] = encode(entry.tags) if entry.tags else "{}"
    values[_BOOKINGS] = encode(entry.bookings)
    return values


def entry_of(row: Sequence[Any]) -> Entry:
    """An entry from its row."""
    values = dict(zip(ENTRY_ORDER, row, strict=True))
    for name in ("tags", "bookings"):
        if isinstance(values[name], str):
            values[name] = json.loads(values[name])
    values["bookings"] = [tuple(b) for b in values["bookings"]]
    return Entry(**values)


def read_books(run: Callable[[str], Any], sql: Statements) -> Books:
    """All that there is; `run` is a driver's ``execute``, inside a transaction."""
    names = ("bucket", *REFUSED, "count", "at")
    return Books(
        [Bucket(*row) for row in run(sql.all_buckets)],
        [
            HoldRecord(id, expires, [tuple(b) for b in from_json(bookings)], from_json(call), owner)
            for id, expires, bookings, call, owner in run(sql.all_holds)
        ],
        [entry_of(row) for row in run(sql.all_entries)],
        [dict(zip(names, row, strict=True)) for row in run(sql.all_refusals)],
        dict(run(sql.overrides)),
        [KnownBudget(*row) for row in run(sql.all_budgets)],
        lessons_of(run(sql.lessons)),
        {(budget, scope): amount for scope, budget, amount in run(sql.all_own_limits)},
        terms=dict(run(sql.terms)),
    )


class SQLLedger(Ledger):
    """Books in a database that processes share. A subclass says which, and sets `_engine`."""

    shared: ClassVar[bool] = True
    inline_async: ClassVar[bool] = False
    statements: Statements

    _engine: sa.Engine
    """To read with, and for what is no call: the schema, the keys."""
    _follower: Follower | None = None

    def follow(self) -> None:
        if self._follower is None:
            from .following import Follower  # here: who makes no calls closes nothing

            self._follower = Follower()
        self._follower.look(self)

    def _after_fork(self) -> None:
        super()._after_fork()
        self._follower = None

    def close(self) -> None:
        if self._follower is not None:
            self._follower.end()
        super().close()

    @abstractmethod
    def _explain(self, error: BaseException) -> Exception: ...

    def reading(self) -> sa.Engine:
        self.flush()
        return self._engine

    def snapshot(self) -> tuple[list[Bucket], list[HoldRecord], list[Entry]]:
        # Not by the writer, who would keep everybody waiting meanwhile.
        with self.reading().connect() as connection, connection.begin():
            driver: Any = connection.connection.driver_connection
            books = read_books(driver.execute, self.statements)
        return books.buckets, books.holds, books.entries

    def forget_session(
        self, session: str, *, tenant: str | None, project: str | None, user: str | None = None
    ) -> int:
        from .erasure import forget_session  # here: it closes blocks, which are those of a ledger

        now = self.now_ms()
        return forget_session(self.reading(), session, tenant=tenant, project=project, user=user, now=now)

    def keys(self) -> SQLKeys:
        return SQLKeys(self.reading, self._engine)
