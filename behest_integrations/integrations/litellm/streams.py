"""A stream of LiteLLM's, seen as it passes: another object with the same state, of a subclass of its class.

Another one, since LiteLLM keeps the first for its logs: when the caller drops theirs, the call has to end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from ..kit.call import Call
from ..kit.generation import Heard


class Watched:
    """What passes by here on its way to whoever reads."""

    _behest: Any

    def __iter__(self) -> Any:
        return self

    def __aiter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return next(self._behest)

    async def __anext__(self) -> Any:
        return await self._behest.__anext__()

    def close(self) -> None:
        if hasattr(self._behest, "close"):
            self._behest.close()

    async def aclose(self) -> None:
        if hasattr(self._behest, "aclose"):
            await self._behest.aclose()


@lru_cache(maxsize=64)
def _class_of(base: type) -> type:
    # What is ours is not in the state that both share.
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__slots__": ("_behest",)}
    return type(base.__name__, (Watched, base), names)


class _Source:
    """The first stream's own chunks."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Any:
        return self

    def __aiter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return next(self._stream)

    async def __anext__(self) -> Any:
        return await self._stream.__anext__()

    def close(self) -> None:
        if hasattr(self._stream, "close"):
            self._stream.close()

    async def aclose(self) -> None:
        if hasattr(self._stream, "aclose"):
            await self._stream.aclose()


def watch(stream: Any, call: Call, fold: Callable[[Any, Any], Any], *, hide_usage: bool) -> Any:
    """A stream of the same chunks, whose call ends with it.

    Args:
        hide_usage: whether the caller has not asked for the chunk that tells the usage.
    """
    twin = _twin(stream, hide_usage)
    twin._behest = call.read(_Source(stream), _reading(stream), fold, primed=True)
    next(twin._behest)
    return twin


async def awatch(stream: Any, call: Call, fold: Callable[[Any, Any], Any], *, hide_usage: bool) -> Any:
    """`watch` for coroutines."""
    twin = _twin(stream, hide_usage)
    twin._behest = call.aread(_Source(stream), _reading(stream), fold, primed=True)
    await twin._behest.__anext__()
    return twin


def _twin(stream: Any, hide_usage: bool) -> Any:
    if hide_usage and hasattr(stream, "send_stream_usage"):
        stream.send_stream_usage = False
    base: Any = type(stream)
    twin: Any = object.__new__(_class_of(base))
    object.__setattr__(twin, "__dict__", vars(stream))
    return twin


def _reading(stream: Any) -> Callable[[Any], Heard]:
    """What reads the chunks, with the usage that LiteLLM has been told in one that it has not passed on."""

    def read(chunks: Any) -> Heard:
        if chunks is None:
            return Heard()
        kept = getattr(stream, "chunks", None) or ()
        told = next((u for c in reversed(kept) if (u := getattr(c, "usage", None)) is not None), None)
        heard: Heard = chunks.heard(told)
        return heard

    return read
