"""OpenAI's requests: what is asked for, and how large it can get.

It reads and rewrites plain JSON values; it makes no calls and knows no SDK.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..rules.errors import ConfigError
from .tokens import bound_json, byte_length, exact_counter

# ── operations ─────────────────────────────────────────────────────────────────────────

_METERED = {
    "/chat/completions": "chat",
    "/completions": "completions",
    "/responses": "responses",
    "/embeddings": "embeddings",
}
# Not billed by the call: https://platform.openai.com/docs/pricing
_FREE = re.compile(
    r"/(?:files|uploads|models|moderations|conversations|webhooks|organization)(?:/|$)"
    r"|/responses/input_tokens$"
    r"|/[a-z_]+(?:/[a-z_]+)?/[^/]+/(?:cancel|pause|close)$"
    r"|/chat/completions/[^/]+$"
)


def operation_of(method: str, path: str) -> str | None:
    """What a request does: ``chat``, ``completions``, ``responses``, ``embeddings``; the
    family of another billable endpoint (``images``, ``audio``, …); None if it is free.

    An endpoint that is not known is taken for billable.
    """
    if method.upper() in ("GET", "DELETE", "HEAD", "OPTIONS"):
        return None
    path = "/" + path.split("?", 1)[0].strip("/")
    if path in _METERED:
        return _METERED[path]
    if _FREE.match(path):
        return None
    return ".".join(path.strip("/").split("/")[:2]) if path.startswith("/responses/") else path.split("/")[1]


METERED_OPERATIONS = frozenset(_METERED.values())


# ── requests ───────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class RequestBound:
    """How large a request can get.

    Attributes:
        input_tokens: an upper bound of what the prompt can be billed as; None: only the
            model's context window bounds it.
        extra_input: tokens of this request that come on top of remembered context.
        choices: how many times the output limit can be used up.
        extra_output: output tokens that the limit does not bound (rejected predictions).
        output_limit: the limit the caller sent; None if none; 0 where there is no output.
        limit_fields: the fields that carry it, or the ones to send it in.
        service_tier: as sent.
        input_audio, output_audio: whether audio tokens can occur.
        features: what cannot be bounded from the request, by name, with the reason.
        previous: the response whose context this one continues, if that is all that is
            not in the request.
        slack: how much of `input_tokens` is caution about what surrounds the texts; an
            estimate leaves it out.
    """

    input_tokens: int | None
    extra_input: int = 0
    choices: int = 1
    extra_output: int = 0
    output_limit: int | None = None
    limit_fields: tuple[str, ...] = ()
    service_tier: str | None = None
    input_audio: bool = False
    output_audio: bool = False
    features: Mapping[str, str] = field(default_factory=dict)
    previous: str | None = None
    slack: int = 0


# Tokens around each message, and each request, that no field of it shows. OpenAI's cookbook
# counts 3 and 3 for its own models
# (https://cookbook.openai.com/examples/how_to_count_tokens_with_tiktoken); of others it is
# only known that they are few.
_USUAL = 3
_AROUND_KNOWN = (4, 8)
_AROUND_OTHERS = (8, 16)
# Claude is told how to use tools in a prompt of its own, of at most this many tokens:
# https://docs.claude.com/en/docs/agents-and-tools/tool-use/overview#pricing
_CLAUDE_TOOL_PROMPT = 530
_LEGACY_MAX_TOKENS = 16  # https://platform.openai.com/docs/api-reference/completions/create

# Most tokens that one image can be billed as, from the rules published at
# https://platform.openai.com/docs/guides/images-vision: tile models scale to at most 8
# tiles (base + 8 * tile), patch models to at most 1,536 patches times a factor. Where both
# rules have been published for a model, the larger. (prefix, low detail, any detail)
_IMAGES: tuple[tuple[str, int | None, int], ...] = (
    ("gpt-4o-mini", 2833, 2833 + 8 * 5667),
    ("gpt-4o", 85, 85 + 8 * 170),
    ("chatgpt-4o", 85, 85 + 8 * 170),
    ("gpt-4.5", 85, 85 + 8 * 170),
    ("gpt-4.1-mini", None, 2489),
    ("gpt-4.1-nano", None, 3779),
    ("gpt-4.1", None, 1536),
    ("gpt-5-mini", None, 2489),
    ("gpt-5-nano", None, 3779),
    ("gpt-5", 70, 70 + 8 * 140),
    ("o4-mini", None, 2642),
    ("o1", 75, 75 + 8 * 150),
    ("o3", 75, 75 + 8 * 150),
)
_IMAGE_MARGIN = 32


def image_bound(model: str, detail: str | None) -> int | None:
    """Most tokens one image can be billed as by `model`; None without a published rule."""
    if model.startswith("gpt-5."):
        return None  # newer models take originals of up to 10,000 patches
    for prefix, low, top in _IMAGES:
        if model.startswith(prefix):
            return (low if detail == "low" and low is not None else top) + _IMAGE_MARGIN
    return None


def _positive(body: Mapping[str, Any], name: str, default: int | None) -> int | None:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1, not {value!r}")
    return value


class _InputCounter:
    """Walks the content of a request and adds up an upper bound of its tokens."""

    def __init__(self, model: str) -> None:
        self.model = model
        exact = exact_counter(model)
        self.count = exact or byte_length
        self.around, self.tokens = _AROUND_KNOWN if exact else _AROUND_OTHERS
        self.slack = self.tokens - _USUAL
        self.features: dict[str, str] = {}
        self.audio = False
        self.stored = False

    def text(self, text: str) -> None:
        self.tokens += self.count(text)

    def json(self, value: Any) -> None:
        if value is not None:
            self.tokens += bound_json(value, self.model)

    def message(self, message: Any) -> None:
        self.tokens += self.around
        self.slack += self.around - _USUAL
        if not isinstance(message, Mapping):
            self.json(message)
            return
        for key, value in message.items():
            if key == "role":
                continue
            if isinstance(value, str):
                self.text(value)
            elif key in ("content", "output", "summary") and isinstance(value, (list, tuple)):
                for part in value:
                    self.part(part)
            elif key == "audio" and value is not None:
                # An earlier spoken answer, by id: billed again, at a length not said here.
                self.refuse("input_audio", "An earlier audio answer is sent back by its id")
            elif value is not None:
                self.json(value)

    def part(self, part: Any) -> None:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("text", "input_text", "output_text", "refusal", "summary_text", "reasoning_text"):
            self.tokens += self.around
            self.slack += self.around
            self.text(str(part.get("text") or part.get("refusal") or ""))
        elif kind in ("image_url", "input_image"):
            image = part.get("image_url")
            detail = image.get("detail") if isinstance(image, Mapping) else part.get("detail")
            most = image_bound(self.model, detail)
            if most is None:
                self.refuse(
                    "image", f"No published rule says how many tokens model {self.model!r} bills for an image"
                )
            else:
                self.tokens += most
        elif kind == "input_audio":
            self.audio = True
            self.refuse("input_audio", "The length of an audio input is not known before it is sent")
        elif kind in ("file", "input_file"):
            self.refuse("file", "The pages of a file become text and images that only the provider counts")
        elif isinstance(part, str):
            self.text(part)
        else:
            self.tokens += self.around
            self.json(part)
            if kind is not None and not isinstance(part.get("text"), str):
                self.refuse(f"part:{kind}", f"Content of the unknown type {kind!r} may be billed as anything")

    def item(self, item: Any) -> None:
        """One item of a responses request's input."""
        kind = item.get("type", "message") if isinstance(item, Mapping) else None
        if kind == "item_reference":
            self.stored = True
        self.message(item)

    def tools(self, tools: Any) -> None:
        if tools and "claude" in self.model:
            self.tokens += _CLAUDE_TOOL_PROMPT
        for tool in tools or ():
            kind = tool.get("type") if isinstance(tool, Mapping) else None
            self.tokens += self.around
            self.json(tool)
            if kind not in ("function", "custom", None):
                name = re.sub(r"(_preview)?(_\d{4}_\d{2}_\d{2}|_\d{8})?$", "", str(kind))
                self.refuse(
                    name, f"The hosted tool {kind!r} is billed by use, beyond the tokens of this request"
                )

    def refuse(self, feature: str, why: str) -> None:
        self.features.setdefault(feature, why)


