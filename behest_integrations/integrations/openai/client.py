"""The OpenAI client: every billable call attributed, bounded and held to its budgets.

`meter_client` gives a client of a subclass of the caller's own class, so it stays an
`OpenAI` (or Azure, or a subclass) for `isinstance` and for editors, and `copy()` and
`with_options()` build clients that are metered too.

Where it hooks in, and why: `request` is passed by every API of the SDK, raw and streamed
variants included. The SDK retries inside it, and each retry may be a bill of its own, so
each attempt gets its own hold: it is reserved in `_prepare_options`, which runs before
every attempt and outside the SDK's own error handling (a refusal is neither wrapped nor
retried), and its outcome is read in `_send_request`.
"""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ...calls.exchange import Exchange, Passing
from ...engine.calls import Hold, Outcome, take_offer
from ...meter import Meter
from ...prices import provider_for_url
from ...rules.attribution import NOBODY, SESSION_HEADER, USER_HEADER, Attribution, from_headers
from ...rules.errors import ConfigError, MissingExtra
from ...wire import operation_of
from ..kit.wrapped import metered_class

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

    _Client = TypeVar("_Client", bound=OpenAI | AsyncOpenAI)

_RESPONSE_PATH = re.compile(r"/responses/([^/]+)(?:/cancel)?$")


@dataclass(frozen=True)
class _Door:
    """What a metered client class knows: its meter and how to read its requests.

    `provider` None: the one at the client's base URL.
    """

    meter: Meter
    provider: str | None
    send_attribution: bool


class _Call:
    """One `request` of the SDK: the attempts it takes, one after the other."""

    def __init__(self, door: _Door, operation: str, client: Any) -> None:
        self.door = door
        self.operation = operation
        self.client = client
        self.asynchronous = isinstance(client, _MeteredAsync)
        self.exchange: Exchange | None = None
        self.open: Hold | None = None
        self.outer: Hold | None = None

    def plan(self, options: Any) -> Exchange:
        """Bound the attempt that `options` describe."""
        if self.exchange is None:
            door = self.door
            body = _body(options)
            who = _explicit(options)
            self.outer = take_offer(door.meter, self.operation, str(body.get("model") or ""))
            if self.outer is not None:
                who = who.over(self.outer.plan.who)
            provider = _provider(self.client)
            self.exchange = Exchange(
                door.meter,
                self.operation,
                body,
                who=who,
                fallback=from_headers(self.client._custom_headers),
                provider=provider,
            )
        return self.exchange

    def prepare(self, options: Any, hold: Hold) -> Any:
        """The options to send under `hold`."""
        assert self.exchange is not None
        self.open, self.outer = hold, None
        body = self.exchange.reserved(hold)
        if options.files is None and (options.json_data is not None or options.extra_json is not None):
            options.json_data, options.extra_json = body, None
        return options

    def attribution_headers(self, options: Any) -> dict[str, str]:
        """The headers to send that say who the call is for.

        Taken out of `options`: the SDK takes a header's text for ASCII, and ids may be in any
        script, so these are put on the request that it has built, as UTF-8.
        """
        given = options.headers if isinstance(options.headers, Mapping) else {}
        names = (SESSION_HEADER, USER_HEADER)
        sent = {n.lower(): v for n, v in given.items() if n.lower() in names and isinstance(v, str)}
        if self.door.send_attribution and self.exchange is not None:
            who = self.exchange.plan.who
            ids = ((SESSION_HEADER, who.session_id), (USER_HEADER, who.user_id))
            sent.update({name: value for name, value in ids if value is not None})
        if sent and given:
            options.headers = {n: v for n, v in given.items() if n.lower() not in sent}
        return sent

    def take(self) -> Hold | None:
        """The open hold, which the caller will now end."""
        hold, self.open = self.open, None
        return hold

    def lost(self, error: BaseException) -> tuple[Hold | None, Outcome]:
        assert self.exchange is not None
        return self.take(), self.exchange.failed_to_send(error)

    def answered(self, response: Any, *, streamed: bool) -> Outcome | None:
        """The outcome of a response; None if it is still to come with its body."""
        exchange = self.exchange
        assert exchange is not None
        outcome = exchange.refused_by_provider(response.status_code)
        if outcome is not None:
            return outcome
        if streamed and not response.is_stream_consumed:
            hold = self.take()
            if hold is not None:
                _watch(response, exchange, hold, asynchronous=self.asynchronous)
            return None
        exchange.read_body(response.content)
        if exchange.pending:
            hold = self.take()
            if hold is not None:
                _pending(self.door.meter)[str(exchange.reply.id)] = (exchange, hold)
            return None
        return exchange.complete()


