"""The tables, as they are now. How they came to be so is under `migrations/`.

Amounts are integers of their unit (nano-dollars for money), times are milliseconds since
1970 UTC. No column holds a prompt or an answer.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
)

HEAD = "0021"
"""The newest migration."""

ROLLED = (
    "tenant", "project", "user_id", "session_id", "model", "operation", "stage", "tag", "value", "status",
)  # fmt: skip
"""What is in the keys of roll-ups, besides the time."""
MEASURES = (
    "calls", "lines", "input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens",
    "cache_write_tokens", "input_audio_tokens", "output_audio_tokens", "cost", "unpriced", "over_bound",
    "first_at", "last_at", "began",
)  # fmt: skip
"""What they add up; the last three are the earliest and the latest booking, and the earliest start."""

metadata = MetaData()
_ID = BigInteger().with_variant(Integer, "sqlite")

budgets = Table(
    "budgets",
    metadata,
    Column("shape", Text, primary_key=True),
    Column("text", Text, nullable=False),
    Column("zone", Text, nullable=False),
    Column("seen", BigInteger, nullable=False),
)

limits = Table(
    "limits",
    metadata,
    # The budget's shape.
    Column("text", Text, primary_key=True),
    Column("amount", BigInteger),
)

# Of one user, session, … alone. A row of the scope "" says that the budget has any.
own_limits = Table(
    "own_limits",
    metadata,
    Column("scope", Text, primary_key=True),
    Column("budget", Text, primary_key=True),
    Column("amount", BigInteger, nullable=False),
)

# What was given to one scope over its limit, until a time.
grants = Table(
    "grants",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("scope", Text, nullable=False),
    Column("budget", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=False),
    Index("grants_scope", "scope", "budget"),
)

buckets = Table(
    "buckets",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("budget", Text, nullable=False),
    Column("scope", Text, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("unit", Text, nullable=False),
    Column("spent", BigInteger, nullable=False, default=0),
    Column("held", BigInteger, nullable=False, default=0),
    Column("notified", SmallInteger, nullable=False, default=0),
    UniqueConstraint("budget", "scope", "start"),
)

holds = Table(
    "holds",
    metadata,
    Column("id", Text, primary_key=True),
    Column("expires", BigInteger, nullable=False),
    Column("bookings", Text, nullable=False),
    Column("call", Text, nullable=False),
    Column("owner", Text, nullable=False, server_default=""),
    # One tree instead of two, and no index on `expires`: each page that a call touches is
    # written to the log, and looking for expired holds walks only what is in flight.
    sqlite_with_rowid=False,
)

refusals = Table(
    "refusals",
    metadata,
    Column("bucket", BigInteger, primary_key=True),
    Column("who", Text, primary_key=True),
    Column("session_id", Text),
    Column("user_id", Text),
    Column("project", Text),
    Column("tenant", Text),
    Column("model", Text),
    Column("operation", Text),
    Column("count", BigInteger, nullable=False),
    Column("at", BigInteger, nullable=False),
)

entries = Table(
    "entries",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("call_id", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("started", BigInteger, nullable=False),
    Column("session_id", Text),
    Column("user_id", Text),
    Column("project", Text),
    Column("tenant", Text),
    Column("tags", JSON, nullable=False),
    Column("stage", Text),
    Column("operation", Text, nullable=False),
    Column("provider", Text),
    Column("model", Text, nullable=False),
    Column("service_tier", Text),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cached_input_tokens", BigInteger, nullable=False),
    Column("cache_write_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("input_audio_tokens", BigInteger, nullable=False),
    Column("output_audio_tokens", BigInteger, nullable=False),
    Column("cost", BigInteger),
    Column("calls", SmallInteger, nullable=False),
    Column("output_limit", BigInteger),
    Column("lowered_from", BigInteger),
    Column("reversal", SmallInteger, nullable=False),
    Column("flags", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("provider_id", Text),
    # Where a cheaper model stood in for it.
    Column("asked_model", Text),
    Column("bookings", JSON, nullable=False),
    # By what it was priced, a row of `terms`, and what it cost besides: see `prices.terms`.
    Column("rates", Text),
    # How many lines it stands for, where `behest prune` has made one of several; null: itself alone.
    Column("lines", BigInteger),
)
Index("entries_call", entries.c.call_id)
# By whom a stored response was made: what continues it must be the same tenant's.
Index(
    "entries_response",
    entries.c.provider_id,
    sqlite_where=entries.c.operation == "responses",
    postgresql_where=entries.c.operation == "responses",
)

# By what calls were priced. The id is a hash of the text.
terms = Table(
    "terms",
    metadata,
    Column("id", Text, primary_key=True),
    Column("text", Text, nullable=False),
)

# What bills have taught of models whose tokenizer is not known: see `wire.overheads.Learnt`.
lessons = Table(
    "lessons",
    metadata,
    Column("server", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    *(
        Column(name, BigInteger, nullable=False)
        for name in (
            "request", "message", "tool", "kilobyte", "distrusted",
            "seen_tokens", "seen_systems", "seen_users", "seen_assistants",
        )
    ),
)  # fmt: skip

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    # SHA-256 of the whole key, which has 256 random bits: nothing is gained by a slow hash.
    Column("hash", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("tier", Text),
    Column("end_users", SmallInteger, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("revoked", BigInteger),
    Column("role", Text, nullable=False, server_default="project"),
    Column("expires", BigInteger),
    Column("models", JSON(none_as_null=True)),
    Column("addresses", JSON(none_as_null=True)),
    Column("budgets", JSON(none_as_null=True)),
    Column("line", Text),
)

# Tenants' public keys: what they sign for their users is believed.
signing_keys = Table(
    "signing_keys",
    metadata,
    Column("kid", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("project", Text),
    Column("name", Text, nullable=False),
    Column("pem", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("revoked", BigInteger),
)

# Tenants' own keys at providers, sealed; of each tenant one for each provider: see `gateway.byok`.
provider_keys = Table(
    "provider_keys",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("provider", Text, primary_key=True),
    Column("id", Text, nullable=False),
    Column("sealed", Text, nullable=False),
    # Which master key it is sealed with.
    Column("master", Text, nullable=False),
    Column("hint", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
)

# What was changed of the gateway's settings while it ran; it goes before what a file says.
changed_settings = Table(
    "changed_settings",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("value", JSON, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("actor", Text),
)

# How often what others remember has changed.
revisions = Table(
    "revisions",
    metadata,
    Column("name", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),
)

# What is to be told to somebody outside: see `outbox`.
outbox = Table(
    "outbox",
    metadata,
    Column("id", Text, primary_key=True),
    Column("sink", Text, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
    Column("due", BigInteger, nullable=False),
    Column("tries", BigInteger, nullable=False),
    Column("done", BigInteger),
    Column("error", Text, nullable=False),
)
Index(
    "outbox_due", outbox.c.due, sqlite_where=outbox.c.done.is_(None), postgresql_where=outbox.c.done.is_(None)
)

# What was decided, chained by hashes: see `audit`. Nothing updates a row.
audit = Table(
    "audit",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("chain", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("rule", Text, nullable=False),
    *(
        Column(name, Text)
        for name in (
            "trace", "call_id", "session_id", "user_id", "project", "tenant", "actor", "operation", "model",
        )
    ),
    Column("details", Text, nullable=False),
    Column("prev", Text, nullable=False),
    Column("hash", Text, nullable=False),
    UniqueConstraint("chain", "seq"),
)  # fmt: skip

# Entries by some thousands, in the order in which they were written, closed: what they add up to is in
# `rollups` and `block_sums`, and what they say is sealed in `seals`. See `blocks`.
blocks = Table(
    "blocks",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    # Its entries are those after the block before it, to this one.
    Column("last", BigInteger, nullable=False),
    # Or these, as JSON: entries that became visible after the block had been closed that they belong in.
    Column("late", Text),
    Column("lines", BigInteger, nullable=False),
    Column("first_at", BigInteger, nullable=False),
    Column("last_at", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
    Column("sums", Text, nullable=False),
    Column("proven", BigInteger),
    Column("pruned", BigInteger),
)

# Entries that a host may have written out of order, and that are in no block yet.
unclosed = Table("unclosed", metadata, Column("id", BigInteger, primary_key=True, autoincrement=False))

# What each block adds up to, by several kinds of keys: see `blocks.KINDS`.
rollups = Table(
    "rollups",
    metadata,
    Column("kind", SmallInteger, primary_key=True),
    Column("block", BigInteger, primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("slot", BigInteger),
    *(Column(name, Text) for name in ROLLED),
    *(Column(name, BigInteger, nullable=False) for name in MEASURES),
    sqlite_with_rowid=False,
)

block_sums = Table(
    "block_sums",
    metadata,
    Column("block", BigInteger, primary_key=True),
    Column("bucket", BigInteger, primary_key=True),
    Column("spent", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# What was closed, and what was done to it since, chained by hashes: see `seals`. Nothing updates a row.
seals = Table(
    "seals",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("block", BigInteger, nullable=False),
    Column("lines", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
    Column("sums", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("prev", Text, nullable=False),
    Column("hash", Text, nullable=False),
)
