"""Any chat model or text model of LangChain, metered: an object of a subclass of its own class.

So it stays what it was for `isinstance`, `bind_tools`, `with_structured_output`, tracing and
caching. Unlike a callback it can change the request: near the cap it lowers the output limit,
and it asks streams for their usage where the class has a setting for that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

from langchain_core.callbacks import CallbackManager
from langchain_core.language_models import BaseChatModel, BaseLLM
from langchain_core.messages import HumanMessage
from langchain_core.outputs import LLMResult
from langchain_core.runnables import ensure_config

from ...engine.engine import Engine
from ...engine.holds import Hold
from ...engine.outcomes import CANCELLED
from ...rules.errors import ConfigError
from ..kit.call import Call, is_inside
from ..kit.clients import keeps_metered_clients, meter_clients_of, say_retries
from ..kit.generation import Generation, Heard
from ..kit.masking import looks_through, off_loop, only
from ..kit.metered import METERED_BY, as_class, metered_class, plain
from ..kit.settings import limit_field_of, model_field_of, output_limit, url_in
from ..kit.stand_ins import full_name
from ..kit.terms import Terms
from .handler import take_run
from .masking import ChunksPutBack, put_back, rebuilt, view_of
from .translate import attribution_of, conversation_of, hear, hear_chunks, name_model, request_as_wire

M = TypeVar("M")


def _call(
    model: Any, messages: Any, stop: Any, run_manager: Any, kwargs: dict[str, Any]
) -> tuple[Call, Callable[[Hold], tuple[Any, dict[str, Any]]], Any]:
    """A call of a metered model, how to get the model and keywords to make it with, and what to ask it."""
    terms: Terms = model._behest
    chat = isinstance(model, BaseChatModel)
    params = model._get_invocation_params(stop=stop, **kwargs) if chat else {**_settings(model), **kwargs}
    settings = {k: v for k, v in vars(model).items() if isinstance(v, (str, int))}
    metadata = _metadata_of(model, run_manager)
    said = {**model._get_ls_params(stop=stop, **kwargs), **metadata}
    named = name_model(params, said, settings, full_name(type(model)))
    prompts = [] if chat else list(messages)
    asked = messages if chat else [HumanMessage(p) for p in prompts]
    limit = output_limit(params, settings)

    def requested(said: Any) -> dict[str, Any]:
        found = request_as_wire(said, params, named.model, kwargs)
        return found if limit is None else {**found, "max_tokens": limit}

    request = requested(asked)
    sent = messages
    deferred = _is_deferred(model)
    masking: dict[str, Any] = {}
    if looks_through(terms.engine, deferred):
        view = {**request, "messages": view_of(asked)}

        def remade(made: Mapping[str, Any]) -> Mapping[str, Any]:
            nonlocal sent
            new = rebuilt(asked, view["messages"], only("messages", view, made))
            sent = new if chat else [m.content for m in new]
            return requested(new)

        masking = {"view": view, "remade": remade}
    who, fallback = attribution_of(metadata)
    operation = "chat" if chat else "completions"
    # A callback has a hold for each prompt of a request; one is replaced, the others dropped.
    held = take_run(terms.engine, getattr(run_manager, "run_id", None))
    for extra in held[1:]:
        extra.post(CANCELLED)
        extra.hand_over()
    generation = Generation(
        terms.engine,
        request,
        operation=operation,
        who=who,
        fallback=fallback,
        provider=terms.provider or named.provider,
        can_limit=terms.limit_field is not None or output_limit(kwargs) is not None,
        choices=max(1, len(prompts)) * max(1, *(int(params.get(n) or 1) for n in ("n", "best_of"))),
        outer=held[0] if held else None,
        where=url_in(settings),
        deferred=deferred,
        conversation=lambda: conversation_of(asked),
        model_field=model_field_of(model, named.model, kwargs)
        if terms.engine.downgrade is not None
        else None,
        **masking,
    )
    call = Call(generation, type(model))

    def limited(hold: Hold) -> tuple[Any, dict[str, Any]]:
        return call.generation.limited(hold, model, kwargs, terms.limit_field)

    return call, limited, sent


async def _acall(
    model: Any, messages: Any, stop: Any, run_manager: Any, kwargs: dict[str, Any]
) -> tuple[Call, Callable[[Hold], tuple[Any, dict[str, Any]]], Any]:
    """`_call` for coroutines."""
    looks = looks_through(model._behest.engine, _is_deferred(model))
    return await off_loop(looks, _call, model, messages, stop, run_manager, kwargs)


def _is_deferred(model: Any) -> bool:
    engine: Engine = model._behest.engine
    return engine.policy is not None and keeps_metered_clients(model, engine)


def _put_back(call: Call, result: Any) -> Any:
    restorer = call.generation.restorer
    return result if restorer is None else put_back(result, restorer)


# ── whose run it is ────────────────────────────────────────────────────────────────────

# `BaseChatModel` (langchain-core 1.0.0 to 1.8.3) hands `_generate` the manager of the run, which
# knows the run's metadata, and `_stream` and `_astream` mostly not: neither in `stream` and
# `astream`, nor in `generate` and `agenerate` where a handler wants an answer in chunks. So these
# four note what they were asked with. `BaseLLM` hands its manager to all.


class _Asked(NamedTuple):
    """What a public method of a chat model was asked with."""

    model: Any
    callbacks: Any
    metadata: Mapping[str, Any] | None


_asked: ContextVar[_Asked | None] = ContextVar("behest_langchain_asked", default=None)


@contextmanager
def _asking(asked: _Asked) -> Iterator[None]:
    token = _asked.set(asked)
    try:
        yield
    finally:
        _asked.reset(token)


def _asked_with(model: Any, config: Any) -> _Asked:
    config = ensure_config(config)
    return _Asked(model, config.get("callbacks"), config.get("metadata"))


def _metadata_of(model: Any, run_manager: Any) -> Mapping[str, Any]:
    """The run's metadata: the manager's, or what LangChain makes a manager's of."""
    if run_manager is not None:
        return getattr(run_manager, "metadata", None) or {}
    asked = _asked.get()
    if asked is None or asked.model is not model:
        asked = _asked_with(model, None)
    manager = CallbackManager.configure(
        inheritable_callbacks=asked.callbacks,
        inheritable_metadata=dict(asked.metadata or {}),
        local_metadata=model.metadata,
    )
    return manager.metadata


