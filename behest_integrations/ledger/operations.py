"""What is done in a transaction, and which rows it is known beforehand to need.

A store that is far away fetches, and locks, all that a batch of operations needs at once. What is not
said here an operation gets all the same, only later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from .book import Claim, Rows

T = TypeVar("T")


class Operation(Generic[T]):
    """An operation that says what it needs. It may be run more than once, and changes nothing but `Rows`.

    Attributes:
        claims: whose buckets it reads or changes.
        takes: the ids of holds that it ends.
        makes: the id of the hold that it may write.
        now: the time that it is for, in ms; 0: it counts nothing in rolling windows.
        settles: whether it books into a rolling window's slot of `now`.
        sweeps: whether it looks for holds whose time is up.
        reads: it writes nothing, and needs nobody to wait for it.
    """

    __slots__ = ("claims", "makes", "now", "reads", "settles", "sweeps", "takes", "work")

    def __init__(
        self,
        work: Callable[[Rows], T],
        *,
        claims: Sequence[Claim] = (),
        takes: Sequence[str] = (),
        makes: str | None = None,
        now: int = 0,
        settles: bool = False,
        sweeps: bool = False,
        reads: bool = False,
    ) -> None:
        self.work = work
        self.claims = claims
        self.takes = takes
        self.makes = makes
        self.now = now
        self.settles = settles
        self.sweeps = sweeps
        self.reads = reads

    def __call__(self, rows: Rows) -> T:
        return self.work(rows)


def slot_of(claim: Claim, now: int) -> int:
    """Where a rolling window's slot of a time begins, in ms; never 0, which is the window's own bucket."""
    return max(1, now // claim.slot_ms * claim.slot_ms)
