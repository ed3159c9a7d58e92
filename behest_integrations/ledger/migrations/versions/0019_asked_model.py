"""Which model was asked for, where a cheaper one stood in for it."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0014"


def upgrade() -> None:
    op.add_column("entries", sa.Column("asked_model", sa.Text()))
