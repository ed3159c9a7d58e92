"""From the ADK's words to the engine's: what is asked, and what came back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import to_json

from ...prices import provider_named
from ...wire.usage_shapes import read_usage
from ..kit.call import folding
from ..kit.generation import Heard, texts_in
from .internals import maker_of

_HARMLESS = frozenset(
    {
        "http_options", "should_return_http_response", "temperature", "top_p", "top_k", "stop_sequences",
        "response_logprobs", "logprobs", "presence_penalty", "frequency_penalty", "seed", "safety_settings",
        "labels", "automatic_function_calling", "tool_config", "response_mime_type", "store",
        "system_instruction", "tools", "candidate_count", "max_output_tokens", "response_schema",
        "response_json_schema", "thinking_config", "cached_content", "response_modalities", "service_tier",
    }
)  # fmt: skip
"""Settings that do nothing to the bill, beyond what is read of them here. Others are fields by their name,
and what is not known is refused.
https://googleapis.github.io/python-genai/genai.html#genai.types.GenerateContentConfig"""
_SEARCHES = frozenset(
    {
        "google_search",
        "google_search_retrieval",
        "enterprise_web_search",
        "parallel_ai_search",
        "exa_ai_search",
    }
)


def name_of(model: Any, request: Any) -> tuple[str, str | None]:
    """What the model that is asked is called, and whose prices apply, if known."""
    name = str(request.model or model.model)
    maker = maker_of(model)
    prefix, _, rest = name.partition("/")
    if maker is None and rest and (found := provider_named(prefix)) is not None:
        return rest, found
    return (name.rpartition("/")[2] if maker is not None else name), maker


def request_as_wire(name: str, request: Any) -> dict[str, Any]:
    """The request that a model is about to make, in the shape of a chat completion's.

    Args:
        request: the ADK's `LlmRequest`.
    """
    config = request.config
    asked = {} if config is None else {n: v for n in type(config).model_fields if (v := getattr(config, n))}
    wire: dict[str, Any] = {n: v for n, v in asked.items() if n not in _HARMLESS}
    wire |= {"model": name, "messages": list(_messages(request, asked.get("system_instruction")))}
    tools = [tool for given in asked.get("tools", ()) for tool in _tools(given)]
    if tools:
        wire["tools"] = tools
    shape = asked.get("response_schema") or asked.get("response_json_schema")
    if shape is not None:
        wire["response_format"] = {"type": "json_schema", "json_schema": {"schema": _json(shape)}}
    if "thinking_config" in asked:
        wire["thinking"] = True
    if any(str(getattr(m, "value", m)).upper() != "TEXT" for m in asked.get("response_modalities", ())):
        wire["modalities"] = asked["response_modalities"]
    if "cached_content" in asked or request.previous_interaction_id:
        wire["conversation"] = "stored"  # it is billed, and is not here
    for sender, field in (("candidate_count", "n"), ("max_output_tokens", "max_tokens")):
        if sender in asked:
            wire[field] = asked[sender]
    tier = asked.get("service_tier") or request.service_tier
    if tier is not None:
        wire["service_tier"] = str(getattr(tier, "value", tier)).lower()
    extra = getattr(asked.get("http_options"), "extra_body", None)
    if isinstance(extra, Mapping):
        wire.update(extra)  # it is put over the request
    return wire


def limited(request: Any, limit: int) -> Any:
    """A request like `request` with this output limit."""
    return request.model_copy(
        update={"config": request.config.model_copy(update={"max_output_tokens": limit})}
    )


def _messages(request: Any, instruction: Any) -> Iterator[dict[str, Any]]:
    if instruction is not None:
        yield {"role": "system", "content": _json(instruction)}
    for content in request.contents:
        blocks = [block for part in content.parts or () for block in _blocks(part)]
        yield {"role": content.role or "user", "content": blocks}


def _blocks(part: Any) -> Iterator[dict[str, Any]]:
    """A part of a content with everything in it that may be billed."""
    held = part.model_dump(exclude_none=True)
    yield {"type": "text", "text": held["text"] if [*held] == ["text"] else _json(held)}
    for media in _media(held):
        kind = str(media.get("mime_type") or "").partition("/")[0]
        if kind == "image":
            yield {"type": "image_url", "image_url": {}}
        else:
            yield {"type": "input_audio" if kind == "audio" else "file"}


def _media(value: Any) -> Iterator[Mapping[str, Any]]:
    """Pictures, sounds and files, however deep."""
    if isinstance(value, Mapping):
        if "file_uri" in value or isinstance(value.get("data"), bytes):
            yield value
        for inner in value.values():
            yield from _media(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _media(inner)


def _tools(given: Any) -> Iterator[dict[str, Any]]:
    held: dict[str, Any] = {type(given).__name__: ""}
    if hasattr(given, "model_dump"):
        held = given.model_dump(exclude_none=True)
    for kind, value in held.items():
        if kind == "function_declarations":
            for declared in value:
                name, told = str(declared.get("name") or ""), str(declared.get("description") or "")
                function = {"name": name, "description": told, "parameters": {"schema": _json(declared)}}
                yield {"type": "function", "function": function}
        else:
            yield {"type": "web_search" if kind in _SEARCHES else kind}


def _json(value: Any) -> str:
    """Something as text, but for the bytes of what is no text."""
    if isinstance(value, str):
        return value
    return to_json(_shown(value), fallback=_shape).decode()


def _shown(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        value = value.model_dump(exclude_none=True)
    if isinstance(value, Mapping):
        return {str(name): _shown(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shown(inner) for inner in value]
    return "" if isinstance(value, bytes) else value


def _shape(value: Any) -> Any:
    return value.model_json_schema() if hasattr(value, "model_json_schema") else str(value)


def conversation_of(request: Any) -> list[dict[str, Any]]:
    """Who has spoken, and which tools were called: see `wire.tool_calls`."""
    said = []
    for content in request.contents:
        parts = content.parts or ()
        answers = any(part.function_response is not None for part in parts)
        role = "tool" if answers else "assistant" if content.role == "model" else "user"
        calls = [part.function_call for part in parts if part.function_call is not None]
        said.append({"role": role, "tool_calls": [{"name": c.name, "args": c.args} for c in calls]})
    return said


# ── what came back ─────────────────────────────────────────────────────────────────────


class Answers:
    """What a model has answered so far: pieces, and then all of it once more."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.whole = ""
        self.usage: Any = None
        self.model: str | None = None

    def add(self, response: Any) -> None:
        """Take in an `LlmResponse`."""
        text = (
            ""
            if response.content is None
            else texts_in(response.content.model_dump(exclude_none=True), _NO_TEXT)
        )
        if response.partial:
            self.pieces.append(text)
        else:
            self.whole += text
        self.usage = response.usage_metadata or self.usage
        self.model = response.model_version or self.model


fold = folding(Answers)


def hear(answers: Answers | None) -> Heard:
    """What the answers say of their cost."""
    if answers is None:
        return Heard()
    said = answers.usage
    # What was written to a cache has a price of its own, and is not told apart.
    told = said is not None and not getattr(said, "cache_creation_input_tokens", None)
    usage = read_usage(said.model_dump(exclude_none=True)) if told else None
    text = max("".join(answers.pieces), answers.whole, key=len)
    return Heard.of(usage, text, model=answers.model)


_NO_TEXT = ("role", "id", "thought_signature", "mime_type")
