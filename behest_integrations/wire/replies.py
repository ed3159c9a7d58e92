"""Replies: what they say of their own cost, whole or as a stream passes.

Used by every door that sees the bytes. They are read as widely as clients read them: what an SDK
takes must not be a reply that we cannot read. It makes no calls and knows no SDK.

Over 500 lines: what is read of a body and of a stream is one reading.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from ..rules.usage import Usage, believable
from .frames import FrameReader, looks_like_frames
from .usage_shapes import find_usage, read_usage

_MOST_EVENT = 16 * 1024 * 1024
_MOST_BODY = 64 * 1024 * 1024
"""Bytes of one event, and of a body, that are kept until they can be read. What is longer passes
unread: it has an image in it, and then no usage of ours to hide, or is no answer at all."""


@dataclass
class Reply:
    """What a reply said about its own cost, gathered from a body or from stream events.

    Attributes:
        usage: what was told, if it can be true.
        pending: whether it has only been queued, to be generated later.
        choices: how many answers were asked for.
        finished: the indexes of those that have come to their end.
        ended: whether the reply has said itself that it is over, or is a body that came whole.
        error: whether it says that something failed, inside of a success of HTTP.
        heard: characters of the answer that were seen; not of the events that were not read.
        unread: events of a stream that carry some of the answer, and were not read.
        keep_text: whether to keep the text, for estimates.
        terms: what it says of that on which the price depends (``speed``, ``inference_geo``).
        uses: how often tools that the provider runs were used, by name; None: it does not tell.
    """

    usage: Usage | None = None
    model: str | None = None
    service_tier: str | None = None
    id: str | None = None
    pending: bool = False
    finished: set[int] = field(default_factory=set)
    keep_text: bool = False
    text: list[str] = field(default_factory=list)
    choices: int = 1
    ended: bool = False
    error: bool = False
    heard: int = 0
    unread: int = 0
    terms: dict[str, str] = field(default_factory=dict)
    uses: dict[str, int] | None = None
    _last: bool = False
    _broken: bool = False
    _begun: Mapping[str, Any] | None = None

    @property
    def final_usage(self) -> bool:
        """Whether `usage` is that of the whole reply: servers tell running totals, too, and a
        stream that breaks off or fails half way has no end."""
        return (
            self.usage is not None
            and not self._broken
            and (self.ended or (self._last and bool(self.finished)))
        )

    @property
    def answered(self) -> bool:
        """Whether there is anything of an answer in it."""
        return self.heard > 0 or self.unread > 0

    def read(self, body: object, *, size: int | None = None) -> None:
        """Take in a whole reply, or the part of one that a stream event carries.

        Args:
            size: bytes that it took, if known: saves looking for text that cannot be too much.
        """
        # JSON's objects are dicts: to ask the abstract class costs more than the rest of a reply.
        if type(body) is dict:
            pass
        elif isinstance(body, list):  # Gemini's stream, unless it is asked for as events
            for part in body:
                self.read(part)
            return
        elif not isinstance(body, Mapping):
            return
        outside = body
        inner = body.get("response")
        if inner is None and body.get("type") == "message_start":
            inner = body.get("message")
        if inner is not None and isinstance(inner, Mapping):
            body = inner
        choices = body.get("choices")
        if isinstance(choices, list):
            for choice in choices:
                if isinstance(choice, dict) and choice.get("finish_reason"):
                    self.finished.add(_index(choice))
        elif isinstance(body.get("candidates"), list):
            ended = [c for c in body["candidates"] if isinstance(c, dict) and c.get("finishReason")]
            self.finished.update(map(_index, ended))
        elif _has_ended(outside):
            self.finished.add(0)
        if body.get("error") or outside.get("error") or outside.get("type") == "error":
            self.failed()
        said = find_usage(outside)
        usage = None
        if said is not None:
            usage = read_usage(said if choices else self._completed(outside, said))
            if outside.get("type") in _ANTHROPIC:
                self._read_terms(said)
        if usage is None or size is None or size > 32 * usage.output_tokens:
            texts = list(filter(None, _texts(body)))
            self.heard += sum(map(len, texts))
            # An event with the whole response in it repeats what came before.
            if self.keep_text and (body is outside or not self.text):
                self.text.extend(texts)
        if usage is not None:
            self._take(usage, running=bool(choices) or "candidates" in body or self._begun is said)
        for name, gemini in (("model", "modelVersion"), ("service_tier", ""), ("id", "responseId")):
            value = body.get(name) or body.get(gemini)
            if isinstance(value, str) and value:
                setattr(self, name, value)
        status = body.get("status")
        if isinstance(status, str):
            self.pending = status in ("queued", "in_progress")

    def _take(self, usage: Usage, *, running: bool) -> None:
        # No request is without input: where that is told as 0, all of it is not to be trusted.
        if not usage.input_tokens or not believable(usage, text=self.heard, events=self.unread):
            return
        if self.usage is None or usage.total_tokens >= self.usage.total_tokens:
            self.usage = usage
        self._last = not running or len(self.finished) >= self.choices
        self._broken = False

    def _completed(self, body: Mapping[str, Any], said: Mapping[str, Any]) -> Mapping[str, Any]:
        """Anthropic's streams tell the input at their beginning, and the output at their end.
        https://docs.claude.com/en/docs/build-with-claude/streaming"""
        kind = body.get("type")
        if kind == "message_start":
            self._begun = said
        elif kind == "message_delta" and self._begun is not None:
            # A nought says nothing but of the output: what was told at the beginning stands.
            told = {name: value for name, value in said.items() if value or name == "output_tokens"}
            return {**self._begun, **told}
        return said

    def _read_terms(self, said: Mapping[str, Any]) -> None:
        """What Anthropic's usage says beside tokens: https://platform.claude.com/docs/en/api/messages"""
        for name in ("speed", "inference_geo"):
            value = said.get(name)
            if isinstance(value, str):
                self.terms[name] = value
        tier, tools = said.get("service_tier"), said.get("server_tool_use")
        if isinstance(tier, str):
            self.service_tier = tier
        if isinstance(tools, Mapping):
            uses = {name.removesuffix("_requests"): count for name, count in tools.items()}
            self.uses = {n: c for n, c in uses.items() if type(c) is int and c >= 0}
        elif self.uses is None:
            self.uses = {}

    def failed(self) -> None:
        """The reply says that something failed; usage that it tells from now on counts again."""
        self.error = self._broken = True


