"""A program metered without a line of it changed: each framework as it is imported."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

from .undo import Undo

F = TypeVar("F", bound=Callable[..., Any])


def on_import(module: str) -> Callable[[F], F]:
    """Mark a door's method, which takes nothing and returns an `Undo`, as one that
    `Meter.instrument` calls.

    Args:
        module: the module whose import completes what the method needs.
    """

    def mark(method: F) -> F:
        method.behest_on_import = module  # type: ignore[attr-defined]
        return method

    return mark


def marked(doors: Iterable[type]) -> dict[str, str]:
    """The marked methods of door classes: the module that each waits for, by the method's name."""
    return {
        name: value.behest_on_import
        for door in doors
        for name, value in vars(door).items()
        if hasattr(value, "behest_on_import")
    }


_SDKS = ("openai", "anthropic", "google.genai", "botocore.client", "litellm")
"""What frameworks ask their models by, where it has a door."""


def with_sdks(door: Any, *methods: str) -> Undo:
    """Meter what a framework asks its models by, and the framework itself: its door's marked methods."""
    found = marked(type(door).__mro__[:-1])
    names = [*(name for name, module in found.items() if module in _SDKS), *methods]
    return instrumented([(found[name], getattr(door, name)) for name in names])


def instrumented(methods: Iterable[tuple[str, Callable[[], Undo]]]) -> Undo:
    """Call each method as soon as its module is imported: now, if it has been already.

    Threads and pools take sessions and stages along by themselves meanwhile.
    """
    from .threads import carrying_threads  # here: it takes pools' modules with it

    begun: list[Undo] = [carrying_threads()]
    waiting: dict[str, list[Callable[[], Undo]]] = {}
    finder = _AfterImport(waiting, begun)

    def undo() -> None:
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)
        while begun:
            begun.pop().remove()

    try:
        for module, method in methods:
            if module in sys.modules:
                begun.append(method())
            else:
                waiting.setdefault(module, []).append(method)
    except BaseException:
        undo()  # what has begun is not left so
        raise
    sys.meta_path.insert(0, finder)
    return Undo(undo)


class _AfterImport(MetaPathFinder):
    """Does something once a module has been imported."""

    def __init__(self, waiting: dict[str, list[Callable[[], Undo]]], begun: list[Undo]) -> None:
        self._waiting = waiting
        self._begun = begun

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self._waiting:
            return None
        spec = self._spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            # Only now: whoever asks for a spec may but want to know whether there is such a module.
            if module.__name__ == name:
                self._begun.extend(method() for method in self._waiting.pop(name, ()))

        loader.exec_module = exec_module
        return spec

    def _spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        """What the finders after this one find."""
        finders = [*sys.meta_path]
        for finder in finders[finders.index(self) + 1 :] if self in finders else ():
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return spec
        return None
