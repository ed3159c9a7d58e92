"""How a refusal gets out of LiteLLM as it is.

Whatever is an `Exception`, LiteLLM makes an error of its own of, retries, cools a deployment down for, and
falls back from. So within its public functions a refusal travels as something that is none, and is itself
again where they end.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ...rules.errors import CallRefused
from ..kit.refusals import as_it_is

_travelling: ContextVar[bool] = ContextVar("behest_litellm", default=False)


class _Refusal(BaseException):
    def __init__(self, refusal: CallRefused) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


@contextmanager
def sending_off() -> Iterator[None]:
    """Around an attempt: a refusal leaves it as what LiteLLM does not catch."""
    try:
        with as_it_is():
            yield
    except CallRefused as refusal:
        if _travelling.get():
            raise _Refusal(refusal) from None
        raise


@contextmanager
def arriving() -> Iterator[None]:
    """Around a public function: a refusal leaves it as itself. Within another one it travels on."""
    if _travelling.get():
        yield
        return
    token = _travelling.set(True)
    try:
        with as_it_is():
            yield
    except _Refusal as error:
        raise error.refusal from None
    finally:
        _travelling.reset(token)


def arrived(function: Any) -> Any:
    """A public function, blocking or awaited, out of which refusals come as they are."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            with arriving():
                return await function(*args, **kwargs)

        return awaited

    @functools.wraps(function)
    def blocking(*args: Any, **kwargs: Any) -> Any:
        with arriving():
            return function(*args, **kwargs)

    return blocking
