"""Blocks: some thousands of entries, in the order in which they were written, and what they come to.

Once closed, a block's entries are not changed any more, but for what is said in its seals: erasure of
whom they were for, and pruning. So what they add up to is worked out once. A report adds up blocks that
lie in the time that it is about, and reads entries only of those that lie across its ends, and of what is
in no block yet: it is exact at every moment, however far behind the closing of blocks is.

Here is what one block comes to: what is sealed of its entries (`Tally`), and its sums (`rolled`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from pydantic_core import from_json, to_json

from . import schema

BLOCK = 4096
"""Entries of a whole block."""
NONE = -1
"""The mark before the first block."""
SLOT = 30 * 60_000
DAY = 86_400_000
_MOST_VALUES = 512
"""Of one tag's name in a block: what has more of them, as an id of each call, is not rolled up."""


class Kind(NamedTuple):
    """By what entries are added up.

    Attributes:
        names: of `schema.ROLLED`; the status is one of each. The smaller the sums are, the earlier it stands.
        slot: how long the steps of time in it are, in ms; 0: it has none.
    """

    number: int
    names: tuple[str, ...]
    slot: int = 0


STAGES = Kind(0, ("tenant", "project", "stage"))
DAYS = Kind(1, ("tenant", "project", "model", "operation"), DAY)
SLOTS = Kind(2, ("tenant", "project", "model", "operation"), SLOT)
SESSIONS = Kind(3, ("tenant", "project", "user_id", "session_id"))
USERS = Kind(4, ("tenant", "project", "user_id", "model", "operation"))
TAGS = Kind(5, ("tenant", "project", "tag", "value"))
KINDS = (STAGES, DAYS, SLOTS, SESSIONS, USERS, TAGS)

COLUMNS = (
    "id", "call_id", "at", "status", "started", "session_id", "user_id", "project", "tenant", "tags", "stage",
    "operation", "provider", "model", "service_tier", "input_tokens", "output_tokens", "cached_input_tokens",
    "cache_write_tokens", "reasoning_tokens", "input_audio_tokens", "output_audio_tokens", "cost", "calls",
    "output_limit", "lowered_from", "reversal", "flags", "note", "provider_id", "bookings",
    "asked_model", "rates", "lines",
)  # fmt: skip
"""What is read of an entry, in the order in which it is sealed. Columns of later versions come at the end,
and are null in what was written before: what is null at the end is not sealed."""
_PLACE = {name: place for place, name in enumerate(COLUMNS)}
_ID, _AT, _BOOKINGS = (_PLACE[name] for name in ("id", "at", "bookings"))
_ROLLED_PLACE = {name: place for place, name in enumerate(schema.ROLLED)}
_SUMMED = len(schema.MEASURES) - 3

_e = schema.entries.c
Row = Sequence[Any]
Column = sa.ColumnElement[Any]


class Tally:
    """What entries say and book, taken in one by one in the order of their ids, as rows of `COLUMNS`.

    Attributes:
        lines: how many rows. spent: by bucket.
    """

    def __init__(self) -> None:
        self.lines = 0
        self.first_at = self.last_at = 0
        self.last = 0
        self.spent: dict[int, int] = {}
        self._hash = hashlib.blake2b(digest_size=32)

    def add(self, row: Row) -> Sequence[tuple[int, str, int]]:
        """Take in an entry; its bookings."""
        end = len(row)
        while row[end - 1] is None:
            end -= 1
        self._hash.update(_told(row[:end]))
        at = row[_AT]
        if not self.lines:
            self.first_at = self.last_at = at
        elif at > self.last_at:
            self.last_at = at
        elif at < self.first_at:
            self.first_at = at
        self.lines += 1
        self.last = row[_ID]
        spent = self.spent
        bookings: Sequence[tuple[int, str, int]] = from_json(row[_BOOKINGS])
        for bucket, _unit, amount in bookings:
            spent[bucket] = spent.get(bucket, 0) + amount
        return bookings

    @property
    def digest(self) -> str:
        """A hash of all that the entries say."""
        return self._hash.hexdigest()


