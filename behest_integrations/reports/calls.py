"""The calls themselves: the lines of the ledger as they were written, and those that are in flight."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ..ledger import Ledger, schema
from .lines import narrowed
from .shown import Asked, reading
from .spending import refusals_asked

_e, _h, _r, _b = schema.entries, schema.holds, schema.refusals, schema.buckets
STATUSES = ("settled", "estimated", "assumed", "failed", "unpriced", "over_bound")
"""What calls can be looked for by: a status of the ledger, or what is to be noticed about them."""
_FIELDS = (
    "id", "call_id", "at", "status", "started", "session_id", "user_id", "project", "tenant", "tags",
    "stage", "operation", "provider", "model", "service_tier", "input_tokens", "output_tokens",
    "cached_input_tokens", "cache_write_tokens", "reasoning_tokens", "input_audio_tokens",
    "output_audio_tokens", "cost", "calls", "output_limit", "lowered_from", "reversal", "flags", "note",
    "asked_model",
)  # fmt: skip


@dataclass(frozen=True)
class Call:
    """An entry of the ledger; see `ledger.book.Entry`. `id` is its place in the ledger."""

    id: int
    call_id: str
    at: int
    status: str
    started: int
    session_id: str | None
    user_id: str | None
    project: str | None
    tenant: str | None
    tags: Mapping[str, str]
    stage: str | None
    operation: str
    provider: str | None
    model: str
    service_tier: str | None
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    input_audio_tokens: int
    output_audio_tokens: int
    cost: int | None
    calls: int
    output_limit: int | None
    lowered_from: int | None
    reversal: int
    flags: str
    note: str
    asked_model: str | None


@dataclass(frozen=True)
class Calls:
    """Some calls, in the order of the ledger. `more`: whether there are others before them."""

    calls: list[Call]
    more: bool


@dataclass(frozen=True)
class InFlight:
    """A call that has been let out and has not come back.

    Attributes:
        held: nano-dollars that are held for it; None where no budget counts dollars.
        expires: when its lease runs out, in ms since 1970.
    """

    id: str
    model: str
    session_id: str | None
    user_id: str | None
    project: str | None
    tenant: str | None
    started: int
    expires: int
    held: int | None


@dataclass(frozen=True)
class Refused:
    """How often one budget has refused one caller, and when last (ms since 1970)."""

    budget: str
    unit: str
    scope: str
    session_id: str | None
    user_id: str | None
    project: str | None
    tenant: str | None
    model: str | None
    count: int
    at: int


def calls(
    ledger: Ledger, asked: Asked, *, status: str | None = None, limit: int = 100, before: int | None = None
) -> Calls:
    """The last calls that are asked for.

    Args:
        status: one of `STATUSES`, or None.
        before: only those before this place in the ledger.

    Raises:
        StoreError: the store cannot be read.
    """
    statement = sa.select(*(_e.c[name] for name in _FIELDS)).order_by(_e.c.id.desc()).limit(limit + 1)
    if before is not None:
        statement = statement.where(_e.c.id < before)
    if status == "unpriced":
        statement = statement.where(_e.c.cost.is_(None), _e.c.calls != 0)
    elif status == "over_bound":
        statement = statement.where(_e.c.flags.contains("over_bound"))
    elif status is not None:
        statement = statement.where(_e.c.status == status)
    with reading(ledger) as connection:
        rows = connection.execute(narrowed(statement, asked)).all()
    return Calls([Call(**dict(row._mapping)) for row in reversed(rows[:limit])], len(rows) > limit)


def in_flight(ledger: Ledger, asked: Asked) -> list[InFlight]:
    """The calls that are on their way, the oldest first. Times, models and tags that are asked for are
    of no account: what is in flight is now.

    Raises:
        StoreError: the store cannot be read.
    """
    found = []
    with reading(ledger) as connection:
        for row in connection.execute(sa.select(_h.c.id, _h.c.expires, _h.c.bookings, _h.c.call)):
            call: dict[str, Any] = json.loads(row.call)
            if all(
                wanted is None or call.get(name) == wanted
                for name, wanted in (
                    ("session_id", asked.session),
                    ("user_id", asked.user),
                    ("project", asked.project),
                    ("tenant", asked.tenant),
                )
            ):
                # The same dollars are held in each budget that counts them.
                dollars = [booking[2] for booking in json.loads(row.bookings) if booking[1] == "usd"]
                found.append(
                    InFlight(
                        row.id,
                        str(call.get("model") or ""),
                        call.get("session_id"),
                        call.get("user_id"),
                        call.get("project"),
                        call.get("tenant"),
                        int(call.get("started") or 0),
                        row.expires,
                        max(dollars, default=None),
                    )
                )
    return sorted(found, key=lambda call: (call.started, call.id))


def refusals(ledger: Ledger, asked: Asked, *, limit: int = 20) -> list[Refused]:
    """Who was refused by what, the last first.

    Raises:
        StoreError: the store cannot be read.
    """
    if asked.tags:
        return []  # refusals know no tags
    statement = (
        sa.select(
            _b.c.budget,
            _b.c.unit,
            _b.c.scope,
            *(_r.c[name] for name in ("session_id", "user_id", "project", "tenant", "model", "count", "at")),
        )
        .join(_b, _b.c.id == _r.c.bucket)
        .order_by(_r.c.at.desc())
        .limit(limit)
    )
    with reading(ledger) as connection:
        rows: Sequence[Any] = connection.execute(refusals_asked(statement, asked)).all()
    # A row's own `count` is a method.
    return [Refused(**dict(row._mapping)) for row in rows]


def version(ledger: Ledger) -> str:
    """A text that changes when anything is booked, let out or refused; cheap, to be asked every second.

    Raises:
        StoreError: the store cannot be read.
    """
    with reading(ledger) as connection:
        last = connection.execute(sa.select(sa.func.max(_e.c.id))).scalar()
        holds = connection.execute(sa.select(sa.func.count(), sa.func.max(_h.c.id))).one()
        refused = connection.execute(sa.select(sa.func.sum(_r.c.count))).scalar()
        budgets = connection.execute(sa.select(sa.func.sum(schema.limits.c.amount))).scalar()
    return "-".join(str(part or 0) for part in (last, *holds, refused, budgets))
