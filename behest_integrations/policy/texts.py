"""Where texts are in a request, whatever its wire: every string that is not a word of the protocol.

A request is JSON, and people's words can be anywhere in it: content, its parts, arguments of tools, what they
have answered, descriptions, metadata. So it is not listed where texts are, but where none can be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

# Words of the protocol, ids of a provider's own, and what only a provider can read.
_NO_TEXT = frozenset(
    {
        "model", "role", "type", "id", "call_id", "tool_call_id", "item_id", "status", "object", "detail",
        "finish_reason", "service_tier", "encoding_format", "encrypted_content", "signature",
        "thought_signature", "thoughtSignature", "previous_response_id", "mimeType", "mime_type",
        "reasoning_effort", "effort", "modalities", "format", "voice", "truncation", "$ref", "$schema",
    }
)  # fmt: skip
_IN_CONTENT = ("messages", "input", "inputs", "prompt", "contents", "content", "requests", "texts")
_WORDLESS = ("image", "audio", "file", "video", "document", "media")
_CARRIERS = (
    "image_url",
    "file_data",
    "file_id",
    "file_url",
    "input_audio",
    "inline_data",
    "inlineData",
    "fileData",
)
_ELSEWHERE = ("conversation", "prompt", "cachedContent", "cached_content")
"""Fields that name what is stored at the provider."""
_TRUSTED = ("system", "developer", "assistant", "ai", "model")
_LONGEST_JSON = 1_000_000


class Text(NamedTuple):
    """One text of a request. `trusted`: whoever runs the program has written it, or the model."""

    text: str
    trusted: bool


def texts_of(body: Mapping[str, Any]) -> list[Text]:
    """Every text of a request, each once, in its order."""
    found: dict[Text, None] = {}
    for name, value in body.items():
        if name not in _NO_TEXT:
            trusted = name not in _IN_CONTENT and name not in ("suffix", "query", "text")
            for text in _walk(value, trusted, content=name in _IN_CONTENT):
                found[text] = None
    return list(found)


def _walk(value: Any, trusted: bool, *, content: bool = False) -> Iterator[Text]:
    if isinstance(value, str):
        if value:
            inner = as_json(value)
            for text in (value,) if inner is None else leaves(inner):
                yield Text(text, trusted)
    elif isinstance(value, Mapping):
        if content:
            role = value.get("role")
            trusted = (
                role in _TRUSTED if role is not None else value.get("type") in ("reasoning", "function_call")
            )
            content = False
        for name, inner in value.items():
            if name not in _NO_TEXT:
                yield from _walk(inner, trusted)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _walk(inner, trusted, content=content)


def as_json(text: str) -> Any:
    """The JSON that a text is (the arguments of a tool, what it has answered); None if it is none."""
    if text[:1] not in "{[" or text[-1:] not in "}]" or len(text) > _LONGEST_JSON:
        return None
    try:
        found = from_json(text)
    except ValueError:
        return None
    return found if isinstance(found, (dict, list)) else None


def leaves(value: Any) -> Iterator[str]:
    """The texts of free JSON: strings, names, and numbers that are long enough to be somebody's."""
    if isinstance(value, str):
        if value:
            yield value
    elif isinstance(value, bool):
        return
    elif isinstance(value, int):
        if abs(value) >= 100_000:
            yield str(value)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from leaves(str(name))
            yield from leaves(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from leaves(inner)


def changed(body: Mapping[str, Any], change: Callable[[str], str]) -> Mapping[str, Any]:
    """`body` with its texts changed; the very same object where none is."""
    made = {n: v if n in _NO_TEXT else _changed(v, change) for n, v in body.items()}
    return body if all(made[n] is v for n, v in body.items()) else made


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        if not value:
            return value
        inner = as_json(value)
        if inner is not None:
            made = _changed_leaves(inner, change)
            return value if made is inner else to_json(made).decode()
        text = change(value)
        return value if text == value else text
    if isinstance(value, Mapping):
        return changed(value, change)
    if isinstance(value, (list, tuple)):
        items = [_changed(v, change) for v in value]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else items
    return value


def _changed_leaves(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        text = change(value) if value else value
        return value if text == value else text
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) < 100_000:
            return value
        text = change(str(value))
        return value if text == str(value) else text
    if isinstance(value, Mapping):
        made = {_changed_leaves(n, change): _changed_leaves(v, change) for n, v in value.items()}
        same = all(a is b and made[b] is value[b] for a, b in zip(made, value, strict=True))
        return value if same and len(made) == len(value) else made
    if isinstance(value, list):
        items = [_changed_leaves(v, change) for v in value]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else items
    return value


def unreadable(body: Mapping[str, Any]) -> dict[str, int]:
    """What of a request no scanner of texts can read, by its kind, and how often."""
    found: dict[str, int] = {}
    for name in _IN_CONTENT:
        value = body.get(name)
        if isinstance(value, (list, tuple)):
            for kind in _unreadable(value):
                found[kind] = found.get(kind, 0) + 1
    for name in _ELSEWHERE:
        value = body.get(name)
        if isinstance(value, Mapping) or (name != "prompt" and value):
            found["stored"] = found.get("stored", 0) + 1
    return found


def _is_bytes(media: Any) -> bool:
    """Whether it is one of Bedrock's blocks of bytes, or of what lies in S3; documents may be text."""
    source = media.get("source") if isinstance(media, Mapping) else None
    return isinstance(source, Mapping) and not source.keys() <= {"text", "content"}


def _unreadable(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        kind = str(value.get("type") or "")
        wordless = next((w for w in _WORDLESS if w in kind), None)
        if wordless is None and (carrier := next((c for c in _CARRIERS if value.get(c)), None)):
            wordless = next(w for w in (*_WORDLESS, "data") if w in carrier.lower())
        if wordless is not None:
            yield wordless
        elif kind == "item_reference":
            yield "stored"
        elif isinstance(value.get("audio"), Mapping):
            yield "audio"
        elif (carried := next((w for w in _WORDLESS if _is_bytes(value.get(w))), None)) is not None:
            yield carried
        else:
            for inner in value.values():
                yield from _unreadable(inner)
    elif isinstance(value, (list, tuple)):
        if value and all(isinstance(v, int) for v in value):
            yield "tokens"
            return
        for inner in value:
            yield from _unreadable(inner)
