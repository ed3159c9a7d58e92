"""The read side: sums over the ledger, proofs, tables. It never writes, but for `repair`.

    from behest_integrations import reports

    ledger = reports.open("behest.db")
    reports.report(ledger, ("user", "model")).dataframe()

One file a report, with its query and its table: `spending`, `budgets`, `stages`, `verify`. How
they look is in `look`; what a report is asked and shows, and how to add one, in `shown`.
"""

from .opening import open
from .shown import Asked, Shown, reading
from .spending import GROUPS, Line, Report, print_report, report
from .stages import stages
from .verify import Finding, Flaw, Proof, prove, repair, verify

__all__ = [
    "GROUPS", "Asked", "Finding", "Flaw", "Line", "Proof", "Report", "Shown", "open", "print_report", "prove",
    "reading", "repair", "report", "stages", "verify",
]  # fmt: skip
