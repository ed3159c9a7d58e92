"""How long the audit is kept. What is let go of is said in it, so that the rest can still be proved."""

from __future__ import annotations

from .audit import Decision, before
from .base import Ledger
from .book import Rows


def prune(ledger: Ledger, now: int, days: int) -> int:
    """Let go of records that are older than so many days; how many. What is left can still be proved.

    Raises:
        StoreError: the store cannot be written.
    """
    oldest = now - days * 86_400_000

    def work(rows: Rows) -> int:
        pruned = before(rows.audit(), oldest)
        if pruned.records:
            rows.add_audit(Decision(now, "pruned", f"kept for {days} days", details=pruned._asdict()))
            rows.drop_audit(pruned)
        return pruned.records

    return ledger.submit(work)
