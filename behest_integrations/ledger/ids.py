"""Ids of rows that hosts make for themselves: by time, so that trees grow at their end, then at random."""

from __future__ import annotations

_EPOCH = 1_577_836_800_000
"""2020: ids made here have 63 bits until 2089."""
RANDOM_BITS = 22


def first_id_at(ms: int) -> int:
    """The least id that is made at a time, in ms since 1970."""
    return (ms - _EPOCH) << RANDOM_BITS
