"""Agno: what its agents, teams and workflows say of whom a run is for, and how a refusal gets out of one."""

from __future__ import annotations

from ...engine.engine import Engine
from ...rules.errors import need
from ..kit.instrument import on_import, with_sdks
from ..kit.undo import Undo


class AgnoDoor(Engine):
    """Agno."""

    def agno(self) -> Undo:
        """Meter what Agno's agents, teams and workflows ask in this process.

            meter.agno()
            agent = Agent(model=OpenAIChat("gpt-4o"))
            agent.run("...", session_id="s-1", user_id="ada")

        A refusal is raised by `run` and `arun` (Agno would return its text as the answer), and nothing is
        tried again. The session and the user are the run's; the name of the agent is a tag.

        The calls themselves are metered by the doors of the SDKs that the models ask by (OpenAI's,
        Anthropic's, Google's, boto3, LiteLLM), which this begins as well: clients that are made from now on.

        Returns:
            What ends it: `.remove()`, or `with`.

        Raises:
            MissingExtra: `agno` is not installed.
        """
        with need("Agno", "agno"):
            from . import internals  # noqa: F401

        return with_sdks(
            self,
            "instrument_agno",
            "instrument_agno_agents",
            "instrument_agno_teams",
            "instrument_agno_workflows",
        )

    @on_import("agno.models.base")
    def instrument_agno(self) -> Undo:
        """Have refusals leave Agno's models, and tools, as what ends a run.

        Returns:
            What ends it: `.remove()`, or `with`.

        Raises:
            MissingExtra: `agno` is not installed.
        """
        with need("Agno", "agno"):
            from .runs import follow_models

        return follow_models()

    @on_import("agno.agent.agent")
    def instrument_agno_agents(self) -> Undo:
        """Have agents' runs say whom they are for, and raise what they were refused."""
        return _followed("agno.agent.agent", "Agent")

    @on_import("agno.team.team")
    def instrument_agno_teams(self) -> Undo:
        """The same for teams."""
        return _followed("agno.team.team", "Team")

    @on_import("agno.workflow.workflow")
    def instrument_agno_workflows(self) -> Undo:
        """The same for workflows."""
        return _followed("agno.workflow.workflow", "Workflow")


def _followed(module: str, name: str) -> Undo:
    with need("Agno", "agno"):
        from .runs import follow

    return follow(module, name)
