"""A call of a model through a framework's own classes, metered; without doing any I/O.

An adapter says what is asked in OpenAI's shape (`messages`, `tools`, the output limit), tells
what was heard, and ends the hold with the outcome that it is handed here. Where a door sees the
HTTP exchange itself, `exchange` knows more.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from ...engine.calls import Hold, Offer, Outcome, offering, outcome_of_error
from ...engine.planning import Plan
from ...engine.steps import Steps
from ...meter import Meter
from ...prices.pricing import provider_for_url, provider_named
from ...rules.attribution import NOBODY, Attribution
from ...rules.usage import Usage
from ...wire import RequestBound, bound_request
from ...wire.tokens import bound_tokens

log = logging.getLogger("behest")

K = TypeVar("K")
R = TypeVar("R")

LIMIT_NAMES = (
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "num_predict",
    "max_new_tokens",
    "max_tokens_to_sample",
    "maxOutputTokens",
)
"""What frameworks' model classes call their output limit."""

ASKED = (
    "tools", "functions", "response_format", "web_search_options", "modalities", "prediction", "audio", "n",
    "service_tier", "previous_response_id", "conversation", "reasoning", "reasoning_effort", "thinking",
    "thinking_budget", "thinking_level",
)  # fmt: skip
"""Settings, by their usual names, that change what a request may come to."""

_COUNTED = "the reply has no usage: it was counted"

_MODEL_NAMES = ("model", "model_name", "model_id", "deployment_name", "azure_deployment", "repo_id")
_URL_NAMES = ("openai_api_base", "base_url", "anthropic_api_url", "api_base", "endpoint", "api_url")

# Models that think in tokens which are billed and not shown: what is seen of their answer says
# nothing of its cost. https://platform.openai.com/docs/guides/reasoning
_THINKS_UNSEEN = ("o1", "o3", "o4", "gpt-5")
_THINKING_ASKED = ("reasoning", "reasoning_effort", "thinking", "thinking_budget", "thinking_level")


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


def model_in(settings: Mapping[str, Any]) -> str | None:
    """The model that settings name, whatever they call it."""
    return next((m for n in _MODEL_NAMES if isinstance(m := settings.get(n), str) and m), None)


def provider_of(settings: Mapping[str, Any], maker: str) -> str | None:
    """The price list's id of the provider that a model object will call.

    Args:
        settings: its base URL, if it has one, whatever they call it.
        maker: the package or framework's name for the provider. OpenAI's classes are used for
            any compatible server, so that their name alone does not speak against the URL.
    """
    url = next((u for n in _URL_NAMES if isinstance(u := settings.get(n), str) and u), None)
    if not url:
        return provider_named(maker)
    return provider_for_url(url) or (None if maker in ("", "openai") else provider_named(maker))


def output_limit(*sources: Mapping[str, Any]) -> int | None:
    """The output limit that settings carry, whatever they call it; the largest, None if none."""
    limits = [
        value
        for source in sources
        for name in LIMIT_NAMES
        if isinstance(value := source.get(name), int) and not isinstance(value, bool) and value > 0
    ]
    return max(limits) if limits else None