_ANTHROPIC = frozenset({"message", "message_start", "message_delta"})


def _index(choice: Mapping[str, Any]) -> int:
    index = choice.get("index")
    return index if isinstance(index, int) else 0


_TERMINAL = frozenset(
    {"response.completed", "response.incomplete", "response.failed", "message_stop", "message-end"}
)
_LAST_FRAME = "metadata"
"""https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStreamOutput.html"""
_ENDED = frozenset({"completed", "incomplete", "failed"})


def _has_ended(body: Mapping[str, Any]) -> bool:
    """Whether a reply of another API than OpenAI's chat says that all has been generated."""
    if body.get("stop_reason") or body.get("finish_reason") or body.get("stopReason"):
        return True
    if body.get("done") is True:
        return True
    if body.get("type") in _TERMINAL or (body.get("status") in _ENDED and body.get("object") == "response"):
        return True
    delta = body.get("delta")
    if isinstance(delta, Mapping) and (delta.get("stop_reason") or delta.get("finish_reason")):
        return True
    blocked = body.get(
        "promptFeedback"
    )  # Gemini's: https://ai.google.dev/api/generate-content#PromptFeedback
    return isinstance(blocked, Mapping) and bool(blocked.get("blockReason"))


# ── the text of an answer ──────────────────────────────────────────────────────────────

_PARTS = (
    "text", "content", "parts", "summary", "thinking", "arguments", "refusal", "name", "functionCall",
    "message", "reasoningContent", "reasoningText",
)  # fmt: skip
_SPOKEN = (
    "content", "text", "refusal", "reasoning_content", "reasoning", "thinking", "response", "tool_plan",
    "reasoningContent",
)  # fmt: skip


