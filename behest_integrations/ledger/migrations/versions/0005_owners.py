"""Whose a hold is: the process that would end it."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("holds", sa.Column("owner", sa.Text(), nullable=False, server_default=""))
