"""`behest verify` and `repair`: the sum of the ledger equals the buckets. Proved, and restored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..ledger import Bucket, Entry, HoldRecord, Ledger
from ..ledger.book import merge_amounts, unmoved
from ..rules.budgets import budget_of_shape, describe_scope
from ..rules.units import format_amount
from .shown import Asked, Shown, everything, explained

FINDING = ("budget", "scope", "unit", "start", "spent", "spent_by_ledger", "held", "held_by_ledger")


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


def verify(ledger: Ledger) -> list[Finding]:
    """The buckets that disagree with the ledger; none if all is well.

    Raises:
        StoreError: the store cannot be read.
    """
    return _compare(*everything(ledger))


def repair(ledger: Ledger) -> list[Finding]:
    """Rebuild the buckets from the ledger; what was wrong. Calls may go on meanwhile.

    Raises:
        StoreError: the store cannot be read or written.
    """
    findings: list[Finding] = []

    def wanted(buckets: list[Bucket], holds: list[HoldRecord], entries: list[Entry]) -> list[Bucket]:
        findings[:] = _compare(buckets, holds, entries)
        return [replace(f.bucket, spent=f.spent, held=f.held) for f in findings]

    with explained(ledger):
        ledger.rebuild(wanted)
    return findings


def show_proof(ledger: Ledger, asked: Asked, *, expired: int = 0) -> Shown:
    """Prove that the buckets equal the ledger.

    Args:
        expired: calls whose lease had run out, and that have just been booked.
    """
    buckets, holds, entries = everything(ledger)
    findings = _compare(buckets, holds, entries)
    sums = {"buckets": len(buckets), "entries": len(entries), "in_flight": len(holds), "expired": expired}

    def lines() -> str:
        said = [f"{expired} calls whose lease had run out were booked at their worst case (assumed)."]
        said = [*(said if expired else []), *map(str, findings)]
        agreed = f"{len(findings)} buckets disagree; see 'behest repair'." if findings else "all sums agree."
        said.append(
            f"{sums['buckets']} buckets, {sums['entries']} entries, {sums['in_flight']} calls in flight: "
            + agreed
        )
        return "\n".join(said)

    rows = [finding.as_dict() for finding in findings]
    return Shown(
        rows,
        lines,
        data={**sums, "findings": rows},
        columns=FINDING,
        empty="",
        exit_code=1 if findings else 0,
    )


def _compare(buckets: list[Bucket], holds: list[HoldRecord], entries: list[Entry]) -> list[Finding]:
    spent = merge_amounts(b for entry in entries for b in entry.bookings)
    for id, amount in unmoved(holds).items():
        spent[id] = spent.get(id, 0) - amount
    held = merge_amounts((id, unit, amount) for hold in holds for id, unit, amount, _ in hold.bookings)
    return [
        Finding(bucket, spent.get(bucket.id, 0), held.get(bucket.id, 0))
        for bucket in buckets
        if bucket.spent != spent.get(bucket.id, 0) or bucket.held != held.get(bucket.id, 0)
    ]
