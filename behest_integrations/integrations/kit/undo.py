"""What ends an instrumentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Undo:
    """Something that is in force until `remove()`, or to the end of a `with`.

    Args:
        undo: what takes it back; called once.
    """

    def __init__(self, undo: Callable[[], Any]) -> None:
        self._undo: Callable[[], Any] | None = undo

    def remove(self) -> None:
        """Take it back: what begins from now on is as it was before."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()

    def __enter__(self) -> Undo:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()
