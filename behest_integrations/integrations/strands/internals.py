"""What of Strands' internals is touched. Read with strands-agents 1.62.0.

Every way to run one leads through its stream, or through `structured_output_async`. The session manager is
kept in an attribute of its own. `tests/test_strands.py` says what has moved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from strands import Agent
from strands.hooks import AfterToolCallEvent, BeforeModelCallEvent
from strands.multiagent.graph import Graph
from strands.multiagent.swarm import Swarm
from strands.types.exceptions import MaxTokensReachedException

__all__ = ["RUNS", "MaxTokensReachedException", "is_agent", "listen", "session_of"]

RUNS: tuple[tuple[type, tuple[str, ...]], ...] = (
    (Agent, ("stream_async", "structured_output_async")),
    (Graph, ("stream_async",)),
    (Swarm, ("stream_async",)),
)
"""What is run, and what all its ways to be run lead through."""
MANAGERS = ("_session_manager", "session_manager")
"""Where an agent, and a graph or a swarm, keep their session manager."""
_LISTENING = "_behest_listens"


def is_agent(runner: Any) -> bool:
    """Whether a runner is an agent, and not several."""
    return isinstance(runner, Agent)


def session_of(runner: Any) -> Any:
    """The session that a runner's manager keeps."""
    for name in MANAGERS:
        manager = getattr(runner, name, None)
        if manager is not None:
            return getattr(manager, "session_id", None)
    return None


def listen(agent: Any, asking: Callable[[Any], None], worked: Callable[[Any], None]) -> None:
    """Have an agent say that it is about to ask its model, and how a tool has ended; once, and for good."""
    if not getattr(agent, _LISTENING, False):
        agent.hooks.add_callback(BeforeModelCallEvent, asking)
        agent.hooks.add_callback(AfterToolCallEvent, worked)
        setattr(agent, _LISTENING, True)
