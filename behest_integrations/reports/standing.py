"""How the budgets stand: of each rule how many buckets there are, and which of them are fullest.

`budgets` lists every bucket; here there may be a hundred thousand sessions, and a page has room for ten.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from ..ledger import Ledger, schema
from ..ledger.in_force import LimitsInForce
from ..rules.budgets import Budget, describe_scope, scope_values
from ..rules.pace import Pace, pace
from .lately import Lately, is_everybodys, of_everybody
from .shown import Asked, reading
from .spending import report_of

_b, _r, _e = schema.buckets, schema.refusals, schema.entries
_MOST = 500
"""Buckets of one budget that are looked at one by one."""


@dataclass(frozen=True)
class Standing:
    """A bucket as it stands. Amounts in `unit` (nano-dollars for ``usd``), times in ms since 1970.

    Attributes:
        budget: the budget's text, with the limit that is in force for this bucket.
        scope: for people, whose it is; "" for everyone. whose: the same as names and values.
        since: from when on it counts; None where that is not known.
        end: when it turns over; None: never, or all the time (a rolling window).
        rolling: whether it is of a rolling window.
        soft: it warns only: more than the limit may be spent.
    """

    budget: str
    unit: str
    scope: str
    whose: Mapping[str, str]
    limit: int
    spent: int
    held: int
    refused: int
    since: int | None
    end: int | None
    rolling: bool
    pace: Pace | None
    soft: bool = False

    @property
    def left(self) -> int:
        return max(0, self.limit - self.spent - self.held)

    @property
    def permille(self) -> int:
        """How full it is, in thousandths; what is not nothing is at least one. A limit of nothing is full."""
        return max(int(self.spent > 0), self.spent * 1000 // self.limit) if self.limit else 1000


@dataclass(frozen=True)
class Rule:
    """A budget in force, and its buckets of now.

    Attributes:
        text: the budget as it is in force; unit: what it counts. per: the attributes of its scope.
        count: how many buckets there are; full, near: how many of them are used up, and how many of
            the others to 80 % or more. Limits of one user's own are not seen in these.
        standings: the fullest first.
    """

    text: str
    unit: str
    per: tuple[str, ...]
    count: int
    full: int
    near: int
    standings: list[Standing]


def standings(
    ledger: Ledger, asked: Asked, *, top: int = 5, strict: bool = False, default_zone: str = "UTC"
) -> list[Rule]:
    """How the budgets that were last in force stand, for whom is asked.

    Args:
        asked: whose: only buckets that are of this session, user, project or tenant, and of no other.
            Times and tags are of no account: a bucket is of now.
        top: at most so many buckets of each rule.
        strict: whoever looks is the tenant and project that is asked for: what other tenants' calls
            count in as well is left out, and so are users and sessions that the project has not seen.
            A user's own bucket counts their calls in all projects of the tenant.

    Raises:
        StoreError: the store cannot be read.
    """
    now = int(asked.at.timestamp() * 1000)
    shared = strict and asked.project is not None and _others_have(ledger, asked)
    found = []
    with reading(ledger) as connection:
        rules = connection.execute(sa.select(schema.budgets).order_by(schema.budgets.c.seen.desc())).all()
        limits = LimitsInForce(connection, now)
        lately: Mapping[str, Lately] | None = None
        for row in rules:
            budget = Budget.parse(row.text)
            own = limits.of_some(row.shape, budget.amount)
            amount = limits.of_all(row.shape, budget.amount)
            if amount is None:  # lifted
                continue
            budget = replace(budget, amount=amount if budget.per else own.get("", amount))
            rate: Lately | None = None
            if not budget.window and not budget.rolling_ms and is_everybodys(budget):
                lately = of_everybody(connection, now) if lately is None else lately
                rate = lately[budget.unit]
            reader = _Reader(connection, row.shape, budget, row.zone or default_zone, now, rate)
            rule = reader.rule(own, asked, top, strict=strict, shared=shared)
            if rule is not None:
                found.append(rule)
    return found


def _others_have(ledger: Ledger, asked: Asked) -> bool:
    """Whether other tenants have a project of that name: a budget per project counts them together."""
    lines = report_of(ledger, ("tenant",), Asked(project=asked.project)).lines
    return any(line.key[0] != asked.tenant for line in lines)


class _Reader:
    """Reads the buckets of one budget."""

    def __init__(
        self,
        connection: sa.Connection,
        shape: str,
        budget: Budget,
        zone: str,
        now: int,
        lately: Lately | None,
    ) -> None:
        self._connection = connection
        self._shape = shape
        self._budget = budget
        self._now = now
        self._lately = lately
        self._end: int | None = None
        self._since: int | None = None
        of_shape = sa.select(_b.c.scope.label("scope")).where(_b.c.budget == shape)
        if budget.rolling_ms:
            after = now - budget.rolling_ms - budget.slot_ms
            # The line of the window itself holds; its slots have what was spent.
            spent = sa.case((_b.c.start > 0, _b.c.spent), else_=0)
            self._rows = (
                of_shape.add_columns(
                    sa.func.sum(spent).label("spent"),
                    sa.func.sum(_b.c.held).label("held"),
                    sa.func.max(_b.c.id).label("last"),
                )
                .where(sa.or_(_b.c.start == 0, _b.c.start > after))
                .group_by(_b.c.scope)
            )
            return
        start = 0
        if budget.window:
            window = budget.window_at(now, zone)
            start = self._since = window.start
            self._end = window.end
        # There is one of each scope.
        columns = (_b.c.spent.label("spent"), _b.c.held.label("held"), _b.c.id.label("last"))
        self._rows = of_shape.add_columns(*columns).where(_b.c.start == start)

    def rule(
        self, own: Mapping[str, int], asked: Asked, top: int, *, strict: bool, shared: bool
    ) -> Rule | None:
        """The rule for whom is asked; None if it has no bucket of theirs."""
        budget = self._budget
        wanted = _wanted(asked)
        if not all(_agrees(f.attribute, f.pattern, asked) for f in budget.filters if not f.tag):
            return None
        rows = self._rows
        for value in wanted:
            rows = rows.where(_b.c.scope.contains(json.dumps(value, ensure_ascii=False), autoescape=True))
        ranked = list(
            self._connection.execute(
                rows.order_by(sa.desc("spent"), sa.desc("last")).limit(_MOST if wanted or own else top)
            )
        )
        first = [int(row.spent) for row in ranked]
        seen = {row.scope for row in ranked}
        if others := [scope for scope in own if scope not in seen][:_MOST]:
            ranked += self._connection.execute(rows.where(_b.c.scope.in_(others)))
        named = [f.attribute for f in budget.filters if not f.tag]
        mine = [row for row in ranked if _is_theirs(budget, named, row.scope, asked, shared=shared)]
        if strict and asked.project is not None:
            mine = self._seen(mine, asked)
        if not mine:
            return None
        full = budget.amount
        count, is_full, near = self._counted(rows, full, first)
        if any((asked.session, asked.user, asked.project, asked.tenant)):  # told from what is theirs
            sums = [row.spent for row in mine]
            count = len(sums)
            is_full = sum(n >= full for n in sums)
            near = sum(n < full and n * 5 >= full * 4 for n in sums)
        refused = self._refused([row.scope for row in mine])
        lines = [self._standing(row, own, refused) for row in mine]
        lines.sort(key=lambda s: -s.permille)
        return Rule(str(budget), budget.unit, budget.per, count, is_full, near, lines[:top])

    def _counted(self, rows: sa.Select[Any], full: int, first: Sequence[int]) -> tuple[int, int, int]:
        """How many there are, how many of them are used up, and how many of the others to 80 %.

        Args:
            first: what was spent of the fullest of them, the fullest first.
        """
        there = rows.subquery().c
        if full and first and first[-1] * 5 < full * 4:  # none of the others is
            many = int(self._connection.execute(sa.select(sa.func.count(there.scope))).scalar_one())
            return many, sum(n >= full for n in first), sum(n < full and n * 5 >= full * 4 for n in first)
        is_near = sa.and_(there.spent < full, there.spent * 5 >= full * 4)
        of_all = sa.select(
            sa.func.count(),
            *(
                sa.func.coalesce(sa.func.sum(sa.case((c, 1), else_=0)), 0)
                for c in (there.spent >= full, is_near)
            ),
        )
        many, is_full, near = map(int, self._connection.execute(of_all).one())
        return many, is_full, near

    def _seen(self, rows: Sequence[Any], asked: Asked) -> list[Any]:
        """Of the buckets of users and sessions those that the project has seen: others are the
        tenant's, and none of its business."""
        kept = list(rows)
        for name, column in (("user", _e.c.user_id), ("session", _e.c.session_id)):
            if name not in self._budget.per:
                continue
            ids = {row.scope: scope_values(self._budget, row.scope).get(name) for row in kept}
            statement = (
                sa.select(column)
                .where(
                    column.in_([id for id in ids.values() if id is not None]),
                    _e.c.project == asked.project,
                    _e.c.tenant == asked.tenant,
                )
                .distinct()
            )
            seen = set(self._connection.execute(statement).scalars())
            kept = [row for row in kept if ids[row.scope] in seen]
        return kept

    def _standing(self, row: Any, own: Mapping[str, int], refused: Mapping[str, int]) -> Standing:
        budget = replace(self._budget, amount=own.get(row.scope, self._budget.amount))
        spent = int(row.spent)
        rate = Lately(spent, self._since) if self._since is not None else self._lately
        said = None
        if rate is not None:
            said = pace(
                spent=spent, limit=budget.amount, since=rate.since, end=self._end, now=self._now,
                lately=rate.spent,
            )  # fmt: skip
        return Standing(
            str(budget),
            budget.unit,
            describe_scope(budget, row.scope),
            scope_values(budget, row.scope),
            budget.amount,
            spent,
            int(row.held),
            refused.get(row.scope, 0),
            self._since,
            self._end,
            bool(budget.rolling_ms),
            said,
            budget.soft,
        )

    def _refused(self, scopes: Sequence[str]) -> dict[str, int]:
        statement = (
            sa.select(_b.c.scope, sa.func.sum(_r.c.count))
            .join(_r, _r.c.bucket == _b.c.id)
            .where(_b.c.budget == self._shape, _b.c.scope.in_(scopes))
            .group_by(_b.c.scope)
        )
        if self._since is not None and self._budget.window:
            statement = statement.where(_b.c.start == self._since)
        return {scope: int(count) for scope, count in self._connection.execute(statement)}


def _wanted(asked: Asked) -> list[str]:
    """The values that a scope must have in it to be theirs."""
    return [value for value in (asked.session, asked.user) if value is not None]


def _agrees(attribute: str, value: str, asked: Asked) -> bool:
    wanted = getattr(asked, attribute, None)
    return wanted is None or attribute == "model" or wanted == value


def _is_theirs(budget: Budget, filtered: Iterable[str], scope: str, asked: Asked, *, shared: bool) -> bool:
    """Whether a bucket is theirs who are asked for: it names them, and nobody else."""
    asks = {
        name: value
        for name in ("session", "user", "project", "tenant", "model")
        if (value := getattr(asked, name)) is not None
    }
    if not asks:
        return True
    whose = scope_values(budget, scope)
    own_ids = {"session", "user"} & set(budget.per)
    for name, value in asks.items():
        if name in budget.per and whose.get(name) != value:
            return False
    if own_ids and "tenant" in asks and whose.get("tenant") != asks["tenant"]:
        # Session and user ids are a tenant's own, and these are another's.
        return False
    named = {*whose, *filtered}
    for name in ("session", "user"):
        if name in asks:
            return name in named
    if "tenant" in asks and "tenant" in named:
        return True
    return "project" in asks and "project" in named and not shared
