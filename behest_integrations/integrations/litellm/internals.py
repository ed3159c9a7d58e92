"""What of LiteLLM's internals is touched. Read with litellm 1.84.0, 1.108.7 and 1.110.2.

Each of its functions is decorated by `litellm.utils.client`, which looks into caches, retries, and then calls
what it keeps in its closure as `original_function`. People and LiteLLM itself hold the decorated functions
under many names; what is in that cell is called whatever the name, once for each attempt: the asynchronous
functions come there too, with a flag (`acompletion=True`), and get a coroutine. `tests/test_litellm.py` says
what has moved.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import CellType
from typing import Any

import litellm
from litellm.types.utils import all_litellm_params

CELL = "original_function"

ATTEMPTS = {
    "completion": "litellm.main",
    "embedding": "litellm.main",
    "responses": "litellm.responses.main",
}
"""What asks a model: the function, and where it is."""
AWAITED = {
    "acompletion": "litellm.main",
    "atext_completion": "litellm.main",
    "aembedding": "litellm.main",
    "aresponses": "litellm.responses.main",
}
"""What calls one of those, and makes errors of LiteLLM's own of what they raise."""
COUNTED = (
    ("image_generation", "litellm.images.main", "images"),
    ("image_edit", "litellm.images.main", "images"),
    ("image_variation", "litellm.images.main", "images"),
    ("transcription", "litellm.main", "audio"),
    ("speech", "litellm.main", "audio"),
    ("rerank", "litellm.rerank_api.main", "rerank"),
    ("create_batch", "litellm.batches.main", "batches"),
    ("create_fine_tuning_job", "litellm.fine_tuning.main", "fine_tuning"),
    ("video_generation", "litellm.videos.main", "videos"),
    ("search", "litellm.search.main", "search"),
    (
        "anthropic_messages",
        "litellm.llms.anthropic.experimental_pass_through.messages.handler",
        "messages.create",
    ),
    ("anthropic_messages", "litellm.llms.anthropic.pass_through.messages.handler", "messages.create"),
    ("generate_content", "litellm.google_genai.main", "generate_content"),
    ("generate_content_stream", "litellm.google_genai.main", "generate_content"),
    ("agenerate_content_stream", "litellm.google_genai.main", "generate_content"),
)
"""What is billed in other ways: the function, where it is, and what it is called in `Meter(allow=...)`."""
UNDECORATED = (
    ("litellm.messages.dispatch", "_PYTHON_MESSAGES"),
    ("litellm.anthropic_interface.messages", "_sync_anthropic_messages"),
)
"""Where it keeps the one function that is not decorated, newer versions first: blocking messages."""
PUBLIC = (
    "completion", "acompletion", "text_completion", "atext_completion", "embedding", "aembedding",
    "responses", "aresponses", *(name for name, _, _ in COUNTED), "aimage_generation", "aimage_edit",
    "atranscription", "aspeech", "arerank", "acreate_batch", "avideo_generation", "asearch",
    "agenerate_content",
)  # fmt: skip
ROUTERS = (
    ("litellm.router", "Router", ("async_function_with_fallbacks", "function_with_fallbacks")),
    ("litellm.router_rust.core", "RustCore", ("_drive", "_call_sync")),
)
"""The methods of a Router around all that it tries, and whose they are: from 1.110 on, its core is Rust."""
CLIENTS = (
    ("litellm.llms.openai.openai", "OpenAIChatCompletion", "_get_openai_client"),
    ("litellm.llms.azure.common_utils", "BaseAzureLLM", "get_azure_openai_client"),
)
"""Where it gets the clients of OpenAI's SDK."""
OWN = frozenset(all_litellm_params)
"""Keywords that are for LiteLLM, and in no request."""


def cell_of(module: str, name: str) -> CellType | None:
    """Where a decorated function keeps what it decorates; None if this version has no such function."""
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError):
        return None
    names = function.__code__.co_freevars if hasattr(function, "__code__") else ()
    return function.__closure__[names.index(CELL)] if CELL in names else None


def swapped(owner: Any, name: str, make: Callable[[Any], Any]) -> Callable[[], None]:
    """Replace an attribute by what `make` makes of it; what puts it back, if it is still ours."""
    before = getattr(owner, name, None)
    if before is None:
        return lambda: None
    ours = make(before)
    setattr(owner, name, ours)

    def undo() -> None:
        if vars(owner).get(name) is ours:
            setattr(owner, name, before)

    return undo


def provider_of(model: str, asked: dict[str, Any]) -> tuple[str, str, str]:
    """LiteLLM's name of the provider that it will call; the address, "" if it is the provider's own; and what
    the model is called there."""
    base = asked.get("api_base") or asked.get("base_url") or ""
    try:
        found = litellm.get_llm_provider(
            model=model, custom_llm_provider=asked.get("custom_llm_provider"), api_base=base or None
        )
    except Exception:  # it will say so itself
        return "", str(base), model
    return str(found[1] or ""), str(base or found[3] or ""), str(found[0] or model)


def is_mocked(name: str, asked: dict[str, Any]) -> bool:
    """Whether one of `ATTEMPTS` answers by itself, as LiteLLM decides it: not by whether a keyword is there.
    A client of its proxy may put any of them into a request."""
    mocked = asked.get("mock_response")
    if name == "completion":
        return bool(mocked or asked.get("mock_tool_calls") or asked.get("mock_timeout"))
    return isinstance(mocked, str) and mocked != "" if name == "responses" else mocked is not None


def tells_usage(model: str, provider: str) -> bool:
    """Whether LiteLLM takes `stream_options` for a provider; OpenAI's client is asked below."""
    if provider in ("openai", "azure", "custom_openai", "text-completion-openai", "azure_text"):
        return False
    try:
        known = litellm.get_supported_openai_params(model=model, custom_llm_provider=provider) or ()
    except Exception:
        return False
    return "stream_options" in known
