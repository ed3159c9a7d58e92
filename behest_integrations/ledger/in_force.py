"""The limits in force, for those who only look: read at once, and worked out as `book.Limits` does."""

from __future__ import annotations

import sqlalchemy as sa

from . import schema

_l, _o, _g = schema.limits, schema.own_limits, schema.grants


class LimitsInForce:
    """The limits of all buckets of a ledger, at one moment.

    Args:
        now: milliseconds since 1970: grants that have ended by then count no more.

    Attributes:
        own: by a budget's shape and a scope key: the limit of that scope alone.
        granted: the same: what it has on top.
    """

    def __init__(self, connection: sa.Connection, now: int) -> None:
        given = sa.select(_g.c.budget, _g.c.scope, sa.func.sum(_g.c.amount).label("amount"))
        given = given.where(_g.c.expires > now).group_by(_g.c.budget, _g.c.scope)
        self._changed = {row.text: row.amount for row in connection.execute(sa.select(_l))}
        # A row without a scope says only that there are others, or grants.
        own = sa.select(_o).where(_o.c.scope != "")
        self.own = {(row.budget, row.scope): int(row.amount) for row in connection.execute(own)}
        self.granted = {(row.budget, row.scope): int(row.amount) for row in connection.execute(given)}

    def of_all(self, shape: str, configured: int) -> int | None:
        """The limit of whoever has none of their own; None: the budget is paused or removed."""
        amount: int | None = self._changed.get(shape, configured)
        return amount

    def of(self, shape: str, scope: str, configured: int) -> int | None:
        """The limit of one bucket; None: the budget is paused or removed."""
        limit = self.of_all(shape, configured)
        if limit is None:
            return None
        return self.own.get((shape, scope), limit) + self.granted.get((shape, scope), 0)

    def of_unknown(self, shape: str, scope: str) -> int | None:
        """The limit of a bucket whose budget no configuration says, as a stage's; None: it is not known."""
        own = self.own.get((shape, scope))
        return None if own is None else own + self.granted.get((shape, scope), 0)

    def of_some(self, shape: str, configured: int) -> dict[str, int]:
        """By scope key: the limits of those that have their own, or a grant."""
        found = {s: self.of(shape, s, configured) for b, s in (*self.own, *self.granted) if b == shape}
        return {scope: limit for scope, limit in found.items() if limit is not None}
