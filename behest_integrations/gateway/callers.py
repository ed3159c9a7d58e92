"""Who is calling: an API key, an end user's token, or, on loopback alone, nobody in particular."""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import ipaddress
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import anyio.to_thread
from starlette.types import Scope

from ..rules.attribution import NOBODY, SESSION_HEADER, USER_HEADER, Attribution, from_body, from_headers
from ..rules.errors import ConfigError
from .byok import PAID_TAG, PLATFORM
from .keys import KEY_TAG, Key, KeyStore, SigningKey, id_in, key_budgets
from .live import Live
from .origins import Origins
from .problems import Problem
from .remembering import SECONDS, Remembered
from .settings import PROJECT_TAG, TIER_TAG, GatewaySettings
from .tokens import SCOPES, Claims, InvalidToken, Tokens

_LOCAL = re.compile(r"(localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::\d+)?\Z")

log = logging.getLogger("behest")

R = TypeVar("R", Key, SigningKey)
Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Caller:
    """Whom a request comes from, and for whom it may speak.

    Attributes:
        key: the id of the API key, or of the one that minted the token.
        user, session: bound by a token: headers that say otherwise are refused.
        any_user: whether headers may name any end user.
        any_session: whether they may name any session.
        admin: whether it may see what others of its project have spent.
        models: patterns of what it may call; None: anything.
        line: by which its key's own budgets find its calls, and reports what was spent with it.
        project_line: by which its project's budgets find its calls, if it has any.
        own_tier: whether its tier is its own, and not that of all who have none.
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
    any_session: bool = True
    models: tuple[str, ...] | None = None
    line: str | None = None
    project_line: str | None = None
    own_tier: bool = True

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
            session_id=_bound(self.session, said.session_id, "X-Session-Id", self.any_session),
            user_id=_bound(self.user, said.user_id, "X-End-User-Id", self.any_user),
            project=self.project,
            tenant=self.tenant,
            tags={"trace": trace, **self.tags},
        )

    def named(self, body: Mapping[str, Any]) -> Attribution:
        """Whom a request's body says it is for, as far as the caller may speak for them."""
        said = from_body(body)
        if said is NOBODY or (self.any_user and self.any_session):
            return said
        return Attribution(
            session_id=said.session_id if self.any_session else None,
            user_id=said.user_id if self.any_user else None,
        )

    @property
    def tags(self) -> dict[str, str]:
        """By which the budgets of its tier, of its key, and of who pays, find it."""
        found = {PAID_TAG: PLATFORM}
        if self.tier:
            found[TIER_TAG] = self.tier
        if self.line is not None:
            found[KEY_TAG] = self.line
        if self.project_line is not None:
            found[PROJECT_TAG] = self.project_line
        return found

    def may(self, model: str) -> bool:
        """Whether the caller's key is for that model."""
        return self.models is None or any(fnmatch.fnmatchcase(model, p) for p in self.models)

    def may_call(self, model: str) -> None:
        """Raises a 403 if the caller's key is not for that model."""
        if self.models is not None and not self.may(model):
            message = f"This key may not call {model!r}; it is for {', '.join(self.models)}."
            raise Problem(403, message, code="model_not_allowed", param="model", retry=False)


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


_KEY_HEADERS = (b"api-key", b"x-api-key")
"""Where Azure's and Anthropic's clients put the key."""


