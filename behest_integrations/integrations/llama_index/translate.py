"""From LlamaIndex's words to the engine's: what is asked, who asks, what came back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse
from llama_index_instrumentation.dispatcher import active_instrument_tags
from pydantic import BaseModel

from ...rules.attribution import NOBODY, Attribution
from ...rules.usage import Usage
from ...wire.usage_shapes import as_mapping, find_usage, read_usage
from ..kit.generation import Heard
from ..kit.settings import fields_asked, model_in, output_limit, provider_of
from ..kit.stand_ins import stands_in

# ── what is asked ──────────────────────────────────────────────────────────────────────


def message_as_wire(message: ChatMessage) -> dict[str, Any]:
    """A message with everything in it that is billed, in the wire's shape."""
    wire: dict[str, Any] = {
        "role": str(getattr(message.role, "value", message.role)),
        "content": [_block(block) for block in message.blocks],
    }
    wire |= {name: as_json(value) for name, value in message.additional_kwargs.items() if value}
    return wire


def as_json(value: Any) -> Any:
    """What a message carries as it is sent: SDKs' own objects (tool calls) as JSON. Bytes stay bytes."""
    if isinstance(value, BaseModel):
        return {name: as_json(inner) for name, inner in fields_of(value).items()}
    if isinstance(value, Mapping):
        return {name: as_json(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(inner) for inner in value]
    return value if value is None or isinstance(value, (str, int, float, bytes)) else str(value)


def fields_of(value: BaseModel) -> dict[str, Any]:
    """What an object carries, those fields included that its class does not know."""
    return {**{name: getattr(value, name) for name in type(value).model_fields}, **(value.model_extra or {})}


def _block(block: Any) -> dict[str, Any]:
    kind = getattr(block, "block_type", "")
    if kind == "text":
        return {"type": "text", "text": block.text}
    if kind == "image":
        return {"type": "image_url", "image_url": {"detail": block.detail}}
    if kind == "audio":
        return {"type": "input_audio"}
    if kind in ("document", "video"):
        return {"type": "file"}
    inner = getattr(block, "content", None) or getattr(block, "cited_content", None)
    inner = inner if isinstance(inner, list) else [inner]
    if any(getattr(b, "block_type", "text") in ("image", "document", "audio", "video") for b in inner):
        return {"type": "file"}
    return {"type": "text", "text": block.model_dump_json()}


def conversation_of(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Who has spoken, and which tools were called: see `wire.tool_calls`."""
    return [
        {
            "role": str(getattr(m.role, "value", m.role)),
            "tool_calls": [as_mapping(call) for call in m.additional_kwargs.get("tool_calls") or ()],
            "content": [
                {
                    "type": "tool_call",
                    "name": getattr(b, "tool_name", ""),
                    "args": getattr(b, "tool_kwargs", {}),
                }
                for b in m.blocks
                if getattr(b, "block_type", "") == "tool_call"
            ],
        }
        for m in messages
    ]


def request_as_wire(
    messages: Sequence[ChatMessage],
    settings: Mapping[str, Any],
    model: str,
    sent: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The request that a model is about to make.

    Args:
        settings: the model's own and the call's, the call's over the model's.
        sent: the call's keywords alone.
    """
    wire = fields_asked(settings, sent)
    wire |= {"model": model, "messages": [message_as_wire(m) for m in messages]}
    if isinstance(wire.get("n"), bool) or not isinstance(wire.get("n", 1), int):
        del wire["n"]
    limit = output_limit(settings)
    if limit is not None:
        wire["max_tokens"] = limit
    return wire


def settings_of(model: Any) -> dict[str, Any]:
    """A model object's settings, those among its free keywords included."""
    own = dict(vars(model))
    for name in ("additional_kwargs", "model_kwargs", "generate_kwargs"):
        extra = own.get(name)
        if isinstance(extra, Mapping):
            own |= extra
    return own


def model_name(model: Any, settings: Mapping[str, Any]) -> str:
    """What a model object calls the model that it asks."""
    try:
        named = model.metadata.model_name
    except Exception:  # classes look the model up in a table, and raise where it is not in it
        named = None
    return str(model_in(settings) or named or model.class_name())


def provider_by(model: Any, settings: Mapping[str, Any]) -> str | None:
    """The provider, by the model's base URL or its class's package (`llama_index.llms.NAME`)."""
    parts = type(model).__module__.split(".")
    maker = parts[2] if parts[0] == "llama_index" and len(parts) > 2 else parts[0]
    return stands_in(type(model)) or provider_of(settings, maker.removesuffix("_like"))


def attribution() -> Attribution:
    """Who is asking, by LlamaIndex's own `instrument_tags`.

    Raises:
        ConfigError: something there cannot be an id.
    """
    tags = active_instrument_tags.get()
    if not tags:
        return NOBODY
    ids = {name: str(value) for name, value in tags.items() if value not in (None, "")}
    return Attribution(
        session_id=ids.get("session_id"),
        user_id=ids.get("user_id"),
        project=ids.get("project"),
        tenant=ids.get("tenant"),
    )


# ── what came back ─────────────────────────────────────────────────────────────────────


def hear(response: Any) -> Heard:
    """What an answer, or the last chunk of a stream, says of its cost."""
    if not isinstance(response, (ChatResponse, CompletionResponse)):
        return Heard()
    raw = as_mapping(response.raw)
    text = _text(response)
    usage = usage_of(raw, response.additional_kwargs)
    return Heard.of(
        usage,
        text,
        model=_str(raw, "model"),
        service_tier=_str(raw, "service_tier"),
        provider_id=_str(raw, "id"),
    )


def usage_of(raw: Mapping[str, Any], extra: Mapping[str, Any]) -> Usage | None:
    """Usage out of a provider's raw answer, or out of what an integration has made of it.

    Args:
        extra: the answer's `additional_kwargs`; integrations differ in whether the counts lie
            there themselves, or as `usage`.
    """
    return read_usage(find_usage(raw)) or read_usage(find_usage(extra)) or read_usage(extra)


def _str(source: Mapping[str, Any], name: str) -> str | None:
    value = source.get(name)
    return value if isinstance(value, str) and value else None


def _text(response: ChatResponse | CompletionResponse) -> str:
    """Everything that a model has written, its tool calls included."""
    if isinstance(response, CompletionResponse):
        return response.text
    message = response.message
    parts = []
    for block in message.blocks:
        text = getattr(block, "text", None)
        parts.append(text if isinstance(text, str) else block.model_dump_json())
    calls = message.additional_kwargs.get("tool_calls")
    if calls and not any(getattr(b, "block_type", "") == "tool_call" for b in message.blocks):
        parts.append(str(calls))
    return "".join(parts)
