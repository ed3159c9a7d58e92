"""CrewAI: whom its crews, flows and agents are run for, and how a refusal gets out of one."""

from __future__ import annotations

from ...engine.engine import Engine
from ...rules.errors import need
from ..kit.instrument import on_import, with_sdks
from ..kit.undo import Undo


class CrewAIDoor(Engine):
    """CrewAI."""

    def crewai(self) -> Undo:
        """Meter what CrewAI's crews, flows and agents ask in this process.

            meter.crewai()
            crew.kickoff(inputs={"topic": "budgets", "session_id": "s-1", "user_id": "ada"})

        A refusal ends a crew, and is raised by `kickoff` as it is: CrewAI alone would begin the task again.
        The session and the user are those of `inputs`; the role of the agent at work is a tag.

        The calls themselves are metered by the doors of the SDKs that its models ask by (OpenAI's,
        Anthropic's, Google's, boto3, LiteLLM), which this begins as well: clients that are made from now on.

        Returns:
            What ends it: `.remove()`, or `with`.

        Raises:
            MissingExtra: `crewai` is not installed.
        """
        with need("CrewAI", "crewai"):
            from . import internals  # noqa: F401

        return with_sdks(self, "instrument_crewai")

    @on_import("crewai")
    def instrument_crewai(self) -> Undo:
        """Have crews, flows and agents say whom they are run for, and raise what they were refused.

        Returns:
            What ends it: `.remove()`, or `with`.

        Raises:
            MissingExtra: `crewai` is not installed.
        """
        with need("CrewAI", "crewai"):
            from .runs import follow

        return follow()
