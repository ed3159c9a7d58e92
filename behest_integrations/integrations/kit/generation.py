"""A call of a model through a framework's own classes: its plan, and how its end is read.

An adapter says what is asked in OpenAI's shape (`messages`, `tools`, the output limit), tells
what was heard, and ends the hold with the outcome that it is handed here. Where a door sees the
HTTP exchange itself, `calls.exchange` knows more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ...engine.downgrading import reserving_either
from ...engine.engine import Engine
from ...engine.holds import Hold
from ...engine.outcomes import Evidence, Outcome, judge
from ...engine.plan import Plan
from ...engine.ruling import rule
from ...engine.steps import Steps
from ...prices import ASKS_NOBODY
from ...rules.attribution import NOBODY, Attribution, from_body
from ...rules.errors import ConfigError
from ...rules.usage import Usage, believable
from ...wire import RequestBound, bound_request
from ...wire.fields import CONTAINERS
from ...wire.standing_in import may_stand_in
from ...wire.tool_calls import conversation_of
from .settings import LIMIT_NAMES, lowered

if TYPE_CHECKING:
    from ...policy.placeholders import Restorer

# Asked to think, any model may do so in tokens that are billed and not shown.
_THINKING_ASKED = frozenset(
    {"reasoning", "reasoning_effort", "thinking", "thinking_budget", "thinking_level"}
)


@dataclass(frozen=True)
class Heard:
    """What came back, as far as metering is concerned.

    Attributes:
        usage: the provider's own; None if it sent none.
        text: everything that was generated, of every choice. It is counted, never kept.
        model, service_tier, provider_id: as the reply says.
        counted: whether `usage` is not the provider's own, but counted by us.
    """

    usage: Usage | None = None
    text: str = ""
    model: str | None = None
    service_tier: str | None = None
    provider_id: str | None = None
    counted: bool = False

    @classmethod
    def of(cls, usage: Usage | None, text: str, **said: Any) -> Heard:
        """What came back, by its usage if that can be true of such a text, else by the text itself."""
        if usage is not None and not believable(usage, text=len(text)):
            usage = None
        return cls(usage, "" if usage is not None else text, **said)


def texts_in(value: Any, but: Collection[str]) -> str:
    """Everything that was generated, in an answer as JSON.

    Args:
        but: names whose values are none of it.
    """
    if isinstance(value, Mapping):
        return "".join(texts_in(inner, but) for name, inner in value.items() if name not in but)
    if isinstance(value, (list, tuple)):
        return "".join(texts_in(inner, but) for inner in value)
    return value if isinstance(value, str) else ""


class Generation:
    """One call: its plan, and how to read its end.

    Args:
        request: in the shape of a chat completion request (or of an embeddings request).
        operation: ``chat``, ``completions`` or ``embeddings``.
        who, fallback, provider, layer, outer: see `Engine.plan`.
        can_limit: whether the adapter can send another output limit than the caller's.
        choices: how many answers are asked for.
        input_tokens: most tokens of the input, where the request does not show it.
        where: the server that it goes to, if known.
        deferred: a layer within sees more of the call, and asks the policy.
        view, remade: what is sent, as JSON, and the request from a view whose texts were changed; None: the
            adapter cannot change it.
        unread: kinds of content that go with it and are not in the request.
        conversation: what has been said so far, for `wire.tool_calls`; None: as in the request.
        model_field: the field of the model object that names the model; None: it cannot be changed.
        instead: the same call as it was asked for, where `request` names a cheaper model alone.

    Raises:
        ConfigError, UnknownPrice, Unbounded: the request cannot be bounded.
        PolicyRefused: the policy forbids it.
        LoopDetected: it shows the same tool called again and again.
    """

    def __init__(
        self,
        engine: Engine,
        request: Mapping[str, Any],
        *,
        operation: str = "chat",
        who: Attribution = NOBODY,
        fallback: Attribution = NOBODY,
        provider: str | None = None,
        can_limit: bool = False,
        choices: int = 1,
        input_tokens: int | None = None,
        layer: str = "",
        outer: Hold | None = None,
        where: str = "",
        deferred: bool = False,
        view: Mapping[str, Any] | None = None,
        remade: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
        unread: Sequence[str] = (),
        conversation: Callable[[], Sequence[Any]] | None = None,
        model_field: str | None = None,
        instead: Generation | None = None,
    ) -> None:
        self.engine = engine
        self._model_field = model_field
        asked = None
        if instead is not None:
            # The texts are looked through already, and the hold of the layer around is taken.
            around, asked, request = instead.plan.outer, instead.plan.model, {**instead._request, **request}
            outer = around if isinstance(around, Hold) else None
            if not may_stand_in(request, asked):
                raise ConfigError(f"{request['model']!r} does not take what {asked!r} is sent")
        self._named: Attribution = from_body(request) if instead is None else instead._named
        fallback = fallback.over(self._named)
        if engine.guarding is not None and instead is None:
            said = conversation or partial(conversation_of, request)
            engine.guarding.look(
                engine.planner,
                engine.auditor,
                operation,
                str(request.get("model") or ""),
                said,
                who,
                fallback,
            )
        options: dict[str, Any] = {"can_limit": can_limit, "choices": choices, "input_tokens": input_tokens}
        verdict = None
        self.restorer: Restorer | None = None
        if engine.policy is None or (deferred and instead is None):
            self.bound = _bound(engine, operation, request, provider, **options)
        else:
            ruled = rule(
                engine,
                operation,
                request,
                lambda asked: _bound(engine, operation, asked, provider, **options),
                who=who,
                fallback=fallback,
                provider=provider,
                where=where,
                layer=layer,
                outer=outer,
                can_limit=can_limit,
                can_change=remade is not None,
                view=view,
                remade=remade or (lambda seen: seen),
                unread=unread,
                asked_model=asked,
            )
            request, self.bound, verdict, outer, self.restorer = ruled
            if instead is not None:
                self.restorer, verdict = instead.restorer, None if deferred else verdict
        self._thinks = any(map(request.get, _THINKING_ASKED.intersection(request)))
        self.plan: Plan = engine.plan(
            operation,
            str(request.get("model") or ""),
            self.bound,
            provider=provider,
            who=who,
            fallback=fallback,
            layer=layer,
            outer=outer,
            verdict=verdict,
            asked=asked,
        )
        self._stands_in = asked is not None
        self._request: Mapping[str, Any] = {}
        self._made_with: dict[str, Any] = {}
        downgrade = engine.downgrade
        if (
            downgrade is not None
            and model_field is not None
            and downgrade.after(self.plan.model)
            and not asked
        ):
            self._request = request
            self._made_with = {
                "operation": operation, "who": who, "fallback": fallback, "provider": provider,
                "where": where, "layer": layer, "deferred": deferred, "model_field": model_field, **options,
            }  # fmt: skip

    def reserving(self) -> Steps[tuple[Generation, Hold]]:
        """The steps that reserve it, or the same call of a cheaper model where that stands in for it."""
        if not self._made_with:
            return self, (yield from self.engine.reserving(self.plan))

        def instead(model: str) -> Generation:
            return Generation(self.engine, {"model": model}, instead=self, **self._made_with)

        found, hold = yield from reserving_either(self.engine, self, instead)
        self._request, self._made_with = {}, {}
        return found, hold

    @property
    def stand_in(self) -> str | None:
        """The cheaper model that is asked in the place of the one that was asked for; None: none is."""
        return self.plan.model if self._stands_in else None

    @property
    def unlimited(self) -> bool:
        """Whether nothing limits the answer but our assumption of the default."""
        return self.bound.output_limit is None and not self.bound.limit_fields

    def limited(
        self, hold: Hold, model: Any, kwargs: dict[str, Any], field: str | None
    ) -> tuple[Any, dict[str, Any]]:
        """The model and the call's keywords with the output limit that `hold` allows.

        Args:
            model: a pydantic object; not changed, but copied with another setting.
            field: what the model calls its limit, which the call's own keywords come before.
        """
        limit = hold.output_limit
        if self._stands_in:
            model = model.model_copy(update={str(self._model_field): self.plan.model})
        if limit is None or limit == self.bound.output_limit:
            return model, kwargs
        names = {*LIMIT_NAMES, *self.bound.limit_fields}
        in_call = any(kwargs.get(name) is not None for name in LIMIT_NAMES)
        kwargs = lowered(kwargs, limit, names)
        changes: dict[str, Any] = {} if in_call else {str(field): limit}
        for name in CONTAINERS:
            extra = getattr(model, name, None)
            if isinstance(extra, dict) and (less := lowered(extra, limit, names)) != extra:
                changes[name] = less
        return (model.model_copy(update=changes) if changes else model), kwargs

    def say_unlimited(self, instead: str) -> None:
        """Say once a model that nothing limits its answers, for an adapter that cannot.

        Args:
            instead: the call that would.
        """
        plan = self.plan
        if self.unlimited and plan.shape.limited and plan.provider != ASKS_NOBODY:
            self.engine.notices.once(
                ("unlimited", plan.model),
                "model %r has no output limit, and a callback cannot set one: %d tokens are reserved for "
                "each answer, and a longer answer can pass a budget. Set the model's max_tokens, or use "
                "%s, which sends a limit.",
                plan.model,
                plan.ask.want,
                instead,
            )

    def complete(self, heard: Heard) -> Outcome:
        """The outcome of an answer that was received whole."""
        return self._judge(heard)

    def interrupted(self, heard: Heard, note: str, flag: str) -> Outcome:
        """The outcome of an answer that was not received whole.

        Usage is not taken at its word here: providers report running totals in a stream.
        """
        return self._judge(heard, whole=False, note=note, flag=flag)

    def failed(self, error: BaseException, heard: Heard | None = None, before: int = 0) -> Outcome:
        """The outcome of a call that raised; a stopped stream and a cancelled task included.

        Args:
            before: what was being handled when it began, see `errors.causes`.
        """
        heard = heard or Heard()
        if isinstance(error, GeneratorExit):
            return self.interrupted(heard, "the stream was closed before its end", "closed_early")
        if isinstance(error, asyncio.CancelledError) and heard.text:
            return self.interrupted(heard, "the task was cancelled", "cancelled")
        if heard.text:
            return self.interrupted(heard, f"the stream broke: {type(error).__name__}", "broken")
        return self._judge(heard, whole=False, error=error, before=before)

    def _judge(
        self,
        heard: Heard,
        *,
        whole: bool = True,
        note: str = "",
        flag: str = "",
        error: BaseException | None = None,
        before: int = 0,
    ) -> Outcome:
        has_output = self.bound.output_limit != 0
        slack = self.bound.slack
        evidence = Evidence(
            usage=heard.usage,
            counted=heard.counted,
            whole=whole,
            error=error,
            before=before,
            provider=self.plan.provider,
            note=note,
            flag=flag,
            counting=partial(self.plan.counted, heard.text, slack) if heard.text or not has_output else None,
            shows_all=not self._thinks and self._shows_all(),
            may_count=True,
            input_tokens=self.plan.counted_input(slack),
            has_output=has_output,
            model=heard.model,
            service_tier=heard.service_tier,
            provider_id=heard.provider_id,
        )
        return judge(evidence, estimate=self.engine.on_unknown == "estimate")

    def _shows_all(self) -> bool:
        """Whether all that this model is billed for as output is seen by us."""
        return self.engine.pricing.shows_all_it_writes(self.plan.model, self.plan.provider)


def _bound(
    engine: Engine,
    operation: str,
    request: Mapping[str, Any],
    provider: str | None,
    *,
    can_limit: bool,
    choices: int,
    input_tokens: int | None,
) -> RequestBound:
    if operation == "embeddings":
        bound = bound_request("embeddings", request, provider=provider, allowed=engine.allow_fields)
        return bound if input_tokens is None else bound._replace(input_tokens=input_tokens, slack=0)
    bound = bound_request("chat", request, provider=provider, allowed=engine.allow_fields)
    changes: dict[str, Any] = {"choices": max(choices, bound.choices)}
    if not can_limit or any("." in path for path in bound.limit_fields):
        changes["limit_fields"] = ()  # a limit deep inside a setting is not reached: it is held as it is
    previous = request.get("previous_response_id")
    if previous or request.get("conversation"):
        # What the provider has stored of the conversation is billed again.
        changes |= {"input_tokens": None, "extra_input": bound.input_tokens or 0, "previous": previous}
    if provider == ASKS_NOBODY:
        changes["features"] = {}  # nobody bills for a picture, either
    return bound._replace(**changes)