class _Follow:
    """A look at a background response: when it has ended, so has its hold."""

    def __init__(self, client: Any, exchange: Exchange, hold: Hold) -> None:
        self.asynchronous = isinstance(client, _MeteredAsync)
        self.exchange = exchange
        self.hold = hold

    def answered(self, response: Any, *, streamed: bool) -> Outcome | None:
        if not 200 <= response.status_code < 300:
            return None
        if streamed and not response.is_stream_consumed:
            _watch(response, self.exchange, self.hold, asynchronous=self.asynchronous, only_whole=True)
            return None
        self.exchange.read_body(response.content)
        return None if self.exchange.reply.usage is None else self.exchange.complete()


def _provider(client: Any) -> str | None:
    door: _Door = client._behest
    return door.provider or _provider_at(str(client.base_url))


_provider_at = functools.lru_cache(maxsize=256)(provider_for_url)


def _pending(meter: Meter) -> dict[str, tuple[Exchange, Hold]]:
    """Background responses that this process has started, by id. Those of other processes
    end by their lease; what is looked at here is settled when it is known."""
    return meter.attached("openai.pending", dict)


_call: ContextVar[_Call | _Follow | bool] = ContextVar("behest_openai_call", default=False)
"""What the SDK is doing in this context: a call, a look at one, something free (True), or
nothing (False)."""

_counted: ContextVar[bool] = ContextVar("behest_openai_counted", default=False)
"""Whether the websocket that is being opened has been counted already."""


def _begin(client: Any, options: Any) -> _Call | _Follow | bool:
    operation = operation_of(options.method, options.url)
    door: _Door = client._behest
    if operation is not None:
        return _Call(door, operation, client)
    pending = _pending(door.meter)
    match = _RESPONSE_PATH.search(options.url) if pending else None
    if pending and match and match.group(1) in pending:
        return _Follow(client, *pending[match.group(1)])
    return True


def _body(options: Any) -> Mapping[str, Any]:
    body = options.json_data if isinstance(options.json_data, Mapping) else {}
    return {**body, **options.extra_json} if options.extra_json else body


def _explicit(options: Any) -> Attribution:
    headers = options.headers
    return from_headers(headers) if isinstance(headers, Mapping) else NOBODY


class _Metered:
    """What is the same for blocking and asynchronous clients."""

    _behest: _Door

    def _build_request(self, options: Any, **kwargs: Any) -> Any:
        call = _call.get()
        headers = call.attribution_headers(options) if isinstance(call, _Call) else {}
        request = super()._build_request(options, **kwargs)  # type: ignore[misc]
        if headers:
            request.headers.encoding = "utf-8"
            for name, value in headers.items():
                request.headers[name] = value
        return request

    # Websockets (realtime, responses over websockets) are no requests, and nothing in them
    # can be read or stopped: they are counted, or refused, before they connect. Then the SDK
    # asks for a fresh key (2.x), prepares the options of a request that it does not make
    # (3.x), or reads the authentication headers alone (responses in 2.x).

    @property
    def auth_headers(self) -> Any:
        if _counted.get():
            _counted.set(False)
        elif _call.get() is False:
            exchange = self._websocket_plan()
            self._behest.meter.reserve(exchange.plan).end(exchange.complete())
        return super().auth_headers  # type: ignore[misc]

    def _websocket_plan(self) -> Exchange:
        client: Any = self
        return Exchange(
            self._behest.meter,
            "realtime",
            {},
            fallback=from_headers(client._custom_headers),
            provider=_provider(client),
        )


