"""What a model's id says: who serves it, which model it is, which of its variants.

Model ids carry more than a name: who made or serves it (`openai/gpt-4o`), where it runs
(`us.anthropic.claude-…`), when it was made (`…-2024-08-06`), how it is routed (`…:nitro`). One
reading of them serves prices, tokenizers, and what is known of a model's habits. Strings in,
strings out: no price list is needed for it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple


class ModelName(NamedTuple):
    """A model's id, taken apart. All in lower case.

    Attributes:
        plain: the model alone: no path, vendor, region, variant; of a fine-tuned model, its base.
            ``us.anthropic.claude-sonnet-4-5-20250929-v1:0`` is ``claude-sonnet-4-5-20250929``.
        undated: `plain` without its date or version: names of one model agree in it.
        route: who is called, by the price list's id, where the id itself says so.
        rest: the id without what `route` and the API's own prefix (``models/``) took.
        variant: what follows the last colon (``free``, ``nitro``; a size at Ollama), or "".
        tuned: whether it is somebody's fine-tuned model.
    """

    plain: str
    undated: str
    route: str | None
    rest: str
    variant: str
    tuned: bool


# Prefixes by which routers and frameworks name a provider, by the price list's id:
# https://docs.litellm.ai/docs/providers, https://openrouter.ai/docs (author/slug) and
# https://docs.langchain.com/oss/python/langchain/models (provider:model).
ROUTES = {
    "openai": "openai", "azure": "azure", "azure_ai": "azure", "azure_openai": "azure",
    "anthropic": "anthropic", "google": "google", "google_genai": "google", "google_vertexai": "google",
    "gemini": "google", "vertex_ai": "google", "vertex_ai_beta": "google",
    "bedrock": "aws", "bedrock_converse": "aws", "amazon_bedrock": "aws", "aws": "aws",
    "mistral": "mistral", "mistralai": "mistral", "groq": "groq", "cohere": "cohere",
    "deepseek": "deepseek", "xai": "x-ai", "x-ai": "x-ai", "perplexity": "perplexity",
    "openrouter": "openrouter", "moonshot": "moonshotai", "moonshotai": "moonshotai",
    "cerebras": "cerebras", "together": "together", "together_ai": "together",
    "fireworks_ai": "fireworks", "novita": "novita",
}  # fmt: skip

# What Google's own SDKs send before a model: https://ai.google.dev/api/models (name: models/…)
# and https://cloud.google.com/vertex-ai/docs/reference/rest (projects/…/publishers/…/models/…).
_GOOGLE_PATH = re.compile(r"^(?:projects/[^/]+/locations/[^/]+/)?(?:publishers/([^/]+)/)?models/(.+)$")

# A Bedrock id: region of the inference profile, vendor, model, version.
# https://docs.aws.amazon.com/bedrock/latest/userguide/inference-profiles-support.html
_BEDROCK = re.compile(
    r"^(?:(?:us|us-gov|eu|apac|ap|jp|au|ca|sa|me|af|global|regional)\.)?"
    r"(?:anthropic|amazon|meta|mistral|cohere|ai21|deepseek|openai|qwen|writer|moonshotai?|minimax|zai|google"
    r"|nvidia|stability|twelvelabs|luma)"
    r"\.(?P<model>[a-z0-9][^/]*?)(?:-v\d+)?(?::\d+)?(?::\d+k|:mm)?$"
)
_BEDROCK_PLACE = re.compile(r"^arn:[^/]*/(?P<id>.+)$")

# The date or version at the end of a name: 2024-08-06, 20250929, 0613, 2411, 001, 05-20, latest.
_DATE = re.compile(r"[-@](?:20\d\d-\d\d-\d\d|20\d{6}|\d\d-20\d\d|\d\d-\d\d|\d{4}|00\d|latest|default)$")


@lru_cache(maxsize=4096)
def read_name(model: str) -> ModelName:
    """A model's id, taken apart."""
    text = model.strip().lower()
    tuned = text.startswith("ft:")
    if tuned:  # ft:gpt-4o-mini-2024-07-18:organisation:suffix:id
        plain = text.split(":")[1]
        return ModelName(plain, undated(plain), None, text, "", True)
    route, rest = _route(text)
    last = rest.rsplit("/", 1)[-1] if not rest.startswith("arn:") else rest
    found = _BEDROCK_PLACE.match(last)
    if found:
        last = found["id"].rsplit("/", 1)[-1]
    bedrock = _BEDROCK.match(last)
    if bedrock:
        plain, variant = bedrock["model"], ""
        route = route or "aws"
    else:
        plain, _, variant = last.partition(":")
    if ".ft-" in plain:  # Azure: gpt-4o-mini-2024-07-18.ft-…
        plain, tuned = plain.split(".ft-")[0], True
    if plain.startswith("claude"):  # claude-sonnet-4.5 at OpenRouter is claude-sonnet-4-5
        plain = plain.replace(".", "-")
    return ModelName(plain, undated(plain), route, rest, variant, tuned)


def _route(text: str) -> tuple[str | None, str]:
    """Who is called, and the id that it is called with."""
    found = _GOOGLE_PATH.match(text)
    if found:
        return "google", found[2]
    for separator in ("/", ":"):
        head, _, rest = text.partition(separator)
        if rest and head in ROUTES:
            path = _GOOGLE_PATH.match(rest)
            return ROUTES[head], path[2] if path else rest
    return None, text


def undated(plain: str) -> str:
    """A plain name without its date or version."""
    while True:
        shorter = _DATE.sub("", plain)
        if shorter == plain or not shorter:
            return plain
        plain = shorter
