"""One shape for every error, which OpenAI's SDKs and Behest's clients can read.

    {"error": {"message", "type", "code", "param", "details"}}

Behest's clients go by `code`; OpenAI's SDKs by the status, `code` and `x-should-retry`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from pydantic_core import to_json
from starlette.responses import Response

from ..rules.balance import Balance, Shortfall
from ..rules.budgets import Budget
from ..rules.errors import (
    BehestError,
    BudgetExceeded,
    ConfigError,
    LoopDetected,
    MissingExtra,
    PolicyRefused,
    StoreError,
    Unattributed,
    Unbounded,
    UnknownPrice,
)
from ..rules.units import format_amount, to_usd

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "quota_error",
    403: "permission_error",
    429: "rate_limit_error",
    451: "policy_error",
}
_CODES = {
    400: "validation_error",
    401: "invalid_token",
    402: "quota_exceeded",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    429: "rate_limited",
}
CODES = frozenset(
    {*_CODES.values(), "server_error", "store_unavailable", "unknown_price", "unbounded", "model_not_found",
     "model_not_allowed", "origin_not_allowed", "policy_refused", "pii_blocked", "content_blocked",
     "loop_detected", "provider_key_unusable", "provider_key_refused", "project_paused",
     "payload_too_large", "unsupported_media_type"}
)  # fmt: skip
"""Every code of our own."""
_LONGEST_WAIT = 60
"""OpenAI's SDKs wait as long as `Retry-After` says up to a minute, and guess above it."""


class JSON(Response):
    """A JSON response, written by the library that reads the requests."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content)


class Problem(Exception):
    """An answer that is an error.

    Args:
        message: what happened, and what to do next.
        code: the word for programs; default: the status's usual one.
        param: the field of the request that is wrong, if it is one.
        retry: whether a client that repeats the request may hope; None: as the status says.
        after: seconds after which it may.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        details: Mapping[str, Any] | None = None,
        retry: bool | None = None,
        after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code or _CODES.get(status) or ("server_error" if status >= 500 else "validation_error")
        self.headers = dict(headers or {})
        if after is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(after)))
        if retry is not None:
            self.headers["x-should-retry"] = "true" if retry else "false"
        kind = _TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
        self.body: dict[str, Any] = {
            "error": {
                "message": message,
                "type": kind,
                "code": self.code,
                "param": param,
                "details": dict(details or {}),
            }
        }

    def response(self) -> Response:
        return JSON(self.body, status_code=self.status, headers=self.headers)


def problem_of(error: BehestError, *, tier: str | None = None) -> Problem:
    """What an error of the engine is to a client of the gateway."""
    if isinstance(error, BudgetExceeded):
        return _refusal(error, tier)
    if isinstance(error, UnknownPrice):
        message = (
            f"No price is known for model {error.model!r} and a budget in dollars applies, so the call was "
            "refused. Whoever runs the gateway can give its price in behest.toml."
        )
        return Problem(400, message, code="unknown_price", param="model", retry=False)
    if isinstance(error, Unbounded):
        kind, _, field = error.feature.partition(":")
        if kind == "field":
            message = (
                f"The request has the field {field!r}, of which it is not known what it does to the bill, "
                "and a budget applies, so the call was refused. If it does nothing, whoever runs the gateway "
                f"can say so in behest.toml: allow_fields = [{field!r}]."
            )
        else:
            message = (
                f"The request uses {error.feature!r}, whose cost cannot be bounded beforehand, and a budget "
                "applies, so the call was refused. Whoever runs the gateway can allow it in behest.toml, "
                "under [allow]."
            )
        return Problem(400, message, code="unbounded", details={"feature": error.feature}, retry=False)
    if isinstance(error, Unattributed):
        message = (
            f"The call does not say its {' and '.join(error.missing)}, which is required here. A session "
            "is named by X-Session-Id, an end user by X-End-User-Id, or by the key or token."
        )
        return Problem(400, message, code="unattributed", retry=False)
    if isinstance(error, PolicyRefused):
        status = 403 if error.code == "policy_refused" else 451
        details = {"rule": error.rule, "kind": error.kind, "found": error.found}
        return Problem(status, str(error), code=error.code, details=details, retry=False)
    if isinstance(error, LoopDetected):
        said = {"guard": error.guard, "times": error.times, "limit": error.limit, "tool": error.tool}
        return Problem(403, str(error), code="loop_detected", details=said, retry=False)
    if isinstance(error, StoreError):
        message = "The ledger cannot be written, so the call was refused before it reached the provider."
        return Problem(503, message, code="store_unavailable", retry=error.retryable, after=1)
    if isinstance(error, ConfigError) and not isinstance(error, MissingExtra):
        return Problem(400, str(error), retry=False)
    return Problem(500, "The gateway failed; its log says how.", retry=False)


def _is_rate(text: str, unit: str) -> bool:
    """Whether a budget limits how fast rather than how much: calls or tokens, by the hour or less."""
    if unit == "usd":
        return False
    budget = Budget.parse(text)
    return budget.window in ("minute", "hour") or 0 < budget.rolling_ms <= 3_600_000


def _refusal(error: BudgetExceeded, tier: str | None) -> Problem:
    short = error.shortfall
    details = {
        "tier": tier,
        "limit": number(short.limit, short.unit),
        "usage": number(short.spent, short.unit),
        "held": number(short.held, short.unit),
        "needed": number(short.asked, short.unit),
        "unit": short.unit,
        "budget": short.budget,
        "scope": short.scope,
        "reason": error.reason,
        "resets_at": short.resets_at.isoformat() if short.resets_at is not None else None,
    }
    headers = budget_headers(short)
    after = error.retry_after
    if error.busy:
        return Problem(429, str(error), details=details, retry=True, after=after, headers=headers)
    if after is not None and _is_rate(short.budget, short.unit):
        soon = after <= _LONGEST_WAIT
        return Problem(429, str(error), details=details, retry=soon, after=after, headers=headers)
    return Problem(402, str(error), details=details, retry=False, after=after, headers=headers)


def number(amount: int, unit: str) -> float | int:
    """An amount for JSON: USD (exact to the nano-dollar below $9,000,000) or a count."""
    return float(to_usd(amount)) if unit == "usd" else amount


def budget_headers(binding: Balance | Shortfall | None) -> dict[str, str]:
    """The budget that binds: its text, limit, what is left, and when it resets (seconds from 1970)."""
    if binding is None:
        return {}
    found = {
        "X-Budget": quote(binding.budget, safe=' $/*?="._-:,'),
        "X-Budget-Limit": format_amount(binding.limit, binding.unit),
        "X-Budget-Left": format_amount(binding.left, binding.unit),
    }
    if binding.resets_at is not None:
        found["X-Budget-Reset"] = str(math.ceil(binding.resets_at.timestamp()))
    return found
