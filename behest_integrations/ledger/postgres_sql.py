"""What the writer says to PostgreSQL, and what a batch of operations needs of it.

Rows go there as JSON, one parameter a statement, so that a statement is the same for any number of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from pydantic_core import PydanticSerializationError, to_json

from . import schema
from .operations import Operation, slot_of

NOW = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
"""The server's clock, in ms."""
NOT_LONG_MS = 100
"""For which a lock is waited for that is asked for out of order; a deadlock is noticed after 1000."""
SWEPT = 200
"""Holds whose time is up that are looked for at once."""
_Key = tuple[str, str, int]


class Wanted:
    """What a batch locks and reads before its operations are run."""

    def __init__(self, operations: Iterable[Any]) -> None:
        self.keys: set[_Key] = set()
        self.ids: set[int] = set()
        self.holds: set[str] = set()
        self.rolling: dict[tuple[str, str], int] = {}
        self.made: list[str] = []
        """Holds that may be written, to be looked for if it is not known whether they were."""
        self.swept_at = 0
        self.whole = False
        for operation in operations:
            if isinstance(operation, Operation):
                self._add(operation)

    def _add(self, operation: Operation[Any]) -> None:
        now = operation.now
        if operation.makes is not None:
            self.made.append(operation.makes)
        if operation.sweeps:
            self.swept_at = max(self.swept_at, now)
        if operation.reads:
            return
        self.holds.update(operation.takes)
        for claim in operation.claims:
            self.keys.add(claim.key)
            if claim.rolling_ms and now:
                if operation.settles:
                    self.keys.add((claim.budget, claim.scope, slot_of(claim, now)))
                if not operation.settles or claim.thresholds:
                    after = now - claim.rolling_ms - claim.slot_ms
                    whose = (claim.budget, claim.scope)
                    self.rolling[whose] = min(after, self.rolling.get(whose, after))


