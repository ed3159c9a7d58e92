"""The books in a database, through SQLAlchemy Core. Today: SQLite.

Statements are written once as Core expressions and compiled once into the driver's SQL;
the writer runs them on a connection of its own, because compiling and wrapping results
each time would cost several times what SQLite itself does.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from pydantic_core import from_json
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool, StaticPool

from ..rules.errors import ConfigError, StoreError
from . import schema
from .base import Ledger
from .book import Bucket, Entry, HoldRecord, encode

Durability = Literal["process", "power"]

_ENTRY_COLUMNS = tuple(f.name for f in fields(Entry))
_COMMITS_TO_COPY = 400
"""Commits after which the write-ahead log is copied into the file: some 4,000 pages of it."""
_BUSY = ("database is locked", "database table is locked", "database schema is locked")


class _Statement:
    """A Core statement as driver SQL, with the order in which it takes its parameters."""

    def __init__(self, statement: sa.sql.ClauseElement, *names: str) -> None:
        compiled = statement.compile(dialect=sqlite_dialect(paramstyle="qmark"))
        self.sql = str(compiled)
        order = tuple(compiled.positiontup or ())  # type: ignore[attr-defined]
        if order != names:
            raise AssertionError(f"parameters come as {order}, not {names}: {self.sql}")


_b, _h, _e, _l, _r = schema.buckets, schema.holds, schema.entries, schema.limits, schema.refusals
_P = sa.bindparam

_OVERRIDES = _Statement(sa.select(_l.c.text, _l.c.amount))
_BUCKET = _Statement(
    sa.select(_b).where(
        _b.c.budget == _P("budget"), _b.c.scope == _P("scope"), _b.c.start == _P("start")
    ),
    "budget", "scope", "start",
)  # fmt: skip
_NEW_BUCKET = _Statement(
    sa.insert(_b).values(
        budget=_P("budget"), scope=_P("scope"), start=_P("start"), unit=_P("unit"),
        spent=sa.literal_column("0"), held=sa.literal_column("0"), notified=sa.literal_column("0"),
    ).returning(_b.c.id),
    "budget", "scope", "start", "unit",
)  # fmt: skip
_SET_BUCKET = _Statement(
    sa.update(_b).where(_b.c.id == _P("key")).values(spent=_P("s"), held=_P("h"), notified=_P("n")),
    "s", "h", "n", "key",
)  # fmt: skip
_ROLLING = _Statement(
    sa.select(sa.func.coalesce(sa.func.sum(_b.c.spent), sa.literal_column("0"))).where(
        _b.c.budget == _P("budget"), _b.c.scope == _P("scope"),
        _b.c.start > _P("after"), _b.c.start > sa.literal_column("0"),
    ),
    "budget", "scope", "after",
)  # fmt: skip
_ADD_HOLD = _Statement(
    sa.insert(_h).values(id=_P("i"), expires=_P("x"), bookings=_P("b"), call=_P("c")), "i", "x", "b", "c"
)
_TAKE_HOLD = _Statement(
    sa.delete(_h).where(_h.c.id == _P("i")).returning(_h.c.expires, _h.c.bookings, _h.c.call), "i"
)
_EXTEND_HOLD = _Statement(sa.update(_h).where(_h.c.id == _P("i")).values(expires=_P("x")), "x", "i")
_EXPIRED = _Statement(sa.select(_h.c.id).where(_h.c.expires <= _P("now")).order_by(_h.c.expires), "now")
_ADD_ENTRY = _Statement(
    sa.insert(_e).values({name: _P(f"v_{name}", type_=sa.Text()) for name in _ENTRY_COLUMNS}),
    *(f"v_{c.name}" for c in _e.columns if c.name in _ENTRY_COLUMNS),
)
_ENTRY_ORDER = tuple(c.name for c in _e.columns if c.name in _ENTRY_COLUMNS)
_LAST_ENTRY = _Statement(
    sa.select(*(sa.type_coerce(_e.c[name], sa.Text()).label(name) for name in _ENTRY_ORDER))
    .where(_e.c.call_id == _P("i"), _e.c.reversal == sa.literal_column("0"))
    .order_by(_e.c.id.desc()),
    "i",
)
_ALL_BUCKETS = _Statement(sa.select(_b).order_by(_b.c.id))
_ALL_HOLDS = _Statement(sa.select(_h.c.id, _h.c.expires, _h.c.bookings, _h.c.call))
_ALL_ENTRIES = _Statement(
    sa.select(*(sa.type_coerce(_e.c[name], sa.Text()).label(name) for name in _ENTRY_ORDER)).order_by(_e.c.id)
)
_OVERRIDE_UPSERT = insert(_l).values(text=_P("t"), amount=_P("a"))
_SET_OVERRIDE = _Statement(
    _OVERRIDE_UPSERT.on_conflict_do_update(
        index_elements=["text"], set_={"amount": _OVERRIDE_UPSERT.excluded.amount}
    ),
    "t", "a",
)  # fmt: skip
_DROP_OVERRIDE = _Statement(sa.delete(_l).where(_l.c.text == _P("t")), "t")
_REFUSAL_UPSERT = insert(_r).values(
    bucket=_P("b"), who=_P("w"), session_id=_P("s"), user_id=_P("u"), project=_P("p"),
    tenant=_P("t"), model=_P("m"), count=sa.literal_column("1"), at=_P("at"),
)  # fmt: skip
_COUNT_REFUSAL = _Statement(
    _REFUSAL_UPSERT.on_conflict_do_update(
        index_elements=["bucket", "who"],
        set_={"count": _r.c.count + sa.literal_column("1"), "at": _REFUSAL_UPSERT.excluded.at},
    ),
    "b", "w", "s", "u", "p", "t", "m", "at",
)  # fmt: skip


class _SQLRows:
    """Rows over a driver's connection; see `book.Rows`.

    Inside a transaction, which holds the write lock, buckets are read once and written
    once, at its end: with many callers a transaction runs many operations over the same
    few buckets, and each statement costs a trip through the driver and the interpreter's
    lock. Between transactions nothing is remembered but which id a bucket has.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._run = connection.execute
        self._run_many = connection.executemany
        self._ids: dict[tuple[str, str, int], int] = {}
        self.begin()

    def begin(self) -> None:
        """Forget what an earlier transaction saw."""
        self._by_key: dict[tuple[str, str, int], Bucket | None] = {}
        self._by_id: dict[int, Bucket] = {}
        self._changed: set[int] = set()
        self._new_holds: dict[str, HoldRecord] = {}
        self._new_entries: list[Entry] = []
        self._limits: dict[str, int | None] | None = None

    def forget(self) -> None:
        """After a rollback, ids that it handed out may go to other buckets."""
        self._ids.clear()
        self.begin()

    def flush(self) -> None:
        """Write what has been changed, before it is read with SQL or committed."""
        if self._changed:
            buckets = [self._by_id[id] for id in self._changed]
            self._run_many(_SET_BUCKET.sql, [(b.spent, b.held, b.notified, b.id) for b in buckets])
            self._changed.clear()
        if self._new_holds:
            self._run_many(
                _ADD_HOLD.sql,
                [(h.id, h.expires, encode(h.bookings), encode(h.call)) for h in self._new_holds.values()],
            )
            self._new_holds.clear()
        if self._new_entries:
            self._run_many(_ADD_ENTRY.sql, [_entry_values(e) for e in self._new_entries])
            self._new_entries.clear()

    def overrides(self) -> Mapping[str, int | None]:
        if self._limits is None:
            self._limits = dict(self._run(_OVERRIDES.sql))
        return self._limits

    def set_override(self, text: str, amount: int | None) -> None:
        self._run(_SET_OVERRIDE.sql, (text, amount))
        self._limits = None

    def drop_override(self, text: str) -> None:
        self._run(_DROP_OVERRIDE.sql, (text,))
        self._limits = None

    def load(self, keys: Sequence[tuple[str, str, int]]) -> None:
        missing = [id for key in keys if key not in self._by_key and (id := self._ids.get(key)) is not None]
        if missing:
            for row in self._run(_select_by_ids(len(missing)), missing):
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
        if key in self._by_key:
            return self._by_key[key]
        row = self._run(_BUCKET.sql, key).fetchone()
        if row is None:
            self._by_key[key] = None
            return None
        return self._keep(Bucket(*row))

    def bucket_by_id(self, id: int) -> Bucket | None:
        if id in self._by_id:
            return self._by_id[id]
        row = self._run(_select_by_ids(1), (id,)).fetchone()
        return self._keep(Bucket(*row)) if row is not None else None

    def new_bucket(self, budget: str, scope: str, start: int, unit: str) -> Bucket:
        ((id,),) = self._run(_NEW_BUCKET.sql, (budget, scope, start, unit)).fetchall()
        return self._keep(Bucket(id, budget, scope, start, unit))

    def change_bucket(self, id: int, spent: int, held: int) -> None:
        bucket = self.bucket_by_id(id)
        if bucket is None:
            raise sqlite3.DatabaseError(f"bucket {id} is missing: the file is malformed")
        bucket.spent += spent
        bucket.held += held
        self._changed.add(id)

    def everything(self) -> tuple[list[Bucket], list[HoldRecord], list[Entry]]:
        self.flush()
        return _read_all(self._run)

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
        (total,) = self._run(_ROLLING.sql, (budget, scope, after)).fetchone()
        return int(total)

    def count_refusal(self, id: int, call: Mapping[str, Any], now: int) -> None:
        who = tuple(call.get(k) for k in ("session_id", "user_id", "project", "tenant", "model"))
        self._run(_COUNT_REFUSAL.sql, (id, encode(who), *who, now))

    def add_hold(self, hold: HoldRecord) -> None:
        self._new_holds[hold.id] = hold

    def take_hold(self, id: str) -> HoldRecord | None:
        if id in self._new_holds:
            return self._new_holds.pop(id)
        # All rows must be fetched, or a DELETE ... RETURNING leaves its statement open.
        found = self._run(_TAKE_HOLD.sql, (id,)).fetchall()
        if not found:
            return None
        expires, bookings, call = found[0]
        return HoldRecord(id, expires, [tuple(b) for b in from_json(bookings)], from_json(call))

    def extend_hold(self, id: str, expires: int) -> bool:
        self.flush()
        return self._run(_EXTEND_HOLD.sql, (expires, id)).rowcount > 0

    def expired_holds(self, now: int, most: int) -> list[str]:
        self.flush()
        return [id for (id,) in self._run(_EXPIRED.sql, (now,)).fetchmany(most)]

    def add_entry(self, entry: Entry) -> None:
        self._new_entries.append(entry)

    def last_entry(self, call_id: str) -> Entry | None:
        self.flush()
        row = self._run(_LAST_ENTRY.sql, (call_id,)).fetchone()
        return _entry(row) if row is not None else None


