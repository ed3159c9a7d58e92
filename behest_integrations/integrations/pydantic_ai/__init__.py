"""Pydantic AI: models of agents, of direct requests and of embeddings, metered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from ...engine.engine import Engine
from ...rules.errors import need
from ..kit.instrument import on_import
from ..kit.undo import Undo

if TYPE_CHECKING:
    from pydantic_ai.embeddings import EmbeddingModel
    from pydantic_ai.models import Model

    M = TypeVar("M", bound=Model | EmbeddingModel)


class PydanticAIDoor(Engine):
    """Pydantic AI."""

    def pydantic_ai(self, model: M, *, provider: str | None = None) -> M:
        """A model like `model`, of its own class, whose every request is metered.

            agent = Agent(meter.pydantic_ai(OpenAIChatModel("gpt-4o")))

        Whatever provider it asks; a request is a call, and so is each retry of a structured output or of
        the SDK. What wraps or falls back on other models has those metered. The session is the run's
        `conversation_id`, if somebody has chosen it, and the user what `metadata` or `deps` say.

        Args:
            model: a model, or an embedding model.
            provider: whose prices apply; default: what the model says of itself.

        Raises:
            MissingExtra: `pydantic-ai-slim` is not installed.
            ConfigError: no model of Pydantic AI, or metered already.
        """
        with need("Pydantic AI", "pydantic-ai"):
            from .metering import meter_model

        metered: Any = meter_model(self, model, provider)
        return metered  # type: ignore[no-any-return]

    @on_import("pydantic_ai")
    def instrument_pydantic_ai(self) -> Undo:
        """Meter every model of Pydantic AI that is made from now on, whoever makes it.

        Returns:
            What ends it: `.remove()`, or `with`. Models that were made before stay metered.

        Raises:
            MissingExtra: `pydantic-ai-slim` is not installed.
        """
        with need("Pydantic AI", "pydantic-ai"):
            from .metering import meter_what_is_made

        return meter_what_is_made(self)
