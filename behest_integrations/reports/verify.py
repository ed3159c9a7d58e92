"""`behest verify` and `repair`: that the books are right, proved from their entries; and sums restored.

What is proved: that the database's own check finds nothing; that each entry's cost is what is booked for it
and the price of its tokens; that budgets' counters are what entries and holds add up to; that what reports
add up (`ledger.blocks`) is what the entries add up to; and that closed entries are as they were sealed.

Blocks that were proved are passed over the next time: of their entries only the number and the sums are
looked at, all together. Calls may go on meanwhile.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from pydantic_core import from_json

from ..ledger import Bucket, Entry, HoldRecord, Ledger, schema, seals, spans
from ..ledger.blocks import (
    COLUMNS,
    UNTOLD,
    Block,
    Blocks,
    Tally,
    additive,
    read_blocks,
    read_members,
    rolled,
    sums_digest,
)
from ..ledger.book import merge_amounts, unmoved
from ..rules.budgets import budget_of_shape, describe_scope
from ..rules.errors import StoreError
from ..rules.units import format_amount
from .entries import Checking
from .look import count as said_count
from .shown import Asked, Shown, explained, reading

FINDING = ("budget", "scope", "unit", "start", "spent", "spent_by_ledger", "held", "held_by_ledger")
_MOST_FLAWS = 1000
_CALL_ID = COLUMNS.index("call_id")
_e, _b, _h, _r = schema.entries, schema.buckets, schema.holds, schema.rollups


@dataclass(frozen=True)
class Finding:
    """A bucket whose sums are not what entries and holds add up to."""

    bucket: Bucket
    spent: int
    held: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON and CSV; amounts in the unit (nano-dollars for ``usd``)."""
        b = self.bucket
        values = (b.budget, b.scope, b.unit, b.start, b.spent, self.spent, b.held, self.held)
        return dict(zip(FINDING, values, strict=True))

    def __str__(self) -> str:
        b = self.bucket
        budget = budget_of_shape(b.budget, b.unit)
        scope = describe_scope(budget, b.scope)
        said = [f"{b.budget}{f' ({scope})' if scope else ''}:"]
        for what, stored, right in (("spent", b.spent, self.spent), ("held", b.held, self.held)):
            if stored != right:
                said.append(
                    f"{format_amount(stored, b.unit)} {what}, but the ledger adds up to "
                    f"{format_amount(right, b.unit)}"
                )
        return " ".join([said[0], "; ".join(said[1:])])


@dataclass(frozen=True)
class Flaw:
    """What is wrong besides the counters of budgets.

    Attributes:
        kind: ``database``, ``entry``, ``block`` or ``seal``.
        where: a call's id, or a block's number; "" for the whole.
    """

    kind: str
    where: str
    what: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"kind": self.kind, "where": self.where, "what": self.what}

    def __str__(self) -> str:
        named = {"entry": "call", "seal": "block"}.get(self.kind, self.kind)
        return f"{named}{f' {self.where}' if self.where else ''}: {self.what}"


@dataclass
class Proof:
    """What was looked at, and what was found.

    Attributes:
        findings: counters of budgets that are wrong; `repair` mends them.
        flaws: everything else.
        looked_at: entries that were read; the others had been proved before.
        unproven: how many costs cannot be proved, by why.
        proven: blocks that were proved now: their digests.
        head: the newest seal.
    """

    buckets: int = 0
    entries: int = 0
    looked_at: int = 0
    in_flight: int = 0
    blocks: int = 0
    findings: list[Finding] = field(default_factory=list)
    flaws: list[Flaw] = field(default_factory=list)
    unproven: Counter[str] = field(default_factory=Counter)
    proven: dict[int, str] = field(default_factory=dict)
    head: str = ""

    def flaw(self, kind: str, where: object, what: str) -> None:
        """Note what is wrong; of what is wrong in thousands of places the first are enough."""
        if len(self.flaws) < _MOST_FLAWS:
            self.flaws.append(Flaw(kind, str(where), what))


