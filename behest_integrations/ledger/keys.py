"""The gateway's API keys, beside the books: what a store does with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from . import schema

_k = schema.api_keys


@dataclass(frozen=True)
class Key:
    """An API key, without the key.

    Attributes:
        id: what it is known by; a part of the key that is no secret.
        tenant, project: what its calls are attributed to.
        tier: whose budgets its calls are held to as well.
        end_users: whether it may speak for any end user.
        created, revoked: milliseconds since 1970.
    """

    id: str
    name: str
    tenant: str
    project: str
    tier: str | None
    end_users: bool
    created: int
    revoked: int | None


class Keys(ABC):
    """The keys in a store. Each operation is a transaction of its own.

    Raises:
        StoreError: the store is out.
    """

    @abstractmethod
    def add(self, key: Key, hash: str) -> None:
        """Keep a new key and the hash that it is proved by."""

    @abstractmethod
    def all(self) -> list[Key]:
        """Every key, the oldest first."""

    @abstractmethod
    def get(self, id: str) -> tuple[Key, str] | None:
        """The key of that id, revoked or not, and its hash."""

    @abstractmethod
    def revoke(self, id: str, now: int) -> bool:
        """End a key; False if there is none of that id that is not revoked."""


class SQLKeys(Keys):
    """Keys in a table of a ledger's database.

    Args:
        engine: the database, as `Ledger.reading` gives it.
    """

    def __init__(self, engine: Callable[[], sa.Engine]) -> None:
        self._engine = engine

    def add(self, key: Key, hash: str) -> None:
        values = {**vars(key), "end_users": int(key.end_users), "hash": hash}
        self._write(sa.insert(_k).values(values))

    def all(self) -> list[Key]:
        with self._engine().connect() as connection:
            rows = connection.execute(sa.select(_k).order_by(_k.c.created, _k.c.id))
            return [_key(row)[0] for row in rows]

    def get(self, id: str) -> tuple[Key, str] | None:
        with self._engine().connect() as connection:
            row = connection.execute(sa.select(_k).where(_k.c.id == id)).one_or_none()
        return _key(row) if row is not None else None

    def revoke(self, id: str, now: int) -> bool:
        return self._write(sa.update(_k).where(_k.c.id == id, _k.c.revoked.is_(None)).values(revoked=now)) > 0

    def _write(self, statement: sa.Insert | sa.Update) -> int:
        with self._engine().execution_options(write=True).begin() as connection:
            return int(connection.execute(statement).rowcount)


def _key(row: sa.Row[Any]) -> tuple[Key, str]:
    values = dict(row._mapping)
    hash = values.pop("hash")
    return Key(**{**values, "end_users": bool(values["end_users"])}), hash
