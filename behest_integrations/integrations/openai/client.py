"""A client of a subclass of the caller's own class, whose every billable call is metered.

It stays an `OpenAI` (or Azure, or a subclass) for `isinstance` and for editors, and `copy()` and
`with_options()` build clients that are metered too.

Where it hooks in, and why (read with openai 2.45, 2.54 and 3.54): `request` is passed by every API
of the SDK, raw and streamed variants included. The SDK retries inside it, and each retry may be a
bill of its own, so each attempt gets its own hold: it is reserved in `_prepare_options`, which runs
before every attempt and outside the SDK's own error handling (a refusal is neither wrapped nor
retried), and its outcome is read in `_send_request`.
"""

from __future__ import annotations

import functools
import re
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from ...calls.exchange import Exchange
from ...engine.holds import Hold
from ...engine.per_engine import PerEngine
from ...engine.steps import Steps
from ...rules.attribution import from_headers
from ...rules.errors import ConfigError, need
from ...wire import operation_of
from ..kit import stainless
from ..kit.metered import metered_class
from ..kit.response import watch_response
from ..kit.sockets import count
from ..kit.stainless import DOING, Call, Free, Screened, asend_reserved, free_of, send_reserved, server_of
from ..kit.terms import Terms
from ..kit.undo import Undo
from .websockets import is_opening, methods

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

    C = TypeVar("C", bound=OpenAI | AsyncOpenAI)

_RESPONSE_PATH = re.compile(r"/responses/([^/]+)(?:/cancel)?$")
_operation_of = functools.lru_cache(maxsize=512)(operation_of)

PENDING: PerEngine[dict[str, tuple[Exchange, Hold]]] = PerEngine(lambda engine: {})
"""Background responses that this process has started, by id. Those of other processes
end by their lease; what is looked at here is settled when it is known."""


class _Call(Call):
    """A request of this SDK."""

    def keep(self, exchange: Exchange, hold: Hold) -> bool:
        PENDING.of(self.terms.engine)[str(exchange.reply.id)] = (exchange, hold)
        return True


class _Follow:
    """A look at a background response: when it has ended, so has its hold."""

    def __init__(self, client: Any, exchange: Exchange, hold: Hold) -> None:
        self.client = client
        self.exchange = exchange
        self.hold = hold

    def take(self) -> Hold | None:
        return None  # it stays open until the response has ended

    def again(self, request: Any, response: Any) -> Any:
        return None

    def answered(self, response: Any, *, streamed: bool) -> Steps[None] | None:
        if not 200 <= response.status_code < 300:
            return None
        if streamed and not response.is_stream_consumed:
            asynchronous = self.client._asynchronous
            watch_response(response, self.exchange, self.hold, asynchronous=asynchronous, only_whole=True)
            return None
        content = response.content
        shown = self.exchange.read_body(content)
        if shown is not content:
            response._content = shown
        if self.exchange.reply.usage is None:
            return None
        return self.hold.keeper.ending(self.hold, self.exchange.complete())


_doing: ContextVar[_Call | _Follow | Free | None] = ContextVar("behest_openai_call", default=None)
"""What the SDK is doing in this context; None outside of its requests."""
DOING.append(_doing)


_PREPARED = (_Call, Screened)


class Metered(stainless.Metered):
    """What is the same for blocking and asynchronous clients."""

    _behest_doing = _doing

    def _begin(self, options: Any) -> _Call | _Follow | Free:
        terms = self._behest
        operation = _operation_of(options.method, options.url)
        if operation is not None:
            return _Call(terms, operation, self, asynchronous=self._asynchronous)
        pending = PENDING.of(terms.engine)
        match = _RESPONSE_PATH.search(options.url) if pending else None
        if match and match.group(1) in pending:
            return _Follow(self, *pending[match.group(1)])
        return free_of(terms, self, options)

    @property
    def auth_headers(self) -> Any:
        if _doing.get() is None and is_opening(self):
            count(self._behest.engine, _websocket(self))
        return super().auth_headers  # type: ignore[misc]


def _websocket(client: Any) -> Exchange:
    return Exchange(
        client._behest.engine,
        "realtime",
        {},
        fallback=from_headers(client._custom_headers),
        provider=server_of(client)[1],
    )


class _MeteredSync(Metered, stainless.MeteredSync):
    def _prepare_options(self, options: Any) -> Any:
        call = _doing.get()
        options = super()._prepare_options(options)  # type: ignore[misc]
        return self._behest.engine.run(call.prepared(options)) if isinstance(call, _PREPARED) else options

    def _send_request(self, request: Any, *, stream: bool, **kwargs: Any) -> Any:
        call = _doing.get()
        send = super()._send_request  # type: ignore[misc]
        if call is None or isinstance(call, Free):
            return send(request, stream=stream, **kwargs)
        return send_reserved(self._behest.engine, call, send, request, stream=stream, **kwargs)


class _MeteredAsync(Metered, stainless.MeteredAsync):
    async def _prepare_options(self, options: Any) -> Any:
        call = _doing.get()
        options = await super()._prepare_options(options)  # type: ignore[misc]
        return (
            await self._behest.engine.arun(call.prepared(options)) if isinstance(call, _PREPARED) else options
        )

    async def _send_request(self, request: Any, *, stream: bool, **kwargs: Any) -> Any:
        call = _doing.get()
        send = super()._send_request  # type: ignore[misc]
        if call is None or isinstance(call, Free):
            return await send(request, stream=stream, **kwargs)
        return await asend_reserved(self._behest.engine, call, send, request, stream=stream, **kwargs)


# ── the client ─────────────────────────────────────────────────────────────────────────


def meter_client(terms: Terms, client: C) -> C:
    """See `OpenAIDoor.openai`."""
    with need("The OpenAI client", "openai"):
        from openai import AsyncOpenAI, OpenAI
    if not isinstance(client, (OpenAI, AsyncOpenAI)):
        raise ConfigError(
            f"meter.openai() takes an OpenAI or AsyncOpenAI client (or Azure's), not {type(client).__name__}"
        )
    base = type(client)
    if issubclass(base, Metered):
        raise ConfigError("this client is metered already")
    metered: Any = object.__new__(class_of(base, terms))
    for name, value in vars(client).items():
        # Resources that the client has made already (client.chat) call back into it.
        if getattr(value, "_client", None) is not client:
            metered.__dict__[name] = value
    return metered  # type: ignore[no-any-return]


def class_of(base: type, terms: Terms) -> Any:
    """The metered subclass of a client's class."""
    from openai import OpenAI

    asynchronous = not issubclass(base, OpenAI)
    mixin = _MeteredAsync if asynchronous else _MeteredSync
    return metered_class(terms, base, mixin, lambda: methods(base, _websocket, asynchronous=asynchronous))


_making = stainless.Making(Metered, class_of)


def meter_what_is_made(terms: Terms) -> Undo:
    """See `OpenAIDoor.instrument_openai`."""
    with need("The OpenAI client", "openai"):
        from openai import AsyncOpenAI, OpenAI
    return _making.begin(terms, (OpenAI, AsyncOpenAI))