def bound_request(
    operation: str, body: Mapping[str, Any], *, prefer_max_tokens: bool = False
) -> RequestBound:
    """How large the request `body` can get.

    Args:
        operation: one of `METERED_OPERATIONS`.
        body: the request's JSON.
        prefer_max_tokens: where the caller sent no limit, send one as `max_tokens` (what
            most OpenAI-compatible servers read) and not as `max_completion_tokens`.

    Raises:
        ConfigError: a field that the bound depends on has an impossible value.
    """
    model = str(body.get("model") or "")
    if operation == "chat":
        return _bound_chat(body, model, prefer_max_tokens)
    if operation == "responses":
        return _bound_responses(body, model)
    if operation == "completions":
        return _bound_completions(body, model)
    counter = _InputCounter(model)
    _prompt(counter, body.get("input"))
    return RequestBound(counter.tokens, output_limit=0, slack=counter.slack + _USUAL)


def _bound_chat(body: Mapping[str, Any], model: str, prefer_max_tokens: bool) -> RequestBound:
    counter = _InputCounter(model)
    for message in body.get("messages") or ():
        counter.message(message)
    counter.tools(body.get("tools"))
    counter.json(body.get("functions"))
    counter.json(body.get("response_format"))
    if body.get("web_search_options") is not None:
        counter.refuse("web_search", "Web search is billed by the search, beyond the tokens of this request")
    modalities = body.get("modalities") or ()
    prediction = body.get("prediction")
    fields = ("max_completion_tokens", "max_tokens")
    sent = tuple(name for name in fields if body.get(name) is not None)
    limits = [_positive(body, name, None) or 0 for name in sent]
    return RequestBound(
        input_tokens=counter.tokens,
        choices=_positive(body, "n", 1) or 1,
        extra_output=bound_json(prediction, model) if prediction else 0,
        output_limit=max(limits) if limits else None,
        limit_fields=sent or _chat_limit_field(model, prefer_max_tokens),
        service_tier=body.get("service_tier"),
        input_audio=counter.audio,
        output_audio="audio" in modalities or body.get("audio") is not None,
        features=counter.features,
        slack=counter.slack,
    )


