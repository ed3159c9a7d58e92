"""What of CrewAI's internals is touched. Read with crewai 1.15.30.

What is raised as `HookAborted` ends a crew: the task is not begun again, and neither a guardrail nor a plan
nor a structured output is made without it. So a refusal goes that way, and is CrewAI's exception as well as
ours while it does. Only around a tool is that taken for the tool's answer, too. `tests/test_crewai.py` says
what has moved.
"""

from __future__ import annotations

from typing import Any

from crewai import Agent, Crew, Flow
from crewai.agents.agent_executor import AgentExecutor
from crewai.hooks.dispatch import HookAborted
from crewai.tools.base_tool import BaseTool, Tool

from ...rules.errors import CallRefused
from ..kit.refusals import as_also

RUNS: tuple[tuple[type, tuple[str, ...]], ...] = (
    (Crew, ("kickoff", "kickoff_async", "akickoff")),
    (Flow, ("kickoff", "kickoff_async", "akickoff")),
    (Agent, ("kickoff", "kickoff_async", "akickoff", "execute_task", "aexecute_task")),
)
"""What is run, and by which methods. One crew hands a task to an agent by the last two."""
MODELS = ("llm", "function_calling_llm")
"""Where an agent has its models."""
ASKED = ("call", "acall")
"""What a model is asked by; each provider's class has its own."""
TOOLS: tuple[tuple[type, tuple[str, ...]], ...] = (
    (BaseTool, ("run", "arun")),
    (Tool, ("run", "arun")),
)


def is_loop(runner: Any) -> bool:
    """Whether a flow is an agent's own loop, and nobody's."""
    return isinstance(runner, AgentExecutor)


def is_agent(runner: Any) -> bool:
    """Whether a runner is an agent."""
    return isinstance(runner, Agent)


def stop_of(refusal: CallRefused) -> Any:
    """A refusal as what ends a crew: an exception of both kinds."""
    return as_also(refusal, HookAborted, str(refusal))
