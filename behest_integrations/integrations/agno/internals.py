"""What of Agno's internals is touched. Read with agno 3.1.0 and 3.1.10.

What Agno raises as `RunCancelledException` ends a run, at once, through tools, members and steps: nothing is
tried again, no other model stands in, and what there is of the run is stored. So a refusal goes that way, and
is Agno's exception as well as ours while it does. `tests/test_agno.py` says what has moved.
"""

from __future__ import annotations

from typing import Any

from agno.exceptions import RunCancelledException
from agno.models.base import Model

from ...rules.errors import CallRefused
from ..kit.refusals import as_also

ATTEMPTS = (
    "_invoke_with_retry",
    "_ainvoke_with_retry",
    "_invoke_stream_with_retry",
    "_ainvoke_stream_with_retry",
)
"""Through one of these goes all that any model of Agno's asks."""
RETRIED = "_is_retryable_error"
RUNS = ("run", "arun", "continue_run", "acontinue_run")
"""What an agent, a team or a workflow is run by."""
TOOLS = ("execute", "aexecute")
STOPPED = ("CANCELLED", "ERROR")
"""A run's status where its content may be an error's text."""
TOLD_STOPPED = ("RunCancelled", "RunError", "WorkflowCancelled", "WorkflowError")
"""How the names end of the events by which a stream tells the same."""

__all__ = ["ATTEMPTS", "RETRIED", "RUNS", "STOPPED", "TOLD_STOPPED", "TOOLS", "Model", "has_steps", "stop_of"]


def has_steps(runner: Any) -> bool:
    """Whether a runner is a workflow."""
    return hasattr(runner, "steps")


def stop_of(refusal: CallRefused) -> Any:
    """A refusal as what ends a run of Agno's: an exception of both kinds."""
    return as_also(refusal, RunCancelledException, str(refusal))
