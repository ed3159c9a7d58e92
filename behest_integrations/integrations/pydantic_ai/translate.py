"""From Pydantic AI's words to the engine's: what is asked, who asks, what came back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

from pydantic_ai.messages import ModelRequest, ModelResponse
from pydantic_core import to_json

from ...prices import provider_for_url, provider_named
from ...rules.attribution import NOBODY, Attribution
from ...rules.usage import Usage
from ..kit.generation import Heard
from ..kit.naming import id_in, ids_of, said_in
from ..kit.settings import output_limit
from ..kit.stand_ins import stands_in

# ── what is asked ──────────────────────────────────────────────────────────────────────

_MEDIA = {
    "image-url": "image_url",
    "audio-url": "input_audio",
    "video-url": "file",
    "document-url": "file",
    "uploaded-file": "file",
}
_HARMLESS = frozenset(
    {
        "max_tokens", "temperature", "top_p", "top_k", "timeout", "request_timeout", "first_event_timeout",
        "framing_announcement", "max_retries", "parallel_tool_calls", "tool_choice", "seed",
        "presence_penalty", "frequency_penalty", "logit_bias", "stop_sequences", "extra_headers",
        "extra_body", "citations", "cache", "google_safety_settings", "google_labels",
        "google_thinking_config", "google_logprobs", "google_top_logprobs", "groq_reasoning_format",
        "groq_reasoning_effort", "mistral_prompt_cache_key", "xai_logprobs", "xai_top_logprobs", "xai_user",
        "xai_store_messages", "xai_include_encrypted_content", "xai_include_code_execution_output",
        "xai_include_web_search_output", "xai_include_inline_citations", "xai_include_mcp_output",
        "xai_include_x_search_output", "xai_include_collections_search_output",
        "xai_include_attachment_search_output", "xai_reasoning_effort", "xai_max_turns",
        "bedrock_cache_instructions", "bedrock_cache_messages", "bedrock_cache_tool_definitions",
        "bedrock_request_metadata", "bedrock_prompt_variables",
        "bedrock_additional_model_response_fields_paths",
    }
)  # fmt: skip
"""Settings that do nothing to the bill, beyond what is read of them here. Others are fields by their name,
and what is not known is refused. https://pydantic.dev/docs/ai/api/settings/"""
_THINKS = frozenset(
    {"thinking", "google_thinking_config", "groq_reasoning_format", "groq_reasoning_effort",
     "xai_reasoning_effort"}
)  # fmt: skip


def request_as_wire(
    model: str, messages: Sequence[Any], settings: Mapping[str, Any], params: Any
) -> dict[str, Any]:
    """The request that a model is about to make.

    Args:
        settings: the model's own and the call's, merged.
        params: Pydantic AI's `ModelRequestParameters`.
    """
    wire: dict[str, Any] = {n: v for n, v in settings.items() if n not in _HARMLESS and v is not None}
    if any(settings.get(name) for name in _THINKS):
        wire["thinking"] = True
    wire |= {"model": model, "messages": list(_messages(messages, params))}
    tools: list[Any] = [
        {"type": "function", "function": _plain(t)} for t in (*params.function_tools, *params.output_tools)
    ]
    tools += [{"type": tool.kind, **_plain(tool)} for tool in params.native_tools]
    if tools:
        wire["tools"] = tools
    if params.output_object is not None:
        wire["response_format"] = _plain(params.output_object)
    extra = settings.get("extra_body")
    if isinstance(extra, Mapping):
        wire |= extra  # it is put over the request, the model too
    limit = output_limit(settings)
    if limit is not None:
        wire["max_tokens"] = limit
    return wire