def _ask_generate(
    self: Any, messages: Any, stop: Any = None, callbacks: Any = None, *, metadata: Any = None, **kwargs: Any
) -> Any:
    with _asking(_Asked(self, callbacks, metadata)):
        return super(_Metered, self).generate(messages, stop, callbacks, metadata=metadata, **kwargs)


async def _ask_agenerate(
    self: Any, messages: Any, stop: Any = None, callbacks: Any = None, *, metadata: Any = None, **kwargs: Any
) -> Any:
    with _asking(_Asked(self, callbacks, metadata)):
        return await super(_Metered, self).agenerate(messages, stop, callbacks, metadata=metadata, **kwargs)


# A generator shares its consumer's context: the note is there while a chunk is made, and not
# while the consumer has it.


def _ask_stream(self: Any, input: Any, config: Any = None, **kwargs: Any) -> Iterator[Any]:
    asked = _asked_with(self, config)
    chunks = super(_Metered, self).stream(input, config, **kwargs)
    try:
        while True:
            with _asking(asked):
                chunk = next(chunks, _END)
            if chunk is _END:
                return
            yield chunk
    finally:
        chunks.close()


async def _ask_astream(self: Any, input: Any, config: Any = None, **kwargs: Any) -> AsyncIterator[Any]:
    asked = _asked_with(self, config)
    chunks = super(_Metered, self).astream(input, config, **kwargs)
    try:
        while True:
            with _asking(asked):
                chunk = await anext(chunks, _END)
            if chunk is _END:
                return
            yield chunk
    finally:
        await chunks.aclose()


_END = object()
_ASKS = {
    "generate": _ask_generate,
    "agenerate": _ask_agenerate,
    "stream": _ask_stream,
    "astream": _ask_astream,
}


# ── the methods that ask the provider ──────────────────────────────────────────────────


def _settings(model: Any) -> dict[str, Any]:
    """A text model's own parameters, under the name that this version of LangChain has for them."""
    named: Any = getattr(model, "asdict", None) or model.dict
    return dict(named())


def _listen(result: Any) -> Heard:
    """What a result, or the chunks of a stream so far, say."""
    if result is None:
        return Heard()
    if isinstance(result, list):
        return hear_chunks(result)
    generations = result.generations
    rows = generations if generations and isinstance(generations[0], list) else [generations]
    return hear(LLMResult(generations=rows, llm_output=result.llm_output))


class _Metered:
    """What all metered classes are; the methods around the class's own come with `_methods`."""

    _behest: Terms

    def __reduce__(self) -> tuple[Any, ...]:
        terms = self._behest
        return meter_model, (terms.engine, plain(self), terms.provider, terms.limit_field)


def _get_ls_params(self: Any, *args: Any, **kwargs: Any) -> Any:
    named = super(_Metered, self)._get_ls_params(*args, **kwargs)
    return {**named, METERED_BY: self._behest.engine.token}


