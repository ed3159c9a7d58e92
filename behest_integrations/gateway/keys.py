"""API keys: made and revoked by `behest keys`, shown once, stored as a hash."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time

from ..ledger import Ledger
from ..ledger.keys import Key
from ..rules.attribution import check_id
from ..rules.errors import ConfigError

PREFIX = "behest_sk_live_"
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_ID_LENGTH = 12
_LONGEST = 128

__all__ = ["PREFIX", "Key", "KeyStore", "id_in"]


class KeyStore:
    """The keys in a ledger.

    Raises:
        ConfigError: the ledger keeps none (in memory another process could not find a key).
    """

    def __init__(self, ledger: Ledger) -> None:
        self._keys = ledger.keys()

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
        self._keys.add(key, _hash(text))
        return key, text

    def all(self) -> list[Key]:
        """Every key, the oldest first."""
        return self._keys.all()

    def revoke(self, id: str) -> Key:
        """End a key, at once for the store and within seconds for gateways that run.

        Raises:
            ConfigError: there is no such key, or it is revoked already.
        """
        revoked = self._keys.revoke(id, int(time.time() * 1000))
        key = self.by_id(id)
        if key is None:
            raise ConfigError(f"there is no key {id!r}; 'behest keys list' shows them")
        if not revoked:
            raise ConfigError(f"key {id!r} is revoked already")
        return key

    def by_id(self, id: str) -> Key | None:
        """The key of that id, revoked or not."""
        found = self._keys.get(id)
        return found[0] if found is not None else None

    def find(self, text: str) -> Key | None:
        """The key whose text this is, if it is one and is not revoked."""
        id = id_in(text)
        found = self._keys.get(id) if id is not None else None
        if found is None:
            return None
        key, hash = found
        if key.revoked is not None or not hmac.compare_digest(hash, _hash(text)):
            return None
        return key


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
