"""Any chat model or text model of LangChain, metered: an object of a subclass of its own class.

So it stays what it was for `isinstance`, `bind_tools`, `with_structured_output`, tracing and
caching. Unlike a callback it can change the request: near the cap it lowers the output limit,
and it asks streams for their usage where the class has a setting for that.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from langchain_core.language_models import BaseChatModel, BaseLLM
from langchain_core.messages import HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, LLMResult

from ...calls import Hold, Offer, Outcome, offer, take_offer
from ...clients import metered_clients
from ...errors import ConfigError
from ...generation import LIMIT_NAMES, Generation, Heard, finish, output_limit
from ...meter import Meter
from ...steps import Steps
from .handler import take_run
from .translate import METERED_BY, attribution_of, hear, name_model, request_as_wire

log = logging.getLogger("behest")

M = TypeVar("M")

_LAYER = "langchain model"

_inside: ContextVar[frozenset[type]] = ContextVar("behest_langchain_inside", default=frozenset())
"""Metered classes whose call is under way here: a model's methods call each other."""


@contextmanager
def _within(cls: type) -> Iterator[None]:
    token = _inside.set(_inside.get() | {cls})
    try:
        yield
    finally:
        _inside.reset(token)


@dataclass(frozen=True)
class _Door:
    meter: Meter
    provider: str | None
    limit_field: str | None


class _Call:
    """One call of a metered model."""

    def __init__(
        self, model: Any, messages: Any, stop: Any, run_manager: Any, kwargs: dict[str, Any]
    ) -> None:
        door: _Door = model._behest
        self.model, self.kwargs, self.meter = model, kwargs, door.meter
        chat = isinstance(model, BaseChatModel)
        params = model._get_invocation_params(stop=stop, **kwargs) if chat else {**_settings(model), **kwargs}
        settings = {k: v for k, v in vars(model).items() if isinstance(v, (str, int))}
        metadata: Mapping[str, Any] = getattr(run_manager, "metadata", None) or {}
        named = name_model(params, {**model._get_ls_params(stop=stop, **kwargs), **metadata}, settings)
        prompts = [] if chat else list(messages)
        asked = messages if chat else [HumanMessage(p) for p in prompts]
        request = request_as_wire(asked, params, named.model)
        self.limits = [name for name in LIMIT_NAMES if kwargs.get(name) is not None]
        self.field = door.limit_field
        limit = output_limit(params, settings)
        if limit is not None:
            request["max_tokens"] = limit
        who, fallback = attribution_of(metadata)
        operation = "chat" if chat else "completions"
        # A callback has a hold for each prompt of a request; one is replaced, the others dropped.
        outer = take_run(self.meter, getattr(run_manager, "run_id", None))
        for extra in outer[1:]:
            extra.post(Outcome("cancelled"))
            extra.hand_over()
        self.outer = outer[0] if outer else take_offer(self.meter, operation, named.model, layer=_LAYER)
        self.generation = Generation(
            self.meter,
            request,
            operation=operation,
            who=who.over(self.outer.plan.who) if self.outer else who,
            fallback=fallback,
            provider=door.provider or named.provider,
            can_limit=bool(self.limits or self.field),
            choices=max(1, len(prompts)) * max(1, *(int(params.get(n) or 1) for n in ("n", "best_of"))),
        )
        self.hold: Hold | None = None
        self.offered: Offer | None = None

    def reserve(self) -> Steps[tuple[Any, dict[str, Any]]]:
        """The model and keywords to call, under a hold."""
        self.hold = yield from self.meter.reserving(self.generation.plan, self.outer)
        self.offered = offer(self.hold, _LAYER)
        limit = self.hold.output_limit
        if limit is None or limit == self.generation.bound.output_limit:
            return self.model, self.kwargs
        if self.limits:
            return self.model, {**self.kwargs, **dict.fromkeys(self.limits, limit)}
        changes: dict[str, Any] = {str(self.field): limit}
        extra = getattr(self.model, "model_kwargs", None)
        if isinstance(extra, dict) and any(name in extra for name in LIMIT_NAMES):
            changes["model_kwargs"] = {k: limit if k in LIMIT_NAMES else v for k, v in extra.items()}
        return self.model.model_copy(update=changes), self.kwargs

    def answering(self) -> None:
        if self.offered is not None:
            self.offered.withdraw()
            self.offered = None

    def answered(self, result: Any) -> Steps[None]:
        self.answering()
        assert self.hold is not None
        yield from _steps(finish(self.hold, self.generation.complete(_listen(result))))

    def failed(self, error: BaseException, result: Any = None) -> Steps[None]:
        self.answering()
        if self.hold is not None:
            outcome = self.generation.failed(error, _listen(result))
            yield from _steps(finish(self.hold, outcome, error))