class Generation:
    """One call: its plan, and how to read its end.

    Args:
        request: in the shape of a chat completion request (or of an embeddings request).
        operation: ``chat``, ``completions`` or ``embeddings``.
        can_limit: whether the adapter can send another output limit than the caller's.
        choices: how many answers are asked for.
        input_tokens: most tokens of the input, where the request does not show it.

    Raises:
        ConfigError, UnknownPrice, Unbounded: the request cannot be bounded.
    """

    def __init__(
        self,
        meter: Meter,
        request: Mapping[str, Any],
        *,
        operation: str = "chat",
        who: Attribution = NOBODY,
        fallback: Attribution = NOBODY,
        provider: str | None = None,
        can_limit: bool = False,
        choices: int = 1,
        input_tokens: int | None = None,
    ) -> None:
        self.meter = meter
        self.bound = _bound(meter, operation, request, provider, can_limit=can_limit, choices=choices)
        if input_tokens is not None:
            self.bound = self.bound._replace(input_tokens=input_tokens, slack=0)
        self._thinks = any(request.get(name) for name in _THINKING_ASKED)
        self.plan: Plan = meter.plan(
            operation,
            str(request.get("model") or ""),
            self.bound,
            provider=provider,
            who=who,
            fallback=fallback,
        )

    @property
    def unlimited(self) -> bool:
        """Whether nothing limits the answer but our assumption of the default."""
        return self.bound.output_limit is None and not self.bound.limit_fields

    @property
    def _input(self) -> int:
        """The tokens of the request, as we count them."""
        return max(0, self.plan.ask.needs["input_tokens"].amount(0) - self.bound.slack)

    def limited(
        self, hold: Hold, model: Any, kwargs: dict[str, Any], field: str | None
    ) -> tuple[Any, dict[str, Any]]:
        """The model and the call's keywords with the output limit that `hold` allows.

        Args:
            model: a pydantic object; not changed, but copied with another setting.
            field: what the model calls its limit, which the call's own keywords come before.
        """
        limit = hold.output_limit
        if limit is None or limit == self.bound.output_limit:
            return model, kwargs
        if any(kwargs.get(name) is not None for name in LIMIT_NAMES):
            return model, {k: limit if k in LIMIT_NAMES and v is not None else v for k, v in kwargs.items()}
        changes: dict[str, Any] = {str(field): limit}
        for name in _FREE_KEYWORDS:
            extra = getattr(model, name, None)
            if isinstance(extra, dict) and any(n in extra for n in LIMIT_NAMES):
                changes[name] = {k: limit if k in LIMIT_NAMES else v for k, v in extra.items()}
        return model.model_copy(update=changes), kwargs

    def say_unlimited(self, instead: str) -> None:
        """Say once a model that nothing limits its answers, for an adapter that cannot.

        Args:
            instead: the call that would.
        """
        plan = self.plan
        if not self.unlimited or not {b.unit for b in plan.budgets} & {"usd", "tokens", "output_tokens"}:
            return
        told: set[str] = self.meter.attached("unlimited.told", set)
        if plan.model in told:
            return
        told.add(plan.model)
        log.warning(
            "model %r has no output limit, and a callback cannot set one: %d tokens are reserved for "
            "each answer, and a longer answer can pass a budget. Set the model's max_tokens, or use "
            "%s, which sends a limit.",
            plan.model,
            plan.ask.want,
            instead,
        )

    def complete(self, heard: Heard) -> Outcome:
        """The outcome of an answer that was received whole."""
        usage = heard.usage
        if usage is not None and heard.counted:
            return self._outcome(
                "estimated", usage, heard, "the reply has no usage: it was counted", "no_usage"
            )
        if usage is not None and (usage.input_tokens or not self._input):
            return self._outcome("settled", usage, heard)
        if usage is not None:
            usage = replace(usage, input_tokens=self._input)
            return self._outcome(
                "estimated", usage, heard, "its input was counted: it was told as 0", "no_input"
            )
        if self.bound.output_limit == 0:
            return self._counted(heard, _COUNTED)
        unseen = self._thinks or self.plan.model.startswith(_THINKS_UNSEEN)
        if not heard.text or unseen:
            return self._outcome("assumed", None, heard, "the reply has no usage", "no_usage")
        return self._counted(heard, _COUNTED)

    def interrupted(self, heard: Heard, note: str, flag: str) -> Outcome:
        """The outcome of an answer that was not received whole.

        Usage is not taken at its word here: providers report running totals in a stream.
        """
        if self.meter.on_unknown == "estimate" and heard.text:
            return self._counted(heard, note, flag)
        return self._outcome("assumed", None, heard, note, flag)

    def failed(self, error: BaseException, heard: Heard = Heard()) -> Outcome:
        """The outcome of a call that raised; a stopped stream and a cancelled task included."""
        if isinstance(error, GeneratorExit):
            return self.interrupted(heard, "the stream was closed before its end", "closed_early")
        if isinstance(error, asyncio.CancelledError) and heard.text:
            return self.interrupted(heard, "the task was cancelled", "cancelled")
        if heard.text:
            return self.interrupted(heard, f"the stream broke: {type(error).__name__}", "broken")
        return outcome_of_error(error)

    def _counted(self, heard: Heard, note: str, flag: str = "no_usage") -> Outcome:
        """From above: the tokenizer's count or the bytes, and never more than was reserved."""
        most = self.plan.ask.needs["output_tokens"].amount(self.plan.ask.want)
        output = min(most, bound_tokens(heard.text, self.plan.model)) if heard.text else 0
        usage = Usage(self._input, output)
        return self._outcome("estimated", usage, heard, note, flag)

    @staticmethod
    def _outcome(status: Any, usage: Usage | None, heard: Heard, note: str = "", flag: str = "") -> Outcome:
        return Outcome(
            status,
            usage,
            model=heard.model,
            service_tier=heard.service_tier,
            provider_id=heard.provider_id,
            note=note,
            flags=(flag,) if flag else (),
        )


