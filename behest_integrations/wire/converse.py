"""Bedrock's Converse (`/model/ID/converse`, `/converse-stream`): what is asked for, and how large it can get.

It reads plain JSON values; it makes no calls and knows no SDK. The fields are those of botocore 1.44's
model of `bedrock-runtime`. https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from .anthropic import LEAST_THINKING, TOOL_PROMPT
from .bounds import CacheWrites, RequestBound
from .fields import NO_FIELDS, positive, read_fields
from .images import image_bound, unpublished
from .sizes import Around, Size, around, escaped_bytes, tool_bytes
from .tokens import byte_length, text_counter

CONVERSE = "converse"
"""The operation of Converse, streamed or not."""

_PATH = re.compile(r"/model/(?P<model>.+)/converse(?P<stream>-stream)?$")


def in_path(path: str) -> tuple[str, bool] | None:
    """The model, and whether a stream is asked for, where a path says them."""
    found = _PATH.search(path)
    return None if found is None else (found["model"], found["stream"] is not None)


# ── the prompt ─────────────────────────────────────────────────────────────────────────


class _Prompt:
    """Walks a prompt, and adds up an upper bound of its tokens."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.claude = "claude" in model
        self.margin: Around = around(model)
        self.count = text_counter(model)
        self.tokens = 0
        self.texts = 0
        """Texts that are not empty, each at least a token."""
        self.others = 0
        self.writes: CacheWrites = "none"
        """The longest life that a write to the cache is asked for."""
        self.features: dict[str, str] = {}

    def refuse(self, feature: str, why: str) -> None:
        self.features.setdefault(feature, why)

    def text(self, text: object) -> None:
        if isinstance(text, str):
            self.tokens += self.count(text)
            self.texts += text != ""
        elif text is not None:
            self.json(text)

    def json(self, value: object) -> None:
        """What is free JSON: templates of other models than Claude may escape it once more."""
        written = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
        self.tokens += byte_length(written) if self.claude else escaped_bytes(written)

    def blocks(self, blocks: object) -> None:
        for block in blocks if isinstance(blocks, (list, tuple)) else [blocks]:
            if block is not None:
                self.block(block)

    def block(self, block: object) -> None:
        """One block of content: a union, of which one member is there."""
        self.tokens += self.margin.part
        if not isinstance(block, Mapping):
            self.json(block)
            return
        for name, value in block.items():
            reader = _BLOCKS.get(str(name))
            if reader is not None:
                reader(self, value)
            elif name in _COUNTED:
                self.others += 1
                self.json(value)
            elif value is not None:
                self.refuse(f"part:{name}", f"Content of the unknown kind {name!r} may be billed as anything")

    # What blocks there are: `_BLOCKS` has the names.

    def of_image(self, image: Any) -> None:
        most = image_bound(self.model)
        if most is None:
            self.refuse("image", unpublished(self.model))
        else:
            self.tokens += most

    def of_document(self, document: Any) -> None:
        source = document.get("source") if isinstance(document, Mapping) else None
        if not isinstance(source, Mapping) or not source.keys() <= {"text", "content"}:
            self.refuse("file", "The pages of a file become text and images that only the provider counts")
            return
        self.text(source.get("text"))
        self.blocks(source.get("content"))
        self.json({name: value for name, value in document.items() if name != "source"})

    def of_video(self, video: Any) -> None:
        self.refuse("video", "The length of a video is not known before it is sent")

    def of_audio(self, audio: Any) -> None:
        self.refuse("input_audio", "The length of an audio input is not known before it is sent")

    def of_result(self, result: Any) -> None:
        self.others += 1
        if not isinstance(result, Mapping):
            self.json(result)
            return
        self.blocks(result.get("content"))
        self.json({name: value for name, value in result.items() if name != "content"})

    def of_guarded(self, guarded: Any) -> None:
        for name, value in guarded.items() if isinstance(guarded, Mapping) else ():
            if name == "image":
                self.of_image(value)
            else:
                self.json(value)

    def of_point(self, point: Any) -> None:
        """A checkpoint of the cache: https://docs.aws.amazon.com/bedrock/latest/userguide/prompt-caching.html"""
        hour = not isinstance(point, Mapping) or point.get("ttl", "5m") != "5m"
        self.writes = "1h" if hour or self.writes == "1h" else "5m"

    def tools(self, tools: object) -> int:
        """How many are defined."""
        many = 0
        self.tokens += self.margin.tools + (TOOL_PROMPT if self.claude else 0)
        for tool in tools if isinstance(tools, (list, tuple)) else [tools]:
            for name, value in tool.items() if isinstance(tool, Mapping) else ():
                if name == "toolSpec":
                    many += 1
                    self.tokens += self.margin.message
                    if self.claude:
                        self.json(value)
                    else:
                        self.tokens += tool_bytes(value)
                elif name == "cachePoint":
                    self.of_point(value)
                else:
                    named = value.get("name") if isinstance(value, Mapping) else None
                    self.refuse(str(named or name), f"The tool {named or name!r} is run by the provider")
        return many


