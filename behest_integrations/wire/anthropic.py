"""Anthropic's requests (the Messages API): what is asked for, and how large it can get.

It reads plain JSON values; it makes no calls and knows no SDK. The same requests go to Bedrock and
Vertex, and to servers of others that take them (Ollama, llama.cpp, vLLM, DeepSeek, OpenRouter).
https://platform.claude.com/docs/en/api/messages
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from ..rules.names import read_name
from .bounds import CacheWrites, RequestBound
from .fields import NO_EFFECTS, NO_FIELDS, FieldEffects, Ratio, positive, read_fields, times
from .images import image_bound, unpublished
from .sizes import Around, Head, Size, around, heads_of, tool_bytes
from .tokens import byte_length, text_counter

MESSAGES = "messages"
"""The operation of the Messages API."""

# Not billed by the call: https://platform.claude.com/docs/en/about-claude/pricing. Counting tokens is
# free: https://platform.claude.com/docs/en/build-with-claude/token-counting#pricing-and-rate-limits
# Of managed agents, sessions are billed (their tokens, and the time that they run), and not what they are
# made of:
# https://platform.claude.com/docs/en/about-claude/pricing#claude-managed-agents-pricing
_FREE = re.compile(
    r"/messages/count_tokens$"
    r"|/(?:files|models|skills|organizations|user_profiles)(?:/|$)"
    r"|/(?:agents|environments|vaults|memory_stores)(?:/|$)"
    r"|/sessions/[^/]+(?:/resources(?:/[^/]+)?)?$"
    r"|/.+/(?:cancel|archive|pause)$"
    r"|.*/models/count-tokens:rawPredict$"
)
# As Bedrock and Vertex have the model, and whether the answer is a stream, in the path.
_BEDROCK = re.compile(r"/model/(?P<model>[^/]+)/invoke(?P<stream>-with-response-stream)?$")
_VERTEX = re.compile(r"/publishers/anthropic/models/(?P<model>[^/:]+):(?P<stream>streamR|r)awPredict$")


def operation_of(method: str, path: str) -> str | None:
    """What a request does: ``messages``; the family of another billable endpoint
    (``messages.batches``, ``complete``, ``sessions``, …); None if it is free.

    An endpoint that is not known is taken for billable.
    """
    if method.upper() in ("GET", "DELETE", "HEAD", "OPTIONS"):
        return None
    path = "/" + path.split("?", 1)[0].strip("/")
    path = path.removeprefix("/v1") if path.startswith("/v1/") else path
    if path == "/messages":
        return MESSAGES
    if _FREE.match(path):
        return None
    if _BEDROCK.search(path) or _VERTEX.search(path):
        return MESSAGES
    family = path.strip("/").split("/")
    return ".".join(family[:2]) if family[0] == MESSAGES else family[0]


def in_path(path: str) -> tuple[str, bool] | None:
    """The model, and whether a stream is asked for, where a path of Bedrock or Vertex says them."""
    found = _BEDROCK.search(path) or _VERTEX.search(path)
    if found is None or "count-tokens" in found["model"]:
        return None
    return found["model"], found["stream"] in ("-with-response-stream", "streamR")


# ── the prompt ─────────────────────────────────────────────────────────────────────────

# Claude is told how to use tools in a prompt of its own. Up to 530 tokens are published for it
# (Claude 3 Opus): https://platform.claude.com/docs/en/agents-and-tools/tool-use/overview#pricing;
# that of later models is counted with a newer tokenizer, so there is room for twice that.
TOOL_PROMPT = 1060
# Tools of Anthropic's own that the caller runs: what their definitions take, by the same page and
# https://platform.claude.com/docs/en/about-claude/pricing#specific-tool-pricing (245, 700, 735 and, with a
# system prompt for computer use, 499), again twice. Any other that is not the caller's is a feature.
_CLIENT_TOOLS: Mapping[str, int] = {"bash": 490, "text_editor": 1400, "computer": 2468}
_TOOL_VERSION = re.compile(r"(?:_toolset)?(?:_(?:regex|bm25))?(?:_\d{8})?$")

# Cannot be asked for where inference is to run, so that a workspace's default does not count either:
# https://platform.claude.com/docs/en/manage-claude/data-residency (Opus 4.6, and all after it, can).
_ANYWHERE = (
    "claude-2*", "claude-instant*", "claude-3-*", "claude-sonnet-4", "claude-opus-4", "claude-sonnet-4-0*",
    "claude-sonnet-4-2*", "claude-sonnet-4-5*", "claude-opus-4-0*", "claude-opus-4-1*", "claude-opus-4-2*",
    "claude-opus-4-5*", "claude-haiku-4-5*", "claude-4-*",
)  # fmt: skip
_US: Ratio = (11, 10)

LEAST_THINKING = 1024
"""https://platform.claude.com/docs/en/build-with-claude/extended-thinking: budget_tokens is at least this,
and below max_tokens."""
_FREE_EDITS = ("clear_tool_uses_", "clear_thinking_")
"""Edits of the context that only take something out of the prompt:
https://platform.claude.com/docs/en/build-with-claude/context-editing"""


