"""Methods of a callback handler that LangChain may call from threads and from event loops.

LangChain calls the same method of a handler from both, awaits it on a loop only if it is a
coroutine function, and swallows what coroutine handlers raise in blocking calls. So the method
is written once, as steps, and whoever looks it up from within a coroutine gets its awaitable form.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

from ...engine.engine import Engine
from ...engine.steps import Steps


class Twofold:
    """`steps(self, ...)` as a method: blocking, or awaited where a coroutine looks it up."""

    def __init__(self, steps: Callable[..., Steps[None]]) -> None:
        self.__doc__ = steps.__doc__

        @functools.wraps(steps)
        def blocking(handler: Any, *args: Any, **kwargs: Any) -> None:
            engine: Engine = handler.engine
            engine.run(steps(handler, *args, **kwargs))

        @functools.wraps(steps)
        async def awaited(handler: Any, *args: Any, **kwargs: Any) -> None:
            engine: Engine = handler.engine
            await engine.arun(steps(handler, *args, **kwargs))

        self._blocking: Any = blocking
        self._awaited: Any = awaited

    def __get__(self, handler: object, owner: type | None = None) -> Any:
        in_coroutine = sys._getframe(1).f_code.co_flags & inspect.CO_COROUTINE
        chosen = self._awaited if in_coroutine else self._blocking
        return chosen if handler is None else chosen.__get__(handler, owner)