def _generate(self: Any, asked: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
    if is_inside(type(self)):
        return super(_Metered, self)._generate(asked, stop=stop, run_manager=run_manager, **kwargs)
    call, limited, sent = _call(self, asked, stop, run_manager, kwargs)

    def send(hold: Hold) -> Any:
        model, given = limited(hold)
        return super(_Metered, model)._generate(sent, stop=stop, run_manager=run_manager, **given)

    return _put_back(call, call.made(send, _listen))


async def _agenerate(self: Any, asked: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
    if is_inside(type(self)):
        return await super(_Metered, self)._agenerate(asked, stop=stop, run_manager=run_manager, **kwargs)
    call, limited, sent = await _acall(self, asked, stop, run_manager, kwargs)

    def send(hold: Hold) -> Any:
        model, given = limited(hold)
        return super(_Metered, model)._agenerate(sent, stop=stop, run_manager=run_manager, **given)

    return _put_back(call, await call.amade(send, _listen))


def _stream(self: Any, asked: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Iterator[Any]:
    if is_inside(type(self)):
        yield from super(_Metered, self)._stream(asked, stop=stop, run_manager=run_manager, **kwargs)
        return
    call, limited, sent = _call(self, _prompts(asked), stop, run_manager, kwargs)
    if not isinstance(asked, list):
        (sent,) = sent

    def send(hold: Hold) -> Any:
        model, given = limited(hold)
        return super(_Metered, model)._stream(sent, stop=stop, run_manager=run_manager, **given)

    chunks = call.read(call.opened(send), _listen, _gather)
    restorer = call.generation.restorer
    if restorer is None:
        yield from chunks
        return
    whole = ChunksPutBack(restorer)
    try:
        for chunk in chunks:
            yield whole.chunk(chunk)
        yield from whole.rest()
    finally:
        chunks.close()  # type: ignore[attr-defined]


async def _astream(
    self: Any, asked: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
) -> AsyncIterator[Any]:
    if is_inside(type(self)):
        async for chunk in super(_Metered, self)._astream(
            asked, stop=stop, run_manager=run_manager, **kwargs
        ):
            yield chunk
        return
    call, limited, sent = await _acall(self, _prompts(asked), stop, run_manager, kwargs)
    if not isinstance(asked, list):
        (sent,) = sent

    def send(hold: Hold) -> Any:
        model, given = limited(hold)
        return super(_Metered, model)._astream(sent, stop=stop, run_manager=run_manager, **given)

    chunks = call.aread(await call.aopened(send), _listen, _gather)
    restorer = call.generation.restorer
    whole = None if restorer is None else ChunksPutBack(restorer)
    try:
        async for chunk in chunks:
            yield chunk if whole is None else whole.chunk(chunk)
        for chunk in whole.rest() if whole is not None else ():
            yield chunk
    finally:
        await chunks.aclose()  # type: ignore[attr-defined]


def _prompts(asked: Any) -> Any:
    """A stream of a text model is asked with one prompt."""
    return asked if isinstance(asked, list) else [asked]


def _gather(chunks: list[Any] | None, chunk: Any) -> list[Any]:
    if chunks is None:
        return [chunk]
    chunks.append(chunk)
    return chunks


_STREAMS = {"_stream": _stream, "_astream": _astream}
_NATIVE_EVENTS = ("_stream_chat_model_events", "_astream_chat_model_events")


def meter_model(engine: Engine, model: M, provider: str | None = None, limit_field: str | None = None) -> M:
    """See `Meter.langchain_model`."""
    if not isinstance(model, (BaseChatModel, BaseLLM)):
        raise ConfigError(
            f"meter.langchain_model() takes a chat model or an LLM, not {type(model).__name__}; wrap the "
            "model itself, and bind tools or settings to the wrapped one"
        )
    if isinstance(model, _Metered):
        raise ConfigError("this model is metered already")
    base: Any = type(model)
    terms = Terms(engine, provider, limit_field_of(base, limit_field))
    cls = metered_class(terms, base, _Metered, lambda: _methods(base))
    return _prepared(as_class(model, cls))  # type: ignore[no-any-return]


def is_metered(model: object) -> bool:
    """Whether a model is metered itself, by whichever meter."""
    return isinstance(model, _Metered)


def _prepared(model: Any) -> Any:
    terms: Terms = model._behest
    reached = meter_clients_of(model, terms.engine, terms.provider)
    if not reached and getattr(model, "max_retries", None):
        say_retries(terms.engine, type(model).__name__, ", and use .with_retry()")
    if not reached and terms.engine.stream_usage and getattr(model, "stream_usage", True) is None:
        model.stream_usage = True  # a client that is metered asks by itself, and knows what to do if refused
    return model


def _init(self: Any, *args: Any, **kwargs: Any) -> None:
    # LangChain makes models anew from their class, e.g. for `configurable_fields`.
    super(_Metered, self).__init__(*args, **kwargs)
    _prepared(self)


def _methods(base: Any) -> dict[str, Any]:
    top: Any = BaseChatModel if issubclass(base, BaseChatModel) else BaseLLM
    return {
        "__init__": _init,
        "_get_ls_params": _get_ls_params,
        "_generate": _generate,
        "_agenerate": _agenerate,
        **(_ASKS if top is BaseChatModel else {}),
        # Streaming is only claimed where the class has it: LangChain looks.
        **{n: f for n, f in _STREAMS.items() if getattr(base, n) is not getattr(top, n)},
        # A class's own event streams would pass us by; without them LangChain makes events
        # from `_stream`.
        **{n: None for n in _NATIVE_EVENTS if getattr(base, n, None) is not None},
    }