_FREE_KEYWORDS = ("model_kwargs", "additional_kwargs")


def _bound(
    meter: Meter,
    operation: str,
    request: Mapping[str, Any],
    provider: str | None,
    *,
    can_limit: bool,
    choices: int,
) -> RequestBound:
    if operation == "embeddings":
        return bound_request("embeddings", request, provider=provider, allowed=meter.allow_fields)
    bound = bound_request("chat", request, provider=provider, allowed=meter.allow_fields)
    changes: dict[str, Any] = {"choices": max(choices, bound.choices)}
    if not can_limit:
        changes["limit_fields"] = ()
    previous = request.get("previous_response_id")
    if previous or request.get("conversation"):
        # What the provider has stored of the conversation is billed again.
        changes |= {"input_tokens": None, "extra_input": bound.input_tokens or 0, "previous": previous}
    return bound._replace(**changes)


class Runs(Generic[K, R]):
    """What callbacks have seen begin and not yet end, by the framework's id.

    Some never end for us (another handler raised after ours): their holds end by lease, and
    they are forgotten then.
    """

    _MANY = 1024

    def __init__(self, lease_ms: int) -> None:
        self._lease_ms = lease_ms
        self._runs: dict[K, tuple[int, R]] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._runs

    def get(self, key: K) -> R | None:
        """The run of this id."""
        found = self._runs.get(key)
        return found[1] if found else None

    def put(self, key: K, run: R, hold: Hold) -> None:
        """A run has begun."""
        if len(self._runs) >= self._MANY:
            horizon = hold.started - self._lease_ms
            for other, (started, _) in list(self._runs.items())[: self._MANY // 2]:
                if started < horizon:
                    self._runs.pop(other, None)
        self._runs[key] = (hold.started, run)

    def pop(self, key: K) -> R | None:
        """A run has ended; for one caller only."""
        found = self._runs.pop(key, None)
        return found[1] if found else None


# ── making the call ────────────────────────────────────────────────────────────────────

_inside: ContextVar[frozenset[object]] = ContextVar("behest_inside", default=frozenset())


def is_inside(key: object) -> bool:
    """Whether a call of this key is under way here: a model's methods call each other."""
    return key in _inside.get()


Send = Callable[[Hold], Any]
Listen = Callable[[Any], Heard]
Fold = Callable[[Any, Any], Any]


class Call:
    """One call of a metered model, from its hold to its end.

    `made`/`amade` for answers that come whole; `opened` and then `read` for streams.

    Args:
        generation: the call's plan.
        outer: the hold of the layer around, which this one's replaces.
        keys: what `is_inside` answers to while the model is at work.
    """

    def __init__(self, generation: Generation, outer: Hold | None, *keys: object) -> None:
        self.generation = generation
        self.meter = generation.meter
        self._outer = outer
        self._keys = frozenset(keys)
        self._hold: Hold | None = None
        self._offer: Offer | None = None

    def _reserve(self) -> Steps[Hold]:
        hold = yield from self.meter.reserving(self.generation.plan, self._outer)
        self._hold, self._offer = hold, Offer(hold, "model")
        return hold

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Around what the model does, and not around what its caller does between two chunks."""
        assert self._hold is not None
        assert self._offer is not None
        token = _inside.set(_inside.get() | self._keys)
        try:
            with offering(self._offer, self._hold):
                yield
        finally:
            _inside.reset(token)

    def _answering(self) -> None:
        if self._offer is not None:
            self._offer.withdraw()

    def _answered(self, listen: Listen, result: Any) -> Steps[None]:
        self._answering()
        assert self._hold is not None
        yield from ending(self._hold, self.generation.complete(heard(listen, result)))

    def _failed(self, error: BaseException, heard: Heard = Heard()) -> Steps[None]:
        self._answering()
        if self._hold is not None:
            yield from ending(self._hold, self.generation.failed(error, heard), error)

    def _hang_up(self) -> Any:
        """Not every framework closes the stream under one that it is asked to close. Left to the
        garbage collector, it goes on being generated and billed, and is closed at a moment when
        its HTTP library may hold a lock of its own."""
        hang_up = self._hold.last.hang_up if self._hold is not None else None
        return hang_up() if hang_up is not None else None

    def opened(self, send: Send) -> Any:
        """What `send` returns, called under the hold; the call goes on."""
        hold = self.meter.run(self._reserve())
        try:
            with self._at_work():
                return send(hold)
        except BaseException as error:
            self.meter.run(self._failed(error))
            raise

    async def aopened(self, send: Send) -> Any:
        """`opened` for coroutines; what `send` returns is awaited if it can be."""
        hold = await self.meter.arun(self._reserve())
        try:
            with self._at_work():
                result = send(hold)
                return await result if inspect.isawaitable(result) else result
        except BaseException as error:
            await self.meter.arun(self._failed(error))
            raise

    def made(self, send: Send, listen: Listen) -> Any:
        """The whole call."""
        result = self.opened(send)
        self.meter.run(self._answered(listen, result))
        return result

    async def amade(self, send: Send, listen: Listen) -> Any:
        """The whole call, for coroutines."""
        result = await self.aopened(send)
        await self.meter.arun(self._answered(listen, result))
        return result

    def read(self, chunks: Any, listen: Listen, fold: Fold, *, primed: bool = False) -> Iterator[Any]:
        """The chunks of a stream as they come; the call ends with it.

        Args:
            listen: what the folded chunks say.
            fold: adds a chunk to what came before (None at first).
            primed: yield None first: a generator that has begun is closed when it is dropped.
        """
        so_far: Any = None
        try:
            if primed:
                yield None
            while True:
                with self._at_work():
                    chunk = next(chunks, _END)
                if chunk is _END:
                    break
                self._answering()
                so_far = fold(so_far, chunk)
                yield chunk
        except BaseException as error:
            if isinstance(error, GeneratorExit):
                if hasattr(chunks, "close"):
                    chunks.close()
                self._hang_up()
            self.meter.run(self._failed(error, heard(listen, so_far)))
            raise
        self.meter.run(self._answered(listen, so_far))

    async def aread(
        self, chunks: Any, listen: Listen, fold: Fold, *, primed: bool = False
    ) -> AsyncIterator[Any]:
        """`read` for coroutines."""
        so_far: Any = None
        try:
            if primed:
                yield None
            while True:
                with self._at_work():
                    try:
                        chunk = await chunks.__anext__()
                    except StopAsyncIteration:
                        break
                self._answering()
                so_far = fold(so_far, chunk)
                yield chunk
        except BaseException as error:
            # Posted before anything is awaited: a cancelled task may not get further.
            await self.meter.arun(self._failed(error, heard(listen, so_far)))
            if isinstance(error, GeneratorExit):
                if hasattr(chunks, "aclose"):
                    await chunks.aclose()
                hanging_up = self._hang_up()
                if inspect.isawaitable(hanging_up):
                    await hanging_up
            raise
        await self.meter.arun(self._answered(listen, so_far))


_END = object()


def heard(listen: Listen, result: Any) -> Heard:
    """What an answer says; nothing where it cannot be read: it must reach its caller."""
    try:
        return listen(result)
    except Exception:
        log.exception("a reply could not be read: its worst case is booked")
        return Heard()


def is_abandoned(error: BaseException | None) -> bool:
    """Whether the call's owner is gone or must not wait: its hold is then ended by `post`."""
    return isinstance(error, (GeneratorExit, asyncio.CancelledError))


def ending(hold: Hold, outcome: Outcome, error: BaseException | None = None) -> Steps[None]:
    """The steps that end `hold`; none where nobody must wait for them."""
    if is_abandoned(error):
        hold.last.post(outcome)  # the layer within may not have noticed
        return
    heir = hold.heir
    if outcome.status == "estimated" and heir is not None and heir.without_usage:
        hold = heir  # it saw the reply pass, and not its text
    steps = hold.meter.ending(hold, outcome)
    if steps is not None:
        yield from steps
