"""Where the books are kept.

`book` says what reserving, settling and expiring do, once. `base` is what a store is, and gets
operations from many threads and tasks to one writer. `stores` finds the store that a URL means:
`memory`, `sqlite`, or somebody else's; `sql` is what those in a database share.
"""

from .base import Ledger
from .book import Bucket, Claim, Entry, HoldRecord
from .stores import open_store

__all__ = ["Bucket", "Claim", "Entry", "HoldRecord", "Ledger", "open_store"]
