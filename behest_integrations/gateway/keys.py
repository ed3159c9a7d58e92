"""API keys: made and revoked by `behest keys`, shown once, stored as a hash."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ..ledger import Ledger, schema
from ..ledger.sql import SQLLedger
from ..rules.attribution import check_id
from ..rules.errors import ConfigError

PREFIX = "behest_sk_live_"
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_ID_LENGTH = 12
_LONGEST = 128

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


class KeyStore:
    """The keys in a ledger's database.

    Raises:
        ConfigError: the ledger is in memory, where another process could not find a key.
    """

    def __init__(self, ledger: Ledger) -> None:
        if not isinstance(ledger, SQLLedger):
            raise ConfigError("API keys are kept in the ledger's database; a store in memory has none")
        self._ledger = ledger

    def create(
        self, *, tenant: str, project: str, tier: str | None = None, end_users: bool = True, name: str = ""
    ) -> tuple[Key, str]:
        """A new key, and the text that is shown once."""
        check_id(tenant, "the tenant")
        check_id(project, "the project")
        if tier is not None:
            check_id(tier, "the tier")
        if name:
            check_id(name, "the key's name")
        id = "".join(secrets.choice(_ALPHABET) for _ in range(_ID_LENGTH))
        text = f"{PREFIX}{id}_{secrets.token_urlsafe(32)}"
        key = Key(id, name, tenant, project, tier, end_users, int(time.time() * 1000), None)
        values = {**vars(key), "end_users": int(end_users), "hash": _hash(text)}
        self._write(sa.insert(_k).values(values))
        return key, text

    def all(self) -> list[Key]:
        """Every key, the oldest first."""
        with self._ledger.reading().connect() as connection:
            return [_key(row) for row in connection.execute(sa.select(_k).order_by(_k.c.created, _k.c.id))]

    def revoke(self, id: str) -> Key:
        """End a key, at once for the store and within seconds for gateways that run.

        Raises:
            ConfigError: there is no such key, or it is revoked already.
        """
        now = int(time.time() * 1000)
        revoked = self._write(sa.update(_k).where(_k.c.id == id, _k.c.revoked.is_(None)).values(revoked=now))
        key = self.by_id(id)
        if key is None:
            raise ConfigError(f"there is no key {id!r}; 'behest keys list' shows them")
        if not revoked:
            raise ConfigError(f"key {id!r} is revoked already")
        return key

    def by_id(self, id: str) -> Key | None:
        """The key of that id, revoked or not."""
        row = self._row(id)
        return _key(row) if row is not None else None

    def find(self, text: str) -> Key | None:
        """The key whose text this is, if it is one and is not revoked."""
        id = id_in(text)
        row = self._row(id) if id is not None else None
        if row is None or row.revoked is not None or not hmac.compare_digest(row.hash, _hash(text)):
            return None
        return _key(row)

    def _row(self, id: str) -> sa.Row[Any] | None:
        with self._ledger.reading().connect() as connection:
            return connection.execute(sa.select(_k).where(_k.c.id == id)).one_or_none()

    def _write(self, statement: sa.Insert | sa.Update) -> int:
        engine = self._ledger.reading().execution_options(write=True)
        with engine.begin() as connection:
            return int(connection.execute(statement).rowcount)


def id_in(text: str) -> str | None:
    """The id in a key's text; None if it is not formed as one."""
    if not text.startswith(PREFIX) or len(text) > _LONGEST:
        return None
    id, underscore, secret = text[len(PREFIX) :].partition("_")
    if not underscore or not secret or len(id) != _ID_LENGTH or not set(id) <= set(_ALPHABET):
        return None
    return id


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _key(row: sa.Row[Any]) -> Key:
    values = dict(row._mapping)
    del values["hash"]
    return Key(**{**values, "end_users": bool(values["end_users"])})
