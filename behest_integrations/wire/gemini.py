"""Gemini's own requests (`generateContent`, `embedContent`): what is asked for, and how large it can get.

It reads plain JSON values; it makes no calls and knows no SDK. The same requests go to the Gemini API, to
Vertex and to Firebase. JSON in Google's APIs may have names in camel case or with underscores: both are read.
https://ai.google.dev/api/generate-content, https://ai.google.dev/api/embeddings
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from ..rules.names import read_name
from .bounds import RequestBound
from .fields import NO_EFFECTS, NO_FIELDS, positive, read_fields
from .images import image_bound, unpublished
from .sizes import Around, Size, around, tool_bytes
from .tokens import byte_length, text_counter

GENERATE = "generate_content"
"""The operation of `generateContent` and `streamGenerateContent`."""
EMBED = "embed_content"
"""The operation of `embedContent` and `batchEmbedContents`."""
OPERATIONS = frozenset({GENERATE, EMBED})

_PATH = re.compile(
    r"/(?:models|(?P<kind>tunedModels|endpoints))/(?P<model>[^/:]+)"
    r":(?P<verb>generateContent|streamGenerateContent|embedContent|batchEmbedContents)$"
)


def in_path(path: str) -> tuple[str, str, bool | None] | None:
    """The operation, the model, and whether a stream is asked for, where a path says them."""
    found = _PATH.search(path)
    if found is None:
        return None
    # What is one's own is no model of the price list, whatever its name.
    model = f"{found['kind']}/{found['model']}" if found["kind"] else found["model"]
    if found["verb"] in ("embedContent", "batchEmbedContents"):
        return EMBED, model, None
    return GENERATE, model, found["verb"] == "streamGenerateContent"


# ── the prompt ─────────────────────────────────────────────────────────────────────────

# Models that answer in images, sound or video unless they are told not to; these have prices of their own:
# https://ai.google.dev/gemini-api/docs/pricing
_MAKERS = ("*-image*", "*banana*", "*omni*", "*-live*", "imagen*", "veo*", "lyria*")

# What the provider runs, or counts alone: a tool's name, and the feature that allows it.
# https://ai.google.dev/gemini-api/docs/tools
_HOSTED: Mapping[str, str] = {
    "googleSearch": "web_search",
    "googleSearchRetrieval": "web_search",
    "enterpriseWebSearch": "web_search",
    "parallelAiSearch": "web_search",
    "exaAiSearch": "web_search",
    "googleMaps": "google_maps",
    "codeExecution": "code_execution",
    "urlContext": "url_context",
    "fileSearch": "file_search",
    "retrieval": "retrieval",
    "computerUse": "computer_use",
    "mcpServers": "mcp",
}
_MEDIA = {"image": "image", "audio": "input_audio", "video": "video"}


class _Prompt:
    """Walks a prompt, and adds up an upper bound of its tokens.

    Bytes bound the tokens of texts: the vocabulary is SentencePiece's, with bytes for what is not in it
    (https://ai.google.dev/gemini-api/docs/tokens). Signatures hold thoughts, and are longer than these.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self.margin: Around = around(model)
        self.count = text_counter(model)
        self.tokens = 0
        self.texts = 0
        """Texts that are not empty, each at least a token."""
        self.others = 0
        self.features: dict[str, str] = {}

    def refuse(self, feature: str, why: str) -> None:
        self.features.setdefault(feature, why)

    def json(self, value: object) -> None:
        self.tokens += byte_length(json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str))

    def content(self, content: object) -> None:
        """A message, or what stands for one: `{"role": …, "parts": […]}`."""
        self.tokens += self.margin.message
        if not isinstance(content, Mapping):
            self.json(content)
            return
        parts = content.get("parts")
        for part in parts if isinstance(parts, (list, tuple)) else [parts]:
            if part is not None:
                self.part(part)
        left = {n: v for n, v in content.items() if n not in ("role", "parts")}
        if left:
            self.json(left)

    def part(self, part: object) -> None:
        self.tokens += self.margin.part
        if not isinstance(part, Mapping):
            self.json(part)
            return
        left = {}
        for name, value in part.items():
            known = camel(str(name))
            if known == "text" and isinstance(value, str):
                self.tokens += self.count(value)
                self.texts += value != ""
            elif known == "inlineData":
                self.inline(value)
            elif known == "fileData":
                self.stored(value)
            elif known in _COUNTED:
                left[name] = value
            else:
                self.refuse(f"part:{name}", f"Content of the unknown kind {name!r} may be billed as anything")
        if left:
            self.others += 1
            self.json(left)
            if any(isinstance(v, Mapping) and v.get("parts") for v in left.values()):
                self.refuse("file", "What a tool answers with, beside JSON, is counted by the provider alone")

    def stored(self, data: object) -> None:
        """A file at the provider, or at an address: an image has a bound whatever its size."""
        said = {camel(str(n)): v for n, v in data.items()} if isinstance(data, Mapping) else {}
        if str(said.get("mimeType")).startswith("image/"):
            self.json(data)
            self.inline(data)
        else:
            self.refuse("file", "What is read of an uploaded file is counted by the provider alone")

    def inline(self, data: object) -> None:
        said = {camel(str(n)): v for n, v in data.items()} if isinstance(data, Mapping) else {}
        kind = str(said.get("mimeType") or "").partition("/")[0]
        most = image_bound(self.model) if kind == "image" else None
        if most is not None:
            self.tokens += most
        elif kind == "image":
            self.refuse("image", unpublished(self.model))
        elif kind == "text":
            self.json(said.get("data"))  # in Base64: longer than the text
        else:
            feature = _MEDIA.get(kind, "file")
            self.refuse(
                feature, f"How many tokens data of the type {said.get('mimeType')!r} is, is not known"
            )

    def tools(self, tools: Iterable[Any]) -> int:
        """How many are defined."""
        many = 0
        self.tokens += self.margin.tools
        for tool in tools:
            if not isinstance(tool, Mapping):
                self.json(tool)
                continue
            for name, value in tool.items():
                known = camel(str(name))
                if known == "functionDeclarations" and isinstance(value, (list, tuple)):
                    many += len(value)
                    self.tokens += sum(self.margin.message + tool_bytes(one) for one in value)
                elif value is not None:
                    feature = _HOSTED.get(known, known)
                    self.refuse(feature, f"The tool {name!r} is run, or counted, by the provider alone")
        return many