def verify(ledger: Ledger) -> list[Finding | Flaw]:
    """What is wrong with the books, all entries looked at; nothing if all is well.

    Raises:
        StoreError: the store cannot be read.
    """
    proof = prove(ledger, whole=True)
    return [*proof.flaws, *proof.findings]


def prove(ledger: Ledger, *, whole: bool = False) -> Proof:
    """Prove the books.

    Args:
        whole: also what was proved before.

    Raises:
        StoreError: the store cannot be read.
    """
    proof = Proof()
    with explained(ledger):
        for said in ledger.own_check(whole=whole):
            proof.flaw("database", "", f"its own check says: {said}")
    try:
        with reading(ledger) as connection:
            _prove(connection, proof, whole=whole)
    except StoreError as error:
        if not proof.flaws:
            raise
        proof.flaw("database", "", f"the rest cannot be read: {error}")
    return proof


def _prove(connection: sa.Connection, proof: Proof, *, whole: bool) -> None:
    blocks = read_blocks(connection)
    chain = seals.walk(seals.Seal(*row) for row in connection.execute(_in_order(schema.seals)))
    proof.head = chain.head
    for block, what in chain.flaws:
        proof.flaw("seal", block, what)
    terms = schema.terms.c
    checking = Checking(dict(connection.execute(sa.select(terms.id, terms.text)).all()))
    proof.unproven = checking.unproven
    proof.blocks = len(blocks.closed)
    for known in blocks.closed:
        _prove_seal(known, chain, proof)
        if whole or known.proven is None:
            _prove_block(connection, blocks, known, checking, proof)
    for span in sorted(spans.spans_there(connection)):
        _prove_span(connection, span, proof)
    for missing in chain.newest.keys() - {known.id for known in blocks.closed}:
        proof.flaw("seal", missing, "it was closed and sealed, and is missing")
    pending = Tally()
    for row in read_members(connection, blocks.pending):
        _check(row, pending.add(row), checking, proof)
    proof.looked_at += pending.lines
    _prove_totals(connection, blocks, pending, proof)
    _prove_buckets(connection, pending, proof)


def _in_order(table: sa.Table) -> sa.Select[Any]:
    return sa.select(table).order_by(table.c.id)


def _check(row: Sequence[Any], bookings: Sequence[Any], checking: Checking, proof: Proof) -> None:
    for what in checking.flaws(row, bookings):
        proof.flaw("entry", row[_CALL_ID], what)


def _prove_seal(block: Block, chain: seals.Chain, proof: Proof) -> None:
    sealed = chain.newest.get(block.id)
    if sealed is None:
        proof.flaw("seal", block.id, "it has no seal")
    elif (sealed.digest, sealed.sums, sealed.lines) != (block.digest, block.sums, block.lines):
        proof.flaw("seal", block.id, "it is another than was sealed")


def _prove_block(
    connection: sa.Connection, blocks: Blocks, block: Block, checking: Checking, proof: Proof
) -> None:
    flaws = len(proof.flaws)
    members = blocks.members(block)
    tally = Tally()
    for row in read_members(connection, members):
        _check(row, tally.add(row), checking, proof)
    proof.looked_at += tally.lines
    if (tally.lines, tally.digest) != (block.lines, block.digest):
        what = f"of {block.lines:,} entries {tally.lines:,} are there" if tally.lines != block.lines else ""
        proof.flaw("seal", block.id, f"its entries are not as they were sealed{what and f': {what}'}")
    r, s = schema.rollups.c, schema.block_sums.c
    columns = [c for c in schema.rollups.columns if c.name != "block"]
    stored = connection.execute(
        sa.select(*columns).where(r.block == block.id, r.kind <= UNTOLD).order_by(r.kind, r.seq)
    ).all()
    of_block = sa.select(s.bucket, s.spent).where(s.block == block.id)
    spent: dict[int, int] = dict(connection.execute(of_block).all())
    if sums_digest(stored, spent) != block.sums:
        proof.flaw("block", block.id, "its sums are not as they were sealed")
    now = rolled(connection, members)
    same = additive(stored) == additive(now) if block.pruned else [*map(tuple, stored)] == now
    if not same or spent != tally.spent:
        proof.flaw("block", block.id, "its sums are not those of its entries: reports are wrong")
    if len(proof.flaws) == flaws:
        proof.proven[block.id] = block.digest


