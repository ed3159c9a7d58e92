"""The ASGI application: routes, and what every answer has."""

from __future__ import annotations

import contextlib
import logging
import os
import traceback
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..meter import Meter
from ..rules.budgets import Budget
from ..rules.errors import BehestError, ConfigError, StoreError
from . import openapi
from .accounts import Accounts
from .callers import Caller, Gate
from .keys import KeyStore
from .metrics import Metrics
from .problems import JSON, Problem, problem_of
from .providers import PATHS, Routes
from .relay import Relay, SlowClient
from .settings import GatewaySettings
from .tokens import Tokens

log = logging.getLogger("behest")

_READY_SECONDS = 2.0


def create_app(meter: Meter, settings: GatewaySettings, *, keyless: bool = False) -> Starlette:
    """The gateway over `meter`, to be served by an ASGI server.

    Args:
        meter: with the budgets of `settings.tier_budgets()` among its own; `gateway_meter` makes one.
            It is closed with the application.
        keyless: let anybody in who asks by the name of this machine's loopback.

    Raises:
        ConfigError: a provider's key is not set, or the store cannot keep keys.
    """
    keys = None
    try:
        keys = KeyStore(meter.ledger)
    except ConfigError:
        if not keyless:
            raise
    tokens = Tokens(settings.tokens)
    gate = Gate(settings, keys, tokens, keyless=keyless, budgets=partial(_add_budgets, meter))
    routes, metrics = Routes(settings), Metrics(meter)
    relay = Relay(meter, gate, routes, settings.limits, metrics)
    accounts = Accounts(meter, gate, routes, tokens, settings, relay.bodies)
    state = _State(meter, metrics if settings.metrics else None)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            state.ending = True
            await anyio.to_thread.run_sync(meter.drains.wait, settings.limits.shutdown_timeout)
            await routes.close()
            # Calls that were cut off have posted how they ended; this writes it.
            await anyio.to_thread.run_sync(meter.close)

    middleware = [Middleware(_Envelope)]
    if settings.cors_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type", "X-End-User-Id", "X-Session-Id"],
                expose_headers=[
                    "X-Trace-Id",
                    "X-Budget",
                    "X-Budget-Limit",
                    "X-Budget-Left",
                    "X-Budget-Reset",
                ],
            )
        )
    return Starlette(
        routes=[
            *(Route(f"/v1{path}", _Door(relay, name), methods=["POST"]) for name, path in PATHS.items()),
            Route("/v1/models", accounts.models),
            Route("/v1/models/{id:path}", accounts.model),
            Route("/v1/usage", accounts.usage),
            Route("/v1/billing/usage", accounts.billing),
            Route("/v1/auth/mint", accounts.mint, methods=["POST"]),
            Route("/.well-known/jwks.json", accounts.published),
            Route("/healthz", state.health),
            Route("/readyz", state.ready),
            Route("/metrics", state.metrics),
            *openapi.routes(),
        ],
        middleware=middleware,
        exception_handlers={HTTPException: _http_error, Problem: _problem, BehestError: _engine_error},  # type: ignore[dict-item]
        lifespan=lifespan,
    )


def gateway_meter(arguments: Mapping[str, Any], settings: GatewaySettings) -> Meter:
    """A meter as `Config.arguments()` says, with the tiers' budgets among its own.

    Raises:
        ConfigError: something cannot be used as given.
    """
    return Meter(**{**arguments, "budgets": [*arguments.get("budgets", ()), *settings.tier_budgets()]})


def _add_budgets(meter: Meter, budgets: list[Budget]) -> None:
    """What a key's calls are held to besides, from its first one on."""
    known = {budget.shape for budget in meter.planner.budgets}
    for budget in budgets:
        if budget.shape not in known:
            meter.add_budget(budget)


class _State:
    """How the gateway itself does."""

    def __init__(self, meter: Meter, metrics: Metrics | None) -> None:
        self._meter = meter
        self._metrics = metrics
        self.ending = False

    async def health(self, request: Request) -> Response:
        return JSON({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Whether the ledger can be written, which every call needs."""
        if self.ending:
            raise Problem(503, "The gateway is shutting down.", retry=True)
        with anyio.move_on_after(_READY_SECONDS) as waited:
            await self._meter.ledger.asubmit(lambda rows: None)
        if waited.cancelled_caught:
            raise Problem(503, "The ledger does not answer.", code="store_unavailable", retry=True)
        return JSON({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        if self._metrics is None:
            raise Problem(404, "Metrics are turned off here.")
        return Response(self._metrics.text(), media_type=self._metrics.content_type)


class _Door:
    """One operation of the relay. An endpoint that is no function is given the bare `receive` and `send`."""

    def __init__(self, relay: Relay, operation: str) -> None:
        self._relay = relay
        self._operation = operation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._relay.serve(self._operation, scope, receive, send)


class _Envelope:
    """What every answer has, and an answer where something went wrong that nobody had foreseen."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = os.urandom(16).hex()
        scope.setdefault("state", {})["trace"] = trace
        ours = [
            (b"x-trace-id", trace.encode()),
            (b"x-request-id", trace.encode()),
            (b"x-content-type-options", b"nosniff"),
        ]
        started = False

        async def with_trace(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                caller: Caller | None = scope["state"].get("caller")
                tier = [(b"x-tier", caller.tier.encode())] if caller is not None and caller.tier else []
                message["headers"] = [*message.get("headers", ()), *ours, *tier]
            await send(message)

        try:
            await self._app(scope, receive, with_trace)
        except SlowClient as error:
            # The server closes the connection of an answer that is not complete.
            log.info("trace %s: %s", trace, error)
        except Exception as error:
            # The place, and never the text, which may quote a prompt.
            where = "".join(traceback.format_tb(error.__traceback__))
            log.error("trace %s: %s\n%s", trace, type(error).__name__, where)
            if started:
                return
            await Problem(500, "The gateway failed; its log says how.", retry=False).response()(
                scope, receive, with_trace
            )


async def _problem(request: Request, problem: Problem) -> Response:
    return problem.response()


async def _engine_error(request: Request, error: BehestError) -> Response:
    if isinstance(error, StoreError):
        log.error("%s", error)
    return problem_of(error).response()


async def _http_error(request: Request, error: HTTPException) -> Response:
    message = {404: "There is nothing here.", 405: "Not with this method."}.get(
        error.status_code, error.detail
    )
    return Problem(error.status_code, message, headers=dict(error.headers or {})).response()
