"""Forgetting whom calls were for: the ids are replaced, and what was spent stays."""

from __future__ import annotations

import secrets

import sqlalchemy as sa

from . import schema

_TABLES = (schema.entries, schema.refusals)


def forget_session(
    engine: sa.Engine, session: str, *, tenant: str | None, project: str | None, user: str | None
) -> int:
    """Replace the ids of a session's calls, in one transaction; how many lines of the ledger that were.

    The counters of budgets keep what they count under the id: else it could be spent again.

    Args:
        tenant, project: whose it is; None: of those calls that name none.
        user: whose calls alone; None: anybody's.
    """
    nobody = f"forgotten-{secrets.token_hex(8)}"
    count = 0
    with engine.execution_options(write=True).begin() as connection:
        for table in _TABLES:
            c = table.c
            wanted = [c.session_id == session]
            for column, value in ((c.tenant, tenant), (c.project, project)):
                wanted.append(column.is_(None) if value is None else column == value)
            if user is not None:
                wanted.append(c.user_id == user)
            known = sa.case((c.user_id.is_not(None), nobody))
            changed = connection.execute(
                sa.update(table).where(*wanted).values(session_id=nobody, user_id=known)
            )
            count += changed.rowcount if table is schema.entries else 0
    return count
