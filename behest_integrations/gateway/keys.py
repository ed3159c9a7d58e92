"""API keys, shown once and stored as a hash, and tenants' public keys: made and ended by `behest keys`."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from ..ledger import Ledger
from ..ledger.audit import Decision
from ..ledger.keys import Key, SigningKey
from ..rules.attribution import check_id
from ..rules.budgets import Budget, Filter
from ..rules.errors import ConfigError

PREFIX = "behest_sk_live_"
PREFIXES = (PREFIX, "bh_live_")
"""How a key may begin: Behest's clients know both shapes."""
ADMIN_PREFIX = "behest_ak_live_"
KEY_TAG = "key"
"""The tag by which the budgets of a key find its calls."""
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_ID_LENGTH = 12
_LONGEST = 128
_MOST_RULES = 100

__all__ = ["PREFIX", "PREFIXES", "Key", "KeyStore", "SigningKey", "id_in", "key_budgets"]


class KeyStore:
    """The keys in a ledger.

    Raises:
        ConfigError: the ledger keeps none (in memory another process could not find a key).
    """

    def __init__(
        self, ledger: Ledger, *, now: Callable[[], float] = time.time, actor: str | None = None
    ) -> None:
        self._keys = ledger.keys()
        self._ledger = ledger
        self._now = now
        self._actor = actor

    def _note(self, what: str, key: Key | SigningKey, **details: str) -> None:
        """Write into the audit what was done with a key."""
        id = key.id if isinstance(key, Key) else key.kid
        kind = "admin" if isinstance(key, Key) and key.role == "admin" else "key"
        decision = Decision(
            self._ms(),
            kind,
            f"key {what}",
            tenant=key.tenant or None,
            project=key.project or None,
            actor=self._actor,
            details={"key": id, **details},
        )
        self._ledger.submit(lambda rows: rows.add_audit(decision))

    def revision(self) -> int:
        """Another number after each change: what was remembered of keys is to be asked for again."""
        return self._keys.revision()

    def create(
        self,
        *,
        tenant: str,
        project: str,
        tier: str | None = None,
        end_users: bool = True,
        name: str = "",
        prefix: str = PREFIX,
        seconds: float | None = None,
        models: Iterable[str] | None = None,
        addresses: Iterable[str] | None = None,
        budgets: Iterable[str] = (),
    ) -> tuple[Key, str]:
        """A new key, and the text that is shown once.

        Args:
            tier: whose budgets its calls are held to as well.
            end_users: whether it may speak for any end user.
            seconds: how long it lives; None: until it is revoked.
            models: patterns (`*`, `?`) of what it may call; None: anything.
            addresses: networks from which it may be used (10.0.0.0/8); None: from anywhere.
            budgets: what all its calls together are held to besides, e.g. ``$5/day``.

        Raises:
            ConfigError: something cannot be used as given.
        """
        check_id(tenant, "the tenant")
        check_id(project, "the project")
        if tier is not None:
            check_id(tier, "the tier")
        if prefix not in PREFIXES:
            raise ConfigError(f"a key begins with {' or '.join(PREFIXES)}, not {prefix!r}")
        key = Key(
            _id(),
            check_id(name, "the key's name") if name else "",
            tenant,
            project,
            tier,
            end_users,
            self._ms(),
            None,
            expires=self._ends(seconds),
            models=_patterns(models),
            addresses=_networks(addresses),
            budgets=tuple(budgets),
        )
        key_budgets(key)
        return self._add(key, prefix)

    def create_admin(
        self, *, tenant: str = "", name: str = "", seconds: float | None = None
    ) -> tuple[Key, str]:
        """A key that administers: everything, or one tenant's. It calls no models.

        Raises:
            ConfigError: something cannot be used as given.
        """
        if tenant:
            check_id(tenant, "the tenant")
        if name:
            check_id(name, "the key's name")
        key = Key(
            _id(), name, tenant, "", None, False, self._ms(), None, role="admin", expires=self._ends(seconds)
        )
        return self._add(key, ADMIN_PREFIX)

    def _add(self, key: Key, prefix: str) -> tuple[Key, str]:
        text = f"{prefix}{key.id}_{secrets.token_urlsafe(32)}"
        self._keys.add(key, _hash(text))
        self._note("made", key)
        return key, text

    def rotate(self, id: str, *, overlap: float = 0.0) -> tuple[Key, str]:
        """A new key that may do what the key `id` may, which ends after `overlap` seconds.

        It lives as long as that one was to live, and its budgets are that one's: what was spent is spent.

        Raises:
            ConfigError: there is no such key, or it has ended.
        """
        old = self._living(id)
        if overlap < 0:
            raise ConfigError("an overlap is not negative")
        prefix = ADMIN_PREFIX if old.role == "admin" else PREFIX
        now = self._ms()
        expires = now + old.expires - old.created if old.expires is not None else None
        made = self._add(
            replace(old, id=_id(), created=now, expires=expires, line=old.line or old.id), prefix
        )
        if overlap:
            self._keys.expire(id, now + round(overlap * 1000))
        else:
            self._keys.revoke(id, now)
        self._note("rotated", old, successor=made[0].id)
        return made

    def expire(self, id: str, seconds: float) -> Key:
        """Let a key end in `seconds`, if it does not end before.

        Raises:
            ConfigError: there is no such key, or it has ended.
        """
        if seconds <= 0:
            raise ConfigError("a key expires in the future; to end it now, revoke it")
        self._living(id)
        self._keys.expire(id, self._ms() + round(seconds * 1000))
        key = self._living(id)
        self._note("expires", key)
        return key

    def _living(self, id: str) -> Key:
        key = self.by_id(id)
        if key is None:
            raise ConfigError(f"there is no key {id!r}; 'behest keys list' shows them")
        if not key.lives(self._ms()):
            raise ConfigError(f"key {id!r} has ended already")
        return key

    def all(self) -> list[Key]:
        """Every key, the oldest first."""
        return self._keys.all()

    def revoke(self, id: str) -> Key:
        """End a key, at once, in every gateway that runs over this ledger.

        Raises:
            ConfigError: there is no such key, or it is revoked already.
        """
        revoked = self._keys.revoke(id, self._ms())
        key = self.by_id(id)
        if key is None:
            raise ConfigError(f"there is no key {id!r}; 'behest keys list' shows them")
        if not revoked:
            raise ConfigError(f"key {id!r} is revoked already")
        self._note("revoked", key)
        return key

    def by_id(self, id: str) -> Key | None:
        """The key of that id, revoked or not."""
        found = self._keys.get(id)
        return found[0] if found is not None else None

    def find(self, text: str) -> Key | None:
        """The key whose text this is, if it is one and has not ended."""
        id = id_in(text)
        found = self._keys.get(id) if id is not None else None
        if found is None:
            return None
        key, hash = found
        if not key.lives(self._ms()) or not hmac.compare_digest(hash, _hash(text)):
            return None
        return key

    # ── tenants' public keys ───────────────────────────────────────────────────────────

    def add_signing(
        self, pem: bytes, *, tenant: str, project: str | None = None, kid: str | None = None, name: str = ""
    ) -> SigningKey:
        """Believe what a tenant signs with its private key; of a private key the public half is kept.

        Args:
            kid: what its tokens name it by; default: a new one, of the form that Behest's clients want.

        Raises:
            ConfigError: it is no such key, or the id is taken.
        """
        from .tokens import public_key, public_pem

        key = SigningKey(
            check_id(kid, "the key's id") if kid is not None else f"sk_{_id()}",
            check_id(tenant, "the tenant"),
            check_id(project, "the project") if project is not None else None,
            check_id(name, "the key's name") if name else "",
            public_pem(public_key(pem, "the PEM")),
            self._ms(),
            None,
        )
        if not self._keys.add_signing(key):
            raise ConfigError(f"there is a signing key {key.kid!r} already: give it another --kid")
        self._note("believed", key)
        return key

    def all_signing(self) -> list[SigningKey]:
        """Every public key, the oldest first."""
        return self._keys.all_signing()

    def signing(self, kid: str) -> SigningKey | None:
        """The public key of that id, if it is not revoked."""
        key = self._keys.signing(kid)
        return key if key is not None and key.revoked is None else None

    def revoke_signing(self, kid: str) -> None:
        """Believe no more what is signed with that key, at once.

        Raises:
            ConfigError: there is no such key, or it is revoked already.
        """
        key = self._keys.signing(kid)
        if key is None or not self._keys.revoke_signing(kid, self._ms()):
            raise ConfigError(f"there is no signing key {kid!r} that is not revoked")
        self._note("revoked", key)

    def _ms(self) -> int:
        return int(self._now() * 1000)

    def _ends(self, seconds: float | None) -> int | None:
        if seconds is None:
            return None
        if seconds <= 0:
            raise ConfigError("a key expires in the future")
        return self._ms() + round(seconds * 1000)


