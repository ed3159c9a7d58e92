"""Threads and pools that take sessions and stages along by themselves.

Each job of a pool runs in the scopes that it was submitted in, and each thread in those that
it was started in; a pool's own threads serve everybody and take nothing along. Covered:
`ThreadPoolExecutor.submit` and `map` (and so `loop.run_in_executor`), `threading.Thread` and
`Timer`, `multiprocessing.pool.ThreadPool`. Not: processes, gevent.
"""

from __future__ import annotations

import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import Any

from ...engine.contexts import carried, carried_by_thread, run_in
from .hooks import Hook, Method, put_all
from .undo import Undo

_WORKERS = frozenset(("concurrent.futures.thread", "multiprocessing.pool", "anyio._backends._asyncio"))
"""Modules whose threads serve whoever comes."""
_POOLED = ("apply_async", "map", "map_async", "starmap", "starmap_async", "imap", "imap_unordered")


def carrying_threads() -> Undo:
    """Have threads and pools carry, until that is undone. May be done more than once."""
    return put_all(_HOOKS)


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


_HOOKS = (
    Hook(ThreadPoolExecutor, "submit", _submitting),
    Hook(threading.Thread, "start", _starting),
    *(Hook(ThreadPool, name, _pooling) for name in _POOLED),
)