class Gate:
    """Lets callers in.

    Args:
        keys: None: there are none, because the store keeps none.
        live: what the settings are.
        keyless: let in who comes without a key.
    """

    def __init__(
        self,
        live: Live,
        keys: KeyStore | None,
        tokens: Tokens,
        origins: Origins,
        *,
        keyless: bool = False,
    ) -> None:
        self._live = live
        self._keys = keys
        self._tokens = tokens
        self._origins = origins
        self._keyless = keyless
        self._revision: int | None = None
        self._known: Remembered[Key] = Remembered()
        self._by_id: Remembered[Key] = Remembered()
        self._signing: Remembered[SigningKey] = Remembered()
        self._read: Remembered[Claims] = Remembered()
        self._forgetting = [live.forget, self._known.clear, self._by_id.clear, self._signing.clear]
        # Secrets are not kept as they came, and a hash that an attacker can predict is not used.
        self._salt = secrets.token_bytes(16)

    async def admit(self, scope: Scope) -> Caller:
        """The caller of a request; it is noted in the request's state, too.

        Raises:
            Problem: 401, it is nobody that is known here; 403, its tier is not, or not from there.
        """
        headers: Headers = scope["headers"]
        text = _credential(headers)
        await self.look()
        caller = None
        if text is not None and text.isascii():
            if id_in(text) is not None:
                caller = _of_key(_from_there(await self._key(text), scope))
            elif text.count(".") == 2:
                caller = await self._token(text)
        if caller is None:
            if not self._keyless:
                raise _unknown("No API key" if text is None else "Not an API key or token")
            host = next((value.decode("latin-1") for name, value in headers if name == b"host"), "")
            if not _LOCAL.match(host):
                # A page on the web can make a browser ask here, under a name of its own.
                raise Problem(403, "Without keys the gateway answers to 'localhost' alone.")
            caller = Caller(any_user=True, admin=True)
        caller = self._in_project(caller)
        scope["state"]["caller"] = caller
        if self._origins.any:
            self._check_origin(caller, headers)
        return caller

    async def administrator(self, scope: Scope) -> Key:
        """The admin key of a request.

        Raises:
            Problem: 401, it is nobody that is known here; 403, it is no admin key.
        """
        text = _credential(scope["headers"])
        await self.look()
        if text is None or not text.isascii() or id_in(text) is None:
            if text is not None and text.count(".") == 2:
                await self._token(text)
                raise _no_admin()
            raise _unknown("No API key" if text is None else "Not an API key")
        key = _from_there(await self._key(text), scope)
        if key.role != "admin":
            raise _no_admin()
        return key

    def _check_origin(self, caller: Caller, headers: Headers) -> None:
        """Raises a 403 for a page that may not call for the caller's project."""
        said = dict(headers)
        origin, host = (said.get(name, b"").decode("latin-1") for name in (b"origin", b"host"))
        if origin and not self._origins.admits(origin, host, caller.tenant, caller.project):
            message = f"Pages of {origin!r} may not call for this project."
            raise Problem(403, message, code="origin_not_allowed", retry=False)

    @property
    def settings(self) -> GatewaySettings:
        """Those that hold now."""
        return self._live.settings

    async def look(self) -> None:
        """Forget what was remembered, if anything has changed since; then the settings are those of now.

        Raises:
            Problem: what was changed of them cannot be used here.
            StoreError: it cannot be told.
        """
        if self._keys is None:
            return
        revision = self._keys.revision()
        if revision != self._revision:
            self._revision = revision
            for forget in self._forgetting:
                forget()
        if self._live.stale:
            try:
                await self._live.load()
            except ConfigError as error:
                log.error("What was changed of the settings cannot be used with this file: %s", error)
                raise Problem(503, "The gateway's settings cannot be used; its log says why.") from None

    def _in_project(self, caller: Caller) -> Caller:
        """The caller, with what the settings say of its project.

        Raises:
            Problem: 403, the project is paused, or the caller's tier is not known any more.
        """
        settings = self._live.settings
        name = settings.project_named(caller.tenant, caller.project)
        tier, line = caller.tier, None
        if name is not None:
            project = settings.projects[name]
            if project.paused:
                raise Problem(403, f"The project {name!r} is paused.", code="project_paused", retry=False)
            tier, line = tier or project.default_tier, name if project.budgets else None
        tier = tier or settings.default_tier
        if tier is not None and tier not in settings.tier_texts:
            # What it would be held to is not known.
            raise Problem(403, f"The tier {tier!r} of this key is not known here.", retry=False)
        if tier == caller.tier and line is None:
            return caller
        return replace(caller, tier=tier, project_line=line, own_tier=caller.tier is not None)

    def on_change(self, forget: Callable[[], None]) -> None:
        """Call this, too, when something that is remembered of the store has changed there."""
        self._forgetting.append(forget)

    def _name(self, text: str) -> str:
        return hashlib.blake2b(text.encode(), key=self._salt, digest_size=16).hexdigest()

    async def _key(self, text: str) -> Key:
        name = self._name(text)
        find = functools.partial(self._keys.find, text) if self._keys is not None else None
        key = await self._remembered(self._known, name, find)
        if key is None:
            raise _unknown("Not a key that is known here, or one that has ended")
        return key

    async def _remembered(
        self, where: Remembered[R], name: str, find: Callable[[], R | None] | None
    ) -> R | None:
        """What the store says of a key, which is not asked again for a while."""
        now = time.time()
        found = where.get(name, now)
        if found is None and find is not None:
            revision = self._revision
            found = await anyio.to_thread.run_sync(find)
            if isinstance(found, Key) and found.budgets:
                await anyio.to_thread.run_sync(self._live.hold_to, key_budgets(found))
            if found is not None and revision == self._revision:
                where.put(name, found, now + SECONDS)
        if isinstance(found, Key) and not found.lives(int(now * 1000)):
            return None
        return found

    async def _token(self, text: str) -> Caller:
        name, now = self._name(text), time.time()
        claims = self._read.get(name, now)
        try:
            if claims is None:
                kid = self._tokens.stranger(text)
                signed = await self._signer(kid) if kid is not None else None
                claims, expires = self._tokens.read(text, signed)
                self._read.put(name, claims, expires)
            elif claims.kid is not None and await self._signer(claims.kid) is None:
                raise InvalidToken("the key that signed it was revoked")
        except InvalidToken as error:
            raise _unknown(f"The token is not valid: {error}") from None
        try:
            tier = self._live.settings.tier_named(claims.tier)
        except ConfigError as error:
            raise Problem(403, str(error)) from None
        caller = Caller(
            tenant=claims.tenant,
            project=claims.project,
            user=claims.user,
            session=claims.session,
            tier=tier,
            scopes=claims.scopes,
            admin=claims.role == "admin",
            # Behest's second client signs no session, and says it by a header.
            any_session=claims.session is None,
        )
        if claims.key is None:
            return caller
        find = functools.partial(self._keys.by_id, claims.key) if self._keys is not None else None
        key = await self._remembered(self._by_id, claims.key, find)
        if key is None:
            raise _unknown("The key that minted this token has ended")
        return replace(caller, key=key.id, models=key.models, line=_line(key))

    async def _signer(self, kid: str) -> SigningKey | None:
        find = functools.partial(self._keys.signing, kid) if self._keys is not None else None
        return await self._remembered(self._signing, kid, find)


