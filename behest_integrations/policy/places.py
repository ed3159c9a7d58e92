"""Where a provider's server is, where its host says so. What does not say so is not known.

Each pattern is a provider's own scheme of names, with its source; a region is told in the provider's word.
"""

from __future__ import annotations

import re

_HOSTS: tuple[tuple[re.Pattern[str], str | None], ...] = (
    # https://docs.aws.amazon.com/general/latest/gr/bedrock.html
    (re.compile(r"bedrock(?:-runtime)?(?:-fips)?\.([a-z]{2}(?:-[a-z]+)+-\d)\.amazonaws\.com$"), None),
    # https://cloud.google.com/vertex-ai/docs/reference/rest#rest_endpoints
    (re.compile(r"([a-z]+-[a-z]+\d+)-aiplatform\.googleapis\.com$"), None),
    (re.compile(r"aiplatform\.([a-z]+)\.rep\.googleapis\.com$"), None),
    # https://platform.openai.com/docs/guides/your-data#data-residency-controls
    (re.compile(r"([a-z]{2})\.api\.openai\.com$"), None),
    # https://docs.together.ai/docs/serverless/geo-specific-inference
    (re.compile(r"([a-z]{2})-api\.together\.ai$"), None),
    # This very machine.
    (re.compile(r"(?:localhost|127(?:\.\d{1,3}){3}|::1)$"), "local"),
)  # fmt: skip


def region_of_host(host: str) -> str | None:
    """The region that a host is in by its name: ``eu-west-1``, ``europe-west4``, ``eu``, ``local``."""
    for pattern, region in _HOSTS:
        found = pattern.match(host)
        if found:
            return region or found[1]
    return None
