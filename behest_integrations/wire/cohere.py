"""Cohere's own requests (`/v2/chat`, `/v2/embed`, `/v2/rerank`): what is asked for, and how large it can get.

It reads plain JSON values; it makes no calls and knows no SDK. What its version 1 is asked is another wire,
and is not read. https://docs.cohere.com/reference/chat, and the typed client of it: cohere 7.3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from .bounds import RequestBound
from .counting import InputCounter
from .fields import NO_FIELDS, positive, read_fields
from .sizes import size_of
from .tokens import byte_length

PROVIDER = "cohere"
"""The price list's id."""
CHAT = "chat_v2"
"""The operation of `/v2/chat`."""
EMBED = "embed_v2"
"""The operation of `/v2/embed`."""
RERANK = "rerank"
"""What ranks documents: billed by searches, which have no price in the list."""
OPERATIONS = frozenset({CHAT, EMBED})

_PATH = re.compile(r"/v(?P<version>[12])/(?P<rest>[a-z][a-z-]*(?:/.*)?)$")
_PATHS = {("2", "chat"): CHAT, ("2", "embed"): EMBED, ("2", RERANK): RERANK, ("1", "chat"): "chat_v1"}
# Nothing is asked of a model: tokens that are counted, keys that are checked, lists, jobs called off.
_FREE = re.compile(
    r"(?:tokenize|detokenize|check-api-key|models|datasets|connectors)(?:/|$)"
    r"|embed-jobs/[^/]+/cancel$|batches/[^/]+:cancel$"
)


def operation_of(path: str, *, own: bool) -> str | None:
    """What a POST to one of Cohere's paths does: ``chat_v2``, ``embed_v2``, ``rerank``; the name of another
    billable endpoint (``chat_v1``, ``classify``, …); "" if it is free; None: it is no path of Cohere's.

    Args:
        own: whether it is at Cohere: paths that others have as well are not looked at elsewhere.
    """
    found = _PATH.search(path)
    if found is None:
        return None
    known = _PATHS.get((found["version"], found["rest"]))
    if known is not None or not own or "/compatibility/" in path:
        return known
    return "" if _FREE.match(found["rest"]) else found["rest"].partition("/")[0]


# ── requests ───────────────────────────────────────────────────────────────────────────

_DOCUMENT = 32
"""Tokens that a template puts around each document, from above:
https://docs.cohere.com/docs/retrieval-augmented-generation-rag"""


def bound_request(
    operation: str,
    body: Mapping[str, Any],
    *,
    provider: str | None = None,
    allowed: frozenset[str] = NO_FIELDS,
) -> RequestBound:
    """See `wires.bound_request`; of Cohere's operations.

    What is billed is less than what is counted: the tokens that Cohere adds by itself are not.
    https://docs.cohere.com/docs/how-does-cohere-pricing-work

    Raises:
        ConfigError: a field that the bound depends on has an impossible value.
    """
    counter = InputCounter(str(body.get("model") or ""))
    effects = read_fields(operation, body, provider, allowed)
    counter.features.update(effects.features)
    if operation == EMBED:
        _count_texts(counter, body)
        return RequestBound(counter.tokens, output_limit=0, features=counter.features)
    body = {**body, "messages": [_in_words(message) for message in _listed(body.get("messages"))]}
    counter.messages(body["messages"])
    counter.tools(body.get("tools"))
    before = counter.tokens
    counter.json(body.get("response_format"))
    documents = _listed(body.get("documents"))
    counter.json(documents)
    counter.tokens += _DOCUMENT * len(documents) + effects.extra_input
    for value in effects.counted:
        counter.tokens += counter.around
        counter.json(value)
    size = size_of(body, counter.model, counter.tokens - before)
    limit = body.get("max_tokens")
    return RequestBound(
        counter.tokens if size is None else size.total,
        output_limit=None if limit is None else positive("max_tokens", limit),
        limit_fields=("max_tokens",),
        features=counter.features,
        multiplier=effects.multiplier,
        below_limit=effects.below,
        size=None if counter.features else size,
        cache_writes="none",
    )


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def _in_words(message: Any) -> Any:
    """A message whose documents are text: what a tool has found comes as such."""
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, (list, tuple)):
        return message if isinstance(message, Mapping) else {"content": message}
    parts = [
        {"type": "text", "text": json.dumps(part, ensure_ascii=False, default=str)}
        if isinstance(part, Mapping) and part.get("type") == "document"
        else part
        for part in content
    ]
    return {**message, "content": parts}


def _count_texts(counter: InputCounter, body: Mapping[str, Any]) -> None:
    for text in _listed(body.get("texts")):
        counter.tokens += counter.around
        counter.json(text) if not isinstance(text, str) else counter.text(text)
    for one in _listed(body.get("inputs")):
        counter.tokens += counter.around
        content = one.get("content") if isinstance(one, Mapping) else one
        for part in _listed(content):
            counter.part(part)


# ── searches ───────────────────────────────────────────────────────────────────────────

_CHUNK, _UNIT, _LONGEST = 500, 100, 4096
"""A search is a query with up to 100 documents; one that is longer than 500 tokens, the query's among them,
counts as several (https://cohere.com/pricing); each is cut at `max_tokens_per_doc`, which is 4,096."""


def searches(body: Mapping[str, Any]) -> int:
    """How many searches a request to rank documents is billed as, from above."""
    longest = body.get("max_tokens_per_doc")
    longest = longest if type(longest) is int and longest > 0 else _LONGEST
    room = max(1, _CHUNK - byte_length(str(body.get("query") or "")))
    chunks = sum(-(-min(size, longest) // room) for size in map(_bytes, _listed(body.get("documents"))))
    return max(1, -(-chunks // _UNIT))


def _bytes(document: Any) -> int:
    if isinstance(document, str):
        return max(1, byte_length(document))
    return byte_length(json.dumps(document, ensure_ascii=False, default=str))


def bound_others(operation: str, body: Mapping[str, Any], provider: str | None) -> Iterable[tuple[str, str]]:
    """What a request that is not billed by tokens is, beyond one call: features, with the reasons."""
    many = searches(body) if operation == RERANK and provider == PROVIDER else 1
    if many > 1:
        yield (
            "search_units",
            f"The documents may be billed as {many} searches: each is a query with up to {_UNIT} documents "
            f"of {_CHUNK} tokens",
        )
