"""Any model of Pydantic AI, metered: an object of a subclass of its own class.

Where it asks through an SDK's client that is metered, each attempt is reserved there, by the bytes that are
sent, and what is known here is whom it is for. Any other model (Bedrock, Gemini, Mistral, a function) is held
to its budgets here, by what Pydantic AI is about to send.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from ...calls.exchange import Exchange
from ...engine.engine import Engine
from ...engine.layers import seen
from ...rules.attribution import in_run
from ...rules.errors import ConfigError, UnknownPrice
from ..kit.call import Call
from ..kit.generation import Generation, Heard
from ..kit.metered import as_class, metered_class
from ..kit.settings import LIMIT_NAMES, lowered
from ..kit.stainless import Making
from ..kit.stand_ins import full_name
from ..kit.terms import Terms
from ..kit.undo import Undo
from .internals import (
    BASES,
    FUNCTION,
    INNER,
    THROUGH_OTHERS,
    asks_through_sdk,
    meter_client_of,
    run_context,
    watch_events,
)
from .translate import attribution_of, conversation_of, hear, provider_of_model, request_as_wire, usage_of


class Metered:
    """What all metered models are."""

    _behest: Terms


_LIMITING = frozenset((*LIMIT_NAMES, "extra_body"))


def _own(model: Any, name: str) -> Any:
    return getattr(super(Metered, model), name)


def _call(model: Any, messages: Any, settings: Any, params: Any, who: Any) -> tuple[Call, Any]:
    """A call that is held to its budgets here, and how to get the settings to make it with."""
    terms: Terms = model._behest
    merged, prepared = model.prepare_request(settings, params)
    said, own = who
    generation = Generation(
        terms.engine,
        request_as_wire(model.model_name, messages, merged or {}, prepared),
        who=said,
        fallback=own,
        provider=terms.provider or provider_of_model(model),
        can_limit=True,
        where=_where(model),
        conversation=lambda: conversation_of(messages),
    )

    def limited(hold: Any) -> dict[str, Any]:
        limit = hold.output_limit
        if limit is None:
            return {**(settings or {})}
        # The model's own settings may put a limit into the request, too.
        own = {n: v for n, v in (merged or {}).items() if n in _LIMITING}
        return {**(settings or {}), **lowered(own, limit), "max_tokens": limit}

    return Call(generation, type(model)), limited


def _where(model: Any) -> str:
    try:
        return str(model.base_url or "")
    except Exception:  # SDKs make it when it is asked for
        return ""


def _is_a_function(model: Any) -> bool:
    """Whether a function of the caller's answers. Without a price it is none of ours: what it asks is asked
    by a client of its own, which is metered, or warned of, as any other."""
    return full_name(type(model)) == FUNCTION


def _seen_below(model: Any, settings: Any) -> bool:
    """Whether what is asked is seen by a metered client; a websocket is seen by none."""
    transport = {**(model.settings or {}), **(settings or {})}.get("openai_transport")
    return transport != "websocket" and asks_through_sdk(model, model._behest.engine)


def _to_make(self: Any, messages: Any, settings: Any, prepared: Any, who: Any) -> tuple[Call, Any] | None:
    """See `_call`; None where what is asked is seen below, or asked by a function of the caller's."""
    if _seen_below(self, settings):
        return None
    try:
        return _call(self, messages, settings, prepared, who)
    except UnknownPrice:
        if not _is_a_function(self):
            raise
        return None


async def _request(self: Any, messages: Any, model_settings: Any, model_request_parameters: Any) -> Any:
    who = attribution_of(run_context())
    made = _to_make(self, messages, model_settings, model_request_parameters, who)
    if made is None:
        with in_run(*who):
            return await _own(self, "request")(messages, model_settings, model_request_parameters)
    call, limited = made
    return await call.amade(
        lambda hold: _own(self, "request")(messages, limited(hold), model_request_parameters), hear
    )


@asynccontextmanager
async def _request_stream(
    self: Any, messages: Any, model_settings: Any, model_request_parameters: Any, run_context: Any = None
) -> AsyncIterator[Any]:
    who = attribution_of(run_context if run_context is not None else _context())
    own = _own(self, "request_stream")
    async with AsyncExitStack() as stack:
        made = _to_make(self, messages, model_settings, model_request_parameters, who)
        if made is None:
            with in_run(*who):  # it is sent on entering
                stream = own(messages, model_settings, model_request_parameters, run_context)
                response = await stack.enter_async_context(stream)
            yield response
            return
        call, limited = made

        def send(hold: Any) -> Any:
            stream = own(messages, limited(hold), model_request_parameters, run_context)
            return stack.enter_async_context(stream)

        response = await call.aopened(send)
        source: list[Any] = []
        chunks: Any = call.aread(
            _Late(source), lambda _: hear(response.get()), lambda _before, _chunk: response, primed=True
        )
        await chunks.__anext__()

        def watched(events: Any) -> Any:
            source.append(events)
            return chunks

        watch_events(response, watched)
        try:
            yield response
        finally:
            # Left before its end, if it has not come to it.
            await chunks.aclose()


