"""`behest db copy`: a ledger's books, all of them, into another database.

It is done in one transaction of the target, or not at all, and is read back before it is committed. Rows
stream, whatever their number; into PostgreSQL as the lines of a COPY, and these are what is compared.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import sqlalchemy as sa

from ..rules.errors import ConfigError, StoreError
from . import schema
from .sql import SQLLedger

_AT_ONCE = 2000
Row = tuple[Any, ...]


class Copied(dict[str, int]):
    """How many rows of each table were copied."""


def copy_books(source: SQLLedger, target: SQLLedger, tell: Callable[[str, int], None]) -> Copied:
    """Copy everything in `source` to `target`, which must have nothing yet.

    Args:
        tell: told of each table, and how many rows of it there were, as it is done.

    Raises:
        ConfigError: the target has books already.
        StoreError: either cannot be read or written, somebody wrote to the source meanwhile, or what is
            read back is not what was written. Nothing has been copied then.
    """
    copied = Copied()
    tables = schema.metadata.sorted_tables
    reading = source.reading().connect().execution_options(isolation_level=_isolation(source))
    with reading as old, target.reading().execution_options(write=True).begin() as new:
        if new.dialect.name == "postgresql":
            names = ", ".join(_name(new, table) for table in tables)
            new.exec_driver_sql(f"LOCK TABLE {names} IN EXCLUSIVE MODE")
        for table in tables:
            if new.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first() is not None:
                raise ConfigError(
                    f"{target.url} has books of its own already (in {table.name}), and two ledgers cannot be "
                    "made one. Name an empty one."
                )
        writing = _Lines(new) if new.dialect.name == "postgresql" else _Tuples(new)
        for table in tables:
            ours, theirs = writing.write(table, _rows(old, table)), writing.read_back(table)
            if ours != theirs:
                raise StoreError(
                    f"what {target.url} gives back of {table.name} is not what was written to it "
                    f"({ours.count} rows, and {theirs.count}): nothing has been copied",
                    retryable=False,
                )
            copied[table.name] = ours.count
            tell(table.name, ours.count)
        writing.end(tables)
        # The snapshot is of its beginning: what came since would be missing.
        with source.reading().connect() as now:
            if _marks(now) != _marks(old):
                raise StoreError(
                    f"{source.url} was written to while it was copied, and so nothing has been copied. "
                    "Stop what uses it, and copy then."
                )
    return copied


def _isolation(ledger: SQLLedger) -> Any:
    return "REPEATABLE READ" if ledger.reading().dialect.name == "postgresql" else "SERIALIZABLE"


def _rows(connection: sa.Connection, table: sa.Table) -> Iterator[Row]:
    """A table's rows, with text where a column is JSON: it goes on as it is."""
    columns = [sa.cast(c, sa.Text()) if isinstance(c.type, sa.JSON) else c for c in table.columns]
    options: dict[str, Any] = {"yield_per": _AT_ONCE}
    statement = sa.select(*columns).order_by(*table.primary_key)
    return map(tuple, connection.execute(statement, execution_options=options))


class _Lines:
    """Into PostgreSQL.

    https://www.postgresql.org/docs/current/sql-copy.html: "Text Format". What is written is written as it
    comes back, so that nothing needs to be read into values to be compared.
    """

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._driver: Any = connection.connection.driver_connection

    def write(self, table: sa.Table, rows: Iterator[Row]) -> _Digest:
        digest = _Digest()
        with self._driver.cursor() as cursor, cursor.copy(f"COPY {self._of(table)} FROM STDIN") as copy:
            while some := [_line(row) for row in islice(rows, _AT_ONCE)]:
                copy.write(b"".join(some))
                digest.add(some)
        return digest

    def read_back(self, table: sa.Table) -> _Digest:
        digest = _Digest()
        with self._driver.cursor() as cursor, cursor.copy(f"COPY {self._of(table)} TO STDOUT") as copy:
            digest.add(copy)  # it gives them one by one
        return digest

    def end(self, tables: Iterable[sa.Table]) -> None:
        # Whoever asks for a report at once is not to wait for an autovacuum to have looked at it.
        for table in tables:
            self._connection.exec_driver_sql(f"ANALYZE {_name(self._connection, table)}")

    def _of(self, table: sa.Table) -> str:
        return f"{_name(self._connection, table)} ({_columns(table)})"


_NULL = "\x01"
_ESCAPED = re.compile("[\x00\\\\\b\f\n\r\v]")
_ESCAPES = str.maketrans(
    {"\\": r"\\", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v"}
    # PostgreSQL's text has no character 0.
    | {"\x00": "\ufffd"}
)


def _line(row: Row) -> bytes:
    line = "\t".join([_NULL if v is None else v if v.__class__ is str else str(v) for v in row])
    is_plain = _ESCAPED.search(line) is None and line.count("\t") == len(row) - 1
    if is_plain and line.count(_NULL) == row.count(None):
        return line.replace(_NULL, r"\N").encode() + b"\n"
    told = (r"\N" if v is None else v.translate(_ESCAPES) if isinstance(v, str) else str(v) for v in row)
    return "\t".join(told).encode() + b"\n"


class _Tuples:
    """Into SQLite."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def write(self, table: sa.Table, rows: Iterator[Row]) -> _Digest:
        digest = _Digest()
        insert = (
            f"INSERT INTO {table.name} ({_columns(table)}) VALUES ({', '.join('?' * len(table.columns))})"
        )
        while some := [*islice(rows, _AT_ONCE)]:
            self._connection.exec_driver_sql(insert, some)
            digest.add(map(_told, some))
        return digest

    def read_back(self, table: sa.Table) -> _Digest:
        digest = _Digest()
        digest.add(map(_told, _rows(self._connection, table)))
        return digest

    def end(self, tables: Iterable[sa.Table]) -> None:
        pass


def _told(row: Row) -> bytes:
    return repr(row).encode("utf-8", "surrogatepass")


def _columns(table: sa.Table) -> str:
    return ", ".join(f'"{c.name}"' for c in table.columns)


def _name(connection: sa.Connection, table: sa.Table) -> str:
    within = (connection.get_execution_options().get("schema_translate_map") or {}).get(None)
    quote = connection.dialect.identifier_preparer.quote
    return f"{quote(within)}.{table.name}" if within else table.name


def _marks(connection: sa.Connection) -> Sequence[Any]:
    """What changes with whatever calls do."""
    b, h, e, r, a = schema.buckets, schema.holds, schema.entries, schema.refusals, schema.audit
    count = sa.func.count
    marks = (
        sa.select(count(), sa.func.max(e.c.id)).select_from(e),
        sa.select(count(), sa.func.sum(b.c.spent), sa.func.sum(b.c.held)).select_from(b),
        sa.select(count(), sa.func.max(h.c.id)).select_from(h),
        sa.select(count(), sa.func.sum(r.c.count)).select_from(r),
        sa.select(count(), sa.func.max(a.c.id)).select_from(a),
    )
    return [tuple(connection.execute(mark).one()) for mark in marks]


class _Digest:
    """What a set of rows comes to, in whatever order they are read: databases order text differently."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = 0

    def add(self, rows: Iterable[bytes | memoryview]) -> None:
        """Count in some rows, as they are told."""
        rows = iter(rows)
        while some := [hashlib.blake2b(row, digest_size=16).digest() for row in islice(rows, _AT_ONCE)]:
            self.count += len(some)
            self._sum = (self._sum + sum([int.from_bytes(hash, "big") for hash in some])) % 2**128

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Digest) and (self.count, self._sum) == (other.count, other._sum)
