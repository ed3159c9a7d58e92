"""Microsoft Agent Framework: what its agents ask, and what a run says of whom it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...engine.engine import Engine
from ...rules.errors import need
from ..kit.instrument import on_import
from ..kit.undo import Undo

if TYPE_CHECKING:
    from agent_framework import AgentMiddleware


class AgentFrameworkDoor(Engine):
    """Microsoft Agent Framework."""

    def agent_framework(self) -> AgentMiddleware:
        """Middleware of an agent, or of one run: whatever the agent asks is metered.

            agent = Agent(client=OpenAIChatClient(...), middleware=[meter.agent_framework()])

        Each request is a call, of whichever client. The session is that of `agent.run(session=...)`, but
        where a scope around it names another; the agent's name is the tag ``agent``. An agent that is
        another's tool counts as the run around it. Where the client's SDK is metered (`meter.instrument()`,
        or `async_client=meter.openai(...)`), each of its attempts is. A refusal leaves `run` as it is.

        Raises:
            MissingExtra: `agent-framework-core` is not installed.
        """
        with need("Microsoft Agent Framework", "agent-framework"):
            from .metering import Budgets

        middleware: Any = Budgets(self)
        return middleware

    @on_import("agent_framework._middleware")
    def instrument_agent_framework(self) -> Undo:
        """Meter every agent and every chat client so, whoever makes it.

        Returns:
            What ends it: `.remove()`, or `with`.

        Raises:
            MissingExtra: `agent-framework-core` is not installed.
        """
        with need("Microsoft Agent Framework", "agent-framework"):
            from .metering import meter_all

        return meter_all(self)
