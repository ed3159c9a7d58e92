"""Tenants' own keys at providers (BYOK): sealed in the ledger with AES-256-GCM, opened to make a call.

A sealed key is bound to its tenant and its provider: put under another's name it does not open. What does
not open is refused; the gateway's own key takes its place only where `[gateway.byok]` says so.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import anyio.to_thread
import sqlalchemy as sa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic_core import to_json

from ..ledger import Ledger
from ..ledger.audit import Decision
from ..ledger.keys import Keys, SealedKey
from ..rules.attribution import check_id
from ..rules.errors import BehestError, ConfigError, StoreError
from .remembering import SECONDS, Remembered
from .settings import ByokSettings

log = logging.getLogger("behest")

PAID_TAG = "paid_by"
"""The tag that says whose key at the provider a call was made with, and so who pays for it."""
PLATFORM, TENANT = "platform", "tenant"

_MASTER_BYTES = 32
_NONCE_BYTES = 12
_LONGEST = 4096
_HINT = 4
_LONG_ENOUGH_FOR_A_HINT = 20


class Unusable(BehestError):
    """A tenant's own key that cannot be used; the message says why, and nothing that is secret."""


class Masters:
    """The master keys: the first seals, any of them opens. Those of the environment, then the file's."""

    def __init__(self, settings: ByokSettings) -> None:
        self._settings = settings
        self._file: tuple[object, dict[str, bytes]] = (None, {})

    def all(self) -> dict[str, bytes]:
        """The keys by their ids. A file is read again once it has changed.

        Raises:
            ConfigError: one is no key, or the file cannot be read.
        """
        name = self._settings.key_env
        return {**_parse(os.environ.get(name, ""), name), **self._of_file()}

    def _of_file(self) -> dict[str, bytes]:
        path = self._settings.key_file
        if path is None:
            return {}
        try:
            found = os.stat(path)
            seen = (found.st_mtime_ns, found.st_size, found.st_ino)
            if seen != self._file[0]:
                self._file = (seen, _parse(path.read_text(encoding="utf-8"), str(path)))
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            raise ConfigError(f"[gateway.byok] key_file {str(path)!r} cannot be read: {why}") from None
        return self._file[1]

    def first(self) -> tuple[str, bytes]:
        """The key that seals, and its id.

        Raises:
            ConfigError: there is none.
        """
        for found in self.all().items():
            return found
        raise ConfigError(
            "there is no master key to encrypt providers' keys with: 'behest byok new-master byok.master' "
            f"makes one. Name the file in behest.toml ([gateway.byok] key_file), or set "
            f"{self._settings.key_env} to what is in it."
        )

    def seal(self, tenant: str, provider: str, secret: str, now: int, *, id: str | None = None) -> SealedKey:
        """A tenant's key, encrypted.

        Args:
            id: of the key that it is; None: a new one.

        Raises:
            ConfigError: there is no master key.
        """
        master, key = self.first()
        id = id or secrets.token_hex(8)
        nonce = os.urandom(_NONCE_BYTES)
        sealed = nonce + AESGCM(key).encrypt(nonce, secret.encode(), _bound_to(id, tenant, provider))
        hint = secret[-_HINT:] if len(secret) >= _LONG_ENOUGH_FOR_A_HINT else ""
        return SealedKey(tenant, provider, id, base64.b64encode(sealed).decode(), master, hint, now)

    def open(self, key: SealedKey) -> str:
        """A tenant's key, as it was given.

        Raises:
            Unusable: its master key is not here, or it is not as it was sealed.
        """
        try:
            master = self.all().get(key.master)
        except ConfigError as error:
            raise Unusable(str(error)) from None
        if master is None:
            raise Unusable(f"it is encrypted with the master key {key.master}, which is not here")
        try:
            sealed = base64.b64decode(key.sealed, validate=True)
            about = _bound_to(key.id, key.tenant, key.provider)
            return AESGCM(master).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], about).decode()
        except (InvalidTag, ValueError):
            raise Unusable("it is not as it was encrypted: somebody has changed the ledger") from None


def _bound_to(id: str, tenant: str, provider: str) -> bytes:
    return to_json(["behest-byok-1", id, tenant, provider])


