"""A client of a subclass of the caller's own class, whose every billable call is metered.

It stays an `Anthropic` (or Bedrock's, Vertex's, a subclass) for `isinstance` and for editors, and
`copy()`, `with_options()` and `with_middleware()` build clients that are metered too.

Where it hooks in, and why (read with anthropic 0.75, 0.125, 1.17, 2.0 and 2.14): `request` is passed
by every API of the SDK, and retries inside it. Each attempt passes `_prepare_options`, outside of the
SDK's own error handling, so that a refusal is neither wrapped nor retried; it is reserved there, and
before Bedrock's and Vertex's clients move the model into the path and sign what they send. It is then
sent by the HTTP client that `_client` names, which all versions look up where they use it: while an
attempt is reserved, that is a sender of ours around it.
"""

from __future__ import annotations

import functools
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from ...engine.outcomes import CANCELLED, outcome_of_error
from ...rules.errors import ConfigError, need
from ...wire.anthropic import operation_of
from ..kit.metered import metered_class
from ..kit.stainless import DOING, Call, Free, Screened, free_of
from ..kit.terms import Terms
from ..kit.undo import Undo

if TYPE_CHECKING:
    from anthropic import (
        Anthropic,
        AnthropicBedrock,
        AnthropicVertex,
        AsyncAnthropic,
        AsyncAnthropicBedrock,
        AsyncAnthropicVertex,
    )

    C = TypeVar(
        "C",
        bound=Anthropic
        | AsyncAnthropic
        | AnthropicBedrock
        | AsyncAnthropicBedrock
        | AnthropicVertex
        | AsyncAnthropicVertex,
    )

_operation_of = functools.lru_cache(maxsize=512)(operation_of)

_doing: ContextVar[Call | Free | None] = ContextVar("behest_anthropic_call", default=None)
"""What the SDK is doing in this context; None outside of its requests."""
DOING.append(_doing)


class Metered:
    """What is the same for blocking and asynchronous clients."""

    _behest: Terms
    _asynchronous: bool

    def _begin(self, options: Any) -> Call | Free:
        operation = _operation_of(options.method, options.url)
        if operation is None:
            return free_of(self._behest, self, options)
        return Call(self._behest, operation, self, asynchronous=self._asynchronous)

    def _reserving(self) -> Call | None:
        """The call whose attempt is being prepared here, if it is this client's."""
        call = _doing.get()
        return call if isinstance(call, Call) and call.client is self else None

    def _screening(self) -> Screened | None:
        """The free request that is being prepared here, if its texts are looked through."""
        call = _doing.get()
        return call if isinstance(call, Screened) and call.client is self else None

    @property
    def _client(self) -> Any:
        call = self._reserving()
        own = self.__dict__["_client"]
        if call is None or not call.reserved:
            return own
        return _AsyncSender(own, call) if self._asynchronous else _Sender(own, call)

    @_client.setter
    def _client(self, client: Any) -> None:
        self.__dict__["_client"] = client

    def _build_request(self, options: Any, **kwargs: Any) -> Any:
        call = self._reserving()
        headers = call.headers(options) if call is not None else None
        request = super()._build_request(options, **kwargs)  # type: ignore[misc]
        if headers:
            request.headers.encoding = "utf-8"
            for name, value in headers.items():
                request.headers[name] = value
        return request


class _Sender:
    """The SDK's HTTP client, while an attempt is reserved: what is sent is that attempt."""

    def __init__(self, client: Any, call: Call) -> None:
        self._own = client
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def send(self, request: Any, *, stream: bool = False, **kwargs: Any) -> Any:
        call = self._call
        try:
            response = self._own.send(request, stream=stream, **kwargs)
        except BaseException as error:
            hold = call.take()
            if hold is not None:
                hold.end(outcome_of_error(error))
            raise
        steps = call.answered(response, streamed=stream)
        if steps is not None:
            call.terms.engine.run(steps)
        return response


