"""Sessions as their callers see them: when, how often, for how much. What was said is kept nowhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ..ledger import Ledger
from .lines import Wanted, lines
from .shown import Asked, reading


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
    whose = Asked(session=id, user=user, tenant=tenant, project=project)
    with reading(ledger) as connection:
        _e = lines(connection, Wanted(("session_id", "user_id", "tenant", "project")), whose).c
        latest = sa.func.max(_e.last_at)
        asked = (
            sa.select(
                _e.session_id,
                sa.case((sa.func.count(sa.distinct(_e.user_id)) == 1, sa.func.max(_e.user_id))),
                sa.func.min(_e.began),
                latest,
                *(sa.func.sum(column) for column in (_e.calls, _e.input_tokens, _e.output_tokens, _e.cost)),
            )
            .where(_e.session_id.is_not(None), _is(_e.tenant, tenant), _is(_e.project, project))
            .group_by(_e.session_id)
            .order_by(latest.desc(), _e.session_id)
            .limit(most)
        )
        return [
            SessionSums(id, user, *map(int, sums)) for id, user, *sums in connection.execute(asked).tuples()
        ]


def _is(column: sa.ColumnElement[Any], value: str | None) -> sa.ColumnElement[bool]:
    return column.is_(None) if value is None else column == value
