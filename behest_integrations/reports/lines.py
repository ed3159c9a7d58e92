"""What a report adds up: roll-ups of blocks as far as they have what it asks for, entries for the rest.

Blocks that lie in the time asked for count by their roll-ups, dozens together where there are sums of these
(`ledger.spans`). Of those that lie across its ends, and of what is in no block, the entries are read. Where
no roll-up has what is asked for, entries are read all through, but only of blocks in which there may be any.
It is the same sum, to the nano-dollar, in each way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timezone
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from ..ledger import schema, spans
from ..ledger.blocks import (
    DAY,
    KINDS,
    SESSIONS,
    SLOT,
    STAGES,
    TAGS,
    UNTOLD,
    Block,
    Blocks,
    Kind,
    measures,
    read_blocks,
)
from .shown import Asked

_e, _r = schema.entries, schema.rollups
Column = sa.ColumnElement[Any]
FILTERS = {
    "session": "session_id",
    "user": "user_id",
    "project": "project",
    "tenant": "tenant",
    "model": "model",
}
"""By what of `Asked` entries are chosen, besides time and tags, and their columns."""
QUARTER = 15 * 60_000
_DAY = 86_400
_MOST_PARTS = 12
"""Stretches of entries that are read beside roll-ups. Where there are more, all entries are read."""


class Wanted:
    """What a report needs of each line.

    Args:
        names: columns of entries that it groups by.
        tags: names of tags that it groups by; their values are ``tag0``, ``tag1``, ….
        step: the steps of time that it groups by, in ms, counted from 1970. 0: it groups by no time.
        sums: of `schema.MEASURES`, where it needs no more: databases sort what they are given.
    """

    def __init__(
        self,
        names: Iterable[str] = (),
        *,
        tags: Sequence[str] = (),
        step: int = 0,
        sums: Collection[str] = schema.MEASURES,
    ) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.tags = tuple(tags)
        self.step = step
        self.sums = tuple(sums)


def lines(connection: sa.Connection, wanted: Wanted, asked: Asked) -> sa.FromClause:
    """Lines to be added up: a table with the columns that are wanted (``at`` for the time), ``status``, and
    sums. Only those that are asked for are in it."""
    blocks = read_blocks(connection)
    whole, parts = _divided(blocks, asked)
    kind = _kind(wanted, asked)
    if kind is TAGS:
        untold = _having(connection, UNTOLD, _r.c.tag == wanted.tags[0])
        parts = sorted([*parts, *(b for b in whole if b.id in untold)])
        whole = [b for b in whole if b.id not in untold]
    if kind is None:
        parts, whole = sorted([*parts, *whole]), []
    there = _maybe(connection, asked, parts)
    if there is not None:
        parts = [b for b in parts if b.id in there]
    stretches = _stretches(blocks, parts)
    if len(stretches) > _MOST_PARTS:
        whole, stretches = [], [sa.true()]
    else:
        stretches.append(blocks.pending)
    chosen = [_entries(wanted, asked, which) for which in stretches]
    if whole and kind is not None:
        chosen += _rolled(connection, kind, wanted, asked, whole)
    return (sa.union_all(*chosen) if len(chosen) > 1 else chosen[0]).subquery("lines")


def first_id(connection: sa.Connection, since_ms: int) -> int:
    """An id before which nothing was booked at a time or later."""
    blocks = read_blocks(connection)
    ids = [min(b.late) if b.late else b.after + 1 for b in blocks.closed if b.last_at >= since_ms]
    return min([*ids, *blocks.unclosed, blocks.mark + 1])


class Clock:
    """A zone's clock during what is asked for.

    Attributes:
        offsets: (from when on, how far it is from UTC), both in ms.
    """

    def __init__(self, connection: sa.Connection, zone: ZoneInfo, asked: Asked) -> None:
        first = connection.execute(sa.select(_e.c.at).order_by(_e.c.id).limit(1)).scalar()
        begin = asked.since or (
            asked.at if first is None else datetime.fromtimestamp(first / 1000, timezone.utc)
        )
        end = asked.until or asked.at
        self._zone = zone
        at, last = int(begin.timestamp()) - _DAY, int(max(begin, end).timestamp()) + _DAY
        self.offsets = [(at * 1000, self._offset(at))]
        while at < last:
            # It is changed at most every few weeks.
            after = min(at + 7 * _DAY, last)
            if self._offset(after) != self._offset(at):
                low, high = at, after
                while high - low > 1:
                    middle = (low + high) // 2
                    low, high = (low, middle) if self._offset(middle) != self._offset(at) else (middle, high)
                self.offsets.append((high * 1000, self._offset(high)))
            at = after

    def _offset(self, seconds: int) -> int:
        offset = datetime.fromtimestamp(seconds, self._zone).utcoffset()
        return int(offset.total_seconds() * 1000) if offset is not None else 0

    def step(self, period: int) -> int:
        """In which steps of UTC, from 1970, what lies in a period of the clock can be added up, in ms.

        Args:
            period: in ms, an hour or hours, or a day or days.
        """
        for known in (DAY, SLOT):
            if period % known == 0 and all(offset % known == 0 for _, offset in self.offsets):
                return known
        # No zone's hour or midnight begins inside a quarter.
        return min(period, QUARTER)

    def floor(self, at: Column, period: int) -> Column:
        """When the period that a time lies in begins; on a day on which the clock is changed, by either of
        its offsets.

        Args:
            period: in ms, at most a day.
        """
        offset: Any = self.offsets[-1][1]
        if len(self.offsets) > 1:
            ends = [(after, offset) for (_, offset), (after, _) in pairwise(self.offsets)]
            offset = sa.case(*((at < end, value) for end, value in ends), else_=offset)
        begin: Column = at - (at + offset) % period
        return begin


# ── which blocks ───────────────────────────────────────────────────────────────────────


def _ms(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp() * 1000)


def _divided(blocks: Blocks, asked: Asked) -> tuple[list[Block], list[Block]]:
    """The blocks that lie in the time asked for, and those that lie across its ends."""
    since, until = _ms(asked.since), _ms(asked.until)
    whole: list[Block] = []
    parts: list[Block] = []
    for block in blocks.closed:
        if (since is not None and block.last_at < since) or (until is not None and block.first_at >= until):
            continue
        inside = (since is None or block.first_at >= since) and (until is None or block.last_at < until)
        (whole if inside else parts).append(block)
    return whole, parts


def _kind(wanted: Wanted, asked: Asked) -> Kind | None:
    """The smallest roll-ups that have what is wanted."""
    if asked.tags or len(wanted.tags) > 1:
        return None
    for kind in (TAGS,) if wanted.tags else KINDS:
        if _fits(kind, wanted, asked) and (kind is TAGS) == bool(wanted.tags):
            return kind
    return None


def _fits(kind: Kind, wanted: Wanted, asked: Asked) -> bool:
    """Whether a kind of roll-ups has the columns and the steps of time that are needed."""
    asks = (column for name, column in FILTERS.items() if getattr(asked, name) is not None)
    fits_time = not wanted.step or (kind.slot and wanted.step % kind.slot == 0)
    return bool(fits_time) and {*wanted.names, *asks} <= set(kind.names)


def _maybe(connection: sa.Connection, asked: Asked, parts: Sequence[Block]) -> set[int] | None:
    """Of many blocks those in which there may be entries that are asked for; None: in any."""
    if len(parts) <= 2:
        return None
    found: set[int] | None = None
    named = {c: v for n, c in FILTERS.items() if n != "model" and (v := getattr(asked, n)) is not None}
    if named:
        conditions = [_r.c[column] == value for column, value in named.items()]
        found = _having(connection, SESSIONS.number, *conditions)
    for name, value in asked.tags:
        there = _having(connection, TAGS.number, _r.c.tag == name, _r.c.value == value)
        there |= _having(connection, UNTOLD, _r.c.tag == name)
        found = there if found is None else found & there
    return found


def _having(connection: sa.Connection, kind: int, *conditions: Column) -> set[int]:
    statement = sa.select(_r.c.block).where(_r.c.kind == kind, *conditions).distinct()
    return set(connection.execute(statement).scalars())


def _stretches(blocks: Blocks, parts: Sequence[Block]) -> list[Column]:
    """The conditions of the entries of some blocks, neighbours together."""
    found: list[Column] = [_e.c.id.in_(block.late) for block in parts if block.late]
    after = last = -2
    for block in parts:
        if block.late:
            continue
        if block.after == last:
            last = block.last
            continue
        if last > -2:
            found.append(blocks.between(after, last))
        after, last = block.after, block.last
    if last > -2:
        found.append(blocks.between(after, last))
    return found


# ── their lines ────────────────────────────────────────────────────────────────────────


def _entries(wanted: Wanted, asked: Asked, which: Column) -> sa.Select[Any]:
    columns = [_e.c[name].label(name) for name in wanted.names]
    for place, tag in enumerate(wanted.tags):
        columns.append(_e.c.tags[tag].as_string().label(f"tag{place}"))
    if wanted.step:
        columns.append((_e.c.at - _e.c.at % min(wanted.step, QUARTER)).label("at"))
    columns.append(_e.c.status.label("status"))
    sums = measures()
    columns += [sums[name].label(name) for name in wanted.sums]
    return narrowed(sa.select(*columns).where(which), asked)


def narrowed(statement: sa.Select[Any], asked: Asked) -> sa.Select[Any]:
    """A selection of entries, of those alone that are asked about."""
    since, until = _ms(asked.since), _ms(asked.until)
    if since is not None:
        statement = statement.where(_e.c.at >= since)
    if until is not None:
        statement = statement.where(_e.c.at < until)
    if asked.first_id is not None:
        statement = statement.where(_e.c.id >= asked.first_id)
    for name, column in FILTERS.items():
        value = getattr(asked, name)
        if value is not None:
            statement = statement.where(_e.c[column] == value)
    for name, value in asked.tags:
        statement = statement.where(_e.c.tags[name].as_string() == value)
    return statement


def _rolled(
    connection: sa.Connection, kind: Kind, wanted: Wanted, asked: Asked, whole: Sequence[Block]
) -> list[sa.Select[Any]]:
    if kind is not TAGS:
        return _of_kind(connection, kind, wanted, asked, whole)
    (tag,) = wanted.tags
    # Of blocks in which no entry has that tag, there are no sums by it: none has.
    having = _having(connection, TAGS.number, _r.c.tag == tag)
    found = []
    if told := [b for b in whole if b.id in having]:
        found += _of_kind(connection, TAGS, wanted, asked, told, _r.c.tag == tag)
    if others := [b for b in whole if b.id not in having]:
        found += _of_kind(connection, STAGES, wanted, asked, others)
    return found


def _of_kind(
    connection: sa.Connection,
    kind: Kind,
    wanted: Wanted,
    asked: Asked,
    whole: Sequence[Block],
    *conditions: Column,
) -> list[sa.Select[Any]]:
    """What blocks have of a kind: by spans as far as these have what is needed, and the rest by blocks."""
    ids, found = [block.id for block in whole], []
    wider = next((k for k, of in spans.MADE_OF.items() if of == kind and _fits(k, wanted, asked)), None)
    if wider is not None and len(ids) >= spans.SPAN:
        together, ids = spans.in_spans(ids, spans.spans_there(connection))
        if together:
            found.append(_chosen(wider, wanted, asked, _r.c.block.in_(together), *conditions))
    if ids:
        found.append(_chosen(kind, wanted, asked, _within(ids), *conditions))
    return found


def _chosen(kind: Kind, wanted: Wanted, asked: Asked, *conditions: Column) -> sa.Select[Any]:
    columns: list[sa.Label[Any]] = [_r.c[name].label(name) for name in wanted.names]
    if wanted.tags:
        columns.append((_r.c.value if "tag" in kind.names else sa.null()).label("tag0"))
    if wanted.step:
        columns.append(_r.c.slot.label("at"))
    columns.append(_r.c.status.label("status"))
    columns += [_r.c[name].label(name) for name in wanted.sums]
    statement = sa.select(*columns).where(_r.c.kind == kind.number, *conditions)
    for name, column in FILTERS.items():
        value = getattr(asked, name)
        if value is not None:
            statement = statement.where(_r.c[column] == value)
    return statement


def _within(ids: Sequence[int]) -> Column:
    """The condition that a roll-up is of these blocks."""
    stretches: list[list[int]] = []
    for id in sorted(ids):
        if stretches and stretches[-1][1] == id - 1:
            stretches[-1][1] = id
        else:
            stretches.append([id, id])
    return sa.or_(*(_r.c.block.between(first, last) for first, last in stretches))


def totals(source: sa.FromClause, names: Collection[str] = ()) -> dict[str, Column]:
    """What is added up of lines, by the field of `spending.Line` that it is for.

    Args:
        names: of `MEASURES`, besides those.
    """
    c = source.c

    def add(column: Any) -> Column:
        return sa.func.coalesce(sa.func.sum(column), 0)

    def of(status: str, column: Any) -> Column:
        return add(sa.case((c.status == status, column), else_=0))

    return {
        **{
            name: add(c[name])
            for name in (
                "calls", "input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens", "cost",
            )
        },
        "assumed": of("assumed", c.cost),
        "estimated": of("estimated", c.cost),
        "unpriced": add(c.unpriced),
        "failed": of("failed", c.lines),
        **{name: add(c[name]) for name in names},
    }  # fmt: skip