_MOST_IDS = 100_000


@lru_cache(maxsize=64)
def _select_by_ids(count: int) -> str:
    statement = sa.select(_b).where(_b.c.id.in_([_P(f"k{i}") for i in range(count)]))
    return str(statement.compile(dialect=sqlite_dialect(paramstyle="qmark")))


def _entry_values(entry: Entry) -> list[Any]:
    values = [getattr(entry, name) for name in _ENTRY_ORDER]
    values[_TAGS] = encode(entry.tags) if entry.tags else "{}"
    values[_BOOKINGS] = encode(entry.bookings)
    return values


_TAGS, _BOOKINGS = _ENTRY_ORDER.index("tags"), _ENTRY_ORDER.index("bookings")


def _entry(row: Sequence[Any]) -> Entry:
    values = dict(zip(_ENTRY_ORDER, row, strict=False))
    for name in ("tags", "bookings"):
        if isinstance(values[name], str):
            values[name] = json.loads(values[name])
    values["bookings"] = [tuple(b) for b in values["bookings"]]
    return Entry(**values)


class SQLLedger(Ledger):
    """Books in an SQLite file that any number of processes may share.

    Args:
        url: a SQLAlchemy URL, e.g. ``sqlite:///behest.db``.
        timeout: seconds to wait for another process's write before giving up.
        durability: what the books survive: the death of a ``process`` (WAL, synchronous
            NORMAL; the last transactions can be lost if the machine loses power), or of
            the ``power`` (FULL: every transaction waits for the disk).

    Raises:
        ConfigError: not a URL of a supported database.
        StoreError: the file cannot be opened, or is not a ledger.
    """

    inline_async = False

    def __init__(self, url: str, *, timeout: float = 5.0, durability: Durability = "process") -> None:
        try:
            parsed = make_url(url)
        except ArgumentError:
            raise ConfigError(f"not a store: {url!r}; e.g. 'sqlite:///behest.db' or 'memory://'") from None
        if parsed.get_backend_name() != "sqlite":
            raise ConfigError(
                f"store {parsed.render_as_string()!r}: only sqlite:///FILE and memory:// are supported yet"
            )
        if not parsed.database or parsed.database == ":memory:":
            raise ConfigError("an SQLite store is a file; for books in memory use 'memory://'")
        if durability not in ("process", "power"):
            raise ConfigError(f"durability is 'process' or 'power', not {durability!r}")
        super().__init__(url)
        self.path = Path(parsed.database).absolute()
        self._timeout = timeout
        self._durability = durability
        self._connection: sqlite3.Connection | None = None
        self._rows: _SQLRows | None = None
        self._inode: tuple[int, int] | None = None
        self._commits = 0
        """Since the log was last copied into the file."""
        self._engine = self._make_engine()
        with self._lock:
            self._open()

    def _make_engine(self) -> sa.Engine:
        engine = sa.create_engine(
            f"sqlite:///{self.path}",
            poolclass=NullPool,
            connect_args={"timeout": self._timeout, "check_same_thread": False},
        )
        synchronous = "NORMAL" if self._durability == "process" else "FULL"

        @sa.event.listens_for(engine, "connect")
        def configure(connection: sqlite3.Connection, _record: object) -> None:
            # Transactions are begun by hand: sqlite3's own rules begin them too late.
            connection.isolation_level = None
            # For a new file. A call touches a few rows in each of four tables, and whole pages
            # go to the log: half the default size takes a quarter off a commit.
            connection.execute("PRAGMA page_size=2048")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA synchronous={synchronous}")
            # A transaction that finds the log this long copies it, and waits for the disk. That is
            # done sooner and by hand, where nobody waits: see `_commit`.
            connection.execute("PRAGMA wal_autocheckpoint=20000")

        @sa.event.listens_for(engine, "begin")
        def begin(connection: sa.Connection) -> None:
            write = connection.get_execution_options().get("write")
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

        return engine

    # ── opening ────────────────────────────────────────────────────────────────────────

    def _open(self) -> None:
        """Connect, bring the schema up to date, and remember which file this is."""
        if sqlite3.sqlite_version_info < (3, 35):
            raise StoreError(
                f"SQLite {sqlite3.sqlite_version} is too old: 3.35 or newer is needed", retryable=False
            )
        if not self.path.parent.is_dir():
            raise StoreError(
                f"Cannot open the ledger {self.path}: its folder does not exist", retryable=False
            )
        try:
            self._migrate()
            pooled = self._engine.raw_connection()
            connection: sqlite3.Connection = pooled.driver_connection  # type: ignore[assignment]
            pooled.detach()
            # Waiting for other processes is done here, in shorter steps than SQLite's.
            connection.execute("PRAGMA busy_timeout=0")
        except (sqlite3.Error, sa.exc.DatabaseError) as error:
            raise self._explain(getattr(error, "orig", None) or error) from error
        self._connection = connection
        self._rows = _SQLRows(connection)
        stat = os.stat(self.path)
        self._inode = (stat.st_dev, stat.st_ino)

    def _migrate(self) -> None:
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                with self._engine.connect() as connection:
                    version = _version(connection)
                if version == schema.HEAD:
                    return
                upgrade(self._engine, self.path)
                return
            except sa.exc.OperationalError as error:
                if not _is_busy(error.orig) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _after_fork(self) -> None:
        super()._after_fork()
        # The parent's connection must be neither used nor closed here: closing it would
        # drop the parent's locks on the file.
        _ABANDONED.append(self._connection)
        self._connection = self._rows = None
        self._engine.dispose(close=False)

    def close(self) -> None:
        if self._connection is None:
            return
        super().close()
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = self._rows = None
        self._engine.dispose()

    # ── transactions ───────────────────────────────────────────────────────────────────

    def _begin(self) -> _SQLRows:
        self._check_file()
        if self._connection is None:
            self._open()
        assert self._connection is not None
        assert self._rows is not None
        deadline: float | None = None
        pause = 0.0002
        while True:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                self._rows.begin()
                return self._rows
            except sqlite3.Error as error:
                if not _is_busy(error):
                    raise self._explain(error) from error
                now = time.monotonic()
                deadline = deadline or now + self._timeout
                if now > deadline:
                    raise self._explain(error) from error
            time.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 1.5, 0.005)

    def _begin_now(self) -> _SQLRows | None:
        # With FULL a commit waits for the disk, and so does the one that copies the log.
        if self._durability != "process" or self._commits + 1 >= _COMMITS_TO_COPY:
            return None
        try:
            self._check_file()
            if self._connection is None or self._rows is None:
                return None
            self._connection.execute("BEGIN IMMEDIATE")
        except (sqlite3.Error, StoreError):
            return None  # another process writes, or something is wrong: `_begin` waits, or says so
        self._rows.begin()
        return self._rows

    def _commit(self) -> None:
        assert self._connection is not None
        assert self._rows is not None
        self._rows.flush()
        self._connection.execute("COMMIT")
        self._commits += 1
        if self._commits >= _COMMITS_TO_COPY:
            self._commits = 0
            with contextlib.suppress(sqlite3.Error):  # it is written: what is left is tidying up
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _rollback(self) -> None:
        if self._rows is not None:
            self._rows.forget()
        if self._connection is not None and self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    def _check_file(self) -> None:
        """SQLite goes on writing into a file that was deleted; those books would be lost."""
        if self._inode is None:
            return
        try:
            stat = os.stat(self.path)
        except FileNotFoundError:
            stat = None
        except OSError as error:
            raise self._explain(error) from error
        if stat is None or (stat.st_dev, stat.st_ino) != self._inode:
            what = "was deleted" if stat is None else "was replaced by another file"
            raise StoreError(
                f"The ledger {self.path} {what} while in use, so what was spent is not known and "
                "calls are refused. Put the file back, or start anew (with an empty ledger) by "
                "making a new Meter.",
                retryable=False,
            )

    def _explain(self, error: BaseException) -> Exception:
        text = str(error)
        where = f"The ledger {self.path}"
        if not isinstance(error, (sqlite3.Error, OSError)):
            return error if isinstance(error, Exception) else StoreError(text)
        if _is_busy(error):
            return StoreError(
                f"{where} was locked by another process for more than {self._timeout:g} s; the call was "
                "not let through. Find who holds it, or wait longer: Meter(store_timeout=30)."
            )
        if "readonly" in text:
            return StoreError(
                f"{where} cannot be written ({text}): check the permissions of the file and its folder."
            )
        if "full" in text:
            return StoreError(f"{where} cannot be written: the disk is full. Free some space and go on.")
        if "malformed" in text or "not a database" in text or "file is encrypted" in text:
            return StoreError(
                f"{where} is damaged or is not an SQLite file ({text}). Restore a backup, or move it away to "
                "start with an empty one.",
                retryable=False,
            )
        return StoreError(f"{where} failed: {text}")

    # ── reading ────────────────────────────────────────────────────────────────────────

    def reading(self) -> sa.Engine:
        self.flush()
        return self._engine

    def snapshot(self) -> tuple[list[Bucket], list[HoldRecord], list[Entry]]:
        with self.reading().connect() as connection, connection.begin():
            driver: Any = connection.connection.driver_connection
            return _read_all(driver.execute)

    def remember_budgets(self, budgets: Iterable[tuple[str, str, str]], now: int) -> None:
        """Write down which budgets are in force, (shape, text, zone), for those who only read."""
        statement = insert(schema.budgets)
        statement = statement.on_conflict_do_update(
            index_elements=["shape"],
            set_={n: statement.excluded[n] for n in ("text", "zone", "seen")},
        )
        sql = str(statement.compile(dialect=sqlite_dialect(paramstyle="qmark")))
        listed = [(shape, text, zone, now) for shape, text, zone in budgets]

        def write(rows: Any) -> None:
            for values in listed:
                rows._run(sql, values)

        self.submit(write)


