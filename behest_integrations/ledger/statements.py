"""The statements of the books, written once as SQLAlchemy Core expressions, and compiled once for a
database into its driver's SQL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import sqlalchemy as sa

from . import schema
from .audit import FIELDS
from .book import REFUSED, Entry

_b, _h, _e, _l, _r, _g, _t = (
    schema.buckets, schema.holds, schema.entries, schema.limits, schema.refusals, schema.budgets,
    schema.lessons,
)  # fmt: skip
_o, _a, _w, _x = schema.own_limits, schema.audit, schema.grants, schema.outbox
_P = sa.bindparam
_ENTRY_NAMES = {f.name for f in fields(Entry)}
ENTRY_ORDER = tuple(str(c.name) for c in _e.columns if c.name in _ENTRY_NAMES)
"""The columns of an entry, in the order of its statements' parameters. As plain text: SQLAlchemy's own kind
of it makes JSON of an entry take three times as long."""


class Statements:
    """Every statement as driver SQL.

    Args:
        dialect: of the database and its driver; parameters must be positional.
        insert: the database's own ``INSERT``, which knows ``ON CONFLICT``.
        within: the schema in which the tables are, if they are in one that has to be named.
    """

    def __init__(
        self, dialect: sa.Dialect, insert: Callable[[sa.Table], Any], within: str | None = None
    ) -> None:
        self._dialect = dialect
        self._within: dict[str, Any] = {}
        if within is not None:
            self._within = {"schema_translate_map": {None: within}, "render_schema_translate": True}
        self._by_ids: dict[int, str] = {}
        zero: sa.ColumnClause[int] = sa.literal_column("0")
        one: sa.ColumnClause[int] = sa.literal_column("1")
        compiled = self._compiled
        self.overrides = compiled(sa.select(_l.c.text, _l.c.amount))
        self.bucket = compiled(
            sa.select(_b).where(
                _b.c.budget == _P("budget"), _b.c.scope == _P("scope"), _b.c.start == _P("start")
            ),
            "budget", "scope", "start",
        )  # fmt: skip
        self.new_bucket = compiled(
            sa.insert(_b).values(
                budget=_P("budget"), scope=_P("scope"), start=_P("start"), unit=_P("unit"),
                spent=zero, held=zero, notified=zero,
            ).returning(_b.c.id),
            "budget", "scope", "start", "unit",
        )  # fmt: skip
        self.set_bucket = compiled(
            sa.update(_b).where(_b.c.id == _P("key")).values(spent=_P("s"), held=_P("h"), notified=_P("n")),
            "s", "h", "n", "key",
        )  # fmt: skip
        self.rolling = compiled(
            sa.select(sa.func.coalesce(sa.func.sum(_b.c.spent), zero)).where(
                _b.c.budget == _P("budget"), _b.c.scope == _P("scope"),
                _b.c.start > _P("after"), _b.c.start > zero,
            ),
            "budget", "scope", "after",
        )  # fmt: skip
        self.add_hold = compiled(
            sa.insert(_h).values(
                id=_P("i"), expires=_P("x"), bookings=_P("b"), call=_P("c"), owner=_P("o")
            ),
            "i", "x", "b", "c", "o",
        )  # fmt: skip
        self.take_hold = compiled(
            sa.delete(_h)
            .where(_h.c.id == _P("i"))
            .returning(_h.c.expires, _h.c.bookings, _h.c.call, _h.c.owner),
            "i",
        )
        self.owners = compiled(sa.select(_h.c.owner).distinct())
        self.holds_of = compiled(sa.select(_h.c.id).where(_h.c.owner == _P("o")), "o")
        self.drop_hold = compiled(sa.delete(_h).where(_h.c.id == _P("i")), "i")
        self.expired = compiled(
            sa.select(_h.c.id).where(_h.c.expires <= _P("now")).order_by(_h.c.expires), "now"
        )
        self.add_entry = compiled(
            sa.insert(_e).values({name: _P(f"v_{name}", type_=sa.Text()) for name in ENTRY_ORDER}),
            *(f"v_{name}" for name in ENTRY_ORDER),
        )
        # As the text that they are: decoding them is ours to do, and only where it is needed.
        whole = [sa.type_coerce(_e.c[name], sa.Text()).label(name) for name in ENTRY_ORDER]
        self.last_entry = compiled(
            sa.select(*whole).where(_e.c.call_id == _P("i"), _e.c.reversal == zero).order_by(_e.c.id.desc()),
            "i",
        )
        self.response = compiled(
            sa.select(_e.c.input_tokens, _e.c.output_tokens, _e.c.tenant, _e.c.project, _e.c.user_id)
            .where(
                _e.c.provider_id == _P("i"),
                # As in the index's condition, or it would not be used.
                _e.c.operation == sa.literal_column("'responses'"),
                _e.c.reversal == zero,
            )
            .order_by(_e.c.id.desc()),
            "i",
        )
        self.set_override = compiled(
            _upsert(insert(_l).values(text=_P("t"), amount=_P("a")), "text"), "t", "a"
        )
        self.own_limited = compiled(sa.select(_o.c.budget).where(_o.c.scope == sa.literal_column("''")))
        self.own_limit = compiled(
            sa.select(_o.c.amount).where(_o.c.scope == _P("s"), _o.c.budget == _P("b")), "s", "b"
        )
        own = insert(_o).values(scope=_P("s"), budget=_P("b"), amount=_P("a"))
        self.set_own_limit = compiled(_upsert(own, "scope", "budget"), "s", "b", "a")
        self.drop_own_limit = compiled(
            sa.delete(_o).where(_o.c.scope == _P("s"), _o.c.budget == _P("b")), "s", "b"
        )
        self.all_own_limits = compiled(sa.select(_o).where(_o.c.scope != sa.literal_column("''")))
        self.grants = compiled(
            sa.select(_w.c.budget, _w.c.scope, _w.c.amount, _w.c.expires).where(
                _w.c.scope == _P("s"), _w.c.budget == _P("b")
            ),
            "s", "b",
        )  # fmt: skip
        self.add_grant = compiled(
            sa.insert(_w).values(budget=_P("b"), scope=_P("s"), amount=_P("a"), expires=_P("x")),
            "s", "b", "a", "x",
        )  # fmt: skip
        self.drop_override = compiled(sa.delete(_l).where(_l.c.text == _P("t")), "t")
        refusal = insert(_r).values(
            bucket=_P("b"), who=_P("w"), session_id=_P("s"), user_id=_P("u"), project=_P("p"),
            tenant=_P("t"), model=_P("m"), operation=_P("o"), count=one, at=_P("at"),
        )  # fmt: skip
        self.count_refusal = compiled(
            refusal.on_conflict_do_update(
                index_elements=["bucket", "who"], set_={"count": _r.c.count + one, "at": refusal.excluded.at}
            ),
            "b", "w", "s", "u", "p", "t", "m", "o", "at",
        )  # fmt: skip
        self.remember_budget = compiled(
            _upsert(insert(_g).values(shape=_P("s"), text=_P("t"), zone=_P("z"), seen=_P("at")), "shape"),
            "s", "t", "z", "at",
        )  # fmt: skip
        told = insert(schema.terms).values(id=_P("i"), text=_P("t")).on_conflict_do_nothing()
        self.keep_terms = compiled(told, "i", "t")
        self.terms = compiled(sa.select(schema.terms))
        names = [c.name for c in _t.columns]
        kept = insert(_t).values({name: _P(f"v_{name}") for name in names})
        self.add_lesson = compiled(kept, *(f"v_{name}" for name in names))
        self.keep_lesson = compiled(_upsert(kept, "server", "model"), *(f"v_{name}" for name in names))
        self.lessons = compiled(sa.select(_t))
        names = list(FIELDS)
        fields = [c.name for c in _x.columns]
        message = insert(_x).values({name: _P(f"v_{name}") for name in fields})
        order = tuple(f"v_{name}" for name in fields)
        self.add_message = compiled(message.on_conflict_do_nothing(index_elements=["id", "sink"]), *order)
        self.set_message = compiled(_upsert(message, "id", "sink"), *order)
        self.open_messages = compiled(sa.select(_x).where(_x.c.done.is_(None)).order_by(_x.c.due))
        self.all_messages = compiled(sa.select(_x).order_by(_x.c.at, _x.c.id, _x.c.sink))
        self.add_audit = compiled(
            sa.insert(_a).values({name: _P(f"v_{name}", type_=sa.Text()) for name in names}),
            *(f"v_{name}" for name in names),
        )
        self.newest_audit = compiled(
            sa.select(_a.c.hash).where(_a.c.id == sa.select(sa.func.max(_a.c.id)).scalar_subquery())
        )
        self.all_audit = compiled(sa.select(*(_a.c[n] for n in names)).order_by(_a.c.chain, _a.c.seq))
        self.drop_audit = compiled(sa.delete(_a).where(_a.c.chain == _P("c"), _a.c.seq <= _P("s")), "c", "s")
        self.all_buckets = compiled(sa.select(_b).order_by(_b.c.id))
        self.all_holds = compiled(sa.select(_h.c.id, _h.c.expires, _h.c.bookings, _h.c.call, _h.c.owner))
        self.all_entries = compiled(sa.select(*whole).order_by(_e.c.id))
        self.all_refusals = compiled(sa.select(_r.c.bucket, *(_r.c[n] for n in REFUSED), _r.c.count, _r.c.at))
        self.all_budgets = compiled(sa.select(_g.c.shape, _g.c.text, _g.c.zone, _g.c.seen))

    def by_ids(self, count: int) -> str:
        """Select so many buckets by their ids."""
        found = self._by_ids.get(count)
        if found is None:
            names = [f"k{i}" for i in range(count)]
            found = self._compiled(sa.select(_b).where(_b.c.id.in_([_P(n) for n in names])), *names)
            self._by_ids[count] = found
        return found

    def _compiled(self, statement: sa.sql.ClauseElement, *names: str) -> str:
        made = statement.compile(dialect=self._dialect, **self._within)
        order = tuple(made.positiontup or ())  # type: ignore[attr-defined]
        if order != names:
            raise AssertionError(f"parameters come as {order}, not {names}: {made}")
        return str(made)


def _upsert(insert: Any, *keys: str) -> Any:
    """Insert, or where there is a row of those `keys`, set all the rest."""
    rest = {name: insert.excluded[name] for name in insert.table.c.keys() if name not in keys}  # noqa: SIM118
    return insert.on_conflict_do_update(index_elements=keys, set_=rest)
