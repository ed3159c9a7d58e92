"""A ledger, to be looked at."""

from __future__ import annotations

import os

from ..ledger import Ledger
from ..ledger.stores import open_to_read, store_url


def open(path: str | os.PathLike[str] | None = None) -> Ledger:
    """The ledger at `path`, a file or a store's URL, for reports: it must be there, and nothing of it is
    written, not even where its schema is an older one.

    Args:
        path: default: the environment's ``BEHEST_STORE``, else ``behest.db``.

    Raises:
        ConfigError: there is none. None is made, as a meter would.
        StoreError: it cannot be read.
    """
    said = store_url(None if path is None else os.fspath(path))
    return open_to_read(said if "://" in said else f"sqlite:///{said}")
