"""Closing blocks: what entries add up to is written down, and what they say is sealed.

Whoever does it, one at a time does: entries are read and added up beside those who write, and what comes of
it is written in a moment, if nothing has happened to those entries meanwhile. A block is closed when there
are enough entries, or when their day (UTC) is over. It can be stopped at any time, and goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import sqlalchemy as sa
from pydantic_core import to_json

from . import schema
from .base import Ledger
from .blocks import (
    BLOCK,
    COLUMNS,
    DAY,
    NONE,
    UNTOLD,
    Block,
    Blocks,
    Row,
    Tally,
    read_blocks,
    read_members,
    rolled,
    sums_digest,
)
from .changes import changes, lock_changes
from .ids import first_id_at
from .moment import at_one_moment
from .seals import NOT_AS_SEALED, Seal, sealed
from .spans import drop_span, make_spans

_e = schema.entries.c
_AT, _ID = COLUMNS.index("at"), COLUMNS.index("id")
_GRACE = 10_000
"""Entries of the last seconds are left alone: others that belong before them may still be under way."""
_LATE = 600_000


class Closed(NamedTuple):
    """A block that was closed, with all that is written of it."""

    after: int
    last: int
    late: tuple[int, ...]
    tally: Tally
    rollups: Sequence[Row]
    ids: tuple[int, ...] = ()
    """Of its entries, where several write at once."""

    @property
    def sums(self) -> str:
        return sums_digest(self.rollups, self.tally.spent)


def close_blocks(
    ledger: Ledger,
    now: int,
    *,
    rest: Callable[[], None] = lambda: None,
    most: int | None = None,
) -> int:
    """Close what is to be closed; how many blocks that were.

    Args:
        now: milliseconds since 1970.
        rest: called every few entries: who has other things to do in this process is let go on.
        most: no more blocks than this.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database cannot be read or written.
    """
    count = 0
    while most is None or count < most:
        found = _next(ledger, now, rest)
        if found is None:
            break
        made, known = found
        if _write(ledger, made, now, known):
            count += 1
    if count:
        make_spans(ledger.reading())
    return count


def _next(ledger: Ledger, now: int, rest: Callable[[], None]) -> tuple[Closed, int] | None:
    """What is to be closed next, added up; and how often entries had been changed by then."""
    with at_one_moment(ledger.reading()) as connection:
        blocks = read_blocks(connection)
        after, until = blocks.mark, _until(connection, now)
        fresh = sa.and_(_e.id > after, _e.id <= until) if until is not None else _e.id > after
        if not _is_due(connection, fresh, now):
            return _late(connection, blocks, now, until)
        tally, last_of_day = Tally(), 0
        midnight = now - now % DAY
        rows = []
        for row in _resting(read_members(connection, fresh, BLOCK), rest):
            rows.append(row)
            if row[_AT] < midnight and row[_AT] <= now - _LATE:
                last_of_day = len(rows)
        if len(rows) < BLOCK:
            rows = rows[:last_of_day]
        for row in _resting(rows, rest):
            tally.add(row)
        if not tally.lines:
            return None
        rest()
        members = sa.and_(_e.id > after, _e.id <= tally.last)
        ids = () if until is None else tuple(row[_ID] for row in rows)
        made = Closed(after, tally.last, (), tally, rolled(connection, members), ids)
        return made, changes(connection)


def _is_due(connection: sa.Connection, fresh: sa.ColumnElement[Any], now: int) -> bool:
    """Whether there is a block's worth of entries, or any of a day that is over."""
    ids = sa.select(_e.id).where(fresh).order_by(_e.id)
    if connection.execute(ids.offset(BLOCK - 1).limit(1)).first() is not None:
        return True
    oldest = connection.execute(sa.select(_e.at).where(fresh).order_by(_e.id).limit(1)).scalar()
    return oldest is not None and oldest < now - now % DAY and oldest <= now - _LATE


def _until(connection: sa.Connection, now: int) -> int | None:
    """The last id that is looked at; None: any, as where one writes at a time."""
    return first_id_at(now - _GRACE) if connection.dialect.name == "postgresql" else None


def _late(
    connection: sa.Connection, blocks: Blocks, now: int, until: int | None
) -> tuple[Closed, int] | None:
    """Entries that turned up behind the mark, once there are enough, or they have waited long enough."""
    ids = blocks.unclosed[:BLOCK]
    if not ids:
        return None
    tally = Tally()
    members = _e.id.in_(ids)
    for row in read_members(connection, members):
        tally.add(row)
    if not tally.lines or (len(ids) < BLOCK and tally.first_at > now - _LATE):
        return None
    made = Closed(blocks.mark, blocks.mark, ids, tally, rolled(connection, members), ids)
    return made, changes(connection)


