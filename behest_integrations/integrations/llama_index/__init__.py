"""LlamaIndex: `Settings`, a model, an embedding model, or a handler for a callback manager.

Which to choose is said in quickstarts/README.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

from ...engine.engine import Engine
from ...rules.errors import ConfigError, need
from ..kit.instrument import on_import
from ..kit.undo import Undo

if TYPE_CHECKING:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.base.llms.base import BaseLLM
    from llama_index.core.settings import _Settings

    from .handler import BehestHandler

    M = TypeVar("M", bound=BaseLLM | BaseEmbedding)


class LlamaIndexDoor(Engine):
    """LlamaIndex."""

    @overload
    def llama_index(self, target: M, *, provider: str | None = None, limit_field: str | None = None) -> M: ...

    @overload
    def llama_index(
        self, target: _Settings, *, provider: str | None = None, limit_field: str | None = None
    ) -> Undo: ...

    def llama_index(self, target: Any, *, provider: str | None = None, limit_field: str | None = None) -> Any:
        """Meter LlamaIndex's `Settings`: all that its LLM and embedding model are asked.

            meter.llama_index(Settings)

        Or a single LLM or embedding model: then the result is one like it, of its own class.

        Args:
            target: `Settings`, an LLM, or an embedding model.
            provider: whose prices apply; default: what the model says of itself.
            limit_field: the model's field for its output limit; default: the usual names.

        Returns:
            For `Settings`, what ends it: `.remove()`, or `with`.

        Raises:
            MissingExtra: `llama-index-core` is not installed.
            ConfigError: none of these, or metered already.
        """
        with need("LlamaIndex", "llama-index"):
            from llama_index.core.base.embeddings.base import BaseEmbedding
            from llama_index.core.base.llms.base import BaseLLM
            from llama_index.core.settings import Settings
        if target is Settings:
            from .settings import meter_settings

            return meter_settings(self, provider, limit_field)
        if isinstance(target, BaseLLM):
            from .model import meter_llm

            return meter_llm(self, target, provider, limit_field)
        if isinstance(target, BaseEmbedding):
            from .embeddings import meter_embedding

            return meter_embedding(self, target, provider)
        raise ConfigError(
            f"meter.llama_index() takes LlamaIndex's Settings, an LLM or an embedding model, not "
            f"{type(target).__name__}"
        )

    def llama_index_handler(self) -> BehestHandler:
        """A handler for your own callback manager: `CallbackManager([meter.llama_index_handler()])`.

        It refuses before the provider is called. It cannot lower an output limit: set one on
        the model, or use `llama_index(model)`.

        Raises:
            MissingExtra: `llama-index-core` is not installed.
        """
        with need("LlamaIndex", "llama-index"):
            from .handler import BehestHandler

        return BehestHandler(self)

    @on_import("llama_index.core")
    def instrument_llama_index(self) -> Undo:
        """Meter every model of LlamaIndex that is made from now on, with no handler passed.

        Returns:
            What ends it: `.remove()`, or `with`.

        Raises:
            MissingExtra: `llama-index-core` is not installed.
            ConfigError: LlamaIndex has a global handler already.
        """
        with need("LlamaIndex", "llama-index"):
            import llama_index.core as core

            from .handler import BehestHandler
        handler, before = BehestHandler(self, clients_metered=True), core.global_handler
        if before is not None:
            raise ConfigError("LlamaIndex has a global handler already, and takes only one")
        core.global_handler = handler

        def undo() -> None:
            handler.meter_on = False
            if core.global_handler is handler:
                core.global_handler = before

        return Undo(undo)
