"""End-user tokens: JWTs that say for whom a client may call, signed here or by whoever has the key."""

from __future__ import annotations

import json
import os
import secrets
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from jwt.algorithms import RSAAlgorithm

from ..ledger.keys import SigningKey
from ..rules.attribution import check_id
from ..rules.errors import ConfigError
from .settings import TokenSettings

SCOPES = ("inference", "usage")
"""What a token may be for: calling models, and reading what it has spent."""
_LEEWAY = 10
_SHORTEST_SECRET = 32  # bytes: RFC 7518, section 3.2
_SHORTEST_RSA = 2048  # bits: RFC 7518, section 3.3
_LONGEST = 8192
_LONGEST_KID = 128


class InvalidToken(Exception):
    """A token that is not to be believed; the message says why, and can be shown."""


@dataclass(frozen=True)
class Claims:
    """What a token says.

    Attributes:
        tenant, project, user, session: whom it is for (`tid`, `pid`, `uid`, `sid`).
        role, tier, scopes: `role`, `tier` (a name, or its number), `scp` (none: the usual ones).
        key: the id of the API key that minted it (`key`), whose end is its end.
        kid: the tenant's key that signed it, whose end is its end as well.
    """

    tenant: str
    project: str
    user: str
    session: str | None = None
    role: str = "user"
    tier: str | int | None = None
    scopes: tuple[str, ...] = SCOPES
    key: str | None = None
    kid: str | None = None


