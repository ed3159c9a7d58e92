"""One attempt of one HTTP request of a wire that is known, metered; without doing any I/O.

A door (the client wrapper, the gateway) reserves the plan, sends `body`, tells what came
back, and ends the hold with the outcome that it is handed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from ..engine.downgrading import reserving_either
from ..engine.engine import Engine
from ..engine.holds import Hold
from ..engine.outcomes import Evidence, Outcome, judge, outcome_of_status
from ..engine.per_engine import PerEngine
from ..engine.plan import Plan
from ..engine.ruling import rule
from ..engine.steps import Steps
from ..rules.attribution import NOBODY, Attribution, from_body
from ..rules.errors import ConfigError
from ..rules.usage import Usage
from ..wire import (
    METERED_OPERATIONS,
    Reply,
    ReplyReader,
    asks_stream_usage,
    bound_request,
    read_whole,
    with_output_limit,
    with_stream_usage,
    without_stream_usage,
)
from ..wire.anthropic import MESSAGES
from ..wire.changes import TELL_UNASKED
from ..wire.hangups import OnAbandoned
from ..wire.replies import looks_like_events, parse_json
from ..wire.standing_in import may_stand_in
from ..wire.tokens import estimate_tokens
from ..wire.tool_calls import conversation_of
from ..wire.wires import bound_others
from .restoring import RestoringReader, restored_body

if TYPE_CHECKING:
    from ..policy.placeholders import Restorer

_NEWER_FIELD = ("openai", "azure")
"""Providers that take an output limit as `max_completion_tokens`; others read `max_tokens`."""

_TELLS: PerEngine[dict[str, bool]] = PerEngine(lambda engine: {})
"""Whether a server tells the usage of a stream when it is asked for it, as far as it has been seen."""
_REFUSED = (400, 422)
"""What servers answer to a field that they do not take."""
_MOST_SERVERS = 1000
_TERMS = ("speed", "inference_geo")
"""Fields of Anthropic's requests, and of its usage, on which the price depends."""