def key_budgets(key: Key) -> list[Budget]:
    """What the calls of a key are held to besides.

    Raises:
        ConfigError: a text is no budget.
    """
    mine = Filter("tag", key.line or key.id, KEY_TAG)
    found = [replace(b, filters=(*b.filters, mine)) for b in map(Budget.parse, key.budgets)]
    if len({b.shape for b in found}) < len(found):
        raise ConfigError("two of the key's budgets count the same thing")
    return found


def _patterns(given: Iterable[str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    found = tuple(check_id(pattern, "a pattern of models") for pattern in given)
    if not found or len(found) > _MOST_RULES:
        raise ConfigError(f"a key is for 1 to {_MOST_RULES} patterns of models, or for any")
    return found


def _networks(given: Iterable[str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    try:
        found = tuple(str(ipaddress.ip_network(text, strict=False)) for text in given)
    except ValueError as error:
        raise ConfigError(
            f"an address is one such as 10.1.2.3, 10.0.0.0/8 or 2001:db8::/32: {error}"
        ) from None
    if not found or len(found) > _MOST_RULES:
        raise ConfigError(f"a key is for 1 to {_MOST_RULES} networks, or for any")
    return found


def _id() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(_ID_LENGTH))


def id_in(text: str) -> str | None:
    """The id in a key's text; None if it is not formed as one."""
    prefix = next((p for p in (*PREFIXES, ADMIN_PREFIX) if text.startswith(p)), None)
    if prefix is None or len(text) > _LONGEST:
        return None
    id, underscore, secret = text[len(prefix) :].partition("_")
    if not underscore or not secret or len(id) != _ID_LENGTH or not set(id) <= set(_ALPHABET):
        return None
    return id


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
