"""What the sandbox's APIs have in common: faults, what is to be billed, requests and events."""

from __future__ import annotations

import json
from binascii import crc32
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from starlette.requests import Request

from .model import prompt_tokens

FaultKind = Literal["latency", "status", "timeout", "cut", "no_usage", "over_limit", "filtered"]
FAULTS = ("latency", "status", "timeout", "cut", "no_usage", "over_limit", "filtered")


@dataclass
class Fault:
    kind: str
    times: int
    status: int = 500
    billed: bool = True
    seconds: float = 0.0
    factor: int = 2


@dataclass(frozen=True)
class Job:
    """One request, as far as billing goes.

    Attributes:
        provider: whose prices apply, by the price list's id.
        written_tokens, written_1h_tokens: written to a cache; those of them that stay for an hour.
        searches: of the web.
        factor: what the price of the tokens is multiplied by.
        account: who pays, by the key that the request came with; see `account_of`.
    """

    operation: str
    model: str
    session_id: str | None
    user_id: str | None
    input_tokens: int
    cached_tokens: int
    provider: str = "openai"
    written_tokens: int = 0
    written_1h_tokens: int = 0
    searches: int = 0
    factor: Decimal = Decimal(1)
    account: str | None = None


def text_in(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def header(request: Request, name: str) -> str | None:
    """A header's value; ids in any script travel as UTF-8."""
    value = request.headers.get(name)
    if value is None:
        return None
    with suppress(UnicodeError):
        return value.encode("latin-1").decode("utf-8")
    return value


def job_of(
    request: Request, body: Mapping[str, Any], operation: str, prompt: Any, beside: int, provider: str
) -> Job:
    """A request of a wire that names its model in the body, and has no cache.

    Args:
        beside: tokens besides those of the prompt's texts.
    """
    model = str(body.get("model"))
    return Job(
        operation,
        model,
        header(request, "x-session-id"),
        header(request, "x-end-user-id"),
        prompt_tokens(prompt, model) + beside,
        0,
        provider=provider,
        account=account_of(request),
    )


def account_of(request: Request) -> str | None:
    """The account that a request is billed to: the last eight characters of its key."""
    bearer = request.headers.get("authorization", "").partition(" ")[2]
    key = bearer or request.headers.get("x-api-key") or request.headers.get("api-key") or ""
    return key[-8:] or None


async def json_of(request: Request) -> dict[str, Any] | None:
    try:
        body = await request.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def sse(data: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


def frame(kind: str, data: Mapping[str, Any]) -> bytes:
    """An event in a frame of AWS's own, as Bedrock streams it:
    https://docs.aws.amazon.com/AmazonS3/latest/API/RESTSelectObjectAppendix.html"""
    payload = json.dumps(data).encode()
    said = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    headers = b""
    for name, value in said.items():
        headers += bytes([len(name)]) + name.encode() + b"\x07" + len(value).to_bytes(2, "big")
        headers += value.encode()
    head = (len(headers) + len(payload) + 16).to_bytes(4, "big") + len(headers).to_bytes(4, "big")
    head += crc32(head).to_bytes(4, "big")
    whole = head + headers + payload
    return whole + crc32(whole).to_bytes(4, "big")
