"""What was masked in a request, put back into its reply: whole, or as a stream passes, wherever it is cut.

It stands behind the reader that meters a reply, so that what is counted is what the provider has sent. Into
streams of binary frames (Bedrock's) nothing is put back: their placeholders pass as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from ..wire import ReplyReader, SSEReader
from ..wire.frames import FrameReader
from ..wire.replies import parse_json

if TYPE_CHECKING:
    from ..policy.placeholders import Restorer

_EVENT_END = re.compile(rb"(?:\r\n|\r(?!\n)|\n)(?:\r\n|\r(?!\n)|\n)")
_QUOTED = ("arguments", "partial_json")


class RestoringReader:
    """A `ReplyReader` whose reply passes with what was masked put back.

    Args:
        reader: what meters the reply.
    """

    def __init__(self, reader: ReplyReader, restorer: Restorer) -> None:
        self._reader = reader
        self._restorer = restorer
        self._buffer = bytearray()
        self._last: dict[Any, dict[str, Any]] = {}
        """By text that is streamed: the last event that had a piece of it."""

    @property
    def events(self) -> SSEReader | FrameReader | None:
        """The reader of the events, if it is events."""
        return self._reader.events

    @property
    def done(self) -> bool:
        """Whether the stream has said that it is over."""
        return self._reader.done

    def feed(self, data: bytes) -> bytes:
        """What of `data`, and of what came before, can be passed on now."""
        data = self._reader.feed(data)
        if isinstance(self._reader.events, FrameReader):
            return data
        self._buffer += data
        if self._reader.events is None:
            return b""  # a body is put right when all of it is there
        return self._whole_events()

    def _whole_events(self) -> bytes:
        out: list[bytes] = []
        start = 0
        while (found := _EVENT_END.search(self._buffer, start)) is not None:
            if found.end() == len(self._buffer) and found.group().endswith(b"\r") and not self._reader.done:
                break  # half of the end of a line, perhaps
            out.append(self._event(bytes(self._buffer[start : found.end()])))
            start = found.end()
        del self._buffer[:start]
        return b"".join(out)

    def finish(self) -> bytes:
        """What is left to be passed on, now that the body is over."""
        self._buffer += self._reader.finish()
        if isinstance(self._reader.events, FrameReader):
            return bytes(self._buffer)
        if self._reader.events is None:
            return restored_body(bytes(self._buffer), self._restorer)
        out = self._whole_events()
        rest, self._buffer = bytes(self._buffer), bytearray()
        return out + (self._event(rest) if rest.strip() else rest) + self._let_go(None)

    def _event(self, event: bytes) -> bytes:
        lines = event.splitlines()
        data = b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))
        if not data:
            return event
        if data.strip().startswith(b"[DONE]"):
            return self._let_go(None) + event
        try:
            body = parse_json(data)
        except ValueError:
            return event
        if not isinstance(body, dict):
            return event
        pieces = dict(_pieces(body))
        before = self._let_go(body) if self._restorer.holding else b""
        for channel, (holder, name) in pieces.items():
            quoted = name in _QUOTED or "arguments" in str(body.get("type"))
            holder[name] = self._restorer.feed(channel, holder[name], quoted=quoted)
        marks = {(id(holder), name) for holder, name in pieces.values()}
        body = _others(body, self._restorer, marks)
        for channel in pieces:
            self._last[channel] = body
        head = b"".join(
            line + b"\n"
            for line in lines
            if line and not line.startswith(b"data:") and not line.startswith(b":")
        )
        return before + head + b"data: " + to_json(body) + b"\n\n"

    def _let_go(self, body: Mapping[str, Any] | None) -> bytes:
        """What was held back of texts that have come to their end with this event; None: of all."""
        out: list[bytes] = []
        for channel in self._restorer.holding:
            if body is not None and not _ends(channel, body):
                continue
            rest = self._restorer.rest(channel)
            out.append(_with_piece(self._last.get(channel), channel, rest))
        return b"".join(out)


def restored_body(content: bytes, restorer: Restorer) -> bytes:
    """A reply that came whole, with what was masked put back."""
    try:
        body = parse_json(content)
    except ValueError:
        try:
            return restorer.whole(content.decode()).encode()
        except UnicodeDecodeError:
            return content
    made = restorer.value(body)
    return content if made is body else to_json(made)


# ── where the pieces of streamed texts are ─────────────────────────────────────────────


def _pieces(body: dict[str, Any]) -> Iterator[tuple[Any, tuple[dict[str, Any], str]]]:
    """The pieces of texts in an event: which text, and where the piece is."""
    choices = body.get("choices")
    if isinstance(choices, list):
        for choice in choices:
            if not isinstance(choice, dict):
                continue
            index = choice.get("index", 0)
            if isinstance(choice.get("text"), str):
                yield (index, "text"), (choice, "text")
            delta = choice.get("delta")
            if isinstance(delta, dict):
                yield from _pieces_in(delta, index)
        return
    delta = body.get("delta")
    where = (body.get("type"), body.get("item_id"), body.get("output_index"), body.get("content_index"))
    if isinstance(delta, str):
        yield (*where, body.get("summary_index"), body.get("index")), (body, "delta")
    elif isinstance(delta, dict):
        for name in ("text", "partial_json", "thinking"):
            if isinstance(delta.get(name), str):
                yield (body.get("index"), name), (delta, name)
        if isinstance(delta.get("message"), dict):
            yield from _cohere_pieces(delta["message"], body.get("index"))


def _cohere_pieces(message: dict[str, Any], index: Any) -> Iterator[tuple[Any, tuple[dict[str, Any], str]]]:
    """Those of a message that Cohere streams: https://docs.cohere.com/v2/docs/streaming"""
    call = message.get("tool_calls")
    function = call.get("function") if isinstance(call, dict) else None
    for holder, name in (
        (message.get("content"), "text"),
        (message.get("content"), "thinking"),
        (message, "tool_plan"),
        (function, "arguments"),
    ):
        if isinstance(holder, dict) and isinstance(holder.get(name), str):
            yield (index, name), (holder, name)


