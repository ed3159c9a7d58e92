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
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from ...calls.exchange import Exchange, unasked
from ...engine.holds import Hold
from ...engine.outcomes import CANCELLED, outcome_of_error, outcome_of_status
from ...engine.per_engine import PerEngine
from ...engine.steps import Steps
from ...prices import provider_for_url
from ...rules.attribution import NOBODY, SESSION_HEADER, USER_HEADER, from_headers
from ...rules.errors import ConfigError, need
from ...wire import operation_of
from ..kit.metered import metered_class
from ..kit.terms import Terms
from .response import watch_response
from .websockets import count, is_opening, methods

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

    C = TypeVar("C", bound=OpenAI | AsyncOpenAI)

_RESPONSE_PATH = re.compile(r"/responses/([^/]+)(?:/cancel)?$")
_operation_of = functools.lru_cache(maxsize=512)(operation_of)

PENDING: PerEngine[dict[str, tuple[Exchange, Hold]]] = PerEngine(lambda engine: {})
"""Background responses that this process has started, by id. Those of other processes
end by their lease; what is looked at here is settled when it is known."""


class _Free:
    """A request that is not billed: nothing is done about it."""

    def take(self) -> Hold | None:
        return None


class _Call:
    """One `request` of the SDK: the attempts it takes, one after the other."""

    def __init__(self, terms: Terms, operation: str, client: Any) -> None:
        self.terms = terms
        self.operation = operation
        self.client = client
        self.exchange: Exchange | None = None
        self._open: Hold | None = None

    def prepared(self, options: Any) -> Steps[Any]:
        """Reserve the attempt that `options` describe; the options to send under its hold."""
        exchange = self.exchange
        if exchange is None:
            client = self.client
            headers = options.headers
            where, provider = _server(client)
            exchange = self.exchange = Exchange(
                self.terms.engine,
                self.operation,
                _body(options),
                who=from_headers(headers) if headers and isinstance(headers, Mapping) else NOBODY,
                fallback=from_headers(client._custom_headers) if client._custom_headers else NOBODY,
                provider=provider,
                where=where,
            )
        hold = self._open = yield from self.terms.engine.reserving(exchange.plan)
        body = exchange.reserved(hold)
        if options.files is None and (options.json_data is not None or options.extra_json is not None):
            options.json_data, options.extra_json = body, None
        return options

    def headers(self, options: Any) -> dict[str, str]:
        """The headers to send that say who the call is for.

        Taken out of `options`: the SDK takes a header's text for ASCII, and ids may be in any
        script, so these are put on the request that it has built, as UTF-8.
        """
        given = options.headers if isinstance(options.headers, Mapping) else {}
        if not given and not self.terms.send_attribution:
            return {}
        names = (SESSION_HEADER, USER_HEADER)
        sent = {n.lower(): v for n, v in given.items() if n.lower() in names and isinstance(v, str)}
        if self.terms.send_attribution and self.exchange is not None:
            who = self.exchange.plan.who
            ids = ((SESSION_HEADER, who.session_id), (USER_HEADER, who.user_id))
            sent.update({name: value for name, value in ids if value is not None})
        if sent and given:
            options.headers = {n: v for n, v in given.items() if n.lower() not in sent}
        return sent

    def take(self) -> Hold | None:
        """The open hold, which the caller will now end."""
        hold, self._open = self._open, None
        return hold

    def again(self, request: Any, response: Any) -> Any:
        """The request to send in the place of one that was refused for what we put in; else None."""
        exchange = self.exchange
        if exchange is None or not exchange.answered(response.status_code):
            return None
        # Of the class that the SDK's HTTP library has: there are two of them.
        headers = [(n, v) for n, v in request.headers.raw if n.lower() != b"content-length"]
        return type(request)(
            request.method,
            request.url,
            headers=headers,
            content=unasked(request.content),
            extensions=request.extensions,
        )

    def answered(self, response: Any, *, streamed: bool) -> Steps[None] | None:
        """The steps that end the attempt; None if its outcome is still to come with the body."""
        exchange, hold = self.exchange, self.take()
        assert exchange is not None
        if hold is None:
            return None
        outcome = outcome_of_status(response.status_code)
        if outcome is None:
            if streamed and not response.is_stream_consumed:
                watch_response(response, exchange, hold, asynchronous=_is_async(self.client))
                return None
            content = response.content
            shown = exchange.read_body(content)
            if shown is not content:
                response._content = shown  # events that something else has read already
            if exchange.pending:
                PENDING.of(self.terms.engine)[str(exchange.reply.id)] = (exchange, hold)
                return None
            outcome = exchange.complete()
        return hold.keeper.ending(hold, outcome)


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
            asynchronous = _is_async(self.client)
            watch_response(response, self.exchange, self.hold, asynchronous=asynchronous, only_whole=True)
            return None
        self.exchange.read_body(response.content)
        if self.exchange.reply.usage is None:
            return None
        return self.hold.keeper.ending(self.hold, self.exchange.complete())


