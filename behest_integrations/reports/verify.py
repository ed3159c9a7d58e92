"""Invariant 6: the sum of the ledger equals the buckets. Proved, and restored."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..ledger import Bucket, Ledger
from ..ledger.book import merge_amounts


@dataclass(frozen=True)
class Finding:
    """A bucket whose sums are not what entries and holds add up to."""

    bucket: Bucket
    spent: int
    held: int

    def __str__(self) -> str:
        b = self.bucket
        scope = f" {b.scope}" if b.scope else ""
        return (
            f"bucket {b.id} ({b.budget}{scope}): spent {b.spent}, entries add up to {self.spent}; "
            f"held {b.held}, holds add up to {self.held}"
        )


def verify(ledger: Ledger) -> list[Finding]:
    """The buckets that disagree with the ledger; none if all is well.

    Raises:
        StoreError: the store cannot be read.
    """
    buckets, holds, entries = ledger.snapshot()
    spent = merge_amounts(b for entry in entries for b in entry.bookings)
    held = merge_amounts((id, unit, amount) for hold in holds for id, unit, amount, _ in hold.bookings)
    return [
        Finding(bucket, spent.get(bucket.id, 0), held.get(bucket.id, 0))
        for bucket in buckets
        if bucket.spent != spent.get(bucket.id, 0) or bucket.held != held.get(bucket.id, 0)
    ]


def repair(ledger: Ledger) -> list[Finding]:
    """Rebuild the buckets from the ledger; what was wrong. No calls may be in flight.

    Raises:
        StoreError: the store cannot be read or written.
    """
    findings = verify(ledger)
    ledger.rebuild(replace(f.bucket, spent=f.spent, held=f.held) for f in findings)
    return findings
