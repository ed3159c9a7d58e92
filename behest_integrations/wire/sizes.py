"""How large a chat is for a model whose tokenizer and template are not known here: from above, and
by what it is made of.

The bound is the bytes of its texts (their tokens, where the tokenizer can be had) and a margin for the
chat template (`around`). The bytes hold for every byte-level BPE and every SentencePiece vocabulary with
byte fallback; the margin holds for the templates that it was measured on.

No text is kept: the beginnings of a chat are told by keyed digests, for this process alone.
"""

from __future__ import annotations

import json
import marshal
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

from .tokens import byte_length, text_counter

# ── the start: templates in use ────────────────────────────────────────────────────────


class Around(NamedTuple):
    """Tokens around the texts: of each request, message and part, and of having tools at all."""

    request: int
    message: int
    part: int
    tools: int


# Measured: the 77 chat templates that llama.cpp ships for its tests
# (https://github.com/ggml-org/llama.cpp/tree/master/models/templates), or that it falls back to,
# rendered and counted with 18 vocabularies, most of them of another family than the template. A
# template that its server cannot read is replaced by ChatML, whose marks are then plain text: 18
# tokens a message for Gemma, where its own take 5. The most of any pair: 30.5 a message, 174 a
# request, 177 for tools over what `tool_bytes` counts; families that take more are below.
_AROUND = Around(request=256, message=32, part=8, tools=256)

# Families whose template writes a system prompt of its own, or long marks (part of the model's
# name → its margins): up to 1,494 tokens for Devstral, 1,208 for GigaChat, 678 (tools: 898, a
# message: 57) for Command R, 588 for Mistral Small, 318 for SmolLM, 246 for MiniMax.
_FAMILIES: tuple[tuple[str, Around], ...] = (
    ("devstral", Around(1792, 32, 8, 256)),
    ("gigachat", Around(1536, 32, 8, 256)),
    ("command", Around(896, 64, 8, 1152)),
    ("cohere", Around(896, 64, 8, 1152)),
    ("c4ai", Around(896, 64, 8, 1152)),
    ("mistral-small", Around(768, 32, 8, 256)),
    ("magistral", Around(768, 32, 8, 256)),
    ("ministral", Around(768, 32, 8, 256)),
    ("smollm", Around(512, 32, 8, 256)),
    ("minimax", Around(384, 32, 8, 256)),
    ("kimi", Around(256, 64, 8, 256)),
    ("spark", Around(256, 48, 8, 256)),
)


@lru_cache(maxsize=1024)
def around(model: str) -> Around:
    """The margin that `model` starts with: its family's if its name tells it, else the common one."""
    name = model.lower()
    return next((margin for part, margin in _FAMILIES if part in name), _AROUND)


def escaped_bytes(text: str) -> int:
    """Bytes of `text` as a template may write it into JSON, from above.

    Quotes and what is not ASCII are escaped, and by Jinja's own `tojson` also ``< > & '``:
    https://jinja.palletsprojects.com/en/stable/templates/#jinja-filters.tojson
    """
    return len(json.dumps(text)) + 5 * sum(map(text.count, "<>&'"))


def tool_bytes(tool: Any) -> int:
    """Bytes of one tool's definition as a template may write it, from above, each a token at most.

    Llama 3.1 and Granite print it with an indent of four, Functionary repeats its description,
    others turn it into TypeScript or XML, in which each name can stand twice.
    """
    pretty = json.dumps([tool], indent=4, default=str)
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    said = function.get("description") if isinstance(function, Mapping) else None
    again = escaped_bytes(said) if isinstance(said, str) else 0
    compact = byte_length(json.dumps(tool, ensure_ascii=False, separators=(",", ":"), default=str))
    return max(len(pretty) + 5 * sum(map(pretty.count, "<>&'")) + again, 2 * compact)


# ── what is known of a request ─────────────────────────────────────────────────────────


class Head(NamedTuple):
    """The beginning of a prompt.

    Attributes:
        digest: of everything that the prompt's beginning is made from.
        rest: at most how many tokens the messages after it are.
        keep: other prompts are likely to begin so: its bill is worth remembering.
    """

    digest: bytes
    rest: int
    keep: bool = True


class Size(NamedTuple):
    """How large one request is.

    Attributes:
        total: its starting bound, in tokens: the texts' bytes and what `around` says.
        surroundings: how much of `total` is from `around`.
        least: how many texts it has that are not empty, each at least a token.
        systems, users, assistants: its messages, by role.
        others: its messages of other roles (tools' results), tool calls and parts of content.
        tools: how many tools are defined.
        heads: its beginnings that may have been billed; empty if they cannot be told.
    """

    total: int
    surroundings: int = 0
    least: int = 0
    systems: int = 0
    users: int = 0
    assistants: int = 0
    others: int = 0
    tools: int = 0
    heads: tuple[Head, ...] = ()

    @property
    def messages(self) -> int:
        return self.systems + self.users + self.assistants + self.others


# Fields of a chat request that no template is told of. All others are part of a head: one that
# is not known here makes another head, never the same.
_NOT_RENDERED = frozenset(
    {"frequency_penalty", "logit_bias", "logprobs", "max_completion_tokens", "max_tokens", "messages",
     "metadata", "n", "presence_penalty", "prompt_cache_key", "seed", "service_tier", "stop", "store",
     "stream", "stream_options", "temperature", "top_k", "top_logprobs", "top_p", "user"}
)  # fmt: skip
_KEY = os.urandom(32)  # digests say nothing to another process


