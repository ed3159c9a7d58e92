"""The sandbox's "model": answers that depend on the request alone, and honest token counts.

It makes no sense of what it is told. It answers with words that are one token each, calls
the first tool it is offered once, and fills in a JSON schema when one is asked for.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..wire.tokens import exact_counter

_SENTENCE = (
    "the cost of a call is known before it is made and the budget holds so that no one is "
    "surprised by the bill at the end of the month while every token has a name and a place"
)
# Each is one token, with the blank before it, in the encodings that OpenAI publishes.
_WORDS = tuple(_SENTENCE.split())


def count_tokens(text: str, model: str) -> int:
    """Tokens of `text`: by the model's tokenizer where it is installed, else four bytes each."""
    exact = exact_counter(model)
    return exact(text) if exact else -(-len(text.encode("utf-8", "replace")) // 4)


def prompt_tokens(value: Any, model: str) -> int:
    """Tokens of everything textual inside a prompt; images at a common rate."""
    if isinstance(value, str):
        return count_tokens(value, model)
    if isinstance(value, Mapping):
        if value.get("type") in ("image_url", "input_image"):
            return 85
        return sum(prompt_tokens(v, model) for k, v in value.items() if k not in ("type", "role", "id"))
    if isinstance(value, Sequence):
        return sum(prompt_tokens(v, model) for v in value)
    return 0 if value is None else 1


@dataclass
class Answer:
    """One generated choice."""

    words: list[str] = field(default_factory=list)
    tool: tuple[str, str] | None = None
    reasoning: int = 0
    truncated: bool = False
    tokens: int = 0

    @property
    def text(self) -> str:
        return "".join(self.words)


def generate(
    prompt: Any,
    model: str,
    *,
    natural: int,
    limit: int | None,
    tools: Sequence[Mapping[str, Any]] = (),
    schema: Mapping[str, Any] | None = None,
    choice: int = 0,
) -> Answer:
    """Answer `prompt`.

    Args:
        natural: tokens the answer would have without a limit.
        limit: the most tokens, reasoning included.
    """
    seed = hashlib.sha256(json.dumps([prompt, model, choice], sort_keys=True, default=str).encode()).digest()
    rng = random.Random(seed)
    answer = Answer()
    if model.startswith(("o1", "o3", "o4", "gpt-5")):
        answer.reasoning = 64 if limit is None else min(64, limit)
    room = None if limit is None else limit - answer.reasoning
    if tools:
        function = tools[0].get("function") or tools[0]
        arguments = json.dumps(_example(function.get("parameters") or {}, rng))
        answer.tool = (str(function.get("name")), arguments)
        spoken = count_tokens(arguments, model) + count_tokens(answer.tool[0], model)
        if room is not None and spoken > room:
            answer.tool, answer.truncated = None, True
        answer.tokens = answer.reasoning + (spoken if answer.tool else room or 0)
        return answer
    if schema is not None:
        text = json.dumps(_example(schema, rng))
        answer.words = [text[i : i + 4] for i in range(0, len(text), 4)]
    else:
        answer.words = [(" " if i else "") + rng.choice(_WORDS) for i in range(natural)]
    if room is not None and len(answer.words) > room:
        answer.words, answer.truncated = answer.words[: max(0, room)], True
    answer.tokens = answer.reasoning + len(answer.words)
    return answer


def _example(schema: Mapping[str, Any], rng: random.Random, root: Mapping[str, Any] | None = None) -> Any:
    """A value that a JSON schema admits."""
    root = schema if root is None else root
    if "$ref" in schema:
        target: Any = root
        for part in str(schema["$ref"]).lstrip("#/").split("/"):
            target = target[part]
        return _example(target, rng, root)
    if "enum" in schema:
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    for union in ("anyOf", "oneOf", "allOf"):
        if schema.get(union):
            return _example(schema[union][0], rng, root)
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {k: _example(v, rng, root) for k, v in (schema.get("properties") or {}).items()}
    if kind == "array":
        return [_example(schema.get("items") or {"type": "string"}, rng, root)]
    return {"string": rng.choice(_WORDS), "integer": 1, "number": 1.5, "boolean": True}.get(kind)


def embedding(text: Any, dimensions: int) -> list[float]:
    """A unit-length vector that depends on the words of `text`, so that like finds like."""
    vector = [0.0] * dimensions
    for word in str(text).lower().split() or [""]:
        digest = hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest()
        vector[int.from_bytes(digest[:4], "big") % dimensions] += 1.0 if digest[4] & 1 else -1.0
    length = sum(x * x for x in vector) ** 0.5 or 1.0
    return [x / length for x in vector]