def _texts(body: Mapping[str, Any]) -> Iterator[str]:
    """The generated text in a reply or an event of a stream."""
    choices = body.get("choices")
    if isinstance(choices, list):
        for choice in choices:
            if isinstance(choice, Mapping):
                said = choice.get("delta") or choice.get("message") or choice
                if isinstance(said, Mapping):
                    yield from _spoken(said)
        return
    delta = body.get("delta")
    if isinstance(delta, str):
        yield delta
    elif isinstance(delta, Mapping):
        yield from _spoken(delta)
        if isinstance(delta.get("message"), Mapping):  # Cohere's: https://docs.cohere.com/v2/docs/streaming
            yield from _spoken(delta["message"])
    for name in ("output", "content", "message", "candidates", "response"):
        value = body.get(name)
        if name != "message" or not isinstance(value, str):  # that of an error
            yield from _parts(value)


def _spoken(said: Mapping[str, Any]) -> Iterator[str]:
    for name in _SPOKEN:
        value = said.get(name)
        if isinstance(value, str):
            yield value
        elif value:
            yield from _parts(value)
    calls = said.get("tool_calls")
    if calls:
        for call in calls if isinstance(calls, list) else [calls]:
            function = call.get("function") if isinstance(call, Mapping) else None
            if isinstance(function, Mapping):
                yield f"{function.get('name') or ''}{function.get('arguments') or ''}"
    tool = said.get("toolUse")
    if isinstance(tool, Mapping) and isinstance(tool.get("input"), str):
        yield tool["input"]
    for name in ("arguments", "partial_json"):
        if isinstance(said.get(name), str):
            yield said[name]