class _Late:
    """An iterator that is there when it is first asked; before, it has nothing."""

    def __init__(self, source: list[Any]) -> None:
        self._source = source

    def __aiter__(self) -> _Late:
        return self

    async def __anext__(self) -> Any:
        return await self._source[0].__anext__()

    async def aclose(self) -> None:
        for events in self._source:
            await events.aclose()


def _context() -> Any:
    return run_context()


async def _count(model: Any, operation: str, send: Callable[[], Awaitable[Any]]) -> Any:
    """What is billed in other ways is a call that needs a price of its own."""
    terms: Terms = model._behest
    said, own = attribution_of(_context())
    exchange = Exchange(
        terms.engine,
        operation,
        {"model": model.model_name},
        who=said,
        fallback=own,
        provider=terms.provider or provider_of_model(model),
    )
    hold = await terms.engine.areserve(exchange.plan)
    try:
        with seen():
            return await send()
    finally:
        hold.post(exchange.complete())


def _counted(name: str, operation: str) -> Any:
    async def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        send = partial(_own(self, name), *args, **kwargs)
        if operation != "realtime" and asks_through_sdk(self, self._behest.engine):
            with in_run(*attribution_of(_context())):
                return await send()
        return await _count(self, operation, send)

    return method


def _connecting(name: str) -> Any:
    @asynccontextmanager
    async def method(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async with AsyncExitStack() as stack:
            connecting = partial(_own(self, name), *args, **kwargs)
            yield await _count(self, "realtime", lambda: stack.enter_async_context(connecting()))

    return method


async def _embed(self: Any, inputs: Any, *, input_type: Any, settings: Any = None) -> Any:
    terms: Terms = self._behest
    own = partial(_own(self, "embed"), inputs, input_type=input_type, settings=settings)
    said, named = attribution_of(run_context())
    if asks_through_sdk(self, terms.engine):
        with in_run(said, named):
            return await own()
    generation = Generation(
        terms.engine,
        {"model": self.model_name, "input": [inputs] if isinstance(inputs, str) else list(inputs)},
        operation="embeddings",
        who=said,
        fallback=named,
        provider=terms.provider or provider_of_model(self),
        where=_where(self),
    )
    return await Call(generation, type(self)).amade(
        lambda hold: own(), lambda result: Heard(usage_of(result.usage))
    )


# ── the models ─────────────────────────────────────────────────────────────────────────


_METHODS = {
    "request": _request,
    "request_stream": _request_stream,
    "embed": _embed,
    "batch_create": _counted("batch_create", "batches"),
    "generate": _counted("generate", "images"),
    "create_client_secret": _counted("create_client_secret", "realtime"),
    "answer_webrtc_offer": _counted("answer_webrtc_offer", "realtime"),
    "connect": _connecting("connect"),
    "connect_webrtc": _connecting("connect_webrtc"),
}


def _methods(base: Any) -> dict[str, Any]:
    return {name: method for name, method in _METHODS.items() if hasattr(base, name)}


def _class_of(base: Any, terms: Terms) -> Any:
    return metered_class(terms, base, Metered, lambda: _methods(base))


def meter_model(engine: Engine, model: Any, provider: str | None = None) -> Any:
    """See `PydanticAIDoor.pydantic_ai`."""
    if not isinstance(model, BASES):
        raise ConfigError(f"meter.pydantic_ai() takes a model of Pydantic AI, not {type(model).__name__}")
    if isinstance(model, Metered):
        raise ConfigError("this model is metered already")
    if isinstance(model, THROUGH_OTHERS):
        return _with_inner(engine, model, provider)
    metered = as_class(model, _class_of(type(model), Terms(engine, provider)))
    meter_client_of(metered, engine, provider)
    return metered


def _with_inner(engine: Engine, model: Any, provider: str | None) -> Any:
    """A model that has others answer, with those metered."""

    def metered(inner: Any) -> Any:
        return inner if isinstance(inner, Metered) else meter_model(engine, inner, provider)

    outer = as_class(model, type(model))
    for name in INNER:
        held = vars(outer).get(name)
        if isinstance(held, (list, tuple)):
            setattr(outer, name, type(held)(metered(inner) for inner in held))
        elif held is not None:
            setattr(outer, name, metered(held))
    return outer


class _Making(Making):
    def _new(self, cls: type, *args: Any, **kwargs: Any) -> Any:
        return object.__new__(cls) if issubclass(cls, THROUGH_OTHERS) else super()._new(cls, *args, **kwargs)


_making = _Making(Metered, _class_of)


def meter_what_is_made(engine: Engine) -> Undo:
    """See `PydanticAIDoor.instrument_pydantic_ai`."""
    return _making.begin(Terms(engine), BASES)
