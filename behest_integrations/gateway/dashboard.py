"""`/dashboard`: the pages, behind a key or a token. Whoever comes in sees what is theirs, and no more.

A browser sends no `Authorization`: the key is given once, on a page, and comes back in a cookie. It is
sealed there, and unsealed for each page, so that whatever holds for a key holds for who has signed in
with it: its end, the addresses that it may be used from, the scopes of a token.
"""

from __future__ import annotations

from datetime import datetime, timezone

from cryptography.fernet import Fernet, InvalidToken
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute

from ..dashboard import Viewer, dashboard_routes
from ..dashboard.app import BASE, set_cookie
from ..dashboard.look import Books
from ..meter import Meter
from .callers import Caller, Gate
from .keys import Key, KeyStore
from .problems import Problem

_COOKIE = "behest_gateway"
_SECONDS = 12 * 3600
"""After which a browser signs in again."""
_CREDENTIALS = (b"authorization", b"api-key", b"x-api-key")


def routes(meter: Meter, gate: Gate, keys: KeyStore | None, seal: str | None) -> list[BaseRoute]:
    """The pages over the gateway's ledger.

    Args:
        seal: seals what browsers keep, as `new_seal` gives it; the same in all workers. None: another at
            each start.
    """

    def of_projects() -> list[Key]:
        return [key for key in keys.all() if key.role == "project"] if keys is not None else []

    books = Books(
        meter.ledger,
        meter.planner.zone,
        "",
        lambda: datetime.now(timezone.utc),
        of_projects if keys is not None else None,
    )
    return dashboard_routes(books, GatewayEntrance(gate, seal or new_seal()))


def new_seal() -> str:
    """What seals the cookies of one gateway, for as long as it runs."""
    return Fernet.generate_key().decode()


class GatewayEntrance:
    """Whoever the gate lets in."""

    def __init__(self, gate: Gate, seal: str) -> None:
        self._gate = gate
        self._sealed = Fernet(seal)

    async def viewer(self, request: Request) -> Viewer | str:
        given = request.cookies.get(_COOKIE)
        secret = None
        if given is not None:
            try:
                secret = self._sealed.decrypt(given, ttl=_SECONDS).decode()
            except (InvalidToken, ValueError):
                return "You have been signed in for long, or the gateway has started anew: sign in again."
        try:
            caller = await self._admitted(request, secret)
        except Problem as problem:
            asked = given is not None or any(name in _CREDENTIALS for name, _ in request.scope["headers"])
            return str(problem) if asked else ""
        return viewer_of(caller, can_leave=given is not None)

    async def enter(self, request: Request, secret: str) -> Response | str:
        if not secret.isascii() or "\n" in secret or "\r" in secret:
            return "That is no key, and no token."
        try:
            await self._admitted(request, secret)
        except Problem as problem:
            return str(problem).partition(". Send")[0] + "."
        answer = RedirectResponse(BASE, 303)
        sealed = self._sealed.encrypt(secret.encode()).decode()
        set_cookie(answer, _COOKIE, sealed, secure=request.url.scheme == "https", seconds=_SECONDS)
        return answer

    async def leave(self, request: Request) -> Response:
        answer = RedirectResponse(f"{BASE}/sign-in", 303)
        answer.delete_cookie(_COOKIE, path=BASE)
        return answer

    async def _admitted(self, request: Request, secret: str | None) -> Caller:
        """The caller that the gate knows, by `secret` if there is one, else by the request's headers.

        Raises:
            Problem: it lets nobody in.
        """
        scope = request.scope
        if secret is not None:
            headers = [pair for pair in scope["headers"] if pair[0] not in _CREDENTIALS]
            scope = {**scope, "headers": [*headers, (b"authorization", b"Bearer " + secret.encode())]}
        caller = await self._gate.admit(scope)
        caller.require("usage")
        if not caller.admin and caller.user is None:
            raise Problem(403, "This token names no user, so there is nothing that is its own.")
        return caller


def viewer_of(caller: Caller, *, can_leave: bool) -> Viewer:
    """What of the ledger is a caller's to see: their project's, or an end user's own."""
    if caller.admin:
        name = f"{caller.project} of {caller.tenant}" if caller.project else ""
        return Viewer(caller.tenant, caller.project, name=name, can_leave=can_leave)
    return Viewer(caller.tenant, caller.project, caller.user, caller.user or "", can_leave)
