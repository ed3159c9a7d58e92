"""Seals: what was closed, and what was done to it since, one chain by hashes. Nothing updates a record.

A block is sealed when it is closed: how many entries it has, a hash of all that they say, and one of what
they add up to. What may be done to closed entries, and nothing else may, is sealed again, with its reason:

- ``forgotten``: whom some of them were for has been replaced (`erasure`);
- ``pruned``: they were replaced by fewer, with the same sums (`pruning`).

All else that comes later is an entry of its own, and changes none: a late settle (a reversal of what was
assumed, and the truth), a correction by an invoice, a price that became known. A record says as well whether
the block was as sealed before it was touched (`note`), so that nothing is made good by touching it.

What hashes cannot tell is that the newest records are missing, or that whoever may write the database has
made all of them anew. So `behest verify --sealed` prints the newest hash: kept elsewhere, it can be asked
for later (``--holds``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from .audit import hash_of

Kind = Literal["closed", "forgotten", "pruned"]
NOT_AS_SEALED = "it was not as sealed before"


class Seal(NamedTuple):
    """A record of the chain. `prev` is the hash of the one before it; "" of the first."""

    id: int
    at: int
    kind: Kind
    block: int
    lines: int
    digest: str
    sums: str
    note: str
    prev: str
    hash: str


def sealed(
    last: Seal | None, *, at: int, kind: Kind, block: int, lines: int, digest: str, sums: str, note: str = ""
) -> Seal:
    """The next record after `last`."""
    body = (
        1 if last is None else last.id + 1, at, kind, block, lines, digest, sums, note,
        "" if last is None else last.hash,
    )  # fmt: skip
    return Seal(*body, hash_of(body))


class Chain(NamedTuple):
    """What a walk along the chain has found.

    Attributes:
        newest: of each block, the record that holds.
        head: the hash of the last record; "" if there is none.
        flaws: by block, what is wrong with its records.
    """

    newest: dict[int, Seal]
    head: str
    flaws: list[tuple[int, str]]


def walk(seals: Iterable[Seal]) -> Chain:
    """Prove a chain, record by record, in the order of their ids."""
    newest: dict[int, Seal] = {}
    flaws: list[tuple[int, str]] = []
    head, expected = "", 1
    for seal in seals:
        if seal.hash != hash_of(seal[:-1]):
            flaws.append((seal.block, f"its seal {seal.id} is not as it was written"))
        elif seal.id != expected or seal.prev != head:
            flaws.append((seal.block, f"the seals before {seal.id} are missing, or are others"))
        flaws += [(seal.block, what) for what in _out_of_turn(seal, newest)]
        newest[seal.block] = seal
        head, expected = seal.hash, seal.id + 1
    return Chain(newest, head, flaws)


def _out_of_turn(seal: Seal, newest: dict[int, Seal]) -> Iterator[str]:
    if (seal.kind == "closed") == (seal.block in newest):
        yield f"its seal {seal.id} is out of turn"
    if seal.note.startswith(NOT_AS_SEALED):
        yield f"{seal.note} its entries were {seal.kind}"
