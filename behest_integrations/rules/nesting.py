"""Which scopes the running code is inside of: sessions, stages.

A scope travels in a context variable, as Python has it: tasks take a copy along. Where a
context variable alone would put a call under somebody else, this does better:

- A scope takes itself out, and no other: scopes that cross, a scope object that several
  threads use at once, and one that is left in another context than it was entered in are
  each as the code reads. Nothing raises.
- A scope inside a generator is of the generator's body, and not of the code that iterates
  it, which shares its context; and it stays with the body when each step is run in another
  thread, as servers do with a stream. A generator that a library makes a context manager of
  (`contextlib`, a dependency, a fixture) is for the code around it, as it reads.

What cannot be told: whether a task was begun by such a generator's body or, between two
steps, by the code that iterates it. That is warned of. A generator decorated with the scope
leaves no such doubt.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import logging
import sys
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar, Token
from types import FrameType
from typing import Any, Generic, TypeVar

log = logging.getLogger("behest")

T = TypeVar("T")
All = TypeVar("All")

_GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_DRIVERS = frozenset(
    ("contextlib", "_pytest", "pytest_asyncio", "litestar", "dishka", "taskiq_dependencies", "fast_depends")
)
"""What runs a generator to its yield, and on when the code around it has ended."""
_CONTEXTLIB = contextlib.contextmanager.__code__.co_filename
_MOST_TOLD = 1000
_OUTERMOST = sys.maxsize


class Entry(Generic[T]):
    """A scope, as entered once.

    Attributes:
        value: what the scope says.
        owner: the scope itself.
        code, instruction: where it was entered.
        statement: the frame that entered it.
        position: the frame whose callees are inside.
        body: whether that is a generator's, iterated by the code around it.
        whole: `value` is all that there is; nothing around it counts.
        source: for what a thread took along: the scope that was around its start.
        closed: whether it has been left; the frames are let go then.
        elsewhere: whether it was left in another context than it was entered in. Whether what
            still has it is a task begun before or after, nobody knows: it is in force nowhere.
    """

    __slots__ = (
        "__weakref__",
        "_home",
        "body",
        "closed",
        "code",
        "elsewhere",
        "instruction",
        "owner",
        "position",
        "source",
        "statement",
        "value",
        "whole",
    )

    def __init__(self, value: T, owner: object, frame: FrameType) -> None:
        self._home: Token[None] = _home.set(None)
        self.value = value
        self.owner = owner
        self.code = frame.f_code
        self.instruction = frame.f_lasti
        self.statement: FrameType | None = frame
        self.position: FrameType | None = frame
        self.body = self.whole = self.closed = self.elsewhere = False
        self.source: Entry[Any] | None = None

    def at_home(self) -> bool:
        """Whether the running context is the one that it was entered in, and not a copy."""
        if self._end_at_home():
            self._home = _home.set(None)
            return True
        return False

    def _end_at_home(self) -> bool:
        try:
            _home.reset(self._home)
        except (ValueError, RuntimeError):  # another context's; or that one is asking, just now
            return False
        return True

    def close(self) -> None:
        """It has been left."""
        self.closed = True
        self.statement = self.position = None
        self.elsewhere = not self._end_at_home()

    @property
    def place(self) -> str:
        """File and line of where it was entered."""
        lines = self.code.co_lines()
        line = next((n for start, end, n in lines if start <= self.instruction < end), None)
        return f"{self.code.co_filename}:{line}"


class _Reference(weakref.ref[Entry[T]]):
    """Of an entry that is registered until it is left, or gone with its context."""

    __slots__ = ("key",)
    key: int


# A token can be given back in the context that it comes from alone: that names the context.
_home: ContextVar[None] = ContextVar("behest_home", default=None)


class Link(Generic[T, All]):
    """An entry and what is around it."""

    __slots__ = ("all", "entry", "outer")

    def __init__(self, entry: Entry[Any], outer: Link[T, All] | None, all: All) -> None:
        self.entry = entry
        self.outer = outer
        self.all = all


class Nesting(Generic[T, All]):
    """Scopes of one kind.

    Args:
        name: of the context variable.
        nothing: what holds outside of all scopes.
        add: what holds inside a scope, from what it says and what holds around it.
    """

    def __init__(self, name: str, nothing: All, add: Callable[[T, All], All]) -> None:
        self.var: ContextVar[Link[T, All] | None] = ContextVar(name, default=None)
        """The scope entered last in the running context, and those around it."""
        self._nothing = nothing
        self._add = add
        self.registered: dict[int, _Reference[T]] = {}
        """The scopes that are open, anywhere in the process."""
        # Open in a generator's body, or left elsewhere: while there are any, the variable
        # alone does not say it all.
        self._odd: dict[int, _Reference[T]] = {}

        def gone(reference: weakref.ref[Entry[T]]) -> None:
            self._forget(reference.key)  # type: ignore[attr-defined]

        self._gone = gone

    def inside(self) -> All:
        """What holds for the running code."""
        if self._odd:
            return self._resolve()
        link = self.var.get()
        return self._nothing if link is None else link.all

    def open(self, most: int) -> Iterator[Entry[T]]:
        """The scopes that are open anywhere in the process, longest first, so many at most."""
        return itertools.islice(self._listed(self.registered), most)

    @staticmethod
    def _listed(register: dict[int, _Reference[T]]) -> Iterator[Entry[T]]:
        for reference in register.copy().values():  # others write in it meanwhile
            entry = reference()
            if entry is not None:
                yield entry

    def enter(self, owner: Scope, value: T, frame: FrameType) -> All:
        """Be inside of `owner` from now on, as entered by the code of `frame`."""
        entry: Entry[T] = Entry(value, owner, frame)
        reference = self._reference(entry)
        if frame.f_code.co_flags & _GENERATOR or frame.f_code.co_filename == _CONTEXTLIB:
            entry.statement = _outside_contextlib(frame)
            entry.position, entry.body = _position(frame)
            entry.code, entry.instruction = entry.statement.f_code, entry.statement.f_lasti
            if entry.body:
                self._odd[reference.key] = reference
        self.registered[reference.key] = reference
        owner.entries.append(entry)
        link = self.var.get()
        while link is not None and link.entry.elsewhere:
            link = link.outer
        around = self._nothing if link is None else link.all
        link = Link(entry, link, self._add(value, around))
        self.var.set(link)
        return self._resolve() if self._odd else link.all

    def put(self, owner: Scope, everything: All, frame: FrameType, source: Entry[Any] | None = None) -> None:
        """Have exactly `everything` hold from now on, until `owner` is left."""
        entry: Entry[T] = Entry(everything, owner, frame)  # type: ignore[arg-type]
        entry.whole = True
        entry.source = source
        owner.entries.append(entry)
        self.var.set(Link(entry, self.var.get(), everything))

    def leave(self, owner: Scope, frame: FrameType) -> None:
        """Be outside of `owner` again."""
        link = self.var.get()
        if link is not None and link.entry.owner is owner:
            self.var.set(link.outer)
            self._close(owner, link.entry)
            return
        above = []
        while link is not None and link.entry.owner is not owner:
            above.append(link.entry)
            link = link.outer
        if link is None:
            self._leave_elsewhere(owner, _outside_contextlib(frame))
            return
        self._close(owner, link.entry)
        link = link.outer
        for entry in reversed(above):
            around = self._nothing if link is None else link.all
            link = Link(entry, link, entry.value if entry.whole else self._add(entry.value, around))
        self.var.set(link)

    def _leave_elsewhere(self, owner: Scope, statement: FrameType) -> None:
        entries = owner.entries
        entry = next((e for e in reversed(entries) if e.statement is statement), None)
        if entry is None:
            if not entries:
                return  # never entered
            entry = entries[-1]
        self._close(owner, entry)
        if not entry.body:  # a generator's steps may each be run in another: nothing was lost
            tell_once(
                ("elsewhere", entry.place),
                "the scope %s entered at %s was left in another context (thread or task) than it was "
                "entered in: the code between may have run without it, and its calls are then booked "
                "for nobody. A dependency of FastAPI that is `def` and yields runs in threads of its "
                "own: make it `async def`, or use a middleware, or name the session and the user on "
                "the call (extra_headers: X-Session-Id, X-End-User-Id). A generator: decorate it "
                "with the scope. Meter(require=...) refuses calls for nobody.",
                owner,
                entry.place,
            )

    def _close(self, owner: Scope, entry: Entry[T]) -> None:
        entry.close()
        self._forget(id(entry))
        if entry.elsewhere or entry.body:  # it still stands where it was entered, or in copies
            reference = self._reference(entry)
            self._odd[reference.key] = reference
        try:
            owner.entries.remove(entry)
        except ValueError:
            pass  # a copy of its context has left it already

    def _forget(self, key: int) -> None:
        self.registered.pop(key, None)
        if self._odd:
            self._odd.pop(key, None)

    def _reference(self, entry: Entry[T]) -> _Reference[T]:
        reference = _Reference(entry, self._gone)
        reference.key = id(entry)
        return reference

    def _resolve(self) -> All:
        """What holds, where there are generators' bodies, or scopes left elsewhere."""
        found: list[Entry[T]] = []
        link = self.var.get()
        while link is not None:
            found.append(link.entry)
            if link.entry.whole:
                break
            link = link.outer
        bodies = [entry for entry in self._listed(self._odd) if entry.body and entry not in found]
        depths = _depths({entry.position for entry in (*found, *bodies)})
        placed: list[tuple[int, Entry[T]]] = []
        for entry in found:
            depth = depths.get(entry.position, _OUTERMOST)
            if entry.elsewhere or (entry.body and depth == _OUTERMOST and not _of_body(entry)):
                continue
            placed.append((depth, entry))
        placed += [(depths[entry.position], entry) for entry in bodies if entry.position in depths]
        placed.sort(key=lambda pair: pair[0])  # stable: the innermost first
        inner: list[Entry[T]] = []
        holds = self._nothing
        for _, entry in placed:
            if entry.whole:
                holds = entry.value  # type: ignore[assignment]
                break
            inner.append(entry)
        for entry in reversed(inner):
            holds = self._add(entry.value, holds)
        return holds