def _canonical(value: Any) -> bytes:
    """The same bytes for the same JSON (and order of its keys) alone.

    Raises:
        ValueError: it is not made of JSON's types.
    """
    return marshal.dumps(value, 0)  # 0: without references, which depend on who else holds a value


SAID = ("thinking", "reference")
"""Parts of earlier answers whose whole content is in the request, and is counted as JSON (Mistral's):
https://docs.mistral.ai/capabilities/reasoning, https://docs.mistral.ai/capabilities/citations"""


def _all_text(message: Any) -> bool:
    if not isinstance(message, Mapping):
        return False
    content = message.get("content")
    if isinstance(content, str):
        return message.get("audio") is None
    if content is None:
        return message.get("audio") is None
    return isinstance(content, (list, tuple)) and all(
        isinstance(part, Mapping) and (isinstance(part.get("text"), str) or part.get("type") in SAID)
        for part in content
    )


def heads_of(body: Mapping[str, Any], after: Sequence[int]) -> tuple[Head, ...]:
    """The heads of a chat request; none where they cannot be told.

    Those worth keeping: before its messages (what tools and settings come to), after the system
    messages that it begins with, and whole (the next turn of the conversation begins so).

    Args:
        body: the request.
        after: the tokens counted before its messages, and after each of them.
    """
    messages = body.get("messages")
    if not isinstance(messages, (list, tuple)) or len(after) != len(messages) + 1:
        return ()
    leading = 0
    for message in messages:
        if message.get("role") not in _SYSTEM:
            break
        leading += 1
    kept = (0, leading, len(messages))
    late = len(messages) - _NEWS
    fixed = {n: value for n, value in body.items() if value is not None and n not in _NOT_RENDERED}
    # Many templates write a system prompt of their own where there is none: a prompt that has one
    # says nothing of a prompt that has not.
    try:
        digest = blake2b(_canonical([fixed, leading > 0]), digest_size=16, key=_KEY)
        found = [Head(digest.digest(), after[-1] - after[0])]
        for place, message in enumerate(messages, 1):
            digest.update(_canonical(message))
            if place in kept or place >= late:
                found.append(Head(digest.digest(), after[-1] - after[place], place in kept))
    except ValueError:
        return ()
    return tuple(found)


_NEWS = 24  # messages that one turn of a conversation adds, tools' calls and results with it
_SYSTEM = ("system", "developer")
_PLAIN = ("system", "developer", "user", "assistant")
_COUNTED = ("role", "content")


def size_of(body: Mapping[str, Any], model: str, more: int = 0) -> Size | None:
    """The size of a chat request for a model whose tokenizer is not known.

    None where it is not made of messages of text, calls and tools alone: images and unknown
    kinds of content are bounded elsewhere, and nothing is learnt of them.

    Args:
        more: tokens that other fields than its messages and tools may add.
    """
    messages = body.get("messages")
    if not isinstance(messages, (list, tuple)) or not all(map(_all_text, messages)):
        return None
    margin, count = around(model), text_counter(model)
    systems = users = assistants = others = least = 0
    tokens, after = 0, [0]
    around_message = margin.message
    for message in messages:
        role, content = message.get("role"), message.get("content")
        tokens += around_message
        if isinstance(content, str) and (len(message) == 2 or not message.get("tool_calls")):
            systems += role in _SYSTEM
            users += role == "user"
            assistants += role == "assistant"
            others += role not in _PLAIN
            least += content != ""
            tokens += count(content) if role != "tool" else max(byte_length(content), escaped_bytes(content))
        else:
            others += 1
            if isinstance(content, str):
                tokens += count(content)
                least += content != ""
            elif content is not None:
                tokens += margin.part * len(content) + _json_bytes(content)
                least += 1 if content else 0
        if len(message) > 2:
            for name, value in message.items():
                if isinstance(value, str):
                    tokens += count(value) if name not in _COUNTED else 0
                elif value is not None and name not in _COUNTED:
                    tokens += margin.part + _json_bytes(value)
        after.append(tokens)
    tools = [*(body.get("tools") or ()), *(body.get("functions") or ())]
    surroundings = margin.request + margin.message * len(messages) + (margin.tools if tools else 0)
    total = tokens + margin.request + more
    heads = heads_of(body, after)
    if tools:
        # Mistral's template writes the tools before each user message that equals the last one.
        asked = [message for message in messages if message.get("role") == "user"]
        times = max(1, asked.count(asked[-1])) if asked else 1
        total += margin.tools + times * (sum(map(tool_bytes, tools)) + margin.message * len(tools))
        heads = heads if times == 1 else ()
    return Size(total, surroundings, least, systems, users, assistants, others, len(tools), heads)


def _json_bytes(value: Any) -> int:
    written = json.dumps(value, default=str)
    escaped = len(written) + 5 * sum(map(written.count, "<>&'"))
    if "\\u" not in written:
        return escaped
    return max(escaped, byte_length(json.dumps(value, ensure_ascii=False, default=str)))