def measures() -> dict[str, Column]:
    """Of one entry, what is added up."""
    lines = (1 - 2 * _e.reversal) * sa.func.coalesce(_e.lines, 1)
    return {
        "calls": _e.calls,
        "lines": lines,
        **{name: _e[name] for name in schema.MEASURES[2:9]},
        "cost": sa.func.coalesce(_e.cost, 0),
        "unpriced": sa.case((_e.cost.is_(None), _e.calls), else_=0),
        "over_bound": sa.case((_e.flags.contains("over_bound"), _e.calls), else_=0),
        "first_at": _e.at,
        "last_at": _e.at,
        "began": sa.case((_e.started > 0, _e.started), else_=_e.at),
    }


def summed(columns: Mapping[str, Column]) -> dict[str, Column]:
    """Their sums: of the first booking and start the earliest, of the last the latest."""
    found: dict[str, Column] = {name: sa.func.sum(columns[name]) for name in schema.MEASURES[:_SUMMED]}
    found["first_at"] = sa.func.min(columns["first_at"])
    found["last_at"] = sa.func.max(columns["last_at"])
    found["began"] = sa.func.min(columns["began"])
    return found


def rolled(connection: sa.Connection, members: Column) -> list[tuple[Any, ...]]:
    """What the entries of a block add up to.

    Args:
        members: the condition that entries of the block fulfil.

    Returns:
        Rows of `schema.rollups` without their block (kind, seq, slot, names, measures), in an order that
        no database has a say in.
    """
    rows: list[tuple[Any, ...]] = []
    sums = list(summed(measures()).values())
    for kind in KINDS:
        if kind is TAGS:
            continue
        names = (*kind.names, "status")
        keys = [_e[name].label(f"k{i}") for i, name in enumerate(names)]
        if kind.slot:
            keys.append((_e.at - _e.at % kind.slot).label("slot"))
        statement = sa.select(*keys, *sums).where(members).group_by(*keys)
        of_kind = []
        for row in connection.execute(statement):
            key = row[: len(names)]
            slot = row[len(names)] if kind.slot else None
            of_kind.append((slot, *_placed(names, key), *map(int, row[len(keys) :])))
        rows += _numbered(kind.number, of_kind)
    by_tag, untold = _by_tag(connection, members, sums)
    rows += _numbered(TAGS.number, by_tag)
    nothing = [0] * len(schema.MEASURES)
    return rows + _numbered(UNTOLD, [(None, *_placed(("tag",), (name,)), *nothing) for name in untold])


def _placed(names: Sequence[str], values: Sequence[Any]) -> list[Any]:
    placed: list[Any] = [None] * len(schema.ROLLED)
    for name, value in zip(names, values, strict=True):
        placed[_ROLLED_PLACE[name]] = value
    return placed


