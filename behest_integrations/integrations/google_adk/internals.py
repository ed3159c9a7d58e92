"""What of the ADK's internals is touched. Read with google-adk 2.13.0.

Plugins and `BaseLlm.generate_content_async` are public. What is not: the invocation that a
callback's context is about, which alone knows the agent and its model; how a model is found for it; and the
manager by which a runner calls its plugins. A runner has its agents work in a task of their own: what a
callback before the model says in a context variable is true for that model's call, and not for whoever runs
the runner. An error that leaves a model's call leaves `run_async` as it is; one that leaves a plugin, in a
`RuntimeError`. `tests/test_google_adk.py` says what has moved.
"""

from __future__ import annotations

from typing import Any

from google.adk.agents.readonly_context import ReadonlyContext
from google.adk.plugins.plugin_manager import PluginManager

from ...engine.engine import Engine
from ..kit.beneath import is_metered
from ..kit.clients import keeps_metered_clients

CALLBACKS = ("before_run_callback", "before_model_callback")
"""Of plugins; a runner has them called by its `PluginManager.run_…`."""
ASKS = "generate_content_async"
"""The method of a model that asks it."""
_MAKERS = {"google_llm": "google", "gemma_llm": "google", "anthropic_llm": "anthropic"}
"""The modules of the ADK's own models, and whose prices apply to them."""
_LITELLM = "LiteLlm"


__all__ = [
    "ASKS",
    "CALLBACKS",
    "PluginManager",
    "invocation_of",
    "is_live",
    "is_seen_beneath",
    "maker_of",
    "model_of",
]


def invocation_of(context: Any) -> Any:
    """The invocation that a callback is about."""
    return context._invocation_context


async def model_of(invocation: Any) -> Any:
    """The model that an invocation's agent will ask; None if it has none."""
    agent = invocation.agent
    find = getattr(agent, "canonical_model_async", None)
    if find is not None:
        return await find(ReadonlyContext(invocation))
    return getattr(agent, "canonical_model", None)


def is_live(invocation: Any) -> bool:
    """Whether it is a session of Live."""
    return invocation.live_request_queue is not None


def maker_of(model: Any) -> str | None:
    """Whose prices apply to a model of the ADK's own."""
    modules = (c.__module__.rpartition(".")[2] for c in type(model).__mro__)
    return next((_MAKERS[name] for name in modules if name in _MAKERS), None)


def is_seen_beneath(model: Any, engine: Engine) -> bool:
    """Whether all that a model asks goes through an SDK that is metered itself."""
    if any(c.__name__ == _LITELLM for c in type(model).__mro__):
        return is_metered("litellm", engine)
    if maker_of(model) == "google":
        sends = getattr(getattr(model, "api_client", None), "_api_client", None)
        return getattr(getattr(type(sends), "_behest", None), "engine", None) is engine
    return keeps_metered_clients(model, engine)
