"""Entries by blocks: what they add up to, and what they are sealed with."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"

_TEXTS = (
    "tenant", "project", "user_id", "session_id", "model", "operation", "stage", "tag", "value", "status",
)  # fmt: skip
_NUMBERS = (
    "calls", "lines", "input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens",
    "cache_write_tokens", "input_audio_tokens", "output_audio_tokens", "cost", "unpriced", "over_bound",
    "first_at", "last_at", "began",
)  # fmt: skip


def upgrade() -> None:
    op.add_column("entries", sa.Column("lines", sa.BigInteger()))
    op.create_table(
        "blocks",
        sa.Column("id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("late", sa.Text()),
        sa.Column("lines", sa.BigInteger(), nullable=False),
        sa.Column("first_at", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("sums", sa.Text(), nullable=False),
        sa.Column("proven", sa.BigInteger()),
        sa.Column("pruned", sa.BigInteger()),
    )
    op.create_table("unclosed", sa.Column("id", sa.BigInteger(), primary_key=True, autoincrement=False))
    op.create_table(
        "rollups",
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("block", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("slot", sa.BigInteger()),
        *(sa.Column(name, sa.Text()) for name in _TEXTS),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _NUMBERS),
        sa.PrimaryKeyConstraint("kind", "block", "seq"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "block_sums",
        sa.Column("block", sa.BigInteger(), nullable=False),
        sa.Column("bucket", sa.BigInteger(), nullable=False),
        sa.Column("spent", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("block", "bucket"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "seals",
        sa.Column("id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("block", sa.BigInteger(), nullable=False),
        sa.Column("lines", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("sums", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("prev", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
    )