class _AsyncSender(_Sender):
    async def send(self, request: Any, *, stream: bool = False, **kwargs: Any) -> Any:
        call = self._call
        try:
            response = await self._own.send(request, stream=stream, **kwargs)
        except BaseException as error:
            hold = call.take()
            if hold is not None:
                # A cancelled task may be cancelled again: it must not wait here.
                hold.post(outcome_of_error(error))
            raise
        steps = call.answered(response, streamed=stream)
        if steps is not None:
            await call.terms.engine.arun(steps)
        return response


class _MeteredSync(Metered):
    _asynchronous = False

    def request(self, cast_to: Any, options: Any, **kwargs: Any) -> Any:
        call = self._begin(options)
        token = _doing.set(call)
        try:
            return super().request(cast_to, options, **kwargs)  # type: ignore[misc]
        finally:
            _doing.reset(token)
            hold = call.take()
            if hold is not None:  # reserved, but building the request failed
                hold.end(CANCELLED)

    def _prepare_options(self, options: Any) -> Any:
        call = self._reserving() or self._screening()
        if call is not None:
            options = self._behest.engine.run(call.prepared(options))
        return super()._prepare_options(options)  # type: ignore[misc]


class _MeteredAsync(Metered):
    _asynchronous = True

    async def request(self, cast_to: Any, options: Any, **kwargs: Any) -> Any:
        call = self._begin(options)
        token = _doing.set(call)
        try:
            return await super().request(cast_to, options, **kwargs)  # type: ignore[misc]
        finally:
            _doing.reset(token)
            hold = call.take()
            if hold is not None:
                hold.post(CANCELLED)

    async def _prepare_options(self, options: Any) -> Any:
        call = self._reserving() or self._screening()
        if call is not None:
            options = await self._behest.engine.arun(call.prepared(options))
        return await super()._prepare_options(options)  # type: ignore[misc]


# ── the client ─────────────────────────────────────────────────────────────────────────


def meter_client(terms: Terms, client: C) -> C:
    """See `AnthropicDoor.anthropic`."""
    blocking, awaited = _bases()
    if not isinstance(client, (blocking, awaited)):
        raise ConfigError(
            "meter.anthropic() takes an Anthropic or AsyncAnthropic client (or Bedrock's, or Vertex's), not "
            f"{type(client).__name__}"
        )
    base = type(client)
    if issubclass(base, Metered):
        raise ConfigError("this client is metered already")
    metered: Any = object.__new__(class_of(base, terms))
    for name, value in vars(client).items():
        # Resources that the client has made already (client.messages) call back into it; Bedrock's and
        # Vertex's clients make theirs at once.
        mine = getattr(value, "_client", None) is client
        metered.__dict__[name] = type(value)(metered) if mine else value
    if getattr(metered, "_middleware_chain", None) is not None:
        # It ends in the client that it was built for.
        metered._middleware_chain = metered._build_middleware_chain()
    return metered  # type: ignore[no-any-return]


def class_of(base: type, terms: Terms) -> Any:
    """The metered subclass of a client's class."""
    mixin = _MeteredSync if issubclass(base, _bases()[0]) else _MeteredAsync
    return metered_class(terms, base, mixin)


def _bases() -> tuple[type, type]:
    """What all of the SDK's clients are, Bedrock's and Vertex's included."""
    with need("The Anthropic client", "anthropic"):
        from anthropic._base_client import AsyncAPIClient, SyncAPIClient
    return SyncAPIClient, AsyncAPIClient


# ── every client that is made ──────────────────────────────────────────────────────────

_active: list[tuple[object, Terms]] = []
"""Whose clients are metered: the last that was begun and has not ended."""


def meter_what_is_made(terms: Terms) -> Undo:
    """See `AnthropicDoor.instrument_anthropic`.

    `__new__` is replaced for the process, and stays: a class whose `__new__` was set and taken away
    again takes no arguments. None of the versions read defines one.
    """
    for cls in _bases():
        if "__new__" not in vars(cls):
            cls.__new__ = _new  # type: ignore[method-assign,assignment]
    mine = (object(), terms)
    _active.append(mine)
    return Undo(lambda: _active.remove(mine))


def _new(cls: type, *args: Any, **kwargs: Any) -> Any:
    if _active and not issubclass(cls, Metered):
        cls = class_of(cls, _active[-1][1])
    return object.__new__(cls)
