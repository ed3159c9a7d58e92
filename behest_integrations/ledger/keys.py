"""Beside the books: who may call the gateway, with whose keys it calls, and what was changed of its settings.

Whatever is changed here raises one number, by which every worker knows that what it remembers is old.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ..rules.errors import StoreError
from . import schema

_k, _s, _r = schema.api_keys, schema.signing_keys, schema.revisions
_p, _c = schema.provider_keys, schema.changed_settings
_ACCESS = "access"
_LISTS = ("models", "addresses", "budgets")
_RENEW_SECONDS = 5.0


@dataclass(frozen=True)
class Key:
    """An API key, without the key.

    Attributes:
        id: what it is known by; a part of the key that is no secret.
        tenant, project: what its calls are attributed to; of an admin key: what it may
            administer, and empty for everything.
        tier: whose budgets its calls are held to as well.
        end_users: whether it may speak for any end user.
        created, revoked: milliseconds since 1970.
        role: ``project``: it calls; ``admin``: it administers, and calls nothing.
        expires: milliseconds since 1970, from which on it is none.
        models: patterns; what else it may not call. None: any.
        addresses: networks from which alone it may be used. None: any.
        budgets: texts; what its calls are held to besides.
        line: the id of the first of those that it was rotated from: its budgets are that one's.
    """

    id: str
    name: str
    tenant: str
    project: str
    tier: str | None
    end_users: bool
    created: int
    revoked: int | None
    role: str = "project"
    expires: int | None = None
    models: tuple[str, ...] | None = None
    addresses: tuple[str, ...] | None = None
    budgets: tuple[str, ...] = ()
    line: str | None = None

    def lives(self, now: int) -> bool:
        """Whether it is neither revoked nor expired at `now` (ms)."""
        return self.revoked is None and (self.expires is None or now < self.expires)


@dataclass(frozen=True)
class SigningKey:
    """A public key of a tenant's, with which it signs tokens for its users.

    Attributes:
        kid: the id that its tokens name.
        project: the only one that it signs for; None: any of the tenant's.
        pem: the public key.
        created, revoked: milliseconds since 1970.
    """

    kid: str
    tenant: str
    project: str | None
    name: str
    pem: str
    created: int
    revoked: int | None


@dataclass(frozen=True)
class SealedKey:
    """A tenant's own key at a provider, as it is kept.

    Attributes:
        id: another for each key, also of one tenant for one provider.
        provider: its name in the gateway's settings.
        sealed: the key, encrypted. master: the id of the key that it is encrypted with.
        hint: its last characters, for people; "" of a short one.
        created: milliseconds since 1970.
    """

    tenant: str
    provider: str
    id: str
    sealed: str
    master: str
    hint: str
    created: int


@dataclass(frozen=True)
class ChangedSetting:
    """Something of the gateway's settings that was changed while it ran.

    Attributes:
        kind: ``project``, ``tier``, ``budget``, ``defaults``. name: of which one.
        value: all that is said of it, as JSON.
        at: when, in milliseconds since 1970. actor: by whom.
    """

    kind: str
    name: str
    value: Mapping[str, Any]
    at: int
    actor: str | None


class Keys(ABC):
    """The keys in a store. Each operation is a transaction of its own.

    Raises:
        StoreError: the store is out.
    """

    @abstractmethod
    def revision(self) -> int:
        """A number that is another after each change of what may be called by whom.

        It is asked for with every request, by one thread, and must take microseconds.
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

    @abstractmethod
    def expire(self, id: str, at: int) -> bool:
        """Let a key end at `at`, if it does not end before; False if it has ended or there is none."""

    @abstractmethod
    def add_signing(self, key: SigningKey) -> bool:
        """Keep a tenant's public key; False if its id is taken."""

    @abstractmethod
    def all_signing(self) -> list[SigningKey]:
        """Every public key, the oldest first."""

    @abstractmethod
    def signing(self, kid: str) -> SigningKey | None:
        """The public key of that id, revoked or not."""

    @abstractmethod
    def revoke_signing(self, kid: str, now: int) -> bool:
        """End a public key; False if there is none of that id that is not revoked."""

    @abstractmethod
    def provider_keys(self, tenant: str | None = None) -> list[SealedKey]:
        """Tenants' own keys at providers: one tenant's, or everybody's."""

    @abstractmethod
    def put_provider_key(self, key: SealedKey, *, instead_of: SealedKey | None = None) -> bool:
        """Keep a key, in place of the tenant's one at that provider.

        Args:
            instead_of: the one that it takes the place of; None: of any, or of none.

        Returns:
            False: that one is not there any more, and nothing was changed.
        """

    @abstractmethod
    def drop_provider_key(self, tenant: str, provider: str) -> bool:
        """Forget a key; False if there is none."""

    @abstractmethod
    def settings(self) -> list[ChangedSetting]:
        """What was changed of the gateway's settings."""

    @abstractmethod
    def put_setting(self, setting: ChangedSetting) -> None:
        """Change something of the gateway's settings."""

    @abstractmethod
    def drop_setting(self, kind: str, name: str) -> bool:
        """Change it no more; False if it was not changed."""


