"""The tokens of a request's content, from above: its texts, what surrounds them, images, tools."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .images import image_bound, unpublished
from .sizes import SAID
from .tokens import bound_json, byte_length, exact_counter


class Around(NamedTuple):
    """Tokens around each message, and each request."""

    message: int
    request: int


# Tokens around each message, and each request, that no field of it shows. OpenAI's cookbook
# counts 3 and 3 for its own models
# (https://cookbook.openai.com/examples/how_to_count_tokens_with_tiktoken). Templates of open
# models take more: llama-server billed 16 a message for gemma-3, Llama 3.1 begins with 25 tokens
# of dates (https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct/blob/main/tokenizer_config.json),
# gpt-oss with some 70 (https://cookbook.openai.com/articles/openai-harmony).
USUAL = 3
AROUND_KNOWN = Around(message=4, request=8)
_AROUND_OTHERS = Around(message=20, request=128)
# How tools are used is told in a prompt of the template's own; Qwen's and Llama's take up to 200
# (https://qwen.readthedocs.io/en/latest/framework/function_call.html).
_TOOLS_OTHERS = 400
# Claude is told how to use tools in a prompt of its own, of at most this many tokens:
# https://docs.claude.com/en/docs/agents-and-tools/tool-use/overview#pricing
_CLAUDE_TOOL_PROMPT = 530

_TOOL_VERSION = re.compile(r"(_preview)?(_\d{4}_\d{2}_\d{2}|_\d{8})?$")


class InputCounter:
    """Walks the content of a request and adds up an upper bound of its tokens."""

    __slots__ = ("around", "audio", "count", "exact", "features", "model", "slack", "stored", "tokens")

    def __init__(self, model: str) -> None:
        self.model = model
        exact = exact_counter(model)
        self.exact = exact is not None
        self.count = exact or byte_length
        self.around, self.tokens = AROUND_KNOWN if exact else _AROUND_OTHERS
        self.slack = self.tokens - USUAL
        self.features: dict[str, str] = {}
        self.audio = False
        self.stored = False

    def text(self, text: str) -> None:
        self.tokens += self.count(text)

    def json(self, value: Any) -> None:
        if value is not None:
            self.tokens += bound_json(value, self.model)

    def messages(self, messages: Iterable[Any]) -> None:
        count, around, tokens, many = self.count, self.around, 0, 0
        for message in messages:
            many += 1
            if not isinstance(message, Mapping):
                self.json(message)
                continue
            for key, value in message.items():
                if key == "role":
                    continue
                if isinstance(value, str):
                    tokens += count(value)
                elif value is not None:
                    self.in_message(key, value)
        self.tokens += tokens + around * many
        self.slack += (around - USUAL) * many

    def in_message(self, key: str, value: Any) -> None:
        """A part of a message that is no text."""
        if key in ("content", "output", "summary") and isinstance(value, (list, tuple)):
            for part in value:
                self.part(part)
        elif key == "audio":
            # An earlier spoken answer, by id: billed again, at a length not said here.
            self.refuse("input_audio", "An earlier audio answer is sent back by its id")
        else:
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
                self.refuse("image", unpublished(self.model))
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
            if kind is not None and kind not in SAID and not isinstance(part.get("text"), str):
                self.refuse(f"part:{kind}", f"Content of the unknown type {kind!r} may be billed as anything")

    def item(self, item: Any) -> None:
        """One item of a responses request's input."""
        kind = item.get("type", "message") if isinstance(item, Mapping) else None
        if kind == "item_reference":
            self.stored = True
        self.messages((item,))

    def tools(self, tools: Any) -> None:
        if not tools:
            return
        if "claude" in self.model:
            self.tokens += _CLAUDE_TOOL_PROMPT
        elif not self.exact:
            self.tokens += _TOOLS_OTHERS
            self.slack += _TOOLS_OTHERS
        for tool in tools:
            kind = tool.get("type") if isinstance(tool, Mapping) else None
            self.tokens += self.around
            self.json(tool)
            if kind not in ("function", "custom", None):
                name = _TOOL_VERSION.sub("", str(kind))
                self.refuse(
                    name, f"The hosted tool {kind!r} is billed by use, beyond the tokens of this request"
                )

    def refuse(self, feature: str, why: str) -> None:
        self.features.setdefault(feature, why)
