"""Embeddings have no callbacks in LangChain: metered as an object of a subclass of their class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from langchain_core.embeddings import Embeddings

from ...engine.engine import Engine
from ...rules.errors import ConfigError
from ..kit.call import Call, is_inside
from ..kit.clients import keeps_metered_clients, meter_clients_of
from ..kit.generation import Generation, Heard
from ..kit.masking import looks_through, masking_input, off_loop
from ..kit.metered import as_class, metered_class
from ..kit.settings import url_in
from ..kit.stand_ins import full_name
from ..kit.terms import Terms
from .translate import name_model

E = TypeVar("E")


def _call(embeddings: Any, texts: Sequence[str]) -> tuple[Call, list[str]]:
    """A call of metered embeddings, and the texts to ask it."""
    terms: Terms = embeddings._behest
    settings = {k: v for k, v in vars(embeddings).items() if isinstance(v, str)}
    maker = type(embeddings).__module__.split(".")[0].removeprefix("langchain_")
    named = name_model({}, {"ls_provider": maker}, settings, full_name(type(embeddings)))
    request = {"model": named.model, "input": list(texts)}
    deferred = _is_deferred(embeddings)
    masking, sent = masking_input(terms.engine, request, deferred)
    generation = Generation(
        terms.engine,
        request,
        operation="embeddings",
        provider=terms.provider or named.provider,
        where=url_in(settings),
        deferred=deferred,
        **masking,
    )
    return Call(generation, type(embeddings)), sent


def _is_deferred(embeddings: Any) -> bool:
    engine: Engine = embeddings._behest.engine
    return engine.policy is not None and keeps_metered_clients(embeddings, engine)


class _Metered:
    _behest: Terms

    def embed_documents(self, texts: list[str], *args: Any, **kwargs: Any) -> list[list[float]]:
        return self._blocking("embed_documents", texts, texts, args, kwargs)  # type: ignore[no-any-return]

    def embed_query(self, text: str, *args: Any, **kwargs: Any) -> list[float]:
        return self._blocking("embed_query", [text], text, args, kwargs)  # type: ignore[no-any-return]

    async def aembed_documents(self, texts: list[str], *args: Any, **kwargs: Any) -> list[list[float]]:
        return await self._awaited("aembed_documents", texts, texts, args, kwargs)  # type: ignore[no-any-return]

    async def aembed_query(self, text: str, *args: Any, **kwargs: Any) -> list[float]:
        return await self._awaited("aembed_query", [text], text, args, kwargs)  # type: ignore[no-any-return]

    # A class's methods call each other: only the outermost is a call.

    def _blocking(self, name: str, texts: Sequence[str], given: Any, args: Any, kwargs: Any) -> Any:
        own = getattr(super(), name)
        if is_inside(type(self)) or not texts:
            return own(given, *args, **kwargs)
        call, sent = _call(self, texts)
        asked = sent[0] if isinstance(given, str) else sent
        return call.made(lambda hold: own(asked, *args, **kwargs), _listen)

    async def _awaited(self, name: str, texts: Sequence[str], given: Any, args: Any, kwargs: Any) -> Any:
        own = getattr(super(), name)
        if is_inside(type(self)) or not texts:
            return await own(given, *args, **kwargs)
        looks = looks_through(self._behest.engine, _is_deferred(self))
        call, sent = await off_loop(looks, _call, self, texts)
        asked = sent[0] if isinstance(given, str) else sent
        return await call.amade(lambda hold: own(asked, *args, **kwargs), _listen)


def _listen(vectors: object) -> Heard:
    return Heard()


def meter_embeddings(engine: Engine, embeddings: E, provider: str | None) -> E:
    """See `Meter.langchain_embeddings`."""
    if not isinstance(embeddings, Embeddings):
        raise ConfigError(f"meter.langchain_embeddings() takes Embeddings, not {type(embeddings).__name__}")
    if isinstance(embeddings, _Metered):
        raise ConfigError("these embeddings are metered already")
    cls = metered_class(Terms(engine, provider), type(embeddings), _Metered)
    metered = as_class(embeddings, cls)
    meter_clients_of(metered, engine, provider)
    return metered  # type: ignore[no-any-return]