def _pieces_in(delta: dict[str, Any], index: Any) -> Iterator[tuple[Any, tuple[dict[str, Any], str]]]:
    for name, value in delta.items():
        if isinstance(value, str) and name not in ("role", "id", "type"):
            yield (index, name), (delta, name)
    call = delta.get("function_call")
    if isinstance(call, dict) and isinstance(call.get("arguments"), str):
        yield (index, "function_call"), (call, "arguments")
    calls = delta.get("tool_calls")
    for place, each in enumerate(calls if isinstance(calls, list) else ()):
        function = each.get("function") if isinstance(each, dict) else None
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            yield (index, "tool", each.get("index", place)), (function, "arguments")


def _others(body: Any, restorer: Restorer, marks: set[tuple[int, str]]) -> Any:
    """The event with all its complete texts put right; pieces are already."""
    if isinstance(body, dict):
        return {
            name: value
            if (id(body), name) in marks
            else restorer.whole(value, quoted=name in _QUOTED)
            if isinstance(value, str)
            else _others(value, restorer, marks)
            for name, value in body.items()
        }
    if isinstance(body, list):
        return [restorer.whole(v) if isinstance(v, str) else _others(v, restorer, marks) for v in body]
    return body


def _ends(channel: Any, body: Mapping[str, Any]) -> bool:
    """Whether the text of a channel has come to its end with this event, which has no piece of it."""
    choices = body.get("choices")
    if isinstance(choices, list):
        return any(
            isinstance(c, dict) and c.get("finish_reason") and c.get("index", 0) == channel[0]
            for c in choices
        )
    kind = str(body.get("type"))
    if kind.endswith((".delta", "_delta", "-delta")):
        return False
    if isinstance(channel[0], str) and body.get("item_id") is not None:
        return channel[1] == body.get("item_id") and channel[0].removesuffix(".delta") == kind.removesuffix(
            ".done"
        )
    return kind.endswith(("_stop", "-end", ".completed", ".incomplete", ".failed", ".done"))


def _with_piece(last: dict[str, Any] | None, channel: Any, text: str) -> bytes:
    """The last event of a text once more, with the rest of it as its piece."""
    if last is None or not text:
        return b""
    found = next(((h, n) for c, (h, n) in _pieces(last) if c == channel), None)
    if found is None:
        return b""
    holder, name = found
    holder[name] = text
    head = b"event: " + str(last["type"]).encode() + b"\n" if isinstance(last.get("type"), str) else b""
    return head + b"data: " + to_json(last) + b"\n\n"