_BLOCKS = {
    "text": _Prompt.text,
    "image": _Prompt.of_image,
    "document": _Prompt.of_document,
    "video": _Prompt.of_video,
    "audio": _Prompt.of_audio,
    "toolResult": _Prompt.of_result,
    "guardContent": _Prompt.of_guarded,
    "cachePoint": _Prompt.of_point,
}
# Blocks whose whole content is in the request: what was thought, asked of tools, and found by them.
_COUNTED = frozenset(
    {"toolUse", "reasoningContent", "citationsContent", "searchResult", "toolAddition", "toolRemoval", "json"}
)


# ── requests ───────────────────────────────────────────────────────────────────────────


def bound_request(
    body: Mapping[str, Any], *, provider: str | None = None, allowed: frozenset[str] = NO_FIELDS
) -> RequestBound:
    """See `wires.bound_request`. The model is in `body`, wherever it is sent.

    Raises:
        ConfigError: a field that the bound depends on has an impossible value.
    """
    prompt = _Prompt(str(body.get("model") or "").lower())
    effects = read_fields(CONVERSE, body, provider, allowed)
    prompt.features.update(effects.features)
    margin = prompt.margin
    for value in effects.counted:
        prompt.tokens += margin.part
        prompt.json(value)
    system = body.get("system")
    if system:
        prompt.tokens += margin.message
        prompt.blocks(system)
    config = body.get("toolConfig")
    tools = config.get("tools") if isinstance(config, Mapping) else None
    declared = prompt.tools(tools) if tools else 0
    messages = body.get("messages")
    messages = list(messages) if isinstance(messages, (list, tuple)) else []
    for message in messages:
        prompt.tokens += margin.message
        prompt.blocks(message.get("content") if isinstance(message, Mapping) else message)
    inference = body.get("inferenceConfig")
    limit = inference.get("maxTokens") if isinstance(inference, Mapping) else None
    roles = [message.get("role") if isinstance(message, Mapping) else None for message in messages]
    users, assistants = roles.count("user"), roles.count("assistant")
    surroundings = margin.request + margin.message * (len(messages) + bool(system))
    if tools:
        surroundings += margin.tools + (TOOL_PROMPT if prompt.claude else 0)
    size = Size(
        prompt.tokens + margin.request,
        surroundings,
        prompt.texts,
        1 if system else 0,
        users,
        assistants,
        len(roles) - users - assistants + prompt.others,
        declared,
    )
    return RequestBound(
        input_tokens=None if effects.stored else size.total,
        extra_input=size.total if effects.stored else 0,
        output_limit=None if limit is None else positive("inferenceConfig.maxTokens", limit),
        limit_fields=("inferenceConfig.maxTokens",),
        service_tier=effects.tier,
        features=prompt.features,
        multiplier=effects.multiplier,
        tier_multiplier=effects.tier_multiplier,
        # A limit below the least that may be thought would be refused.
        least_output=LEAST_THINKING + 1 if effects.below else 0,
        below_limit=effects.below,
        size=None if effects.stored or prompt.features else size,
        cache_writes=prompt.writes,
    )
