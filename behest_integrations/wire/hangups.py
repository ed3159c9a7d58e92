"""What a provider does when the reader of a stream hangs up: it stops, or goes on and bills all of it.

Data by dialect, and by provider of the price list where it has no dialect. Where hanging up ends the
bill, a stream that was left is closed. Where it does not, closing saves nothing: the rest is read in
the background, for its usage. What is not known is closed, and booked at the worst case.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple

OnAbandoned = Literal["auto", "drain", "close"]
ON_ABANDONED: tuple[OnAbandoned, ...] = ("auto", "drain", "close")

# Which providers stop, and stop to bill, when a stream is cut: the list "Stream cancellation".
_OPENROUTER = "https://openrouter.ai/docs/api-reference/streaming#stream-cancellation"


class HangUp(NamedTuple):
    """What follows when a stream is hung up on.

    Attributes:
        billed: whether the provider bills all of it all the same.
        providers: ids of the price list, and other names that a provider is known by.
        source: where it is said.
    """

    billed: bool
    providers: tuple[str, ...]
    source: str


HANG_UPS: tuple[HangUp, ...] = (
    HangUp(True, ("google", "google-vertex", "vertex_ai", "gemini"), _OPENROUTER),
    HangUp(True, ("aws", "bedrock"), _OPENROUTER),
    HangUp(True, ("groq", "huggingface_groq"), _OPENROUTER),
    HangUp(True, ("mistral", "mistralai"), _OPENROUTER),
    HangUp(True, ("perplexity",), _OPENROUTER),
    HangUp(True, ("dashscope", "qwen", "alibaba"), _OPENROUTER),
    HangUp(True, ("minimax", "modal", "huggingface_sambanova", "huggingface_nebius"), _OPENROUTER),
    HangUp(False, ("openai", "openai-decisions"), _OPENROUTER),
    HangUp(False, ("azure",), _OPENROUTER),
    HangUp(False, ("anthropic",), _OPENROUTER),
    HangUp(False, ("deepseek",), _OPENROUTER),
    HangUp(False, ("together", "together_ai", "huggingface_together"), _OPENROUTER),
    HangUp(False, ("fireworks", "fireworks_ai", "huggingface_fireworks-ai"), _OPENROUTER),
    HangUp(False, ("x-ai", "xai"), _OPENROUTER),
    HangUp(False, ("cohere",), _OPENROUTER),
    HangUp(
        False, ("novita", "huggingface_novita", "avian", "cloudflare", "huggingface_hyperbolic"), _OPENROUTER
    ),
    # It depends on who is behind it.
    HangUp(False, ("openrouter",), _OPENROUTER),
    # Servers of one's own bill nobody, and reading on would keep them busy:
    HangUp(False, ("vllm", "hosted_vllm"), "https://github.com/vllm-project/vllm/pull/32442"),
    HangUp(
        False,
        ("llama.cpp", "llamacpp", "llama_cpp", "llamafile", "llama-server"),
        "https://github.com/ggml-org/llama.cpp/issues/4911",
    ),
)


@cache
def _billed() -> dict[str, bool]:
    return {provider: row.billed for row in HANG_UPS for provider in row.providers}


def bills_on(provider: str | None) -> bool:
    """Whether a provider is known to bill all of a stream that is hung up on.

    Args:
        provider: the price list's id, or another name; None: it is not known.
    """
    return provider is not None and _billed().get(provider, False)