class SQL:
    """What the writer says to PostgreSQL.

    Args:
        within: the schema of the tables; None: the session's own search path.
    """

    def __init__(self, within: str | None, *, settings: Mapping[str, str]) -> None:
        quoted = '"' + within.replace('"', '""') + '".' if within else ""
        b, h, o, t = (f"{quoted}{name}" for name in ("buckets", "holds", "own_limits", "lessons"))
        keys = "json_to_recordset($1) AS k(b text, s text, t bigint)"
        is_key = "x.budget = k.b AND x.scope = k.s AND x.start = k.t"
        columns = ", ".join(f"x.{c.name}" for c in schema.buckets.columns)
        in_order = 'ORDER BY x.budget COLLATE "C", x.scope COLLATE "C", x.start FOR UPDATE OF x'
        told = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in settings.items())
        self.opening = f"SELECT pg_current_xact_id()::text, {NOW}, {told}"
        of_keys = f"(x.budget, x.scope) IN (SELECT k.b, k.s FROM {keys})"
        self.limits = (
            f"SELECT '', text, '', amount, 0::bigint FROM {quoted}limits UNION ALL "
            f"SELECT 'own', budget, scope, amount, 0 FROM {o} WHERE scope = '' UNION ALL "
            f"SELECT 'own', x.budget, x.scope, x.amount, 0 FROM {o} x WHERE {of_keys} AND x.scope <> '' "
            "UNION ALL "
            f"SELECT 'grant', x.budget, x.scope, x.amount, x.expires FROM {quoted}grants x WHERE {of_keys}"
        )
        self.lock = f"SELECT {columns} FROM {keys} JOIN {b} x ON {is_key} {in_order}"
        self.lock_with_ids = (
            f"SELECT {columns} FROM {b} x WHERE x.id IN (SELECT x.id FROM {keys} JOIN {b} x ON {is_key} "
            f"UNION SELECT v::bigint FROM json_array_elements_text($2) AS i(v)) {in_order}"
        )
        one = f"SELECT {columns} FROM {b} x WHERE"
        by_key, by_id = "x.budget = $1 AND x.scope = $2 AND x.start = $3", "x.id = $1"
        self.try_key, self.key = f"{one} {by_key} FOR UPDATE SKIP LOCKED", f"{one} {by_key}"
        self.try_id, self.id = f"{one} {by_id} FOR UPDATE SKIP LOCKED", f"{one} {by_id}"
        hold = "x.id, x.expires, x.bookings, x.call, x.owner"
        self.take_holds = (
            f"DELETE FROM {h} x USING json_array_elements_text($1) AS i(v) WHERE x.id = i.v RETURNING {hold}"
        )
        self.try_hold = (
            f"DELETE FROM {h} x WHERE x.id IN (SELECT id FROM {h} WHERE id = $1 FOR UPDATE SKIP LOCKED) "
            f"RETURNING {hold}"
        )
        self.hold = f"SELECT id FROM {h} WHERE id = $1"
        self.due = f"SELECT id FROM {h} WHERE expires <= $1 ORDER BY expires, id LIMIT $2"
        self.of_owner = f"SELECT id FROM {h} WHERE owner = $1 LIMIT $2"
        self.rolling = (
            f"SELECT x.budget, x.scope, x.start, x.spent FROM {keys} JOIN {b} x "
            "ON x.budget = k.b AND x.scope = k.s AND x.start > k.t AND x.start > 0"
        )
        self.set_buckets = (
            f"UPDATE {b} x SET spent = k.s, held = k.h, notified = k.n FROM json_to_recordset($1) "
            "AS k(i bigint, s bigint, h bigint, n smallint) WHERE x.id = k.i"
        )
        # Where one is not there, nothing at all is written: the division fails.
        self.add_to_buckets = (
            f"WITH done AS (UPDATE {b} x SET spent = x.spent + k.s, held = x.held + k.h "
            "FROM json_to_recordset($1) AS k(i bigint, s bigint, h bigint) WHERE x.id = k.i RETURNING 1) "
            "SELECT 1 / (count(*) = $2::bigint)::int FROM done"
        )
        self.not_long = f"SELECT set_config('lock_timeout', '{NOT_LONG_MS}', true)"
        self.lock_call = (
            f"SELECT id FROM {quoted}entries WHERE call_id = $1 AND reversal = 0 ORDER BY id DESC LIMIT 1 "
            "FOR UPDATE"
        )
        self.last_id = f"SELECT max(id) FROM {quoted}entries WHERE call_id = $1"
        self.try_lesson = f"SELECT * FROM {t} WHERE server = $1 AND model = $2 FOR UPDATE SKIP LOCKED"
        self.whole = (
            f"LOCK TABLE {b}, {h}, {quoted}entries, {quoted}refusals, {quoted}limits, {o} IN EXCLUSIVE MODE"
        )
        self.add_buckets = _adding(quoted, schema.buckets)
        self.add_holds = _adding(quoted, schema.holds)
        # Another host's may have ids before these, and be seen later: so each is said to be in no block.
        self.add_entries = (
            f"WITH e AS ({_adding(quoted, schema.entries)} RETURNING x.id) "
            f"INSERT INTO {quoted}unclosed SELECT id FROM e"
        )
        self.add_grants = _adding(quoted, schema.grants)
        self.add_audit = _adding(quoted, schema.audit)
        self.add_refusals = _adding(quoted, schema.refusals) + (
            " ON CONFLICT (bucket, who) DO UPDATE SET count = x.count + excluded.count, at = excluded.at"
        )


def _adding(quoted: str, table: sa.Table) -> str:
    """Add rows, given as a list of objects."""
    types = {"JSON": "json", "SMALLINT": "smallint", "TEXT": "text"}
    columns = {f'"{c.name}"': types.get(c.type.__visit_name__.upper(), "bigint") for c in table.columns}
    return (
        f"INSERT INTO {quoted}{table.name} AS x ({', '.join(columns)}) SELECT {', '.join(columns)} "
        f"FROM json_to_recordset($1) AS k({', '.join(f'{n} {t}' for n, t in columns.items())})"
    )


def as_json(value: object) -> str:
    """JSON for PostgreSQL, whose text has no character 0, and no half of a surrogate pair."""
    try:
        said = to_json(value)
    except (PydanticSerializationError, UnicodeEncodeError):
        said = to_json(storable(value))
    if b"\\u0000" in said:
        said = to_json(storable(value))
    return said.decode()


def storable(value: Any) -> Any:
    """A value as PostgreSQL can keep it."""
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {storable(key): storable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [storable(inner) for inner in value]
    return value
