"""What other packages add: a framework, a store, a unit, a report, by entry points alone.

`tests/toys` is such a package, as it lies in site-packages when it is installed. No file of ours
knows it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from store_suite import StoreSuite

from behest_integrations import Budget, BudgetExceeded, Meter, Price
from behest_integrations.integrations.published import published
from behest_integrations.ledger import open_store
from behest_integrations.reports import verify
from behest_integrations.rules import units

TOYS = Path(__file__).parent / "toys"
PRICES = {"toy-1": Price(input="0.10", output="10")}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(TOYS)
    monkeypatch.setattr(units, "_looked", False)
    published.cache_clear()
    yield
    published.cache_clear()
    units.UNITS.pop("reasoning_tokens", None)


def ask_on(model: Any) -> None:
    for _ in range(100):
        model.ask("What is it?")


def test_a_framework_is_a_door_of_at_most_60_lines() -> None:
    from toy_framework import ToyModel

    assert len((TOYS / "toy_door.py").read_text(encoding="utf-8").splitlines()) <= 60
    with Meter("memory://", budgets=["$0.0012 per session"], prices=PRICES) as meter:
        model = meter.toy(ToyModel("toy-1", 30))
        with meter.session("s", user="ada"), pytest.raises(BudgetExceeded) as refused:
            ask_on(model)
        assert refused.value.shortfall.scope == "session s"
        billed = sum(5 * 100 + out * 10_000 for out in model.bill)
        spent = meter.spend("s", user="ada")[0].spent
        assert spent == billed <= 1_200_000
        assert model.bill[-1] < 30  # the limit was lowered near the cap
        assert {(e.session_id, e.user_id) for e in meter.ledger.snapshot()[2]} == {("s", "ada")}


def test_instrument_calls_a_published_door() -> None:
    import toy_framework

    with Meter("memory://", budgets=["5 calls"]) as meter:
        with meter.instrument():
            model = toy_framework.ToyModel("toy-1", 3)
            with pytest.raises(BudgetExceeded):
                ask_on(model)
        assert len(model.bill) == 5
        model.ask("unmetered again")


def test_a_door_can_be_mixed_in_with_its_types() -> None:
    from toy_door import ToyDoor
    from toy_framework import ToyModel

    class MyMeter(ToyDoor, Meter):
        """With typed completion."""

    with MyMeter("memory://", budgets=["1 call"]) as meter:
        model = meter.toy(ToyModel("toy-1", 3))
        model.ask("once")
        with pytest.raises(BudgetExceeded):
            model.ask("twice")


def test_a_unit_is_a_row() -> None:
    from toy_framework import ToyModel

    with Meter("memory://", budgets=["40 reasoning tokens per user"]) as meter:
        assert str(meter.budgets[0]) == "40 reasoning tokens per user"
        model = meter.toy(ToyModel("toy-1", 20))
        with meter.session(user="ada"), pytest.raises(BudgetExceeded, match="reasoning tokens"):
            ask_on(model)
        spent = meter.spend(user="ada")[0]
        assert spent.unit == "reasoning_tokens"
        assert spent.spent == sum(out // 2 for out in model.bill)
        assert 40 - 16 < spent.spent <= 40
    assert Budget.parse("7 reasoning tokens/day").unit == "reasoning_tokens"


class TestAStoreOfSomebodyElses(StoreSuite):
    @pytest.fixture
    def url(self, tmp_path: Path, installed: None) -> str:
        return f"toy://{tmp_path}/books"


def test_a_store_is_a_file_of_at_most_250_lines(tmp_path: Path) -> None:
    assert len((TOYS / "toy_store.py").read_text(encoding="utf-8").splitlines()) <= 250
    url = f"toy://{tmp_path}/books"
    with Meter(url, budgets=["3 calls"]) as meter:
        for _ in range(3):
            with meter.cost("$0.01", name="search"):
                pass
    again = open_store(url)
    assert len(again.snapshot()[2]) == 3
    assert verify(again) == []


def test_a_report_is_a_file(tmp_path: Path) -> None:
    with Meter(f"sqlite:///{tmp_path}/b.db", budgets=["$1"]) as meter, meter.session("s"):
        for amount in ("$0.01", "$0.03"):
            with meter.cost(amount, name="search"):
                pass
    command = [sys.executable, "-m", "behest_integrations.cli", "biggest", "--store", f"{tmp_path}/b.db"]
    said = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={"PYTHONPATH": f"{TOYS}:{Path.cwd()}"}
    )
    assert said.stdout.splitlines() == ["s 30000000", "s 10000000"], said.stderr
