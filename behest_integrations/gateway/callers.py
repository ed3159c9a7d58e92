"""Who is calling: an API key, an end user's token, or, on loopback alone, nobody in particular."""

from __future__ import annotations

import functools
import hashlib
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import anyio.to_thread

from ..rules.attribution import NOBODY, SESSION_HEADER, USER_HEADER, Attribution, from_headers
from ..rules.errors import ConfigError
from .keys import Key, KeyStore, id_in
from .problems import Problem
from .settings import TIER_TAG, GatewaySettings
from .tokens import SCOPES, Claims, InvalidToken, Tokens

KEY_SECONDS = 5.0
"""How long a key is believed before the store is asked again: how long a revoked one lives on."""
_MOST_REMEMBERED = 10_000
_LOCAL = re.compile(r"(localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::\d+)?\Z")

T = TypeVar("T")
Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Caller:
    """Whom a request comes from, and for whom it may speak.

    Attributes:
        key: the id of the API key, or of the one that minted the token.
        user, session: bound by a token: headers that say otherwise are refused.
        any_user: whether headers may name any end user.
        admin: whether it may see what others of its project have spent.
    """

    tenant: str | None = None
    project: str | None = None
    user: str | None = None
    session: str | None = None
    tier: str | None = None
    key: str | None = None
    scopes: tuple[str, ...] = SCOPES
    any_user: bool = False
    admin: bool = False
    may_mint: bool = False

    def require(self, scope: str) -> None:
        """Raises a 403 if the caller's token is not for that."""
        if scope not in self.scopes:
            raise Problem(
                403, f"This token is not for {scope!r}: its scopes are {', '.join(self.scopes) or 'none'}."
            )

    def attribution(self, headers: Headers, trace: str) -> Attribution:
        """Whom a call is for.

        Raises:
            Problem: the headers say something that cannot be an id, or that is not the caller's.
        """
        said = said_in(headers)
        return Attribution(
            session_id=_bound(self.session, said.session_id, "X-Session-Id", self.session is None),
            user_id=_bound(self.user, said.user_id, "X-End-User-Id", self.any_user),
            project=self.project,
            tenant=self.tenant,
            tags={"trace": trace, **self.tags},
        )

    @property
    def tags(self) -> dict[str, str]:
        """By which the budgets of its tier find it."""
        return {TIER_TAG: self.tier} if self.tier else {}


def _bound(own: str | None, said: str | None, header: str, free: bool) -> str | None:
    if said is None or said == own:
        return own
    if free:
        return said
    if own is None:
        raise Problem(403, f"This key may not speak for end users: leave {header} out.", param=header)
    raise Problem(403, f"{header} names another than the token is for: leave it out.", param=header)


def said_in(headers: Headers) -> Attribution:
    """The session and the user that a request's headers name.

    Raises:
        Problem: one is given twice, or cannot be an id.
    """
    found: dict[str, bytes] = {}
    for raw, value in headers:
        name = _NAMES.get(raw)
        if name is not None:
            if name in found:
                raise Problem(400, f"{name} is given twice.", param=name)
            found[name] = value
    if not found:
        return NOBODY
    try:
        return from_headers(found)
    except ConfigError as error:
        raise Problem(400, str(error)) from None


# As an ASGI server gives them: in small letters.
_NAMES = {name.encode(): name for name in (SESSION_HEADER, USER_HEADER)}


