"""Google's Agent Development Kit: what its agents ask, and what a run says of whom it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...engine.engine import Engine
from ...rules.errors import need
from ..kit.instrument import on_import
from ..kit.undo import Undo

if TYPE_CHECKING:
    from google.adk.plugins.base_plugin import BasePlugin


class GoogleADKDoor(Engine):
    """Google's Agent Development Kit (ADK)."""

    def google_adk(self) -> BasePlugin:
        """A plugin for a `Runner` or an `App`: what its agents ask is metered.

            runner = Runner(app_name="support", agent=agent, plugins=[meter.google_adk()], ...)

        Each step of an agent is a call, of whichever model. The session and the user are the run's, but where
        a scope around it names others; the app's and the agent's names are the tags ``app`` and ``agent``. An
        agent that is another's tool counts as the run around it. A refusal leaves `run_async` as it is.
        Where an SDK beneath is metered (`meter.instrument()`, `meter.litellm()`), each of its attempts is.

        Raises:
            MissingExtra: `google-adk` is not installed.
        """
        with need("Google's ADK", "google-adk"):
            from .metering import plugin_of

        plugin: Any = plugin_of(self)
        return plugin

    @on_import("google.adk.plugins.plugin_manager")
    def instrument_google_adk(self) -> Undo:
        """Meter every runner so, whoever makes it.

        Returns:
            What ends it: `.remove()`, or `with`.

        Raises:
            MissingExtra: `google-adk` is not installed.
        """
        with need("Google's ADK", "google-adk"):
            from .metering import meter_every_runner

        return meter_every_runner(self)