_COUNTED = frozenset(
    {"thought", "thoughtSignature", "functionCall", "functionResponse", "executableCode",
     "codeExecutionResult", "toolCall", "toolResponse", "partMetadata", "mediaResolution"}
)  # fmt: skip
"""Parts whose whole content is in the request: what was thought, asked of tools, and found by them."""
_UNDERSCORE = re.compile(r"_([a-z0-9])")


@lru_cache(maxsize=4096)
def camel(name: str) -> str:
    """A field's name in camel case, however it is written."""
    return _UNDERSCORE.sub(lambda found: found[1].upper(), name)


@lru_cache(maxsize=1024)
def _is(model: str, pattern: str) -> bool:
    return fnmatchcase(read_name(model).plain, pattern)


_INSIDE = frozenset({"generationConfig", "thinkingConfig", "toolConfig", "config"})


def _named(body: Mapping[str, Any], twice: list[str], path: str = "") -> dict[str, Any]:
    """A request with its own fields' names in camel case; those that are in it twice are noted."""
    named: dict[str, Any] = {}
    for name, value in body.items():
        known = camel(str(name))
        if known in named:
            twice.append(f"{path}{name}")
        if known in _INSIDE and isinstance(value, Mapping):
            value = _named(value, twice, f"{path}{known}.")
        named[known] = value
    return named


# ── requests ───────────────────────────────────────────────────────────────────────────


def bound_request(
    operation: str,
    body: Mapping[str, Any],
    *,
    provider: str | None = None,
    allowed: frozenset[str] = NO_FIELDS,
) -> RequestBound:
    """See `wires.bound_request`; of Gemini's operations. The model is in `body`, wherever it is sent.

    Raises:
        ConfigError: a field that the bound depends on has an impossible value.
    """
    twice: list[str] = []
    named = _named(body, twice)
    prompt = _Prompt(str(body.get("model") or ""))
    for name in twice:
        prompt.refuse(f"field:{name}", f"The request has the field {name!r} twice, in both of its spellings")
    if operation == EMBED:
        return _bound_embed(named, prompt, provider, allowed)
    return _bound_generate(body, named, prompt, provider, allowed)


