"""The ASGI application: routes, and what every answer has."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from .. import __version__
from ..ledger.book import Rows
from ..meter import Meter
from ..rules.errors import BehestError, ConfigError, StoreError
from . import dashboard, openapi
from .accounts import Accounts
from .admin import Admin
from .admin_settings import AdminChanges
from .byok import Payers
from .callers import Gate
from .envelope import Envelope
from .keys import KeyStore
from .live import Live
from .messages import MessagesRelay
from .metrics import Metrics
from .origins import Origins
from .problems import JSON, Problem, problem_of
from .providers import COUNT_TOKENS, PATHS, Routes
from .relay import Relay
from .settings import GatewaySettings
from .threads import Threads
from .tokens import Tokens

log = logging.getLogger("behest")

_READY_SECONDS = 2.0
_READY_AGAIN = 1.0
"""Seconds for which it is believed that the ledger can be written: anybody may ask, and often."""


def create_app(
    meter: Meter, settings: GatewaySettings, *, keyless: bool = False, seal: str | None = None
) -> Starlette:
    """The gateway over `meter`, to be served by an ASGI server.

    Args:
        meter: with the budgets of `settings.tier_budgets()` among its own; `gateway_meter` makes one.
            It is closed with the application.
        keyless: let anybody in who asks by the name of this machine's loopback.
        seal: seals what browsers keep who have signed in at the dashboard, the same for all workers;
            see `dashboard.new_seal`. Default: another for each application.

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
    stored = meter.ledger.keys() if keys is not None else None
    live = Live(meter, settings, stored)
    origins = Origins(settings)
    live.on_change(origins.use)
    gate = Gate(live, keys, tokens, origins, keyless=keyless)
    routes, metrics = Routes(settings), Metrics(meter)
    if settings.metrics:
        meter.count_calls(metrics.ended)
        meter.watch_store(metrics.store)
    payers = Payers(stored, settings.byok)
    gate.on_change(payers.forget)
    relay = Relay(meter, gate, routes, settings.limits, metrics, payers)
    messages = MessagesRelay(relay)
    accounts = Accounts(meter, gate, routes, tokens, settings, relay.bodies)
    threads = Threads(meter, accounts)
    admin = Admin(meter.ledger, gate, settings, relay.bodies)
    changes = AdminChanges(admin, meter, live)
    state = _State(meter, metrics if settings.metrics else None)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            state.ending = True
            await anyio.to_thread.run_sync(meter.drains.wait, settings.limits.shutdown_timeout)
            await routes.close()
            try:
                # Calls that were cut off have posted how they ended; this writes it.
                await anyio.to_thread.run_sync(meter.close)
            except BehestError as error:
                log.error("The ledger was not closed in order: %s", error)

    routes_ = [
        Route("/", state.index),
        *(Route(f"/v1{path}", _Door(relay, name), methods=["POST"]) for name, path in PATHS.items()),
        Route("/v1/messages", _Door(messages, "messages"), methods=["POST"]),
        Route("/v1/messages/count_tokens", _Door(messages, COUNT_TOKENS), methods=["POST"]),
        Route("/v1/models", accounts.models),
        Route("/v1/models/{id:path}", accounts.model),
        Route("/v1/threads", threads.all),
        Route("/v1/threads/{id:path}/messages", threads.messages),
        Route("/v1/threads/{id:path}", threads.one),
        Route("/v1/threads/{id:path}", threads.forget, methods=["DELETE"]),
        Route("/v1/usage", accounts.usage),
        Route("/v1/billing/usage", accounts.billing),
        Route("/v1/auth/mint", accounts.mint, methods=["POST"]),
        Route("/admin/v1/keys", admin.keys),
        Route("/admin/v1/keys", admin.create, methods=["POST"]),
        Route("/admin/v1/keys/{id}", admin.revoke, methods=["DELETE"]),
        Route("/admin/v1/keys/{id}/rotate", admin.rotate, methods=["POST"]),
        Route("/admin/v1/keys/{id}/expire", admin.expire, methods=["POST"]),
        Route("/admin/v1/byok", admin.own_keys),
        Route("/admin/v1/byok", admin.set_own_key, methods=["POST"]),
        Route("/admin/v1/byok/{id}", admin.remove_own_key, methods=["DELETE"]),
        *changes.routes(),
        Route("/.well-known/jwks.json", accounts.published),
        Route("/healthz", state.health),
        Route("/readyz", state.ready),
        Route("/metrics", state.metrics),
        *openapi.routes(),
        *(dashboard.routes(meter, gate, keys, seal) if settings.dashboard else ()),
    ]
    proxies = settings.trusted_proxies
    app = Starlette(
        routes=routes_,
        middleware=[
            *([Middleware(ProxyHeadersMiddleware, trusted_hosts=proxies)] if proxies else ()),
            Middleware(Envelope, origins=origins, routes=routes_, look=gate.look),
        ],
        exception_handlers={HTTPException: _http_error, Problem: _problem, BehestError: _engine_error},  # type: ignore[dict-item]
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def gateway_meter(arguments: Mapping[str, Any], settings: GatewaySettings) -> Meter:
    """A meter as `Config.arguments()` says, with the tiers' budgets among its own.

    Raises:
        ConfigError: something cannot be used as given.
    """
    budgets = [*arguments.get("budgets", ()), *settings.tier_budgets(), *settings.project_budgets()]
    return Meter(**{**arguments, "budgets": budgets})


class _State:
    """How the gateway itself does."""

    def __init__(self, meter: Meter, metrics: Metrics | None) -> None:
        self._meter = meter
        self._metrics = metrics
        self._written = -_READY_AGAIN
        self.ending = False

    async def index(self, request: Request) -> Response:
        """Where things are."""
        return JSON(
            {
                "name": "Behest gateway",
                "version": __version__,
                "base_url": "/v1",
                "docs": "/docs",
                "openapi": "/openapi.json",
                "health": "/healthz",
                "ready": "/readyz",
                "keys": "/.well-known/jwks.json",
            }
        )

    async def health(self, request: Request) -> Response:
        return JSON({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Whether the ledger can be written, which every call needs."""
        if self.ending:
            raise Problem(503, "The gateway is shutting down.", retry=True)
        now = time.monotonic()
        if now < self._written + _READY_AGAIN:
            return JSON({"status": "ready"})
        with anyio.move_on_after(_READY_SECONDS) as waited:
            await self._meter.ledger.asubmit(_write)
            self._written = now
        if waited.cancelled_caught:
            raise Problem(503, "The ledger does not answer.", code="store_unavailable", retry=True)
        return JSON({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        if self._metrics is None:
            raise Problem(404, "Metrics are turned off here.")
        return Response(self._metrics.text(), media_type=self._metrics.content_type)


def _write(rows: Rows) -> None:
    """Write, and leave nothing: a disk that is full can still be read."""
    rows.set_override("readiness", 0)
    rows.drop_override("readiness")


class _Door:
    """One operation of the relay. An endpoint that is no function is given the bare `receive` and `send`."""

    def __init__(self, relay: Relay, operation: str) -> None:
        self._relay = relay
        self._operation = operation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._relay.serve(self._operation, scope, receive, send)


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
