"""Threads and pools that take sessions and stages along by themselves.

Each job of a pool runs in the scopes that it was submitted in, and each thread in those that
it was started in; a pool's own threads serve everybody and take nothing along. Covered:
`ThreadPoolExecutor.submit` and `map` (and so `loop.run_in_executor`), `threading.Thread` and
`Timer`, `multiprocessing.pool.ThreadPool`. Not: processes, gevent.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import Any

from ...engine.contexts import carried, carried_by_thread, run_in
from .undo import Undo

_WORKERS = frozenset(("concurrent.futures.thread", "multiprocessing.pool", "anyio._backends._asyncio"))
"""Modules whose threads serve whoever comes."""
_POOLED = ("apply_async", "map", "map_async", "starmap", "starmap_async", "imap", "imap_unordered")

Method = Callable[..., Any]

_lock = threading.Lock()
_in_use = 0
_hooks: list[_Hook] = []


def carrying_threads() -> Undo:
    """Have threads and pools carry, until that is undone. May be done more than once."""
    global _in_use
    with _lock:
        _in_use += 1
        if _in_use == 1:
            for hook in _all_hooks():
                hook.put()

    def undo() -> None:
        global _in_use
        with _lock:
            _in_use -= 1
            if not _in_use:
                for hook in _all_hooks():
                    hook.take_out()

    return Undo(undo)


class _Hook:
    """A method that is replaced, whoever else does so too.

    Whoever has put theirs over ours has ours inside, and may put it back: then it stays, and
    does nothing.
    """

    def __init__(
        self, owner: type, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        self._owner = owner
        self._name = name
        self._make = make
        self._ours: Any = None
        self._own = False
        self._before: Any = None

    def put(self) -> None:
        now = getattr(self._owner, self._name)
        if self._ours is not None and _has_inside(now, self._ours):
            return
        self._own = self._name in vars(self._owner)
        self._before = now
        carrying = self._make(now)

        @functools.wraps(now)
        def method(*args: Any, **kwargs: Any) -> Any:
            return (carrying if _in_use else now)(*args, **kwargs)

        self._ours = method
        setattr(self._owner, self._name, method)

    def take_out(self) -> None:
        if vars(self._owner).get(self._name) is not self._ours:
            return
        if self._own:
            setattr(self._owner, self._name, self._before)
        else:
            delattr(self._owner, self._name)  # it is inherited
        self._ours = None


def _has_inside(method: Any, ours: Any) -> bool:
    for _ in range(100):
        if method is ours:
            return True
        method = getattr(method, "__wrapped__", None)
        if method is None:
            return False
    return False


def _submitting(submit: Method) -> Method:
    def carrying(self: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        # Also where there is nothing to carry: the pool's thread may have something.
        return submit(self, run_in, carried(), fn, *args, **kwargs)

    return carrying


def _pooling(method: Method) -> Method:
    def carrying(self: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, functools.partial(run_in, carried(), func), *args, **kwargs)

    return carrying


def _starting(start: Method) -> Method:
    def carrying(self: threading.Thread) -> Any:
        what = carried_by_thread()
        if what is None or _serves_others(self):
            return start(self)
        run = self.run

        def run_carried() -> None:
            del self.run
            run_in(what, run)

        # On the thread itself: subclasses have a `run` of their own.
        self.run = run_carried  # type: ignore[method-assign]
        try:
            return start(self)
        except BaseException:
            vars(self).pop("run", None)
            raise

    return carrying


def _serves_others(thread: threading.Thread) -> bool:
    target = getattr(thread, "_target", None)
    return type(thread).__module__ in _WORKERS or getattr(target, "__module__", None) in _WORKERS


def _all_hooks() -> list[_Hook]:
    if not _hooks:
        _hooks.append(_Hook(ThreadPoolExecutor, "submit", _submitting))
        _hooks.append(_Hook(threading.Thread, "start", _starting))
        _hooks.extend(_Hook(ThreadPool, name, _pooling) for name in _POOLED)
    return _hooks
