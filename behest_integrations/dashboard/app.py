"""Routes, and what every answer of theirs has. The same pages on this machine and on the gateway."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qs

import anyio
import anyio.to_thread
import jinja2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from .. import __version__
from ..rules.errors import StoreError
from . import draw, pages, words
from .asked import RANGES, BadQuestion
from .look import Books, NotTheirs
from .viewer import Viewer

BASE = "/dashboard"
_FOLDER = Path(__file__).parent
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
_HEADERS = {
    # No inline script or style, no other host, in nobody's frame.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_LOCAL = re.compile(r"(localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::\d+)?\Z")
_COOKIE = "behest_dashboard"
_MOST_SIGN_IN = 16_384
_READERS = 4

T = TypeVar("T")

PAGES: Mapping[str, Callable[..., dict[str, Any]]] = {
    "": pages.overview,
    "/limits": pages.limits,
    "/list": pages.listed,
    "/calls": pages.calls,
    "/session": pages.session,
    "/user": pages.user,
    "/keys": pages.keys,
    "/key": pages.key,
}
_TEMPLATES = {
    pages.overview: "overview.html", pages.limits: "limits.html", pages.listed: "list.html",
    pages.calls: "calls.html", pages.session: "session.html", pages.user: "one.html", pages.keys: "keys.html",
    pages.key: "one.html",
}  # fmt: skip


class Entrance(Protocol):
    """Who may look: the gateway's, or this machine's."""

    async def viewer(self, request: Request) -> Viewer | str:
        """Who looks; or why nobody is let in, as a sentence."""

    async def enter(self, request: Request, secret: str) -> Response | str:
        """Let in whoever has this key or token: an answer that has a cookie; or why not."""

    async def leave(self, request: Request) -> Response:
        """Forget who has looked."""


def dashboard_routes(books: Books, entrance: Entrance) -> list[BaseRoute]:
    """The pages, to be served under `BASE`."""
    site = _Site(books, entrance)
    return [
        *(Route(BASE + path, partial(site.page, make)) for path, make in PAGES.items()),
        Route(BASE + "/", lambda request: RedirectResponse(BASE)),
        Route(BASE + "/plot", site.plot),
        Route(BASE + "/sign-in", site.sign_in, methods=["GET", "POST"]),
        Route(BASE + "/sign-out", site.sign_out, methods=["POST"]),
        Route(BASE + "/static/{name}", site.static),
    ]


def local_dashboard(books: Books, token: str | None) -> Starlette:
    """The dashboard by itself.

    Args:
        token: what a browser must bring; None: nothing, and then it answers by the names of this
            machine's loopback alone.
    """
    routes = dashboard_routes(books, LocalEntrance(token))
    return Starlette(routes=[Route("/", lambda request: RedirectResponse(BASE)), *routes])


class LocalEntrance:
    """`behest dashboard`: whoever sits at this machine, or has the token."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    async def viewer(self, request: Request) -> Viewer | str:
        if self._token is None:
            if not _LOCAL.match(request.headers.get("host", "")):
                # A page on the web can make a browser ask here, under a name of its own.
                return "Without a token the dashboard answers to “localhost” alone."
            return Viewer()
        given = request.cookies.get(_COOKIE, "")
        if not self._is_it(given):
            return "" if not given else "That token is not the one that this dashboard was started with."
        return Viewer(can_leave=True)

    async def enter(self, request: Request, secret: str) -> Response | str:
        if not self._is_it(secret):
            return "That is not the token that “behest dashboard” has shown."
        answer = RedirectResponse(BASE, 303)
        set_cookie(answer, _COOKIE, secret, secure=request.url.scheme == "https")
        return answer

    async def leave(self, request: Request) -> Response:
        answer = RedirectResponse(f"{BASE}/sign-in", 303)
        answer.delete_cookie(_COOKIE, path=BASE)
        return answer

    def _is_it(self, text: str) -> bool:
        return self._token is not None and hmac.compare_digest(text.encode(), self._token.encode())


def set_cookie(answer: Response, name: str, value: str, *, secure: bool, seconds: int | None = None) -> None:
    """A cookie that no script reads and that goes to these pages alone. A link from elsewhere brings it
    along, so that a shared URL opens: nothing here changes anything."""
    answer.set_cookie(name, value, max_age=seconds, path=BASE, httponly=True, samesite="lax", secure=secure)


