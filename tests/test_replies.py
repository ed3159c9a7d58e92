"""Replies are read as widely as clients read them: events by their specification, however they are
cut and whatever ends their lines; JSON as Python's clients take it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behest_integrations import Usage
from behest_integrations.wire import Reply, ReplyReader, SSEReader, parse_json, read_whole, replies

USAGE = b'{"model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}'
FINISH = b'{"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}'
TEXT = b'{"model":"m","choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}],"usage":null}'


def reference(stream: bytes) -> list[str]:
    """The data of every event, by the specification: the whole stream at once, line by line.
    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation"""
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    found: list[str] = []
    data: list[str] = []
    for line in lines:
        if not line:
            if data:
                found.append("\n".join(data))
            data = []
            continue
        name, _, value = line.partition(":")
        if name == "data":
            data.append(value.removeprefix(" "))
    if data:
        found.append("\n".join(data))
    return found


ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@st.composite
def events(draw: st.DrawFn) -> bytes:
    """One event: comments, other fields, its data over one or several lines; any ends of lines."""
    kind = draw(st.sampled_from([TEXT, TEXT, USAGE, b"[DONE]", b"no json", b""]))
    lines = [b": ping"] if draw(st.booleans()) else []
    if draw(st.booleans()):
        lines.append(
            draw(st.sampled_from([b"event: message", b"id: 1", b"retry: 5", b"data", b"strange: x"]))
        )
    cut = kind.find(b",") + 1
    space = draw(st.sampled_from([b"", b" "]))
    parts = [kind[:cut], kind[cut:]] if cut and draw(st.booleans()) else [kind]
    lines += [b"data:" + space + part for part in parts if part]
    ended = [line + draw(ENDS) for line in lines]
    blank = draw(ENDS)
    # After a `\r`, a `\n` is no empty line.
    return b"".join(ended) + (b"\r\n" if ended and ended[-1].endswith(b"\r") and blank == b"\n" else blank)


@settings(max_examples=300, deadline=None)
@given(st.lists(events(), max_size=6), st.data(), st.booleans(), st.booleans())
def test_any_stream_however_it_is_cut(parts: list[bytes], data: st.DataObject, bom: bool, hide: bool) -> None:
    whole = (b"\xef\xbb\xbf" if bom else b"") + b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    reply = Reply()
    reader = SSEReader(reply, hide_usage=hide)
    out = b"".join(reader.feed(whole[a:b]) for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True))
    out += reader.finish()

    expected = [e.strip() for e in reference(whole) if e.strip()]
    usage = [e for e in expected if '"prompt_tokens"' in e]
    assert (reply.usage == Usage(3, 4)) == bool(usage)
    assert reader.done == any(e.startswith("[DONE]") for e in expected)
    if hide:
        assert b"prompt_tokens" not in out
        assert [e.strip() for e in reference(out) if e.strip()] == [e for e in expected if e not in usage]
    else:
        assert out == whole


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_nothing_waits_for_what_comes_after_it(end: bytes) -> None:
    reader = SSEReader(Reply(model="m"), hide_usage=True)
    event = b"data: " + TEXT + end + end
    for _ in range(3):
        shown = b"".join(reader.feed(event[i : i + 1]) for i in range(len(event)))
        assert TEXT in shown
    # Servers keep a connection alive by comments; they may have a line only.
    assert b": ping" in SSEReader(Reply(), hide_usage=True).feed(b": ping\n")


class Counting:
    """A pattern that counts the bytes that it is given to search."""

    def __init__(self, pattern: Any) -> None:
        self.pattern = pattern
        self.bytes = 0

    def search(self, data: Any, start: int = 0) -> Any:
        self.bytes += len(data) - start
        return self.pattern.search(data, start)


@pytest.mark.parametrize("head", [b"data: ", b": "])
def test_reading_is_linear(monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    patterns = [Counting(replies._EVENT_END), Counting(replies._LINE_END)]
    monkeypatch.setattr(replies, "_EVENT_END", patterns[0])
    monkeypatch.setattr(replies, "_LINE_END", patterns[1])
    whole = head + b"x" * 1_000_000 + b"\n\n"
    reader = SSEReader(Reply(), hide_usage=True)
    out = bytearray()
    for i in range(len(whole)):
        out += reader.feed(whole[i : i + 1])
    assert bytes(out) + reader.finish() == whole
    assert sum(p.bytes for p in patterns) < 8 * len(whole)


def test_no_buffer_is_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "_MOST_EVENT", 1000)
    reply = Reply()
    reader = SSEReader(reply, hide_usage=True)
    whole = b"data: " + b"x" * 50_000 + b"\n\n" + b"data: " + FINISH + b"\n\n" + b"data: " + USAGE + b"\n\n"
    out = b""
    for i in range(0, len(whole), 100):
        out += reader.feed(whole[i : i + 100])
        assert len(reader._buffer) <= 1200
    assert out == whole[: -len(USAGE) - 8]
    assert reply.usage == Usage(3, 4)


STREAM = b"".join(b"data: " + e + b"\n\n" for e in (TEXT, FINISH, USAGE, b"[DONE]"))
SHOWN = b"".join(b"data: " + e + b"\n\n" for e in (TEXT, FINISH, b"[DONE]"))


@pytest.mark.parametrize("size", [1, 3, 100, 10_000])
def test_events_are_known_by_their_look(size: int) -> None:
    for head in (b"", b"\xef\xbb\xbf", b": ping\n\n", b"\n"):
        reply = Reply()
        reader = ReplyReader(reply, events=False, hide_usage=True)
        whole = head + STREAM
        out = b"".join(reader.feed(whole[i : i + size]) for i in range(0, len(whole), size)) + reader.finish()
        assert out == head + SHOWN
        assert reader.done
        assert reply.usage == Usage(3, 4)
        assert reply.final_usage


def test_a_stream_that_something_else_has_read() -> None:
    reply = Reply()
    assert read_whole(reply, STREAM, hide_usage=True) == SHOWN
    assert (reply.usage, reply.final_usage) == (Usage(3, 4), True)
    assert read_whole(Reply(), STREAM) is STREAM


def test_lines_of_json() -> None:
    lines = [
        {"model": "llama3.2", "message": {"role": "assistant", "content": "The"}, "done": False},
        {"model": "llama3.2", "done": True, "prompt_eval_count": 26, "eval_count": 282},
    ]
    reply = Reply()
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    assert read_whole(reply, body, hide_usage=True) is body
    assert (reply.usage, reply.model, reply.final_usage) == (Usage(26, 282), "llama3.2", True)


def body(content: str, extra: str = "") -> bytes:
    return (
        '{"model":"m","choices":[{"index":0,"message":{"content":"' + content + '"},"finish_reason":"stop"}],'
        + extra + '"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}'
    ).encode("utf-8", "surrogatepass")  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        body("\\ud800"), body("\ud800"), body("a\x00\x1f\tb"),
        body("x", '"deep":' + "[" * 400 + "]" * 400 + ","),
        b"\xef\xbb\xbf" + body("x"), b" \n" + body("x") + b"\n", body("x").decode().encode("utf-16"),
        body("x").replace(b'"x"', b'"\xff"'),
    ],
)  # fmt: skip
def test_json_is_read_as_clients_read_it(content: bytes) -> None:
    reply = Reply()
    assert read_whole(reply, content) is content
    assert (reply.usage, reply.final_usage) == (Usage(3, 4), True)


@given(st.binary(max_size=60) | st.text(alphabet='[]{}":,0data \n', max_size=60).map(str.encode))
def test_no_body_breaks_the_reader(content: bytes) -> None:
    reply = Reply()
    shown = read_whole(reply, content, hide_usage=True)
    assert shown == content
    assert reply.usage is None


def test_json_that_is_nested_without_end_is_no_json() -> None:
    with pytest.raises(ValueError, match="nested"):
        parse_json(b"[" * 200_000 + b"]" * 200_000)


@pytest.mark.parametrize(
    "said",
    [
        b'data: {"error":{"message":"overloaded","code":529}}\n\n',
        b'event: error\ndata: {"message":"overloaded"}\n\n',
        b'data: {"type":"error","code":"server_error","message":"x"}\n\n',
        b'{"error":{"message":"overloaded"}}',
        b'{"object":"error","message":"x","error":"overloaded"}',
    ],
)
def test_an_error_inside_a_success_is_known(said: bytes) -> None:
    reply = Reply()
    read_whole(reply, said, hide_usage=True)
    assert reply.error
    assert not reply.answered
    assert not reply.final_usage


def test_a_stream_of_running_totals_that_ends_in_an_error_is_not_whole() -> None:
    running = TEXT.replace(
        b'"usage":null', b'"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}'
    )
    reply = Reply()
    read_whole(reply, b"data: " + running + b"\n\n")
    assert (reply.usage, reply.final_usage) == (Usage(3, 4), False)
    read_whole(reply, b'data: {"error":{"message":"x"}}\n\ndata: [DONE]\n\n')
    assert not reply.final_usage
