"""The books in an SQL database: statements and rows, whichever database it is.

Statements are written once as SQLAlchemy Core expressions and compiled once for a database into
its driver's SQL; the writer runs them on a connection of its own, because compiling and wrapping
results each time would cost several times what the database itself does. What a database has of
its own (how it is opened, waited for, and what its errors mean) is in a file of its name.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar

import sqlalchemy as sa
from pydantic_core import from_json

from ..rules.errors import StoreError
from ..rules.usage import Usage
from . import schema
from .base import Ledger
from .book import REFUSED, Books, Bucket, Claim, Entry, HoldRecord, KnownBudget, Lessons, encode
from .keys import SQLKeys

_b, _h, _e, _l, _r, _g, _t = (
    schema.buckets, schema.holds, schema.entries, schema.limits, schema.refusals, schema.budgets,
    schema.lessons,
)  # fmt: skip
_P = sa.bindparam
_ENTRY_NAMES = {f.name for f in fields(Entry)}
_ENTRY_ORDER = tuple(c.name for c in _e.columns if c.name in _ENTRY_NAMES)
_TAGS, _BOOKINGS = _ENTRY_ORDER.index("tags"), _ENTRY_ORDER.index("bookings")
_entry_fields = attrgetter(*_ENTRY_ORDER)
_MOST_IDS = 100_000
_MOST_BUCKETS = 20_000
_MOST_HOLDS = 20_000


class Statements:
    """Every statement as driver SQL.

    Args:
        dialect: of the database and its driver; parameters must be positional.
        insert: the database's own ``INSERT``, which knows ``ON CONFLICT``.
    """

    def __init__(self, dialect: sa.Dialect, insert: Callable[[sa.Table], Any]) -> None:
        self._dialect = dialect
        self._by_ids: dict[int, str] = {}
        zero: sa.ColumnClause[int] = sa.literal_column("0")
        one: sa.ColumnClause[int] = sa.literal_column("1")
        compiled = self._compiled
        self.overrides = compiled(sa.select(_l.c.text, _l.c.amount))
        self.bucket = compiled(
            sa.select(_b).where(
                _b.c.budget == _P("budget"), _b.c.scope == _P("scope"), _b.c.start == _P("start")
            ),
            "budget", "scope", "start",
        )  # fmt: skip
        self.new_bucket = compiled(
            sa.insert(_b).values(
                budget=_P("budget"), scope=_P("scope"), start=_P("start"), unit=_P("unit"),
                spent=zero, held=zero, notified=zero,
            ).returning(_b.c.id),
            "budget", "scope", "start", "unit",
        )  # fmt: skip
        self.set_bucket = compiled(
            sa.update(_b).where(_b.c.id == _P("key")).values(spent=_P("s"), held=_P("h"), notified=_P("n")),
            "s", "h", "n", "key",
        )  # fmt: skip
        self.rolling = compiled(
            sa.select(sa.func.coalesce(sa.func.sum(_b.c.spent), zero)).where(
                _b.c.budget == _P("budget"), _b.c.scope == _P("scope"),
                _b.c.start > _P("after"), _b.c.start > zero,
            ),
            "budget", "scope", "after",
        )  # fmt: skip
        self.add_hold = compiled(
            sa.insert(_h).values(id=_P("i"), expires=_P("x"), bookings=_P("b"), call=_P("c")),
            "i", "x", "b", "c",
        )  # fmt: skip
        self.take_hold = compiled(
            sa.delete(_h).where(_h.c.id == _P("i")).returning(_h.c.expires, _h.c.bookings, _h.c.call), "i"
        )
        self.drop_hold = compiled(sa.delete(_h).where(_h.c.id == _P("i")), "i")
        self.expired = compiled(
            sa.select(_h.c.id).where(_h.c.expires <= _P("now")).order_by(_h.c.expires), "now"
        )
        self.add_entry = compiled(
            sa.insert(_e).values({name: _P(f"v_{name}", type_=sa.Text()) for name in _ENTRY_ORDER}),
            *(f"v_{name}" for name in _ENTRY_ORDER),
        )
        # As the text that they are: decoding them is ours to do, and only where it is needed.
        whole = [sa.type_coerce(_e.c[name], sa.Text()).label(name) for name in _ENTRY_ORDER]
        self.last_entry = compiled(
            sa.select(*whole).where(_e.c.call_id == _P("i"), _e.c.reversal == zero).order_by(_e.c.id.desc()),
            "i",
        )
        self.response = compiled(
            sa.select(_e.c.input_tokens, _e.c.output_tokens, _e.c.tenant, _e.c.project, _e.c.user_id)
            .where(
                _e.c.provider_id == _P("i"),
                # As in the index's condition, or it would not be used.
                _e.c.operation == sa.literal_column("'responses'"),
                _e.c.reversal == zero,
            )
            .order_by(_e.c.id.desc()),
            "i",
        )
        self.set_override = compiled(
            _upsert(insert(_l).values(text=_P("t"), amount=_P("a")), "text"), "t", "a"
        )
        self.drop_override = compiled(sa.delete(_l).where(_l.c.text == _P("t")), "t")
        refusal = insert(_r).values(
            bucket=_P("b"), who=_P("w"), session_id=_P("s"), user_id=_P("u"), project=_P("p"),
            tenant=_P("t"), model=_P("m"), count=one, at=_P("at"),
        )  # fmt: skip
        self.count_refusal = compiled(
            refusal.on_conflict_do_update(
                index_elements=["bucket", "who"], set_={"count": _r.c.count + one, "at": refusal.excluded.at}
            ),
            "b", "w", "s", "u", "p", "t", "m", "at",
        )  # fmt: skip
        self.remember_budget = compiled(
            _upsert(insert(_g).values(shape=_P("s"), text=_P("t"), zone=_P("z"), seen=_P("at")), "shape"),
            "s", "t", "z", "at",
        )  # fmt: skip
        names = [c.name for c in _t.columns]
        kept = insert(_t).values({name: _P(f"v_{name}") for name in names})
        self.keep_lesson = compiled(_upsert(kept, "server", "model"), *(f"v_{name}" for name in names))
        self.lessons = compiled(sa.select(_t))
        self.all_buckets = compiled(sa.select(_b).order_by(_b.c.id))
        self.all_holds = compiled(sa.select(_h.c.id, _h.c.expires, _h.c.bookings, _h.c.call))
        self.all_entries = compiled(sa.select(*whole).order_by(_e.c.id))
        self.all_refusals = compiled(sa.select(_r.c.bucket, *(_r.c[n] for n in REFUSED), _r.c.count, _r.c.at))
        self.all_budgets = compiled(sa.select(_g.c.shape, _g.c.text, _g.c.zone, _g.c.seen))

    def by_ids(self, count: int) -> str:
        """Select so many buckets by their ids."""
        found = self._by_ids.get(count)
        if found is None:
            names = [f"k{i}" for i in range(count)]
            found = self._compiled(sa.select(_b).where(_b.c.id.in_([_P(n) for n in names])), *names)
            self._by_ids[count] = found
        return found

    def _compiled(self, statement: sa.sql.ClauseElement, *names: str) -> str:
        made = statement.compile(dialect=self._dialect)
        order = tuple(made.positiontup or ())  # type: ignore[attr-defined]
        if order != names:
            raise AssertionError(f"parameters come as {order}, not {names}: {made}")
        return str(made)


def _upsert(insert: Any, *keys: str) -> Any:
    """Insert, or where there is a row of those `keys`, set all the rest."""
    rest = {name: insert.excluded[name] for name in insert.table.c.keys() if name not in keys}  # noqa: SIM118
    return insert.on_conflict_do_update(index_elements=keys, set_=rest)


class SQLRows:
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
        self._own_holds: dict[str, HoldRecord] = {}
        """Holds that were written here and are there, because nobody else has written since."""
        self._old_holds: dict[str, HoldRecord] = {}
        """Those that somebody else may have ended. What is in a hold never changes."""
        self._changed: set[int] = set()
        self._new_holds: dict[str, HoldRecord] = {}
        self._taken: list[tuple[str]] = []
        self._new_entries: list[Entry] = []

    def begin(self, *, alone: bool) -> None:
        """A transaction has begun.

        Args:
            alone: whether nobody else has committed anything since this connection's last one.
        """
        if not alone or len(self._by_key) > _MOST_BUCKETS:
            self._by_key.clear()
            self._by_id.clear()
            self._limits = self._lessons = None
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
            self._changed, self._new_holds, self._taken, self._new_entries,
        ):  # fmt: skip
            known.clear()
        self._limits = self._lessons = None

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
                self._sql.add_hold, [(h.id, h.expires, encode(h.bookings), encode(h.call)) for h in holds]
            )
            self._own_holds.update(self._new_holds)
            self._new_holds.clear()
        if self._new_entries:
            self._write(self._sql.add_entry, [_entry_values(e) for e in self._new_entries])
            self._new_entries.clear()

    def _write(self, sql: str, rows: Sequence[Any]) -> None:
        if len(rows) == 1:
            self._run(sql, rows[0])
        else:
            self._run_many(sql, rows)

    def overrides(self) -> Mapping[str, int | None]:
        if self._limits is None:
            self._limits = dict(self._run(self._sql.overrides))
        return self._limits

    def set_override(self, text: str, amount: int | None) -> None:
        self._run(self._sql.set_override, (text, amount))
        self._limits = None

    def drop_override(self, text: str) -> None:
        self._run(self._sql.drop_override, (text,))
        self._limits = None

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

    def change_bucket(self, id: int, spent: int, held: int) -> None:
        bucket = self._by_id.get(id) or self.bucket_by_id(id)
        if bucket is None:
            raise StoreError(f"bucket {id} is missing: the ledger is damaged", retryable=False)
        bucket.spent += spent
        bucket.held += held
        self._changed.add(id)

    def everything(self) -> Books:
        self.flush()
        return read_books(self._run, self._sql)

    def set_sums(self, id: int, spent: int, held: int) -> None:
        bucket = self.bucket_by_id(id)
        if bucket is not None:
            bucket.spent, bucket.held = spent, held
            self._changed.add(id)

    def set_notified(self, id: int, notified: int) -> None:
        bucket = self.bucket_by_id(id)
        if bucket is not None:
            bucket.notified = notified
            self._changed.add(id)

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
        expires, bookings, call = found[0]
        return HoldRecord(id, expires, [tuple(b) for b in from_json(bookings)], from_json(call))

    def expired_holds(self, now: int, most: int) -> list[str]:
        self.flush()
        return [id for (id,) in self._run(self._sql.expired, (now,)).fetchmany(most)]

    def add_entry(self, entry: Entry) -> None:
        self._new_entries.append(entry)

    def last_entry(self, call_id: str) -> Entry | None:
        self.flush()
        row = self._run(self._sql.last_entry, (call_id,)).fetchone()
        return _entry(row) if row is not None else None

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

    def lessons(self) -> Lessons:
        if self._lessons is None:
            self._lessons = _lessons(self._run, self._sql)
        return self._lessons

    def keep_lesson(self, server: str, model: str, values: tuple[int, ...]) -> None:
        self._run(self._sql.keep_lesson, (server, model, *values))
        self._lessons = None


def _lessons(run: Callable[[str], Any], sql: Statements) -> Lessons:
    return {(server, model): tuple(values) for server, model, *values in run(sql.lessons)}


def _entry_values(entry: Entry) -> list[Any]:
    values = list(_entry_fields(entry))
    values[_TAGS] = encode(entry.tags) if entry.tags else "{}"
    values[_BOOKINGS] = encode(entry.bookings)
    return values


def _entry(row: Sequence[Any]) -> Entry:
    values = dict(zip(_ENTRY_ORDER, row, strict=True))
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
            HoldRecord(id, expires, [tuple(b) for b in from_json(bookings)], from_json(call))
            for id, expires, bookings, call in run(sql.all_holds)
        ],
        [_entry(row) for row in run(sql.all_entries)],
        [dict(zip(names, row, strict=True)) for row in run(sql.all_refusals)],
        dict(run(sql.overrides)),
        [KnownBudget(*row) for row in run(sql.all_budgets)],
        _lessons(run, sql),
    )


class SQLLedger(Ledger):
    """Books in a database that processes share. A subclass says which, and sets `_engine`."""

    shared: ClassVar[bool] = True
    inline_async: ClassVar[bool] = False
    statements: ClassVar[Statements]

    _engine: sa.Engine
    """To read with, and for what is no call: the schema, the keys."""

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

    def keys(self) -> SQLKeys:
        return SQLKeys(self.reading)


def schema_version(connection: sa.Connection) -> str | None:
    """The migration that a database is at; None: it is empty.

    Raises:
        StoreError: it is somebody else's.
    """
    tables = sa.inspect(connection).get_table_names()
    if "alembic_version" not in tables:
        if tables:
            raise StoreError(
                f"The database {connection.engine.url.database} has other tables "
                f"({', '.join(tables[:3])}) and no ledger: give the ledger a database of its own.",
                retryable=False,
            )
        return None
    return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()


def upgrade(engine: sa.Engine) -> None:
    """Bring a ledger's schema to this version's, under the write lock.

    Raises:
        StoreError: it was written by a newer version of this package.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.connect().execution_options(write=True) as connection, connection.begin():
        if schema_version(connection) == schema.HEAD:
            return  # another process was quicker
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise StoreError(
                f"The ledger {engine.url.database} cannot be brought to this version's schema ({error}): "
                "it was probably written by a newer version of behest-integrations. Upgrade the package.",
                retryable=False,
            ) from error
