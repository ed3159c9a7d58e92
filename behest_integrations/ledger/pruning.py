"""`behest prune`: entries that are old are replaced by their sums, and nothing that adds them up is another.

Of each half-hour, all entries become one that are for the same people, of the same model, operation, stage,
status and tags, and began in the same quarter of an hour (by which invoices are compared): with the sum of
their costs and tokens, booked in the same buckets. So reports, budgets and proofs are as they were; single
calls are gone, and tags that differ for each call (a trace). What is assumed stays as it is, and so does a
call of which something was taken back: what is a correction is told from its first entry. Only blocks that
are old as a whole are pruned, each in a transaction of its own, and each is sealed again (`seals`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from pydantic_core import from_json, to_json

from . import schema
from .blocks import COLUMNS, DAY, SLOT, UNTOLD, Block, Row, Tally, additive, read_blocks, read_members, rolled
from .book import ADDITIVE, Entry
from .changes import count_change, lock_changes
from .closing import seal_again
from .sql import SQLLedger

_e = schema.entries
_PLACE = {name: place for place, name in enumerate(COLUMNS)}
_SAME = (
    "status", "session_id", "user_id", "project", "tenant", "stage", "operation", "provider", "model",
    "service_tier", "reversal", "flags", "asked_model",
)  # fmt: skip
_SUMMED = (*ADDITIVE, "cost")
_AT_ONCE = 1000
_QUARTER = 900_000
"""Time zones differ by no less."""


class Pruned(NamedTuple):
    """What was done: how many entries there were in how many blocks, and how many sums there are now.

    Attributes:
        skipped: blocks that were not as they were sealed, and were left alone.
    """

    blocks: int
    before: int
    after: int
    skipped: int


def prune(ledger: SQLLedger, now: int, days: int) -> Pruned:
    """Replace the entries of blocks that have nothing newer than so many days by their sums.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database cannot be read or written.
    """
    oldest = now - days * DAY
    done = blocks = 0
    before = after = skipped = 0
    engine = ledger.reading()
    while True:
        with engine.execution_options(write=True).begin() as connection:
            lock_changes(connection)
            known = read_blocks(connection)
            block = next(
                (b for b in known.closed if b.id > done and b.pruned is None and b.last_at < oldest), None
            )
            if block is None:
                return Pruned(blocks, before, after, skipped)
            done = block.id
            count = _prune(connection, block, known.members(block), now, days)
            if count is None:
                skipped += 1
            else:
                blocks, before, after = blocks + 1, before + block.lines, after + count


def _prune(
    connection: sa.Connection, block: Block, members: sa.ColumnElement[Any], now: int, days: int
) -> int | None:
    """Prune one block; how many entries it has then. None: it is not as it was sealed."""
    tally = Tally()
    rows = []
    for row in read_members(connection, members):
        tally.add(row)
        rows.append(row)
    if (tally.digest, tally.lines) != (block.digest, block.lines):
        return None
    r = schema.rollups.c
    untold = set(connection.execute(sa.select(r.tag).where(r.kind == UNTOLD, r.block == block.id)).scalars())
    staying = _staying(connection, rows)
    sums = _sums([row for row in rows if row[_PLACE["id"]] not in staying], untold, block.id)
    was = additive(rolled(connection, members))
    count_change(connection)
    ids = sorted([*staying, *(row["id"] for row in sums)])
    connection.execute(sa.delete(_e).where(members, _e.c.id.not_in(staying)))
    if sums:
        connection.execute(sa.insert(_e), sums)
    kept = _e.c.id.in_(ids)
    if additive(rolled(connection, kept)) != was:
        raise AssertionError(f"block {block.id} would not add up to what it did")
    made: dict[str, Any] = {"pruned": now}
    if block.late:
        made["late"] = to_json(ids).decode()
    found = seal_again(
        connection, block, kept, tally, at=now, kind="pruned", note=f"older than {days} days", set=made
    )
    if found.spent != tally.spent:
        raise AssertionError(f"block {block.id} would not be booked as it was")
    return len(ids)


def _staying(connection: sa.Connection, rows: Sequence[Row]) -> set[int]:
    """Assumptions: what became of such a call may be told yet, and is booked in place of that entry, by its
    id. And all of the calls of which something was taken back, in whatever block."""
    calls = [row[_PLACE["call_id"]] for row in rows]
    taken: set[str] = set()
    for first in range(0, len(calls), _AT_ONCE):
        back = sa.select(_e.c.call_id).where(
            _e.c.call_id.in_(calls[first : first + _AT_ONCE]), _e.c.reversal == 1
        )
        taken.update(connection.execute(back).scalars())
    return {
        row[_PLACE["id"]]
        for row in rows
        if row[_PLACE["lines"]] is None
        and (row[_PLACE["status"]] == "assumed" or row[_PLACE["call_id"]] in taken)
    }


def _sums(rows: Sequence[Row], untold: set[str], block: int) -> list[dict[str, Any]]:
    """The entries that stand for these; each has the id of the last of those that it stands for."""
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        tags = {n: v for n, v in from_json(row[_PLACE["tags"]]).items() if n not in untold}
        at, cost = row[_PLACE["at"]], row[_PLACE["cost"]]
        began = row[_PLACE["started"]] or at
        key = (
            at - at % SLOT,
            began - began % _QUARTER,
            cost is None,
            to_json(tags),
            *(row[_PLACE[name]] for name in _SAME),
        )
        found = groups.get(key)
        if found is None:
            found = groups[key] = {
                **{name: row[_PLACE[name]] for name in _SAME},
                **dict.fromkeys(ADDITIVE, 0),
                "at": at, "started": row[_PLACE["started"]], "tags": tags, "lines": 0, "booked": {},
                "cost": None if cost is None else 0,
            }  # fmt: skip
        found["id"] = row[_PLACE["id"]]
        found["at"] = max(found["at"], at)
        found["started"] = min(found["started"], row[_PLACE["started"]])
        lines = row[_PLACE["lines"]]
        found["lines"] += 1 if lines is None else lines
        for name in _SUMMED:
            if found[name] is not None:
                found[name] += row[_PLACE[name]]
        for bucket, unit, amount in from_json(row[_PLACE["bookings"]]):
            found["booked"][bucket, unit] = found["booked"].get((bucket, unit), 0) + amount
    made = []
    blank = dict.fromkeys(("output_limit", "lowered_from", "provider_id", "rates"))
    for found in groups.values():
        bookings = [(bucket, unit, amount) for (bucket, unit), amount in found.pop("booked").items()]
        id = found.pop("id")
        entry = {"call_id": f"pruned-{block}-{id}", "bookings": bookings, **blank, **found}
        entry["note"] = f"the sum of {found['lines']} entries"
        assert entry.keys() - {"lines"} <= set(Entry.__slots__)
        made.append({"id": id, **entry})
    return sorted(made, key=lambda entry: int(entry["id"]))
