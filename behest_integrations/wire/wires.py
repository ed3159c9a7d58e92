"""The wires that are known, behind one way to ask: which operation a request is, and how large it can get.

A wire is a module with an `operation_of` and a bound for each of its operations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from . import anthropic, cohere, converse, gemini, mistral, openai
from .bounds import RequestBound
from .fields import NO_FIELDS

METERED_OPERATIONS = (
    openai.METERED_OPERATIONS
    | {anthropic.MESSAGES, converse.CONVERSE}
    | gemini.OPERATIONS
    | cohere.OPERATIONS
)
"""Operations that are billed by tokens, which their requests bound."""
EMBEDDINGS = frozenset({"embeddings", gemini.EMBED, cohere.EMBED})
"""Those that embed."""

UNBILLED = ("GET", "DELETE", "HEAD", "OPTIONS")
"""Methods by which nothing is asked of a model."""

# https://learn.microsoft.com/azure/ai-services/openai/reference: Azure has the model in the path.
_DEPLOYMENT = re.compile(r"/deployments/([^/]+)/")
_VERSION = re.compile(r"/v1(?:(?:alpha|beta)\d*)?(?=/)")
_FILES = re.compile(r"(?:/upload)?/v1[a-z0-9]*/files(?::register)?$")
"""Gemini's, which are kept for nothing: https://ai.google.dev/gemini-api/docs/files"""
_COUNTING = frozenset({"countTokens", "computeTokens", "count-tokens"})
"""Verbs that are free: https://ai.google.dev/gemini-api/docs/tokens,
https://docs.aws.amazon.com/bedrock/latest/userguide/count-tokens.html"""


_OF_MODELS = frozenset(
    {"predict", "rawPredict", "streamRawPredict", "directPredict", "directRawPredict", "predictLongRunning",
     "serverStreamingPredict", "asyncBatchEmbedContent", "batchGenerateContent", "generateContent",
     "streamGenerateContent", "invoke", "invoke-with-response-stream"}
)  # fmt: skip
"""Google's verbs that ask a model, and Bedrock's: https://ai.google.dev/api,
https://cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations.publishers.models,
https://docs.aws.amazon.com/bedrock/latest/APIReference/API_Operations_Amazon_Bedrock_Runtime.html"""


class Found(NamedTuple):
    """What a request does, by its path alone.

    Attributes:
        operation: one of `METERED_OPERATIONS`, or the name of another billable call.
        model: the model, where it is in the path, as it is written there.
        stream: whether a stream is asked for, where that is in the path.
    """

    operation: str
    model: str | None = None
    stream: bool | None = None


@lru_cache(maxsize=1024)
def find(method: str, path: str, provider: str | None = None) -> Found | None:
    """What a request to a host of models does; None: nothing that is billed.

    Args:
        path: the URL's, whatever comes before the wire's own part of it (`/v1`, `/openai/deployments/…`).
        provider: the price list's id of whose host it is, if known: some paths mean other things at some.
    """
    if method.upper() in UNBILLED:
        return None
    path = "/" + path.strip("/")
    if _FILES.fullmatch(path):
        return None
    in_path = anthropic.in_path(path)
    if in_path is not None:
        return Found(anthropic.MESSAGES, *in_path)
    conversing = converse.in_path(path)
    if conversing is not None:
        return Found(converse.CONVERSE, *conversing)
    of_gemini = gemini.in_path(path)
    if of_gemini is not None:
        return Found(*of_gemini)
    version = _VERSION.search(path)
    own = path[version.end() :] if version is not None else path
    of_cohere = cohere.operation_of(path, own=provider == cohere.PROVIDER)
    if of_cohere is not None:
        return Found(of_cohere) if of_cohere else None
    if provider == mistral.PROVIDER:
        theirs = mistral.operation_of(own)
        return None if theirs is None else Found(theirs)
    if path.endswith(mistral.AGENTS):  # an agent that answers, where those that are made are free
        return Found("agents.completions")
    for end, operation in openai.PATHS.items():
        if path.endswith(end):
            deployment = _DEPLOYMENT.search(path)
            return Found(operation, deployment[1] if deployment else None)
    if path.endswith("/messages"):
        return Found(anthropic.MESSAGES)
    *_, last = path.split("/")
    if ":" in last or "/model/" in path:  # Google's verbs, Bedrock's
        verb = last.rpartition(":")[2]
        return None if verb in _COUNTING else Found(verb or "post")
    family = openai.operation_of(method, own)
    return None if family is None or anthropic.operation_of(method, own) is None else Found(family)


def is_of_a_model(found: Found) -> bool:
    """Whether what a request does is known for a call of a model, whatever else its host may serve."""
    return found.operation in METERED_OPERATIONS or found.operation in _OF_MODELS


def bound_request(
    operation: str,
    body: Mapping[str, Any],
    *,
    prefer_max_tokens: bool = False,
    provider: str | None = None,
    allowed: frozenset[str] = NO_FIELDS,
) -> RequestBound:
    """How large the request `body` can get.

    Args:
        operation: one of `METERED_OPERATIONS`.
        body: the request's JSON, with what an SDK's `extra_body` adds to it.
        prefer_max_tokens: where the caller sent no limit, send one as `max_tokens` (what
            most OpenAI-compatible servers read) and not as `max_completion_tokens`.
        provider: the price list's id of the provider; None: any server, so that every field
            means the worst that it means anywhere.
        allowed: fields, by name or path, that are not known here and do nothing.

    Raises:
        ConfigError: a field that the bound depends on has an impossible value.
    """
    if operation == anthropic.MESSAGES:
        return anthropic.bound_messages(body, provider=provider, allowed=allowed)
    if operation == converse.CONVERSE:
        return converse.bound_request(body, provider=provider, allowed=allowed)
    if operation in gemini.OPERATIONS:
        return gemini.bound_request(operation, body, provider=provider, allowed=allowed)
    if operation in cohere.OPERATIONS:
        return cohere.bound_request(operation, body, provider=provider, allowed=allowed)
    return openai.bound_request(
        operation, body, prefer_max_tokens=prefer_max_tokens, provider=provider, allowed=allowed
    )


def bound_others(operation: str, body: Mapping[str, Any], provider: str | None = None) -> RequestBound:
    """What is known of a request that is not billed by tokens: what it is beyond one call."""
    features = dict(cohere.bound_others(operation, body, provider))
    return RequestBound(0, output_limit=0, features=features) if features else UNMETERED


UNMETERED = RequestBound(0, output_limit=0)
"""Of a call that is not billed by tokens, and is one call."""
