"""Books that are in no database, copied into one in memory, so that reports are written once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from . import schema
from .book import REFUSED, Books, encode


def copy_into_database(books: Books) -> sa.Engine:
    """A database in memory with these rows."""
    engine = sa.create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    schema.metadata.create_all(engine)
    holds = [
        {
            "id": h.id,
            "expires": h.expires,
            "bookings": encode(h.bookings),
            "call": encode(h.call),
            "owner": h.owner,
        }
        for h in books.holds
    ]
    rows: list[tuple[sa.Table, list[dict[str, Any]]]] = [
        (schema.buckets, [asdict(b) for b in books.buckets]),
        (schema.holds, holds),
        (schema.entries, [asdict(e) for e in books.entries]),
        (schema.refusals, list(_refusals(books.refusals))),
        (schema.limits, [{"text": text, "amount": amount} for text, amount in books.limits.items()]),
        (schema.budgets, [b._asdict() for b in books.budgets]),
        (schema.own_limits, list(_own_limits(books.own_limits))),
        (schema.grants, [g._asdict() for g in books.grants]),
        (schema.audit, [r._asdict() for r in books.audit]),
        (schema.terms, [{"id": id, "text": text} for id, text in books.terms.items()]),
        (schema.lessons, [_lesson(*key, values) for key, values in books.lessons.items()]),
    ]
    with engine.begin() as connection:
        for table, values in rows:
            if values:
                connection.execute(sa.insert(table), values)
    return engine


def _own_limits(limits: Mapping[tuple[str, str], int]) -> Iterable[dict[str, Any]]:
    for (budget, scope), amount in limits.items():
        yield {"budget": budget, "scope": scope, "amount": amount}


def _lesson(server: str, model: str, values: Sequence[int]) -> dict[str, Any]:
    return dict(zip(schema.lessons.c.keys(), (server, model, *values), strict=True))


def _refusals(refusals: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    for refusal in refusals:
        yield {**refusal, "who": encode([refusal[name] for name in REFUSED])}
