"""Tokens by class, read from the shapes in which providers report them.

Counts are totals with breakdowns, as providers send them: `input_tokens` includes the
cached ones, `output_tokens` includes the reasoning ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Usage:
    """What one provider call consumed, in tokens.

    `cache_write_1h_tokens` are those of `cache_write_tokens` that the provider keeps for an hour.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    cache_write_1h_tokens: int = 0

    def __post_init__(self) -> None:
        for name, value in self.__dict__.items():
            if type(value) is not int or value < 0:
                raise ValueError(f"{name} is a whole number of tokens, not {value!r}")

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def from_openai(usage: object) -> Usage | None:
    """Usage from an OpenAI-shaped `usage` object; None if there is none that can be read.

    Reads chat completions, completions and embeddings (`prompt_tokens`) and responses
    (`input_tokens`): https://platform.openai.com/docs/api-reference/chat/object and
    https://platform.openai.com/docs/api-reference/responses/object. Endpoints that leave
    thinking tokens out of `completion_tokens` (Gemini's and xAI's) still count them in
    `total_tokens`, so the larger of the two is what was billed as output.
    """
    if not isinstance(usage, Mapping):
        return None
    prompt = _count(usage, "prompt_tokens", "input_tokens")
    if prompt is None:
        return None
    output = _count(usage, "completion_tokens", "output_tokens") or 0
    total = _count(usage, "total_tokens") or 0
    output = max(output, total - prompt)
    inputs = _details(usage, "prompt_tokens_details", "input_tokens_details", "input_token_details")
    outputs = _details(usage, "completion_tokens_details", "output_tokens_details", "output_token_details")
    cached = min(_count(inputs, "cached_tokens") or 0, prompt)
    return Usage(
        input_tokens=prompt,
        output_tokens=output,
        cached_input_tokens=cached,
        cache_write_tokens=min(
            _count(inputs, "cache_write_tokens", "cache_creation_tokens") or 0, prompt - cached
        ),
        reasoning_tokens=min(_count(outputs, "reasoning_tokens") or 0, output),
        input_audio_tokens=min(_count(inputs, "audio_tokens") or 0, prompt),
        output_audio_tokens=min(_count(outputs, "audio_tokens") or 0, output),
    )


def _count(usage: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = usage.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return None


def _details(usage: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    for name in names:
        value = usage.get(name)
        if isinstance(value, Mapping):
            return value
    return {}
