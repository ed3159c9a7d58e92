"""Any LLM of LlamaIndex, metered: an object of a subclass of its own class.

So it keeps its metadata, its function calling, its structured outputs and its streams. Near the
cap it lowers the output limit; and where the OpenAI SDK is under it, that is metered, too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from llama_index.core.base.llms.types import ChatMessage

from ...engine.engine import Engine
from ...engine.holds import Hold
from ...rules.errors import ConfigError
from ..kit.call import Call, is_inside
from ..kit.clients import keeps_metered_clients, meter_clients_of, metered_clients, say_retries
from ..kit.generation import Generation
from ..kit.masking import looks_through, off_loop, only
from ..kit.metered import METERED_BY, as_class, metered_class, plain
from ..kit.settings import limit_field_of, model_field_of, output_limit, url_in
from ..kit.terms import Terms
from .masking import ChunksPutBack, put_back, rebuilt, view_of
from .translate import (
    attribution,
    conversation_of,
    hear,
    model_name,
    provider_by,
    request_as_wire,
    settings_of,
)

if TYPE_CHECKING:
    from ...policy.placeholders import Restorer

M = TypeVar("M")


class Metered:
    """What all metered classes are."""

    _behest: Terms


def _call(model: Any, asked: Any, kwargs: dict[str, Any]) -> tuple[Call, Callable[[Hold], Any], Any]:
    """A call of a metered model, how to get the model and keywords to make it with, and what to ask it."""
    terms: Terms = model._behest
    settings = {**settings_of(model), **kwargs}
    name = model_name(model, settings)
    sent = asked
    messages: Sequence[ChatMessage] = asked
    if isinstance(asked, str):
        formatted = kwargs.get("formatted") or not callable(getattr(model, "completion_to_prompt", None))
        messages = [ChatMessage(asked if formatted else model.completion_to_prompt(asked))]
    request = request_as_wire(messages, settings, name, kwargs)
    deferred = is_deferred(model)
    masking: dict[str, Any] = {}
    if looks_through(terms.engine, deferred):
        view = {**request, "messages": view_of(messages)}

        def remade(made: Mapping[str, Any]) -> Mapping[str, Any]:
            nonlocal sent
            new = sent = rebuilt(messages, view["messages"], only("messages", view, made))
            if isinstance(asked, str):
                sent = new[0].content
                if messages[0].content != asked:
                    kwargs["formatted"] = True  # what was looked through is what is sent
            return request_as_wire(new, settings, name, kwargs)

        masking = {"view": view, "remade": remade}
    generation = Generation(
        terms.engine,
        request,
        who=attribution(),
        provider=terms.provider or provider_by(model, settings),
        can_limit=terms.limit_field is not None or output_limit(kwargs) is not None,
        where=url_in(settings),
        deferred=deferred,
        **masking,
        conversation=lambda: conversation_of(messages),
        model_field=model_field_of(model, name, kwargs) if terms.engine.downgrade else None,
    )
    call = Call(generation, type(model))

    def limited(hold: Hold) -> tuple[Any, dict[str, Any]]:
        return call.generation.limited(hold, model, kwargs, terms.limit_field)

    return call, limited, sent


async def _acall(model: Any, asked: Any, kwargs: dict[str, Any]) -> tuple[Call, Callable[[Hold], Any], Any]:
    """`_call` for coroutines."""
    looks = looks_through(model._behest.engine, is_deferred(model))
    return await off_loop(looks, _call, model, asked, kwargs)


def is_deferred(model: Any) -> bool:
    """Whether the policy, if there is one, is asked by what a metered model asks through."""
    engine: Engine = model._behest.engine
    return engine.policy is not None and asks_through_sdk(model, engine)


# Classes that make an OpenAI client when it is first needed, by `_client_method`'s methods.
_SDK_MODULES = ("llama_index.llms.openai", "llama_index.embeddings.openai")


def asks_through_sdk(model: Any, engine: Engine) -> bool:
    """Whether all that a metered model asks goes through SDK clients that are metered themselves."""
    return keeps_metered_clients(model, engine) or any(
        c.__module__.startswith(_SDK_MODULES) and ("_get_client" in vars(c)) for c in type(model).__mro__[2:]
    )


def _last(_before: Any, chunk: Any) -> Any:
    """Chunks carry all that came before them."""
    return chunk


def _send(name: str, asked: Any, limited: Callable[[Hold], Any]) -> Callable[[Hold], Any]:
    def send(hold: Hold) -> Any:
        model, kwargs = limited(hold)
        return getattr(super(Metered, model), name)(asked, **kwargs)

    return send


def _whole(name: str) -> Any:
    def method(self: Any, asked: Any = None, *args: Any, **kwargs: Any) -> Any:
        asked = _asked(asked, args, kwargs)
        if is_inside(type(self)):
            return getattr(super(Metered, self), name)(asked, **kwargs)
        call, limited, sent = _call(self, asked, kwargs)
        return _put_back(call, call.made(_send(name, sent, limited), hear))

    return method


def _awhole(name: str) -> Any:
    async def method(self: Any, asked: Any = None, *args: Any, **kwargs: Any) -> Any:
        asked = _asked(asked, args, kwargs)
        if is_inside(type(self)):
            return await getattr(super(Metered, self), name)(asked, **kwargs)
        call, limited, sent = await _acall(self, asked, kwargs)
        return _put_back(call, await call.amade(_send(name, sent, limited), hear))

    return method


def _streamed(name: str) -> Any:
    def method(self: Any, asked: Any = None, *args: Any, **kwargs: Any) -> Any:
        asked = _asked(asked, args, kwargs)
        if is_inside(type(self)):
            return getattr(super(Metered, self), name)(asked, **kwargs)
        call, limited, sent = _call(self, asked, kwargs)
        chunks = call.read(call.opened(_send(name, sent, limited)), hear, _last, primed=True)
        next(chunks)
        restorer = call.generation.restorer
        return chunks if restorer is None else _chunks_put_back(chunks, restorer)

    return method


def _astreamed(name: str) -> Any:
    async def method(self: Any, asked: Any = None, *args: Any, **kwargs: Any) -> Any:
        asked = _asked(asked, args, kwargs)
        if is_inside(type(self)):
            return await getattr(super(Metered, self), name)(asked, **kwargs)
        call, limited, sent = await _acall(self, asked, kwargs)
        opened = await call.aopened(_send(name, sent, limited))
        chunks = call.aread(opened, hear, _last, primed=True)
        await chunks.__anext__()
        restorer = call.generation.restorer
        return chunks if restorer is None else _achunks_put_back(chunks, restorer)

    return method


def _put_back(call: Call, response: Any) -> Any:
    restorer = call.generation.restorer
    return response if restorer is None else put_back(response, restorer)


def _chunks_put_back(chunks: Any, restorer: Restorer) -> Iterator[Any]:
    whole = ChunksPutBack(restorer)
    try:
        for chunk in chunks:
            yield whole.chunk(chunk)
        yield from whole.rest()
    finally:
        chunks.close()


async def _achunks_put_back(chunks: Any, restorer: Restorer) -> AsyncIterator[Any]:
    whole = ChunksPutBack(restorer)
    try:
        async for chunk in chunks:
            yield whole.chunk(chunk)
        for chunk in whole.rest():
            yield chunk
    finally:
        await chunks.aclose()


def _asked(asked: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What is asked, however it was passed; `formatted` may come by its place."""
    if args:
        kwargs["formatted"] = args[0]
    if asked is None:
        asked = kwargs.pop("messages", None) or kwargs.pop("prompt", None)
    return asked


