"""The house: imports run one way, in no circle, and what others add needs no file of ours."""

from __future__ import annotations

import ast
import importlib
import sys
from functools import lru_cache
from pathlib import Path

import pytest

import behest_integrations
from behest_integrations import Meter
from behest_integrations.integrations import Doors

PACKAGE = Path(__file__).parent.parent / "behest_integrations"

# From the bottom up: each may import those before it, and none after it. `.github/CONTRIBUTING.md`
# has the picture.
FLOORS = (
    {"rules"},
    {"wire", "prices", "ledger", "policy"},
    {"engine"},
    {"calls"},
    {"integrations"},
    {"config", "sandbox", "reports"},
    {"meter"},
    {"dashboard"},
    {"gateway", "moved", "testing"},
    {"cli"},
)
ROOM_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


@lru_cache(maxsize=1)
def arrows() -> dict[str, set[str]]:
    """Which module imports which, what only type checkers read included."""
    modules = {
        ".".join(("behest_integrations", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for path in PACKAGE.rglob("*.py")
        if "migrations" not in path.parts
    }
    found: dict[str, set[str]] = {}
    for name, path in modules.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        targets: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = package.split(".")
                base = base[: len(base) - node.level + 1]
                stem = ".".join([*base, *([node.module] if node.module else [])])
                for alias in node.names:
                    inner = f"{stem}.{alias.name}"
                    targets.add(inner if inner in modules else stem)
        found[name] = {t for t in targets if t in modules and t != name}
    return found


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_no_arrow_runs_upward() -> None:
    upward = [
        (module, target)
        for module, targets in arrows().items()
        for target in targets
        if room(module) and room(target) and ROOM_OF[room(target)] > ROOM_OF[room(module)]
    ]
    assert not upward


def test_rooms_of_one_floor_do_not_import_each_other() -> None:
    across = [
        (module, target)
        for module, targets in arrows().items()
        for target in targets
        if room(module) and room(target)
        if room(module) != room(target)
        if ROOM_OF[room(target)] == ROOM_OF[room(module)]
    ]
    assert not across


def test_there_is_no_circle() -> None:
    graph, done = arrows(), set[str]()

    def visit(module: str, above: tuple[str, ...]) -> None:
        if module in above:
            pytest.fail(" → ".join([*above[above.index(module) :], module]))
        if module in done:
            return
        for target in sorted(graph[module]):
            visit(target, (*above, module))
        done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_says_what_it_is_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    said = ast.get_docstring(ast.parse(text))
    assert said, path
    assert len(text.splitlines()) <= 500 or "ver 500 lines" in said, f"{path}: long, and it does not say why"


def test_doors_share_no_name_and_keep_no_state() -> None:
    seen: dict[str, type] = {}
    for door in Doors.__bases__:
        own = {n for n in vars(door) if not n.startswith("__")}
        assert "__init__" not in vars(door), door
        for name in own:
            assert name not in seen, f"{name}: {door} and {seen[name]}"
            assert callable(getattr(door, name)), name
            seen[name] = door
    assert {"openai", "anthropic", "langchain", "llama_index"} <= set(seen)
    assert issubclass(Meter, Doors)


@pytest.mark.filterwarnings("always::DeprecationWarning")
def test_old_paths_work_with_a_warning() -> None:
    from behest_integrations.rules.budgets import Budget

    sys.modules.pop("behest_integrations.budgets", None)
    with pytest.warns(DeprecationWarning, match="is now behest_integrations.rules.budgets"):
        moved = importlib.import_module("behest_integrations.budgets")
    assert moved.Budget is Budget
    assert importlib.import_module("behest_integrations.pricing").Price is behest_integrations.Price
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("behest_integrations.never_was")
