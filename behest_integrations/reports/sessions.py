"""Sessions as their callers see them: when, how often, for how much. What was said is kept nowhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ..ledger import Ledger
from ..ledger.schema import entries
from .shown import explained

_e = entries.c


@dataclass(frozen=True)
class SessionSums:
    """One session. Times in ms since 1970, cost in nano-dollars.

    Attributes:
        user_id: whose it is; None: nobody's that was named, or several users'.
    """

    id: str
    user_id: str | None
    first: int
    last: int
    calls: int
    input_tokens: int
    output_tokens: int
    cost: int


def sessions(
    ledger: Ledger,
    *,
    tenant: str | None,
    project: str | None,
    user: str | None = None,
    id: str | None = None,
    most: int = 100,
) -> list[SessionSums]:
    """The sessions of a project, the latest first.

    Args:
        tenant, project: whose; None: of those calls that name none.
        user, id: those of one user, or the one of that id; None: all.

    Raises:
        StoreError: the store cannot be read.
    """
    wanted = [_e.session_id.is_not(None), _is(_e.tenant, tenant), _is(_e.project, project)]
    wanted += [_e.user_id == user] if user is not None else []
    wanted += [_e.session_id == id] if id is not None else []
    latest = sa.func.max(_e.at)
    asked = (
        sa.select(
            _e.session_id,
            sa.case((sa.func.count(sa.distinct(_e.user_id)) == 1, sa.func.max(_e.user_id))),
            sa.func.min(sa.case((_e.started > 0, _e.started), else_=_e.at)),
            latest,
            *(sa.func.sum(column) for column in (_e.calls, _e.input_tokens, _e.output_tokens, _e.cost)),
        )
        .where(*wanted)
        .group_by(_e.session_id)
        .order_by(latest.desc(), _e.session_id)
        .limit(most)
    )
    with explained(ledger), ledger.reading().connect() as connection:
        return [
            SessionSums(id, user, first, last, calls, inputs, outputs, cost or 0)
            for id, user, first, last, calls, inputs, outputs, cost in connection.execute(asked).tuples()
        ]


def _is(column: sa.Column[Any], value: str | None) -> sa.ColumnElement[bool]:
    return column.is_(None) if value is None else column == value
