"""LiteLLM: completion, text completion, responses, embedding, and its Router, of every provider of it."""

from __future__ import annotations

from ...engine.engine import Engine
from ...rules.errors import need
from ..kit.instrument import on_import
from ..kit.undo import Undo


class LiteLLMDoor(Engine):
    """LiteLLM."""

    def litellm(self) -> Undo:
        """Meter all that LiteLLM is asked in this process, however its functions were imported.

            meter.litellm()
            litellm.completion(model="anthropic/claude-haiku-4-5", messages=[...])

        A refusal is `BudgetExceeded`, as it is: no retry, no fallback and no cooldown follow it. Each attempt
        of LiteLLM's own retries, fallbacks and routes is a call of its own.

        Returns:
            What ends it: `.remove()`, or `with`.

        Raises:
            MissingExtra: `litellm` is not installed.
            ConfigError: another meter has it.
        """
        with need("LiteLLM", "litellm"):
            from .metering import meter_litellm

        return meter_litellm(self)

    @on_import("litellm")
    def instrument_litellm(self) -> Undo:
        """The same, where a program is metered as it is.

        Returns:
            What ends it: `.remove()`, or `with`.

        Raises:
            MissingExtra: `litellm` is not installed.
            ConfigError: another meter has it.
        """
        return self.litellm()
