"""What was decided: the audit, narrowed, newest last; and a proof that nothing of it was changed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from pydantic_core import from_json

from ..ledger import Ledger, schema
from ..ledger.audit import FIELDS, Proof, Record, verify
from .shown import Asked, explained

_a = schema.audit


def decisions(
    ledger: Ledger,
    asked: Asked,
    *,
    kinds: tuple[str, ...] = (),
    rule: str | None = None,
    last: int | None = None,
) -> Iterator[dict[str, Any]]:
    """The records that are asked for, the oldest first.

    Args:
        kinds: see `ledger.audit.KINDS`; none: all.
        rule: a part of the rule's name.
        last: only the newest so many.

    Raises:
        StoreError: the store cannot be read.
    """
    query = sa.select(*(_a.c[name] for name in FIELDS)).order_by(_a.c.id.desc())
    if kinds:
        query = query.where(_a.c.kind.in_(kinds))
    if rule is not None:
        query = query.where(_a.c.rule.contains(rule, autoescape=True))
    for column, value in (
        (_a.c.session_id, asked.session), (_a.c.user_id, asked.user),
        (_a.c.project, asked.project), (_a.c.tenant, asked.tenant),
    ):  # fmt: skip
        if value is not None:
            query = query.where(column == value)
    if asked.since is not None:
        query = query.where(_a.c.at >= _ms(asked.since))
    if asked.until is not None:
        query = query.where(_a.c.at < _ms(asked.until))
    if last is not None:
        query = query.limit(last)
    with explained(ledger), ledger.reading().connect() as connection:
        found = connection.execute(query).fetchall()
    for row in reversed(found):
        said = dict(row._mapping)
        yield {**said, "details": from_json(said["details"])}


def prove(ledger: Ledger) -> Proof:
    """Prove the audit; see `ledger.audit.verify`.

    Raises:
        StoreError: the store cannot be read.
    """
    query = sa.select(*(_a.c[name] for name in FIELDS)).order_by(_a.c.chain, _a.c.seq)
    with explained(ledger), ledger.reading().connect() as connection:
        return verify(Record(*row) for row in connection.execute(query))


def has(ledger: Ledger, hash: str) -> bool:
    """Whether a record of this hash is still there: one that was noted elsewhere before."""
    with explained(ledger), ledger.reading().connect() as connection:
        return connection.execute(sa.select(_a.c.id).where(_a.c.hash == hash)).first() is not None


def _ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)
