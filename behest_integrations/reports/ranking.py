"""Who spent most, or last: the first lines of a report, of however many there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from ..ledger import Ledger, schema
from ..rules.errors import ConfigError
from ..rules.near import say_near
from .lines import Wanted, lines, narrowed, totals
from .shown import Asked, reading
from .spending import _COLUMNS, _REFUSED, Line, refusals_asked

_e, _r = schema.entries, schema.refusals
_RECENT = 1000
Order = Literal["cost", "calls", "recent"]
ORDERS: tuple[Order, ...] = ("cost", "calls", "recent")


@dataclass
class Ranked(Line):
    """A line, with when its first and last call were booked (ms since 1970).

    `key` is (name, tenant): session and user ids are a tenant's own.
    """

    first: int = 0
    last: int = 0


@dataclass(frozen=True)
class Ranking:
    """Some lines in their order. `more`: whether there are others after them."""

    by: str
    lines: list[Ranked]
    more: bool


def ranking(
    ledger: Ledger, by: str, asked: Asked, *, order: Order = "cost", limit: int = 10, offset: int = 0
) -> Ranking:
    """The first lines of what was spent by `by`: ``session``, ``user``, ``project``, ``tenant``,
    ``model``, ``operation``, ``stage`` or ``tag:NAME``.

    Raises:
        ConfigError: it cannot be ranked by that.
        StoreError: the store cannot be read.
    """
    if by not in _COLUMNS and not by.startswith("tag:"):
        raise ConfigError(f"cannot rank by {by!r}{say_near(by, _COLUMNS)}: one of {', '.join(_COLUMNS)}")
    with reading(ledger) as connection:
        found = _ranked(connection, by, asked, order, limit + 1, offset)
        first = found[:limit]
        _add_refusals(connection, by, asked, first)
    return Ranking(by, first, len(found) > limit)


def _ranked(
    connection: sa.Connection, by: str, asked: Asked, order: Order, limit: int, offset: int
) -> list[Ranked]:
    """The whole lines of those who come first."""
    named = _COLUMNS.get(by, "tag0")
    whose = ["tenant"] if by in ("session", "user", "project") else []

    def those(of: Sequence[str]) -> tuple[sa.FromClause, sa.Select[Any]]:
        names = whose if named == "tag0" else [named, *whose]
        tags = [by[4:]] if named == "tag0" else []
        source = lines(connection, Wanted(names, tags=tags, sums=of), asked)
        keys = [source.c[name] for name in (named, *whose)]
        last = sa.func.max(source.c.last_at).desc()
        first = [] if order == "recent" else [sa.func.sum(source.c[order]).desc()]
        return source, sa.select(*keys).group_by(*keys).order_by(*first, last, keys[0])

    # Of sessions there are many: first who is in it, by as little as that takes.
    few: list[tuple[Any, ...]] | None = None
    if by == "session":
        _, statement = those(("last_at", *({order} - {"recent"})))
        few = [tuple(row) for row in connection.execute(statement.limit(limit).offset(offset))]
    source, statement = those(schema.MEASURES)
    if few is not None:
        ids = {id for id, _ in few}
        among = source.c[named].in_(ids - {None})
        statement = statement.where(sa.or_(among, source.c[named].is_(None)) if None in ids else among)
    else:
        statement = statement.limit(limit).offset(offset)
    sums = totals(source)
    times = (sa.func.min(source.c.first_at), sa.func.max(source.c.last_at))
    width = 1 + len(whose)
    ranked = []
    for row in connection.execute(statement.add_columns(*times, *sums.values())):
        if few is None or tuple(row[:width]) in few:
            began, ended, *amounts = row[width:]
            numbers = dict(zip(sums, map(int, amounts), strict=True))
            ranked.append(Ranked((row[0], row[1] if whose else None), first=began, last=ended, **numbers))
    return ranked


def _add_refusals(connection: sa.Connection, by: str, asked: Asked, lines: Sequence[Ranked]) -> None:
    column = _REFUSED.get(by)
    if column is None or asked.tags or not lines:
        return
    names = [line.key[0] for line in lines if line.key[0] is not None]
    statement = (
        sa.select(column, _r.c.tenant, sa.func.sum(_r.c.count))
        .where(column.in_(names))
        .group_by(column, _r.c.tenant)
    )
    counted: Counter[tuple[str | None, str | None]] = Counter()
    for name, tenant, count in connection.execute(refusals_asked(statement, asked)):
        counted[name, tenant if by in ("session", "user", "project") else None] += int(count)
    for line in lines:
        line.refused = counted[line.key[0], line.key[1]]


def values_of(ledger: Ledger, asked: Asked) -> dict[str, list[str]]:
    """What can be filtered by, as the last calls have it: projects, users, models, tags by ``tag:NAME``.

    Not all that there ever was: it is for suggestions, and is asked at every look.
    """
    found: dict[str, dict[str, None]] = {"project": {}, "user": {}, "model": {}, "tenant": {}}
    statement = (
        sa.select(_e.c.project, _e.c.user_id, _e.c.model, _e.c.tenant, _e.c.tags)
        .order_by(_e.c.id.desc())
        .limit(_RECENT)
    )
    theirs = Asked(tenant=asked.tenant, project=asked.project, user=asked.user)
    with reading(ledger) as connection:
        for row in connection.execute(narrowed(statement, theirs)):
            for name, value in (
                ("project", row.project),
                ("user", row.user_id),
                ("model", row.model),
                ("tenant", row.tenant),
            ):
                if value is not None:
                    found[name][value] = None
            for name, value in (row.tags or {}).items():
                if name != "trace":  # the gateway's: another for each call
                    found.setdefault(f"tag:{name}", {})[value] = None
    return {name: sorted(values)[:200] for name, values in found.items()}
