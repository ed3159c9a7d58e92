"""Spans: some dozens of blocks in a row, and what their roll-ups come to, so that a report over years adds up
hundreds of rows instead of hundreds of thousands.

They are made of blocks' roll-ups alone, and are dropped with any change to one of those; a report takes
blocks where there is no span. They stand among `schema.rollups`, with kinds of their own, under their last
block.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from . import schema
from .blocks import DAY, DAYS, SESSIONS, STAGES, TAGS, Kind, Row, summed
from .changes import changes, count_change, lock_changes
from .moment import at_one_moment

SPAN = 32
"""Blocks of a span: 1 to 32, 33 to 64, and so on."""
_FIRST_KIND = 100
OF_STAGES = Kind(_FIRST_KIND, STAGES.names)
OF_MODELS = Kind(_FIRST_KIND + 1, ("tenant", "project", "model", "operation"))
OF_DAYS = Kind(_FIRST_KIND + 2, DAYS.names, DAY)
OF_USERS = Kind(_FIRST_KIND + 3, ("tenant", "project", "user_id"))
OF_TAGS = Kind(_FIRST_KIND + 4, TAGS.names)
MADE_OF = {OF_STAGES: STAGES, OF_MODELS: DAYS, OF_DAYS: DAYS, OF_USERS: SESSIONS, OF_TAGS: TAGS}
"""Kinds of spans' sums, the smaller first, and the kind of blocks' that each adds up. Sessions lie in few
blocks: there is nothing to be gained by adding them up."""

_r = schema.rollups


def blocks_of(span: int) -> tuple[int, int]:
    """The first and the last block of the span that ends with a block."""
    return span - SPAN + 1, span


def make_spans(engine: sa.Engine) -> int:
    """Write the sums of whole spans that have none; how many these were.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database cannot be read or written.
    """
    count = 0
    while True:
        with at_one_moment(engine) as connection:
            newest = connection.execute(sa.select(sa.func.max(schema.blocks.c.id))).scalar() or 0
            there = spans_there(connection)
            span = next((n for n in range(SPAN, newest + 1, SPAN) if n not in there), None)
            if span is None:
                return count
            rows = [row for kind in MADE_OF for row in merged(connection, kind, span)]
            before = changes(connection)
        with engine.execution_options(write=True).begin() as connection:
            lock_changes(connection)
            if changes(connection) != before:
                continue
            names = [c.name for c in _r.columns if c.name != "block"]
            values = [{**dict(zip(names, row, strict=True)), "block": span} for row in rows]
            connection.execute(sa.insert(_r), values)
            count_change(connection)
            count += 1


def merged(connection: sa.Connection, kind: Kind, span: int) -> list[Row]:
    """What the blocks of a span add up to: rows of `schema.rollups` without their block."""
    first, last = blocks_of(span)
    keys = [_r.c[name] for name in (*kind.names, "status")]
    slot = [_r.c.slot] if kind.slot else []
    sums = summed({name: _r.c[name] for name in schema.MEASURES})
    statement = (
        sa.select(*slot, *keys, *sums.values())
        .where(_r.c.kind == MADE_OF[kind].number, _r.c.block.between(first, last))
        .group_by(*slot, *keys)
    )
    rows: list[Row] = []
    for seq, row in enumerate(connection.execute(statement)):
        told = dict(zip([*(c.name for c in (*slot, *keys)), *sums], row, strict=True))
        numbers = [int(told[name]) for name in schema.MEASURES]
        rows.append((kind.number, seq, told.get("slot"), *map(told.get, schema.ROLLED), *numbers))
    return rows


def stored(connection: sa.Connection, kind: Kind, span: int) -> list[Row]:
    """What is written of that."""
    columns = [c for c in _r.columns if c.name != "block"]
    statement = sa.select(*columns).where(_r.c.kind == kind.number, _r.c.block == span)
    return [tuple(row) for row in connection.execute(statement)]


def spans_there(connection: sa.Connection) -> set[int]:
    """The spans that have sums, by their last blocks."""
    found = sa.select(_r.c.block).where(_r.c.kind == OF_STAGES.number).distinct()
    return set(connection.execute(found).scalars())


def drop_span(connection: sa.Connection, block: int) -> None:
    """Drop the sums of the span that a block is of; what is changed is locked."""
    kinds = [kind.number for kind in MADE_OF]
    span = -(-block // SPAN) * SPAN
    connection.execute(sa.delete(_r).where(_r.c.kind.in_(kinds), _r.c.block == span))


def in_spans(ids: Sequence[int], there: set[int]) -> tuple[list[int], list[int]]:
    """Of these blocks, the spans of which all are among them, and those that are in none of these."""
    among = set(ids)
    spans = [span for span in sorted(there) if all(id in among for id in range(span - SPAN + 1, span + 1))]
    for span in spans:
        among.difference_update(range(span - SPAN + 1, span + 1))
    return spans, sorted(among)