def _parts(value: object, deep: int = 4) -> Iterator[str]:
    """The texts of content that is cut in parts (Responses, Anthropic, Gemini, Mistral, Ollama)."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and deep:
        for part in value:
            yield from _parts(part, deep - 1)
    elif isinstance(value, Mapping) and deep:
        for name in _PARTS:
            yield from _parts(value.get(name), deep - 1)


# ── JSON ───────────────────────────────────────────────────────────────────────────────

_LENIENT = json.JSONDecoder(strict=False)


def parse_json(data: bytes | bytearray) -> Any:
    """JSON as widely as Python's clients take it: lone surrogates, raw control characters, any of
    its encodings, broken UTF-8, deep nesting.

    Raises:
        ValueError: it is none.
    """
    try:
        return from_json(data)
    except ValueError:
        pass
    encoding = json.detect_encoding(data)
    try:
        text = data.decode(encoding, "surrogatepass")
    except UnicodeDecodeError:
        text = data.decode(encoding, "replace")
    try:
        return _LENIENT.decode(text.lstrip("\ufeff").lstrip("\x00"))
    except RecursionError:
        raise ValueError("nested too deep") from None


# ── server-sent events ─────────────────────────────────────────────────────────────────

_BOM = b"\xef\xbb\xbf"
_FIELDS = (b"data:", b"event:", b"id:", b"retry:")

# The end of a line and a line that is empty. `\r` may be half of a `\r\n` that is still to come:
# it is taken for an end at once, and the `\n` for part of it.
_EVENT_END = re.compile(rb"(?:\r\n|\r(?!\n)|\n)(?:\r\n|\r(?!\n)|\n)")
_LINE_END = re.compile(rb"\r\n|\r|\n")

# Parsing every chunk would cost more than the rest of the meter; those that carry what we need
# are few, and say so.
_USAGE = re.compile(rb'"usage"\s*:\s*[^\sn]')
_FINISH = re.compile(rb'"finish_reason"\s*:\s*[^\sn]')
_ERROR = re.compile(rb'"error"\s*:\s*[^\sn]')
_DELTA = re.compile(rb'"type"\s*:\s*"(?:content_block_delta|content-delta|response\.[a-z_.]+\.delta)"')


def looks_like_events(head: bytes) -> bool | None:
    """Whether a body that begins with `head` is server-sent events; None if that is too little to say."""
    head = head.removeprefix(_BOM).lstrip(b" \t\r\n")
    if head.startswith((b":", *_FIELDS)):
        return True
    return None if any(f.startswith(head) for f in _FIELDS) or _BOM.startswith(head) else False


class SSEReader:
    """Takes server-sent events apart as bytes pass, and can hold one kind of event back.

    Feeding it arbitrary pieces of a stream gives the same stream back, event by event,
    less the usage event that the caller did not ask for. As WHATWG has it: lines end in any of
    three ways, events in an empty line. https://html.spec.whatwg.org/multipage/server-sent-events.html

    Attributes:
        done: whether the stream has said that it is over.
    """

    def __init__(self, reply: Reply, *, hide_usage: bool) -> None:
        self.reply = reply
        self.hide_usage = hide_usage
        self.done = False
        self._buffer = bytearray()
        self._scanned = 0
        """How much of the buffer has no end of an event in it."""
        self._lined = 0
        """How much of it has no end of a line in it, if it begins with a comment."""
        self._overlong = False
        self._half: bool | None = None
        """Whether the event that has just ended was passed on, if its last `\\r` may have a `\\n` to come."""
        self._first = True

    def feed(self, data: bytes) -> bytes:
        """The part of the stream that can be passed on now."""
        if not data:
            return b""
        if not self._buffer and self._half is None and data.endswith(b"\n\n") and b"\r" not in data:
            return self._feed_whole(data)
        out: list[bytes] = []
        if self._half is not None:
            if data[:1] == b"\n":
                data = data[1:]
                if self._half:
                    out.append(b"\n")
            self._half = None
        buffer = self._buffer
        buffer += data
        start, scan = 0, self._scanned
        while (match := _EVENT_END.search(buffer, scan)) is not None:
            end = match.end()
            event = bytes(buffer[start:end])
            shown = self._read(event)
            if shown:
                out.append(event)
            start = scan = end
            if end == len(buffer) and event.endswith(b"\r"):
                self._half = shown
        if start:
            del buffer[:start]
            self._lined = 0
        self._scanned = max(0, len(buffer) - 2)
        if buffer:
            self._pass_early(out)
        return b"".join(out)

    def _feed_whole(self, data: bytes) -> bytes:
        """`feed` for what nearly every server sends: whole events, with nothing before them."""
        hidden = False
        out: list[bytes] = []
        start = 0
        while start < len(data):
            end = data.index(b"\n\n", start) + 2
            event = data[start:end] if start or end < len(data) else data
            if self._read(event):
                out.append(event)
            else:
                hidden = True
            start = end
            while data.startswith(b"\n", start):
                out.append(b"\n")
                start += 1
        return b"".join(out) if hidden else data

    def finish(self) -> bytes:
        """What is left when the stream ends without a final blank line."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._scanned = 0
        return rest if not rest or self._read(rest) else b""

    def _pass_early(self, out: list[bytes]) -> None:
        """Pass on what is in the buffer and need not wait: comments, by which servers keep a
        connection alive, and the parts of an event that is too long to be kept."""
        buffer = self._buffer
        while buffer[:1] == b":" or self._overlong:
            if self._overlong:
                whole = max(0, len(buffer) - 2)
            else:
                match = _LINE_END.search(buffer, self._lined)
                if match is None or (match.end() == len(buffer) and match.group() == b"\r"):
                    self._lined = max(0, len(buffer) - 1)
                    break
                whole = match.end()
            out.append(bytes(buffer[:whole]))
            del buffer[:whole]
            self._scanned = self._lined = 0
            if self._overlong:
                return
        if len(buffer) > _MOST_EVENT:
            self._overlong = True

    def _read(self, event: bytes) -> bool:
        """Take in one event; False to hold it back."""
        if self._overlong:
            self._overlong = False
            self.reply.unread += 1
            return True
        if event.startswith(b"data:") and len(event.splitlines()) <= 2:
            data = event[5:].strip()
        else:
            data = self._data(event).strip()
        self._first = False
        if not data:
            return True
        if data.startswith(b"[DONE]"):
            self.done = self.reply.ended = True
            return True
        reply = self.reply
        if not (
            reply.model is None
            or reply.keep_text
            or (b'"usage"' in data and _USAGE.search(data) is not None)
            or (b'"finish_reason"' in data and _FINISH.search(data) is not None)
            or (b'"error"' in data and _ERROR.search(data) is not None)
            or (b'"choices"' not in data and _DELTA.search(data) is None)
        ):
            reply.unread += 1
            return True
        try:
            body = parse_json(data)
        except ValueError:
            return True
        reply.read(body)
        if isinstance(body, dict):
            if body.get("type") in _TERMINAL:
                self.done = reply.ended = True
            if self.hide_usage and not body.get("choices") and not body.get("error"):
                return not isinstance(body.get("usage"), dict)
        return True

    def _data(self, event: bytes) -> bytes:
        """The `data` of an event, put together of its lines."""
        if self._first:
            event = event.removeprefix(_BOM)
        lines = []
        for line in event.splitlines():
            name, _, value = line.partition(b":")
            if name == b"data":
                lines.append(value.removeprefix(b" "))
            elif name == b"event" and value.strip() == b"error":
                self.reply.failed()
        return b"\n".join(lines)