def _bound_embed(
    named: Mapping[str, Any], prompt: _Prompt, provider: str | None, allowed: frozenset[str]
) -> RequestBound:
    requests = named.get("requests")
    for request in requests if isinstance(requests, (list, tuple)) else [named]:
        request = _named(request, []) if isinstance(request, Mapping) else {"content": request}
        effects = read_fields(EMBED, request, provider, allowed)
        prompt.features.update(effects.features)
        for value in effects.counted:
            prompt.json(value)
        prompt.content(request.get("content"))
    if requests is not None:
        beside = {n: v for n, v in named.items() if n not in ("requests", "model", "stream")}
        prompt.features.update(read_fields(EMBED, beside, provider, allowed).features)
    return RequestBound(
        prompt.tokens + prompt.margin.request,
        output_limit=0,
        features=prompt.features,
        slack=prompt.margin.request,
    )


def _bound_generate(
    body: Mapping[str, Any],
    named: Mapping[str, Any],
    prompt: _Prompt,
    provider: str | None,
    allowed: frozenset[str],
) -> RequestBound:
    effects = read_fields(GENERATE, named, provider, allowed)
    margin = prompt.margin
    if effects is not NO_EFFECTS:
        for value in effects.counted:
            prompt.tokens += margin.part
            prompt.json(value)
        prompt.features.update(effects.features)
    system = named.get("systemInstruction")
    if system is not None:
        prompt.content(system)
    tools = named.get("tools")
    declared = prompt.tools(tools if isinstance(tools, (list, tuple)) else [tools]) if tools else 0
    contents = named.get("contents")
    contents = list(contents) if isinstance(contents, (list, tuple)) else [contents]
    for content in contents:
        prompt.content(content)
    config = named.get("generationConfig")
    config = config if isinstance(config, Mapping) else {}
    limit = config.get("maxOutputTokens")
    made = {str(kind).lower() for kind in config.get("responseModalities") or ()}
    if not made and any(_is(prompt.model, pattern) for pattern in _MAKERS):
        prompt.refuse("image_output", f"Model {prompt.model!r} may answer in more than text")
    roles = [content.get("role") if isinstance(content, Mapping) else None for content in contents]
    total = prompt.tokens + margin.request
    users, models = sum(role in ("user", None) for role in roles), roles.count("model")
    size = Size(
        total,
        margin.request + margin.message * len(contents) + (margin.tools if tools else 0),
        prompt.texts,
        1 if system is not None else 0,
        users,
        models,
        len(roles) - users - models + prompt.others,
        declared,
    )
    return RequestBound(
        input_tokens=None if effects.stored else total,
        extra_input=total if effects.stored else 0,
        choices=effects.choices,
        extra_output=effects.extra_output,
        output_limit=None if limit is None else positive("generationConfig.maxOutputTokens", limit),
        limit_fields=(_spelt(body, "generation_config", "max_output_tokens"),),
        service_tier=effects.tier,
        output_audio=effects.output_audio,
        features=prompt.features,
        multiplier=effects.multiplier,
        tier_multiplier=effects.tier_multiplier,
        models=effects.models,
        below_limit=tuple(
            _spelt(body, "generation_config", "thinking_config", "thinking_budget") for _ in effects.below[:1]
        ),
        size=None if effects.stored or prompt.features else size,
        cache_writes="none",  # what is found in the cache is cheaper, and nothing is paid for being in it
    )


def _spelt(body: Mapping[str, Any], *names: str) -> str:
    """The path of a field, each of its names as the request spells it."""
    path = []
    level: Any = body
    for name in names:
        used = name if isinstance(level, Mapping) and name in level else camel(name)
        path.append(used)
        level = level.get(used) if isinstance(level, Mapping) else None
    return ".".join(path)