class Tokens:
    """Signs and checks tokens.

    Raises:
        ConfigError: a key or secret is missing, unreadable or too short.
    """

    def __init__(self, settings: TokenSettings) -> None:
        self.settings = settings
        self._issuers = {settings.issuer, *settings.issuers}
        self._sign: Any = None
        self._secret: bytes | None = None
        self._public: dict[str, RSAPublicKey] = {
            kid: public_key(_read(path), str(path)) for kid, path in settings.public_key_files.items()
        }
        if settings.algorithm == "HS256":
            secret = os.environ.get(settings.secret_env, "").encode()
            if secret and len(secret) < _SHORTEST_SECRET:
                raise ConfigError(
                    f"{settings.secret_env} has {len(secret)} bytes; HS256 needs {_SHORTEST_SECRET} or more: "
                    'python -c "import secrets; print(secrets.token_hex(32))"'
                )
            self._sign = self._secret = secret or secrets.token_bytes(_SHORTEST_SECRET)
            return
        if settings.private_key_file is not None:
            self._sign = _read(settings.private_key_file)
            own = public_key(self._sign, str(settings.private_key_file))
            if self._public.setdefault(settings.kid, own).public_numbers() != own.public_numbers():
                raise ConfigError(
                    f"[gateway.tokens] kid {settings.kid!r} is the private key's, and public_key_files has "
                    "another key under it: give the new key a new kid"
                )
        if not self._public:
            raise ConfigError("RS256 tokens need public_key_files, or a private_key_file to mint with")

    def mint(self, claims: Claims, ttl: int) -> tuple[str, int]:
        """A signed token, and when it expires (seconds since 1970).

        Raises:
            ConfigError: there is no key to sign with.
        """
        if self._sign is None:
            raise ConfigError("this gateway has no private key: tokens are signed elsewhere")
        now = int(time.time())
        said: dict[str, Any] = {
            "tid": claims.tenant,
            "pid": claims.project,
            "uid": claims.user,
            "sid": claims.session,
            "role": claims.role,
            "scp": list(claims.scopes),
            "tier": claims.tier,
            "key": claims.key,
            "iss": self.settings.issuer,
            "aud": self.settings.audience,
            "iat": now,
            "nbf": now,
            "exp": now + ttl,
            "jti": secrets.token_hex(16),
        }
        headers = {"kid": self.settings.kid} if self.settings.algorithm == "RS256" else None
        payload = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(payload, self._sign, self.settings.algorithm, headers=headers), now + ttl

    def stranger(self, token: str) -> str | None:
        """The key that a token names, if it is none of the gateway's own: a tenant's, perhaps.

        Raises:
            InvalidToken: it is no token.
        """
        kid = self._kid(token)
        return kid if kid is not None and kid not in self._public and len(kid) <= _LONGEST_KID else None

    def _kid(self, token: str) -> str | None:
        if len(token) > _LONGEST:
            raise InvalidToken("it is too long")
        try:
            kid = jwt.get_unverified_header(token).get("kid")
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise InvalidToken("it is not a token") from None
        if kid is not None and not isinstance(kid, str):
            raise InvalidToken("its key id is no text")
        return kid

    def read(self, token: str, signed: SigningKey | None = None) -> tuple[Claims, int]:
        """What a token says, and when it expires (seconds since 1970).

        Args:
            signed: the tenant's key that it names.

        Raises:
            InvalidToken: it is forged, expired, for somebody else, or not a token.
        """
        key, algorithm = self._key(token, signed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                said = jwt.decode(
                    token,
                    key,
                    # Only the key's own: a token does not choose how it is checked (RFC 8725, section 3.1).
                    algorithms=[algorithm],
                    audience=self.settings.audience,
                    leeway=_LEEWAY,
                    options={"require": ["exp", "iat", "nbf", "iss", "tid", "pid", "uid"]},
                )
        except jwt.ExpiredSignatureError:
            raise InvalidToken("it has expired") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            raise InvalidToken(f"{type(error).__name__}") from None
        if not isinstance(said["iss"], str) or said["iss"] not in self._issuers:
            raise InvalidToken("it is of another issuer")
        try:
            claims, expires = _claims(said), int(said["exp"])
        except (ConfigError, ValueError, TypeError) as error:
            raise InvalidToken(str(error)) from None
        if signed is None:
            return claims, expires
        if claims.tenant != signed.tenant or signed.project not in (None, claims.project):
            raise InvalidToken("the key that it names is another tenant's or project's")
        # A tenant signs for its own users, and not in the name of a key of the gateway.
        return replace(claims, key=None, kid=signed.kid), expires

    def _key(self, token: str, signed: SigningKey | None) -> tuple[Any, str]:
        """What a token is checked with, and the one algorithm that this is for."""
        if signed is not None:
            return public_key(signed.pem.encode(), signed.kid), "RS256"
        kid = self._kid(token)
        if kid is not None and kid in self._public:
            return self._public[kid], "RS256"
        if self._secret is not None:
            return self._secret, "HS256"
        if kid is None and len(self._public) == 1:
            (only,) = self._public.values()
            return only, "RS256"
        raise InvalidToken("it names a key that is not known here")

    def published(self) -> list[dict[str, Any]]:
        """The public keys with which others can check the gateway's tokens (RFC 7517)."""
        found = []
        for kid, key in self._public.items():
            numbers = json.loads(RSAAlgorithm.to_jwk(key))
            found.append(
                {n: numbers[n] for n in ("kty", "n", "e")} | {"kid": kid, "use": "sig", "alg": "RS256"}
            )
        return found


def public_key(pem: bytes, where: str) -> RSAPublicKey:
    """The public key in a PEM, or the public half of the private one.

    Args:
        where: what to call it in an error.

    Raises:
        ConfigError: it is none, not RSA, or too short.
    """
    key: Any
    try:
        if b"PRIVATE KEY" in pem:
            private = load_pem_private_key(pem, None)
            key = private.public_key() if isinstance(private, RSAPrivateKey) else None
        else:
            key = load_pem_public_key(pem)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"cannot use the key in {where}: {error}") from None
    if not isinstance(key, RSAPublicKey) or key.key_size < _SHORTEST_RSA:
        raise ConfigError(
            f"cannot use the key in {where}: RS256 needs an RSA key of {_SHORTEST_RSA} bits or more"
        )
    return key


def public_pem(key: RSAPublicKey) -> str:
    """A public key as text."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the key file {path}: {error.strerror}") from None


def _claims(said: Mapping[str, Any]) -> Claims:
    # Behest's clients sign `scp: []`, and mean what a minted token may do.
    scopes = said.get("scp") if said.get("scp") not in (None, [], "") else list(SCOPES)
    if isinstance(scopes, str):
        scopes = scopes.split()
    if not isinstance(scopes, list) or not all(isinstance(s, str) for s in scopes):
        raise ConfigError("scp is a list of texts")

    def optional(name: str) -> str | None:
        return check_id(said[name], name) if said.get(name) is not None else None

    tier = said.get("tier")
    return Claims(
        tenant=check_id(said["tid"], "tid"),
        project=check_id(said["pid"], "pid"),
        user=check_id(said["uid"], "uid"),
        session=optional("sid"),
        role=optional("role") or "user",
        tier=tier if isinstance(tier, int) and not isinstance(tier, bool) else optional("tier"),
        scopes=tuple(scopes),
        key=optional("key"),
    )
