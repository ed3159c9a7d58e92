"""OpenAI-shaped replies: what they say of their own cost, whole or as a stream passes.

Used by every door that sees the bytes. It makes no calls and knows no SDK.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..rules.usage import Usage, from_openai


@dataclass
class Reply:
    """What a reply said about its own cost, gathered from a body or from stream events."""

    usage: Usage | None = None
    model: str | None = None
    service_tier: str | None = None
    id: str | None = None
    pending: bool = False
    finished: set[int] = field(default_factory=set)
    final_usage: bool = False
    keep_text: bool = False
    text: list[str] = field(default_factory=list)

    def read(self, body: object) -> None:
        """Take in a whole reply, or the part of one that a stream event carries."""
        if not isinstance(body, Mapping):
            return
        inner = body.get("response")
        if isinstance(inner, Mapping):
            body = inner
        usage = from_openai(body.get("usage"))
        ended = False
        for choice in body.get("choices") or ():
            if isinstance(choice, Mapping) and choice.get("finish_reason"):
                self.finished.add(choice.get("index") or 0)
                ended = True
        if usage is not None:
            self.usage = usage
            # Some servers report running totals on every chunk; those are not the end.
            self.final_usage = ended or not body.get("choices")
        for name in ("model", "service_tier", "id"):
            value = body.get(name)
            if isinstance(value, str) and value:
                setattr(self, name, value)
        status = body.get("status")
        if isinstance(status, str):
            self.pending = status in ("queued", "in_progress")
        if self.keep_text:
            self.text.extend(filter(None, _texts(body)))


def _texts(body: Mapping[str, Any]) -> Iterator[str]:
    """The generated text in a chat chunk or a responses event (for estimates only)."""
    for choice in body.get("choices") or ():
        if isinstance(choice, Mapping):
            delta = choice.get("delta") or choice.get("message") or choice
            if isinstance(delta, Mapping):
                for key in ("content", "text", "refusal", "reasoning_content"):
                    if isinstance(delta.get(key), str):
                        yield delta[key]
                for call in delta.get("tool_calls") or ():
                    function = call.get("function") if isinstance(call, Mapping) else None
                    if isinstance(function, Mapping):
                        yield str(function.get("name") or "") + str(function.get("arguments") or "")
    kind = body.get("type")
    if isinstance(kind, str) and kind.endswith(".delta") and isinstance(body.get("delta"), str):
        yield body["delta"]


class SSEReader:
    """Takes server-sent events apart as bytes pass, and can hold one kind of event back.

    Feeding it arbitrary pieces of a stream gives the same stream back, event by event,
    less the usage event that the caller did not ask for.
    """

    def __init__(self, reply: Reply, *, hide_usage: bool) -> None:
        self.reply = reply
        self.hide_usage = hide_usage
        self.done = False
        self._buffer = b""

    def feed(self, data: bytes) -> bytes:
        """The part of the stream that can be passed on now."""
        self._buffer += data
        out: list[bytes] = []
        while True:
            match = _EVENT_END.search(self._buffer)
            if match is None:
                break
            event, self._buffer = self._buffer[: match.end()], self._buffer[match.end() :]
            if self._read(event):
                out.append(event)
        return b"".join(out)

    def finish(self) -> bytes:
        """What is left when the stream ends without a final blank line."""
        rest, self._buffer = self._buffer, b""
        return rest if not rest or self._read(rest) else b""

    def _read(self, event: bytes) -> bool:
        """Take in one event; False to hold it back."""
        data = b"\n".join(line[5:].lstrip(b" ") for line in event.splitlines() if line.startswith(b"data:"))
        if not data:
            return True
        if data.startswith(b"[DONE]"):
            self.done = True
            return True
        # Parsing every chunk would cost more than the rest of the meter; those that carry
        # what we need are few, and say so.
        wanted = (
            (b'"usage"' in data and not _NULL_USAGE.search(data))
            or self.reply.model is None
            or (b'"finish_reason"' in data and not _NULL_FINISH.search(data))
            or _RESPONSE_EVENT.search(data) is not None
        )
        if not wanted and not self.reply.keep_text:
            return True
        try:
            body = json.loads(data)
        except ValueError:
            return True
        self.reply.read(body)
        if isinstance(body, dict):
            kind = body.get("type")
            if kind in ("response.completed", "response.incomplete", "response.failed"):
                self.done = True
            if self.hide_usage and body.get("choices") == [] and isinstance(body.get("usage"), dict):
                return False
        return True


_NULL_USAGE = re.compile(rb'"usage"\s*:\s*null')
_NULL_FINISH = re.compile(rb'"finish_reason"\s*:\s*null')
_RESPONSE_EVENT = re.compile(rb'"type"\s*:\s*"response\.(?:created|completed|incomplete|failed)"')
_EVENT_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
