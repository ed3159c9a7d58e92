"""AWS's event streams, in which Bedrock answers: binary frames, read as they pass.

A frame is its length, its headers' length and a checksum of both (4 bytes each, big-endian), the
headers, the payload, and a checksum of it all.
https://docs.aws.amazon.com/AmazonS3/latest/API/RESTSelectObjectAppendix.html
"""

from __future__ import annotations

from base64 import b64decode
from binascii import crc32
from collections.abc import Callable
from typing import Any

from pydantic_core import from_json

_PRELUDE, _CHECK = 12, 4
_TEXT = 7
"""The type of a header whose value is text."""
_MOST_FRAME = 24 * 1024 * 1024  # https://docs.aws.amazon.com/transcribe/latest/dg/streaming-setting-up.html


def looks_like_frames(head: bytes) -> bool | None:
    """Whether a body that begins with `head` is made of frames; None if that is too little to say."""
    if not head.startswith(b"\x00"):
        return False if head else None
    if len(head) < _PRELUDE:
        return None
    return crc32(head[:8]) == int.from_bytes(head[8:_PRELUDE], "big")


class FrameReader:
    """Takes frames apart as bytes pass, all of which are passed on.

    Args:
        read: takes in what an event says, and of which kind it is; whether it is the last.
        fail: told of a frame that is an exception, or is broken.

    Attributes:
        done: whether the stream has said that it is over.
    """

    def __init__(self, read: Callable[[Any, str], bool], fail: Callable[[], object]) -> None:
        self.done = False
        self._read = read
        self._fail = fail
        self._buffer = bytearray()
        self._lost = False

    def feed(self, data: bytes) -> bytes:
        """Take in the next bytes; they can be passed on at once."""
        if self._lost:
            return data
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _PRELUDE:
            size = int.from_bytes(buffer[:4], "big")
            headers = int.from_bytes(buffer[4:8], "big")
            if not _PRELUDE + headers + _CHECK <= size <= _MOST_FRAME or not _is_right(buffer[:_PRELUDE]):
                return self._lose(data)
            if len(buffer) < size:
                break
            if not _is_right(buffer[:size]):
                return self._lose(data)
            start = _PRELUDE + headers
            self._take(bytes(buffer[_PRELUDE:start]), bytes(buffer[start : size - _CHECK]))
            del buffer[:size]
        return data

    def finish(self) -> bytes:
        """The body is over; nothing is held back."""
        self._buffer.clear()
        return b""

    def _lose(self, data: bytes) -> bytes:
        """What follows cannot be told apart: nothing more is read of it."""
        self._lost = True
        self._buffer.clear()
        self._fail()
        return data

    def _take(self, headers: bytes, payload: bytes) -> None:
        said = read_headers(headers)
        if said.get(":message-type", "event") != "event" or b":exception-type" in headers:
            self._fail()
        try:
            body = from_json(payload)
            packed = body.get("bytes") if isinstance(body, dict) else None
            if isinstance(packed, str):
                body = from_json(b64decode(packed))
        except ValueError:
            return
        self.done = self._read(body, said.get(":event-type", "")) or self.done


def _is_right(checked: bytearray) -> bool:
    """Whether bytes end in the checksum of those before."""
    return crc32(checked[:-_CHECK]) == int.from_bytes(checked[-_CHECK:], "big")


def read_headers(headers: bytes) -> dict[str, str]:
    """The headers of a frame that are text, up to the first that is none."""
    said: dict[str, str] = {}
    at = 0
    while at < len(headers):
        start = at + 1 + headers[at]
        name, kind = headers[at + 1 : start], headers[start : start + 1]
        size = int.from_bytes(headers[start + 1 : start + 3], "big")
        if kind != bytes([_TEXT]) or start + 3 + size > len(headers):
            break
        at = start + 3 + size
        said[name.decode("utf-8", "replace")] = headers[start + 3 : at].decode("utf-8", "replace")
    return said