def _resting(rows: Iterator[Row] | Sequence[Row], rest: Callable[[], None]) -> Iterator[Row]:
    all_of_them = iter(rows)
    while some := list(islice(all_of_them, 64)):
        yield from some
        rest()


def _write(ledger: Ledger, made: Closed, now: int, known: int) -> bool:
    """Write a block, if its entries are still as they were and nobody was quicker."""
    with ledger.reading().execution_options(write=True).begin() as connection:
        lock_changes(connection)
        blocks = schema.blocks.c
        last, newest = connection.execute(sa.select(sa.func.max(blocks.last), sa.func.max(blocks.id))).one()
        if (NONE if last is None else last) != made.after or changes(connection) != known:
            return False
        id = (newest or 0) + 1
        if made.late:
            there = sa.select(schema.unclosed.c.id).where(schema.unclosed.c.id.in_(made.late))
            if len(connection.execute(there).all()) != len(made.late):
                return False
        tally = made.tally
        facts = {"lines": tally.lines, "digest": tally.digest, "sums": made.sums}
        connection.execute(
            sa.insert(schema.blocks).values(
                id=id,
                last=made.last,
                late=to_json(made.late).decode() if made.late else None,
                first_at=tally.first_at,
                last_at=tally.last_at,
                **facts,
            )
        )
        write_sums(connection, id, made.rollups, tally.spent)
        add_seal(connection, at=now, kind="closed", block=id, **facts)
        gone = schema.unclosed.c.id
        # Where several write at once, what has turned up meanwhile between these is not among them.
        mine = gone.in_(made.ids) if made.ids else sa.and_(gone > made.after, gone <= made.last)
        connection.execute(sa.delete(schema.unclosed).where(mine))
    return True


def write_sums(
    connection: sa.Connection, block: int, rollups: Sequence[Row], spent: Mapping[int, int]
) -> None:
    """Write what a block adds up to, in place of what was written."""
    r, s = schema.rollups, schema.block_sums
    connection.execute(sa.delete(r).where(r.c.kind.in_(range(UNTOLD + 1)), r.c.block == block))
    connection.execute(sa.delete(s).where(s.c.block == block))
    drop_span(connection, block)
    names = [c.name for c in r.columns if c.name != "block"]
    if rollups:
        rows = [{**dict(zip(names, row, strict=True)), "block": block} for row in rollups]
        connection.execute(sa.insert(r), rows)
    if spent:
        sums = [{"block": block, "bucket": bucket, "spent": amount} for bucket, amount in spent.items()]
        connection.execute(sa.insert(s), sums)


def add_seal(connection: sa.Connection, **said: Any) -> None:
    """Append to the chain of seals; see `seals.sealed`. What is changed is locked."""
    seals = schema.seals
    found = connection.execute(sa.select(seals).order_by(seals.c.id.desc()).limit(1)).first()
    last = None if found is None else Seal(*found)
    connection.execute(sa.insert(seals).values(**sealed(last, **said)._asdict()))


def seal_again(
    connection: sa.Connection, block: Block, members: sa.ColumnElement[Any], before: Tally, **said: Any
) -> Tally:
    """Seal a block whose entries have just been changed, for a reason that the seal says.

    Args:
        before: what its entries came to before that.
        said: ``at`` and ``kind``.

    Returns:
        What they come to now.
    """
    tally = tallied(connection, members)
    note = said.pop("note", "")
    if before.digest != block.digest or before.lines != block.lines:
        note = f"{NOT_AS_SEALED} {note}".strip()
    facts = {"lines": tally.lines, "digest": tally.digest, "sums": said.pop("sums", block.sums)}
    b = schema.blocks
    connection.execute(
        sa.update(b).where(b.c.id == block.id).values(proven=None, **facts, **said.pop("set", {}))
    )
    add_seal(connection, block=block.id, note=note, **facts, **said)
    return tally


def tallied(connection: sa.Connection, members: sa.ColumnElement[Any]) -> Tally:
    """What entries come to."""
    tally = Tally()
    for row in read_members(connection, members):
        tally.add(row)
    return tally


def mark_proven(ledger: Ledger, proven: Mapping[int, str], now: int) -> None:
    """Remember that blocks were proved.

    Args:
        proven: the digest that was proved, by block: one that was changed meanwhile is not marked.
    """
    b = schema.blocks
    with ledger.reading().execution_options(write=True).begin() as connection:
        for id, digest in proven.items():
            connection.execute(sa.update(b).where(b.c.id == id, b.c.digest == digest).values(proven=now))