def _settings(model: Any) -> dict[str, Any]:
    """A text model's own parameters, under the name that this version of LangChain has for them."""
    named: Any = getattr(model, "asdict", None) or model.dict
    return dict(named())


def _steps(steps: Steps[None] | None) -> Steps[None]:
    if steps is not None:
        yield from steps


def _listen(result: Any) -> Heard:
    """What a result, or the chunks of a stream so far, say."""
    if result is None:
        return Heard()
    if isinstance(result, list):
        if not result:
            return Heard()
        whole = result[0]
        for chunk in result[1:]:
            whole = whole + chunk
        if isinstance(whole, ChatGenerationChunk):
            whole = ChatGeneration(message=whole.message)
        return hear(LLMResult(generations=[[whole]]))
    generations = result.generations
    rows = generations if generations and isinstance(generations[0], list) else [generations]
    return hear(LLMResult(generations=rows, llm_output=result.llm_output))


class _Metered:
    """What all metered classes are; the methods around the class's own come with `_make_class`."""

    _behest: _Door
    _behest_class: type

    def __reduce__(self) -> tuple[Any, ...]:
        door = self._behest
        return meter_model, (door.meter, _plain(self), door.provider, door.limit_field)


def _get_ls_params(self: Any, *args: Any, **kwargs: Any) -> Any:
    named = super(_Metered, self)._get_ls_params(*args, **kwargs)
    return {**named, METERED_BY: self._behest.meter.token}


