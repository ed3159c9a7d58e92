"""End-user tokens: JWTs that say for whom a client may call, signed here or by whoever has the key."""

from __future__ import annotations

import os
import secrets
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from ..rules.attribution import check_id
from ..rules.errors import ConfigError
from .settings import TokenSettings

SCOPES = ("inference", "usage")
"""What a token may be for: calling models, and reading what it has spent."""
_LEEWAY = 10
_SHORTEST_SECRET = 32  # bytes: RFC 7518, section 3.2
_LONGEST = 8192


class InvalidToken(Exception):
    """A token that is not to be believed; the message says why, and can be shown."""


@dataclass(frozen=True)
class Claims:
    """What a token says.

    Attributes:
        tenant, project, user, session: whom it is for (`tid`, `pid`, `uid`, `sid`).
        role, tier, scopes: `role`, `tier`, `scp`.
        key: the id of the API key that minted it (`key`), whose end is its end.
    """

    tenant: str
    project: str
    user: str
    session: str | None = None
    role: str = "user"
    tier: str | None = None
    scopes: tuple[str, ...] = SCOPES
    key: str | None = None


class Tokens:
    """Signs and checks tokens.

    Raises:
        ConfigError: a key or secret is missing, unreadable or too short.
    """

    def __init__(self, settings: TokenSettings) -> None:
        self.settings = settings
        self._sign: Any = None
        self._check: dict[str | None, Any] = {}
        if settings.algorithm == "HS256":
            secret = os.environ.get(settings.secret_env, "").encode()
            if secret and len(secret) < _SHORTEST_SECRET:
                raise ConfigError(
                    f"{settings.secret_env} has {len(secret)} bytes; HS256 needs {_SHORTEST_SECRET} or more: "
                    'python -c "import secrets; print(secrets.token_hex(32))"'
                )
            self._sign = secret or secrets.token_bytes(_SHORTEST_SECRET)
            self._check[None] = self._sign
            return
        for kid, path in settings.public_key_files.items():
            self._check[kid] = _read(path)
        if settings.private_key_file is not None:
            self._sign = _read(settings.private_key_file)
            try:
                public = load_pem_private_key(self._sign, None).public_key()
            except (ValueError, TypeError) as error:
                raise ConfigError(f"cannot use the key in {settings.private_key_file}: {error}") from None
            pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            self._check.setdefault(settings.kid, pem)
        if not self._check:
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

    def read(self, token: str) -> tuple[Claims, int]:
        """What a token says, and when it expires (seconds since 1970).

        Raises:
            InvalidToken: it is forged, expired, for somebody else, or not a token.
        """
        if len(token) > _LONGEST:
            raise InvalidToken("it is too long")
        try:
            key = self._check[None]
        except KeyError:
            key = self._by_kid(token)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                said = jwt.decode(
                    token,
                    key,
                    # Only ours: a token does not choose how it is checked (RFC 8725, section 3.1).
                    algorithms=[self.settings.algorithm],
                    audience=self.settings.audience,
                    issuer=self.settings.issuer,
                    leeway=_LEEWAY,
                    options={"require": ["exp", "iat", "nbf", "tid", "pid", "uid"]},
                )
        except jwt.ExpiredSignatureError:
            raise InvalidToken("it has expired") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            raise InvalidToken(f"{type(error).__name__}") from None
        try:
            return _claims(said), int(said["exp"])
        except (ConfigError, ValueError, TypeError) as error:
            raise InvalidToken(str(error)) from None

    def _by_kid(self, token: str) -> Any:
        try:
            kid = jwt.get_unverified_header(token).get("kid")
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise InvalidToken("it is not a token") from None
        if kid is None and len(self._check) == 1:
            (key,) = self._check.values()
            return key
        if not isinstance(kid, str) or kid not in self._check:
            raise InvalidToken("it names a key that is not known here")
        return self._check[kid]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the key file {path}: {error.strerror}") from None


def _claims(said: Mapping[str, Any]) -> Claims:
    scopes = said.get("scp", list(SCOPES))
    if isinstance(scopes, str):
        scopes = scopes.split()
    if not isinstance(scopes, list) or not all(isinstance(s, str) for s in scopes):
        raise ConfigError("scp is a list of texts")

    def optional(name: str) -> str | None:
        return check_id(said[name], name) if said.get(name) is not None else None

    return Claims(
        tenant=check_id(said["tid"], "tid"),
        project=check_id(said["pid"], "pid"),
        user=check_id(said["uid"], "uid"),
        session=optional("sid"),
        role=optional("role") or "user",
        tier=optional("tier"),
        scopes=tuple(scopes),
        key=optional("key"),
    )
