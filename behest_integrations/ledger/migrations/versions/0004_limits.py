"""Limits by what is counted, and not by how much it once was; and limits of one user's own."""

import sqlalchemy as sa
from alembic import op

from behest_integrations.rules.budgets import Budget
from behest_integrations.rules.errors import ConfigError

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "own_limits",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("budget", sa.Text(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "budget"),
    )
    limits = sa.table("limits", sa.column("text", sa.Text()), sa.column("amount", sa.BigInteger()))
    connection = op.get_bind()
    by_shape = {}
    for text, amount in connection.execute(sa.select(limits.c.text, limits.c.amount)).fetchall():
        try:
            by_shape[Budget.parse(text).shape] = amount
        except ConfigError:
            by_shape[text] = amount
    connection.execute(sa.delete(limits))
    for shape, amount in by_shape.items():
        connection.execute(sa.insert(limits).values(text=shape, amount=amount))