def _of_body(entry: Entry[Any]) -> bool:
    """Whether code that has a generator's scope, and is not called by it, is of its body.

    In the context that it was entered in it is the code that iterates it. In a copy of that it may
    be either: a task begun by the body, or by the code that iterates, between two steps. It is
    taken for the body's while that is running, and warned of.
    """
    if entry.at_home():
        return False
    tell_once(
        ("generator", entry.place),
        "the scope entered at %s is inside of a generator, and a task or thread that was begun "
        "while it was open makes calls: whether the generator began it, or the code that iterates "
        "it, Python does not tell, and its calls may be booked for the wrong one. Decorate the "
        "generator with the scope instead: @meter.session(...), @meter.budget(...).",
        entry.place,
    )
    frame = entry.position
    if frame is None:
        return False  # closed
    return frame.f_back is not None or bool(frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR)


class Scope:
    """What can be entered: by several threads at once, and again while it is open."""

    def __init__(self) -> None:
        self.entries: list[Entry[Any]] = []
        """As which it is open."""


def tell_once(key: object, text: str, *args: object) -> None:
    """Log a warning, once for each key."""
    if key not in _told and len(_told) < _MOST_TOLD:
        _told.add(key)
        log.warning(text, *args)


_told: set[object] = set()


def _module(frame: FrameType) -> str:
    name: str = frame.f_globals.get("__name__") or ""
    return name


def _outside_contextlib(frame: FrameType) -> FrameType:
    while frame.f_code.co_filename == _CONTEXTLIB and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _position(frame: FrameType) -> tuple[FrameType, bool]:
    """The frame whose callees are inside, and whether it is a generator's body."""
    while True:
        frame = _outside_contextlib(frame)
        if not frame.f_code.co_flags & _GENERATOR or frame.f_code.co_flags & inspect.CO_ITERABLE_COROUTINE:
            return frame, False
        if _module(frame) == ATTRIBUTION:
            return frame, False  # a decorated generator: left before each yield
        driver = frame.f_back
        if driver is None or _module(driver).partition(".")[0] not in _DRIVERS:
            return frame, True
        frame = driver


ATTRIBUTION = f"{__package__}.attribution"


def _depths(wanted: set[FrameType | None]) -> dict[FrameType | None, int]:
    """How far up the stack the wanted frames are, of those that are on it."""
    found: dict[FrameType | None, int] = {}
    frame: FrameType | None = sys._getframe(1)
    depth = 0
    while frame is not None:
        if frame in wanted:
            found[frame] = depth
        frame = frame.f_back
        depth += 1
    return found
