"""Fields that change the bill, sent through every door: no limit is passed, and it is said why.

The provider is a server on this machine that bills by the rules of its dialect; see `provider_rules`.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from gateway_support import Gateway
from openai import AsyncOpenAI, OpenAI
from provider_rules import RULES, Draw, Rates, Rules, reply
from recording import Answer, Received, Recorder
from support import HELLO, assert_sound, entries

from behest_integrations import BudgetExceeded, Meter, Price, Unbounded, session

BY_NAME = {rules.dialect: rules for rules in RULES}


class Provider(Recorder):
    """A server of one dialect, and what it has billed."""

    def __init__(self, rules: Rules, draw: Draw) -> None:
        super().__init__(self._billed)
        self.rules, self.draw = rules, draw
        self.tokens = self.nano = self.calls = 0
        self._adding = threading.Lock()

    def _billed(self, received: Received) -> Answer:
        bill = self.rules.bill(received.json, self.draw)
        with self._adding:
            self.tokens += bill.tokens
            self.nano += bill.nano
            self.calls += 1
        return Answer(body=json.dumps(reply(received.json, bill)).encode())


# ── doors: each makes one call with these fields ───────────────────────────────────────

Ask = Callable[[Meter, Provider, Mapping[str, Any]], object]


def by_client(meter: Meter, to: Provider, fields: Mapping[str, Any]) -> object:
    plain = OpenAI(base_url=to.base_url, api_key="none", max_retries=0)
    client = meter.openai(plain, provider=to.rules.provider)
    return client.chat.completions.create(model=to.rules.model, messages=HELLO, extra_body=dict(fields))


def by_async_client(meter: Meter, to: Provider, fields: Mapping[str, Any]) -> object:
    async def ask() -> object:
        plain = AsyncOpenAI(base_url=to.base_url, api_key="none", max_retries=0)
        async with meter.openai(plain, provider=to.rules.provider) as client:
            return await client.chat.completions.create(
                model=to.rules.model, messages=HELLO, extra_body=dict(fields)
            )

    return asyncio.run(ask())


def langchain(to: Provider, **settings: Any) -> Any:
    module = pytest.importorskip("langchain_openai")
    return module.ChatOpenAI(
        model=to.rules.model, base_url=to.base_url, api_key="none", max_retries=0, **settings
    )


def by_langchain_model(meter: Meter, to: Provider, fields: Mapping[str, Any]) -> object:
    made = langchain(to, extra_body=dict(fields))
    return meter.langchain_model(made, provider=to.rules.provider).invoke("hello")


def by_langchain_bind(meter: Meter, to: Provider, fields: Mapping[str, Any]) -> object:
    made = meter.langchain_model(langchain(to), provider=to.rules.provider)
    return made.bind(extra_body=dict(fields)).invoke("hello")


def by_langchain_callback(meter: Meter, to: Provider, fields: Mapping[str, Any]) -> object:
    made = langchain(to, extra_body=dict(fields))
    return made.invoke("hello", {"callbacks": [meter.langchain()]})


def llama_index(to: Provider, fields: Mapping[str, Any], **settings: Any) -> Any:
    module = pytest.importorskip("llama_index.llms.openai_like")
    return module.OpenAILike(
        model=to.rules.model, api_base=to.base_url, api_key="none", max_retries=0, is_chat_model=True,
        additional_kwargs={"extra_body": dict(fields)}, **settings,
    )  # fmt: skip


def by_llama_index(meter: Meter, to: Provider, fields: Mapping[str, Any]) -> object:
    return meter.llama_index(llama_index(to, fields), provider=to.rules.provider).complete("hello")


def by_llama_index_handler(meter: Meter, to: Provider, fields: Mapping[str, Any]) -> object:
    callbacks = pytest.importorskip("llama_index.core.callbacks")
    manager = callbacks.CallbackManager([meter.llama_index_handler()])
    return llama_index(to, fields, callback_manager=manager).complete("hello")


DOORS: list[Ask] = [
    by_client, by_async_client, by_langchain_model, by_langchain_bind, by_langchain_callback,
    by_llama_index, by_llama_index_handler,
]  # fmt: skip


def until_refused(
    ask: Ask, meter: Meter, to: Provider, fields: Mapping[str, Any], times: int = 10
) -> list[str]:
    """What became of so many calls at once."""

    def one(_: int) -> str:
        with session("s"):
            try:
                ask(meter, to, fields)
            except (BudgetExceeded, Unbounded) as error:
                return type(error).__name__
            return "served"

    with ThreadPoolExecutor(4) as pool:
        return sorted(pool.map(one, range(times)))


@pytest.fixture(params=DOORS, ids=lambda door: door.__name__)
def door(request: pytest.FixtureRequest) -> Ask:
    return request.param  # type: ignore[no-any-return]


# ── the limit ──────────────────────────────────────────────────────────────────────────


def test_n_predict_before_max_tokens(door: Ask) -> None:
    """llama.cpp goes by `n_predict`: 2,250 tokens were billed of a budget of 400 a session.
    https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md"""
    with (
        Provider(BY_NAME["llama.cpp"], Draw(per=4, request=10, message=8)) as to,
        Meter(
            "memory://", budgets=["1200 tokens per session"], wait=20, prices={"house": Price(1, 1)}
        ) as meter,
    ):
        became = until_refused(door, meter, to, {"max_tokens": 1, "n_predict": 200})
        assert to.tokens <= 1200
        assert to.calls == became.count("served") >= 2
        assert_sound(meter)


def test_a_dearer_model_that_may_answer(door: Ask) -> None:
    """A cap of $0.001 a session: one call was booked at $0.0618, ten at once at $0.309.
    https://openrouter.ai/docs/features/model-routing#the-models-parameter"""
    with (
        Provider(BY_NAME["OpenRouter"], Draw(per=4, pick=1)) as to,
        Meter("memory://", budgets=["$0.001 per session", "$1"], wait=20, prices=PRICES) as meter,
    ):
        became = until_refused(door, meter, to, {"models": ["dear"], "max_tokens": 100})
        assert to.nano <= 1_000_000
        assert became == ["BudgetExceeded"] * 10
        became = until_refused(door, meter, to, {"models": ["cheap"], "max_tokens": 100})
        assert "served" in became
        assert to.nano <= 1_000_000
        assert sum(e.cost or 0 for e in entries(meter)) == to.nano
        assert {e.model for e in entries(meter)} == {"cheap"}
        assert_sound(meter)


