"""Runs of Strands' agents, graphs and swarms: whom they are for, and what they were refused."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ...engine.holds import Hold
from ...rules.attribution import NOBODY, Attribution, in_run
from ...rules.errors import CallRefused
from ..kit.around import Around, made_inside
from ..kit.cutting import cut_off, hang_up, noting
from ..kit.hooks import Hook, Method, put_all
from ..kit.naming import id_in, ids_of
from ..kit.refusals import refusal_in
from ..kit.undo import Undo
from .internals import RUNS, MaxTokensReachedException, is_agent, listen, session_of

_current: ContextVar[_Run | None] = ContextVar("behest_strands", default=None)


class _Run(Around):
    """A run, and what is around it.

    Attributes:
        refused: what a tool has been refused, which its agent takes for an answer.
        within: what an agent of a graph or a swarm was refused.
    """

    def __init__(self, runner: Any, options: Mapping[str, Any]) -> None:
        self._agent = is_agent(runner)
        self._outer = outer = _current.get()
        self._holds: list[Hold] = []
        self.refused: CallRefused | None = None
        self.within: CallRefused | None = None
        self._failed = False
        own = _own(runner, options)
        self._own: Attribution = own if outer is None else own.over(outer._own)

    @contextmanager
    def inside(self) -> Iterator[None]:
        token = _current.set(self)
        try:
            with in_run(NOBODY, self._own), noting(self._holds):
                yield
        finally:
            _current.reset(token)

    def hang_up(self) -> Any:
        return hang_up(self._holds)

    def saw(self, item: Any) -> None:
        result = item.get("result") if isinstance(item, Mapping) else None
        status = getattr(result, "status", None)
        self._failed = getattr(status, "value", status) == "failed"
        if result is not None:  # who consumes the stream may not come for more
            self.ended(result)

    def ended(self, result: Any) -> Any:
        refusal = self.refused or (self.within if self._failed else None)
        if refusal is not None:
            raise self._told(refusal) from None
        return result

    def failed(self, error: BaseException, before: int) -> BaseException:
        refusal = refusal_in(error, before)
        if refusal is None and isinstance(error, MaxTokensReachedException):
            refusal = cut_off(self._holds)
        return error if refusal is None else self._told(refusal)

    def _told(self, refusal: CallRefused) -> CallRefused:
        if self._outer is not None and not self._outer._agent:
            self._outer.within = refusal
        return refusal


def _own(runner: Any, options: Mapping[str, Any]) -> Attribution:
    """Whom a run is for: its state, its session manager, and what its traces are marked with."""
    state = options.get("invocation_state")
    own = ids_of({**options, **(state if isinstance(state, Mapping) else {})})
    marked = getattr(runner, "trace_attributes", None) or {}
    session = id_in({"kept": session_of(runner), "marked": marked.get("session.id")}, "kept", "marked")
    name = getattr(runner, "name", None) if is_agent(runner) else None
    return own.over(
        Attribution(
            session_id=session,
            user_id=id_in(marked, "user.id"),
            tags={"agent": name} if isinstance(name, str) and name and name.isprintable() else {},
        )
    )


def _running(own: Method) -> Method:
    @functools.wraps(own)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_agent(self):
            listen(self, _asking, _worked)
        options = kwargs if len(args) < 2 or is_agent(self) else {"invocation_state": args[1], **kwargs}
        return made_inside(_Run(self, options), own, self, *args, **kwargs)

    return run


def _asking(event: Any) -> None:
    """An agent is about to ask its model; not about what a tool was refused."""
    run = _current.get()
    if run is not None and run.refused is not None:
        raise run.refused


def _worked(event: Any) -> None:
    """A tool has ended; its agent would take an error for its answer."""
    run = _current.get()
    if run is not None and isinstance(event.exception, CallRefused):
        run.refused = event.exception


_HOOKS = tuple(Hook(runner, name, _running) for runner, names in RUNS for name in names)


def follow() -> Undo:
    """Follow the runs of agents, graphs and swarms."""
    return put_all(_HOOKS)