def _generate(self: Any, asked: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
    cls = self._behest_class
    if cls in _inside.get():
        return super(_Metered, self)._generate(asked, stop=stop, run_manager=run_manager, **kwargs)
    call = _Call(self, asked, stop, run_manager, kwargs)
    model, kwargs = call.meter.run(call.reserve())
    try:
        with _within(cls):
            result = super(_Metered, model)._generate(asked, stop=stop, run_manager=run_manager, **kwargs)
    except BaseException as error:
        call.meter.run(call.failed(error))
        raise
    call.meter.run(call.answered(result))
    return result


async def _agenerate(self: Any, asked: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
    cls = self._behest_class
    if cls in _inside.get():
        return await super(_Metered, self)._agenerate(asked, stop=stop, run_manager=run_manager, **kwargs)
    call = _Call(self, asked, stop, run_manager, kwargs)
    model, kwargs = await call.meter.arun(call.reserve())
    try:
        with _within(cls):
            result = await super(_Metered, model)._agenerate(
                asked, stop=stop, run_manager=run_manager, **kwargs
            )
    except BaseException as error:
        await call.meter.arun(call.failed(error))
        raise
    await call.meter.arun(call.answered(result))
    return result


def _stream(self: Any, asked: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Iterator[Any]:
    cls = self._behest_class
    if cls in _inside.get():
        yield from super(_Metered, self)._stream(asked, stop=stop, run_manager=run_manager, **kwargs)
        return
    call = _Call(self, asked if isinstance(asked, list) else [asked], stop, run_manager, kwargs)
    model, kwargs = call.meter.run(call.reserve())
    chunks: list[Any] = []
    inner: Any = None
    try:
        # Entered anew around each step: between two, the consumer's own code runs.
        with _within(cls):
            inner = super(_Metered, model)._stream(asked, stop=stop, run_manager=run_manager, **kwargs)
        while True:
            with _within(cls):
                chunk = next(inner, None)
            if chunk is None:
                break
            call.answering()
            chunks.append(chunk)
            yield chunk
    except BaseException as error:
        if isinstance(error, GeneratorExit) and inner is not None:
            inner.close()
        call.meter.run(call.failed(error, chunks))
        raise
    call.meter.run(call.answered(chunks))


async def _astream(
    self: Any, asked: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
) -> AsyncIterator[Any]:
    cls = self._behest_class
    if cls in _inside.get():
        async for chunk in super(_Metered, self)._astream(
            asked, stop=stop, run_manager=run_manager, **kwargs
        ):
            yield chunk
        return
    call = _Call(self, asked if isinstance(asked, list) else [asked], stop, run_manager, kwargs)
    model, kwargs = await call.meter.arun(call.reserve())
    chunks: list[Any] = []
    inner: Any = None
    try:
        with _within(cls):
            inner = super(_Metered, model)._astream(asked, stop=stop, run_manager=run_manager, **kwargs)
        while True:
            with _within(cls):
                try:
                    chunk = await inner.__anext__()
                except StopAsyncIteration:
                    break
            call.answering()
            chunks.append(chunk)
            yield chunk
    except BaseException as error:
        # Posted before anything is awaited: a cancelled task may not get further.
        await call.meter.arun(call.failed(error, chunks))
        if isinstance(error, GeneratorExit) and inner is not None:
            await inner.aclose()
        raise
    await call.meter.arun(call.answered(chunks))


_STREAMS = {"_stream": _stream, "_astream": _astream}
_NATIVE_EVENTS = ("_stream_chat_model_events", "_astream_chat_model_events")
_lock = threading.Lock()


def meter_model(meter: Meter, model: M, provider: str | None = None, limit_field: str | None = None) -> M:
    """See `Meter.langchain_model`."""
    if not isinstance(model, (BaseChatModel, BaseLLM)):
        raise ConfigError(
            f"meter.langchain_model() takes a chat model or an LLM, not {type(model).__name__}; wrap the "
            "model itself, and bind tools or settings to the wrapped one"
        )
    if isinstance(model, _Metered):
        raise ConfigError("this model is metered already")
    base: Any = type(model)
    if limit_field is None:
        limit_field = next((n for n in LIMIT_NAMES if n in base.model_fields), None)
    elif limit_field not in base.model_fields:
        raise ConfigError(f"{base.__name__} has no field {limit_field!r}")
    door = _Door(meter, provider, limit_field)
    classes: dict[tuple[type, _Door], Any] = meter.attached("langchain.classes", dict)
    with _lock:
        cls = classes.get((base, door))
        if cls is None:
            cls = classes[base, door] = _make_class(base, door)
    return _prepared(_as_class(model, cls))  # type: ignore[no-any-return]


def _prepared(model: Any) -> Any:
    door: _Door = model._behest
    clients = metered_clients(door.meter, vars(model), door.provider)
    vars(model).update(clients)
    if not clients and getattr(model, "max_retries", None):
        _say_retries(door.meter, type(model).__name__)
    if getattr(model, "stream_usage", True) is None:
        model.stream_usage = True
    return model


def _init(self: Any, *args: Any, **kwargs: Any) -> None:
    # LangChain makes models anew from their class, e.g. for `configurable_fields`.
    super(_Metered, self).__init__(*args, **kwargs)
    _prepared(self)


def _say_retries(meter: Meter, name: str) -> None:
    told: set[str] = meter.attached("langchain.retries told", set)
    if name not in told:
        told.add(name)
        log.warning(
            "%s retries by itself (max_retries), out of our sight: an attempt that the provider bills and "
            "that is then repeated is not counted. Set max_retries=0, and use .with_retry() instead.",
            name,
        )


def _make_class(base: Any, door: _Door) -> type:
    top: Any = BaseChatModel if issubclass(base, BaseChatModel) else BaseLLM
    namespace: dict[str, Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__init__": _init,
        "_get_ls_params": _get_ls_params,
        "_generate": _generate,
        "_agenerate": _agenerate,
        # Streaming is only claimed where the class has it: LangChain looks.
        **{n: f for n, f in _STREAMS.items() if getattr(base, n) is not getattr(top, n)},
        # A class's own event streams would pass us by; without them LangChain makes events
        # from `_stream`.
        **{n: None for n in _NATIVE_EVENTS if getattr(base, n, None) is not None},
    }
    cls = type(base)(base.__name__, (_Metered, base), namespace)
    cls._behest, cls._behest_class = door, cls
    return cls  # type: ignore[no-any-return]


_STATE = ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")


def _as_class(model: Any, cls: Any) -> Any:
    """`model` as an object of `cls`, which has the same fields."""
    other = cls.__new__(cls)
    for name in _STATE:
        value = getattr(model, name, None)
        object.__setattr__(other, name, value.copy() if isinstance(value, (dict, set)) else value)
    return other


def _plain(model: Any) -> Any:
    return _as_class(model, type(model).__mro__[2])
