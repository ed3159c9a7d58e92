"""Modules that have moved: their old paths work for one version, with a warning."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_NEW = {
    "admission": "ledger.admission",
    "attribution": "rules.attribution",
    "budgets": "rules.budgets",
    "costs": "engine.costs",
    "demo": "cli.demo",
    "errors": "rules.errors",
    "exchange": "calls.exchange",
    "planning": "engine.planning",
    "pricing": "prices",
    "stages": "engine.stages",
    "steps": "engine.steps",
    "tokens": "wire.tokens",
    "usage": "rules.usage",
}
_PACKAGE = __name__.rpartition(".")[0]


class _Moved(MetaPathFinder, Loader):
    """Finds a module under its old name: one with the same contents."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, old = name.rpartition(".")
        return ModuleSpec(name, self) if package == _PACKAGE and old in _NEW else None

    def exec_module(self, module: ModuleType) -> None:
        new = f"{_PACKAGE}.{_NEW[module.__name__.rpartition('.')[2]]}"
        warnings.warn(
            f"{module.__name__} is now {new}; the old name goes with the next version",
            DeprecationWarning,
            stacklevel=2,
        )
        found = vars(importlib.import_module(new))
        vars(module).update({name: value for name, value in found.items() if not name.startswith("__")})


def install() -> None:
    """Let old paths be imported."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