# ── bodies ─────────────────────────────────────────────────────────────────────────────


class ReplyReader:
    """A body as it passes, whatever it is: JSON, lines of JSON, server-sent events, or AWS's frames.

    Args:
        events: whether it is said to be events; if not, it is looked at: servers, recordings and
            mocks call them `text/plain`, or nothing.
    """

    def __init__(self, reply: Reply, *, events: bool, hide_usage: bool) -> None:
        self.reply = reply
        self.events: SSEReader | FrameReader | None = None
        """The reader of the events, if it is events."""
        self._hide_usage = hide_usage
        self._body: bytearray | None = bytearray()
        self._known = False
        if events:
            self._as_events()

    def _as_events(self) -> None:
        self._known = True
        self.events = SSEReader(self.reply, hide_usage=self._hide_usage)

    @property
    def done(self) -> bool:
        """Whether the stream has said that it is over."""
        return self.events is not None and self.events.done

    def feed(self, data: bytes) -> bytes:
        """What of `data`, and of what came before, can be passed on now."""
        if self.events is not None:
            return self.events.feed(data)
        body = self._body
        if body is None:
            return data
        body += data
        if not self._known:
            head = bytes(body[:256])
            frames, events = looks_like_frames(head), looks_like_events(head)
            if (events is None or frames is None) and len(body) < 256:
                return b""
            self._known, data = True, bytes(body)
            if frames:
                self.events = FrameReader(self._read_frame, self.reply.failed)
                return self.events.feed(data)
            if events:
                self._as_events()
                assert self.events is not None
                return self.events.feed(data)
        if len(body) > _MOST_BODY:
            self._body = None
        return data

    def finish(self) -> bytes:
        """What is left to be passed on, now that the body is over."""
        if self.events is not None:
            return self.events.finish()
        body, self._body = self._body, None
        if body is None:
            return b""
        rest = b"" if self._known else bytes(body)
        self._read(body)
        return rest

    def _read_frame(self, body: Any, kind: str) -> bool:
        """Take in an event of a stream in frames; whether it is the last."""
        self.reply.read(body)
        ended = kind == _LAST_FRAME or (isinstance(body, dict) and body.get("type") in _TERMINAL)
        self.reply.ended |= ended
        return ended

    def _read(self, body: bytearray) -> None:
        reply = self.reply
        try:
            reply.read(parse_json(body), size=len(body))
            reply.ended = True
            return
        except ValueError:
            pass
        # Lines of JSON (Ollama's streams), or no JSON at all (audio, text), which has no usage.
        for line in body.splitlines():
            if line.strip():
                try:
                    reply.read(parse_json(line))
                except ValueError:
                    return


def read_whole(reply: Reply, content: bytes, *, hide_usage: bool = False) -> bytes:
    """Take in a body that has been read by something else; what of it is for the caller."""
    if content.startswith(b"{"):
        try:
            reply.read(parse_json(content), size=len(content))
        except ValueError:
            pass
        else:
            reply.ended = True
            return content
    reader = ReplyReader(reply, events=False, hide_usage=hide_usage)
    shown = reader.feed(content) + reader.finish()
    return content if len(shown) == len(content) else shown
