"""Whether a request that was written for one model can be sent to another, as far as it is known.

What a model takes besides (images, tools, schemas) is not in any list: who names a model that stands in
for another chooses one that takes what is sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_THINKERS = re.compile(r"(?:^|/)(?:o\d|gpt-[5-9](?!.*-chat))")
"""OpenAI's models that reason: https://platform.openai.com/docs/guides/reasoning"""
_FOR_THINKERS = ("reasoning", "reasoning_effort", "verbosity", "max_completion_tokens")
_NOT_FOR_THINKERS = (
    "max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty", "logprobs", "top_logprobs",
    "logit_bias", "prediction", "stop",
)  # fmt: skip
"""https://platform.openai.com/docs/guides/latest-model: what they refuse, and others take."""
_OLDER_CLAUDE = re.compile(r"claude-(?:[12]|instant|3(?!-7)|3\.(?!7))")
"""Those that do not think: https://platform.claude.com/docs/en/build-with-claude/extended-thinking"""
_OF_FEW_CLAUDES = ("speed", "inference_geo", "output_config", "effort", "thread", "context_management")
"""https://platform.claude.com/docs/en/api/messages: fields that only newer ones take."""


def may_stand_in(body: Mapping[str, Any], asked: str) -> bool:
    """Whether the model that `body` names is known to refuse nothing in it that `asked` took.

    Args:
        body: the request, with the model that would stand in.
        asked: the model that it was written for.
    """
    model = str(body.get("model") or "").lower()
    asked = asked.lower()
    if "claude" in model or "claude" in asked:
        if any(body.get(name) is not None for name in _OF_FEW_CLAUDES):
            return False
        return body.get("thinking") is None or _OLDER_CLAUDE.search(model) is None
    thinks = _THINKERS.search(model) is not None
    if thinks == (_THINKERS.search(asked) is not None):
        return True
    refused = _NOT_FOR_THINKERS if thinks else _FOR_THINKERS
    return all(body.get(name) is None for name in refused)
