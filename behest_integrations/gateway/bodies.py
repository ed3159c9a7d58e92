"""Request bodies: read within bounds of size and time, and checked before anything is done with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.types import Receive

from ..rules.wording import problems_of_json
from .patience import OutOfTime, timeout
from .problems import Problem
from .settings import LimitSettings

M = TypeVar("M", bound=BaseModel)


class Bodies:
    """Reads bodies, of which it holds only so much at once."""

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits
        self.held = 0
        """Bytes of bodies that are being read or worked on."""

    @contextmanager
    def reading(self) -> Iterator[Held]:
        """Hold the bytes of one body until the end of the block."""
        held = Held(self, self._limits)
        try:
            yield held
        finally:
            held.let_go()


class Held:
    def __init__(self, bodies: Bodies, limits: LimitSettings) -> None:
        self._bodies = bodies
        self._limits = limits
        self._bytes = 0

    def let_go(self) -> None:
        """The body is needed no more."""
        self._bodies.held -= self._bytes
        self._bytes = 0

    async def read(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        """The whole body.

        Raises:
            Problem: it is too large, comes too slowly, or there is no room for it now.
        """
        limits = self._limits
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Problem(
                415, "Send JSON, with 'Content-Type: application/json'.", code="unsupported_media_type"
            )
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Problem(415, "Send the body as it is, not packed.", code="unsupported_media_type")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > limits.max_body:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        try:
            async with timeout(limits.body_timeout):
                while True:
                    message: MutableMapping[str, Any] = await receive()
                    if message["type"] == "http.disconnect":
                        raise Problem(499, "The client hung up.")
                    part = message.get("body", b"")
                    size += len(part)
                    if size > limits.max_body:
                        raise self._too_large()
                    self._take(len(part))
                    parts.append(part)
                    if not message.get("more_body"):
                        return parts[0] if len(parts) == 1 else b"".join(parts)
        except OutOfTime:
            raise Problem(
                408, "The body came too slowly.", headers={"Connection": "close"}, retry=False
            ) from None

    def _take(self, size: int) -> None:
        if self._bodies.held + size > self._limits.max_buffered:
            raise Problem(503, "Too many large requests at once.", after=1, retry=True)
        self._bodies.held += size
        self._bytes += size

    def _too_large(self) -> Problem:
        message = f"A request may have at most {self._limits.max_body:,} bytes."
        return Problem(413, message, code="payload_too_large", headers={"Connection": "close"})


def parse(raw: bytes, model: type[M], limits: LimitSettings) -> tuple[dict[str, Any], M]:
    """A body's JSON, as it came and as `model`.

    Raises:
        Problem: it is not JSON, has too many values, or is not what `model` says.
    """
    # Each value has at least one of these before it, and takes some 60 bytes once it is parsed.
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > limits.max_values:
        raise Problem(400, f"A request may have at most {limits.max_values:,} JSON values.")
    try:
        body = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise Problem(400, f"The body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise Problem(400, "The body is not a JSON object.")
    try:
        return body, model.model_validate(body)
    except ValidationError as error:
        first, *more = problems_of_json(error, model, body)
        rest = f" (and {len(more)} more)" if more else ""
        raise Problem(400, f"{first}{rest}", param=first.place) from None
