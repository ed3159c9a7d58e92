"""Invariant 6: the sum of the ledger equals the buckets. Proved, and restored."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..ledger import Bucket, Entry, HoldRecord, Ledger
from ..ledger.book import merge_amounts
from ..rules.budgets import budget_of_shape, describe_scope
from ..rules.units import format_amount


@dataclass(frozen=True)
class Finding:
    """A bucket whose sums are not what entries and holds add up to."""

    bucket: Bucket
    spent: int
    held: int

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


def verify(ledger: Ledger) -> list[Finding]:
    """The buckets that disagree with the ledger; none if all is well.

    Raises:
        StoreError: the store cannot be read.
    """
    return _compare(*ledger.snapshot())


def repair(ledger: Ledger) -> list[Finding]:
    """Rebuild the buckets from the ledger; what was wrong. Calls may go on meanwhile.

    Raises:
        StoreError: the store cannot be read or written.
    """
    findings: list[Finding] = []

    def wanted(buckets: list[Bucket], holds: list[HoldRecord], entries: list[Entry]) -> list[Bucket]:
        findings[:] = _compare(buckets, holds, entries)
        return [replace(f.bucket, spent=f.spent, held=f.held) for f in findings]

    ledger.rebuild(wanted)
    return findings


def _compare(buckets: list[Bucket], holds: list[HoldRecord], entries: list[Entry]) -> list[Finding]:
    spent = merge_amounts(b for entry in entries for b in entry.bookings)
    held = merge_amounts((id, unit, amount) for hold in holds for id, unit, amount, _ in hold.bookings)
    return [
        Finding(bucket, spent.get(bucket.id, 0), held.get(bucket.id, 0))
        for bucket in buckets
        if bucket.spent != spent.get(bucket.id, 0) or bucket.held != held.get(bucket.id, 0)
    ]
