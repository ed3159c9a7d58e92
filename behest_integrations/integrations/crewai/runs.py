"""Runs of CrewAI's crews, flows and agents: whom they are for, and what they were refused."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from ...rules.attribution import MAX_ID, NOBODY, Attribution, in_run
from ...rules.errors import CallRefused
from ..kit.around import Around, made_inside
from ..kit.hooks import Hook, Method, put_all
from ..kit.naming import id_in, ids_of
from ..kit.refusals import refusal_in
from ..kit.undo import Undo
from .internals import ASKED, MODELS, RUNS, TOOLS, is_agent, is_loop, stop_of

_current: ContextVar[_Run | None] = ContextVar("behest_crewai", default=None)


class _Run(Around):
    """A run, and what is around it.

    Attributes:
        refused: what a tool has been refused, which CrewAI makes an answer of.
        over: whether it has come to its end.
    """

    def __init__(self, runner: Any, inputs: Any, *, handed: bool) -> None:
        self._handed = handed
        self._outer = outer = _current.get()
        self.refused: CallRefused | None = None
        self.over = False
        own = _ids(inputs)
        if is_agent(runner):
            own = Attribution(tags=_tags(runner)).over(own)
        self.own: Attribution = own if outer is None else own.over(outer.own)

    @contextmanager
    def inside(self) -> Iterator[None]:
        token = _current.set(self)
        try:
            with in_run(NOBODY, self.own):
                yield
        finally:
            _current.reset(token)

    def ended(self, result: Any) -> Any:
        self.over = True
        if self.refused is not None:
            raise self._raised(self.refused) from None
        return result

    def failed(self, error: BaseException, before: int) -> BaseException:
        self.over = True
        refusal = refusal_in(error, before)
        return error if refusal is None else self._raised(refusal)

    def _raised(self, refusal: CallRefused) -> BaseException:
        outer = self._outer
        if outer is None or outer.over:
            return refusal
        if self._handed:  # by a tool of CrewAI's own, which would answer with it
            outer.refused = refusal
        return stop_of(refusal)  # type: ignore[no-any-return]


def _ids(inputs: Any) -> Attribution:
    """Whom a run's inputs name; a flow's `id` is what its state is kept under."""
    if not isinstance(inputs, Mapping):
        return NOBODY
    session = id_in(inputs, "id")
    own = ids_of(inputs)
    return own.over(Attribution(session_id=session)) if isinstance(session, str) else own


def _tags(agent: Any) -> dict[str, str]:
    role = getattr(agent, "role", None)
    name = " ".join(role.split())[:MAX_ID] if isinstance(role, str) else ""
    return {"agent": name} if name and name.isprintable() else {}


def _running(own: Method) -> Method:
    takes = inspect.signature(own).parameters
    handed = "task" in takes

    @functools.wraps(own)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_loop(self):
            return own(self, *args, **kwargs)
        if is_agent(self):
            inputs = None
            for name in MODELS:
                _follow_model(getattr(self, name, None))
        else:
            inputs = kwargs.get("inputs", args[0] if args else None)
        return made_inside(_Run(self, inputs, handed=handed), own, self, *args, **kwargs)

    return run


# ── models and tools ───────────────────────────────────────────────────────────────────


class _Asking(Around):
    """A model at work."""

    def inside(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def failed(self, error: BaseException, before: int) -> BaseException:
        refusal = refusal_in(error, before)
        return error if refusal is None else _stopping(refusal)


class _Working(_Asking):
    """A tool at work: what it is refused itself is no answer of it."""

    def failed(self, error: BaseException, before: int) -> BaseException:
        if not isinstance(error, CallRefused):
            return error
        run, refusal = _current.get(), getattr(error, "refusal", error)
        if run is not None:
            run.refused = refusal
        return _stopping(refusal)


_ASKING, _WORKING = _Asking(), _Working()


def _stopping(refusal: CallRefused) -> BaseException:
    return refusal if _current.get() is None else stop_of(refusal)


def _asking(own: Method) -> Method:
    @functools.wraps(own)
    def ask(self: Any, *args: Any, **kwargs: Any) -> Any:
        run = _current.get()
        if run is not None and run.refused is not None:
            raise stop_of(run.refused)  # told as an answer; nothing is asked about it
        return made_inside(_ASKING, own, self, *args, **kwargs)

    return ask


def _working(own: Method) -> Method:
    @functools.wraps(own)
    def work(self: Any, *args: Any, **kwargs: Any) -> Any:
        return made_inside(_WORKING, own, self, *args, **kwargs)

    return work


# ── for the whole process ──────────────────────────────────────────────────────────────

_HOOKS = (
    *(Hook(runner, name, _running) for runner, names in RUNS for name in names),
    *(Hook(tool, name, _working) for tool, names in TOOLS for name in names),
)
_models: dict[type, tuple[Hook, ...]] = {}
_uses = 0
_lock = threading.Lock()


def _follow_model(model: Any) -> None:
    """Follow what models of this class are asked, while runs are followed."""
    cls = type(model)
    if cls in _models or not all(hasattr(cls, name) for name in ASKED):
        return
    with _lock:
        if cls not in _models and _uses:
            _models[cls] = hooks = tuple(Hook(cls, name, _asking) for name in ASKED)
            put_all(hooks)


def follow() -> Undo:
    """Follow the runs of crews, flows and agents."""
    global _uses
    with _lock:
        _uses += 1
    put = put_all(_HOOKS)

    def undo() -> None:
        global _uses
        put.remove()
        with _lock:
            _uses -= 1
            if not _uses:
                for hooks in _models.values():
                    for hook in hooks:
                        hook.take_out()
                _models.clear()

    return Undo(undo)
