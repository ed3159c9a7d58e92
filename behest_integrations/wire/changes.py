"""What is changed in a request before it is sent: its output limit, and whether its stream tells usage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .bounds import RequestBound

TELL_UNASKED = frozenset({"mistral", "mistralai"})
"""Providers whose streams tell their usage by themselves, and who refuse to be asked for it:
https://github.com/mistralai/client-python (no `stream_options`; `usage` is in the last chunk)."""


def with_output_limit(body: Mapping[str, Any], bound: RequestBound, limit: int) -> dict[str, Any]:
    """`body` with an output limit of at most `limit` tokens, in every field that carries one.

    A field that says less keeps what it says.
    """
    changed = {name: value for name, value in body.items() if name not in bound.replaced}
    for path in bound.limit_fields:
        _lower(changed, path.split("."), limit)
    for path in bound.below_limit:
        _lower(changed, path.split("."), max(1, limit - 1))
    return changed


def _lower(values: dict[str, Any], path: list[str], most: int) -> None:
    name, *rest = path
    own = values.get(name)
    if rest:
        values[name] = inner = dict(own) if isinstance(own, Mapping) else {}
        _lower(inner, rest, most)
    elif not isinstance(own, int) or isinstance(own, bool) or own < 1 or own > most:
        values[name] = most


def asks_stream_usage(body: Mapping[str, Any]) -> bool:
    """Whether the caller asked for the usage chunk of a chat or completions stream."""
    options = body.get("stream_options")
    return isinstance(options, Mapping) and bool(options.get("include_usage"))


def with_stream_usage(body: Mapping[str, Any]) -> dict[str, Any]:
    """`body` with the usage chunk asked for."""
    options = body.get("stream_options")
    return {**body, "stream_options": {**(options or {}), "include_usage": True}}


def without_stream_usage(body: Mapping[str, Any]) -> dict[str, Any]:
    """`body` as it was before `with_stream_usage`."""
    rest = {n: v for n, v in (body.get("stream_options") or {}).items() if n != "include_usage"}
    less = {n: v for n, v in body.items() if n != "stream_options"}
    return {**less, "stream_options": rest} if rest else less
