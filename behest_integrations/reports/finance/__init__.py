"""What finance takes away: files of what was spent, chargeback, and invoices held against the books."""

from .centres import CostCentres, chargeback
from .export import FORMATS, Exported, export

__all__ = ["FORMATS", "CostCentres", "Exported", "chargeback", "export"]
