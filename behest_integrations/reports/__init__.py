"""The read side: sums over the ledger, proofs, tables. It never writes, but for `repair`."""

from .queries import GROUPS, Line, Report, report, stages
from .verify import Finding, repair, verify

__all__ = ["GROUPS", "Finding", "Line", "Report", "repair", "report", "stages", "verify"]
