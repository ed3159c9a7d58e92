"""Which tools a conversation shows to have been called, step by step from its end, in the shape of any wire.

A call is known by its tool's name and by a hash of that with its arguments; nothing of these is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Step = Mapping[bytes, str]
"""The calls that a model has asked for at once: the names of their tools, by a hash of the whole call."""

_ASSISTANT = ("assistant", "ai", "model")
_USER = ("user", "human")
_ITEMS = ("function_call", "custom_tool_call", "mcp_call", "local_shell_call", "computer_call", "shell_call")
"""Calls among the items of OpenAI's Responses: https://platform.openai.com/docs/api-reference/responses"""


def conversation_of(body: Mapping[str, Any]) -> Sequence[Any]:
    """What a request says has been said so far: messages, contents, or items of OpenAI's Responses."""
    for name in ("messages", "contents", "input"):
        said = body.get(name)
        if isinstance(said, (list, tuple)):
            return said
    return ()


def steps_back(conversation: Sequence[Any]) -> Iterator[Step]:
    """The model's steps since a person has last said something, the newest first; one without calls is empty.

    Args:
        conversation: messages or items, the newest last; what has another shape is passed over.
    """
    items: dict[bytes, str] = {}
    for said in reversed(conversation):
        if not isinstance(said, Mapping):
            continue
        kind = str(said.get("type") or "")
        if kind in _ITEMS:
            items.update(_call(said.get("name") or kind, said.get("arguments") or said.get("input")))
            continue
        if kind.endswith(("_output", "_response")) and items:
            yield items  # those before it are of another step
            items = {}
        role = said.get("role")
        if role in _USER and not _is_result(said):
            break
        if role in _ASSISTANT and not items:
            calls = dict(_calls_in(said))
            if calls or "status" not in said:  # an item of Responses may stand beside the calls of its step
                yield calls
    if items:
        yield items


def _calls_in(message: Mapping[str, Any]) -> Iterator[tuple[bytes, str]]:
    for call in message.get("tool_calls") or ():
        if isinstance(call, Mapping):
            function = call.get("function") or call.get("custom") or call
            if isinstance(function, Mapping):
                yield from _call(
                    function.get("name"),
                    function.get("arguments", function.get("args", function.get("input"))),
                ).items()
    function = message.get("function_call")
    if isinstance(function, Mapping):
        yield from _call(function.get("name"), function.get("arguments")).items()
    for block in _blocks(message):
        inner = block.get("functionCall") or block.get("function_call") or block.get("toolUse")
        if isinstance(inner, Mapping):
            yield from _call(inner.get("name"), inner.get("args", inner.get("input"))).items()
        elif block.get("type") in ("tool_use", "tool_call"):
            yield from _call(block.get("name"), block.get("input", block.get("args"))).items()


def _blocks(message: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    content = message.get("content") or message.get("parts")
    if isinstance(content, (list, tuple)):
        yield from (block for block in content if isinstance(block, Mapping))


def _is_result(message: Mapping[str, Any]) -> bool:
    """Whether a user's message is what a tool has answered, as Anthropic, Google and Bedrock have it."""
    return any(
        block.get("type") == "tool_result" or "functionResponse" in block or "toolResult" in block
        for block in _blocks(message)
    )


def _call(name: object, arguments: object) -> dict[bytes, str]:
    if not isinstance(name, str) or not name:
        return {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            pass  # the same text is the same arguments
    said = json.dumps([name, arguments], sort_keys=True, default=str)
    return {hashlib.blake2b(said.encode("utf-8", "replace"), digest_size=16).digest(): name}
