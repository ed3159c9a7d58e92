"""One at a time changes what is closed, and whoever has read it before can tell."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from . import schema

_NAME = "entries"
"""The row of `revisions` that counts what was done to entries and sums that are there."""


def lock_changes(connection: sa.Connection) -> None:
    """Be the only one who changes blocks and closed entries, until the transaction ends."""
    insert: Any = postgres_insert if connection.dialect.name == "postgresql" else sqlite_insert
    r = schema.revisions
    connection.execute(insert(r).values(name=_NAME, number=0).on_conflict_do_nothing())
    connection.execute(sa.select(r.c.number).where(r.c.name == _NAME).with_for_update())


def count_change(connection: sa.Connection) -> None:
    """Say that entries, or sums of them, were changed: who has read them before begins again."""
    r = schema.revisions
    connection.execute(sa.update(r).where(r.c.name == _NAME).values(number=r.c.number + 1))


def changes(connection: sa.Connection) -> int:
    """How often that was."""
    r = schema.revisions
    return int(connection.scalar(sa.select(r.c.number).where(r.c.name == _NAME)) or 0)
