"""Embeddings have no callbacks in LangChain: metered as an object of a subclass of their class."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

from langchain_core.embeddings import Embeddings

from ...calls import Hold, offer, take_offer
from ...clients import metered_clients
from ...errors import ConfigError
from ...generation import Generation, Heard, finish
from ...meter import Meter
from ...steps import Steps
from .model import _as_class, _steps
from .translate import name_model

E = TypeVar("E")

_LAYER = "langchain embeddings"

_inside: ContextVar[bool] = ContextVar("behest_langchain_embedding", default=False)


class _Call:
    def __init__(self, embeddings: Any, texts: Sequence[str]) -> None:
        self.meter: Meter = embeddings._behest[0]
        settings = {k: v for k, v in vars(embeddings).items() if isinstance(v, str)}
        maker = type(embeddings).__module__.split(".")[0].removeprefix("langchain_")
        named = name_model({}, {"ls_provider": maker}, settings)
        self.outer = take_offer(self.meter, "embeddings", named.model, layer=_LAYER)
        self.generation = Generation(
            self.meter,
            {"model": named.model, "input": list(texts)},
            operation="embeddings",
            provider=embeddings._behest[1] or named.provider,
        )
        self.hold: Hold | None = None

    def reserve(self) -> Steps[None]:
        self.hold = yield from self.meter.reserving(self.generation.plan, self.outer)
        self.offered = offer(self.hold, _LAYER)

    def end(self, error: BaseException | None = None) -> Steps[None]:
        assert self.hold is not None
        self.offered.withdraw()
        outcome = self.generation.failed(error) if error else self.generation.complete(Heard())
        yield from _steps(finish(self.hold, outcome, error))


class _Metered:
    _behest: tuple[Meter, str | None]

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
        if _inside.get() or not texts:
            return own(given, *args, **kwargs)
        call = _Call(self, texts)
        call.meter.run(call.reserve())
        token = _inside.set(True)
        try:
            found = own(given, *args, **kwargs)
        except BaseException as error:
            call.meter.run(call.end(error))
            raise
        finally:
            _inside.reset(token)
        call.meter.run(call.end())
        return found

    async def _awaited(self, name: str, texts: Sequence[str], given: Any, args: Any, kwargs: Any) -> Any:
        own = getattr(super(), name)
        if _inside.get() or not texts:
            return await own(given, *args, **kwargs)
        call = _Call(self, texts)
        await call.meter.arun(call.reserve())
        token = _inside.set(True)
        try:
            found = await own(given, *args, **kwargs)
        except BaseException as error:
            await call.meter.arun(call.end(error))
            raise
        finally:
            _inside.reset(token)
        await call.meter.arun(call.end())
        return found


_lock = threading.Lock()


def meter_embeddings(meter: Meter, embeddings: E, provider: str | None) -> E:
    """See `Meter.langchain_embeddings`."""
    if not isinstance(embeddings, Embeddings):
        raise ConfigError(f"meter.langchain_embeddings() takes Embeddings, not {type(embeddings).__name__}")
    if isinstance(embeddings, _Metered):
        raise ConfigError("these embeddings are metered already")
    base: Any = type(embeddings)
    classes: dict[Any, Any] = meter.attached("langchain.embeddings", dict)
    with _lock:
        cls = classes.get((base, provider))
        if cls is None:
            namespace = {"__module__": base.__module__, "__qualname__": base.__qualname__}
            cls = classes[base, provider] = type(base)(base.__name__, (_Metered, base), namespace)
            cls._behest = (meter, provider)
    metered: Any
    if hasattr(base, "model_fields"):
        metered = _as_class(embeddings, cls)
    else:
        metered = cls.__new__(cls)
        metered.__dict__.update(vars(embeddings))
    vars(metered).update(metered_clients(meter, vars(embeddings), provider))
    return metered  # type: ignore[no-any-return]
