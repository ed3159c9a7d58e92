"""What a metered call costs, in function calls: a count does not depend on the machine, so it may fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

from calls import calls_made


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="each Python counts in its own way")
@pytest.mark.parametrize(("store", "most"), [("memory://", 175), ("sqlite", 225)])
def test_a_metered_call_makes_at_most_so_many(store: str, most: int, tmp_path: Path) -> None:
    made = calls_made(store if "://" in store else f"sqlite:///{tmp_path}/b.db")
    said = ", ".join(f"{module} {calls}" for module, calls in made.most_common())
    assert sum(made.values()) <= most, said


def test_a_policy_that_there_is_not_costs_nothing() -> None:
    """Not measurable, because nothing is called: doors have looked at `Engine.policy`, and that is all."""
    asked = ("policy/", "engine/ruling", "engine/auditing")
    without = calls_made()
    assert not [module for module in without if module.startswith(asked)]
    there = calls_made(policy={"models": ["gpt-4o*"], "max_output_tokens": 500})
    assert {"policy/policing.py", "engine/ruling.py"} <= set(there)


def test_metrics_of_the_store_that_nobody_asked_for_cost_nothing(tmp_path: Path) -> None:
    asked = ("engine/observing", "engine/telemetry", "ledger/watching")
    assert not [module for module in calls_made(f"sqlite:///{tmp_path}/b.db") if module.startswith(asked)]
