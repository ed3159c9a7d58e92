"""LlamaIndex: `Settings`, a model, an embedding model, or a handler for a callback manager.

`Meter`'s methods are the way in. Which to choose is said in quickstarts/README.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...rules.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from ...meter import Meter
    from .handler import BehestHandler

try:
    import llama_index.core as core
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.base.llms.base import BaseLLM
    from llama_index.core.settings import Settings
except ImportError:
    raise MissingExtra("LlamaIndex", "llama-index") from None


def wrap(meter: Meter, target: Any, *, provider: str | None, limit_field: str | None) -> Any:
    """See `Meter.llama_index`."""
    if target is Settings:
        from .settings import MeteredSettings

        return MeteredSettings(meter, provider, limit_field)
    if isinstance(target, BaseLLM):
        from .model import meter_llm

        return meter_llm(meter, target, provider, limit_field)
    if isinstance(target, BaseEmbedding):
        from .embeddings import meter_embedding

        return meter_embedding(meter, target, provider)
    raise ConfigError(
        f"meter.llama_index() takes LlamaIndex's Settings, an LLM or an embedding model, not "
        f"{type(target).__name__}"
    )


def make_handler(meter: Meter) -> BehestHandler:
    """See `Meter.llama_index_handler`."""
    from .handler import BehestHandler

    return BehestHandler(meter)


class Instrumentation:
    """What LlamaIndex's models are asked is metered, until `remove()`; also as `with`. See
    `Meter.instrument_llama_index`."""

    def __init__(self, meter: Meter) -> None:
        from .handler import BehestHandler

        self._handler = BehestHandler(meter, clients_metered=True)
        self._before = core.global_handler
        if self._before is not None:
            raise ConfigError("LlamaIndex has a global handler already, and takes only one")
        core.global_handler = self._handler

    def remove(self) -> None:
        """Models that are made from now on are not metered."""
        self._handler.meter_on = False
        if core.global_handler is self._handler:
            core.global_handler = self._before

    def __enter__(self) -> Instrumentation:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()
