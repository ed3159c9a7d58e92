"""From the Agents SDK's words to the engine's: what is asked, and what came back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from pydantic_core import to_json

from ...rules.usage import Usage
from ...wire.usage_shapes import read_usage
from ..kit.call import folding
from ..kit.generation import Heard, texts_in
from ..kit.settings import output_limit, url_in

_HARMLESS = frozenset(
    {
        "max_tokens", "temperature", "top_p", "frequency_penalty", "presence_penalty", "tool_choice",
        "parallel_tool_calls", "truncation", "verbosity", "metadata", "store", "prompt_cache_retention",
        "include_usage", "response_include", "top_logprobs", "extra_query", "extra_headers", "extra_body",
        "extra_args", "retry", "prompt_cache_options", "preserve_raw_usage", "timeout",
    }
)  # fmt: skip
"""Settings that do nothing to the bill, beyond what is read of them here. Others are fields by their name,
and what is not known is refused. https://openai.github.io/openai-agents-python/ref/model_settings/"""


def request_as_wire(model: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The request that a model is about to make.

    Args:
        asked: the arguments of `Model.get_response`, by their names.
    """
    settings = asked["model_settings"]
    held = {f.name: value for f in fields(settings) if (value := getattr(settings, f.name)) is not None}
    wire: dict[str, Any] = {name: value for name, value in held.items() if name not in _HARMLESS}
    wire |= {"model": model, "messages": list(_messages(asked))}
    tools = [*map(_tool, asked["tools"] or ()), *map(_handoff, asked["handoffs"] or ())]
    if tools:
        wire["tools"] = tools
    schema = asked["output_schema"]
    if schema is not None and not schema.is_plain_text():
        wire["response_format"] = {"type": "json_schema", "json_schema": schema.json_schema()}
    for name in ("extra_args", "extra_body"):
        if isinstance(held.get(name), Mapping):
            wire |= held[name]  # it is put over the request, the model too
    limit = output_limit(held, wire)
    if limit is not None:
        wire["max_tokens"] = limit
    if asked.get("previous_response_id"):
        wire["previous_response_id"] = asked["previous_response_id"]
    # What is stored at the provider is billed, and is not here.
    stored = asked.get("conversation_id") or asked.get("prompt")
    if stored:
        wire["conversation"] = str(stored)
    return wire


def _messages(asked: Mapping[str, Any]) -> Iterator[Any]:
    if asked["system_instructions"]:
        yield {"role": "system", "content": asked["system_instructions"]}
    given = asked["input"]
    if isinstance(given, str):
        yield {"role": "user", "content": given}
    else:
        yield from given


def _tool(tool: Any) -> dict[str, Any]:
    schema = getattr(tool, "params_json_schema", None)
    if schema is not None:
        function = {"name": tool.name, "description": tool.description, "parameters": schema}
        return {"type": "function", "function": function}
    return {
        "type": str(getattr(tool, "name", type(tool).__name__)),
        "settings": to_json(tool, fallback=str).decode(),
    }


def _handoff(handoff: Any) -> dict[str, Any]:
    function = {
        "name": handoff.tool_name,
        "description": handoff.tool_description,
        "parameters": handoff.input_json_schema,
    }
    return {"type": "function", "function": function}


def name_and_url(model: Any) -> tuple[str, str]:
    """What a model object calls the model that it asks, and where that is."""
    held = vars(model)
    name = held.get("model")
    return str(name if isinstance(name, str) and name else type(model).__name__), url_in(held)


# ── what came back ─────────────────────────────────────────────────────────────────────


def hear(response: Any) -> Heard:
    """What a `ModelResponse` says of its cost."""
    if response is None:
        return Heard()
    return _heard(_usage(response.usage), _written(response.output), response.response_id)


class Events:
    """What the events of a stream have said so far."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.response: Any = None

    def add(self, event: Any) -> None:
        """Take in an event: a piece of text, or the whole response at its end."""
        delta = getattr(event, "delta", None)
        if isinstance(delta, str):
            self.text.append(delta)
        if getattr(event, "type", None) in ("response.completed", "response.incomplete"):
            self.response = event.response


fold = folding(Events)


def hear_events(events: Events | None) -> Heard:
    """What the events of a stream say of its cost."""
    if events is None:
        return Heard()
    response, text = events.response, "".join(events.text)
    if response is None:
        return Heard(text=text)
    said = _heard(read_usage(response.usage), text or _written(response.output), response.id)
    model = getattr(response, "model", None)
    tier = getattr(response, "service_tier", None)
    return Heard(
        said.usage,
        said.text,
        model=model if isinstance(model, str) else None,
        service_tier=tier if isinstance(tier, str) else None,
        provider_id=said.provider_id,
    )


def _heard(usage: Usage | None, text: str, response_id: Any) -> Heard:
    given = isinstance(response_id, str) and response_id
    return Heard.of(usage, text, provider_id=response_id if given else None)


def _usage(said: Any) -> Usage | None:
    inputs, outputs = said.input_tokens_details, said.output_tokens_details
    return read_usage(
        {
            "input_tokens": said.input_tokens,
            "output_tokens": said.output_tokens,
            "total_tokens": said.total_tokens,
            "input_tokens_details": {
                "cached_tokens": getattr(inputs, "cached_tokens", 0) or 0,
                "cache_write_tokens": getattr(inputs, "cache_write_tokens", 0) or 0,
            },
            "output_tokens_details": {"reasoning_tokens": getattr(outputs, "reasoning_tokens", 0) or 0},
        }
    )


def _written(output: Sequence[Any] | None) -> str:
    """Everything that was generated, as text."""
    return "".join(texts_in(to_plain(item), _NO_TEXT) for item in output or ())


def to_plain(item: Any) -> Any:
    """An item of an answer as JSON."""
    return item.model_dump() if hasattr(item, "model_dump") else item


_NO_TEXT = ("id", "type", "role", "status", "call_id", "provider_data", "logprobs", "annotations", "phase")
