"""Methods of classes, and functions of modules, of others, replaced for the process while somebody needs them
to be."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, TypeVar

from .undo import Undo

T = TypeVar("T")
Method = Callable[..., Any]

_lock = threading.Lock()


class Hook:
    """A method that is replaced, whoever else does so too.

    Whoever has put theirs over ours has ours inside, and may put it back: then it stays, and
    does nothing.

    Args:
        make: what is called instead, of what was there before.
    """

    def __init__(self, owner: type | ModuleType, name: str, make: Callable[[Method], Method]) -> None:
        self._owner = owner
        self._name = name
        self._make = make
        self._ours: Any = None
        self._own = False
        self._before: Any = None
        self._uses = 0

    def put(self) -> None:
        """Replace it, until it has been taken out as often as it was put."""
        with _lock:
            self._uses += 1
            if self._uses == 1:
                self._put()

    def take_out(self) -> None:
        """Put back what was there, if nobody else needs it replaced."""
        with _lock:
            self._uses -= 1
            if not self._uses:
                self._take_out()

    def _put(self) -> None:
        now = getattr(self._owner, self._name)
        if self._ours is not None and _has_inside(now, self._ours):
            return
        self._own = self._name in vars(self._owner)
        self._before = now
        made = self._make(now)

        @functools.wraps(now)
        def method(*args: Any, **kwargs: Any) -> Any:
            return (made if self._uses else now)(*args, **kwargs)

        self._ours = method
        setattr(self._owner, self._name, method)

    def _take_out(self) -> None:
        if vars(self._owner).get(self._name) is not self._ours:
            return
        if self._own:
            setattr(self._owner, self._name, self._before)
        else:
            delattr(self._owner, self._name)  # it is inherited
        self._ours = None


def put_all(hooks: Iterable[Hook]) -> Undo:
    """Put hooks; what takes them out."""
    put = tuple(hooks)
    for hook in put:
        hook.put()

    def undo() -> None:
        for hook in put:
            hook.take_out()

    return Undo(undo)


def put_for(active: list[T], mine: T, hooks: Iterable[Hook]) -> Undo:
    """Put hooks that ask who is active: `mine`, the last that was begun, until it is undone."""
    active.append(mine)
    put = put_all(hooks)

    def undo() -> None:
        active.remove(mine)
        put.remove()

    return Undo(undo)


def _has_inside(method: Any, ours: Any) -> bool:
    for _ in range(100):
        if method is ours:
            return True
        method = getattr(method, "__wrapped__", None)
        if method is None:
            return False
    return False
