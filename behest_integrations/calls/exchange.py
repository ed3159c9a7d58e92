"""One attempt of one HTTP request of OpenAI's wire, metered; without doing any I/O.

A door (the client wrapper, the gateway) reserves the plan, sends `body`, tells what came
back, and ends the hold with the outcome that it is handed here.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from ..engine.calls import Hold, Outcome, outcome_of_error, outcome_of_status
from ..engine.planning import Plan
from ..meter import Meter
from ..rules.attribution import NOBODY, Attribution
from ..rules.usage import Usage
from ..wire import (
    METERED_OPERATIONS,
    Reply,
    RequestBound,
    SSEReader,
    asks_stream_usage,
    bound_request,
    with_output_limit,
    with_stream_usage,
)
from ..wire.tokens import estimate_tokens

_NEWER_FIELD = ("openai", "azure")
"""Providers that take an output limit as `max_completion_tokens`; others read `max_tokens`."""


class Exchange:
    """A request and its reply, as far as metering is concerned.

    Args:
        operation: see `wire.operation_of`.
        body: the request's JSON; it is not changed.
        provider: the price list's provider id, if known.

    Raises:
        ConfigError, UnknownPrice, Unbounded: the request cannot be bounded.
    """

    def __init__(
        self,
        meter: Meter,
        operation: str,
        body: Mapping[str, Any],
        *,
        who: Attribution = NOBODY,
        fallback: Attribution = NOBODY,
        provider: str | None = None,
    ) -> None:
        self.meter = meter
        self.operation = operation
        self.metered = operation in METERED_OPERATIONS
        self._original = body
        if self.metered:
            self._bound = bound_request(
                operation,
                body,
                prefer_max_tokens=provider not in _NEWER_FIELD,
                provider=provider,
                allowed=meter.allow_fields,
            )
        else:
            self._bound = RequestBound(0, output_limit=0)
        self.plan: Plan = meter.plan(
            operation,
            str(body.get("model") or ""),
            self._bound,
            provider=provider,
            who=who,
            fallback=fallback,
        )
        self.hold: Hold | None = None
        self._hide_usage = False
        self._new_reply()

    def _new_reply(self) -> None:
        self.reply = Reply(keep_text=self.meter.on_unknown == "estimate")

    def reserved(self, hold: Hold) -> dict[str, Any]:
        """Take over the hold; the body to send under it."""
        self.hold = hold
        self._new_reply()
        body = dict(self._original)
        if hold.output_limit is not None and (
            hold.output_limit != self._bound.output_limit or self._bound.send_limit
        ):
            body = with_output_limit(body, self._bound, hold.output_limit)
        if self.operation in ("chat", "completions") and body.get("stream") and not asks_stream_usage(body):
            self._hide_usage = True
            body = with_stream_usage(body)
        return body

    def forget(self) -> None:
        """Let go of the request's body: it will not be sent again."""
        self._original = {}

    # ── what came back ─────────────────────────────────────────────────────────────────

    def failed_to_send(self, error: BaseException) -> Outcome:
        """The outcome when sending raised `error`."""
        return outcome_of_error(error)

    def refused_by_provider(self, status: int) -> Outcome | None:
        """The outcome of an HTTP status that is not a success; None if it is one."""
        return outcome_of_status(status)

    def read_body(self, content: bytes) -> None:
        """Take in a whole JSON reply."""
        try:
            self.reply.read(from_json(content))
        except ValueError:
            pass  # not JSON (audio, plain text): it has no usage

    def reader(self) -> SSEReader:
        """For a reply that is a stream of server-sent events."""
        return SSEReader(self.reply, hide_usage=self._hide_usage)

    @property
    def pending(self) -> bool:
        """A background response that has only been queued: it is billed later."""
        return self.reply.pending and self.reply.usage is None and self.reply.id is not None

    @property
    def generated(self) -> bool:
        """Whether all that is billed has been generated, though its usage may follow."""
        return len(self.reply.finished) >= self._bound.choices

    def complete(self) -> Outcome:
        """The outcome of a reply that was received whole."""
        reply = self.reply
        if not self.metered:
            return self._outcome("settled", reply.usage or Usage())
        if reply.usage is None:
            return self._unknown("the reply has no usage", "no_usage")
        self.meter.remember_context(reply.id, reply.usage)
        return self._outcome("settled", reply.usage)

    def interrupted(self, note: str, flag: str, *, done: bool = False) -> Outcome:
        """The outcome of a reply that was not received whole."""
        if self.reply.usage is not None and (self.reply.final_usage or done):
            return self.complete()
        return self._unknown(note, flag)

    def _unknown(self, note: str, flag: str) -> Outcome:
        if self.meter.on_unknown == "estimate" and self.reply.text:
            model = self.plan.model
            usage = Usage(
                input_tokens=max(0, self.plan.ask.needs["input_tokens"].amount(0) - self._bound.slack),
                output_tokens=estimate_tokens("".join(self.reply.text), model),
            )
            return self._outcome("estimated", usage, note, flag)
        return self._outcome("assumed", None, note, flag)

    def _outcome(self, status: Any, usage: Usage | None, note: str = "", flag: str = "") -> Outcome:
        reply = self.reply
        return Outcome(
            status,
            usage,
            model=reply.model,
            service_tier=reply.service_tier,
            provider_id=reply.id,
            note=note,
            flags=(flag,) if flag else (),
        )


class Passing:
    """The body of one reply, seen as it passes to whoever reads it; then how the call ended.

    Args:
        events: whether it is a stream of server-sent events.
        only_whole: the hold is not to end unless the reply has been received whole.
    """

    def __init__(self, exchange: Exchange, *, events: bool, only_whole: bool = False) -> None:
        self.exchange = exchange
        self.only_whole = only_whole
        self.reader: SSEReader | None = exchange.reader() if events else None
        self.over = False
        self._body = bytearray()
        self._ended = threading.Lock()

    @property
    def ended(self) -> bool:
        """Whether the outcome has been taken."""
        return self._ended.locked()

    def feed(self, data: bytes) -> bytes:
        """What of `data`, and of what came before, can be passed on now."""
        if self.reader is not None:
            return self.reader.feed(data)
        self._body += data
        return data

    def rest(self) -> bytes:
        """What is left to be passed on, now that the body is over."""
        self.over = True
        if self.reader is not None:
            return self.reader.finish()
        self.exchange.read_body(bytes(self._body))
        return b""

    @property
    def drainable(self) -> bool:
        """Whether reading on costs nothing: all is generated (and billed), its usage is not in."""
        if self.over:
            return False
        return self.reader is None or (self.exchange.generated and not self.exchange.reply.final_usage)

    def outcome(self, note: str = "", flag: str = "") -> Outcome | None:
        """How the call ended, told once; None if it has been told, or is not known yet.

        Args:
            note, flag: what happened, if the reply is not whole.
        """
        if not self._ended.acquire(False):
            return None
        done = self.over or (self.reader is not None and self.reader.done)
        if done and self.exchange.reply.usage is not None:
            return self.exchange.complete()
        if self.only_whole:
            return None
        return self.exchange.complete() if done else self.exchange.interrupted(note, flag)