PRICES = {
    name: Price(rates.input, rates.output, cached_input=rates.cached)
    for name, rates in {
        "house": BY_NAME["OpenRouter"].rates,
        **BY_NAME["OpenRouter"].other_rates,
    }.items()
}


@pytest.mark.parametrize(
    ("fields", "times"), [({"speed": "fast"}, 6), ({"inference_geo": "us"}, Decimal("1.1"))]
)
def test_a_field_that_multiplies_the_price(door: Ask, fields: dict[str, str], times: Any) -> None:
    """`speed: "fast"`: 17 calls were $0.51 against a cap of $0.30.
    https://platform.claude.com/docs/en/build-with-claude/fast-mode"""
    rules = BY_NAME["Anthropic"]
    # A callback is told of the server, and not of whose prices are meant.
    mine = Price(rules.rates.input, rules.rates.output, cached_input=rules.rates.cached)
    with (
        Provider(rules, Draw(per=4, request=10, message=8)) as to,
        Meter("memory://", budgets=["$0.30 per session"], wait=20, prices={rules.model: mine}) as meter,
    ):
        became = until_refused(door, meter, to, {**fields, "max_tokens": 200}, times=60)
        assert to.nano <= 300_000_000
        assert to.nano == sum(e.cost or 0 for e in entries(meter))
        assert became.count("served") == to.calls >= min(60, 280_000_000 // (200 * 25_000 * times))
        assert_sound(meter)


def test_thoughts_that_are_billed_beside_the_limit(door: Ask) -> None:
    """Gemini's budget for thoughts: https://ai.google.dev/gemini-api/docs/openai#thinking"""
    thinking = {"extra_body": {"google": {"thinking_config": {"thinking_budget": 300}}}}
    with (
        Provider(BY_NAME["Gemini"], Draw(per=4, thought=10_000)) as to,
        Meter(
            "memory://", budgets=["2000 tokens per session"], wait=20, prices={"house": Price(1, 1)}
        ) as meter,
    ):
        became = until_refused(door, meter, to, {**thinking, "max_tokens": 50})
        assert to.tokens <= 2000
        assert became.count("served") == to.calls >= 2
        assert_sound(meter)


def test_more_answers_than_one(door: Ask) -> None:
    """vLLM's `best_of`: https://docs.vllm.ai/en/stable/serving/openai_compatible_server.html"""
    with (
        Provider(BY_NAME["vLLM"], Draw(per=4)) as to,
        Meter(
            "memory://", budgets=["2000 tokens per session"], wait=20, prices={"house": Price(1, 1)}
        ) as meter,
    ):
        until_refused(door, meter, to, {"best_of": 4, "max_tokens": 50})
        assert 0 < to.tokens <= 2000
        assert_sound(meter)


# ── fields that nobody knows ───────────────────────────────────────────────────────────


def test_an_unknown_field_is_refused_by_name_and_can_be_allowed(door: Ask) -> None:
    fields = {"shiny_new_field": 3, "max_tokens": 20}
    with Provider(BY_NAME["vLLM"], Draw(per=4)) as to:
        with Meter("memory://", budgets=["10k tokens"], prices={"house": Price(1, 1)}) as meter:
            with pytest.raises(Unbounded, match=r"shiny_new_field.*allow_fields"):
                door(meter, to, fields)
            assert to.calls == 0
            assert entries(meter) == []
        allowed = ["shiny_new_field"]
        with Meter(
            "memory://", budgets=["10k tokens"], prices={"house": Price(1, 1)}, allow_fields=allowed
        ) as meter:
            door(meter, to, fields)
            assert to.calls == 1
        with Meter("memory://", budgets=["10 calls"]) as meter:  # it needs no bound of tokens
            door(meter, to, fields)
            assert to.calls == 2


# ── the gateway ────────────────────────────────────────────────────────────────────────

TOML = """
[prices.house]
input = "0.7"
output = "3.1"
cached_input = "0.2"
[prices.dear]
input = "150"
output = "600"
[gateway.providers.one]
base_url = "{url}"
prices = "{provider}"
retries = 0
"""


@pytest.mark.parametrize(
    ("name", "budget", "fields", "most"),
    [
        ("llama.cpp", "1200 tokens per session", {"max_tokens": 1, "n_predict": 200}, 1200),
        ("OpenRouter", "$0.001 per session", {"max_tokens": 100, "models": ["dear"]}, None),
        ("vLLM", "2000 tokens per session", {"max_tokens": 50, "best_of": 4}, 2000),
    ],
)
def test_through_the_gateway(
    name: str, budget: str, fields: dict[str, Any], most: int | None, tmp_path: Path
) -> None:
    rules = BY_NAME[name]
    with Provider(rules, Draw(per=4, request=10, message=8, pick=1)) as to:
        more = TOML.format(url=to.base_url, provider=rules.provider)
        with Gateway(tmp_path, None, budgets=[budget], more=more) as gateway:
            http = gateway.http(gateway.key(end_users=True), **{"X-Session-Id": "s", "X-End-User-Id": "ada"})
            body = {"model": "house", "messages": HELLO, **fields}
            with ThreadPoolExecutor(4) as pool:
                codes = [
                    r.status_code
                    for r in pool.map(lambda _: http.post("/chat/completions", json=body), range(10))
                ]
            assert set(codes) <= {200, 402, 429}, codes
            assert codes.count(200) == to.calls
            if most is None:
                assert to.nano <= 1_000_000
            else:
                assert 0 < to.tokens <= most
            unknown = http.post("/chat/completions", json={**body, "shiny_new_field": 3})
            assert unknown.status_code == 400
            assert "shiny_new_field" in unknown.text
            assert "allow_fields" in unknown.text


def test_prices_of_the_rules_are_those_of_the_toml() -> None:
    assert BY_NAME["llama.cpp"].rates == Rates.of("0.7", "3.1", "0.2")
