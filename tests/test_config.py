"""`behest.toml` means the same as objects in code, and bad files get clear errors."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from behest_integrations import Budget, ConfigError, Meter, Price
from behest_integrations.config import load

WHOLE = """
store = "memory://"
timezone = "Europe/Paris"
budgets = [
    "$0.50 per session",
    { amount = "$5", window = "day", per = ["user"], model = "gpt-4o*", tags = { "cost centre" = "a b" }, name = "cap" },
    { amount = "$9", window = "week", first_day = "Sunday" },
    { amount = "2M output tokens", rolling = "24h", per = ["user", "tag:team"] },
]
aliases = { "our-deployment" = "gpt-4o" }
thresholds = [80, 100]
default_output_tokens = 500
on_unknown = "estimate"
wait = 1.5
project = "apollo"

[prices."own"]
input = "1.50"
output = 6

[[prices.dated]]
input = "1"

[[prices.dated]]
input = "2"
start = 2026-01-01

[allow]
web_search = "$0.05"
images = ["$0.08", "4k tokens"]
"""  # noqa: E501


def write(folder: Path, text: str) -> Path:
    path = folder / "behest.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_is_the_same_as_objects(tmp_path: Path) -> None:
    arguments = load(write(tmp_path, WHOLE)).arguments()
    assert [str(b) for b in arguments["budgets"]] == [
        "$0.50 per session",
        '$5/day per user for model gpt-4o* for tag "cost centre"="a b" as cap',
        "$9/week from Sunday",
        "2M output tokens per 24h rolling per user and tag:team",
    ]
    assert arguments["prices"]["own"] == [Price(input="1.50", output=6)]
    assert arguments["prices"]["dated"] == [Price(input="1"), Price(input="2", start=date(2026, 1, 1))]
    with Meter.from_toml(tmp_path / "behest.toml", wait=0) as meter:
        assert meter.budgets == tuple(Budget.parse(str(b)) for b in arguments["budgets"])


def test_the_readme_of_the_module_is_a_file_that_works(tmp_path: Path) -> None:
    from behest_integrations import config

    assert config.__doc__
    text = config.__doc__.split("\n\n", 1)[1].replace("sqlite:///behest.db", "memory://")
    with Meter.from_toml(write(tmp_path, text)) as meter:
        assert len(meter.budgets) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("budgets = [", "cannot read"),
        ('budget = ["$5"]', "budget"),
        ('budgets = ["$5 per sesion"]', "sesion"),
        ("budgets = [5]", "budgets"),
        ('budgets = [{ amount = "$5", perr = ["user"] }]', "perr"),
        ("[prices.m]\ninput = 0.15", "prices.m"),
        ('[prices.m]\noutput = "1"', "input"),
        ('on_unknown = "hope"', "on_unknown"),
        ('wait = "long"', "wait"),
        ('[allow]\nimages = "cheap"', "cheap"),
    ],
)
def test_a_bad_file_says_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Meter.from_toml(write(tmp_path, f'store = "memory://"\n{text}' if text[0] != "[" else text))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file"):
        Meter.from_toml(tmp_path / "nowhere.toml")


def test_the_store_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEHEST_STORE", f"sqlite:///{tmp_path}/env.db")
    Meter().close()
    assert (tmp_path / "env.db").exists()
    monkeypatch.delenv("BEHEST_STORE")
    monkeypatch.chdir(tmp_path)
    Meter().close()
    assert (tmp_path / "behest.db").exists()