def _prove_span(connection: sa.Connection, span: int, proof: Proof) -> None:
    """That reports which add up a span say the same as those which add up its blocks."""
    for kind in spans.MADE_OF:
        found = (spans.stored(connection, kind, span), spans.merged(connection, kind, span))
        # Each has numbered them in an order of its own.
        written, right = ({(row[0], *row[2:]) for row in rows} for rows in found)
        if written != right or len(found[0]) != len(found[1]):
            first, last = spans.blocks_of(span)
            what = f"the sums of the blocks {first} to {last} ({kind.number}) are not what those add up to"
            proof.flaw("block", span, f"{what}: reports are wrong")


def _prove_totals(connection: sa.Connection, blocks: Blocks, pending: Tally, proof: Proof) -> None:
    """The number of entries, and their sums, all together, against those of blocks."""
    names = ("cost", "calls", "input_tokens", "output_tokens")
    sums = [sa.func.coalesce(sa.func.sum(_e.c[name]), 0) for name in names]
    proof.entries, *all_of_them = map(int, connection.execute(sa.select(sa.func.count(), *sums)).one())
    closed = sum(block.lines for block in blocks.closed)
    if proof.entries != closed + pending.lines:
        proof.flaw(
            "entry", "", f"there are {proof.entries:,} entries, and were {closed:,} in blocks and "
            f"{pending.lines:,} after them",
        )  # fmt: skip
    rest = connection.execute(sa.select(*sums).where(blocks.pending)).one()
    of_kind = [sa.func.coalesce(sa.func.sum(_r.c[name]), 0) for name in names]
    by_kind = sa.select(_r.c.kind, *of_kind).where(_r.c.kind < 5).group_by(_r.c.kind)
    for kind, *found in connection.execute(by_kind):
        for name, closed_sum, pending_sum, total in zip(names, found, rest, all_of_them, strict=True):
            reported = int(closed_sum) + int(pending_sum)
            if reported != total:
                what = f"{name}: reports ({kind}) add up to {reported:,}, and entries to {total:,}"
                proof.flaw("block", "", what)


def _prove_buckets(connection: sa.Connection, pending: Tally, proof: Proof) -> None:
    """The counters, against what is booked: both stream in the order of buckets, however many these are."""
    holds = [
        HoldRecord(id, 0, from_json(bookings), from_json(call))
        for id, bookings, call in connection.execute(sa.select(_h.c.id, _h.c.bookings, _h.c.call))
    ]
    proof.in_flight = len(holds)
    outside, held = _sums(pending.spent, holds)
    s = schema.block_sums.c
    in_blocks = sa.select(s.bucket, sa.func.sum(s.spent)).group_by(s.bucket).order_by(s.bucket)
    counters = sa.select(*(_b.c[name] for name in Bucket.__slots__)).order_by(_b.c.id)
    options = {"yield_per": 2000}
    told = heapq.merge(
        ((row[0], Bucket(*row), 0) for row in connection.execute(counters, execution_options=options)),
        ((id, None, int(n)) for id, n in connection.execute(in_blocks, execution_options=options)),
        ((id, None, n) for id, n in sorted(outside.items())),
        key=itemgetter(0),
    )
    for id, parts in groupby(told, key=itemgetter(0)):
        bucket, booked = None, 0
        for _, there, amount in parts:
            bucket, booked = there or bucket, booked + amount
        if bucket is not None:
            proof.buckets += 1
            proof.findings += _wrong((bucket,), {id: booked}, held)
        elif booked:
            proof.flaw("entry", "", f"entries are booked in a bucket {id}, which is not there")