def conversation_of(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Who has spoken, and which tools were called: see `wire.tool_calls`."""
    said = []
    for message in messages:
        kinds = [getattr(part, "part_kind", "") for part in message.parts]
        role = "assistant" if message.kind == "response" else "user" if "user-prompt" in kinds else "tool"
        calls = [p for p, kind in zip(message.parts, kinds, strict=True) if kind == "tool-call"]
        said.append({"role": role, "tool_calls": [{"name": c.tool_name, "args": c.args} for c in calls]})
    return said


def _messages(messages: Sequence[Any], params: Any) -> Iterator[dict[str, Any]]:
    for part in getattr(params, "instruction_parts", None) or ():
        yield {"role": "system", "content": part.content}
    prompted = getattr(params, "prompted_output_instructions", None)
    if prompted:
        yield {"role": "system", "content": prompted}
    for message in messages:
        if isinstance(message, ModelRequest) and message.instructions:
            yield {"role": "system", "content": message.instructions}
        for part in message.parts:
            yield {"role": part.part_kind, "content": list(_blocks(part))}


def _blocks(part: Any) -> Iterator[dict[str, Any]]:
    """A part of a message with everything in it that may be billed."""
    content = getattr(part, "content", None)
    if isinstance(content, str):
        yield {"type": "text", "text": content}
        yield {"type": "text", "text": str(getattr(part, "tool_name", None) or "")}
        return
    yield {"type": "text", "text": _text(part)}
    for item in _media(content):
        kind = getattr(item, "kind", "")
        if kind == "binary":
            media = str(item.media_type)
            found = "image_url" if item.is_image else "input_audio" if media.startswith("audio/") else "file"
        else:
            found = _MEDIA[kind]
        yield {"type": found, found: {}} if found == "image_url" else {"type": found}


def _media(content: Any) -> Iterator[Any]:
    """Pictures, sounds and files in a content, however deep."""
    if getattr(content, "kind", None) in (*_MEDIA, "binary"):
        yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from _media(value)
    elif isinstance(content, Iterable) and not isinstance(content, (str, bytes)):
        for value in content:
            yield from _media(value)


def _text(part: Any) -> str:
    """All of a part as text, but for the bytes of what is no text."""
    return to_json(_shown(part), fallback=str).decode()


def _shown(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _shown(held) for name, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shown(held) for held in value]
    if isinstance(value, bytes):
        return ""
    if getattr(value, "kind", None) in (*_MEDIA, "binary"):
        return ""
    if hasattr(value, "part_kind"):
        return {
            n: _shown(v) for n, v in vars(value).items() if n not in ("timestamp", "part_kind", "metadata")
        }
    return value


def _plain(value: Any) -> dict[str, Any]:
    """An object of Pydantic AI's as what of it is set."""
    return {
        n: v for n, v in vars(value).items() if v is not None and not n.startswith("_") and not callable(v)
    }


def provider_of_model(model: Any) -> str | None:
    """Whose prices apply to a model, by its address, or by what it says of its provider."""
    if (nobody := stands_in(type(model))) is not None:
        return nobody
    try:
        url = model.base_url
    except Exception:  # SDKs make it when it is asked for
        url = None
    system = str(getattr(model, "system", "") or "")
    by_url = provider_for_url(str(url)) if url else None
    if by_url is not None or (url and system == "openai"):
        return by_url  # OpenAI's classes serve any compatible server
    return provider_named(system) or provider_named(system.partition("-")[0])


# ── who ────────────────────────────────────────────────────────────────────────────────


def attribution_of(context: Any) -> tuple[Attribution, Attribution]:
    """(said on the run itself, the framework's own ids) of an agent's run.

    A conversation's id that Pydantic AI has made itself is nobody's choice: each run without one would have
    a session of its own, and with it a budget.

    Raises:
        ConfigError: something in the run's metadata cannot be an id.
    """
    if context is None:
        return NOBODY, NOBODY
    metadata = getattr(context, "metadata", None)
    name = getattr(getattr(context, "agent", None), "name", None)
    said = said_in(metadata) if isinstance(metadata, Mapping) else NOBODY
    own = ids_of(getattr(context, "deps", None))
    session = id_in({"session": getattr(context, "conversation_id", None)}, "session")
    if session is not None and session != getattr(context, "run_id", None) and not _is_made_up(session):
        own = Attribution(session_id=session).over(own)
    if isinstance(name, str) and name:
        own = Attribution(tags={"agent": name}).over(own)
    return said, own


def _is_made_up(session: str) -> bool:
    """Whether an id is of the kind that Pydantic AI makes: a UUID of version 7."""
    try:
        return UUID(session).version == 7
    except ValueError:
        return False


# ── what came back ─────────────────────────────────────────────────────────────────────


def hear(response: Any) -> Heard:
    """What an answer says of its cost."""
    if not isinstance(response, ModelResponse):
        return Heard()
    text = "".join(_written(part) for part in response.parts)
    usage = usage_of(response.usage)
    details = response.provider_details or {}
    tier = details.get("service_tier")
    return Heard.of(
        usage,
        text,
        model=response.model_name or None,
        service_tier=tier if isinstance(tier, str) else None,
        provider_id=response.provider_response_id or None,
    )


def usage_of(said: Any) -> Usage | None:
    """Pydantic AI's usage of one request; None if the provider told none.

    Its input has the cached and written tokens in it, its output those of reasoning.
    """
    if getattr(said, "unmeasured_requests", 0) or not said.input_tokens:
        return None
    details = said.details or {}
    thought = getattr(said, "output_reasoning_tokens", 0) or details.get("reasoning_tokens", 0)
    try:
        return Usage(
            said.input_tokens,
            said.output_tokens,
            cached_input_tokens=said.cache_read_tokens,
            cache_write_tokens=said.cache_write_tokens,
            reasoning_tokens=min(thought, said.output_tokens),
            input_audio_tokens=said.input_audio_tokens,
            output_audio_tokens=said.output_audio_tokens,
        )
    except (TypeError, ValueError):
        return None


def _written(part: Any) -> str:
    content = getattr(part, "content", None)
    if isinstance(content, str):
        return content
    return _text(part)
