"""What of the Agents SDK's internals is touched. Read with openai-agents 0.19.0 and 0.24.0.

`Runner`'s three methods are public; nothing else tells a model which session its run has. Which agent is at
work says the span around the call, also where tracing is off. `tests/test_openai_agents.py` says what has
moved.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any

from agents.run import Runner
from agents.tracing import get_current_span

from ...rules.attribution import NOBODY, Attribution
from ..kit.naming import id_in, ids_of, said_in

METHODS = ("run", "run_sync", "run_streamed")
WEBSOCKETS = "OpenAIResponsesWSModel"
"""A model that speaks past its client's requests."""

INCOMPLETE_IS_AN_ERROR = find_spec("agents.models._response_terminal") is not None
"""Whether an answer of OpenAI's Responses that ends at its limit is an error of the SDK's own."""

_around: ContextVar[tuple[Attribution, Attribution]] = ContextVar("behest_agents", default=(NOBODY, NOBODY))
"""(said on the run, its own ids) of the `Runner.run` around."""


def note_runs() -> None:
    """Have `Runner` note whom its runs are for; once, and for good: it does nothing else."""
    if getattr(Runner, "_behest_notes", False):
        return
    for name in METHODS:
        setattr(Runner, name, classmethod(_noting(getattr(Runner, name).__func__)))
    Runner._behest_notes = True


def _noting(own: Any) -> Any:
    if inspect.iscoroutinefunction(own):

        @functools.wraps(own)
        async def arun(cls: Any, *args: Any, **kwargs: Any) -> Any:
            with _noted(kwargs):
                return await own(cls, *args, **kwargs)

        return arun

    @functools.wraps(own)
    def run(cls: Any, *args: Any, **kwargs: Any) -> Any:
        with _noted(kwargs):  # what it starts takes the note along
            return own(cls, *args, **kwargs)

    return run


@contextmanager
def _noted(options: Mapping[str, Any]) -> Iterator[None]:
    said, own = _around.get()
    config = options.get("run_config")
    metadata = _of(config, "trace_metadata")
    if isinstance(metadata, Mapping):
        said = said_in(metadata).over(said)
    ids = {
        "session": _id_of(options.get("session")),
        "group": _of(config, "group_id"),
        "conversation": options.get("conversation_id"),
    }
    session = id_in(ids, "session", "group", "conversation")
    mine = ids_of(options.get("context"))
    if session is not None:
        mine = Attribution(session_id=session).over(mine)
    token = _around.set((said, mine.over(own)))
    try:
        yield
    finally:
        _around.reset(token)


def _id_of(session: Any) -> Any:
    try:
        return getattr(session, "session_id", None)
    except Exception:  # OpenAI's conversations have none before they have begun
        return None


def _of(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def whose() -> tuple[Attribution, Attribution]:
    """(said on the run itself, the framework's own ids) of the run that is going on."""
    said, own = _around.get()
    name = _agent()
    return said, own if name is None else Attribution(tags={"agent": name}).over(own)


def _agent() -> str | None:
    """The agent that is at work, by its span or that of its turn."""
    data = getattr(get_current_span(), "span_data", None)
    name = getattr(data, "agent_name", None)
    if name is None and getattr(data, "type", None) == "agent":
        name = getattr(data, "name", None)
    return name if isinstance(name, str) and name else None
