"""Sessions and stages where Python's contexts do not follow: threads, pools, callbacks.

A context variable reaches tasks and `asyncio.to_thread`; it does not reach the threads of a
pool, `loop.run_in_executor` or a `threading.Thread`. There, what `bind` has wrapped is run
in the scopes that were around the `bind`. A call that is made without them, while they are
open elsewhere, is warned of.
"""

from __future__ import annotations

import functools
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, ParamSpec, TypeVar

from ..rules.attribution import NOBODY, SESSIONS, Attribution, decorate, in_run, run_around
from ..rules.nesting import Entry, Scope, tell_once
from .stages import STAGES, Stage

P = ParamSpec("P")
T = TypeVar("T")

_MOST_COMPARED = 32
"""Stages open elsewhere that a call without one is compared with."""


class Carried(NamedTuple):
    """What is in force at one place, to be so at another. Nothing else of a context is taken."""

    who: Attribution
    stages: tuple[Stage, ...]
    run: tuple[Attribution, Attribution] = (NOBODY, NOBODY)
    """Whom a framework's run is for."""
    source: Entry[Any] | None = None
    """Where it is a thread that takes it along: the innermost scope around its start."""


_NOTHING = Carried(NOBODY, ())


def carried() -> Carried:
    """The sessions and stages that the running code is in."""
    who, stages, run = SESSIONS.inside(), STAGES.inside(), run_around()
    return Carried(who, stages, run) if stages or who is not NOBODY or run != _NOTHING.run else _NOTHING


def carried_by_thread() -> Carried | None:
    """What a thread that is started here is to take along; None if nothing."""
    what = carried()
    if what is _NOTHING:
        return None
    link = SESSIONS.var.get() or STAGES.var.get()
    if link is None:  # a generator's own
        return what
    # Around a job there is no more than what it was given.
    return what._replace(source=link.entry.source if link.entry.whole else link.entry)


class Carry(Scope):
    """Inside, exactly what was carried is in force."""

    def __init__(self, what: Carried) -> None:
        super().__init__()
        self._what = what
        self._run = in_run(*what.run)

    def __enter__(self) -> None:
        frame = sys._getframe(1)
        self._run = in_run(*self._what.run)
        self._run.__enter__()
        SESSIONS.put(self, self._what.who, frame, self._what.source)
        STAGES.put(self, self._what.stages, frame, self._what.source)

    def __exit__(self, *exc: object) -> None:
        frame = sys._getframe(1)
        STAGES.leave(self, frame)
        SESSIONS.leave(self, frame)
        self._run.__exit__(None, None, None)


def bind(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, run in the sessions and stages of this place wherever it is called.

        with meter.budget("$1", name="sum"):
            pool.map(meter.bind(summarise), documents)

    For threads, pools, executors and callbacks. Only what this package keeps is carried, and
    it replaces what is in force where `function` is called. Not into other processes.

    Args:
        function: any callable; what it returns may be a coroutine or a generator.
    """
    what = carried()
    return decorate(function, lambda: Carry(what))


def run_in(what: Carried, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Call `function` where `what` is in force."""
    with Carry(what):
        return function(*args, **kwargs)


class ContextThreadPoolExecutor(ThreadPoolExecutor):
    """A `ThreadPoolExecutor` whose jobs run in the sessions and stages they are submitted in."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See `ThreadPoolExecutor.submit`."""
        return super().submit(run_in, carried(), fn, *args, **kwargs)

    def map(self, fn: Callable[..., T], *iterables: Iterable[Any], **options: Any) -> Iterator[T]:
        """See `ThreadPoolExecutor.map`."""
        # Bound here: some versions submit only as the results are read.
        return super().map(functools.partial(run_in, carried(), fn), *iterables, **options)


# ── lost ───────────────────────────────────────────────────────────────────────────────


def warn_if_lost(meter: object, who: Attribution, stages: Sequence[Stage]) -> None:
    """Warn, once a place, of a call that is outside of scopes that are open elsewhere.

    Args:
        who: what the call, its scope and its client say, without the meter's own defaults.
        stages: those of `meter` that it is in.
    """
    if STAGES.registered and not stages:
        for within in STAGES.open(_MOST_COMPARED):
            stage = within.value
            # A call for somebody else than the stage is for is another request.
            if stage.meter is meter and _may_be_for(who, stage.who):
                _warn(f"stage {stage.name!r} of this meter", within, "no stage", "the stage's budget")
                break
    link = SESSIONS.var.get()
    if link is not None and link.entry.source is not None and link.entry.source.closed:
        _warn_of_thread(link.entry.source)
    elif SESSIONS.registered and _says_nothing(who):
        for entry in SESSIONS.open(1):
            _warn("a session", entry, "no session", "anybody's budget")


def _says_nothing(who: Attribution) -> bool:
    return who.session_id is None and who.user_id is None and who == NOBODY


def _may_be_for(who: Attribution, other: Attribution) -> bool:
    """Whether nothing that `who` says differs from what `other` says."""
    if other is NOBODY or who is NOBODY:
        return True
    pairs = (
        (who.session_id, other.session_id),
        (who.user_id, other.user_id),
        (who.project, other.project),
        (who.tenant, other.tenant),
    )
    return all(mine is None or theirs is None or mine == theirs for mine, theirs in pairs)


def _warn(what: str, entry: Entry[Any], has: str, missed: str) -> None:
    place = caller()
    tell_once(
        ("lost", what, place),
        "the call made at %s is in %s, while %s is open (entered at %s): if it belongs there, it "
        "does not count in %s. Threads, pools and executors do not take a scope along by "
        "themselves: wrap what they run in meter.bind(...), use ContextThreadPoolExecutor, or "
        "meter.instrument(). Meter(require=...) refuses calls for nobody. (Told once for this line.)",
        place,
        has,
        what,
        entry.place,
        missed,
    )


def _warn_of_thread(source: Entry[Any]) -> None:
    place = caller()
    tell_once(
        ("thread", source.place, place),
        "the call made at %s is in a thread that was started inside of the scope entered at %s, which "
        "has been left since: it is booked for that scope. If this thread serves others as well, "
        "start it outside, or wrap each of its jobs in meter.bind(...). (Told once for this line.)",
        place,
        source.place,
    )


_PACKAGE = str(Path(__file__).parent.parent)
_PATHS = sysconfig.get_paths()
_LIBRARIES = (*(_PATHS[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")), "<frozen ")


def caller() -> str:
    """File and line of the application's code that the running call comes from.

    The nearest frame that is neither this package's nor a library's; where there is none, the
    nearest that is not this package's.
    """
    nearest: FrameType | None = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_PACKAGE):
            if not file.startswith(_LIBRARIES):
                return f"{file}:{frame.f_lineno}"
            nearest = nearest or frame
        frame = frame.f_back
    return f"{nearest.f_code.co_filename}:{nearest.f_lineno}" if nearest is not None else "?"