class _MeteredSync(_Metered):
    def request(self, cast_to: Any, options: Any, **kwargs: Any) -> Any:
        call = _begin(self, options)
        token = _call.set(call)
        try:
            return super().request(cast_to, options, **kwargs)  # type: ignore[misc]
        finally:
            _call.reset(token)
            hold = call.take() if isinstance(call, _Call) else None
            if hold is not None:  # reserved, but building the request failed
                hold.end(Outcome("cancelled"))

    def _prepare_options(self, options: Any) -> Any:
        call = _call.get()
        if call is False:
            return self._outside_requests(lambda: super(_MeteredSync, self)._prepare_options(options))  # type: ignore[misc]
        options = super()._prepare_options(options)  # type: ignore[misc]
        if not isinstance(call, _Call):
            return options
        exchange = call.plan(options)
        return call.prepare(options, call.door.meter.reserve(exchange.plan, replaces=call.outer))

    def _send_request(self, request: Any, *, stream: bool, **kwargs: Any) -> Any:
        call = _call.get()
        send = super()._send_request  # type: ignore[misc]
        if isinstance(call, bool):
            return send(request, stream=stream, **kwargs)
        try:
            response = send(request, stream=stream, **kwargs)
        except BaseException as error:
            if isinstance(call, _Call):
                hold, outcome = call.lost(error)
                if hold is not None:
                    hold.end(outcome)
            raise
        outcome_or_none = call.answered(response, streamed=stream)
        if outcome_or_none is not None:
            hold = call.take() if isinstance(call, _Call) else call.hold
            if hold is not None:
                hold.end(outcome_or_none)
        return response

    def _refresh_api_key(self) -> Any:
        if _call.get() is False:
            return self._outside_requests(super()._refresh_api_key)  # type: ignore[misc]
        return super()._refresh_api_key()  # type: ignore[misc]

    def _outside_requests(self, go_on: Callable[[], Any]) -> Any:
        exchange = self._websocket_plan()
        self._behest.meter.reserve(exchange.plan).end(exchange.complete())
        _counted.set(True)
        token = _call.set(True)
        try:
            return go_on()
        finally:
            _call.reset(token)


class _MeteredAsync(_Metered):
    async def request(self, cast_to: Any, options: Any, **kwargs: Any) -> Any:
        call = _begin(self, options)
        token = _call.set(call)
        try:
            return await super().request(cast_to, options, **kwargs)  # type: ignore[misc]
        finally:
            _call.reset(token)
            hold = call.take() if isinstance(call, _Call) else None
            if hold is not None:
                hold.post(Outcome("cancelled"))

    async def _prepare_options(self, options: Any) -> Any:
        call = _call.get()
        if call is False:
            return await self._outside_requests(lambda: super(_MeteredAsync, self)._prepare_options(options))  # type: ignore[misc]
        options = await super()._prepare_options(options)  # type: ignore[misc]
        if not isinstance(call, _Call):
            return options
        exchange = call.plan(options)
        return call.prepare(options, await call.door.meter.areserve(exchange.plan, replaces=call.outer))

    async def _send_request(self, request: Any, *, stream: bool, **kwargs: Any) -> Any:
        call = _call.get()
        send = super()._send_request  # type: ignore[misc]
        if isinstance(call, bool):
            return await send(request, stream=stream, **kwargs)
        try:
            response = await send(request, stream=stream, **kwargs)
        except BaseException as error:
            if isinstance(call, _Call):
                hold, outcome = call.lost(error)
                if hold is not None:
                    # A cancelled task may be cancelled again: it must not wait here.
                    hold.post(outcome)
            raise
        outcome_or_none = call.answered(response, streamed=stream)
        if outcome_or_none is not None:
            hold = call.take() if isinstance(call, _Call) else call.hold
            if hold is not None:
                await hold.aend(outcome_or_none)
        return response

    async def _refresh_api_key(self) -> Any:
        if _call.get() is False:
            return await self._outside_requests(super()._refresh_api_key)  # type: ignore[misc]
        return await super()._refresh_api_key()  # type: ignore[misc]

    async def _outside_requests(self, go_on: Callable[[], Any]) -> Any:
        exchange = self._websocket_plan()
        hold = await self._behest.meter.areserve(exchange.plan)
        await hold.aend(exchange.complete())
        _counted.set(True)
        token = _call.set(True)
        try:
            return await go_on()
        finally:
            _call.reset(token)


