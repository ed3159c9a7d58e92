"""One attempt of one HTTP request of OpenAI's wire, metered; without doing any I/O.

A door (the client wrapper, the gateway) reserves the plan, sends `body`, tells what came
back, and ends the hold with the outcome that it is handed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..engine.engine import Engine
from ..engine.holds import Hold
from ..engine.outcomes import Evidence, Outcome, judge
from ..engine.plan import Plan
from ..rules.attribution import NOBODY, Attribution
from ..rules.usage import Usage
from ..wire import (
    METERED_OPERATIONS,
    Reply,
    ReplyReader,
    RequestBound,
    asks_stream_usage,
    bound_request,
    read_whole,
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
        where: the server that it goes to, if known.

    Raises:
        ConfigError, UnknownPrice, Unbounded: the request cannot be bounded.
    """

    def __init__(
        self,
        engine: Engine,
        operation: str,
        body: Mapping[str, Any],
        *,
        who: Attribution = NOBODY,
        fallback: Attribution = NOBODY,
        provider: str | None = None,
        layer: str = "",
        where: str = "",
    ) -> None:
        self.engine = engine
        self.operation = operation
        self.metered = operation in METERED_OPERATIONS
        self._original = body
        if self.metered:
            self._bound = bound_request(
                operation,
                body,
                prefer_max_tokens=provider not in _NEWER_FIELD,
                provider=provider,
                allowed=engine.allow_fields,
            )
        else:
            self._bound = RequestBound(0, output_limit=0)
        self.plan: Plan = engine.plan(
            operation,
            str(body.get("model") or ""),
            self._bound,
            provider=provider,
            who=who,
            fallback=fallback,
            layer=layer,
            where=where,
        )
        self.hold: Hold | None = None
        self._hide_usage = False
        self._new_reply()

    def _new_reply(self) -> None:
        self.reply = Reply(keep_text=self.engine.on_unknown == "estimate", choices=self._bound.choices)

    def reserved(self, hold: Hold) -> dict[str, Any]:
        """Take over the hold; the body to send under it."""
        if self.hold is not None:  # an attempt before this one may have been answered in part
            self._new_reply()
        self.hold = hold
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

    def read_body(self, content: bytes) -> bytes:
        """Take in a whole reply; what of it is for the caller, where it is events that came whole."""
        return read_whole(self.reply, content, hide_usage=self._hide_usage)

    def reader(self, *, events: bool) -> ReplyReader:
        """For a reply that is read as it passes.

        Args:
            events: whether it is said to be server-sent events; if not, it is looked at.
        """
        return ReplyReader(self.reply, events=events, hide_usage=self._hide_usage)

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
            return self._judge(reply.usage or Usage())
        if reply.usage is not None and not reply.final_usage:
            return self._judge(None, whole=False, note="the stream ended before its end", flag="broken")
        if self.operation == "responses":
            self.engine.planner.remember_context(reply.id, reply.usage)
        return self._judge(reply.usage)

    def interrupted(self, note: str, flag: str, *, done: bool = False) -> Outcome:
        """The outcome of a reply that was not received whole."""
        if self.reply.usage is not None and (self.reply.final_usage or done):
            return self.complete()
        return self._judge(None, whole=False, note=note, flag=flag)

    def _judge(self, usage: Usage | None, *, whole: bool = True, note: str = "", flag: str = "") -> Outcome:
        reply = self.reply
        evidence = Evidence(
            usage=usage,
            whole=whole,
            note=note,
            flag=flag,
            counting=self._counted if reply.text else None,
            model=reply.model,
            service_tier=reply.service_tier,
            provider_id=reply.id,
        )
        return judge(evidence, estimate=self.engine.on_unknown == "estimate")

    def _counted(self) -> Usage:
        return Usage(
            input_tokens=max(0, self.plan.ask.needs["input_tokens"].amount(0) - self._bound.slack),
            output_tokens=estimate_tokens("".join(self.reply.text), self.plan.model),
        )
