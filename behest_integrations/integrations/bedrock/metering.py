"""Clients of `bedrock-runtime`, metered attempt by attempt, by the bytes that are sent and come back."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from ...calls.exchange import Exchange
from ...engine.draining import MOST_BYTES
from ...engine.engine import Engine
from ...engine.holds import Hold
from ...engine.layers import seen
from ...engine.outcomes import outcome_of_status
from ...engine.ruling import looks_through
from ...rules.attribution import from_headers
from ...rules.errors import ConfigError
from ...wire.wires import Found, find
from ..kit.body import CLOSED, WatchedBody
from ..kit.hooks import Hook, Method, put_for
from ..kit.http import HTTPCall, looked_through
from ..kit.terms import Terms
from ..kit.undo import Undo
from .internals import (
    CREATE,
    SERVICE,
    content_of,
    is_runtime,
    listen,
    read_whole,
    shut_down,
    with_stream,
    wrap_calls,
)

PROVIDER = "aws"
_TOO_LONG = "the stream was left, and not read to its end: it took too long", "closed_early"


def _with_content(request: Any, content: bytes) -> Any:
    request.data = content
    return request


class _Call(HTTPCall):
    """One attempt."""

    content_of = staticmethod(content_of)
    with_content = staticmethod(_with_content)

    def __init__(self, terms: Terms, found: Found, request: Any) -> None:
        super().__init__(terms, found, asynchronous=False)
        parts = urlsplit(request.url)
        self.where, self.provider = f"{parts.scheme}://{parts.netloc}", terms.provider or PROVIDER
        self.who = self.fallback = from_headers(dict(request.headers.items()))


class _Calling:
    """One call of a client's method: its attempts, one after the other."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.attempt: _Call | None = None
        self.watch: _Watch | None = None
        """Of the answer, if it streams."""

    def take(self) -> tuple[Exchange, Hold] | None:
        """The attempt that is under way, which the caller will now end."""
        call, self.attempt = self.attempt, None
        hold = call.take() if call is not None else None
        if call is None or call.exchange is None or hold is None:
            return None
        return call.exchange, hold


_calling: ContextVar[_Calling | None] = ContextVar("behest_bedrock_calling", default=None)


# ── an attempt ─────────────────────────────────────────────────────────────────────────


def _created(request: Any, **_: Any) -> None:
    """Reserve it, and put its limit in; it is signed next."""
    calling = _calling.get()
    if calling is None:
        return
    engine = calling.terms.engine
    found = find(request.method, urlsplit(request.url).path, PROVIDER)
    if found is not None:
        call = _Call(calling.terms, found, request)
        engine.run(call.prepared(request))
        calling.attempt = call
    elif looks_through(engine, request.method):
        who = from_headers(dict(request.headers.items()))
        engine.run(looked_through(engine, request, content_of(request), who, _with_content))


def _answered(response_dict: dict[str, Any], **_: Any) -> None:
    """End it by what came back, or watch what is still to come."""
    calling = _calling.get()
    taken = calling.take() if calling is not None else None
    if calling is None or taken is None:
        return
    exchange, hold = taken
    outcome = outcome_of_status(response_dict["status_code"])
    if outcome is not None:
        hold.end(outcome)
        return
    try:
        whole = read_whole(response_dict["body"], exchange.read_body)
    except BaseException as error:
        hold.end(exchange.interrupted(f"the reply broke: {type(error).__name__}", "broken"))
        raise
    if whole is not None:
        response_dict["body"] = whole
        hold.end(exchange.complete())
    else:
        calling.watch = _Watch(response_dict["body"], exchange, hold)
        response_dict["body"] = _Frames(calling.watch)


def _received(exception: BaseException | None, parsed_response: dict[str, Any] | None, **_: Any) -> None:
    """End it if it failed; know when its stream is left."""
    calling = _calling.get()
    if calling is None:
        return
    taken = calling.take() if exception is not None else None
    if taken is not None and exception is not None:
        taken[1].end(taken[1].failed(exception))
    watch, calling.watch = calling.watch, None
    if watch is not None and parsed_response is not None:
        with_stream(parsed_response, partial(_end_with, watch))


def _end_with(watch: _Watch, stream: object) -> None:
    weakref.finalize(stream, watch.leave).atexit = False


# ── streams ────────────────────────────────────────────────────────────────────────────