# ── streams ────────────────────────────────────────────────────────────────────────────


class _Watch(Passing):
    """Sees a response's body pass, and ends the hold when it ends, however it ends.

    It sits in front of the response's `iter_bytes`, below every variant that the SDK
    offers (streams, raw responses, streaming responses).
    """

    def __init__(self, response: Any, exchange: Exchange, hold: Hold, only_whole: bool) -> None:
        events = "text/event-stream" in response.headers.get("content-type", "")
        super().__init__(exchange, events=events, only_whole=only_whole)
        self.hold = hold
        self.source: Any = None
        self.reading = False
        """Whether the body is being read right now: the HTTP library closes a response
        itself when it has read all of it, and that is not an early end."""
        weakref.finalize(response, self.dropped).atexit = False
        # At exit the meter sees to it, before its last write.
        exchange.meter.finalizers.add(self.dropped)

    def can_drain(self) -> bool:
        """Whether the rest is worth reading before the response is closed."""
        return self.drainable and not self.ended and (self.source is not None or self.reader is None)

    def outcome(self, note: str = "", flag: str = "") -> Outcome | None:
        self.exchange.meter.finalizers.discard(self.dropped)
        return super().outcome(note, flag)

    def dropped(self) -> None:
        self.post("the stream was dropped before its end", "dropped")

    def post(self, note: str, flag: str) -> None:
        outcome = self.outcome(note, flag)
        if outcome is not None:
            self.hold.post(outcome)


class _Pieces:
    """A body in the pieces that its reader asked for: of `size` bytes, or as they come."""

    def __init__(self, size: int | None) -> None:
        self.size = size
        self.left = b""

    def cut(self, data: bytes, *, last: bool = False) -> list[bytes]:
        if self.size is None:
            return [data] if data else []
        data = self.left + data
        whole = len(data) if last else len(data) // self.size * self.size
        self.left = data[whole:]
        return [data[i : i + self.size] for i in range(0, whole, self.size)]


def _watch(
    response: Any, exchange: Exchange, hold: Hold, *, asynchronous: bool, only_whole: bool = False
) -> None:
    watch = _Watch(response, exchange, hold, only_whole)
    # The functions must not keep the response alive: a stream that is dropped is collected,
    # and ends its hold then.
    ref = weakref.ref(response)
    hold.hang_up = lambda: _close(ref(), asynchronous)
    if asynchronous:
        response.aiter_bytes, response.aclose = _async_patches(ref, watch)
    else:
        response.iter_bytes, response.close = _sync_patches(ref, watch)


def _close(response: Any, asynchronous: bool) -> Any:
    if response is None or response.is_closed:
        return None
    return response.aclose() if asynchronous else response.close()


def _sync_patches(ref: Callable[[], Any], watch: _Watch) -> tuple[Any, Any]:
    def iter_bytes(chunk_size: int | None = None) -> Iterator[bytes]:
        response = ref()
        watch.source = type(response).iter_bytes(response)
        pieces = _Pieces(chunk_size)
        try:
            watch.reading = True
            for data in watch.source:
                for out in pieces.cut(watch.feed(data)):
                    watch.reading = False
                    yield out
                    watch.reading = True
            last = pieces.cut(watch.rest(), last=True)
            watch.reading = False
            for out in last:
                yield out
        except GeneratorExit:
            raise  # the consumer stopped; `close` follows
        except BaseException as error:
            _end(watch, f"the stream broke: {type(error).__name__}", "broken")
            raise
        _end(watch, "", "")

    def close() -> None:
        response = ref()
        if response is None:
            return  # it is being collected, and its finaliser ends the hold
        if watch.reading:
            type(response).close(response)
            return
        try:
            if watch.can_drain():
                if watch.source is None:
                    watch.source = type(response).iter_bytes(response)
                for data in watch.source:
                    watch.feed(data)
                watch.rest()
        except Exception as error:
            _end(watch, f"the stream broke: {type(error).__name__}", "broken")
        finally:
            type(response).close(response)
            _end(watch, "the stream was closed before its end", "closed_early")

    return iter_bytes, close


