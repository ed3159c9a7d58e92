"""What of Pydantic AI's own internals is touched. Read with pydantic-ai-slim 2.0.0 and 2.68.0.

`tests/test_pydantic_ai.py` says what has moved.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable
from importlib import import_module
from typing import Any

from pydantic_ai._run_context import get_current_run_context
from pydantic_ai.embeddings import EmbeddingModel
from pydantic_ai.embeddings.wrapper import WrapperEmbeddingModel
from pydantic_ai.models import Model
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.wrapper import WrapperModel

from ...engine.engine import Engine
from ..kit.clients import keeps_metered_clients, meter_clients_of

INNER = ("wrapped", "models")
"""Where models that answer through others keep them: wrappers, and fallbacks."""
FUNCTION = "pydantic_ai.models.function.FunctionModel"
"""A model whose answers a function of the caller's makes."""
_PROVIDER = "_provider"
_EVENTS = "_get_event_iterator"


def _newer(module: str, name: str) -> tuple[type, ...]:
    """A class that older versions do not have."""
    try:
        return (getattr(import_module(module), name),)
    except (ImportError, AttributeError):
        return ()


BASES: tuple[type, ...] = (
    Model,
    EmbeddingModel,
    *_newer("pydantic_ai.images", "ImageGenerationModel"),
    *_newer("pydantic_ai.realtime", "RealtimeModel"),
)
"""What all models are."""
THROUGH_OTHERS: tuple[type, ...] = (
    WrapperModel,
    FallbackModel,
    WrapperEmbeddingModel,
    *_newer("pydantic_ai.images.wrapper", "WrapperImageGenerationModel"),
)
"""Models that have others answer."""


def run_context() -> Any:
    """The run that a request is part of; None outside of an agent's."""
    return get_current_run_context()


def meter_client_of(model: Any, engine: Engine, provider: str | None) -> None:
    """Meter the SDK's client that a model's provider keeps, in a copy of that provider."""
    kept = vars(model).get(_PROVIDER)
    if kept is not None:
        own = copy.copy(kept)
        if meter_clients_of(own, engine, provider):
            setattr(model, _PROVIDER, own)
    meter_clients_of(model, engine, provider)


def asks_through_sdk(model: Any, engine: Engine) -> bool:
    """Whether all that a model asks goes through an SDK's client that is metered itself."""
    kept = vars(model).get(_PROVIDER)
    return keeps_metered_clients(model, engine) or (kept is not None and keeps_metered_clients(kept, engine))


def watch_events(response: Any, watched: Callable[[AsyncIterator[Any]], AsyncIterator[Any]]) -> None:
    """Have a streamed response's events pass through `watched`."""
    made = getattr(type(response), _EVENTS)
    setattr(response, _EVENTS, lambda: watched(made(response)))
