"""Where the books are kept.

`book` says what reserving, settling and expiring do, once. `memory` and `sql` only store
and fetch rows. `base` gets operations from many threads and tasks to one writer.
"""

from .base import Ledger
from .book import Bucket, Claim, Entry, HoldRecord

__all__ = ["Bucket", "Claim", "Entry", "HoldRecord", "Ledger"]