class _Site:
    def __init__(self, books: Books, entrance: Entrance) -> None:
        self._books = books
        self._entrance = entrance
        self._readers: anyio.CapacityLimiter | None = None
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_FOLDER / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals.update(
            base=BASE, ranges=RANGES, lists=pages.LISTS, words=words, draw=draw, release=__version__,
            stamp=_stamp(),
        )  # fmt: skip
        self._templates.filters.update(
            money=words.money, number=words.number, exact=words.exact, amount=words.amount
        )

    async def _read(self, make: Callable[..., T], *args: Any) -> T:
        """Run what reads the ledger on a thread: on few of them, for on the gateway calls want theirs."""
        if self._readers is None:
            self._readers = anyio.CapacityLimiter(_READERS)
        return await anyio.to_thread.run_sync(make, *args, limiter=self._readers)

    async def page(self, make: Callable[..., dict[str, Any]], request: Request) -> Response:
        async def answer(viewer: Viewer) -> Response:
            version = await self._read(pages.version_of, self._books)
            if request.headers.get("x-seen") == version:
                return Response(status_code=204)
            started = time.perf_counter()
            shown = await self._read(make, self._books, viewer, _params(request))
            return self._page(
                request, _TEMPLATES[make], {**shown, "version": version, "viewer": viewer, "started": started}
            )

        return await self._answered(request, answer)

    async def plot(self, request: Request) -> Response:
        async def answer(viewer: Viewer) -> Response:
            return JSONResponse(await self._read(pages.plot, self._books, viewer, _params(request)))

        return await self._answered(request, answer)

    async def sign_in(self, request: Request) -> Response:
        if request.method == "GET":
            return _guarded(self._sign_in(request, ""))
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return _guarded(self._sign_in(request, "Sign in on this page, not from another."))
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _MOST_SIGN_IN:
                return _guarded(self._sign_in(request, "That is too long for a key or a token."))
        fields = parse_qs(body.decode("latin-1"), encoding="utf-8")
        secret = fields.get("secret", [""])[0].strip()
        answer = await self._entrance.enter(request, secret) if secret else "Give a key or a token."
        return _guarded(self._sign_in(request, answer) if isinstance(answer, str) else answer)

    async def sign_out(self, request: Request) -> Response:
        return _guarded(await self._entrance.leave(request))

    async def static(self, request: Request) -> Response:
        path = _FOLDER / "static" / request.path_params["name"]
        kind = _TYPES.get(path.suffix)
        if kind is None or path.parent != _FOLDER / "static" or not path.is_file():
            return _guarded(PlainTextResponse("There is nothing here.", 404))
        # Its address has a stamp of what is in it.
        headers = {"Cache-Control": "public, max-age=31536000, immutable"}
        return _guarded(Response(path.read_bytes(), media_type=kind, headers=headers), keep=True)

    # ── answers ────────────────────────────────────────────────────────────────────────

    async def _answered(self, request: Request, answer: Callable[[Viewer], Awaitable[Response]]) -> Response:
        viewer = await self._entrance.viewer(request)
        if isinstance(viewer, str):
            refused = self._sign_in(request, viewer)
            refused.status_code = 401
            if "hx-request" in request.headers:
                refused.headers["HX-Refresh"] = "true"
            return _guarded(refused)
        try:
            return _guarded(await answer(viewer))
        except BadQuestion as error:
            return _guarded(self._problem(request, viewer, 400, "That cannot be shown", str(error)))
        except NotTheirs:
            text = "There is nothing of that name here, or it is not yours to see."
            return _guarded(self._problem(request, viewer, 404, "Nothing here", text))
        except StoreError as error:
            text = str(error) if not viewer.is_bounded else "The ledger cannot be read now. Try again soon."
            return _guarded(self._problem(request, viewer, 503, "The ledger cannot be read", text))

    def _page(
        self, request: Request, template: str, values: Mapping[str, Any], status: int = 200
    ) -> Response:
        shown = {
            "books": self._books, "path": request.url.path,
            "url": request.url.path + (f"?{request.url.query}" if request.url.query else ""),
            "has_keys": self._books.api_keys is not None,
            "elapsed": lambda: time.perf_counter() - values.get("started", 0.0),
            **values,
        }  # fmt: skip
        return Response(
            self._templates.get_template(template).render(shown),
            status,
            media_type="text/html",
        )

    def _problem(self, request: Request, viewer: Viewer, status: int, title: str, text: str) -> Response:
        values = {"viewer": viewer, "title": title, "text": text, "look": None, "version": ""}
        return self._page(request, "problem.html", values, status)

    def _sign_in(self, request: Request, why: str) -> Response:
        values = {"viewer": None, "title": "Sign in", "why": why, "look": None, "version": ""}
        return self._page(request, "sign_in.html", values)


def _params(request: Request) -> dict[str, str]:
    return {name: value.strip() for name, value in request.query_params.items()}


def _guarded(answer: Response, *, keep: bool = False) -> Response:
    answer.headers.update(_HEADERS)
    if not keep:
        answer.headers["Cache-Control"] = "no-store"
    return answer


def _stamp() -> str:
    """Changes with what is in the files that browsers keep."""
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted((_FOLDER / "static").iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()
