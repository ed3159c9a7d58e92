"""Forgetting whom calls were for: the ids are replaced, and what was spent stays.

A block of entries that has any is sealed again (`seals`), and added up again. Each block is a transaction of
its own, so that nobody waits for long.
"""

from __future__ import annotations

import secrets

import sqlalchemy as sa

from . import schema
from .blocks import Block, read_blocks, rolled, sums_digest
from .changes import count_change, lock_changes
from .closing import seal_again, tallied, write_sums

_e = schema.entries


def forget_session(
    engine: sa.Engine, session: str, *, tenant: str | None, project: str | None, user: str | None, now: int
) -> int:
    """Replace the ids of a session's calls; how many lines of the ledger that were.

    The counters of budgets keep what they count under the id: else it could be spent again.

    Args:
        tenant, project: whose it is; None: of those calls that name none.
        user: whose calls alone; None: anybody's.
        now: milliseconds since 1970.
    """
    nobody = f"forgotten-{secrets.token_hex(8)}"

    def theirs(table: sa.Table) -> sa.ColumnElement[bool]:
        c = table.c
        wanted = [c.session_id == session]
        for column, value in ((c.tenant, tenant), (c.project, project)):
            wanted.append(column.is_(None) if value is None else column == value)
        if user is not None:
            wanted.append(c.user_id == user)
        return sa.and_(*wanted)

    def forget(connection: sa.Connection, table: sa.Table, which: sa.ColumnElement[bool]) -> int:
        known = sa.case((table.c.user_id.is_not(None), nobody))
        statement = sa.update(table).where(which).values(session_id=nobody, user_id=known)
        return connection.execute(statement).rowcount

    def next_block(connection: sa.Connection) -> Block | None:
        blocks = read_blocks(connection)
        if not blocks.closed:
            return None
        closed = sa.not_(blocks.pending)
        first = connection.execute(sa.select(sa.func.min(_e.c.id)).where(theirs(_e), closed)).scalar()
        if first is None:
            return None
        late = next((b for b in blocks.closed if first in b.late), None)
        return late or next(b for b in blocks.closed if not b.late and b.after < first <= b.last)

    count = 0
    while True:
        with engine.execution_options(write=True).begin() as connection:
            lock_changes(connection)
            count_change(connection)
            block = next_block(connection)
            if block is None:
                # Those of no block; who closes one meanwhile has begun again.
                count += forget(connection, _e, theirs(_e))
                forget(connection, schema.refusals, theirs(schema.refusals))
                return count
            members = read_blocks(connection).members(block)
            before = tallied(connection, members)
            count += forget(connection, _e, sa.and_(theirs(_e), members))
            rollups = rolled(connection, members)
            sums = sums_digest(rollups, before.spent)
            seal_again(connection, block, members, before, at=now, kind="forgotten", sums=sums)
            write_sums(connection, block.id, rollups, before.spent)
