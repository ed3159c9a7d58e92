"""Hosts that serve models: the price list's, others that have no price there, and a user's own.

What cannot be told by the host alone, because it serves much else, is told by what is asked of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

from ..rules.errors import ConfigError
from .providers import provider_for_url

_GOOGLE = re.compile(
    r"(?:[a-z0-9-]+-)?(?:aiplatform|generativelanguage)(?:\.mtls)?\.googleapis\.com"
    r"|aiplatform\.[a-z0-9-]+\.rep\.googleapis\.com|firebasevertexai\.googleapis\.com"
)
"""Of all of Google's hosts, which the price list has as one, those that serve models:
https://ai.google.dev/api, https://cloud.google.com/vertex-ai/docs/reference/rest,
https://firebase.google.com/docs/ai-logic"""

# By host, with where it is said. The price list has no address for these.
_OTHERS: tuple[tuple[str, str], ...] = (
    (r"[a-z]+\.api\.openai\.com", "https://platform.openai.com/docs/guides/your-data#data-residency"),
    (r"(?:[a-z-]+\.)?api\.x\.ai", "https://docs.x.ai/docs/key-information/regions"),
    (
        r"(?:vpce-[a-z0-9.-]+\.)?bedrock-(?:agent-)?runtime(?:-fips)?\.[a-z0-9-]+(?:\.vpce)?\.amazonaws\.com(?:\.cn)?"
        r"|bedrock-mantle\.[a-z0-9-]+\.api\.aws",
        "https://docs.aws.amazon.com/general/latest/gr/bedrock.html",
    ),
    (r"(?:[a-z]+-)?api\.together\.(?:ai|xyz)", "https://docs.together.ai/docs/openai-api-compatibility"),
    (r"(?:router|api-inference)\.huggingface\.co", "https://huggingface.co/docs/inference-providers"),
    (r"[a-z0-9-]+\.endpoints\.huggingface\.cloud", "https://huggingface.co/docs/inference-endpoints"),
    (
        r"models\.github\.ai|models\.inference\.ai\.azure\.com",
        "https://docs.github.com/rest/models/inference",
    ),
    (r".+\.models\.ai\.azure\.com", "https://learn.microsoft.com/azure/ai-foundry/reference"),
    (r"api\.deepinfra\.com", "https://docs.deepinfra.com/openai"),
    (r"api\.ai21\.com", "https://docs.ai21.com/reference"),
    (r"api\.sambanova\.ai", "https://docs.sambanova.ai/docs/en/get-started/quickstart"),
    (r"api\.(?:studio|tokenfactory)\.nebius\.(?:ai|com)", "https://docs.tokenfactory.nebius.com"),
    (r"api\.hyperbolic\.xyz", "https://docs.hyperbolic.xyz"),
    (r"(?:integrate|ai)\.api\.nvidia\.com", "https://docs.api.nvidia.com/nim/reference"),
    (r"api\.replicate\.com", "https://replicate.com/docs/reference/http"),
    (r"dashscope(?:-[a-z]+)?\.aliyuncs\.com", "https://www.alibabacloud.com/help/en/model-studio"),
    (r"api\.siliconflow\.(?:cn|com)", "https://docs.siliconflow.com/en/api-reference"),
    (r"ark\.[a-z0-9-]+\.volces\.com", "https://www.volcengine.com/docs/82379"),
    (r"[a-z-]+\.ml\.cloud\.ibm\.com", "https://cloud.ibm.com/apidocs/watsonx-ai"),
    (r"inference\.generativeai\.[a-z0-9-]+\.oci\.oraclecloud\.com", "https://docs.oracle.com/iaas/api"),
    (r"ai-gateway\.vercel\.sh", "https://vercel.com/docs/ai-gateway"),
    (r"gateway\.ai\.cloudflare\.com", "https://developers.cloudflare.com/ai-gateway"),
    (r"api\.stability\.ai", "https://platform.stability.ai/docs/api-reference"),
    (r"api\.jina\.ai", "https://jina.ai/embeddings"),
    (r"api\.upstage\.ai", "https://console.upstage.ai/docs"),
    (r"api\.writer\.com", "https://dev.writer.com/api-reference"),
)
_OTHER = re.compile("|".join(f"(?:{pattern})" for pattern, _source in _OTHERS))

_SHARED = re.compile(
    r".*aiplatform.*\.googleapis\.com|.*\.modal\.(?:run|direct)"
    r"|.*\.(?:azure-api\.net|cognitiveservices\.azure\.com|services\.ai\.azure\.com)"
    r"|.*\.ml\.cloud\.ibm\.com"
)
"""Hosts that serve other things than models beside them."""


class ModelHost(NamedTuple):
    """A host that serves models.

    Attributes:
        provider: the price list's id; None where it has none.
        shared: whether it serves much else, so that only what is known for a call of a model is one.
    """

    provider: str | None
    shared: bool = False


NAMED = ModelHost(None)


def named_hosts(hosts: Iterable[str]) -> frozenset[str]:
    """A user's own hosts, as `model_host` takes them.

    Raises:
        ConfigError: they are no list of hosts.
    """
    if isinstance(hosts, str) or not all(isinstance(host, str) for host in hosts):
        raise ConfigError(f"hosts is a list of names, not {hosts!r}")
    named = frozenset(host.strip().lower() for host in hosts)
    for host in named:
        if not host or "/" in host:
            raise ConfigError(f"a host is named as 'models.example.com' or 'localhost:8000', not as {host!r}")
    return named


def model_host(url: str, hosts: frozenset[str] = frozenset()) -> ModelHost | None:
    """What is known of a URL's host, if it serves models.

    Args:
        url: as it is called, with its path.
        hosts: a user's own; see `named_hosts`.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    provider = provider_for_url(url)
    if provider == "google" and not _GOOGLE.fullmatch(host):
        provider = None
    if provider is not None:
        return ModelHost(provider, _SHARED.fullmatch(host) is not None)
    if host in hosts or parts.netloc.rpartition("@")[2].lower() in hosts:
        return NAMED
    if parts.scheme == "https" and _OTHER.fullmatch(host):
        return ModelHost(None, _SHARED.fullmatch(host) is not None)
    return None