_FREE = _Free()
_doing: ContextVar[_Call | _Follow | _Free | None] = ContextVar("behest_openai_call", default=None)
"""What the SDK is doing in this context; None outside of its requests."""


def _begin(client: Any, options: Any) -> _Call | _Follow | _Free:
    terms: Terms = client._behest
    operation = _operation_of(options.method, options.url)
    if operation is not None:
        return _Call(terms, operation, client)
    pending = PENDING.of(terms.engine)
    match = _RESPONSE_PATH.search(options.url) if pending else None
    if match and match.group(1) in pending:
        return _Follow(client, *pending[match.group(1)])
    return _FREE


def _body(options: Any) -> Mapping[str, Any]:
    body = options.json_data if isinstance(options.json_data, Mapping) else {}
    return {**body, **options.extra_json} if options.extra_json else body


def _server(client: Any) -> tuple[str, str | None]:
    """A client's base URL, and whose prices apply; looked up when the URL changes."""
    url = client.base_url
    known = client.__dict__.get("_behest_server")
    if known is None or known[0] is not url:
        terms: Terms = client._behest
        where = str(url)
        known = (url, (where, terms.provider or provider_for_url(where)))
        client.__dict__["_behest_server"] = known
    return known[1]  # type: ignore[no-any-return]


def _is_async(client: Any) -> bool:
    return isinstance(client, _MeteredAsync)


class Metered:
    """What is the same for blocking and asynchronous clients."""

    _behest: Terms

    def _build_request(self, options: Any, **kwargs: Any) -> Any:
        call = _doing.get()
        headers = call.headers(options) if type(call) is _Call else None
        request = super()._build_request(options, **kwargs)  # type: ignore[misc]
        if headers:
            request.headers.encoding = "utf-8"
            for name, value in headers.items():
                request.headers[name] = value
        return request

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
        provider=_server(client)[1],
    )


class _MeteredSync(Metered):
    def request(self, cast_to: Any, options: Any, **kwargs: Any) -> Any:
        call = _begin(self, options)
        token = _doing.set(call)
        try:
            return super().request(cast_to, options, **kwargs)  # type: ignore[misc]
        finally:
            _doing.reset(token)
            hold = call.take()
            if hold is not None:  # reserved, but building the request failed
                hold.end(CANCELLED)

    def _prepare_options(self, options: Any) -> Any:
        call = _doing.get()
        options = super()._prepare_options(options)  # type: ignore[misc]
        return self._behest.engine.run(call.prepared(options)) if type(call) is _Call else options

    def _send_request(self, request: Any, *, stream: bool, **kwargs: Any) -> Any:
        call = _doing.get()
        send = super()._send_request  # type: ignore[misc]
        if call is None or call is _FREE:
            return send(request, stream=stream, **kwargs)
        try:
            response = send(request, stream=stream, **kwargs)
            again = call.again(request, response)  # type: ignore[union-attr]
            if again is not None:
                response.read()
                response = send(again, stream=stream, **kwargs)
                call.again(again, response)  # type: ignore[union-attr]
        except BaseException as error:
            hold = call.take()
            if hold is not None:
                hold.end(outcome_of_error(error))
            raise
        steps = call.answered(response, streamed=stream)  # type: ignore[union-attr]
        if steps is not None:
            self._behest.engine.run(steps)
        return response


class _MeteredAsync(Metered):
    async def request(self, cast_to: Any, options: Any, **kwargs: Any) -> Any:
        call = _begin(self, options)
        token = _doing.set(call)
        try:
            return await super().request(cast_to, options, **kwargs)  # type: ignore[misc]
        finally:
            _doing.reset(token)
            hold = call.take()
            if hold is not None:
                hold.post(CANCELLED)

    async def _prepare_options(self, options: Any) -> Any:
        call = _doing.get()
        options = await super()._prepare_options(options)  # type: ignore[misc]
        return await self._behest.engine.arun(call.prepared(options)) if type(call) is _Call else options

    async def _send_request(self, request: Any, *, stream: bool, **kwargs: Any) -> Any:
        call = _doing.get()
        send = super()._send_request  # type: ignore[misc]
        if call is None or call is _FREE:
            return await send(request, stream=stream, **kwargs)
        try:
            response = await send(request, stream=stream, **kwargs)
            again = call.again(request, response)  # type: ignore[union-attr]
            if again is not None:
                await response.aread()
                response = await send(again, stream=stream, **kwargs)
                call.again(again, response)  # type: ignore[union-attr]
        except BaseException as error:
            hold = call.take()
            if hold is not None:
                # A cancelled task may be cancelled again: it must not wait here.
                hold.post(outcome_of_error(error))
            raise
        steps = call.answered(response, streamed=stream)  # type: ignore[union-attr]
        if steps is not None:
            await self._behest.engine.arun(steps)
        return response


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
