"""A program metered without a line of it changed: each framework as it is imported."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .threads import Threads

if TYPE_CHECKING:
    from ..meter import Meter


class Instrumented:
    """What is metered until `remove()`; also as `with`. See `Meter.instrument`."""

    def __init__(self, meter: Meter) -> None:
        self._undo: list[Any] = [Threads()]
        # By the module whose import completes what a door needs.
        doors: dict[str, Callable[[], Any]] = {
            "openai": meter.instrument_openai,
            "langchain_core.language_models.chat_models": meter.instrument_langchain,
            "llama_index.core": meter.instrument_llama_index,
        }
        waiting: dict[str, Callable[[], None]] = {}
        for name, door in doors.items():
            if name in sys.modules:
                self._undo.append(door())
            else:
                waiting[name] = lambda door=door: self._undo.append(door())  # type: ignore[misc]
        self._finder = _AfterImport(waiting)
        sys.meta_path.insert(0, self._finder)

    def remove(self) -> None:
        """Stop metering what begins from now on."""
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        while self._undo:
            self._undo.pop().remove()

    def __enter__(self) -> Instrumented:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


class _AfterImport(MetaPathFinder):
    """Does something once a module has been imported."""

    def __init__(self, waiting: dict[str, Callable[[], None]]) -> None:
        self._waiting = waiting

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        action = self._waiting.pop(name, None)
        if action is None:
            return None
        spec = importlib.util.find_spec(name)  # by the finders after us
        if spec is None or spec.loader is None:
            self._waiting[name] = action
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            action()

        loader.exec_module = exec_module
        return spec