@lru_cache(maxsize=1024)
def _matches(model: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(read_name(model).plain, pattern) for pattern in patterns)


class _Prompt:
    """Walks a prompt, and adds up an upper bound of its tokens.

    Bytes bound the tokens of texts, and so do those of everything that a block says beside them:
    signatures hold the thoughts that are sent back, encrypted, and are longer than these.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self.margin: Around = around(model)
        self.count = text_counter(model)
        self.tokens = 0
        self.texts = 0
        """Texts that are not empty, each at least a token."""
        self.writes: CacheWrites = "none"
        """The longest life that a write to the cache is asked for."""
        self.features: dict[str, str] = {}

    def text(self, text: object) -> None:
        if isinstance(text, str):
            self.tokens += self.count(text)
            self.texts += text != ""
        elif text is not None:
            self.json(text)

    def json(self, value: object) -> None:
        self.tokens += byte_length(
            json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_plain)
        )

    def content(self, content: object) -> None:
        """A message's content, a system prompt, or the result of a tool: text, or blocks."""
        if isinstance(content, (list, tuple)):
            for block in content:
                self.block(block)
        else:
            self.text(content)

    def block(self, block: object) -> None:
        self.tokens += self.margin.part
        if not isinstance(block, Mapping):
            self.text(_plain(block) if hasattr(block, "model_dump") else block)
            return
        self.marked(block.get("cache_control"))
        kind = block.get("type")
        reader = _BLOCKS.get(str(kind))
        if reader is not None:
            reader(self, block)
            return
        self.rest(block, ())
        if kind not in _COUNTED:
            self.refuse(f"part:{kind}", f"Content of the unknown type {kind!r} may be billed as anything")

    def rest(self, block: Mapping[str, Any], less: Iterable[str]) -> None:
        """Whatever else a block says."""
        left = {n: v for n, v in block.items() if n not in ("type", "cache_control", *less) and v is not None}
        if left:
            self.json(left)

    def marked(self, control: object) -> None:
        """A breakpoint of the cache: https://platform.claude.com/docs/en/build-with-claude/prompt-caching"""
        if control:
            hour = not isinstance(control, Mapping) or control.get("ttl", "5m") != "5m"
            self.writes = "1h" if hour or self.writes == "1h" else "5m"

    def refuse(self, feature: str, why: str) -> None:
        self.features.setdefault(feature, why)

    # What blocks there are: `_BLOCKS` has the names.

    def of_text(self, block: Mapping[str, Any]) -> None:
        self.text(block.get("text"))
        self.rest(block, ("text",))

    def of_image(self, block: Mapping[str, Any]) -> None:
        most = image_bound(self.model)
        if most is None:
            self.refuse("image", unpublished(self.model))
        else:
            self.tokens += most

    def of_document(self, block: Mapping[str, Any]) -> None:
        source = block.get("source")
        kind = source.get("type") if isinstance(source, Mapping) else None
        self.rest(block, ("source",))
        if isinstance(source, Mapping) and kind == "text":
            self.text(source.get("data"))
        elif isinstance(source, Mapping) and kind == "content":
            self.content(source.get("content"))
        else:
            self.refuse("file", "The pages of a file become text and images that only the provider counts")

    def of_result(self, block: Mapping[str, Any]) -> None:
        self.content(block.get("content"))
        self.rest(block, ("content",))

    def of_upload(self, block: Mapping[str, Any]) -> None:
        self.refuse("file", "What is read of an uploaded file is counted by the provider alone")

    def tools(self, tools: Sequence[Any]) -> None:
        self.tokens += self.margin.tools + TOOL_PROMPT
        for tool in tools:
            tool = _plain(tool) if hasattr(tool, "model_dump") else tool
            self.tokens += self.margin.message
            if "claude" in self.model:
                # Written out with line breaks it is no more tokens: each stands beside a mark of JSON.
                self.json(tool)
            else:
                self.tokens += tool_bytes(tool)
            if not isinstance(tool, Mapping):
                continue
            self.marked(tool.get("cache_control"))
            kind = str(tool.get("type") or "custom")
            name = _TOOL_VERSION.sub("", kind)
            if name in _CLIENT_TOOLS and "toolset" not in kind:
                self.tokens += _CLIENT_TOOLS[name]
            elif kind != "custom":
                feature = "mcp" if name == "mcp" else name
                self.refuse(
                    feature, f"The tool {kind!r} is run by the provider, or in tokens that it alone counts"
                )


