"""The wires that are known, behind one way to ask: which operation a request is, and how large it can get.

A wire is a module with an `operation_of` and a bound for each of its operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import anthropic, openai
from .bounds import RequestBound
from .fields import NO_FIELDS

METERED_OPERATIONS = openai.METERED_OPERATIONS | {anthropic.MESSAGES}
"""Operations that are billed by tokens, which their requests bound."""


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
    return openai.bound_request(
        operation, body, prefer_max_tokens=prefer_max_tokens, provider=provider, allowed=allowed
    )
