"""What people's own tests have: budgets, sums and a provider, under their pytest."""

# ruff: noqa: PT012, SIM117 - what is inside a budget is the block that may fail

from __future__ import annotations

import os
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from openai import OpenAI
from support import HELLO, aclient, client

from behest_integrations import BudgetExceeded, ConfigError, Meter
from behest_integrations.config import tomllib
from behest_integrations.sandbox import Sandbox
from behest_integrations.testing import assert_spent_under, budget_of


def chat(made: OpenAI, tokens: int = 50, model: str = "gpt-4o") -> None:
    made.chat.completions.create(model=model, messages=HELLO, max_tokens=tokens)


def test_a_block_is_held_to_its_budget(sandbox: Sandbox) -> None:
    made = client(sandbox)
    with pytest.raises(BudgetExceeded, match="2 calls"), budget_of("$1", "2 calls", wait=0) as meter:
        for _ in range(3):
            chat(made)
    assert sandbox.requests == 2
    chat(made)  # and is free of it afterwards
    assert sandbox.requests == 3
    assert meter.report("model").total.calls == 2


def test_a_function_is_held_to_its_budget_each_time(sandbox: Sandbox) -> None:
    made = client(sandbox)

    @budget_of("1 call", wait=0)
    def ask(times: int) -> None:
        for _ in range(times):
            chat(made)

    ask(1)
    ask(1)
    with pytest.raises(BudgetExceeded):
        ask(2)
    assert sandbox.requests == 3


async def test_what_is_awaited_is_counted(sandbox: Sandbox) -> None:
    with assert_spent_under(calls=1) as meter:
        await aclient(sandbox).chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=20)
        assert meter.report("model").total.calls == 1


def test_a_sum_is_looked_at_to_the_nano_dollar(sandbox: Sandbox) -> None:
    made = client(sandbox)
    with assert_spent_under(usd="1") as meter:
        chat(made)
        chat(made, model="gpt-4o-mini")
        spent = meter.report("model").total.cost_usd
    assert spent == sandbox.bill.total()
    with assert_spent_under(usd=spent):
        chat(made)
        chat(made, model="gpt-4o-mini")
    less = f"${spent - Decimal('1e-9')}"
    with (
        pytest.raises(AssertionError, match="were spent, and at most") as caught,
        assert_spent_under(usd=less),
    ):
        chat(made)
        chat(made, model="gpt-4o-mini")
    assert re.search(r"gpt-4o: 1 calls, \d+ tokens in, 50 out, \$", str(caught.value))


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"calls": 1}, "2 calls were made, and at most 1 should be"),
        ({"tokens": 60, "calls": 1}, "tokens were used, and at most 60 should be; 2 calls"),
        ({"calls": 2, "tokens": 1000}, ""),
    ],
)
def test_tokens_and_calls_are_looked_at(sandbox: Sandbox, limits: dict[str, int], says: str) -> None:
    made = client(sandbox)

    @assert_spent_under(**limits)  # type: ignore[arg-type]
    def both() -> None:
        chat(made)
        chat(made)

    if says:
        with pytest.raises(AssertionError, match=says):
            both()
    else:
        both()


def test_a_client_is_after_the_block_what_it_was(sandbox: Sandbox) -> None:
    before = client(sandbox)
    assert before.chat.completions  # its resources are made
    with budget_of("1 call", wait=0):
        inside = client(sandbox)
        with pytest.raises(BudgetExceeded):
            for _ in range(2):
                chat(before.with_options(timeout=5))
        for made in (before, inside):
            with pytest.raises(BudgetExceeded):
                chat(made)
    assert sandbox.requests == 1
    chat(before)
    chat(inside)
    assert sandbox.requests == 3
    for made in (before, inside):
        with pytest.raises(BudgetExceeded), budget_of("1 call", wait=0):
            chat(made)
            chat(made)
    assert sandbox.requests == 5
    assert "request" not in vars(before)


def test_what_has_no_price_is_not_cheap(sandbox: Sandbox) -> None:
    with (
        pytest.raises(AssertionError, match="1 calls have no price"),
        Sandbox(prices={"made-up": ("1", "1")}) as own,
        assert_spent_under(usd="5"),
    ):
        chat(client(own), model="made-up")


def test_an_error_inside_is_the_error(sandbox: Sandbox) -> None:
    with pytest.raises(ZeroDivisionError), assert_spent_under(calls=0):
        chat(client(sandbox))
        raise ZeroDivisionError


def test_a_meter_of_ones_own_is_looked_at_from_here_on(sandbox: Sandbox) -> None:
    with Meter("memory://") as meter:
        made = meter.openai(client(sandbox))
        chat(made)
        with assert_spent_under(calls=1, usd="0.01", meter=meter):
            chat(made)
        with pytest.raises(AssertionError, match="2 calls were made"):
            with assert_spent_under(calls=1, meter=meter):
                chat(made)
                chat(made)


def test_nothing_asked_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="needs a budget"), budget_of():
        pass
    with pytest.raises(ConfigError, match="usd="), assert_spent_under():
        pass
    with pytest.raises(ConfigError, match="money is text"), assert_spent_under(usd=0.05):  # type: ignore[arg-type]
        pass


THEIRS = """
import pytest
from openai import OpenAI
from behest_integrations.testing import assert_spent_under

def ask(times):
    for _ in range(times):
        OpenAI().chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": "hello"}], max_tokens=20
        )

def test_offline(behest_sandbox):
    ask(2)
    assert len(behest_sandbox.bill.lines) == 2

@pytest.mark.behest_budget("1 call", wait=0)
def test_within(behest_sandbox):
    ask(1)

@pytest.mark.behest_budget("1 call", wait=0)
def test_beyond(behest_sandbox):
    ask(2)

def test_dearer_than_it_was(behest_sandbox):
    with assert_spent_under(usd="0.000001"):
        ask(1)
"""


def test_their_own_pytest_has_it(tmp_path: Path) -> None:
    (tmp_path / "test_theirs.py").write_text(THEIRS)
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    plugin = project["entry-points"]["pytest11"]["behest"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", plugin, "--strict-markers", "-q", "test_theirs.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip
    assert "2 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert "BudgetExceeded" in done.stdout
    assert "were spent, and at most $0.000001 should be" in done.stdout
    assert done.stdout.count("FAILED test_theirs.py::test_") == 2
    assert "in _check" not in done.stdout


def test_the_plugin_loads_nothing_by_itself() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import sys, pytest, behest_integrations as b; before = set(sys.modules);"
         "import behest_integrations.testing.plugin;"
         "print([m for m in set(sys.modules) - before if 'sandbox' in m or 'reports' in m or 'rich' in m])"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert found.stdout.strip() == "[]", found.stdout + found.stderr
