"""A value that is kept once for each engine, made when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar, cast

if TYPE_CHECKING:
    from .engine import Engine

T = TypeVar("T")


class PerEngine(Generic[T]):
    """At the top of a module, with its type for all to see: `RUNS = PerEngine(make)`, `RUNS.of(engine)`."""

    def __init__(self, make: Callable[[Engine], T]) -> None:
        self._make = make

    def of(self, engine: Engine) -> T:
        """The engine's own."""
        try:
            return cast(T, engine.kept[self])
        except KeyError:
            return cast(T, engine.kept.setdefault(self, self._make(engine)))
