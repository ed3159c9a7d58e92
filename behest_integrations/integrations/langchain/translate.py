"""From LangChain's words to the engine's: what is asked, who asks, what came back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import LLMResult
from pydantic import TypeAdapter

from ...rules.attribution import Attribution
from ...rules.usage import Usage, from_openai
from ..kit.generation import Heard
from ..kit.settings import ASKED, model_in, output_limit, provider_of

# Blocks whose JSON is all that there is to bill.
_PLAIN_BLOCKS = frozenset(
    {
        "tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "function_call", "tool_result",
        "server_tool_call", "server_tool_result", "server_tool_use", "reasoning", "thinking",
        "redacted_thinking", "non_standard", "refusal", "text-plain", "search_result",
    }
)  # fmt: skip
_CALL_BLOCKS = frozenset({"tool_use", "tool_call", "function_call"})


def message_as_wire(message: BaseMessage) -> dict[str, Any]:
    """A message with everything in it that is billed, in the wire's shape."""
    content = message.content
    wire: dict[str, Any] = {"role": message.type}
    spoken: set[str] = set()
    if isinstance(content, str):
        wire["content"] = content
    else:
        wire["content"] = [_block(b, spoken) for b in content]
    if isinstance(message, AIMessage):
        calls = [*message.tool_calls, *message.invalid_tool_calls]
        if calls and not spoken & _CALL_BLOCKS:
            wire["tool_calls"] = calls
        for name in ("function_call", "audio"):
            if message.additional_kwargs.get(name):
                wire[name] = message.additional_kwargs[name]
    if message.name:
        wire["name"] = message.name
    return wire


def _block(block: Any, seen: set[str]) -> Any:
    if not isinstance(block, Mapping):
        return block
    kind = str(block.get("type") or "")
    seen.add(kind)
    if kind == "image":
        return {"type": "image_url", "image_url": {}}
    if kind == "audio":
        return {"type": "input_audio"}
    if kind in ("document", "video", "media"):
        return {"type": "file"}
    if kind in _PLAIN_BLOCKS:
        inner = block.get("content")
        if isinstance(inner, list) and any(
            isinstance(b, Mapping) and b.get("type") in ("image", "document") for b in inner
        ):
            return {"type": "file"}
        return {"type": "text", "text": str(dict(block))}
    return block


