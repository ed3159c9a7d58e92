"""Runs of Agno's agents, teams and workflows: whom they are for, and what they were refused."""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from ...engine.holds import Hold
from ...rules.attribution import NOBODY, Attribution, in_run
from ...rules.errors import CallRefused, handled
from ..kit.around import Around, made_inside
from ..kit.cutting import hang_up, noting
from ..kit.hooks import Hook, Method, put_all
from ..kit.naming import id_in, said_in
from ..kit.refusals import refusal_in
from ..kit.undo import Undo
from .internals import ATTEMPTS, RETRIED, RUNS, STOPPED, TOLD_STOPPED, TOOLS, Model, has_steps, stop_of

_current: ContextVar[_Run | None] = ContextVar("behest_agno", default=None)


class _Run(Around):
    """A run, and what is around it.

    Attributes:
        said: on the run itself, in its metadata.
        own: Agno's own ids.
        refusal: the last that a call of it was refused with.
        before: see `errors.causes`.
    """

    def __init__(self, runner: Any, options: Mapping[str, Any], *, awaited: bool) -> None:
        self._runner = runner
        self.before = handled()
        # Of what ends a run, its awaited `Parallel` tells nobody, and waits for ever.
        self._takes_stops = not (awaited and has_steps(runner))
        self.outer = outer = _current.get()
        self.refusal: CallRefused | None = None
        self._stopped = False
        given = options.get("session_id")
        if given is None or given == "":
            given = runner.session_id
            # Agno makes one for a runner that has none, which then keeps it: nobody has chosen that.
            self._makes = given is None
        else:
            self._makes = False
        made = given is not None and (given == vars(runner).get(_MADE) or self._is_made(given))
        context = options.get("run_context")
        user = options.get("user_id") or getattr(context, "user_id", None)
        own = Attribution(
            session_id=None if made else id_in({"id": given}, "id"),
            user_id=id_in({"id": user or getattr(runner, "user_id", None)}, "id"),
            tags=_tags(runner),
        )
        metadata = {**(getattr(runner, "metadata", None) or {}), **(options.get("metadata") or {})}
        said = said_in(metadata)
        self.said: Attribution = said if outer is None else said.over(outer.said)
        self.own: Attribution = own if outer is None else own.over(outer.own)

    def _is_made(self, session: str) -> bool:
        """Whether a session is one that Agno has made for a run around this one."""
        run = self.outer
        while run is not None:
            kept = run._runner.session_id if run._makes else vars(run._runner).get(_MADE)
            if session == kept:
                return True
            run = run.outer
        return False

    @contextmanager
    def inside(self) -> Iterator[None]:
        token = _current.set(self)
        try:
            # What tools ask is for the same; what is said on the run does not outdo their own scopes.
            with in_run(NOBODY, self.own):
                yield
        finally:
            _current.reset(token)
            if self._makes and self._runner.session_id is not None:
                vars(self._runner)[_MADE] = self._runner.session_id
                self._makes = False

    def note(self, refusal: CallRefused) -> None:
        self.refusal = refusal

    def saw(self, item: Any) -> None:
        event = getattr(item, "event", None)
        self._stopped = self._stopped or (isinstance(event, str) and event.endswith(TOLD_STOPPED))
        # Who consumes the stream may not come for more.
        if self.refusal is not None and not isinstance(event, str):
            self.ended(item)
        elif self.refusal is not None and _failed_step(getattr(item, "step_results", None), self.refusal):
            self._stopped = True

    def ended(self, result: Any) -> Any:
        refusal = self.refusal
        if refusal is None:
            return result
        status = getattr(result, "status", None)
        stopped = self._stopped or getattr(status, "value", status) in STOPPED
        if stopped or _failed_step(getattr(result, "step_results", None), refusal):
            raise self._raised(refusal) from None
        return result

    def failed(self, error: BaseException, before: int) -> BaseException:
        refusal = refusal_in(error, before)
        return error if refusal is None else self._raised(refusal)

    def _raised(self, refusal: CallRefused) -> BaseException:
        if self.outer is None:
            return refusal
        self.outer.note(refusal)
        return stop_of(refusal) if self.outer._takes_stops else refusal


def _failed_step(steps: Any, refusal: CallRefused) -> bool:
    """Whether a workflow has made the result of a step, however deep, of a refusal."""
    for step in steps if isinstance(steps, (list, tuple)) else ():
        inner = step if isinstance(step, (list, tuple)) else getattr(step, "steps", None)
        failed = getattr(step, "success", True) is False and getattr(step, "error", None) == str(refusal)
        if failed or _failed_step(inner, refusal):
            return True
    return False


