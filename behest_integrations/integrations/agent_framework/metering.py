"""Middleware: of a run, which knows whom it is for; and of each request that the run makes, which is metered.

Where a client asks through an SDK's client that is metered, each attempt is reserved there, by the bytes
that are sent. Any other is held to its budgets here, by what it is about to be asked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from agent_framework import AgentMiddleware, ChatMiddleware, FunctionMiddleware, ResponseStream

from ...engine.engine import Engine
from ...rules.attribution import NOBODY, Attribution, in_run
from ...rules.errors import ConfigError
from ..kit.call import Call
from ..kit.clients import keeps_metered_clients
from ..kit.generation import Generation
from ..kit.hooks import Hook, Method, put_for
from ..kit.refusals import as_it_is
from ..kit.undo import Undo
from .internals import ASK, HANDED_ON, RUN, counts_cache_within, name_of, provider_of_client, url_of
from .translate import conversation_of, fold, hear, hear_updates, limited, request_as_wire

Next = Callable[[], Awaitable[None]]

_around: ContextVar[Attribution] = ContextVar("behest_agent_framework", default=NOBODY)
"""Whom the run is for whose tool is at work here."""


class Budgets(AgentMiddleware):  # type: ignore[misc]
    """See `AgentFrameworkDoor.agent_framework`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def process(self, context: Any, call_next: Next) -> None:
        """Hands on to the client what meters this run."""
        who = _who(context.agent, context.session)
        options = dict(context.client_kwargs or {})
        given = options.get(HANDED_ON) or []
        given = [m for m in given if not isinstance(m, (_Requests, _Tools))]
        options[HANDED_ON] = [*given, _Requests(self._engine, who), _Tools(who)]
        context.client_kwargs = options
        await call_next()


def _who(agent: Any, session: Any) -> Attribution:
    around, name = _around.get(), getattr(agent, "name", None)
    own = getattr(session, "session_id", None)
    try:
        said = Attribution(
            session_id=around.session_id or (own if isinstance(own, str) and own else None),
            tags={"agent": name} if isinstance(name, str) and name else {},
        )
    except ConfigError:  # the framework takes what can be no id of ours
        return around
    return said.over(around)


class _Tools(FunctionMiddleware):  # type: ignore[misc]
    """An agent that is a tool is part of the run that uses it."""

    def __init__(self, who: Attribution) -> None:
        self._who = who

    async def process(self, context: Any, call_next: Next) -> None:
        token = _around.set(self._who)
        try:
            await call_next()
        finally:
            _around.reset(token)


class _Requests(ChatMiddleware):  # type: ignore[misc]
    """Each request of a run, or of a client that nobody's run uses."""

    def __init__(self, engine: Engine, who: Attribution = NOBODY) -> None:
        self._engine = engine
        self._who = who

    async def process(self, context: Any, call_next: Next) -> None:
        engine, who = self._engine, self._who
        if engine.closed:
            await call_next()
            return
        with as_it_is():
            if keeps_metered_clients(context.client, engine):
                await self._beneath(context, call_next, who)
            else:
                await self._here(context, call_next, who)

    async def _beneath(self, context: Any, call_next: Next, who: Attribution) -> None:
        with in_run(NOBODY, who):
            await call_next()
        if isinstance(context.result, ResponseStream):
            context.result = _stream(context.result, partial(_each, _Updates(context.result), who))

    async def _here(self, context: Any, call_next: Next, who: Attribution) -> None:
        call = _call(self._engine, context, who)
        within = counts_cache_within(context.client)

        async def send(hold: Any) -> Any:
            limit = hold.output_limit
            if limit is not None and limit != call.generation.bound.output_limit:
                context.options = limited(context.options or {}, limit)
            await call_next()
            return context.result

        if not context.stream:
            await call.amade(send, partial(hear, cache_within=within))
            return
        stream = await call.aopened(send)
        read = partial(hear_updates, cache_within=within)
        context.result = _stream(stream, lambda: _each(call.aread(_Updates(stream), read, fold), who))


def _call(engine: Engine, context: Any, who: Attribution) -> Call:
    client, options, messages = context.client, context.options or {}, context.messages
    generation = Generation(
        engine,
        request_as_wire(name_of(client, options), messages, options),
        fallback=who,
        provider=provider_of_client(client),
        can_limit=True,
        where=url_of(client),
        conversation=lambda: conversation_of(messages),
    )
    return Call(generation, _Requests)


# ── streams ────────────────────────────────────────────────────────────────────────────


class _Updates:
    """A stream's own updates."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __anext__(self) -> Any:
        return await self._stream.__anext__()

    async def aclose(self) -> None:
        await self._stream.close()


@contextmanager
def _step(who: Attribution) -> Any:
    with as_it_is(), in_run(NOBODY, who):
        yield


async def _each(updates: Any, who: Attribution) -> AsyncIterator[Any]:
    try:
        while True:
            with _step(who):  # it is sent when its first update is asked for
                try:
                    update = await updates.__anext__()
                except StopAsyncIteration:
                    return
            yield update
    finally:
        await updates.aclose()


def _stream(stream: Any, watched: Callable[[], Any]) -> Any:
    """A stream of the same updates and the same end, which are watched as they pass."""
    return ResponseStream(watched(), finalizer=lambda _updates: stream.get_final_response())


# ── for the whole process ──────────────────────────────────────────────────────────────

_active: list[Engine] = []
"""Who meters all: the last that was begun and has not ended."""


def _running(own: Method) -> Method:
    def run(agent: Any, *args: Any, **kwargs: Any) -> Any:
        if not _active:
            return own(agent, *args, **kwargs)
        given = _listed(kwargs.get("middleware"))
        if not any(isinstance(m, Budgets) for m in (*given, *_listed(getattr(agent, "middleware", None)))):
            kwargs["middleware"] = [*given, Budgets(_active[-1])]
        return own(agent, *args, **kwargs)

    return run


def _asking(own: Method) -> Method:
    def get_response(client: Any, *args: Any, **kwargs: Any) -> Any:
        if not _active:
            return own(client, *args, **kwargs)
        options = dict(kwargs.get("client_kwargs") or {})
        given = _listed(options.get(HANDED_ON))
        if not any(isinstance(m, _Requests) for m in given):
            options[HANDED_ON] = [*given, _Requests(_active[-1], _around.get())]
            kwargs["client_kwargs"] = options
        return own(client, *args, **kwargs)

    return get_response


def _listed(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, (list, tuple)) else [given]


_HOOKS = (Hook(*RUN, _running), Hook(*ASK, _asking))


def meter_all(engine: Engine) -> Undo:
    """See `AgentFrameworkDoor.instrument_agent_framework`."""
    return put_for(_active, engine, _HOOKS)
