"""Mistral's own paths. Its requests are of OpenAI's wire, and its fields are in `dialects`.

https://docs.mistral.ai/api, and the typed client of it: mistralai 3.7.
"""

from __future__ import annotations

import re

PROVIDER = "mistral"
"""The price list's id."""

AGENTS = "/agents/completions"
"""What an agent answers with: its model, prompt and tools are stored, and not in the request."""
_PATHS = {
    "/chat/completions": "chat",
    "/fim/completions": "completions",
    "/embeddings": "embeddings",
    "/responses": "responses",
}
# Nothing is asked of a model: files, lists of models, agents that are made or changed, jobs that are called
# off, tokens that are counted. Moderations and classifications are models' (they are free elsewhere),
# conversations are answered, and documents are read when they are put into a library.
_FREE = re.compile(
    r"/(?:files|models)(?:/|$)|/agents(?!/completions$)(?:/|$)"
    r"|/(?:batch|fine_tuning)/jobs/[^/]+/cancel$|/responses/input_tokens$"
)
_OF_TWO = ("agents", "chat", "fim", "responses", "batch", "fine_tuning")


def operation_of(path: str) -> str | None:
    """What a POST to one of Mistral's paths does: ``chat``, ``completions``, ``embeddings``, ``responses``;
    the name of another billable endpoint (``ocr``, ``agents.completions``, …); None if it is free.

    Args:
        path: less the version (``/fim/completions``).
    """
    if path in _PATHS:
        return _PATHS[path]
    if _FREE.match(path):
        return None
    family = path.strip("/").split("/")
    return ".".join(family[:2]) if family[0] in _OF_TWO else family[0] or "post"