_BLOCKS = {
    "text": _Prompt.of_text,
    "image": _Prompt.of_image,
    "document": _Prompt.of_document,
    "tool_result": _Prompt.of_result,
    "mcp_tool_result": _Prompt.of_result,
    "container_upload": _Prompt.of_upload,
}
# Blocks whose whole content is in the request: what was thought, asked of tools, and found by them.
_COUNTED = frozenset(
    {"thinking", "redacted_thinking", "tool_use", "server_tool_use", "mcp_tool_use", "search_result",
     "web_search_tool_result", "web_fetch_tool_result", "code_execution_tool_result",
     "bash_code_execution_tool_result", "text_editor_code_execution_tool_result",
     "tool_search_tool_result", "tool_reference", "advisor_tool_result", "compaction", "tool_addition",
     "tool_removal", "mcp_tool_listing", "fallback"}
)  # fmt: skip


def _plain(value: Any) -> Any:
    """An SDK's object as the JSON that is sent of it."""
    dump = getattr(value, "model_dump", None)
    return dump(mode="json", exclude_unset=True) if callable(dump) else str(value)


# ── requests ───────────────────────────────────────────────────────────────────────────


def bound_messages(
    body: Mapping[str, Any], *, provider: str | None = None, allowed: frozenset[str] = NO_FIELDS
) -> RequestBound:
    """How large the request `body` can get.

    Args:
        body: the request's JSON, with the model, wherever it is sent.
        provider: the price list's id of the provider; None: any.
        allowed: fields, by name or path, that are not known here and do nothing.

    Raises:
        ConfigError: a field that the bound depends on has an impossible value.
    """
    model = str(body.get("model") or "")
    effects = read_fields(MESSAGES, body, provider, allowed)
    prompt = _Prompt(model)
    size = _read_prompt(prompt, body, effects)
    limit = body.get("max_tokens")
    if limit is not None:
        # Nought writes the cache and generates nothing.
        limit = 0 if limit == 0 and type(limit) is int else positive("max_tokens", limit)
    multiplier = effects.multiplier
    if body.get("inference_geo") is None and provider in (None, "anthropic") and "claude" in model:
        # A workspace may have a place of its own for what names none.
        multiplier = multiplier if _matches(model, _ANYWHERE) else times(multiplier, _US)
    thread = body.get("thread")
    # One that is only begun is all in the request.
    stored = bool(thread) and not (isinstance(thread, Mapping) and thread.get("type") == "create")
    previous = thread.get("previous_message_id") if stored and isinstance(thread, Mapping) else None
    return RequestBound(
        input_tokens=None if stored else size.total,
        extra_input=size.total if stored else 0,
        output_limit=limit,
        limit_fields=("max_tokens",),
        service_tier=effects.tier,
        features=prompt.features,
        previous=previous if isinstance(previous, str) else None,
        multiplier=multiplier,
        tier_multiplier=effects.tier_multiplier,
        models=effects.models,
        # A limit below the least that may be thought would be refused.
        least_output=LEAST_THINKING + 1 if effects.below else 0,
        below_limit=effects.below,
        size=None if stored or prompt.features else size,
        cache_writes=prompt.writes,
    )