class SQLKeys(Keys):
    """Keys in tables of a ledger's database.

    Args:
        engine: the database, as `Ledger.reading` gives it.
        at_once: the same, without waiting for what is being written.
    """

    def __init__(self, engine: Callable[[], sa.Engine], at_once: sa.Engine) -> None:
        self._engine = engine
        self._at_once = at_once
        self._quick: Any = None
        """A connection of the driver's own."""
        self._renew = 0.0

    def revision(self) -> int:
        now = time.monotonic()
        try:
            if self._quick is None or now > self._renew:
                # The file may be another by now.
                self._close()
                pooled = self._at_once.raw_connection()
                self._quick, self._renew = pooled.driver_connection, now + _RENEW_SECONDS
                pooled.detach()
            cursor = self._quick.cursor()
            cursor.execute("SELECT number FROM revisions WHERE name = 'access'")
            row = cursor.fetchone()
            cursor.close()
        except (sa.exc.SQLAlchemyError, self._errors()) as error:
            self._close()
            raise StoreError("The ledger cannot be read, so it is not known whose a key is") from error
        return int(row[0]) if row is not None else 0

    def _errors(self) -> Any:
        return self._at_once.dialect.loaded_dbapi.Error

    def _close(self) -> None:
        if self._quick is not None:
            self._quick.close()
            self._quick = None

    def add(self, key: Key, hash: str) -> None:
        values = {**vars(key), "end_users": int(key.end_users), "hash": hash}
        for name in _LISTS:
            values[name] = list(values[name]) if values[name] is not None else None
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

    def expire(self, id: str, at: int) -> bool:
        later = sa.or_(_k.c.expires.is_(None), _k.c.expires > at)
        mine = sa.and_(_k.c.id == id, _k.c.revoked.is_(None), later)
        return self._write(sa.update(_k).where(mine).values(expires=at)) > 0

    def add_signing(self, key: SigningKey) -> bool:
        try:
            return self._write(sa.insert(_s).values(vars(key))) > 0
        except sa.exc.IntegrityError:
            return False

    def all_signing(self) -> list[SigningKey]:
        with self._engine().connect() as connection:
            rows = connection.execute(sa.select(_s).order_by(_s.c.created, _s.c.kid))
            return [SigningKey(**row._mapping) for row in rows]

    def signing(self, kid: str) -> SigningKey | None:
        with self._engine().connect() as connection:
            row = connection.execute(sa.select(_s).where(_s.c.kid == kid)).one_or_none()
        return SigningKey(**row._mapping) if row is not None else None

    def revoke_signing(self, kid: str, now: int) -> bool:
        mine = sa.and_(_s.c.kid == kid, _s.c.revoked.is_(None))
        return self._write(sa.update(_s).where(mine).values(revoked=now)) > 0

    def provider_keys(self, tenant: str | None = None) -> list[SealedKey]:
        wanted = sa.select(_p).order_by(_p.c.tenant, _p.c.provider)
        if tenant is not None:
            wanted = wanted.where(_p.c.tenant == tenant)
        with self._engine().connect() as connection:
            return [SealedKey(**row._mapping) for row in connection.execute(wanted)]

    def put_provider_key(self, key: SealedKey, *, instead_of: SealedKey | None = None) -> bool:
        values = vars(key)
        mine = sa.and_(_p.c.tenant == key.tenant, _p.c.provider == key.provider)
        if instead_of is not None:
            mine = sa.and_(mine, _p.c.sealed == instead_of.sealed)
        return self._put(_p, mine, values, insert=instead_of is None)

    def drop_provider_key(self, tenant: str, provider: str) -> bool:
        return self._write(sa.delete(_p).where(_p.c.tenant == tenant, _p.c.provider == provider)) > 0

    def settings(self) -> list[ChangedSetting]:
        with self._engine().connect() as connection:
            rows = connection.execute(sa.select(_c).order_by(_c.c.kind, _c.c.name))
            return [ChangedSetting(**row._mapping) for row in rows]

    def put_setting(self, setting: ChangedSetting) -> None:
        mine = sa.and_(_c.c.kind == setting.kind, _c.c.name == setting.name)
        self._put(_c, mine, vars(setting), insert=True)

    def drop_setting(self, kind: str, name: str) -> bool:
        return self._write(sa.delete(_c).where(_c.c.kind == kind, _c.c.name == name)) > 0

    def _put(self, table: sa.Table, mine: Any, values: Mapping[str, Any], *, insert: bool) -> bool:
        """Change a row, or insert it if there is none and that is wanted."""

        def put(connection: sa.Connection) -> int:
            there = connection.execute(sa.update(table).where(mine).values(values)).rowcount
            if not there and insert:
                connection.execute(sa.insert(table).values(values))
            return there or int(insert)

        try:
            return self._change(put) > 0
        except sa.exc.IntegrityError:  # somebody else has inserted it meanwhile: it is there to be changed
            return self._change(put) > 0

    def _write(self, statement: sa.Insert | sa.Update | sa.Delete) -> int:
        return self._change(lambda connection: int(connection.execute(statement).rowcount))

    def _change(self, work: Callable[[sa.Connection], int]) -> int:
        """Do it in a transaction, and say so; how many rows it has changed."""
        with self._engine().execution_options(write=True).begin() as connection:
            count = work(connection)
            if count:
                bump(connection)
            return count


def bump(connection: sa.Connection) -> None:
    """Say, within a transaction, that who may do what has changed."""
    more = sa.update(_r).where(_r.c.name == _ACCESS).values(number=_r.c.number + 1)
    if not connection.execute(more).rowcount:
        connection.execute(sa.insert(_r).values(name=_ACCESS, number=1))


def _key(row: sa.Row[Any]) -> tuple[Key, str]:
    values = dict(row._mapping)
    hash = values.pop("hash")
    for name in _LISTS:
        if values[name] is not None:
            values[name] = tuple(values[name])
    return Key(**{**values, "end_users": bool(values["end_users"]), "budgets": values["budgets"] or ()}), hash