def _credential(headers: Headers) -> str | None:
    """The key or token that a request has.

    Raises:
        Problem: it has two.
    """
    found: list[str] = []
    for name, value in headers:
        if name == b"authorization":
            scheme, _, text = value.decode("latin-1").partition(" ")
            # Another scheme is an attempt all the same.
            found.append(text.strip() if scheme.lower() == "bearer" else "")
        elif name in _KEY_HEADERS:
            found.append(value.decode("latin-1").strip())
    if len(found) > 1 and len(set(found)) > 1:
        raise _unknown("Two keys are given that are not the same")
    return found[0] if found else None


def _from_there(key: Key, scope: Scope) -> Key:
    """The key, if it may be used from where the request comes from."""
    if key.addresses is not None:
        client = scope.get("client")
        try:
            address = ipaddress.ip_address(client[0]) if client else None
        except ValueError:
            address = None
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if address is None or not any(address in network for network in _networks(key.addresses)):
            raise Problem(403, f"This key may not be used from {address or 'an unknown address'}.")
    return key


@functools.lru_cache(maxsize=1000)
def _networks(texts: tuple[str, ...]) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(map(ipaddress.ip_network, texts))


def _line(key: Key) -> str:
    return key.line or key.id


def _of_key(key: Key) -> Caller:
    if key.role == "admin":
        raise Problem(403, "This key administers (/admin/v1), and calls nothing: use one of a project.")
    return Caller(
        tenant=key.tenant,
        project=key.project,
        tier=key.tier,
        key=key.id,
        any_user=key.end_users,
        admin=True,
        may_mint=key.end_users,
        models=key.models,
        line=_line(key),
    )


def _no_admin() -> Problem:
    return Problem(403, "That is for an admin key: 'behest keys create-admin' makes one.", retry=False)


def _unknown(why: str) -> Problem:
    message = (
        f"{why}. Send 'Authorization: Bearer KEY': a key of 'behest keys create', or a token minted with it."
    )
    return Problem(401, message, retry=False, headers={"WWW-Authenticate": "Bearer"})
