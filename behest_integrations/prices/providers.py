"""Whose prices apply: a provider's id in the price list, by its address and by its usual name."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import lru_cache
from urllib.parse import urlsplit

from ..rules.names import ROUTES, read_name

# Where packages and frameworks have another name for a provider than the price list.
_NAMES = {**ROUTES, "vertex": "google", "fireworks": "fireworks"}

Multiplier = tuple[int, int]
"""A price is multiplied by the first over the second: (11, 10)."""

# Endpoints that cost more than the list's price, by host: (host, models, multiplier).
_DEARER_HOSTS: tuple[tuple[str, tuple[str, ...], Multiplier], ...] = (
    # Regional endpoints of Vertex: 10 % for Claude Sonnet 4.5, Haiku 4.5, Opus 4.5 and all later ones.
    # https://platform.claude.com/docs/en/about-claude/pricing#third-party-platform-pricing
    ("*-aiplatform.googleapis.com", ("claude-*",), (11, 10)),
    ("aiplatform.*.rep.googleapis.com", ("claude-*",), (11, 10)),
    # https://docs.together.ai/docs/serverless/geo-specific-inference#pricing
    ("us-api.together.ai", ("*",), (5, 4)),
    ("ca-api.together.ai", ("*",), (5, 4)),
    # https://docs.mistral.ai/studio/regional-inference
    ("api.eu.mistral.ai", ("*",), (11, 10)),
    ("api.us.mistral.ai", ("*",), (11, 10)),
)
# Addresses that the price list does not know for a provider's.
_ADDRESSES = (
    # https://docs.mistral.ai/studio/regional-inference, https://docs.mistral.ai/capabilities/code_generation
    (re.compile(r"https://(?:api\.(?:eu|us)|codestral)\.mistral\.ai(?=[:/]|$)"), "mistral"),
    # https://docs.aws.amazon.com/general/latest/gr/bedrock.html
    (
        re.compile(
            r"https://(?:vpce-[a-z0-9.-]+\.)?bedrock-runtime(?:-fips)?\.[a-z0-9-]+(?:\.vpce)?\.amazonaws\.com(?=[:/]|$)"
        ),
        "aws",
    ),
)
_NO_REGIONAL_PRICE = re.compile(r"^claude-(?:v?[123]|instant|(?:sonnet|opus)-4$|opus-4-1|4-(?:sonnet|opus)$)")


@lru_cache(maxsize=1024)
def provider_for_url(url: str) -> str | None:
    """The price list's id for the provider behind a base URL; None if it knows none."""
    from genai_prices.data_snapshot import get_snapshot

    try:
        return get_snapshot().find_provider(None, None, url).id
    except LookupError:
        return next((provider for address, provider in _ADDRESSES if address.match(url)), None)


def provider_named(name: str) -> str | None:
    """The price list's id for a provider's usual name; None if it is not known."""
    return _NAMES.get(name.lower())


@lru_cache(maxsize=4096)
def multiplier_for_url(url: str, model: str) -> Multiplier | None:
    """What an endpoint multiplies the price of `model` by; None: nothing.

    Args:
        url: the base URL that is called.
        model: as it is sent.
    """
    host = (urlsplit(url).hostname or "").lower()
    name = read_name(model)
    for pattern, models, multiplier in _DEARER_HOSTS:
        if fnmatchcase(host, pattern) and any(fnmatchcase(name.undated, m) for m in models):
            return None if _NO_REGIONAL_PRICE.match(name.undated) else multiplier
    return None