class _Remembered(Generic[T]):
    """A few answers, each for a while."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._items: OrderedDict[str, tuple[float, T]] = OrderedDict()

    def get(self, name: str, now: float) -> T | None:
        item = self._items.get(name)
        return item[1] if item is not None and item[0] > now else None

    def put(self, name: str, value: T, until: float) -> None:
        self._items[name] = (until, value)
        self._items.move_to_end(name)
        while len(self._items) > self._most:
            self._items.popitem(last=False)


class Gate:
    """Lets callers in.

    Args:
        keys: None: there are none, because the store keeps none.
        keyless: let in who comes without a key.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        keys: KeyStore | None,
        tokens: Tokens,
        *,
        keyless: bool = False,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._tokens = tokens
        self._keyless = keyless
        self._known: _Remembered[Key] = _Remembered(_MOST_REMEMBERED)
        self._alive: _Remembered[bool] = _Remembered(_MOST_REMEMBERED)
        self._read: _Remembered[Claims] = _Remembered(_MOST_REMEMBERED)
        # Secrets are not kept as they came, and a hash that an attacker can predict is not used.
        self._salt = secrets.token_bytes(16)

    async def admit(self, headers: Headers) -> Caller:
        """The caller of a request.

        Raises:
            Problem: 401, it is nobody that is known here; 403, its tier is not.
        """
        given = [value for name, value in headers if name == b"authorization"]
        host = next((value.decode("latin-1") for name, value in headers if name == b"host"), "")
        if len(given) > 1:
            raise _unknown("Authorization is given twice")
        scheme, _, text = (given[0].decode("latin-1") if given else "").partition(" ")
        text = text.strip()
        if scheme.lower() == "bearer" and text.isascii():
            if id_in(text) is not None:
                return self._checked(_of_key(await self._key(text)))
            if text.count(".") == 2:
                return self._checked(await self._token(text))
        if self._keyless:
            if not _LOCAL.match(host):
                # A page on the web can make a browser ask here, under a name of its own.
                raise Problem(403, "Without keys the gateway answers to 'localhost' alone.")
            return self._checked(Caller(any_user=True, admin=True, tier=self._settings.default_tier))
        raise _unknown("No API key" if not given else "Not an API key or token")

    def _checked(self, caller: Caller) -> Caller:
        if caller.tier is not None and caller.tier not in self._settings.tier_texts:
            raise Problem(403, f"The tier {caller.tier!r} is not known here.")
        if caller.tier is None and self._settings.default_tier is not None:
            return Caller(**{**vars(caller), "tier": self._settings.default_tier})
        return caller

    def _name(self, text: str) -> str:
        return hashlib.blake2b(text.encode(), key=self._salt, digest_size=16).hexdigest()

    async def _key(self, text: str) -> Key:
        name, now = self._name(text), time.time()
        key = self._known.get(name, now)
        if key is None:
            find = functools.partial(self._keys.find, text) if self._keys is not None else lambda: None
            key = await anyio.to_thread.run_sync(find)
            if key is None:
                raise _unknown("Not a key that is known here, or one that was revoked")
            self._known.put(name, key, now + KEY_SECONDS)
        return key

    async def _token(self, text: str) -> Caller:
        name, now = self._name(text), time.time()
        claims = self._read.get(name, now)
        if claims is None:
            try:
                claims, expires = self._tokens.read(text)
            except InvalidToken as error:
                raise _unknown(f"The token is not valid: {error}") from None
            self._read.put(name, claims, expires)
        if claims.key is not None and not await self._lives(claims.key):
            raise _unknown("The key that minted this token was revoked")
        return Caller(
            tenant=claims.tenant,
            project=claims.project,
            user=claims.user,
            session=claims.session,
            tier=claims.tier,
            key=claims.key,
            scopes=claims.scopes,
            admin=claims.role == "admin",
        )

    async def _lives(self, id: str) -> bool:
        now = time.time()
        lives = self._alive.get(id, now)
        if lives is None:
            by_id = functools.partial(self._keys.by_id, id) if self._keys is not None else lambda: None
            key = await anyio.to_thread.run_sync(by_id)
            lives = key is not None and key.revoked is None
            self._alive.put(id, lives, now + KEY_SECONDS)
        return lives


def _of_key(key: Key) -> Caller:
    return Caller(
        tenant=key.tenant,
        project=key.project,
        tier=key.tier,
        key=key.id,
        any_user=key.end_users,
        admin=True,
        may_mint=key.end_users,
    )


def _unknown(why: str) -> Problem:
    message = (
        f"{why}. Send 'Authorization: Bearer KEY': a key of 'behest keys create', or a token minted with it."
    )
    return Problem(401, message, retry=False, headers={"WWW-Authenticate": "Bearer"})
