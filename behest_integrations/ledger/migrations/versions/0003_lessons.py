"""What bills have taught of models whose tokenizer is not known."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_NUMBERS = (
    "request", "message", "tool", "kilobyte", "distrusted",
    "seen_tokens", "seen_systems", "seen_users", "seen_assistants",
)  # fmt: skip


def upgrade() -> None:
    op.create_table(
        "lessons",
        sa.Column("server", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _NUMBERS),
        sa.PrimaryKeyConstraint("server", "model"),
    )
