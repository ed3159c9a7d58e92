"""A plugin that knows whom a run is for, and has the model that its agent asks metered.

The plugin only says so, in a context variable: what it raised itself would leave the runner in an error of
the ADK's. What is asked is reserved where the model is asked, or by the SDK beneath, where that is metered.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

from google.adk.plugins.base_plugin import BasePlugin

from ...calls.exchange import Exchange
from ...engine.engine import Engine
from ...rules.attribution import NOBODY, Attribution, in_run
from ...rules.errors import ConfigError
from ..kit.call import Call, is_inside
from ..kit.generation import Generation
from ..kit.hooks import Hook, Method, put_for
from ..kit.sockets import acount
from ..kit.undo import Undo
from .internals import (
    ASKS,
    CALLBACKS,
    PluginManager,
    invocation_of,
    is_live,
    is_seen_beneath,
    maker_of,
    model_of,
)
from .translate import conversation_of, fold, hear, limited, name_of, request_as_wire

NAME = "behest"
_KEY = "google_adk"


class _Run(NamedTuple):
    """What is known of the run around: the outermost, of those that are each other's tools."""

    engine: Engine
    session_id: str
    user_id: str
    app: str


_run: ContextVar[_Run | None] = ContextVar("behest_adk_run", default=None)
_asking: ContextVar[tuple[Engine, Attribution] | None] = ContextVar("behest_adk_asking", default=None)
"""Who meters the model that is about to be asked, and whom that is for."""


class Budgets(BasePlugin):  # type: ignore[misc]
    """See `GoogleADKDoor.google_adk`."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(NAME)
        self._engine = engine

    async def before_model_callback(self, *, callback_context: Any, llm_request: Any) -> None:
        """Says whom the call is for that follows."""
        if self._engine.closed:
            _asking.set(None)
            return
        invocation = invocation_of(callback_context)
        _hook(await model_of(invocation))
        _asking.set((self._engine, self._who(invocation)))

    async def before_run_callback(self, *, invocation_context: Any) -> None:
        """Counts, or refuses, a session of Live, in which nothing is bounded.

        Raises:
            CallRefused: it must not be opened; the ADK makes a `RuntimeError` of it.
        """
        if self._engine.closed or not is_live(invocation_context):
            return
        model, engine = await model_of(invocation_context), self._engine
        if model is None or is_seen_beneath(model, engine):
            return
        who = self._who(invocation_context, starting=True)
        await acount(engine, Exchange(engine, "realtime", {}, fallback=who, provider=maker_of(model)))

    def _who(self, invocation: Any, *, starting: bool = False) -> Attribution:
        run = _run.get()
        if run is None or run.engine is not self._engine:
            session = invocation.session
            run = _Run(self._engine, session.id, invocation.user_id, session.app_name)
            if not starting:  # what is said then would be said to whoever runs it
                _run.set(run)
        tags = {"app": run.app, "agent": invocation.agent.name}
        try:
            return Attribution(run.session_id, run.user_id, tags={n: v for n, v in tags.items() if v})
        except ConfigError:  # the ADK takes what can be no id of ours
            return NOBODY


def plugin_of(engine: Engine) -> Budgets:
    """See `GoogleADKDoor.google_adk`."""
    return Budgets(engine)


# ── the models ─────────────────────────────────────────────────────────────────────────

_hooks: dict[type, Hook] = {}
_lock = threading.Lock()


def _hook(model: Any) -> None:
    """Have a model's class ask by us. For good: it does nothing where nobody has said that it is metered."""
    if model is None or type(model) in _hooks:
        return
    with _lock:
        if type(model) not in _hooks:
            hook = Hook(type(model), ASKS, _asked)
            hook.put()
            _hooks[type(model)] = hook


def _asked(own: Method) -> Method:
    def generate_content_async(model: Any, llm_request: Any, *args: Any, **kwargs: Any) -> Any:
        asking = _asking.get()
        if asking is None or is_inside(_KEY):
            return own(model, llm_request, *args, **kwargs)
        return _generate(partial(own, model), model, *asking, llm_request, *args, **kwargs)

    return generate_content_async


async def _generate(
    own: Any, model: Any, engine: Engine, who: Attribution, request: Any, *args: Any, **kwargs: Any
) -> AsyncIterator[Any]:
    beneath = is_seen_beneath(model, engine)
    if beneath:
        answers = own(request, *args, **kwargs)
    else:
        call = _call(engine, model, who, request)

        def send(hold: Any) -> Any:
            limit = hold.output_limit
            changed = limit is not None and limit != call.generation.bound.output_limit
            return own(limited(request, limit) if changed else request, *args, **kwargs)

        answers = call.aread(await call.aopened(send), hear, fold)
    kept: Any = None
    """The last whole answer: whoever gets it calls tools before the next is asked for, and the call would be
    open until then."""
    try:
        while True:
            failed: Exception | None = None
            with in_run(NOBODY, who):  # it is sent when its first answer is asked for
                try:
                    answer = await answers.__anext__()
                except StopAsyncIteration:
                    break
                except Exception as error:
                    failed = error
            if kept is not None:
                yield kept
            if failed is not None:
                raise failed
            kept = None if answer.partial else answer
            if answer.partial:
                yield answer
        if kept is not None:
            yield kept
    finally:
        await answers.aclose()


def _call(engine: Engine, model: Any, who: Attribution, request: Any) -> Call:
    name, provider = name_of(model, request)
    generation = Generation(
        engine,
        request_as_wire(name, request),
        fallback=who,
        provider=provider,
        can_limit=True,
        conversation=lambda: conversation_of(request),
    )
    return Call(generation, _KEY)


# ── for the whole process ──────────────────────────────────────────────────────────────

_active: list[Budgets] = []
"""Who meters every runner: the last that was begun and has not ended."""


def _before(callback: str) -> Any:
    """What runs all plugins' callback, ours first: where a runner has one of its own, that comes after."""

    def make(own: Method) -> Method:
        async def run_callbacks(self: Any, **told: Any) -> Any:
            if _active:
                await getattr(_active[-1], callback)(**told)
            return await own(self, **told)

        return run_callbacks

    return make


_hooked = tuple(Hook(PluginManager, f"run_{name}", _before(name)) for name in CALLBACKS)


def meter_every_runner(engine: Engine) -> Undo:
    """See `GoogleADKDoor.instrument_google_adk`."""
    return put_for(_active, plugin_of(engine), _hooked)
