"""Any embedding model of LlamaIndex, metered where it asks its provider: after its cache, by batch."""

from __future__ import annotations

from typing import Any, TypeVar

from ...engine.engine import Engine
from ...rules.errors import ConfigError
from ..kit.call import Call, is_inside
from ..kit.clients import meter_clients_of
from ..kit.generation import Generation, Heard
from ..kit.masking import looks_through, masking_input, off_loop
from ..kit.metered import as_class, metered_class, plain
from ..kit.settings import url_in
from ..kit.terms import Terms
from .model import Metered, common_methods, is_deferred
from .translate import attribution, model_name, provider_by, settings_of

E = TypeVar("E")


def _call(model: Any, asked: Any) -> tuple[Call, Any]:
    """A call of a metered model, and what to ask it."""
    terms: Terms = model._behest
    settings = settings_of(model)
    request = {
        "model": model_name(model, settings),
        "input": [asked] if isinstance(asked, str) else list(asked),
    }
    deferred = is_deferred(model)
    masking, sent = masking_input(terms.engine, request, deferred)
    generation = Generation(
        terms.engine,
        request,
        operation="embeddings",
        who=attribution(),
        provider=terms.provider or provider_by(model, settings),
        where=url_in(settings),
        deferred=deferred,
        **masking,
    )
    return Call(generation, type(model)), sent[0] if isinstance(asked, str) else sent


def _blocking(name: str) -> Any:
    def method(self: Any, asked: Any) -> Any:
        own = getattr(super(Metered, self), name)
        if is_inside(type(self)) or not asked:
            return own(asked)
        call, sent = _call(self, asked)
        return call.made(lambda hold: own(sent), _listen)

    return method


def _awaited(name: str) -> Any:
    async def method(self: Any, asked: Any) -> Any:
        own = getattr(super(Metered, self), name)
        if is_inside(type(self)) or not asked:
            return await own(asked)
        looks = looks_through(self._behest.engine, is_deferred(self))
        call, sent = await off_loop(looks, _call, self, asked)
        return await call.amade(lambda hold: own(sent), _listen)

    return method


def _listen(vectors: object) -> Heard:
    return Heard()


_BLOCKING = ("_get_query_embedding", "_get_text_embedding", "_get_text_embeddings")
_AWAITED = ("_aget_query_embedding", "_aget_text_embedding", "_aget_text_embeddings")


def _methods(base: Any) -> dict[str, Any]:
    return {
        **{name: _blocking(name) for name in _BLOCKING},
        **{name: _awaited(name) for name in _AWAITED},
        **common_methods(base),
        "__reduce__": _reduce,
    }


def _reduce(self: Any) -> tuple[Any, ...]:
    terms: Terms = self._behest
    return meter_embedding, (terms.engine, plain(self), terms.provider)


def meter_embedding(engine: Engine, model: E, provider: str | None = None) -> E:
    """See `Meter.llama_index`."""
    if isinstance(model, Metered):
        raise ConfigError("this embedding model is metered already")
    base: Any = type(model)
    cls = metered_class(Terms(engine, provider), base, Metered, lambda: _methods(base))
    metered = as_class(model, cls)
    meter_clients_of(metered, engine, provider)
    return metered  # type: ignore[no-any-return]
