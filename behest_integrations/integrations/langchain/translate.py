"""From LangChain's words to the engine's: what is asked, who asks, what came back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, LLMResult
from pydantic import TypeAdapter

from ...rules.attribution import NOBODY, Attribution
from ...rules.usage import RunningUsage, Usage, believable
from ...wire.usage_shapes import find_usage, read_usage
from ..kit.generation import Heard
from ..kit.naming import ID_NAMES, id_in, said_in
from ..kit.settings import fields_asked, model_in, output_limit, provider_of
from ..kit.stand_ins import named

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


def conversation_of(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Who has spoken, and which tools were called: see `wire.tool_calls`."""
    return [{"role": m.type, "tool_calls": getattr(m, "tool_calls", None)} for m in messages]


def request_as_wire(
    messages: Sequence[BaseMessage],
    params: Mapping[str, Any],
    model: str,
    sent: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The request that a chat model is about to make.

    Args:
        params: LangChain's invocation parameters: the model's settings and the call's keywords.
        sent: the call's keywords alone, where they are known.
    """
    limit = output_limit(params)
    wire = fields_asked(params, sent)
    wire |= {"model": model, "messages": [message_as_wire(m) for m in messages]}
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


def name_model(
    params: Mapping[str, Any], metadata: Mapping[str, Any], settings: Mapping[str, Any], cls: str
) -> Named:
    """The model that is about to be asked.

    Args:
        cls: the full name of the model object's class.
        params: LangChain's invocation parameters.
        metadata: the run's, with `ls_provider` and `ls_model_name`.
        settings: the model object's own (its serialized keywords, or its attributes).
    """
    model = model_in(params)
    if model is None:
        said = metadata.get("ls_model_name")
        model = said if isinstance(said, str) and said else model_in(settings)
    maker = str(metadata.get("ls_provider") or "")
    return Named(str(model or params.get("_type") or maker), named(cls) or provider_of(settings, maker))


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
    if not tags and not metadata_tags and _ID_NAMES.isdisjoint(metadata):
        return NOBODY, NOBODY
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
    return said_in(metadata, booked), Attribution(session_id=id_in(metadata, "thread_id"))


_ID_NAMES = ID_NAMES | {"thread_id"}


# ── what came back ─────────────────────────────────────────────────────────────────────


def cached(result: LLMResult) -> bool:
    """Whether the answer came out of LangChain's cache: it marks those with a cost of 0."""
    generations = [g for row in result.generations for g in row]
    return bool(generations) and all(
        (getattr(getattr(g, "message", None), "usage_metadata", None) or {}).get("total_cost") == 0
        for g in generations
    )


class Chunks:
    """What the chunks of one stream say of its cost, each for itself.

    LangChain adds chunks up: running totals become their sum, and the names that each repeats
    become one long name. So they are taken in one by one, as they pass.
    """

    def __init__(self) -> None:
        self._usage = RunningUsage()
        self._said: dict[str, str] = {}

    def add(self, chunk: object) -> None:
        """Take in a chunk: a message's, or a generation's around it."""
        message = getattr(chunk, "message", chunk)
        told = getattr(message, "usage_metadata", None)
        if told:
            self._usage.add(read_usage(told))
        said: Mapping[str, Any] | None = getattr(message, "response_metadata", None)
        info: Mapping[str, Any] | None = getattr(chunk, "generation_info", None)
        for source in (said, info):
            if isinstance(source, Mapping) and source:
                if not told and (found := find_usage(source)) is not None:
                    self._usage.add(read_usage(found))
                for name in _SAID:
                    if isinstance(value := source.get(name), str) and value:
                        self._said[name] = value

    def correct(self, heard: Heard) -> Heard:
        """What LangChain has made of all of them, with what each has said in its place."""
        usage = self._usage.usage
        if usage is not None and not believable(usage, text=len(heard.text)):
            usage = None
        return replace(
            heard,
            usage=usage or (None if self._usage.told else heard.usage),
            model=_str(self._said, *_MODEL) or heard.model,
            service_tier=_str(self._said, "service_tier") or heard.service_tier,
            provider_id=_str(self._said, "id") or heard.provider_id,
        )


_MODEL = ("model_name", "model")
_SAID = (*_MODEL, "service_tier", "id")


def hear(result: LLMResult | None, chunks: Chunks | None = None) -> Heard:
    """What a result says of its cost.

    Args:
        chunks: what its chunks have said, if it was streamed.
    """
    if result is None:
        return Heard()
    generations = [g for row in result.generations for g in row]
    messages = [m for g in generations if isinstance(m := getattr(g, "message", None), BaseMessage)]
    output: Mapping[str, Any] = result.llm_output or {}
    said: Mapping[str, Any] = messages[0].response_metadata if messages else {}
    text = "".join(_text(m) for m in messages) if messages else "".join(g.text for g in generations)
    raw = read_usage(find_usage(output)) if output else None
    usage = raw if len(messages) != 1 else None
    if usage is None:
        usage = _usage_of_messages(messages) or raw
    if usage is None and len(messages) == 1:
        # Community models leave the provider's own words there.
        usage = read_usage(find_usage(said) or (generations[0].generation_info or {}).get("token_usage"))
    if usage is not None and not believable(usage, text=len(text)):
        usage = None
    heard = Heard(
        usage,
        text if usage is None or chunks is not None else "",
        model=_unrepeated(_str(said, *_MODEL)) or _str(output, *_MODEL),
        service_tier=_unrepeated(_str(said, "service_tier")),
        provider_id=_str(said, "id") or _str(output, "id"),
    )
    if chunks is None:
        return heard
    heard = chunks.correct(heard)
    return heard if heard.usage is None else replace(heard, text="")


def hear_chunks(chunks: Sequence[Any]) -> Heard:
    """What the chunks of a stream say, that has been read so far."""
    if not chunks:
        return Heard()
    said = Chunks()
    whole: Any = None
    for chunk in chunks:
        said.add(chunk)
        whole = chunk if whole is None else whole + chunk
    if isinstance(whole, ChatGenerationChunk):
        whole = ChatGeneration(message=whole.message)
    return hear(LLMResult(generations=[[whole]]), said)


def _unrepeated(name: str | None) -> str | None:
    """`gpt-5` of `gpt-5gpt-5`: what LangChain makes of a name that each chunk has told."""
    if not name:
        return None
    period = (name + name).find(name, 1)
    return name[:period] if 3 <= period < len(name) else name


def _usage_of_messages(messages: Sequence[BaseMessage]) -> Usage | None:
    """The usage of all choices of one answer.

    Providers that report it once have it repeated on each choice; where it differs, each
    choice has its own, and the prompt is the same.
    """
    found = [u for m in messages if (u := read_usage(getattr(m, "usage_metadata", None))) is not None]
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
