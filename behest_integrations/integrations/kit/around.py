"""What a framework's run does, made inside of something: a result, a coroutine, or a stream of either kind.

A stream shares its consumer's context: what is in force while it is asked for its next item must not be
while its consumer is at work on that. So each step is made inside anew.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any

from ...rules.errors import handled


class Around:
    """What is around a run. A door says what of this it needs."""

    def inside(self) -> AbstractContextManager[Any]:
        """What each step of it is made inside of."""
        raise NotImplementedError

    def saw(self, item: Any) -> None:
        """An item of its stream is about to be handed on."""

    def hang_up(self) -> Any:
        """Its stream is left before its end. What it returns may have to be awaited."""

    def ended(self, result: Any) -> Any:
        """It has come to its end. What is handed on in the place of its result, None for a stream's."""
        return result

    def failed(self, error: BaseException, before: int) -> BaseException:
        """It has raised. What is raised in the place of that.

        Args:
            before: see `errors.causes`.
        """
        return error


def made_inside(around: Around, own: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call `own`, a framework's method, inside of `around`: what it returns is of the same kind."""
    with _step(around):
        result = own(*args, **kwargs)
    return _followed(around, result)


class _step:
    """One step: what it raises may be another error."""

    __slots__ = ("_around", "_before", "_inside")

    def __init__(self, around: Around) -> None:
        self._around = around

    def __enter__(self) -> None:
        self._before = handled()
        self._inside = self._around.inside()
        self._inside.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._inside.__exit__(None, None, None)
        if error is None or isinstance(error, (StopIteration, StopAsyncIteration, GeneratorExit)):
            return
        instead = self._around.failed(error, self._before)
        if instead is not error:
            raise instead from None


def _followed(around: Around, result: Any) -> Any:
    if hasattr(result, "__anext__"):
        return _astream(around, result)
    if inspect.isawaitable(result):
        return _awaited(around, result)
    if hasattr(result, "__next__"):
        return _stream(around, result)
    return around.ended(result)


async def _awaited(around: Around, coming: Any) -> Any:
    with _step(around):
        result = await coming
    return _followed(around, result)


def _stream(around: Around, items: Iterator[Any]) -> Generator[Any, None, Any]:
    value = None
    try:
        while True:
            with _step(around):
                try:
                    item = next(items)
                except StopIteration as stop:
                    value = stop.value
                    break
            around.saw(item)
            yield item
    except BaseException:
        with _step(around):
            if hasattr(items, "close"):
                items.close()
            around.hang_up()
        raise
    around.ended(None)
    return value


async def _astream(around: Around, items: AsyncIterator[Any]) -> AsyncIterator[Any]:
    try:
        while True:
            with _step(around):
                try:
                    item = await items.__anext__()
                except StopAsyncIteration:
                    break
            around.saw(item)
            yield item
    except BaseException:
        with _step(around):
            if hasattr(items, "aclose"):
                await items.aclose()
            hanging_up = around.hang_up()
            if inspect.isawaitable(hanging_up):
                await hanging_up
        raise
    around.ended(None)
