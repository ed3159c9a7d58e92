"""Strands: whom its agents, graphs and swarms are run for, and how a refusal gets out of one."""

from __future__ import annotations

from ...engine.engine import Engine
from ...rules.errors import need
from ..kit.instrument import on_import, with_sdks
from ..kit.undo import Undo


class StrandsDoor(Engine):
    """Strands Agents."""

    def strands(self) -> Undo:
        """Meter what Strands' agents, graphs and swarms ask in this process.

            meter.strands()
            agent = Agent(model=OpenAIModel(...), session_manager=FileSessionManager(session_id="s-1"))
            agent("...", invocation_state={"user_id": "ada"})

        A refusal is raised as it is, by swarms as well. The session is that of the session manager, or named
        by the `invocation_state`, as the user is; the name of the agent is a tag.

        The calls themselves are metered by the doors of the SDKs that the models ask by (OpenAI's,
        Anthropic's, Google's, boto3, LiteLLM), which this begins as well: clients that are made from now on.

        Returns:
            What ends it: `.remove()`, or `with`.

        Raises:
            MissingExtra: `strands-agents` is not installed.
        """
        with need("Strands Agents", "strands"):
            from . import internals  # noqa: F401

        return with_sdks(self, "instrument_strands")

    @on_import("strands")
    def instrument_strands(self) -> Undo:
        """Have agents, graphs and swarms say whom they are run for, and raise what they were refused.

        Returns:
            What ends it: `.remove()`, or `with`.

        Raises:
            MissingExtra: `strands-agents` is not installed.
        """
        with need("Strands Agents", "strands"):
            from .runs import follow

        return follow()
