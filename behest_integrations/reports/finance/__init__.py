"""What finance takes away: files of what was spent, chargeback, and invoices held against the books."""

from .centres import CostCentres, chargeback
from .corrections import book_differences
from .differences import Difference
from .export import FORMATS, Exported, export
from .invoices import BilledLine, read_invoice
from .reconcile import Reconciliation, reconcile
from .repricing import Repriced, reprice

__all__ = [
    "FORMATS", "BilledLine", "CostCentres", "Difference", "Exported", "Reconciliation", "Repriced",
    "book_differences", "chargeback", "export", "read_invoice", "reconcile", "reprice",
]  # fmt: skip
