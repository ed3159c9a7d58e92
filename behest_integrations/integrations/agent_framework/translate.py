"""From Microsoft Agent Framework's words to the engine's: what is asked, and what came back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic_core import to_json

from ...rules.usage import Usage
from ..kit.call import folding
from ..kit.generation import Heard, texts_in
from ..kit.settings import LIMIT_NAMES, lowered, output_limit, schema_sent

_HARMLESS = frozenset(
    {
        "model", "model_id", "temperature", "top_p", "stop", "seed", "logit_bias", "frequency_penalty",
        "presence_penalty", "tool_choice", "allow_multiple_tool_calls", "store", "metadata", "instructions",
        "conversation_id", "tools", "response_format", "extra_body", *LIMIT_NAMES,
    }
)  # fmt: skip
"""Options that do nothing to the bill, beyond what is read of them here. Others are fields by their name, and
what is not known is refused. https://learn.microsoft.com/en-us/agent-framework/"""


def request_as_wire(model: str, messages: Sequence[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The request that a client is about to make."""
    asked = {n: v for n, v in options.items() if v is not None}
    wire: dict[str, Any] = {n: v for n, v in asked.items() if n not in _HARMLESS}
    wire |= {"model": model, "messages": list(_messages(messages, asked))}
    tools = asked.get("tools") or ()
    if tools:
        single = not isinstance(tools, Sequence)
        wire["tools"] = [_tool(tool) for tool in ([tools] if single else tools)]
    if "response_format" in asked:
        shape = schema_sent(asked["response_format"])
        wire["response_format"] = shape if isinstance(shape, Mapping) else {"type": _json(shape)}
    if isinstance(asked.get("extra_body"), Mapping):
        wire |= dict(asked["extra_body"])  # it is put over the request, the model too
    limit = output_limit(asked)
    if limit is not None:
        wire["max_tokens"] = limit
    stored = asked.get("conversation_id")
    if stored:  # it is billed, and is not here
        wire["previous_response_id" if str(stored).startswith("resp_") else "conversation"] = str(stored)
    return wire


def limited(options: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """Options with this output limit, and no other above it."""
    return {**lowered(options, limit), "max_tokens": limit}


def _messages(messages: Sequence[Any], asked: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if asked.get("instructions"):
        yield {"role": "system", "content": str(asked["instructions"])}
    for message in messages:
        yield {
            "role": str(message.role), "content": [b for c in message.contents or () for b in _blocks(c)],
        }  # fmt: skip


def _blocks(content: Any) -> Iterator[dict[str, Any]]:
    """A content with everything in it that may be billed."""
    held = content.to_dict()
    plain = held.get("text") if held.get("type") == "text" else None
    yield {"type": "text", "text": plain if isinstance(plain, str) else _json(_shown(held))}
    for media in _media(held):
        kind = str(media.get("media_type") or "").partition("/")[0]
        if kind == "image":
            yield {"type": "image_url", "image_url": {}}
        else:
            yield {"type": "input_audio" if kind == "audio" else "file"}


def _is_media(value: Mapping[str, Any]) -> bool:
    return value.get("type") in ("data", "uri", "hosted_file", "hosted_vector_store")


def _media(value: Any) -> Iterator[Mapping[str, Any]]:
    """Pictures, sounds and files, however deep."""
    if isinstance(value, Mapping):
        if _is_media(value):
            yield value
        for inner in value.values():
            yield from _media(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _media(inner)


def _shown(value: Any) -> Any:
    """All of a content, but for the bytes of what is no text."""
    if isinstance(value, Mapping):
        hidden = ("uri", "data") if value.get("type") == "data" else ()
        return {str(n): "" if n in hidden else _shown(v) for n, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shown(inner) for inner in value]
    return "" if isinstance(value, bytes) else value


def _tool(tool: Any) -> Mapping[str, Any]:
    if isinstance(tool, Mapping):
        return tool
    spec = getattr(tool, "to_json_schema_spec", None)
    if callable(spec):
        made: Mapping[str, Any] = spec()
        return made
    return {"type": str(getattr(tool, "name", None) or type(tool).__name__)}


def _json(value: Any) -> str:
    return value if isinstance(value, str) else to_json(value, fallback=str).decode()


def conversation_of(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Who has spoken, and which tools were called: see `wire.tool_calls`."""
    said = []
    for message in messages:
        calls = [c for c in message.contents or () if c.type == "function_call"]
        called = [{"name": call.name, "args": call.arguments} for call in calls]
        said.append({"role": str(message.role), "tool_calls": called})
    return said


# ── what came back ─────────────────────────────────────────────────────────────────────


def hear(response: Any, *, cache_within: bool) -> Heard:
    """What a whole answer says of its cost."""
    text = texts_in([message.to_dict() for message in response.messages], _NO_TEXT)
    return _heard(usage_of(response.usage_details, cache_within=cache_within), text, response)


class Updates:
    """What the updates of a stream have said so far."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.usage: Mapping[str, Any] | None = None
        self.model: Any = None
        self.response_id: Any = None

    def add(self, update: Any) -> None:
        """Take in an update."""
        for content in update.contents or ():
            if content.type == "usage":
                self.usage = content.usage_details or self.usage
            else:
                self.text.append(texts_in(content.to_dict(), _NO_TEXT))
        self.model = update.model or self.model
        self.response_id = update.response_id or self.response_id


fold = folding(Updates)


def hear_updates(updates: Updates | None, *, cache_within: bool) -> Heard:
    """What the updates of a stream say of its cost."""
    if updates is None:
        return Heard()
    return _heard(usage_of(updates.usage, cache_within=cache_within), "".join(updates.text), updates)


def _heard(usage: Usage | None, text: str, said: Any) -> Heard:
    model, own = getattr(said, "model", None), said.response_id
    return Heard.of(
        usage,
        text,
        model=model if isinstance(model, str) and model else None,
        provider_id=own if isinstance(own, str) and own else None,
    )


def usage_of(said: Mapping[str, Any] | None, *, cache_within: bool) -> Usage | None:
    """The framework's usage of one request; None if the provider told none.

    Args:
        cache_within: whether its input has the tokens of a cache in it; if not, or if that is not known, they
            are added, at the full price.
    """
    if not said or not said.get("input_token_count"):
        return None
    read = said.get("cache_read_input_token_count") or 0
    written = said.get("cache_creation_input_token_count") or 0
    inputs, outputs = said["input_token_count"], said.get("output_token_count") or 0
    if written:
        return None  # that has a price of its own
    try:
        if not cache_within:
            return Usage(inputs + read, outputs)
        thought = min(said.get("reasoning_output_token_count") or 0, outputs)
        return Usage(inputs, outputs, cached_input_tokens=read, reasoning_tokens=thought)
    except (TypeError, ValueError):
        return None


_NO_TEXT = (
    "type", "role", "id", "call_id", "response_id", "message_id", "media_type", "additional_properties",
)  # fmt: skip
