"""A call that stands in for another one, in its `except`: Python chains its errors to the other's, of which
they say nothing. What is booked of it, and what its caller catches, is its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import openai
import pytest
from langchain_support import chat
from support import HELLO, aclient, assert_sound, client, entries

from behest_integrations import BudgetExceeded, Meter
from behest_integrations.sandbox import Sandbox

ASKED: dict[str, Any] = {"model": "gpt-4o", "messages": HELLO, "max_tokens": 20}


def nobody_there(meter: Meter, sandbox: Sandbox) -> None:
    nowhere = openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0)
    meter.openai(nowhere).chat.completions.create(**ASKED)


def too_many_requests(meter: Meter, sandbox: Sandbox) -> None:
    sandbox.fault("status", status=429)
    meter.openai(client(sandbox)).chat.completions.create(**ASKED)


def no_room(meter: Meter, sandbox: Sandbox) -> None:
    with meter.budget("$0.000001", name="none"):
        meter.openai(client(sandbox)).chat.completions.create(**ASKED)


def by_the_client(meter: Meter, sandbox: Sandbox) -> None:
    meter.openai(client(sandbox, timeout=0.2)).chat.completions.create(**ASKED)


def awaited(meter: Meter, sandbox: Sandbox) -> None:
    asyncio.run(meter.openai(aclient(sandbox, timeout=0.2)).chat.completions.create(**ASKED))


def by_langchain(meter: Meter, sandbox: Sandbox) -> None:
    meter.langchain_model(chat(sandbox, model="gpt-4o", max_tokens=20, timeout=0.2)).invoke("hello there")


def by_a_callback(meter: Meter, sandbox: Sandbox) -> None:
    model = chat(sandbox, model="gpt-4o", max_tokens=20, timeout=0.2)
    model.invoke("hello there", {"callbacks": [meter.langchain()]})


@pytest.mark.parametrize("before", [nobody_there, too_many_requests, no_room])
@pytest.mark.parametrize("call", [by_the_client, awaited, by_langchain, by_a_callback])
def test_what_stands_in_is_booked_by_its_own_errors(
    sandbox: Sandbox,
    before: Callable[[Meter, Sandbox], None],
    call: Callable[[Meter, Sandbox], None],
) -> None:
    with Meter("memory://", budgets=["$1"]) as meter:
        try:
            before(meter, sandbox)
        except (openai.OpenAIError, BudgetExceeded):
            sandbox.fault("timeout", seconds=0.5)  # it is billed, and nobody hears of it
            with pytest.raises(openai.APITimeoutError):
                call(meter, sandbox)
        told = entries(meter)[-1]
        assert (told.status, told.flags) == ("assumed", "no_answer")
        assert sandbox.bill.total() > 0
        assert_sound(meter)


def test_what_is_caught_is_its_own(sandbox: Sandbox) -> None:
    litellm = pytest.importorskip("litellm")
    asked = {**ASKED, "model": "openai/gpt-4o", "api_base": sandbox.base_url, "api_key": "none"}
    with Meter("memory://", budgets=["$1"]) as meter, meter.litellm():
        try:
            no_room(meter, sandbox)
        except BudgetExceeded:
            sandbox.fault("status", status=401)
            with pytest.raises(litellm.AuthenticationError):
                litellm.completion(**asked)
