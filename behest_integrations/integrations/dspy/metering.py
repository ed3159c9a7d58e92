"""DSPy's language models, metered attempt by attempt.

What is asked by DSPy's own engine is reserved where it is sent (`sending`), and by LiteLLM where that is
metered itself; what is known here is for what it is. Whatever else asks (a custom engine, a model's own
`forward`, LiteLLM where nothing meters it) is held to its budgets here, by what DSPy asks of it; an SDK's
client within that is metered takes over that hold.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from dspy.clients.base_lm import BaseLM

from ...engine.contexts import carried, run_in
from ...engine.engine import Engine
from ...engine.holds import Hold
from ...prices import provider_named
from ...rules.attribution import NOBODY, Attribution, in_run
from ...rules.errors import BudgetExceeded, CallRefused, ConfigError
from ...wire.usage_shapes import read_usage
from ..kit.beneath import is_metered
from ..kit.call import Call
from ..kit.cutting import cut_off, note, noting
from ..kit.generation import Generation, Heard, texts_in
from ..kit.hooks import Hook, Method, put_all, put_for
from ..kit.metered import as_class, metered_class
from ..kit.naming import said_in
from ..kit.refusals import as_it_is
from ..kit.settings import provider_of, url_in
from ..kit.terms import Terms
from ..kit.undo import Undo
from .internals import (
    AWAITED,
    BLOCKING,
    EXECUTOR,
    PREDICT,
    TRANSPORTS,
    UNREADABLE,
    Attempt,
    answers_by_itself,
    execution,
    is_litellm,
    program,
    sends_by_us,
)
from .sending import asending, asking, sending


class Metered:
    """What all models that are metered on their own are."""

    _behest: Terms


_active: list[tuple[object, Terms]] = []
"""Who meters all that is asked: the last that was begun and has not ended."""


def _terms_of(lm: Any) -> Terms | None:
    if isinstance(lm, Metered):
        return lm._behest
    return _active[-1][1] if _active else None


def _who_meters() -> Terms | None:
    return asking.get() or (_active[-1][1] if _active else None)


# ── attempts ───────────────────────────────────────────────────────────────────────────


def _own() -> Attribution:
    name = program()
    return NOBODY if name is None else Attribution(tags={"module": name})


def _is_seen_beneath(terms: Terms, backend: Any) -> bool:
    if answers_by_itself(backend) or sends_by_us(backend):
        return True
    return is_litellm(backend) and is_metered("litellm", terms.engine)


def _call(terms: Terms, attempt: Attempt) -> Call:
    settings = attempt.settings()
    model = str(attempt.lm.model)
    maker, _, name = model.partition("/")
    provider = terms.provider or provider_of(settings, maker if name else "")
    metadata = settings.get("metadata")
    generation = Generation(
        terms.engine,
        {**attempt.asked(), "model": name if name and (provider or provider_named(maker)) else model},
        who=said_in(metadata) if isinstance(metadata, dict) else NOBODY,
        fallback=_own(),
        provider=provider,
        can_limit=True,
        where=url_in(settings),
    )
    return Call(generation, type(attempt.backend))


def _sent(call: Call, attempt: Attempt, hold: Hold) -> Attempt:
    limit = hold.output_limit
    if limit is None or limit == call.generation.bound.output_limit:
        return attempt
    return attempt.limited(limit)


def _hear(attempt: Attempt) -> Heard:
    answer = attempt.answer
    if answer is None:
        return Heard()
    model = answer.response_model
    return Heard.of(
        read_usage(answer.usage) if attempt.tells_usage else None,
        texts_in(answer.outputs, ("id", "type", "logprobs", "citations")),
        model=model if isinstance(model, str) and model else None,
    )


@contextmanager
def _kept_whole(call: Any) -> Iterator[None]:
    """An answer that had to be shorter than it was asked for is nothing to answer with from a cache."""
    holds: list[Hold] = []
    try:
        with noting(holds):
            yield
    finally:
        for hold in holds:
            note(hold)  # for whoever is around
            if hold.lowered_from is not None:
                call.cache = False


@contextmanager
def _passing_on(terms: Terms) -> Iterator[None]:
    token = asking.set(terms)
    try:
        with in_run(NOBODY, _own()):
            yield
    finally:
        asking.reset(token)


def _attempting(own: Method) -> Method:
    def attempt(*args: Any) -> Any:
        asked = Attempt(*args)
        terms = _terms_of(asked.lm)
        if terms is None:
            return own(*args)
        with _kept_whole(asked.call):
            if _is_seen_beneath(terms, asked.backend):
                with _passing_on(terms):
                    return own(*args)
            call = _call(terms, asked)
            return call.made(lambda hold: own(*_sent(call, asked, hold)), lambda _: _hear(asked))

    return attempt


def _aattempting(own: Method) -> Method:
    async def attempt(*args: Any) -> Any:
        asked = Attempt(*args)
        terms = _terms_of(asked.lm)
        if terms is None:
            return await own(*args)
        with _kept_whole(asked.call):
            if _is_seen_beneath(terms, asked.backend):
                with _passing_on(terms):
                    return await own(*args)
            call = _call(terms, asked)
            return await call.amade(lambda hold: own(*_sent(call, asked, hold)), lambda _: _hear(asked))

    return attempt


def _executing(own: Method) -> Method:
    def execute(lm: Any, call: Any) -> Any:
        if _terms_of(lm) is None:
            return own(lm, call)
        with as_it_is():
            return own(lm, call)

    return execute


def _aexecuting(own: Method) -> Method:
    async def execute(lm: Any, call: Any) -> Any:
        if _terms_of(lm) is None:
            return await own(lm, call)
        with as_it_is():
            return await own(lm, call)

    return execute


def _refusal(error: Exception, holds: list[Hold]) -> BudgetExceeded:
    """What to raise where an answer could not be read: the budget had no room for the rest of it."""
    refusal = cut_off(holds)
    if refusal is None:
        raise error
    return refusal


def _predicting(own: Method) -> Method:
    def forward(predict: Any, **kwargs: Any) -> Any:
        holds: list[Hold] = []
        try:
            with noting(holds):
                return own(predict, **kwargs)
        except UNREADABLE as error:
            raise _refusal(error, holds) from error

    return forward


def _apredicting(own: Method) -> Method:
    async def forward(predict: Any, **kwargs: Any) -> Any:
        holds: list[Hold] = []
        try:
            with noting(holds):
                return await own(predict, **kwargs)
        except UNREADABLE as error:
            raise _refusal(error, holds) from error

    return forward


def _in_parallel(own: Method) -> Method:
    """Jobs run in the sessions that they are begun in; who gives up because of refusals says so."""

    def execute(executor: Any, function: Callable[[Any], Any], data: Any) -> Any:
        what, refused = carried(), list[CallRefused]()

        def job(item: Any) -> Any:
            try:
                return run_in(what, function, item)
            except CallRefused as refusal:
                refused.append(refusal)
                raise

        try:
            return own(executor, job, data)
        except Exception as error:
            if not refused or error is refused[-1]:
                raise
            raise refused[-1] from error

    return execute


# ── for one model, and for the whole process ───────────────────────────────────────────

_HOOKS: tuple[Hook, ...] = (
    Hook(execution, BLOCKING[0], _executing),
    Hook(execution, AWAITED[0], _aexecuting),
    Hook(execution, BLOCKING[1], _attempting),
    Hook(execution, AWAITED[1], _aattempting),
    Hook(*PREDICT[0], _predicting),
    Hook(*PREDICT[1], _apredicting),
    Hook(*EXECUTOR, _in_parallel),
    Hook(*TRANSPORTS[0], partial(sending, _who_meters)),
    Hook(*TRANSPORTS[1], partial(asending, _who_meters)),
)
_lock = threading.Lock()
_for_good = False


def meter_model(engine: Engine, lm: Any, provider: str | None = None) -> Any:
    """See `DSPyDoor.dspy`."""
    global _for_good
    if not isinstance(lm, BaseLM):
        raise ConfigError(f"meter.dspy() takes a language model of DSPy, not {type(lm).__name__}")
    if isinstance(lm, Metered):
        raise ConfigError("this model is metered already")
    with _lock:
        if not _for_good:  # what they do is asked of the model
            put_all(_HOOKS)
            _for_good = True
    return as_class(lm, metered_class(Terms(engine, provider), type(lm), Metered))


def meter_all(engine: Engine) -> Undo:
    """See `DSPyDoor.instrument_dspy`."""
    return put_for(_active, (object(), Terms(engine)), _HOOKS)