def _parse(text: str, where: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for word in re.split(r"[\s,]+", re.sub(r"#.*", "", text)):
        if word:
            key = _key_in(word)
            if key is None:
                raise ConfigError(
                    f"{where}: a master key is {_MASTER_BYTES} random bytes, in base64 or as 64 hexadecimal "
                    "digits, as 'behest byok new-master FILE' makes them; several are separated by blanks, "
                    "the newest first"
                )
            found[hashlib.sha256(b"behest byok master" + key).hexdigest()[:8]] = key
    return found


def _key_in(word: str) -> bytes | None:
    with suppress(ValueError, binascii.Error):
        if len(word) == 2 * _MASTER_BYTES:
            return bytes.fromhex(word)
        padded = word.replace("-", "+").replace("_", "/").rstrip("=")
        key = base64.b64decode(padded + "=" * (-len(padded) % 4), validate=True)
        return key if len(key) == _MASTER_BYTES else None
    return None


def new_master(path: Path, *, first: bool = False) -> None:
    """Write a new master key into a file that its owner alone may read.

    Args:
        first: before those that are there, of which the newest seals; else the file must not be there.

    Raises:
        ConfigError: it is there already, is not there, or cannot be written.
    """
    made = base64.b64encode(os.urandom(_MASTER_BYTES)).decode() + "\n"
    try:
        if not first:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(made)
            return
        before = path.read_text(encoding="utf-8")
        _parse(before, str(path))
        # Beside it, and then in its place: no gateway reads half a file.
        beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        there = path.stat()
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(made + before)
            os.fchmod(file.fileno(), there.st_mode & 0o777)
            with suppress(PermissionError):  # whoever reads it goes on to
                os.fchown(file.fileno(), there.st_uid, there.st_gid)
        os.replace(beside, path)
    except FileExistsError:
        message = f"{str(path)!r} is there already; --rotate puts a new key before those in it"
        raise ConfigError(message) from None
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be written: {error.strerror or error}") from None


def check_key(secret: str) -> None:
    """Find out whether it can be a provider's key. It is not quoted: it may be one but for a blank.

    Raises:
        ConfigError: it cannot: it would not go into a header.
    """
    if not secret or len(secret) > _LONGEST or not secret.isascii() or not secret.isprintable():
        raise ConfigError("a provider's key is text of ASCII characters in one line")
    if " " in secret:
        raise ConfigError("a provider's key has no blanks: is there more in it than the key?")


class ProviderKeys:
    """Tenants' own keys, as they are set and removed.

    Args:
        actor, why: for the audit.

    Raises:
        ConfigError: the ledger keeps no keys.
    """

    def __init__(
        self,
        ledger: Ledger,
        masters: Masters,
        *,
        now: Callable[[], float] = time.time,
        actor: str | None = None,
        why: str | None = None,
    ) -> None:
        self._ledger = ledger
        self._why = why
        self._keys = ledger.keys()
        self._masters = masters
        self._now = now
        self._actor = actor

    def all(self) -> list[SealedKey]:
        """All of them, by tenant."""
        return self._keys.provider_keys()

    def set(self, tenant: str, provider: str, secret: str) -> SealedKey:
        """Have a tenant's calls to a provider made with its own key from now on.

        Raises:
            ConfigError: it cannot be a key, or there is no master key.
        """
        check_id(tenant, "the tenant")
        check_id(provider, "the provider")
        check_key(secret)
        key = self._masters.seal(tenant, provider, secret, self._ms())
        self._keys.put_provider_key(key)
        self._note("set", tenant, provider=provider, key=key.id)
        return key

    def remove(self, tenant: str, provider: str) -> None:
        """Have its calls made with the gateway's key again.

        Raises:
            ConfigError: there is none.
        """
        if not self._keys.drop_provider_key(tenant, provider):
            raise ConfigError(
                f"{tenant!r} has no key of its own for {provider!r}; 'behest byok list' shows them"
            )
        self._note("removed", tenant, provider=provider)

    def reseal(self) -> tuple[int, list[tuple[SealedKey, str]]]:
        """Encrypt with the newest master key whatever is encrypted with another: how many, and which not.

        Raises:
            ConfigError: there is no master key.
        """
        newest, _ = self._masters.first()
        done, left = 0, []
        for key in self.all():
            if key.master == newest:
                continue
            try:
                secret = self._masters.open(key)
            except Unusable as error:
                left.append((key, str(error)))
                continue
            again = self._masters.seal(key.tenant, key.provider, secret, key.created, id=key.id)
            done += self._keys.put_provider_key(again, instead_of=key)  # unless it was set anew meanwhile
        if done:
            self._note("encrypted anew", None, master=newest, keys=done)
        return done, left

    def listed(self) -> list[tuple[SealedKey, str | None]]:
        """All of them, and of each why it cannot be used; None: it can."""
        found: list[tuple[SealedKey, str | None]] = []
        for key in self.all():
            try:
                self._masters.open(key)
                found.append((key, None))
            except Unusable as error:
                found.append((key, str(error)))
        return found

    def _ms(self) -> int:
        return int(self._now() * 1000)

    def _note(self, what: str, tenant: str | None, **details: object) -> None:
        if self._why is not None:
            details["why"] = self._why
        decision = Decision(
            self._ms(), "key", f"provider key {what}", tenant=tenant, actor=self._actor, details=details
        )
        self._ledger.submit(lambda rows: rows.add_audit(decision))


class Payers:
    """With whose key a call is made: the tenant's own, where it has one for that provider.

    Args:
        keys: None: the store keeps none, so nobody has.
    """

    def __init__(self, keys: Keys | None, settings: ByokSettings) -> None:
        self._keys = keys
        self._masters = Masters(settings)
        self.ours_instead = settings.ours_instead
        """Whether the gateway's key may take the place of a tenant's."""
        self._known: Remembered[Mapping[str, str | Unusable]] = Remembered()

    def forget(self) -> None:
        """Something has changed in the store: ask it again."""
        self._known.clear()

    async def key(self, tenant: str | None, provider: str) -> str | None:
        """The tenant's own key for a provider; None: the gateway's is used.

        Raises:
            Unusable: it has one that cannot be used.
            StoreError: the store is out, so it is not known.
        """
        if tenant is None or self._keys is None:
            return None
        found = self._known.get(tenant, time.time())
        if found is None:
            asked = self._known.cleared
            found = await anyio.to_thread.run_sync(self._open, tenant)
            if asked == self._known.cleared:
                self._known.put(tenant, found, time.time() + SECONDS)
        own = found.get(provider)
        if isinstance(own, Unusable):
            if self.ours_instead:
                return None
            raise own
        return own

    def _open(self, tenant: str) -> Mapping[str, str | Unusable]:
        assert self._keys is not None
        found: dict[str, str | Unusable] = {}
        try:
            keys = self._keys.provider_keys(tenant)
        except sa.exc.SQLAlchemyError as error:
            raise StoreError(
                "The ledger cannot be read, so it is not known with whose key to call"
            ) from error
        for key in keys:
            try:
                found[key.provider] = self._masters.open(key)
            except Unusable as error:
                log.error("The key of %s for %s cannot be used: %s.", tenant, key.provider, error)
                found[key.provider] = error
        return found