class Exchange:
    """A request and its reply, as far as metering is concerned.

    Args:
        operation: see `wire.operation_of`.
        body: the request's JSON; it is not changed.
        provider: the price list's provider id, if known.
        where: the server that it goes to, if known.
        service_tier: of the project there, where the request names none; None: what the engine says.
        on_abandoned: what is done with its stream if it is left; None: what the engine says.
        unread: kinds of content that go with it and are not in its JSON.
        ask_usage: whether the server may be asked for the usage of a stream.
        body_names: whether the body may say whom it is for, where nothing else does.
        instead: the same call as it was asked for, of another model, where this one would stand in for it.

    Raises:
        ConfigError, UnknownPrice, Unbounded: the request cannot be bounded.
        PolicyRefused: the policy forbids it.
        LoopDetected: it shows the same tool called again and again.
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
        service_tier: str | None = None,
        on_abandoned: OnAbandoned | None = None,
        unread: Sequence[str] = (),
        ask_usage: bool = True,
        body_names: bool = True,
        instead: Exchange | None = None,
    ) -> None:
        # Of what stands in, nothing but the model is said; it is for whom the call was asked for.
        named = NOBODY if not body_names else from_body(body) if instead is None else instead._named
        self._named: Attribution = named
        if instead is not None:
            body = {**instead._original, "model": body["model"]}
        self.engine = engine
        self._on_abandoned = on_abandoned
        self.operation = operation
        self.metered = operation in METERED_OPERATIONS
        self._original: Mapping[str, Any] = body
        self._where = where
        self._continued = operation == "responses" or (operation == MESSAGES and "thread" in body)
        """Whether another request may continue what the provider has stored of this one."""
        self._terms = {name: body[name] for name in _TERMS if isinstance(body.get(name), str)}
        self._ask_usage = ask_usage and engine.stream_usage
        self._tells_anyway = provider in TELL_UNASKED
        fallback = fallback.over(named)
        if engine.guarding is not None and instead is None:
            asks = str(body.get("model") or "")
            engine.guarding.look(
                engine.planner, engine.auditor, operation, asks, partial(conversation_of, body), who, fallback
            )
        outer: Hold | None = None
        verdict = asked = None
        self._restorer: Restorer | None = None
        if instead is not None:
            # The texts are looked through already, and the hold of the layer around is taken.
            around, asked, self._restorer = instead.plan.outer, instead.plan.model, instead._restorer
            outer = around if isinstance(around, Hold) else None
            if not may_stand_in(body, asked):
                raise ConfigError(f"{body['model']!r} does not take what {asked!r} is sent")
        options: dict[str, Any] = {
            "prefer_max_tokens": provider not in _NEWER_FIELD,
            "provider": provider,
            "allowed": engine.allow_fields,
        }
        if engine.policy is not None:
            ruled = rule(
                engine,
                operation,
                body,
                partial(bound_request, operation, **options)
                if self.metered
                else partial(bound_others, operation, provider=provider),
                who=who,
                fallback=fallback,
                provider=provider,
                where=where,
                layer=layer,
                outer=outer,
                unread=("realtime",) if operation == "realtime" else unread,
                asked_model=asked,
            )
            self._original, self._bound, verdict, outer, self._restorer = ruled
            if instead is not None:
                self._restorer = instead._restorer
                if (found := instead.plan.verdict) is not None:
                    verdict.kind, verdict.found = found.kind, found.found
        elif self.metered:
            self._bound = bound_request(operation, body, **options)
        else:
            self._bound = bound_others(operation, body, provider)
        if service_tier is not None and self.metered and self._bound.service_tier is None:
            self._bound = self._bound._replace(service_tier=service_tier)
        self.plan: Plan = engine.plan(
            operation,
            str(body.get("model") or ""),
            self._bound,
            provider=provider,
            who=who,
            fallback=fallback,
            layer=layer,
            outer=outer,
            where=where,
            verdict=verdict,
            asked=asked,
        )
        self.hold: Hold | None = None
        self._new_reply()

    def reserving(self, instead: Callable[[str], Exchange | None]) -> Steps[tuple[Exchange, Hold]]:
        """The steps that reserve it, or what stands in for it.

        Args:
            instead: the same call of another model; see `downgrading.reserving_either`.
        """
        if self.engine.downgrade is None or not self.metered:
            return self, (yield from self.engine.reserving(self.plan))
        return (yield from reserving_either(self.engine, self, instead))

    def _new_reply(self) -> None:
        self._hide_usage = False
        self._untold = False
        """Whether the reply will tell no usage, because it was not asked to."""
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
            if not self._tells_anyway and self._ask_usage and _TELLS.of(self.engine).get(self._where, True):
                self._hide_usage = True
                body = with_stream_usage(body)
            elif not self._tells_anyway:
                self._not_told()
        return body

    def _not_told(self) -> None:
        self._hide_usage, self._untold = False, True
        self.reply.keep_text = True

    def answered(self, status: int, said: object = None) -> bool:
        """Note what the server has answered; whether the same is to be sent again, as `unasked` makes it.

        A server that does not know `stream_options` refuses what worked without us. It is asked for
        usage no more, once the same request has been taken without them. What a filter has stopped it
        has understood, and may bill: that is not sent again.

        Args:
            said: an error's body, as far as it has been read.
        """
        if not self._hide_usage:
            if self._untold and 200 <= status < 300:
                self._note(False)
            return False
        if 200 <= status < 300:
            self._note(True)
        elif status in _REFUSED and not _TELLS.of(self.engine).get(self._where, False):
            outcome = outcome_of_status(status, said, self.plan.provider)
            if outcome is not None and outcome.status == "assumed":
                return False
            self._not_told()
            return True
        return False

    def _note(self, tells: bool) -> None:
        known = _TELLS.of(self.engine)
        if self._where and known.get(self._where) is not tells and self._ask_usage:
            if len(known) >= _MOST_SERVERS:
                known.clear()
            known[self._where] = tells
            if not tells:
                self.engine.notices.once(
                    ("stream_options", self._where),
                    "%s refuses `stream_options`, so its streams tell no usage: what is seen of them is "
                    "counted where the model is known to show all that it writes, and else the worst "
                    "case is booked",
                    self._where,
                )

    @property
    def reads_on(self) -> bool:
        """Whether its stream is read on in the background when its reader has left."""
        # https://platform.openai.com/docs/guides/background: it is made whether or not its stream is read.
        return self.engine.reads_on(
            self.plan.provider, self._on_abandoned, goes_on=bool(self._original.get("background"))
        )

    def forget(self) -> None:
        """Let go of the request's body: it will not be sent again."""
        self._original = {}

    # ── what came back ─────────────────────────────────────────────────────────────────

    def read_body(self, content: bytes) -> bytes:
        """Take in a whole reply; what of it is for the caller, where it is events that came whole."""
        shown = read_whole(self.reply, content, hide_usage=self._hide_usage)
        if self._restorer is None:
            return shown
        if looks_like_events(shown[:256]):
            reader = RestoringReader(ReplyReader(Reply(), events=True, hide_usage=False), self._restorer)
            return reader.feed(shown) + reader.finish()
        return restored_body(shown, self._restorer)

    def reader(self, *, events: bool) -> ReplyReader | RestoringReader:
        """For a reply that is read as it passes.

        Args:
            events: whether it is said to be server-sent events; if not, it is looked at.
        """
        reader = ReplyReader(self.reply, events=events, hide_usage=self._hide_usage)
        return reader if self._restorer is None else RestoringReader(reader, self._restorer)

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
        if self._continued:
            self.engine.planner.remember_context(reply.id, reply.usage)
        return self._judge(reply.usage)

    def interrupted(self, note: str, flag: str, *, done: bool = False) -> Outcome:
        """The outcome of a reply that was not received whole."""
        if self.reply.usage is not None and (self.reply.final_usage or done):
            return self.complete()
        return self._judge(None, whole=False, note=note, flag=flag)

    def _judge(self, usage: Usage | None, *, whole: bool = True, note: str = "", flag: str = "") -> Outcome:
        reply = self.reply
        told = self.operation == MESSAGES and usage is not None
        evidence = Evidence(
            usage=usage,
            whole=whole,
            note=note,
            flag=flag,
            counting=self._counted if reply.text else None,
            shows_all=self._untold
            and self.engine.pricing.shows_all_it_writes(self.plan.model, self.plan.provider),
            may_count=self._untold,
            model=reply.model,
            service_tier=reply.service_tier,
            provider_id=reply.id,
            # Who tells a price's terms tells all of them: what is not told is as it was asked for.
            terms={"inference_geo": "global", **self._terms, **reply.terms} if told else {},
            uses=reply.uses if told else None,
        )
        return judge(evidence, estimate=self.engine.on_unknown == "estimate")

    def _counted(self) -> Usage:
        plan, text, slack = self.plan, "".join(self.reply.text), self._bound.slack
        if self.engine.on_unknown == "estimate":
            return Usage(plan.counted_input(slack), estimate_tokens(text, plan.model))
        return plan.counted(text, slack)


def unasked(content: bytes) -> bytes:
    """The JSON of a request, less the `stream_options` that were put into it."""
    return to_json(without_stream_usage(parse_json(content)))
