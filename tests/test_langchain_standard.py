"""LangChain's own standard suite for chat models, over a metered model on the sandbox.

In each of its tests, what the ledger books must be what the provider bills.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

pytest.importorskip("langchain_tests")
pytest.importorskip("langchain_openai")

from langchain_core.load import dumpd
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from support import assert_sound, entries

from behest_integrations import Meter
from behest_integrations.rules.budgets import to_nano
from behest_integrations.sandbox import Sandbox

_meter = Meter("memory://", budgets=["$1000 per session"])
_plain = ChatOpenAI(model="gpt-4o-mini", api_key="none", max_tokens=200)  # type: ignore[arg-type]
# The suite makes models of a class; the class of a metered model makes metered models.
_METERED: Any = type(_meter.langchain_model(_plain))

_NOT_UNDERSTOOD = "the sandbox answers in the right shape, and understands nothing of what it is asked"


class TestUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> Any:
        return _METERED

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "gpt-4o-mini", "api_key": "none"}

    @property
    def init_from_env_params(self) -> Any:
        env = {"OPENAI_API_KEY": "key", "OPENAI_ORG_ID": "org", "OPENAI_API_BASE": "http://x.test"}
        expected = {"openai_api_key": "key", "openai_organization": "org", "openai_api_base": "http://x.test"}
        return env, {"model": "gpt-4o-mini"}, expected

    @pytest.mark.xfail(reason="its snapshot would be of one version of ChatOpenAI; see below")
    def test_serdes(self, model: Any, snapshot: Any) -> None:
        super().test_serdes(model, snapshot)


def test_it_is_serialised_as_the_plain_model_is() -> None:
    assert dumpd(_meter.langchain_model(_plain)) == dumpd(_plain)


class TestIntegration(ChatModelIntegrationTests):
    base_url = ""

    @pytest.fixture(autouse=True, scope="class")
    def _provider(self, request: pytest.FixtureRequest) -> Iterator[Sandbox]:
        with Sandbox() as sandbox:
            request.cls.base_url = sandbox.base_url
            yield sandbox

    @pytest.fixture(autouse=True)
    def _is_sound(self, _provider: Sandbox) -> Iterator[None]:
        booked, billed = len(entries(_meter)), len(_provider.bill.lines)
        yield
        while len(_provider.bill.lines) < _provider.requests:
            time.sleep(0.01)  # it notices late that a stream was left
        assert_sound(_meter)
        ours = entries(_meter)[booked:]
        cost = sum(entry.cost or 0 for entry in ours)
        bill = to_nano(sum((line.cost for line in _provider.bill.lines[billed:]), Decimal(0)))
        if all(entry.status in ("settled", "failed") for entry in ours):
            assert cost == bill
        else:  # a stream that the test has left: its worst case
            assert cost >= bill

    @property
    def chat_model_class(self) -> Any:
        return _METERED

    @property
    def chat_model_params(self) -> dict[str, Any]:
        settings = {"model": "gpt-4o-mini", "api_key": "none", "max_tokens": 200, "stream_usage": True}
        return {**settings, "base_url": self.base_url}

    @pytest.mark.xfail(reason=_NOT_UNDERSTOOD)
    def test_tool_calling(self, model: Any) -> None:
        super().test_tool_calling(model)

    @pytest.mark.xfail(reason=_NOT_UNDERSTOOD)
    async def test_tool_calling_async(self, model: Any) -> None:
        await super().test_tool_calling_async(model)

    @pytest.mark.xfail(reason=_NOT_UNDERSTOOD)
    def test_unicode_tool_call_integration(self, model: Any, **kwargs: Any) -> None:
        super().test_unicode_tool_call_integration(model, **kwargs)
