"""What every answer has, and what is answered before anything is looked up."""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence

from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..rules.errors import StoreError
from . import logs
from .callers import Caller
from .origins import Headers, Origins
from .problems import Problem, problem_of
from .relay import SlowClient

log = logging.getLogger("behest")

_LONGEST_ORIGIN = 512


class Envelope:
    """Around the application: traces, browsers' questions, slashes, and errors that nobody had foreseen."""

    def __init__(
        self,
        app: ASGIApp,
        origins: Origins,
        routes: Sequence[BaseRoute],
        look: Callable[[], Awaitable[None]],
    ) -> None:
        self._app = app
        self._look = look
        self._origins = origins
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = os.urandom(16).hex()
        state = scope.setdefault("state", {})
        state["trace"] = trace
        given = {name: value for name, value in scope["headers"] if name in _READ}
        # Longer than any can be: it is no origin that is let in.
        origin = given.get(b"origin", b"")[:_LONGEST_ORIGIN].decode("latin-1")
        ours = [
            (b"x-trace-id", trace.encode()),
            (b"x-request-id", trace.encode()),
            (b"x-content-type-options", b"nosniff"),
        ]
        started = False
        begun, status, sent = time.monotonic(), 0, 0

        async def with_trace(message: Message) -> None:
            nonlocal started, status, sent
            sent += len(message.get("body", b""))
            if message["type"] == "http.response.start":
                started = True
                status = message["status"]
                headers = [*message.get("headers", ()), *ours]
                caller: Caller | None = state.get("caller")
                if caller is not None and caller.tier:
                    headers.append((b"x-tier", caller.tier.encode()))
                if origin and not state.get("preflight"):
                    known = None if caller is None else self._origins.of(caller.tenant, caller.project)
                    headers += self._origins.told(origin, known)
                message["headers"] = headers
            await send(message)

        # A redirection would be to a scheme and a name that a proxy may have hidden.
        if len(scope["path"]) > 1 and scope["path"].endswith("/"):
            scope["path"] = scope["path"].rstrip("/") or "/"
        try:
            if scope["method"] == "OPTIONS":
                await self._look()  # nobody is let in who would
                await self._options(scope, origin, given)(scope, receive, with_trace)
            else:
                await self._app(scope, receive, with_trace)
        except SlowClient as error:
            # The server closes the connection of an answer that is not complete.
            log.info("trace %s: %s", trace, error, extra={"trace": trace})
        except StoreError as error:  # of a browser's question: all others are answered within
            await problem_of(error).response()(scope, receive, with_trace)
        except Exception as error:
            # The place, and never the text, which may quote a prompt.
            where = "".join(traceback.format_tb(error.__traceback__))
            log.error("trace %s: %s\n%s", trace, type(error).__name__, where, extra={"trace": trace})
            if started:
                return
            await Problem(500, "The gateway failed; its log says how.", retry=False).response()(
                scope, receive, with_trace
            )
        finally:
            if logs.REQUESTS.isEnabledFor(logging.INFO):
                there = self._there(scope)
                logs.answered(
                    trace=trace,
                    method=scope["method"],
                    path=there[0].path if there else "(none)",
                    status=status,
                    seconds=time.monotonic() - begun,
                    sent=sent,
                    caller=state.get("caller"),
                )

    def _options(self, scope: Scope, origin: str, given: dict[bytes, bytes]) -> Response:
        there = self._there(scope)
        # The first place that matches is the one that answers; the same place may have two routes.
        methods = sorted({"OPTIONS"}.union(*(_methods(r) for r in there if r.path == there[0].path)))
        if len(methods) == 1:
            return Problem(404, "There is nothing here.").response()
        allowed = ", ".join(methods)
        answer = Response(status_code=204, headers={"Allow": allowed})
        if origin and b"access-control-request-method" in given:
            scope["state"]["preflight"] = True
            asked = given.get(b"access-control-request-headers", b"")
            told: Headers | None = self._origins.preflight(origin, asked, allowed)
            if told is None:
                message = (
                    f"Pages of {origin!r} may not call here. Whoever runs the gateway can let them, in "
                    "behest.toml: [gateway.projects.NAME], origins = [...]."
                )
                return Problem(403, message, code="origin_not_allowed", retry=False).response()
            answer.raw_headers += told
        return answer

    def _there(self, scope: Scope) -> list[Route]:
        found = (route for route in self._routes if route.matches(scope)[0] is not Match.NONE)
        return [route for route in found if isinstance(route, Route)]


def _methods(route: Route) -> set[str]:
    return set(route.methods or {"GET"})


_READ = (b"origin", b"access-control-request-method", b"access-control-request-headers")
