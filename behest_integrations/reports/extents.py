"""Where in a ledger a time lies, so that a list of a day's calls need not read a year.

Entries are appended, nearly in the order of their times and not quite: clocks differ, and what could not
be written is written later. Of each block it is known when its first and its last was booked.
"""

from __future__ import annotations

from dataclasses import replace

from ..ledger import Ledger
from .lines import first_id
from .shown import Asked, reading


def located(ledger: Ledger, asked: Asked) -> Asked:
    """The same question, with the place in the ledger from which on it needs to be read.

    Raises:
        StoreError: the store cannot be read.
    """
    if asked.since is None:
        return asked
    with reading(ledger) as connection:
        return replace(asked, first_id=first_id(connection, int(asked.since.timestamp() * 1000)))
