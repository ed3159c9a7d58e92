"""`behest db copy`: a ledger's books, all of them, into another database.

It is done in one transaction of the target, or not at all, and is read back before it is committed.
"""

from __future__ import annotations

import hashlib
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
        for table in tables:
            ours = _Digest()
            _write(new, table, ours.seen(_rows(old, table)))
            theirs = _Digest()
            for _ in theirs.seen(_rows(new, table)):
                pass
            if ours != theirs:
                raise StoreError(
                    f"what {target.url} gives back of {table.name} is not what was written to it "
                    f"({ours.count} rows, and {theirs.count}): nothing has been copied",
                    retryable=False,
                )
            copied[table.name] = ours.count
            tell(table.name, ours.count)
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
    for row in connection.execute(
        sa.select(*columns).order_by(*table.primary_key), execution_options=options
    ):
        yield tuple(_storable(value) for value in row)


def _storable(value: Any) -> Any:
    # PostgreSQL's text has no character 0.
    return value.replace("\x00", "\ufffd") if isinstance(value, str) and "\x00" in value else value


def _write(connection: sa.Connection, table: sa.Table, rows: Iterator[Row]) -> None:
    if connection.dialect.name == "postgresql":
        driver: Any = connection.connection.driver_connection
        columns = ", ".join(f'"{c.name}"' for c in table.columns)
        with (
            driver.cursor() as cursor,
            cursor.copy(f"COPY {_name(connection, table)} ({columns}) FROM STDIN") as copy,
        ):
            for row in rows:
                copy.write_row(row)
        return
    places = ", ".join("?" * len(table.columns))
    columns = ", ".join(f'"{c.name}"' for c in table.columns)
    while some := list(islice(rows, _AT_ONCE)):
        connection.exec_driver_sql(f"INSERT INTO {table.name} ({columns}) VALUES ({places})", some)


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

    def seen(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            self.count += 1
            digest = hashlib.blake2b(repr(row).encode("utf-8", "surrogatepass"), digest_size=16).digest()
            self._sum = (self._sum + int.from_bytes(digest, "big")) % 2**128
            yield row

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Digest) and (self.count, self._sum) == (other.count, other._sum)
