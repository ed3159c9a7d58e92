"""The audit: what was decided, by which rule, for whom; append-only, and chained by hashes.

Each writer (a connection of a process) has a chain of its own, which it alone appends to, so that no
writer waits for another's. A chain begins with the hash of the newest record that there was, of whatever
chain: who takes an old chain out breaks the newer ones. A record has kinds and counts in it, never a text.

What hashes cannot tell is that the newest records are missing. So `verify` tells the heads; whoever keeps
one elsewhere can ask later whether it is still there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

KINDS = ("allowed", "masked", "shadow", "refused", "budget", "key", "admin", "pruned")
"""What is decided: a call that went ahead as it was, or changed, or with findings that change nothing; one
that was refused; a limit, a key or a setting that was changed; records that were let go of."""


@dataclass(slots=True)
class Decision:
    """One decision.

    Attributes:
        at: milliseconds since 1970.
        kind: one of `KINDS`.
        rule: by which rule; of a budget, its text.
        trace: the gateway's trace, if there is one.
        call_id: of the entry of the call, where it went ahead.
        actor: who did it, where that is not whom it is for: a key's id, `cli`.
        details: more, as kinds and counts: `{"EMAIL_ADDRESS": 2}`.
    """

    at: int
    kind: str
    rule: str = ""
    trace: str | None = None
    call_id: str | None = None
    session_id: str | None = None
    user_id: str | None = None
    project: str | None = None
    tenant: str | None = None
    actor: str | None = None
    operation: str | None = None
    model: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


class Record(NamedTuple):
    """A decision as it is kept. `prev` is the hash of the record before it."""

    chain: str
    seq: int
    at: int
    kind: str
    rule: str
    trace: str | None
    call_id: str | None
    session_id: str | None
    user_id: str | None
    project: str | None
    tenant: str | None
    actor: str | None
    operation: str | None
    model: str | None
    details: str
    prev: str
    hash: str


FIELDS = Record._fields
_OF_DECISION = FIELDS[2:14]


class Chain:
    """Where one writer appends.

    Args:
        newest: the hash of the newest record that there is; "" if there is none.
    """

    def __init__(self, newest: str) -> None:
        self.id = os.urandom(8).hex()
        self._seq = 0
        self._head = newest

    def link(self, decision: Decision) -> Record:
        """The decision as the chain's next record."""
        self._seq += 1
        values = [getattr(decision, name) for name in _OF_DECISION]
        details = to_json(dict(decision.details)).decode() if decision.details else "{}"
        body = (self.id, self._seq, *values, details, self._head)
        self._head = hash_of(body)
        return Record._make((*body, self._head))


def hash_of(body: Sequence[Any]) -> str:
    return hashlib.sha256(to_json(body)).hexdigest()


class Flaw(NamedTuple):
    """A record that is not as it was written, or is missing."""

    chain: str
    seq: int
    what: str

    def __str__(self) -> str:
        return f"chain {self.chain}, record {self.seq}: {self.what}"


class Proof(NamedTuple):
    """What `verify` has found.

    Attributes:
        heads: the newest hash of each chain, to be kept elsewhere.
        pruned: how many records were let go of, as the audit itself says.
    """

    records: int
    heads: Mapping[str, str]
    pruned: int
    flaws: Sequence[Flaw]


def verify(records: Iterable[Record]) -> Proof:
    """Prove that nothing was changed, put in or taken out.

    Args:
        records: in the order of their chains, and in those by their numbers.
    """
    listed = list(records)
    hashes = {r.hash for r in listed}
    # What was let go of, as records say that are themselves chained.
    cut: dict[str, tuple[int, str]] = {}
    pruned = 0
    for record in listed:
        if record.kind == "pruned":
            said = _details(record)
            pruned += said.get("records", 0)
            for chain, (seq, last) in said.get("chains", {}).items():
                if chain not in cut or cut[chain][0] < seq:
                    cut[chain] = (seq, last)
                hashes.add(last)
    flaws: list[Flaw] = []
    heads: dict[str, str] = {}
    before: Record | None = None
    for record in listed:
        if record.hash != hash_of(record[:-1]):
            flaws.append(Flaw(record.chain, record.seq, "it is not as it was written"))
        if before is not None and before.chain == record.chain:
            if record.seq != before.seq + 1 or record.prev != before.hash:
                flaws.append(Flaw(record.chain, record.seq, f"what came after {before.seq} is missing"))
        elif record.seq != 1:
            if cut.get(record.chain) != (record.seq - 1, record.prev):
                flaws.append(Flaw(record.chain, record.seq, "what came before it is missing"))
        elif record.prev and record.prev not in hashes:
            flaws.append(Flaw(record.chain, record.seq, "the chain that it follows is missing"))
        heads[record.chain] = record.hash
        before = record
    return Proof(len(listed), heads, pruned, flaws)


def _details(record: Record) -> dict[str, Any]:
    said = from_json(record.details)
    return said if isinstance(said, dict) else {}


class Pruned(NamedTuple):
    """What is let go of: of each chain up to which number, and the hash of that record."""

    records: int
    chains: Mapping[str, tuple[int, str]]


def before(records: Iterable[Record], at: int) -> Pruned:
    """The records that are older than `at`, as far as each chain has nothing newer before them."""
    chains: dict[str, tuple[int, str]] = {}
    kept: set[str] = set()
    count = 0
    for record in records:
        if record.at >= at or record.chain in kept:
            kept.add(record.chain)
            continue
        chains[record.chain] = (record.seq, record.hash)
        count += 1
    return Pruned(count, chains)