def _numbered(kind: int, rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [(kind, seq, *row) for seq, row in enumerate(sorted(rows, key=_told))]


def _by_tag(
    connection: sa.Connection, members: Column, sums: Sequence[Column]
) -> tuple[list[tuple[Any, ...]], list[str]]:
    """The sums by each tag that some entry has, also of those entries that have not got it; and the names
    of those tags that have too many values."""
    keys = (sa.cast(_e.tags, sa.Text).label("k0"), _e.tenant, _e.project, _e.status)
    statement = sa.select(*keys, *sums).where(members).group_by(*keys)
    found = [(_tags_of(row[0]), row[1:4], [*map(int, row[4:])]) for row in connection.execute(statement)]
    values: dict[str, set[Any]] = {}
    for tags, _, _ in found:
        for name, value in tags.items():
            values.setdefault(name, set()).add(value if isinstance(value, str) else None)
    untold = sorted(n for n, there in values.items() if len(there) > _MOST_VALUES or None in there)
    added: dict[tuple[Any, ...], list[int]] = {}
    for name in sorted(values.keys() - set(untold)):
        for tags, (tenant, project, status), numbers in found:
            key = (tenant, project, name, tags.get(name), status)
            added[key] = _plus(added[key], numbers) if key in added else numbers
    names = (*TAGS.names, "status")
    return [(None, *_placed(names, key), *numbers) for key, numbers in added.items()], untold


def _plus(one: Sequence[int], other: Sequence[int]) -> list[int]:
    return [
        *(a + b for a, b in zip(one[:_SUMMED], other[:_SUMMED], strict=True)),
        min(one[_SUMMED], other[_SUMMED]),
        max(one[_SUMMED + 1], other[_SUMMED + 1]),
        min(one[_SUMMED + 2], other[_SUMMED + 2]),
    ]


def _tags_of(text: str) -> dict[str, Any]:
    found = from_json(text) if text != "{}" else {}
    return found if isinstance(found, dict) else {}


UNTOLD = len(KINDS)
"""The number of rows that name tags of which a block has no sums."""


def additive(rollups: Sequence[Row]) -> dict[tuple[Any, ...], Sequence[int]]:
    """What is added up of a block's roll-ups, by kind and key: without the times, which pruning makes
    coarser, and without the tags that it lets go of."""
    end = 3 + len(schema.ROLLED)
    return {
        (row[0], *row[2:end]): tuple(row[end : end + _SUMMED])
        for row in rollups
        if row[0] != UNTOLD and any(row[end : end + _SUMMED])
    }


def sums_digest(rollups: Sequence[Row], spent: Mapping[int, int]) -> str:
    """A hash of what a block adds up to.

    Args:
        rollups: in the order of their kinds and numbers.
    """
    made = hashlib.blake2b(digest_size=32)
    for row in rollups:
        made.update(_told(row))
    for pair in sorted(spent.items()):
        made.update(_told(pair))
    return made.hexdigest()


def _told(row: Row) -> bytes:
    try:
        said = to_json(list(row))
    except UnicodeEncodeError:  # half of a surrogate pair
        said = repr(tuple(row)).encode("utf-8", "surrogatepass")
    # A copy in PostgreSQL, whose text has no character 0, says the same.
    return (said.replace(b"\\u0000", "\ufffd".encode()) if b"\\u0000" in said else said) + b"\n"


# ── which entries are in which block ───────────────────────────────────────────────────


class Block(NamedTuple):
    """A closed block: its entries are those after `after` until `last`, or those of the ids in `late`.

    Attributes:
        first_at, last_at: when the first and the last of them were booked.
        proven: when it was last proved that it is as its entries are; None: never.
        pruned: when its entries were replaced by fewer.
    """

    id: int
    after: int
    last: int
    late: tuple[int, ...]
    lines: int
    first_at: int
    last_at: int
    digest: str
    sums: str
    proven: int | None
    pruned: int | None


class Blocks(NamedTuple):
    """All blocks that there are, and what is in none.

    Attributes:
        mark: entries after this id are in none; before it only those in `unclosed` are not.
    """

    closed: tuple[Block, ...]
    mark: int
    unclosed: tuple[int, ...]

    def members(self, block: Block) -> Column:
        """The condition that the entries of a block fulfil."""
        if block.late:
            return _e.id.in_(block.late)
        return self.between(block.after, block.last)

    def between(self, after: int, last: int) -> Column:
        """The condition of the entries of whole blocks in a row, late ones left out."""
        others = [id for id in (*self._late, *self.unclosed) if after < id <= last]
        inside = sa.and_(_e.id > after, _e.id <= last)
        return sa.and_(inside, _e.id.not_in(others)) if others else inside

    @property
    def pending(self) -> Column:
        """The condition of the entries that are in no block."""
        old = [id for id in self.unclosed if id <= self.mark]
        new = _e.id > self.mark
        return sa.or_(new, _e.id.in_(old)) if old else new

    @property
    def _late(self) -> Iterator[int]:
        return (id for block in self.closed for id in block.late)


def read_blocks(connection: sa.Connection) -> Blocks:
    """The blocks of a ledger, as of the connection's transaction."""
    b, u = schema.blocks.c, schema.unclosed.c
    found, after = [], NONE
    columns = (b.id, b.last, b.late, b.lines, b.first_at, b.last_at, b.digest, b.sums, b.proven, b.pruned)
    for id, last, late, *rest in connection.execute(sa.select(*columns).order_by(b.id)):
        found.append(Block(id, after, last, tuple(from_json(late)) if late else (), *rest))
        after = max(after, last)
    old = sa.select(u.id).where(u.id <= after).order_by(u.id)
    return Blocks(tuple(found), after, tuple(connection.execute(old).scalars()))


def read_members(connection: sa.Connection, members: Column, most: int | None = None) -> Iterator[Row]:
    """Entries as rows of `COLUMNS`, in the order of their ids."""
    columns = [
        sa.cast(_e[name], sa.Text).label(name) if name in ("tags", "bookings") else _e[name]
        for name in COLUMNS
    ]
    statement = sa.select(*columns).where(members).order_by(_e.id).limit(most)
    return iter(connection.execute(statement, execution_options={"yield_per": 1024}))