_MADE = "_behest_made"
"""Where a runner keeps the session that Agno has made for it."""


def _tags(runner: Any) -> dict[str, str]:
    name = getattr(runner, "name", None)
    return {"agent": name} if isinstance(name, str) and name and not has_steps(runner) else {}


def _running(own: Method) -> Method:
    awaited = own.__name__.startswith("a")

    @functools.wraps(own)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        return made_inside(_Run(self, kwargs, awaited=awaited), own, self, *args, **kwargs)

    return run


# ── models and tools ───────────────────────────────────────────────────────────────────


class _Asking(Around):
    """A model at work, with its own retries."""

    def __init__(self) -> None:
        self._holds: list[Hold] = []

    @contextmanager
    def inside(self) -> Iterator[None]:
        run = _current.get()
        with in_run(run.said, run.own) if run is not None else nullcontext(), noting(self._holds):
            yield

    def hang_up(self) -> Any:
        return hang_up(self._holds)

    def failed(self, error: BaseException, before: int) -> BaseException:
        refusal = refusal_in(error, before)
        return error if refusal is None else _stopping(refusal)


class _Working(Around):
    """A tool at work: what it is refused itself is no answer of it either."""

    def inside(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def failed(self, error: BaseException, before: int) -> BaseException:
        return _stopping(error) if isinstance(error, CallRefused) else error


_WORKING = _Working()


def _stopping(refusal: CallRefused) -> BaseException:
    run = _current.get()
    if run is None:
        return refusal
    refusal = getattr(refusal, "refusal", refusal)
    run.note(refusal)
    return stop_of(refusal)  # type: ignore[no-any-return]


def _asking(own: Method) -> Method:
    @functools.wraps(own)
    def ask(self: Any, *args: Any, **kwargs: Any) -> Any:
        return made_inside(_Asking(), own, self, *args, **kwargs)

    return ask


def _retrying(own: Method) -> Method:
    @functools.wraps(own)
    def is_retryable(self: Any, error: Any) -> bool:
        run = _current.get()
        return refusal_in(error, 0 if run is None else run.before) is None and own(self, error)

    return is_retryable


def _executing(own: Method) -> Method:
    @functools.wraps(own)
    def execute(self: Any) -> Any:
        function = self.function
        if function.entrypoint is None:
            return own(self)
        self.function = copy.copy(function)
        self.function.entrypoint = _entry(function.entrypoint)
        return made_inside(_Restoring(self, function), own, self)

    return execute


class _Restoring(_Working):
    """The execution of a tool, whose function is put back at its end."""

    def __init__(self, call: Any, function: Any) -> None:
        self._call, self._function = call, function

    def ended(self, result: Any) -> Any:
        self._call.function = self._function
        return result

    def failed(self, error: BaseException, before: int) -> BaseException:
        self._call.function = self._function
        return error


def _entry(own: Any) -> Any:
    """A tool's function, of its own kind: Agno looks."""

    def entry(*args: Any, **kwargs: Any) -> Any:
        return made_inside(_WORKING, own, *args, **kwargs)

    async def items(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async for item in entry(*args, **kwargs):
            yield item

    async def awaited(*args: Any, **kwargs: Any) -> Any:
        return await entry(*args, **kwargs)

    def generated(*args: Any, **kwargs: Any) -> Any:
        return (yield from entry(*args, **kwargs))

    kinds: tuple[tuple[Callable[[Any], bool], Any], ...] = (
        (inspect.isasyncgenfunction, items),
        (inspect.iscoroutinefunction, awaited),
        (inspect.isgeneratorfunction, generated),
    )
    made = next((made for is_such, made in kinds if is_such(own)), entry)
    return functools.wraps(own)(made)


# ── for the whole process ──────────────────────────────────────────────────────────────

_HOOKS: dict[str, tuple[Hook, ...]] = {}


def follow(module: str, name: str) -> Undo:
    """Follow the runs of a class of runners."""
    runner = getattr(sys.modules[module], name)
    return put_all(_HOOKS.setdefault(name, tuple(Hook(runner, method, _running) for method in RUNS)))


def follow_models() -> Undo:
    """Follow what models ask, and what tools do."""
    from agno.tools.function import FunctionCall

    asking = (Hook(Model, method, _asking) for method in ATTEMPTS)
    working = (Hook(FunctionCall, method, _executing) for method in TOOLS)
    return put_all(_HOOKS.setdefault("models", (*asking, Hook(Model, RETRIED, _retrying), *working)))
