"""A report: the dearest calls."""

import sqlalchemy as sa

from behest_integrations.ledger import Ledger
from behest_integrations.ledger.schema import entries
from behest_integrations.reports import Asked, Shown, reading


def biggest(ledger: Ledger, asked: Asked) -> Shown:
    """The dearest calls."""
    dearest = sa.select(entries.c.session_id, entries.c.model, entries.c.cost).order_by(entries.c.cost.desc())
    with reading(ledger) as connection:
        rows = [dict(row._mapping) for row in connection.execute(dearest.limit(10))]
    return Shown(rows, lambda: "\n".join(f"{row['session_id']} {row['cost']}" for row in rows))