class _Watch(WatchedBody):
    """A stream's frames, seen as they pass. Bedrock bills what nobody reads: then it is read on."""

    def __init__(self, raw: Any, exchange: Exchange, hold: Hold) -> None:
        super().__init__(exchange, hold, events=False)
        self.raw = raw
        self.source: Iterator[bytes] | None = None
        self._drains = exchange.engine.drains if exchange.reads_on else None
        if self._drains is not None:
            self._drains.expect()
        hold.read_on = self.read_on
        hold.hang_up = self.leave

    def passing(self, *args: Any, **kwargs: Any) -> Iterator[bytes]:
        """The body, as it is read by its reader."""
        self.source = self.raw.stream(*args, **kwargs)
        return self.read(self.source)

    def read_on(self) -> bool:
        """Have the rest read in the background, if that is to be; whether it is."""
        if self.left:
            return True
        if self._drains is None or self.ended or self.done:
            return False
        self.left = True  # first: it may be over at once
        self.left = self._drains.take(_Rest(self))
        return self.left

    def leave(self) -> None:
        """Its reader has left, if it has not come to its end."""
        if self.ended or self.read_on():
            return
        try:
            if self.has_more and self.source is not None:
                for data in self.source:
                    self.feed(data)
                self.rest()
        finally:
            self.raw.close()
            self.post(*CLOSED)


class _Rest:
    """What is left of a stream whose reader has left."""

    def __init__(self, watch: _Watch) -> None:
        self._watch = watch

    def read(self) -> None:
        watch, size = self._watch, 0
        try:
            if watch.source is None:
                watch.source = watch.raw.stream()
            for data in watch.source:
                watch.feed(data)
                size += len(data)
                if watch.done or watch.ended or size > MOST_BYTES:
                    break
            else:
                watch.rest()
        except Exception as error:
            watch.end(f"the stream broke: {type(error).__name__}", "broken")
        finally:
            watch.end(*_TOO_LONG)
            watch.raw.close()

    async def aread(self) -> None:
        self.read()

    def cut(self) -> None:
        if not self._watch.ended:
            self._watch.post(*_TOO_LONG)
            shut_down(self._watch.raw)  # it may be waiting for a byte that never comes


class _Frames:
    """A body in the place of urllib3's: what botocore asks of one."""

    def __init__(self, watch: _Watch) -> None:
        self._raw = watch.raw
        self._watch = watch

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[bytes]:
        return self._watch.passing(*args, **kwargs)

    def close(self) -> None:
        self._watch.leave()
        if not self._watch.left:
            self._raw.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


# ── clients ────────────────────────────────────────────────────────────────────────────


def meter_client(engine: Engine, client: Any, provider: str | None) -> None:
    """See `BedrockDoor.bedrock`.

    Raises:
        ConfigError: no such client, or metered already.
    """
    try:
        known = is_runtime(client)
    except AttributeError:
        known = False
    if not known:
        raise ConfigError(
            f"meter.bedrock() takes a client of {SERVICE!r} that boto3 or botocore has made, not {client!r}"
        )
    if "_behest" in vars(client):
        raise ConfigError("this client is metered already")
    client._behest = Terms(engine, provider)
    wrap_calls(client, partial(_counted, client._behest))
    listen(client, created=_created, answered=_answered, received=_received)


def _counted(terms: Terms, own: Callable[..., Any]) -> Callable[..., Any]:
    def make_api_call(*args: Any, **kwargs: Any) -> Any:
        calling = _Calling(terms)
        token = _calling.set(calling)
        try:
            with seen():
                return own(*args, **kwargs)
        except BaseException as error:
            taken = calling.take()  # reserved, and not sent, or broken off as it was
            if taken is not None:
                taken[1].end(taken[1].failed(error))
            if calling.watch is not None:  # answered, and then lost
                calling.watch.leave()
            raise
        finally:
            _calling.reset(token)

    return make_api_call


_active: list[tuple[object, Engine]] = []
"""Who meters all that is made: the last that was begun and has not ended."""


def _creating(own: Method) -> Method:
    def create_client(creator: Any, *args: Any, **kwargs: Any) -> Any:
        client = own(creator, *args, **kwargs)
        service = args[0] if args else kwargs.get("service_name")
        if service == SERVICE and _active and is_runtime(client) and "_behest" not in vars(client):
            meter_client(_active[-1][1], client, None)
        return client

    return create_client


_hook = Hook(*CREATE, _creating)


def meter_all(engine: Engine) -> Undo:
    """Meter the clients that are made from now on, until it is undone."""
    return put_for(_active, (object(), engine), (_hook,))
