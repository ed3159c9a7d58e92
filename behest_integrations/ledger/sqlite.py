"""The books in an SQLite file: its pragmas, how others are waited for, and what its errors mean."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import time
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool, StaticPool

from ..rules.errors import ConfigError, StoreError
from . import schema
from .base import Durability
from .contention import SharedFile
from .migrating import schema_version, upgrade
from .sql import SQLLedger, SQLRows
from .statements import Statements

_COMMITS_TO_COPY = 400
"""Commits after which the write-ahead log is copied into the file: some 4,000 pages of it."""
_BUSY = ("database is locked", "database table is locked", "database schema is locked")


class SQLiteLedger(SQLLedger):
    """Books in an SQLite file that any number of processes may share.

    Args:
        url: a SQLAlchemy URL, e.g. ``sqlite:///behest.db``.
        timeout: seconds to wait for another process's write before giving up.
        durability: what the books survive: the death of a ``process`` (WAL, synchronous
            NORMAL; the last transactions can be lost if the machine loses power), or of
            the ``power`` (FULL: every transaction waits for the disk).
        read_only: look at it, and write nothing: neither the file nor its schema, which is brought up to
            date in a copy in memory where it is an older one.

    Raises:
        ConfigError: not a URL of a supported database.
        StoreError: the file cannot be opened, or is not a ledger.
    """

    statements = Statements(sqlite_dialect(paramstyle="qmark"), insert)

    slow_advice = (
        "Look at its disk, at whether it is on a network's file system, and at who else writes it or has it "
        "locked. PostgreSQL takes more writers: 'behest db copy'."
    )

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 5.0,
        durability: Durability = "process",
        read_only: bool = False,
    ) -> None:
        path = _file(url)
        if durability not in ("process", "power"):
            raise ConfigError(f"durability is 'process' or 'power', not {durability!r}")
        super().__init__(url)
        self.path = path.absolute()
        self._file = str(self.path)
        self._timeout = timeout
        self._durability = durability
        self.read_only = read_only
        self._connection: sqlite3.Connection | None = None
        self._rows: SQLRows | None = None
        self._inode: tuple[int, int] | None = None
        self.contended: SharedFile = SharedFile()
        self._commits = 0
        """Since the log was last copied into the file."""
        self._seen: int | None = None
        """The version of the data at the last transaction's begin."""
        self._engine = self._engine_to_read() if read_only else self._make_engine()
        with self._lock:
            self._open()

    @classmethod
    def exists(cls, url: str) -> bool:
        return _file(url).exists()

    @classmethod
    def to_read(cls, url: str, *, timeout: float = 5.0) -> SQLiteLedger:
        return cls(url, timeout=timeout, read_only=True)

    def _engine_to_read(self) -> sa.Engine:
        """The file, as nobody can write it; or, where its schema is an older one, an up-to-date copy.

        Raises:
            StoreError: it cannot be read, or is no ledger that this version can read.
        """
        if self.path.is_dir():
            raise StoreError(f"{self.path} is a folder: name the ledger's file in it.", retryable=False)
        try:
            # Who may write the file tidies its log away at the end, and writes no more than that.
            engine = self._try_to_read("mode=rw")
            try:
                with engine.connect() as connection:
                    version = schema_version(connection)
            except sa.exc.OperationalError:
                # Its log's index cannot be made beside it. Without a log nothing of it is needed.
                log = Path(f"{self.path}-wal")
                if log.exists() and log.stat().st_size:
                    raise
                engine = self._try_to_read("mode=ro&immutable=1")
                with engine.connect() as connection:
                    version = schema_version(connection)
            if version is None:
                raise StoreError(f"{self.path} is empty: no ledger has been made in it.", retryable=False)
            if version == schema.HEAD:
                return engine
            copy = sqlite3.connect(":memory:", check_same_thread=False)
            copy.isolation_level = None
            with engine.connect() as connection:
                source: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
                source.backup(copy)
            current = sa.create_engine(f"sqlite:///{self.path}", creator=lambda: copy, poolclass=StaticPool)
            sa.event.listen(current, "begin", _begin_by_hand)
            upgrade(current)
            return current
        except (sqlite3.Error, sa.exc.DatabaseError, OSError) as error:
            raise self._explain(getattr(error, "orig", None) or error) from error

    def _try_to_read(self, options: str) -> sa.Engine:
        def connect() -> sqlite3.Connection:
            where = f"file:{quote(str(self.path))}?{options}"
            connection = sqlite3.connect(where, uri=True, timeout=self._timeout, check_same_thread=False)
            connection.isolation_level = None
            connection.execute("PRAGMA query_only=ON")
            return connection

        engine = sa.create_engine(f"sqlite:///{self.path}", creator=connect, poolclass=NullPool)
        sa.event.listen(engine, "begin", _begin_by_hand)
        return engine

    @classmethod
    def version(cls, url: str) -> str | None:
        path = _file(url)
        if not path.exists():
            return None
        engine = sa.create_engine(f"sqlite:///{path}", poolclass=NullPool)
        try:
            with engine.connect() as connection:
                return schema_version(connection)
        except sa.exc.DatabaseError as error:
            raise StoreError(f"The ledger {path} cannot be read: {error.orig}", retryable=False) from error

    @classmethod
    def upgrade(cls, url: str) -> None:
        cls(url).close()

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

        sa.event.listen(engine, "begin", _begin_by_hand)
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
        if self.path.is_dir():
            raise StoreError(f"{self.path} is a folder: name the ledger's file in it.", retryable=False)
        try:
            if not self.read_only:
                self._check_whose()
                self._migrate()
            pooled = self._engine.raw_connection()
            connection: sqlite3.Connection = pooled.driver_connection  # type: ignore[assignment]
            pooled.detach()
            # Waiting for other processes is done here, in shorter steps than SQLite's.
            connection.execute("PRAGMA busy_timeout=0")
        except (sqlite3.Error, sa.exc.DatabaseError) as error:
            raise self._explain(getattr(error, "orig", None) or error) from error
        self._connection = connection
        self._seen = None
        self._rows = SQLRows(connection.execute, connection.executemany, self.statements)
        stat = os.stat(self._file)
        self._inode = (stat.st_dev, stat.st_ino)

    def _check_whose(self) -> None:
        """Of a database that is not ours nothing is changed, not even how it keeps its log.

        https://sqlite.org/fileformat2.html#the_database_header: byte 18 is 2 with a write-ahead log.
        """
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            header = file.read(19)
            if len(header) == 19 and header[18] != 2:
                with self._try_to_read("mode=rw").connect() as connection:
                    schema_version(connection)

    def _migrate(self) -> None:
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                with self._engine.connect() as connection:
                    version = schema_version(connection)
                if version == schema.HEAD:
                    return
                upgrade(self._engine)
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
        with self._alone():
            if self._connection is not None:
                self._connection.close()
                self._connection = self._rows = None
        self._engine.dispose()

    # ── transactions ───────────────────────────────────────────────────────────────────

    def _begin(self) -> SQLRows:
        self._check_file()
        if self._connection is None:
            self._open()
        assert self._connection is not None
        assert self._rows is not None
        deadline: float | None = None
        pause = 0.0002
        while True:
            try:
                self._connection.execute("BEGIN" if self.read_only else "BEGIN IMMEDIATE")
                return self._begun()
            except sqlite3.Error as error:
                if not _is_busy(error):
                    raise self._explain(error) from error
                now = time.monotonic()
                deadline = deadline or now + self._timeout
                if now > deadline:
                    raise self._explain(error) from error
            time.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 1.5, 0.005)

    def _begin_now(self) -> SQLRows | None:
        # With FULL a commit waits for the disk, and so does the one that copies the log.
        if self.read_only or self._durability != "process" or self._commits + 1 >= _COMMITS_TO_COPY:
            return None
        try:
            self._check_file()
            if self._connection is None or self._rows is None:
                return None
            self._connection.execute("BEGIN IMMEDIATE")
        except (sqlite3.Error, StoreError):
            return None  # another process writes, or something is wrong: `_begin` waits, or says so
        return self._begun()

    def _begun(self) -> SQLRows:
        """In a transaction, so that nobody else can write: has anybody, since the last one?"""
        assert self._connection is not None
        assert self._rows is not None
        # https://sqlite.org/pragma.html#pragma_data_version: changes if and only if another
        # connection, of whatever process, has committed; our own commits do not change it.
        ((version,),) = self._connection.execute("PRAGMA data_version")
        alone = version == self._seen
        if not alone:
            self.contended.met()
        self._rows.begin(alone=alone)
        self._seen = version
        return self._rows

    def _commit(self) -> None:
        assert self._connection is not None
        assert self._rows is not None
        self._rows.flush()
        self._connection.execute("COMMIT")
        self._commits += 1
        if self._commits >= _COMMITS_TO_COPY and not self.read_only:
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
            stat = os.stat(self._file)
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

    def own_check(self, *, whole: bool) -> list[str]:
        # https://sqlite.org/pragma.html#pragma_integrity_check
        pragma = "integrity_check" if whole else "quick_check"
        try:
            with self.reading().connect() as connection:
                said = [str(line) for (line,) in connection.exec_driver_sql(f"PRAGMA {pragma}(20)")]
        except sa.exc.DatabaseError as error:
            if _is_busy(error.orig):
                raise self._explain(error.orig or error) from error
            return [str(error.orig)]
        return [] if said == ["ok"] else said

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
        if self.read_only and "readonly" in text:
            return StoreError(f"{where} was opened to be read, and cannot be written.", retryable=False)
        if self.read_only and "unable to open" in text:
            return StoreError(
                f"{where} cannot be read: check the permissions of the file. Where there is a file "
                f"{self.path.name}-wal beside it, the folder must be writable too, or both be copied to one "
                "that is.",
                retryable=False,
            )
        if "unable to open" in text:
            return StoreError(f"{where} cannot be opened: check the permissions of the file and its folder.")
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


def _file(url: str) -> Path:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigError(f"not a store: {url!r}; e.g. 'sqlite:///behest.db'") from None
    if parsed.get_backend_name() != "sqlite":
        raise ConfigError(f"not an SQLite file's URL: {parsed.render_as_string()!r}")
    if not parsed.database or parsed.database == ":memory:":
        raise ConfigError("an SQLite store is a file; for books in memory use 'memory://'")
    return Path(parsed.database)


def _begin_by_hand(connection: sa.Connection) -> None:
    """sqlite3's own rules begin transactions too late."""
    write = connection.get_execution_options().get("write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


_ABANDONED: list[object] = []


def _is_busy(error: object) -> bool:
    return isinstance(error, sqlite3.OperationalError) and str(error) in _BUSY
