"""What pytest finds where this package is installed (entry point `pytest11`); it loads nothing until used.

`behest_sandbox`: a provider on this machine, to which OpenAI's and Anthropic's clients of the test go, with
a bill of its own:

    def test_a_chat(behest_sandbox):
        answer("hello")                                # OpenAI() in it needs no key and no network
        assert behest_sandbox.bill.total() < 1

`behest_budget`: what a test may spend. One that would spend more fails before it does:

    @pytest.mark.behest_budget("$0.01", "20 calls")
    def test_the_agent_ends(): ...
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..sandbox import Sandbox


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "behest_budget(*budgets): what the test may ask of models, such as '$0.01' or '20 calls'.",
    )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, None]:
    marker = item.get_closest_marker("behest_budget")
    if marker is None:
        yield
        return
    from . import budget_of

    with budget_of(*marker.args, **marker.kwargs):
        yield


@pytest.fixture
def behest_sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A provider on this machine, where the test's clients go that name no address of their own."""
    from ..sandbox import Sandbox

    with Sandbox() as sandbox:
        monkeypatch.setenv("OPENAI_BASE_URL", sandbox.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "not-needed")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", sandbox.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "not-needed")
        yield sandbox