def _chat_limit_field(model: str, prefer_max_tokens: bool) -> tuple[str, ...]:
    """OpenAI's reasoning models reject `max_tokens`, through whatever proxy they are reached."""
    if prefer_max_tokens and not model.startswith(("o1", "o3", "o4", "gpt-5")):
        return ("max_tokens",)
    return ("max_completion_tokens",)


def _bound_responses(body: Mapping[str, Any], model: str) -> RequestBound:
    counter = _InputCounter(model)
    given = body.get("input")
    if isinstance(given, str):
        counter.message({"content": given})
    else:
        for item in given or ():
            counter.item(item)
    counter.json(body.get("instructions"))
    counter.tools(body.get("tools"))
    counter.json(body.get("text"))
    previous = body.get("previous_response_id")
    elsewhere = counter.stored or body.get("conversation") is not None or body.get("prompt") is not None
    return RequestBound(
        input_tokens=None if previous or elsewhere else counter.tokens,
        extra_input=counter.tokens,
        output_limit=_positive(body, "max_output_tokens", None),
        limit_fields=("max_output_tokens",),
        service_tier=body.get("service_tier"),
        input_audio=counter.audio,
        features=counter.features,
        previous=previous if previous and not elsewhere else None,
        slack=counter.slack,
    )


def _bound_completions(body: Mapping[str, Any], model: str) -> RequestBound:
    counter = _InputCounter(model)
    prompts = _prompt(counter, body.get("prompt"))
    n, best_of = _positive(body, "n", 1) or 1, _positive(body, "best_of", 1) or 1
    return RequestBound(
        input_tokens=counter.tokens,
        choices=max(n, best_of) * prompts,
        # With echo the prompt comes back as part of the completion.
        extra_output=counter.tokens if body.get("echo") else 0,
        output_limit=_positive(body, "max_tokens", _LEGACY_MAX_TOKENS),
        limit_fields=("max_tokens",),
        slack=counter.slack + _USUAL,
    )


def _prompt(counter: _InputCounter, prompt: Any) -> int:
    """Count a prompt that is text, texts, token ids or lists of them; how many prompts."""
    if isinstance(prompt, str):
        counter.text(prompt)
        return 1
    if not isinstance(prompt, (list, tuple)):
        counter.json(prompt)
        return 1
    if prompt and all(isinstance(p, int) for p in prompt):
        counter.tokens += len(prompt)
        return 1
    for item in prompt:
        counter.tokens += counter.around
        counter.slack += counter.around
        if isinstance(item, str):
            counter.text(item)
        elif isinstance(item, (list, tuple)) and all(isinstance(p, int) for p in item):
            counter.tokens += len(item)
        else:
            counter.json(item)
    return max(1, len(prompt))


def with_output_limit(body: Mapping[str, Any], bound: RequestBound, limit: int) -> dict[str, Any]:
    """`body` with its output limit set to `limit` tokens."""
    return {**body, **dict.fromkeys(bound.limit_fields, limit)}


STORED_CONTEXT = (
    "stored_context",
    "The request continues context that is stored at the provider (previous_response_id, conversation, "
    "prompt or item_reference), whose size is not known here",
)
"""The feature and the reason, where a request cannot be bounded by what is in it."""


def asks_stream_usage(body: Mapping[str, Any]) -> bool:
    """Whether the caller asked for the usage chunk of a chat or completions stream."""
    options = body.get("stream_options")
    return isinstance(options, Mapping) and bool(options.get("include_usage"))


def with_stream_usage(body: Mapping[str, Any]) -> dict[str, Any]:
    """`body` with the usage chunk asked for."""
    options = body.get("stream_options")
    return {**body, "stream_options": {**(options or {}), "include_usage": True}}
