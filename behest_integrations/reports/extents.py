"""Where in a ledger a time lies, so that a report of a day need not read a year.

Entries are appended, nearly in the order of their times and not quite: clocks differ, and what could not
be written is written later. So of each block of entries it is remembered when its first and its last
was booked, and blocks that lie outside of what is asked for are passed over. No entry is missed for
that, in whatever order they came. Read once for each process, and then only what is new.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from weakref import WeakKeyDictionary

import sqlalchemy as sa

from ..ledger import Ledger, schema
from .shown import Asked, reading

_e = schema.entries
_BLOCK = 4096
_known: WeakKeyDictionary[Ledger, _Extents] = WeakKeyDictionary()
_making = threading.Lock()


class _Extents:
    """When the entries of each block of ids were booked: the last of each, in ms since 1970."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[int, int] = {}
        self._whole = 0
        """Blocks before this one get no further entries."""

    def first_id(self, ledger: Ledger, since_ms: int) -> int:
        """An id before which nothing was booked at `since_ms` or later."""
        block = (_e.c.id // _BLOCK).label("block")
        statement = sa.select(block, sa.func.max(_e.c.at)).group_by(block)
        with self._lock:
            with reading(ledger) as connection:
                rows = connection.execute(statement.where(_e.c.id >= self._whole * _BLOCK)).all()
            for number, last in rows:
                self._last[int(number)] = int(last)
            # The newest blocks may still grow: ids are given in order, and committed nearly so.
            self._whole = max(self._whole, max(self._last, default=0) - 1, 0)
            within = [number for number, last in self._last.items() if last >= since_ms]
            return min(within, default=max(self._last, default=0)) * _BLOCK


def located(ledger: Ledger, asked: Asked) -> Asked:
    """The same question, with the place in the ledger from which on it needs to be read.

    Raises:
        StoreError: the store cannot be read.
    """
    if asked.since is None:
        return asked
    with _making:
        extents = _known.setdefault(ledger, _Extents())
    return replace(asked, first_id=extents.first_id(ledger, int(asked.since.timestamp() * 1000)))
