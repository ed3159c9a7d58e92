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

from ...rules.errors import ConfigError, need
from ...wire.anthropic import operation_of
from ..kit import stainless
from ..kit.metered import metered_class
from ..kit.stainless import DOING, Call, Free, Screened, asend_reserved, free_of, send_reserved
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


class Metered(stainless.Metered):
    """What is the same for blocking and asynchronous clients."""

    _behest_doing = _doing

    def _begin(self, options: Any) -> Call | Free:
        operation = _operation_of(options.method, options.url)
        if operation is None:
            return free_of(self._behest, self, options)
        return Call(self._behest, operation, self, asynchronous=self._asynchronous)

    def _reserving(self) -> Call | None:
        call = super()._reserving()
        return call if call is not None and call.client is self else None

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


class _Sender:
    """The SDK's HTTP client, while an attempt is reserved: what is sent is that attempt."""

    def __init__(self, client: Any, call: Call) -> None:
        self._own = client
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def send(self, request: Any, *, stream: bool = False, **kwargs: Any) -> Any:
        call = self._call
        return send_reserved(call.terms.engine, call, self._own.send, request, stream=stream, **kwargs)


class _AsyncSender(_Sender):
    async def send(self, request: Any, *, stream: bool = False, **kwargs: Any) -> Any:
        call = self._call
        return await asend_reserved(call.terms.engine, call, self._own.send, request, stream=stream, **kwargs)


class _MeteredSync(Metered, stainless.MeteredSync):
    def _prepare_options(self, options: Any) -> Any:
        call = self._reserving() or self._screening()
        if call is not None:
            options = self._behest.engine.run(call.prepared(options))
        return super()._prepare_options(options)  # type: ignore[misc]


class _MeteredAsync(Metered, stainless.MeteredAsync):
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


_making = stainless.Making(Metered, class_of)


def meter_what_is_made(terms: Terms) -> Undo:
    """See `AnthropicDoor.instrument_anthropic`."""
    return _making.begin(terms, _bases())
