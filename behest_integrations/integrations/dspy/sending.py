"""What DSPy's own engine sends, metered request by request, whatever the provider's wire."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from ...calls.exchange import Exchange, unasked
from ...engine.engine import Engine
from ...engine.holds import Hold
from ...engine.layers import seen
from ...engine.outcomes import CANCELLED, outcome_of_status
from ...engine.ruling import looks_through
from ...engine.steps import Steps
from ...prices import provider_for_url
from ...rules.attribution import from_headers
from ...rules.errors import ConfigError
from ...wire.wires import Found, find
from ..kit.body import CLOSED, WatchedBody
from ..kit.cutting import cut_off, note
from ..kit.hooks import Method
from ..kit.http import HTTPCall, looked_through
from ..kit.stainless import asend_reserved, send_reserved
from ..kit.terms import Terms

WhoMeters = Callable[[], "Terms | None"]
"""On whose terms what is sent here is metered."""

asking: ContextVar[Terms | None] = ContextVar("behest_dspy_asking", default=None)
"""On whose terms the attempt that is made here is metered."""


def _with_content(request: Any, content: bytes) -> Any:
    return replace(request, body=content)


class _Call(HTTPCall):
    """One request of DSPy's transports."""

    @staticmethod
    def content_of(request: Any) -> bytes:
        content: bytes = request.body or b""
        return content

    with_content = staticmethod(_with_content)

    def __init__(self, terms: Terms, found: Found, request: Any, *, asynchronous: bool) -> None:
        super().__init__(terms, found, asynchronous=asynchronous)
        self.where, _, self.provider = _whither(terms, request)
        self.who = self.fallback = from_headers(dict(request.headers))

    def prepared(self, request: Any) -> Steps[Any]:
        """See `HTTPCall.prepared`.

        Raises:
            ConfigError: what is sent has been signed, and would have to be changed.
        """
        sent = yield from super().prepared(request)
        hold = self._open
        if hold is None:
            return sent
        if sent is not request and _is_signed(request):
            self.take()
            refusal = cut_off([hold])
            steps = hold.keeper.ending(hold, CANCELLED)
            if steps is not None:
                yield from steps
            raise refusal or ConfigError(
                "the request is signed for AWS before it is seen, and it has no output limit: set max_tokens "
                "of the dspy.LM, or use engine='litellm'"
            )
        note(hold)
        return sent

    def again(self, request: Any, response: Any) -> Any:
        exchange = self.exchange
        if exchange is None or not exchange.answered(response.status):
            return None
        return _with_content(request, unasked(request.body))

    def answered(self, response: Any, *, streamed: bool) -> Steps[None] | None:
        exchange, hold = self.exchange, self.take()
        assert exchange is not None
        if hold is None:
            return None
        outcome = outcome_of_status(response.status)
        if outcome is None:
            _watch(response, exchange, hold, asynchronous=self.asynchronous)
            return None
        return hold.keeper.ending(hold, outcome)


def _is_signed(request: Any) -> bool:
    return any(n.lower() == "authorization" and v.startswith("AWS4-") for n, v in request.headers)


# ── the body ───────────────────────────────────────────────────────────────────────────


def _watch(response: Any, exchange: Exchange, hold: Hold, *, asynchronous: bool) -> None:
    """See the body of `response` pass, and end `hold` with it."""
    watch = WatchedBody(exchange, hold, "text/event-stream" in (response.header("content-type") or ""))
    source, release = response._chunks, response._release

    def released(body_consumed: bool) -> None:
        try:
            if watch.has_more:
                for data in source:
                    watch.feed(data)
                watch.rest()
        finally:
            watch.end(*CLOSED)
            release(body_consumed)

    async def areleased(body_consumed: bool) -> None:
        try:
            if watch.has_more:
                async for data in source:
                    watch.feed(data)
                watch.rest()
        finally:
            watch.post(*CLOSED)
            await release(body_consumed)

    hold.hang_up = response.aclose if asynchronous else response.close
    response._chunks = watch.aread(source) if asynchronous else watch.read(source)
    response._release = areleased if asynchronous else released


# ── the transports ─────────────────────────────────────────────────────────────────────


def sending(who_meters: WhoMeters, own: Method) -> Method:
    """A transport's method that sends, blocking."""

    def stream(transport: Any, request: Any) -> Any:
        terms = who_meters()
        if terms is None:
            return own(transport, request)
        engine, send = terms.engine, partial(own, transport)
        call = _begin(terms, request, asynchronous=False)
        if call is not None:
            request = engine.run(call.prepared(request))
        elif looks_through(engine, request.method):
            request = engine.run(_looked_through(engine, request))
        with seen():
            if call is None:
                return send(request)
            return send_reserved(engine, call, lambda sent, **_: send(sent), request, stream=True)

    return stream


def asending(who_meters: WhoMeters, own: Method) -> Method:
    """`sending` for coroutines."""

    async def stream(transport: Any, request: Any) -> Any:
        terms = who_meters()
        if terms is None:
            return await own(transport, request)
        engine = terms.engine
        call = _begin(terms, request, asynchronous=True)
        if call is not None:
            request = await engine.arun(call.prepared(request))
        elif looks_through(engine, request.method):
            request = await engine.arun(_looked_through(engine, request))

        async def send(sent: Any, **_: Any) -> Any:
            response = await own(transport, sent)
            response.aread = response.read  # as an HTTP library has it
            return response

        with seen():
            if call is None:
                return await send(request)
            return await asend_reserved(engine, call, send, request, stream=True)

    return stream


def _whither(terms: Terms, request: Any) -> tuple[str, str, str | None]:
    """The server and the path that a request goes to, and whose prices apply."""
    parts = urlsplit(request.url)
    where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    return where, parts.path, terms.provider or provider_for_url(f"{where}{parts.path}")


def _begin(terms: Terms, request: Any, *, asynchronous: bool) -> _Call | None:
    _, path, provider = _whither(terms, request)
    found = find(request.method, path, provider)
    return None if found is None else _Call(terms, found, request, asynchronous=asynchronous)


def _looked_through(engine: Engine, request: Any) -> Steps[Any]:
    who = from_headers(dict(request.headers))
    return looked_through(engine, request, request.body or b"", who, _with_content)