def _read_prompt(prompt: _Prompt, body: Mapping[str, Any], effects: FieldEffects) -> Size:
    """Count the prompt; how large it is, and what it is made of."""
    margin = prompt.margin
    prompt.marked(body.get("cache_control"))
    prompt.content(body.get("system"))
    tools = body.get("tools")
    tools = list(tools) if isinstance(tools, (list, tuple)) else []
    if tools:
        prompt.tools(tools)
    if effects is not NO_EFFECTS:
        prompt.tokens += effects.extra_input
        for value in effects.counted:
            prompt.tokens += margin.part
            prompt.text(value)
        prompt.features.update(effects.features)
    _read_edits(prompt, body.get("context_management"))
    before = prompt.tokens
    messages = body.get("messages")
    messages = list(messages) if isinstance(messages, (list, tuple)) else []
    users = assistants = others = 0
    after = [before]
    for message in messages:
        prompt.tokens += margin.message
        if isinstance(message, Mapping):
            content, role = message.get("content"), message.get("role")
            plain = isinstance(content, str)
            users += plain and role == "user"
            assistants += plain and role == "assistant"
            others += not plain or role not in ("user", "assistant")
            prompt.content(content)
        else:
            others += 1
            prompt.json(message)
        after.append(prompt.tokens)
    surroundings = margin.request + margin.message * len(messages)
    if tools:
        surroundings += margin.tools + TOOL_PROMPT
    return Size(
        prompt.tokens + margin.request,
        surroundings,
        prompt.texts,
        1 if body.get("system") else 0,
        users,
        assistants,
        others,
        len(tools),
        _heads(prompt, {**body, "messages": messages}, after),
    )


def _heads(prompt: _Prompt, body: Mapping[str, Any], after: list[int]) -> tuple[Head, ...]:
    if not all(isinstance(message, Mapping) for message in body["messages"]):
        return ()
    return heads_of(body if prompt.writes == "none" else _unmarked(body), after)


def _read_edits(prompt: _Prompt, management: object) -> None:
    """What is to be done to the context before it is read."""
    if management is None:
        return
    edits = management.get("edits") if isinstance(management, Mapping) else management
    known = isinstance(edits, (list, tuple)) and all(
        isinstance(edit, Mapping) and str(edit.get("type")).startswith(_FREE_EDITS) for edit in edits
    )
    if not known and (edits or edits is None):
        prompt.refuse(
            "compaction", "The conversation may be summarised before it is answered, in tokens not known here"
        )


def _unmarked(value: Any) -> Any:
    """A request less the marks of the cache, which move from turn to turn, and change no token."""
    if isinstance(value, Mapping):
        return {name: _unmarked(part) for name, part in value.items() if name != "cache_control"}
    if isinstance(value, (list, tuple)):
        return [_unmarked(part) for part in value]
    return value