_ABANDONED: list[object] = []


def _is_busy(error: object) -> bool:
    return isinstance(error, sqlite3.OperationalError) and str(error) in _BUSY


def _version(connection: sa.Connection) -> str | None:
    tables = sa.inspect(connection).get_table_names()
    if "alembic_version" not in tables:
        if tables:
            raise StoreError(
                f"The database {connection.engine.url.database} has other tables "
                f"({', '.join(tables[:3])}) and no ledger: give the ledger a file of its own.",
                retryable=False,
            )
        return None
    return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()


def upgrade(engine: sa.Engine, path: Path) -> None:
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
        if _version(connection) == schema.HEAD:
            return  # another process was quicker
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise StoreError(
                f"The ledger {path} cannot be brought to this version's schema ({error}): it was "
                "probably written by a newer version of behest-integrations. Upgrade the package.",
                retryable=False,
            ) from error


def _read_all(run: Callable[[str], Any]) -> tuple[list[Bucket], list[HoldRecord], list[Entry]]:
    """Every bucket, hold and entry, from one transaction."""
    buckets = [Bucket(*row) for row in run(_ALL_BUCKETS.sql)]
    holds = [
        HoldRecord(id, expires, [tuple(b) for b in from_json(bookings)], from_json(call))
        for id, expires, bookings, call in run(_ALL_HOLDS.sql)
    ]
    return buckets, holds, [_entry(row) for row in run(_ALL_ENTRIES.sql)]


def copy_into_database(
    buckets: Iterable[Bucket],
    holds: Iterable[HoldRecord],
    entries: Iterable[Entry],
    refusals: Iterable[Mapping[str, Any]],
) -> sa.Engine:
    """A database in memory with these rows, to run reports on."""
    engine = sa.create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    schema.metadata.create_all(engine)
    rows: list[tuple[sa.Table, list[dict[str, Any]]]] = [
        (_b, [asdict(b) for b in buckets]),
        (
            _h,
            [
                {"id": h.id, "expires": h.expires, "bookings": encode(h.bookings), "call": encode(h.call)}
                for h in holds
            ],
        ),
        (_e, [asdict(e) for e in entries]),
        (_r, [{**r, "who": encode([v for k, v in r.items() if k not in ("count", "at")])} for r in refusals]),
    ]
    with engine.begin() as connection:
        for table, values in rows:
            if values:
                connection.execute(sa.insert(table), values)
    return engine