def request_as_wire(messages: Sequence[BaseMessage], params: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The request that a chat model is about to make."""
    limit = output_limit(params)
    wire: dict[str, Any] = {"model": model, "messages": [message_as_wire(m) for m in messages]}
    wire |= {name: params[name] for name in ASKED if params.get(name) is not None}
    if isinstance(wire.get("tools"), Mapping):
        wire["tools"] = [wire["tools"]]
    if isinstance(wire.get("response_format"), type):
        wire["response_format"] = _schema(wire["response_format"])
    if limit is not None:
        wire["max_tokens"] = limit
    return wire


def _schema(shape: type) -> dict[str, Any]:
    """What a class given as the format of the answer becomes in the request."""
    schema = TypeAdapter(shape).json_schema()
    return {"type": "json_schema", "json_schema": {"name": shape.__name__, "schema": schema, "strict": True}}


@dataclass(frozen=True)
class Named:
    """Which model of which provider; `provider` is the price list's id."""

    model: str
    provider: str | None


def name_model(params: Mapping[str, Any], metadata: Mapping[str, Any], settings: Mapping[str, Any]) -> Named:
    """The model that is about to be asked.

    Args:
        params: LangChain's invocation parameters.
        metadata: the run's, with `ls_provider` and `ls_model_name`.
        settings: the model object's own (its serialized keywords, or its attributes).
    """
    model = model_in(params)
    if model is None:
        said = metadata.get("ls_model_name")
        model = said if isinstance(said, str) and said else model_in(settings)
    maker = str(metadata.get("ls_provider") or "")
    return Named(str(model or params.get("_type") or maker), provider_of(settings, maker))


# ── who ────────────────────────────────────────────────────────────────────────────────


def attribution_of(
    metadata: Mapping[str, Any], tags: Iterable[str] = (), metadata_tags: Iterable[str] = ()
) -> tuple[Attribution, Attribution]:
    """(said on the run itself, the framework's own ids) from a run's metadata.

    Args:
        tags: run tags to book; `key:value` becomes that tag, anything else `name: true`.
        metadata_tags: names in the metadata to book as tags.

    Raises:
        ConfigError: something there cannot be an id.
    """
    booked: dict[str, str] = {}
    for tag in tags:
        # LangChain's own bookkeeping: seq:step:1, map:key:a, langsmith:hidden, graph:step:2.
        if tag.startswith(("seq:", "map:", "graph:", "langsmith:", "langgraph:", "branch:", "condition:")):
            continue
        key, colon, value = tag.partition(":")
        booked[key if colon and value else tag] = value if colon and value else "true"
    for name in metadata_tags:
        if metadata.get(name) is not None:
            booked[name] = str(metadata[name])
    explicit = Attribution(
        session_id=_id(metadata, "session_id", "conversation_id"),
        user_id=_id(metadata, "user_id", "end_user_id"),
        project=_id(metadata, "project"),
        tenant=_id(metadata, "tenant"),
        tags=booked,
    )
    return explicit, Attribution(session_id=_id(metadata, "thread_id"))


def _id(metadata: Mapping[str, Any], *names: str) -> str | None:
    for name in names:
        value = metadata.get(name)
        if isinstance(value, (int, UUID)) and not isinstance(value, bool):
            return str(value)
        if value is not None and value != "":
            return cast(str, value)  # Attribution checks it
    return None


# ── what came back ─────────────────────────────────────────────────────────────────────


def usage_of(metadata: Mapping[str, Any]) -> Usage | None:
    """Usage from a message's `usage_metadata`; None if it says nothing.

    Details may carry a service tier's prefix (`flex_cache_read`), and cache writes may be split
    by lifetime (`ephemeral_5m_input_tokens`).
    """
    input_tokens, output = _count(metadata, "input_tokens"), _count(metadata, "output_tokens")
    if not input_tokens and not output:
        return None
    output = max(output, _count(metadata, "total_tokens") - input_tokens)
    inputs = metadata.get("input_token_details") or {}
    outputs = metadata.get("output_token_details") or {}
    cached = min(_sum(inputs, "cache_read"), input_tokens)
    written = _sum(inputs, "cache_creation", "ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output,
        cached_input_tokens=cached,
        cache_write_tokens=min(written, input_tokens - cached),
        reasoning_tokens=min(_sum(outputs, "reasoning"), output),
        input_audio_tokens=min(_sum(inputs, "audio"), input_tokens),
        output_audio_tokens=min(_sum(outputs, "audio"), output),
    )


def _count(source: Mapping[str, Any], name: str) -> int:
    value = source.get(name)
    return value if isinstance(value, int) and value > 0 else 0


def _sum(details: Mapping[str, Any], *names: str) -> int:
    return sum(
        value
        for key, value in details.items()
        if isinstance(value, int) and value > 0 and any(key == n or key.endswith(f"_{n}") for n in names)
    )


def cached(result: LLMResult) -> bool:
    """Whether the answer came out of LangChain's cache: it marks those with a cost of 0."""
    generations = [g for row in result.generations for g in row]
    return bool(generations) and all(
        (getattr(getattr(g, "message", None), "usage_metadata", None) or {}).get("total_cost") == 0
        for g in generations
    )


def hear(result: LLMResult | None) -> Heard:
    """What a result says of its cost."""
    if result is None:
        return Heard()
    generations = [g for row in result.generations for g in row]
    messages = [m for g in generations if isinstance(m := getattr(g, "message", None), BaseMessage)]
    output: Mapping[str, Any] = result.llm_output or {}
    raw = output.get("token_usage") or output.get("usage")
    usage = from_openai(raw) if isinstance(raw, Mapping) and len(messages) != 1 else None
    if usage is None:
        usage = _usage_of_messages(messages)
    if usage is None:
        usage = from_openai(raw) if isinstance(raw, Mapping) else None
    if usage is not None and not usage.total_tokens:
        usage = None
    said: Mapping[str, Any] = messages[0].response_metadata if messages else {}
    text = "".join(_text(m) for m in messages) if messages else "".join(g.text for g in generations)
    return Heard(
        usage,
        text if usage is None else "",
        model=_str(said, "model_name", "model") or _str(output, "model_name", "model"),
        service_tier=_str(said, "service_tier"),
        provider_id=_str(said, "id") or _str(output, "id"),
    )


def _usage_of_messages(messages: Sequence[BaseMessage]) -> Usage | None:
    """The usage of all choices of one answer.

    Providers that report it once have it repeated on each choice; where it differs, each
    choice has its own, and the prompt is the same.
    """
    found = [u for m in messages if (u := usage_of(getattr(m, "usage_metadata", None) or {})) is not None]
    if len(found) < len(messages) or not found:
        return None
    if all(u == found[0] for u in found):
        return found[0]
    total = found[0]
    for usage in found[1:]:
        total = total + Usage(
            output_tokens=usage.output_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            output_audio_tokens=usage.output_audio_tokens,
            input_tokens=max(0, usage.input_tokens - total.input_tokens),
        )
    return total


def _text(message: BaseMessage) -> str:
    """Everything that a model has written into a message, its tool calls included."""
    content = message.content
    parts = [content if isinstance(content, str) else "".join(_written(b) for b in content)]
    if isinstance(message, AIMessage):
        for call in [*message.tool_calls, *message.invalid_tool_calls]:
            parts.append(f"{call.get('name') or ''}{call.get('args') or ''}")
        parts.append(str(message.additional_kwargs.get("reasoning_content") or ""))
    return "".join(parts)


def _written(block: Any) -> str:
    if not isinstance(block, Mapping):
        return str(block)
    if block.get("type") in _CALL_BLOCKS:
        return ""  # counted as a tool call
    for name in ("text", "thinking", "reasoning", "refusal"):
        if isinstance(block.get(name), str):
            return str(block[name])
    return ""


def _str(source: Mapping[str, Any], *names: str) -> str | None:
    return next((v for n in names if isinstance(v := source.get(n), str) and v), None)
