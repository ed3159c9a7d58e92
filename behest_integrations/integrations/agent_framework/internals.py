"""What of Microsoft Agent Framework's internals is touched. Read with agent-framework-core 1.23.0.

Middleware is public; so is that an agent hands on to its client what is in `client_kwargs["middleware"]`, and
that each round with tools passes chat middleware anew. Not public: where agents and clients take their
middleware in, which is hooked where all are metered. `tests/test_agent_framework.py` says what has moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent_framework._middleware import AgentMiddlewareLayer, ChatMiddlewareLayer

from ...prices import provider_for_url, provider_named
from ..kit.settings import model_in, url_in

RUN = AgentMiddlewareLayer, "run"
ASK = ChatMiddlewareLayer, "get_response"
HANDED_ON = "middleware"
"""What of a client's keywords is middleware."""


def name_of(client: Any, options: Mapping[str, Any]) -> str:
    """What a client calls the model that it asks."""
    return model_in(options) or model_in(vars(client)) or type(client).__name__


def url_of(client: Any) -> str:
    """The address that a client was given; "" if none."""
    return url_in(vars(client))


def provider_of_client(client: Any) -> str | None:
    """Whose prices apply, by the client's address, or by what it says of its provider."""
    url, maker = url_of(client), str(getattr(client, "OTEL_PROVIDER_NAME", "") or "")
    if url and (found := provider_for_url(url)) is not None:
        return found
    if url and "openai" in maker:
        return None  # OpenAI's classes serve any compatible server
    return provider_named(maker)


def counts_cache_within(client: Any) -> bool:
    """Whether a client's input tokens have those of a cache in them."""
    return any(c.__module__.partition(".")[0] == "agent_framework_openai" for c in type(client).__mro__)
