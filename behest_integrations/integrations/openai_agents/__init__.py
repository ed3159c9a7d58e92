"""The OpenAI Agents SDK: its models, and what a run says of whom it is for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

from ...engine.engine import Engine
from ...rules.errors import need
from ..kit.instrument import on_import
from ..kit.undo import Undo

if TYPE_CHECKING:
    from agents import Model, ModelProvider

    M = TypeVar("M", bound=Model | ModelProvider)


class OpenAIAgentsDoor(Engine):
    """The OpenAI Agents SDK."""

    def openai_agents(self, model: M, *, provider: str | None = None) -> M:
        """A model, or a provider of models, like the one given, of its own class: its every call is metered.

            agent = Agent("helper", model=meter.openai_agents(OpenAIResponsesModel("gpt-4o", client)))
            config = RunConfig(model_provider=meter.openai_agents(MultiProvider()))

        OpenAI's models are metered by their client, attempt by attempt; any other by what is about to be
        sent. The session is that of `Runner.run(session=...)`, the agent's name a tag.

        Args:
            model: a model, or a provider of models.
            provider: whose prices apply; default: what the model says of itself.

        Raises:
            MissingExtra: `openai-agents` is not installed.
            ConfigError: none of these, or metered already.
        """
        with need("The OpenAI Agents SDK", "openai-agents"):
            from .metering import meter_model

        metered: Any = meter_model(self, model, provider)
        return metered  # type: ignore[no-any-return]

    @on_import("agents.run")
    def instrument_openai_agents(self) -> Undo:
        """Meter every model of the Agents SDK that is made from now on, whoever makes it.

        Returns:
            What ends it: `.remove()`, or `with`. Models that were made before stay metered.

        Raises:
            MissingExtra: `openai-agents` is not installed.
        """
        if _is_another("agents.run", "AgentRunner"):
            return Undo(lambda: None)
        with need("The OpenAI Agents SDK", "openai-agents"):
            from .metering import meter_what_is_made

        return meter_what_is_made(self)

    @on_import("agents.realtime.model")
    def instrument_openai_agents_realtime(self) -> Undo:
        """Count, or refuse, each speech session of the Agents SDK: nothing in one can be bounded.

        Returns:
            What ends it: `.remove()`, or `with`.

        Raises:
            MissingExtra: `openai-agents` is not installed.
        """
        if _is_another("agents.realtime.model", "RealtimeModel"):
            return Undo(lambda: None)
        with need("The OpenAI Agents SDK", "openai-agents"):
            from .metering import count_speech

        return count_speech(self)


def _is_another(module: str, name: str) -> bool:
    """Whether what has been imported as `agents` is somebody's own package, and not the SDK."""
    found = sys.modules.get(module)
    return found is not None and not hasattr(found, name)
