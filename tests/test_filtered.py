"""A prompt that a provider's filter has stopped is answered by HTTP 400, and billed: at every door.

https://learn.microsoft.com/azure/ai-foundry/openai/concepts/content-filter
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from gateway_support import Gateway
from langchain_support import chat
from support import HELLO, aclient, assert_sound, client, entries

from behest_integrations import Meter
from behest_integrations.reports import report
from behest_integrations.rules.budgets import to_nano
from behest_integrations.sandbox import Sandbox

ASKED: dict[str, Any] = {"model": "gpt-4o", "messages": HELLO, "max_tokens": 20}


def by_the_client(meter: Meter, sandbox: Sandbox, stream: bool) -> None:
    meter.openai(client(sandbox)).chat.completions.create(**ASKED, stream=stream)


def awaited(meter: Meter, sandbox: Sandbox, stream: bool) -> None:
    asyncio.run(meter.openai(aclient(sandbox)).chat.completions.create(**ASKED, stream=stream))


def by_hand(meter: Meter, sandbox: Sandbox, stream: bool) -> None:
    http = meter.httpx(httpx.Client(), hosts=[f"127.0.0.1:{sandbox.port}"])
    with http.stream(
        "POST", f"{sandbox.base_url}/chat/completions", json={**ASKED, "stream": stream}
    ) as answer:
        assert b"content_filter" in b"".join(answer.iter_bytes())
        answer.raise_for_status()


def by_langchain(meter: Meter, sandbox: Sandbox, stream: bool) -> None:
    model = meter.langchain_model(chat(sandbox, model="gpt-4o", max_tokens=20))
    list(model.stream("hello there")) if stream else model.invoke("hello there")


def by_a_callback(meter: Meter, sandbox: Sandbox, stream: bool) -> None:
    model = chat(sandbox, model="gpt-4o", max_tokens=20)
    config: Any = {"callbacks": [meter.langchain()]}
    list(model.stream("hello there", config)) if stream else model.invoke("hello there", config)


@pytest.mark.parametrize("stream", [False, True], ids=["in one piece", "streamed"])
@pytest.mark.parametrize("call", [by_the_client, awaited, by_hand, by_langchain, by_a_callback])
def test_what_a_filter_stopped_is_booked_and_not_sent_again(
    sandbox: Sandbox, call: Callable[[Meter, Sandbox, bool], None], stream: bool
) -> None:
    sandbox.fault("filtered")
    with Meter("memory://", budgets=["$1"]) as meter:
        with pytest.raises((openai.BadRequestError, httpx.HTTPStatusError)):
            call(meter, sandbox, stream)
        (told,) = entries(meter)
        assert (told.status, told.flags) == ("assumed", "filtered")
        assert sandbox.requests == 1
        assert to_nano(sandbox.bill.total()) <= (report(meter.ledger).total.cost or 0)
        assert_sound(meter)


def test_at_the_gateway(tmp_path: Path, sandbox: Sandbox) -> None:
    with Gateway(tmp_path, sandbox, budgets=["$1"], keyless=True) as gateway:
        asking = openai.OpenAI(base_url=gateway.base_url, api_key="none", max_retries=0)
        for stream in (False, True):
            sandbox.fault("filtered")
            with pytest.raises(openai.BadRequestError) as caught:
                asking.chat.completions.create(**ASKED, stream=stream)
            assert caught.value.code == "content_filter"
    with Meter(gateway.store) as meter:
        assert [e.flags for e in entries(meter)] == ["filtered"] * 2
        assert sandbox.requests == 2
        assert to_nano(sandbox.bill.total()) <= (report(meter.ledger).total.cost or 0)


def test_by_litellm(sandbox: Sandbox) -> None:
    litellm = pytest.importorskip("litellm")
    sandbox.fault("filtered")
    with Meter("memory://", budgets=["$1"]) as meter, meter.litellm():
        with pytest.raises(litellm.BadRequestError):
            litellm.completion(
                model="openai/gpt-4o",
                messages=HELLO,
                max_tokens=20,
                api_base=sandbox.base_url,
                api_key="none",
            )
        assert [e.flags for e in entries(meter)] == ["filtered"]
