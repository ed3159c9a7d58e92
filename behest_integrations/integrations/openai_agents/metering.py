"""Any model of the Agents SDK, metered: an object of a subclass of its own class.

OpenAI's models ask through a client that is metered, attempt by attempt; here is known whom a call is for.
Any other model (LiteLLM's, one of your own, OpenAI's over websockets) is held to its budgets here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from agents.exceptions import ModelBehaviorError
from agents.models.interface import Model, ModelProvider

from ...calls.exchange import Exchange
from ...engine.engine import Engine
from ...engine.holds import Hold
from ...prices import provider_for_url
from ...rules.attribution import in_run
from ...rules.errors import ConfigError
from ..kit.call import Call
from ..kit.clients import keeps_metered_clients, meter_clients_of
from ..kit.cutting import cut_off, noting
from ..kit.generation import Generation
from ..kit.metered import as_class, metered_class
from ..kit.settings import lowered
from ..kit.stainless import Making
from ..kit.stand_ins import stands_in
from ..kit.terms import Terms
from ..kit.undo import Undo
from .internals import INCOMPLETE_IS_AN_ERROR, WEBSOCKETS, note_runs, whose
from .translate import fold, hear, hear_events, name_and_url, request_as_wire

_NAMES = (
    "system_instructions", "input", "model_settings", "tools", "output_schema", "handoffs", "tracing",
)  # fmt: skip
"""The arguments of a model's two methods, in their order."""


class Metered:
    """What all metered models, and providers of them, are."""

    _behest: Terms


def _seen_below(model: Any) -> bool:
    """Whether what is asked is seen by a metered client; a websocket is seen by none."""
    websockets = any(c.__name__ == WEBSOCKETS for c in type(model).__mro__)
    return not websockets and keeps_metered_clients(model, model._behest.engine)


def _call(model: Any, asked: dict[str, Any]) -> tuple[Call, Any]:
    """A call that is held to its budgets here, and how to get the arguments to make it with."""
    terms: Terms = model._behest
    name, url = name_and_url(model)
    said, own = whose()
    generation = Generation(
        terms.engine,
        request_as_wire(name, asked),
        who=said,
        fallback=own,
        provider=terms.provider or stands_in(type(model)) or (provider_for_url(url) if url else None),
        can_limit=True,
        where=url,
    )

    def limited(hold: Any) -> dict[str, Any]:
        limit, settings = hold.output_limit, asked["model_settings"]
        if limit is None:
            return asked
        own = {name: getattr(settings, name) for name in ("extra_args", "extra_body")}
        return {**asked, "model_settings": replace(settings, **lowered(own, limit), max_tokens=limit)}

    return Call(generation, type(model)), limited


def _asked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(_NAMES, args, strict=False)), **kwargs}


async def _get_response(self: Any, *args: Any, **kwargs: Any) -> Any:
    own = super(Metered, self).get_response
    asked = _asked(args, kwargs)
    holds: list[Hold] = []
    try:
        with noting(holds):
            if _seen_below(self):
                with in_run(*whose()):
                    return await own(**asked)
            call, limited = _call(self, asked)
            return await call.amade(lambda hold: own(**limited(hold)), hear)
    except ModelBehaviorError as error:
        refusal = cut_off(holds)
        if refusal is None:
            raise
        raise refusal from error


async def _stream_response(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
    own = super(Metered, self).stream_response
    asked = _asked(args, kwargs)
    who, holds = whose(), list[Hold]()
    events: Any
    if _seen_below(self):
        events = own(**asked)
    else:
        call, limited = _call(self, asked)
        with noting(holds):
            opened = await call.aopened(lambda hold: own(**limited(hold)))
        events = call.aread(opened, hear_events, fold)
    try:
        while True:
            with in_run(*who), noting(holds):  # a stream is opened when its first event is asked for
                try:
                    event = await events.__anext__()
                except StopAsyncIteration:
                    return
            if INCOMPLETE_IS_AN_ERROR and event.type == "response.incomplete":
                refusal = cut_off(holds)
                if refusal is not None:
                    raise refusal
            yield event
    finally:
        await events.aclose()


def _get_model(self: Any, model_name: Any) -> Any:
    model = super(Metered, self).get_model(model_name)
    terms: Terms = self._behest
    return model if isinstance(model, Metered) else meter_model(terms.engine, model, terms.provider)


def _methods(base: Any) -> dict[str, Any]:
    if issubclass(base, ModelProvider):
        return {"get_model": _get_model}
    return {"get_response": _get_response, "stream_response": _stream_response}


def _class_of(base: Any, terms: Terms) -> Any:
    return metered_class(terms, base, Metered, lambda: _methods(base))


def meter_model(engine: Engine, model: Any, provider: str | None = None) -> Any:
    """See `OpenAIAgentsDoor.openai_agents`."""
    if not isinstance(model, (Model, ModelProvider)):
        raise ConfigError(
            "meter.openai_agents() takes a Model or a ModelProvider of the Agents SDK, not "
            f"{type(model).__name__}"
        )
    if isinstance(model, Metered):
        raise ConfigError("this model is metered already")
    note_runs()
    metered = as_class(model, _class_of(type(model), Terms(engine, provider)))
    meter_clients_of(metered, engine, provider)
    return metered


_making = Making(Metered, _class_of)


def meter_what_is_made(engine: Engine) -> Undo:
    """See `OpenAIAgentsDoor.instrument_openai_agents`."""
    note_runs()
    return _making.begin(Terms(engine), (Model,))


# ── speech ─────────────────────────────────────────────────────────────────────────────


class MeteredSpeech:
    """A speech session that is counted, or refused, before it connects."""

    _behest: Terms


async def _connect(self: Any, *args: Any, **kwargs: Any) -> Any:
    engine = self._behest.engine
    said, own = whose()
    exchange = Exchange(engine, "realtime", {}, who=said, fallback=own, provider="openai")
    hold = await engine.areserve(exchange.plan)
    try:
        return await super(MeteredSpeech, self).connect(*args, **kwargs)
    finally:
        hold.post(exchange.complete())


def _speech_of(base: Any, terms: Terms) -> Any:
    return metered_class(terms, base, MeteredSpeech, lambda: {"connect": _connect})


_speaking = Making(MeteredSpeech, _speech_of)


def count_speech(engine: Engine) -> Undo:
    """See `OpenAIAgentsDoor.instrument_openai_agents_realtime`."""
    from agents.realtime.model import RealtimeModel

    return _speaking.begin(Terms(engine), (RealtimeModel,))
