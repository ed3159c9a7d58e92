"""Who may call: what a key may do and until when, tenants' public keys, and what tells of changes."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0005"


def upgrade() -> None:
    for column in (
        sa.Column("role", sa.Text(), nullable=False, server_default="project"),
        sa.Column("expires", sa.BigInteger()),
        sa.Column("models", sa.JSON()),
        sa.Column("addresses", sa.JSON()),
        sa.Column("budgets", sa.JSON()),
        sa.Column("line", sa.Text()),
    ):
        op.add_column("api_keys", column)
    op.create_table(
        "signing_keys",
        sa.Column("kid", sa.Text(), primary_key=True),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("project", sa.Text()),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("pem", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("revoked", sa.BigInteger()),
    )
    op.create_table(
        "revisions",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("number", sa.BigInteger(), nullable=False),
    )