def _sums(booked: dict[int, int], holds: Sequence[HoldRecord]) -> tuple[dict[int, int], dict[int, int]]:
    """What should be spent and held in each bucket, by what is booked in it and what is in flight."""
    spent = dict(booked)
    for id, amount in unmoved(holds).items():
        spent[id] = spent.get(id, 0) - amount
    return spent, merge_amounts((id, unit, amount) for hold in holds for id, unit, amount, _ in hold.bookings)


def _wrong(buckets: Iterable[Bucket], spent: dict[int, int], held: dict[int, int]) -> Iterator[Finding]:
    for bucket in buckets:
        right = (spent.get(bucket.id, 0), held.get(bucket.id, 0))
        if (bucket.spent, bucket.held) != right:
            yield Finding(bucket, *right)


def repair(ledger: Ledger) -> list[Finding]:
    """Rebuild the buckets from the ledger; what was wrong. Calls may go on meanwhile.

    Raises:
        StoreError: the store cannot be read or written.
    """
    findings: list[Finding] = []

    def wanted(buckets: list[Bucket], holds: list[HoldRecord], entries: list[Entry]) -> list[Bucket]:
        spent, held = _sums(merge_amounts(b for entry in entries for b in entry.bookings), holds)
        findings[:] = _wrong(buckets, spent, held)
        return [replace(f.bucket, spent=f.spent, held=f.held) for f in findings]

    with explained(ledger):
        ledger.rebuild(wanted)
    return findings


def show_proof(
    ledger: Ledger,
    asked: Asked,
    *,
    expired: int = 0,
    whole: bool = False,
    sealed: bool = False,
    holds: str | None = None,
    remember: Callable[[Proof], None] = lambda proof: None,
) -> Shown:
    """Prove the books.

    Args:
        expired: calls whose lease had run out, and that have just been booked.
        whole: also what was proved before. sealed: the same, and the newest seal is shown.
        holds: a seal that was noted before, which must still be there.
        remember: told of the proof, so that what is proved need not be proved again.
    """
    proof = prove(ledger, whole=whole or sealed or holds is not None)
    if holds is not None and not _has_seal(ledger, holds):
        proof.flaw("seal", "", f"the seal {holds} is not there")
    remember(proof)
    findings, flaws = proof.findings, proof.flaws
    sums = {
        "buckets": proof.buckets, "entries": proof.entries, "in_flight": proof.in_flight, "expired": expired,
        "looked_at": proof.looked_at, "blocks": proof.blocks, "seal": proof.head,
    }  # fmt: skip

    def lines() -> str:
        said = [f"{expired} calls whose lease had run out were booked at their worst case (assumed)."]
        said = [*(said if expired else []), *map(str, flaws), *map(str, findings)]
        agreed = "all sums agree."
        if findings:
            agreed = f"{len(findings)} buckets disagree; see 'behest repair'."
        if flaws:
            agreed = f"{len(flaws)} flaws. " + (agreed if findings else "The budgets' counters agree.")
        said.append(
            f"{proof.buckets} buckets, {proof.entries} entries, {proof.in_flight} calls in flight: " + agreed
        )
        if proof.looked_at < proof.entries:
            said.append(
                f"{said_count(proof.looked_at)} entries were looked at one by one; the others were before: "
                "--all looks at all of them again."
            )
        said += [f"Not proved: {said_count(n)} costs: {why}." for why, n in sorted(proof.unproven.items())]
        if sealed:
            said.append(f"{proof.blocks} blocks are sealed. The newest seal: {proof.head or 'none yet'}")
        return "\n".join(said)

    rows = [finding.as_dict() for finding in findings]
    return Shown(
        rows,
        lines,
        data={
            **sums,
            "findings": rows,
            "flaws": [flaw.as_dict() for flaw in flaws],
            "unproven": dict(proof.unproven),
        },
        columns=FINDING,
        empty="",
        exit_code=1 if findings or flaws else 0,
    )


def _has_seal(ledger: Ledger, hash: str) -> bool:
    with reading(ledger) as connection:
        found = sa.select(schema.seals.c.id).where(schema.seals.c.hash == hash)
        return connection.execute(found).first() is not None
