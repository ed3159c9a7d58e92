"""A client of a subclass of the caller's own class, whose every billable call is metered.

Each attempt is sent by an httpx client: those are metered (`kit.http`), whatever their host, and the SDK
retries around them. A refusal is raised there as it is, and is none of what the SDK retries.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from ...calls.exchange import Exchange
from ...rules.attribution import from_headers
from ...rules.errors import ConfigError
from ..kit.hooks import Hook, Method, put_for
from ..kit.http import metered_copy
from ..kit.metered import metered_class
from ..kit.sockets import count
from ..kit.terms import Terms
from ..kit.undo import Undo
from . import internals

if TYPE_CHECKING:
    from google.genai import Client

    C = TypeVar("C", bound=Client)


class _Metered:
    """What is metered is no other's to close when it is let go of."""

    _behest: Terms

    def __del__(self) -> None:
        pass


_opened: ContextVar[list[Any] | None] = ContextVar("behest_google_genai_opened", default=None)
"""The responses of the stream that is being asked for here."""
_END = object()


class _MeteredApi(_Metered):
    """What sends for a client.

    A stream that its reader leaves is closed then: the SDK leaves it to the garbage collector, and what
    is held for it with it.
    """

    def _use_aiohttp(self) -> bool:
        return False

    def _request(self, *args: Any, **kwargs: Any) -> Any:
        return _noted(super()._request(*args, **kwargs))  # type: ignore[misc]

    async def _async_request(self, *args: Any, **kwargs: Any) -> Any:
        return _noted(await super()._async_request(*args, **kwargs))  # type: ignore[misc]

    def request_streamed(self, *args: Any, **kwargs: Any) -> Any:
        stream = super().request_streamed(*args, **kwargs)  # type: ignore[misc]
        opened: list[Any] = []
        token = _opened.set(opened)
        try:
            chunk = next(stream, _END)  # it is asked for when it is first read
        finally:
            _opened.reset(token)
        try:
            while chunk is not _END:
                yield chunk
                chunk = next(stream, _END)
        finally:
            for response in opened:
                response.close()

    async def async_request_streamed(self, *args: Any, **kwargs: Any) -> Any:
        opened: list[Any] = []
        token = _opened.set(opened)
        try:
            stream = await super().async_request_streamed(*args, **kwargs)  # type: ignore[misc]
        finally:
            _opened.reset(token)
        return _closing(stream, opened)

    def _websocket_base_url(self, *args: Any, **kwargs: Any) -> Any:
        fallback = from_headers(internals.headers_of(self))
        exchange = Exchange(self._behest.engine, "realtime", {}, fallback=fallback, provider="google")
        count(self._behest.engine, exchange)
        return super()._websocket_base_url(*args, **kwargs)  # type: ignore[misc]


def _noted(response: Any) -> Any:
    """A response of the SDK's, the HTTP response in it noted where a stream is asked for."""
    opened, within = _opened.get(), response.response_stream
    if opened is not None and hasattr(within, "aclose"):
        opened.append(within)
    return response


async def _closing(stream: Any, opened: list[Any]) -> AsyncIterator[Any]:
    try:
        async for chunk in stream:
            yield chunk
    finally:
        for response in opened:
            await response.aclose()


def meter_client(terms: Terms, client: C) -> C:
    """See `GoogleGenAIDoor.google_genai`."""
    cls, _ = internals.classes()
    if not isinstance(client, cls):
        raise ConfigError(f"meter.google_genai() takes a google.genai.Client, not {type(client).__name__}")
    plain: Any = vars(client)["_api_client"]
    if isinstance(plain, _MeteredApi):
        raise ConfigError("this client is metered already")
    way = internals.other_way(plain)
    if way is not None:
        raise ConfigError(f"this client sends by {way}, which meter.google_genai() cannot meter")
    api: Any = object.__new__(metered_class(terms, type(plain), _MeteredApi))
    api.__dict__.update(vars(plain))
    _meter_http(terms, api)
    metered: Any = object.__new__(metered_class(terms, type(client), _Metered))
    metered.__dict__.update({n: internals.with_api(v, plain, api) for n, v in vars(client).items()})
    # It closes its connections when it is collected: it is kept as long as they are in use.
    api.__dict__["_behest_plain"] = client
    return metered  # type: ignore[no-any-return]


def _meter_http(terms: Terms, api: Any) -> None:
    """Meter the HTTP clients of what sends."""
    headers = internals.headers_of(api)
    for name in internals.HTTP_CLIENTS:
        plain = getattr(api, name, None)
        if plain is not None and not hasattr(plain, "_behest_hosts"):
            copy = metered_copy(terms, plain, hosts=None, headers=headers)
            copy.__dict__["_behest_plain"] = plain
            setattr(api, name, copy)


_active: list[tuple[object, Terms]] = []
"""Whose clients are metered: the last that was begun and has not ended."""
_hooks: list[Hook] = []


def _making(init: Method) -> Method:
    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if not _active or isinstance(self, _MeteredApi):
            return
        terms = _active[-1][1]
        way = internals.other_way(self)
        if way is not None:
            terms.engine.notices.once(
                ("google-genai", way), "a client of google-genai sends by %s: its calls are not metered", way
            )
            return
        _meter_http(terms, self)
        self.__class__ = metered_class(terms, type(self), _MeteredMade)

    return made


class _MeteredMade(_MeteredApi):
    """What sends for a client that was made so: it is its own, to close as it would."""

    def __del__(self) -> None:
        own = getattr(super(_Metered, self), "__del__", None)
        if own is not None:
            own()


def meter_what_is_made(terms: Terms) -> Undo:
    """See `GoogleGenAIDoor.instrument_google_genai`."""
    if not _hooks:
        _hooks.append(Hook(internals.classes()[1], "__init__", _making))
    return put_for(_active, (object(), terms), _hooks)