def _end(watch: _Watch, note: str, flag: str) -> None:
    outcome = watch.outcome(note, flag)
    if outcome is not None:
        watch.hold.end(outcome)


def _async_patches(ref: Callable[[], Any], watch: _Watch) -> tuple[Any, Any]:
    async def aiter_bytes(chunk_size: int | None = None) -> AsyncIterator[bytes]:
        response = ref()
        watch.source = type(response).aiter_bytes(response)
        pieces = _Pieces(chunk_size)
        try:
            watch.reading = True
            async for data in watch.source:
                for out in pieces.cut(watch.feed(data)):
                    watch.reading = False
                    yield out
                    watch.reading = True
            last = pieces.cut(watch.rest(), last=True)
            watch.reading = False
            for out in last:
                yield out
        except GeneratorExit:
            raise
        except BaseException as error:
            watch.post(f"the stream broke: {type(error).__name__}", "broken")
            raise
        outcome = watch.outcome()
        if outcome is not None:
            await watch.hold.aend(outcome)

    async def aclose() -> None:
        response = ref()
        if response is None:
            return
        if watch.reading:
            await type(response).aclose(response)
            return
        try:
            if watch.can_drain():
                if watch.source is None:
                    watch.source = type(response).aiter_bytes(response)
                async for data in watch.source:
                    watch.feed(data)
                watch.rest()
        except Exception as error:
            watch.post(f"the stream broke: {type(error).__name__}", "broken")
        finally:
            # Posted before anything else is awaited: a cancelled task may not get further.
            watch.post("the stream was closed before its end", "closed_early")
            await type(response).aclose(response)

    return aiter_bytes, aclose


# ── the client ─────────────────────────────────────────────────────────────────────────


def meter_client(
    meter: Meter, client: _Client, *, provider: str | None = None, send_attribution: bool = False
) -> _Client:
    """See `Meter.openai`."""
    try:
        from openai import AsyncOpenAI, OpenAI
    except ImportError:
        raise MissingExtra("The OpenAI client", "openai") from None
    if not isinstance(client, (OpenAI, AsyncOpenAI)):
        raise ConfigError(
            f"meter.openai() takes an OpenAI or AsyncOpenAI client (or Azure's), not {type(client).__name__}"
        )
    base = type(client)
    if issubclass(base, _Metered):
        raise ConfigError("this client is metered already")
    door = _Door(meter, provider, send_attribution)
    metered: Any = object.__new__(_metered_class(base, door))
    for name, value in vars(client).items():
        # Resources that the client has made already (client.chat) call back into it.
        if getattr(value, "_client", None) is not client:
            metered.__dict__[name] = value
    return metered  # type: ignore[no-any-return]


def _metered_class(base: type, door: _Door) -> Any:
    from openai import OpenAI

    mixin = _MeteredSync if issubclass(base, OpenAI) else _MeteredAsync
    return metered_class(door.meter, base, mixin, door, dict)


class Instrumentation:
    """Every OpenAI client that is made is metered, until `remove()`; also as `with`. See
    `Meter.instrument_openai`."""

    _active: ClassVar[list[Instrumentation]] = []

    def __init__(self, meter: Meter) -> None:
        try:
            from openai import AsyncOpenAI, OpenAI
        except ImportError:
            raise MissingExtra("The OpenAI client", "openai") from None
        self._door = _Door(meter, None, False)
        self._active.append(self)
        # They stay: a class whose `__new__` was set and taken away again takes no arguments.
        for cls in (OpenAI, AsyncOpenAI):
            if "__new__" not in vars(cls):
                cls.__new__ = _new  # type: ignore[method-assign]

    def remove(self) -> None:
        """Clients that are made from now on are plain; those made before stay metered."""
        if self in self._active:
            self._active.remove(self)

    def __enter__(self) -> Instrumentation:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


def _new(cls: type, *args: Any, **kwargs: Any) -> Any:
    active = Instrumentation._active
    if active and not issubclass(cls, _Metered):
        cls = _metered_class(cls, active[-1]._door)
    return object.__new__(cls)