_METHODS: dict[str, Callable[[str], Any]] = {
    "chat": _whole,
    "complete": _whole,
    "achat": _awhole,
    "acomplete": _awhole,
    "stream_chat": _streamed,
    "stream_complete": _streamed,
    "astream_chat": _astreamed,
    "astream_complete": _astreamed,
}


def methods(base: Any) -> dict[str, Any]:
    """The methods of a metered LLM of class `base`."""
    return {
        **{name: make(name) for name, make in _METHODS.items()},
        **common_methods(base),
        "__reduce__": _reduce,
    }


def common_methods(base: Any) -> dict[str, Any]:
    """What LLMs and embedding models have in common: they tell handlers that they are metered;
    and where a class makes its OpenAI client when it is first needed, the client is metered."""
    making = [n for n in ("_get_client", "_get_aclient") if hasattr(base, n)]
    telling = "to_payload" if hasattr(base, "to_payload") else "to_dict"  # before 0.14.13
    return {**{n: _client_method(n) for n in making}, telling: _telling_method(telling)}


def _telling_method(name: str) -> Any:
    def method(self: Any, **kwargs: Any) -> dict[str, Any]:
        terms: Terms = self._behest
        return {**getattr(super(Metered, self), name)(**kwargs), METERED_BY: terms.engine.token}

    return method


def _client_method(name: str) -> Any:
    def method(self: Any) -> Any:
        client = getattr(super(Metered, self), name)()
        terms: Terms = self._behest
        return metered_clients(terms.engine, {"client": client}, terms.provider).get("client", client)

    return method


def _reduce(self: Any) -> tuple[Any, ...]:
    terms: Terms = self._behest
    return meter_llm, (terms.engine, plain(self), terms.provider, terms.limit_field)


def meter_llm(engine: Engine, llm: M, provider: str | None = None, limit_field: str | None = None) -> M:
    """See `Meter.llama_index`."""
    if isinstance(llm, Metered):
        raise ConfigError("this model is metered already")
    base: Any = type(llm)
    terms = Terms(engine, provider, limit_field_of(base, limit_field))
    cls = metered_class(terms, base, Metered, lambda: methods(base))
    metered = as_class(llm, cls)
    reached = meter_clients_of(metered, engine, provider) or hasattr(base, "_get_client")
    if not reached and getattr(llm, "max_retries", None):
        say_retries(engine, base.__name__, "")
    return metered  # type: ignore[no-any-return]
