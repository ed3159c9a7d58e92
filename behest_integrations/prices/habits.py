"""What is known of models beside their price: which think unseen, which search by themselves.

Data by patterns over a model's plain name (see `rules.names`), each with its source. What no
pattern names is not known, and taken for the dearer.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import lru_cache
from typing import NamedTuple

from ..rules.names import read_name

# Models that bill as output only what they show, unless a request asks them to think.
_SHOW_ALL = (
    # https://platform.openai.com/docs/models: no "reasoning token support".
    "gpt-3.5-*", "gpt-35-*", "gpt-4", "gpt-4-*", "gpt-4.1*", "gpt-4.5-preview*", "gpt-4o*",
    "chatgpt-4o-latest", "text-davinci-*", "davinci-002", "babbage-002", "text-embedding-*",
    # https://platform.claude.com/docs/en/build-with-claude/extended-thinking: off until `thinking`
    # is sent; later models than these may think by themselves.
    "claude-2*", "claude-instant*", "claude-3-*", "claude-sonnet-4", "claude-sonnet-4-0*",
    "claude-sonnet-4-2*", "claude-opus-4",
    "claude-opus-4-0*", "claude-opus-4-1*", "claude-opus-4-2*", "claude-4-sonnet*",
    "claude-4-opus*", "claude-sonnet-4-5*", "claude-haiku-4-5*", "claude-opus-4-5*",
    # https://ai.google.dev/gemini-api/docs/thinking: thinking begins with Gemini 2.5.
    "gemini-1.0-*", "gemini-1.5-*", "gemini-2.0-flash*", "gemini-pro", "gemini-pro-vision",
    "gemma-2b*", "gemma-7b*", "gemma-2-*", "gemma2-*", "gemma-3-*", "gemma-3n-*", "gemma3", "gemma2", "gemma",
    # https://docs.mistral.ai/models: reasoning is Magistral's, and Small's and Medium's of 2026.
    "mistral-7b*", "open-mistral-*", "open-mixtral-*", "mixtral-*", "mistral-nemo*", "mistral-tiny*",
    "mistral-small-24*", "mistral-small-25*", "mistral-small-3.*", "mistral-medium-23*", "mistral-medium-25*",
    "mistral-large-24*", "mistral-large-2512", "codestral*", "pixtral-*", "ministral-3b-2410",
    "ministral-8b-2410", "ministral-8b-instruct-2410", "mistral-embed*",
    # https://www.llama.com/docs/model-cards-and-prompt-formats: Meta's Llamas have no reasoning mode.
    "llama-2-*", "llama2-*", "llama2", "llama3", "llama3-*", "llama-3-*", "llama-3.*", "llama-v3*",
    "llama3.*", "llama-4-*", "meta-llama-3*",
    # https://qwenlm.github.io/blog/qwen2.5-llm: Qwen thinks from Qwen 3 on, and as QwQ and QvQ.
    "qwen2-*", "qwen2", "qwen-2-*", "qwen2.5-*", "qwen2.5", "qwen-2.5-*",
    # https://api-docs.deepseek.com/guides/thinking_mode: deepseek-chat is the mode without.
    "deepseek-chat", "deepseek-v3", "deepseek-v3-0324", "deepseek-chat-v3-0324",
    # https://docs.x.ai/docs/guides/reasoning: these do not reason.
    "grok-2*", "grok-3", "grok-3-fast*", "grok-3-latest", "grok-*-non-reasoning*",
    # https://platform.moonshot.ai/docs: K2 without "thinking" in its name, until K2.5.
    "moonshot-v1-*", "kimi-k2-0711*", "kimi-k2-0905*", "kimi-k2-instruct*", "kimi-k2-turbo-preview",
    # https://docs.cohere.com/docs/models
    "command", "command-light", "command-nightly", "command-r*", "command-a", "command-a-03-2025",
    # https://docs.aws.amazon.com/nova/latest/userguide: reasoning begins with Nova 2.
    "nova-micro", "nova-lite", "nova-pro", "nova-premier", "titan-*",
    # https://huggingface.co/microsoft: the ones with "reasoning" in their name are others.
    "phi-3*", "phi-4", "phi-4-mini-instruct", "phi-4-multimodal-instruct",
)  # fmt: skip
# Models made of the above that do think.
_THINK = (
    "*thinking*",
    "*reason*",
    "*-r1*",
    "*r1-*",
    "*nemotron*",
    "*qwq*",
    "*distill*",
    "*hermes-4*",
    "*cogito*",
)


@lru_cache(maxsize=4096)
def shows_all_it_writes(model: str) -> bool:
    """Whether `model` is known to bill as output only what it shows.

    True only of models that are known not to think unless a request asks for it: the caller
    knows what the request asks. False: it thinks, or it is not known.
    """
    name = read_name(model)
    plain = name.plain.replace("-non-reasoning", "-plain")
    if name.variant == "thinking" or any(fnmatchcase(plain, p) for p in _THINK):
        return False
    # "latest" and such may be any version: only a name that covers them all is enough.
    return any(fnmatchcase(name.plain, p) for p in _SHOW_ALL)


class Searching(NamedTuple):
    """A model that searches the web though it is not asked to.

    Attributes:
        feature: the key for ``Meter(allow=...)`` where it cannot be bounded; None: `fees` say all.
        why: what to say when it is refused.
        fees: femto-dollars a request, by size of the search context (``low``, ``medium``,
            ``high``); one that does not depend on it is under "".
    """

    feature: str | None
    why: str
    fees: dict[str, int]


_LOOPS = "Deep research searches and reads as often as it likes"
_READS = "This model searches by itself, and what it finds is billed as tokens that are not known beforehand"


def _fees(low: int, medium: int, high: int) -> dict[str, int]:
    """Dollars per 1,000 requests, as femto-dollars per request."""
    return {"low": low * 10**12, "medium": medium * 10**12, "high": high * 10**12}


_SEARCHING: tuple[tuple[str, Searching], ...] = (
    # Chat completions of these search once a request, and what is found costs no tokens: web
    # search preview for models that do not reason, $25 per 1,000 calls, whatever the context:
    # https://developers.openai.com/api/docs/pricing (Built-in tools).
    ("gpt-4o-search-preview*", Searching(None, "", {"": 25 * 10**12})),
    ("gpt-4o-mini-search-preview*", Searching(None, "", {"": 25 * 10**12})),
    # $10 per 1,000 calls, and search content tokens at the model's rates (same page).
    ("gpt-5-search-api*", Searching("web_search", _READS, {"": 10 * 10**12})),
    ("*deep-research*", Searching("deep_research", _LOOPS, {})),
    # Request fees by search context size: https://docs.perplexity.ai/getting-started/pricing
    ("sonar", Searching(None, "", _fees(5, 8, 12))),
    ("sonar-reasoning", Searching(None, "", _fees(5, 8, 12))),
    ("sonar-pro", Searching(None, "", _fees(6, 10, 14))),
    ("sonar-reasoning-pro", Searching(None, "", _fees(6, 10, 14))),
    # Pro Search takes as many steps as it needs.
    ("sonar*", Searching("web_search", _READS, {})),
    ("*-online", Searching("web_search", _READS, {})),
    # https://docs.x.ai/docs/models: its agents search by themselves.
    ("*-multi-agent*", Searching("web_search", _READS, {})),
    # Models and tools of its own choice, each billed: https://console.groq.com/docs/compound
    ("compound*", Searching("compound", "Compound systems use models and tools of their own choice", {})),
    # LiteLLM asks every model of a list: https://docs.litellm.ai/docs/completion/batching
    ("*,*", Searching("several_models", "A list of models is asked, each of them", {})),
    ("relace-search", Searching("web_search", _READS, {})),
)
# https://openrouter.ai/docs/guides/routing/model-variants/online: the same as the web plugin,
# whose results are also billed as prompt.
_ONLINE = Searching("web_search", "The suffix :online searches the web", {})


@lru_cache(maxsize=4096)
def searching(model: str) -> Searching | None:
    """What `model` does by itself beside answering; None: nothing that is known."""
    name = read_name(model)
    if name.variant == "online":
        return _ONLINE
    return next((found for pattern, found in _SEARCHING if fnmatchcase(name.plain, pattern)), None)
