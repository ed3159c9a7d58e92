"""A cheaper model near the cap: which was served is what the sandbox billed, and nothing passes the limit."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import anthropic_support
import httpx
import pytest
from gateway_support import Gateway, chat
from support import (
    HELLO,
    aclient,
    assert_agrees,
    assert_each_within,
    assert_sound,
    assert_whose,
    auntil_exhausted,
    client,
    entries,
    person,
    until_exhausted,
)

from behest_integrations import BudgetExceeded, ConfigError, Meter, UnknownPrice
from behest_integrations.config import load
from behest_integrations.reports import Asked
from behest_integrations.reports.calls import calls as calls_of
from behest_integrations.sandbox import Sandbox
from behest_integrations.wire.standing_in import may_stand_in

DEAR, CHEAP = "gpt-4o", "gpt-4o-mini"
TO = {DEAR: CHEAP}


def served(sandbox: Sandbox) -> list[str]:
    return [line.model for line in sandbox.bill.lines]


def ask(metered: Any, **options: Any) -> Any:
    return metered.chat.completions.create(**{"model": DEAR, "messages": HELLO, "max_tokens": 490, **options})


# ── settings ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("downgrade", "said"),
    [
        ({"gpt-4o": "gpt-4o-minni"}, 'did you mean "gpt-4o-mini'),
        ({"gpt4-o": "gpt-4o-mini"}, "whose price is not known"),
        ({"gpt-4o": "gpt-4o"}, "in a circle: gpt-4o → gpt-4o"),
        ({"gpt-4": "gpt-4o", "gpt-4o": "gpt-4o-mini", "gpt-4o-mini": "gpt-4o"}, "in a circle"),
        ({"gpt-4o-mini": "gpt-4o"}, "does not cost less"),
        ({"gpt-4o": ""}, "models by the ones"),
        ("gpt-4o", "models by the ones"),
    ],
)
def test_a_map_that_cannot_be_meant(downgrade: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Meter("memory://", downgrade=downgrade)


@pytest.mark.parametrize("at", [0, 101, True, "80", 79.5])
def test_a_share_that_is_none(at: Any) -> None:
    with pytest.raises(ConfigError, match="downgrade_at is a whole percentage"):
        Meter("memory://", downgrade=TO, downgrade_at=at)


def test_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "behest.toml"
    file.write_text('store = "memory://"\ndowngrade_at = 60\n[downgrade]\n"gpt-4o" = "gpt-4o-mini"\n')
    assert load(file).arguments()["downgrade"] == TO
    with Meter.from_toml(file) as meter:
        assert meter.downgrade is not None
        assert meter.downgrade.at == 60
        assert meter.downgrade.after(DEAR) == (CHEAP,)


def test_names_of_ones_own_need_a_price(sandbox: Sandbox) -> None:
    with Meter("memory://", downgrade={"big": "small"}, aliases={"big": DEAR, "small": CHEAP}) as meter:
        assert meter.downgrade is not None
        assert meter.downgrade.after("big") == ("small",)


# ── each door ──────────────────────────────────────────────────────────────────────────


def openai_door(meter: Meter, sandbox: Sandbox) -> Callable[[], Any]:
    metered = meter.openai(client(sandbox))
    return lambda: ask(metered)


def openai_stream(meter: Meter, sandbox: Sandbox) -> Callable[[], Any]:
    metered = meter.openai(client(sandbox))
    return lambda: list(ask(metered, stream=True))


def responses(meter: Meter, sandbox: Sandbox) -> Callable[[], Any]:
    metered = meter.openai(client(sandbox))
    return lambda: metered.responses.create(model=DEAR, input="hello there", max_output_tokens=490)


def by_hand(meter: Meter, sandbox: Sandbox) -> Callable[[], Any]:
    http = meter.httpx(httpx.Client(base_url=sandbox.base_url), hosts=["127.0.0.1"])
    body = {"model": DEAR, "messages": HELLO, "max_tokens": 490}
    return lambda: http.post("chat/completions", json=body)


def langchain(meter: Meter, sandbox: Sandbox) -> Callable[[], Any]:
    from langchain_openai import ChatOpenAI

    model = meter.langchain_model(
        ChatOpenAI(model=DEAR, base_url=sandbox.base_url, api_key="none", max_tokens=490, max_retries=0)
    )
    return lambda: model.invoke("hello there")


def langchain_stream(meter: Meter, sandbox: Sandbox) -> Callable[[], Any]:
    from langchain_openai import ChatOpenAI

    model = meter.langchain_model(
        ChatOpenAI(model=DEAR, base_url=sandbox.base_url, api_key="none", max_tokens=490, max_retries=0)
    )
    return lambda: list(model.stream("hello there"))


def llama_index(meter: Meter, sandbox: Sandbox) -> Callable[[], Any]:
    pytest.importorskip("llama_index.llms.openai")
    from llama_index.llms.openai import OpenAI

    model = meter.llama_index(
        OpenAI(model=DEAR, api_base=sandbox.base_url, api_key="none", max_tokens=490, max_retries=0)
    )
    return lambda: model.complete("hello there")


def pydantic_ai(meter: Meter, sandbox: Sandbox) -> Callable[[], Any]:
    pytest.importorskip("pydantic_ai.models.openai")
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(openai_client=aclient(sandbox))
    agent = Agent(meter.pydantic_ai(OpenAIChatModel(DEAR, provider=provider)))
    return lambda: agent.run_sync("hello there", model_settings={"max_tokens": 490})


def openai_agents(meter: Meter, sandbox: Sandbox) -> Callable[[], Any]:
    agents = pytest.importorskip("agents")
    agents.set_tracing_disabled(True)
    model = meter.openai_agents(agents.OpenAIChatCompletionsModel(DEAR, aclient(sandbox)))
    agent = agents.Agent(name="a", model=model, model_settings=agents.ModelSettings(max_tokens=490))
    return lambda: agents.Runner.run_sync(agent, "hello there")


@pytest.mark.parametrize(
    "door",
    [
        openai_door,
        openai_stream,
        responses,
        by_hand,
        langchain,
        langchain_stream,
        llama_index,
        pydantic_ai,
        openai_agents,
    ],
)
def test_each_door(door: Callable[[Meter, Sandbox], Callable[[], Any]]) -> None:
    """From the share on the cheaper one is served, and the entry says which was asked for."""
    with (
        Sandbox(output_tokens=490) as sandbox,
        Meter("memory://", budgets=["$0.02 per session"], downgrade=TO, downgrade_at=50) as meter,
        meter.session("s"),
    ):
        made = until_exhausted(door(meter, sandbox))
        found = served(sandbox)
        assert made == len(found) > 10
        dear = found.count(DEAR)
        assert found == [DEAR] * dear + [CHEAP] * (made - dear)
        # The call with which half was passed is the last of the dear ones.
        costs = [line.cost for line in sandbox.bill.lines]
        assert sum(costs[: dear - 1]) < Decimal("0.01") <= sum(costs[:dear])
        assert sandbox.bill.total() >= Decimal("0.02") * 99 / 100
        asked = [(entry.model, entry.asked_model) for entry in entries(meter)]
        assert asked == [(DEAR, None)] * dear + [(CHEAP, DEAR)] * (made - dear)
        assert_agrees(meter, sandbox)
        assert_sound(meter)


def test_anthropics_client() -> None:
    with (
        Sandbox(output_tokens=100) as sandbox,
        Meter(
            "memory://", budgets=["$0.05"], downgrade={"claude-opus-5-5": "claude-haiku-4-5"}, downgrade_at=50
        ) as meter,
    ):
        metered = meter.anthropic(anthropic_support.client(sandbox))
        until_exhausted(lambda: metered.messages.create(**anthropic_support.asked(model="claude-opus-5-5")))
        found = served(sandbox)
        assert found[0] == "claude-opus-5-5"
        assert found[-1] == "claude-haiku-4-5"
        assert entries(meter)[-1].asked_model == "claude-opus-5-5"
        assert_agrees(meter, sandbox)


def test_the_reply_and_the_books_tell(sqlite_store: str, sandbox: Sandbox) -> None:
    """The reply's model is the provider's word; a call of the cheaper one by name was asked as it is."""
    with Meter(sqlite_store, budgets=["$1"], downgrade=TO, downgrade_at=1) as meter:
        metered = meter.openai(client(sandbox))
        for _ in range(3):
            ask(metered, model=CHEAP, max_tokens=40)
        spent = meter.spend()[0].spent
        ask(metered, model="gpt-4", messages=[{"role": "user", "content": "word " * 300}], max_tokens=100)
        assert meter.spend()[0].spent > spent
        assert ask(metered).model == CHEAP
        meter.flush()
        found = calls_of(meter.ledger, Asked()).calls
        assert [call.asked_model for call in found] == [None, None, None, None, DEAR]


# ── which one ──────────────────────────────────────────────────────────────────────────


def test_cheaper_comes_before_shorter(sandbox: Sandbox) -> None:
    """Under the share, what does not fit in full is asked of the cheaper one, and of it in full."""
    with Meter("memory://", budgets=["$0.004"], downgrade=TO) as meter:
        ask(meter.openai(client(sandbox)))
        (entry,) = entries(meter)
        assert (entry.model, entry.asked_model) == (CHEAP, DEAR)
        assert (entry.output_limit, entry.lowered_from) == (490, None)


def test_it_is_for_whom_the_request_names(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$0.001 per user", "1 call per user"], downgrade=TO) as meter:
        openai = meter.openai(client(sandbox))
        ask(openai, user="ada")
        ask(openai, user="bob")
        with pytest.raises(BudgetExceeded, match="1 calls per user"):
            ask(openai, user="ada")
        assert served(sandbox) == [CHEAP, CHEAP]
        assert [(e.user_id, e.asked_model) for e in entries(meter)] == [("ada", DEAR), ("bob", DEAR)]


def test_at_100_only_what_does_not_fit(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$0.0102"], downgrade=TO, downgrade_at=100) as meter:
        metered = meter.openai(client(sandbox))
        for _ in range(20):
            ask(metered, max_tokens=490)
        costs = Counter(served(sandbox))
        assert costs[DEAR] > 1


def test_a_chain_goes_on_where_the_next_does_not_fit(sandbox: Sandbox) -> None:
    chain = {"gpt-4": DEAR, DEAR: CHEAP}
    with Meter("memory://", budgets=["$0.03"], downgrade=chain, downgrade_at=50) as meter:
        assert meter.downgrade is not None
        assert meter.downgrade.after("gpt-4") == (DEAR, CHEAP)
        metered = meter.openai(client(sandbox))
        until_exhausted(lambda: ask(metered, model="gpt-4", max_tokens=300))
        found = served(sandbox)
        assert list(dict.fromkeys(found)) == ["gpt-4-0613", DEAR, CHEAP] or list(dict.fromkeys(found)) == [
            "gpt-4", DEAR, CHEAP,
        ]  # fmt: skip
        assert {entry.asked_model for entry in entries(meter)} == {None, "gpt-4"}


def test_no_price_helps_where_calls_are_counted(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1", "1 calls"], downgrade=TO, wait=0) as meter:
        metered = meter.openai(client(sandbox))
        ask(metered)
        with pytest.raises(BudgetExceeded, match='Budget "1 calls"'):
            ask(metered)
        assert served(sandbox) == [DEAR]


def test_a_budget_that_only_warns_changes_no_model(sandbox: Sandbox) -> None:
    with Meter(
        "memory://", budgets=["$0.001, warn only", "$1 as hard"], downgrade=TO, downgrade_at=50
    ) as meter:
        metered = meter.openai(client(sandbox))
        for _ in range(3):
            ask(metered)
        assert served(sandbox) == [DEAR] * 3


@pytest.mark.parametrize(
    "policy", [{"deny_models": [CHEAP]}, {"models": [DEAR]}, {"rules": [{"models": [DEAR]}]}]
)
@pytest.mark.parametrize("door", [openai_door, langchain])
def test_what_a_policy_forbids_does_not_stand_in(
    door: Callable[[Meter, Sandbox], Callable[[], Any]], policy: Any, sandbox: Sandbox
) -> None:
    """The call goes on as it was asked, and nothing is told as refused."""
    with Meter("memory://", budgets=["$0.02"], downgrade=TO, downgrade_at=1, policy=policy) as meter:
        call = door(meter, sandbox)
        call()
        call()
        assert served(sandbox) == [DEAR, DEAR]
        meter.flush()
        kinds = [record.kind for record in meter.ledger.submit(lambda rows: list(rows.audit()))]
        assert kinds
        assert "refused" not in kinds


def test_what_is_masked_stays_masked(sandbox: Sandbox) -> None:
    pytest.importorskip("presidio_analyzer")
    policy = {"pii": {"entities": {"EMAIL_ADDRESS": "mask"}, "timeout": 30.0}}
    with Meter("memory://", budgets=["$0.02"], downgrade=TO, downgrade_at=1, policy=policy) as meter:
        metered = meter.openai(client(sandbox))
        said: Any = [{"role": "user", "content": "write to ada@example.com"}]
        for _ in range(3):
            ask(metered, messages=said, max_tokens=20)
        assert served(sandbox)[-1] == CHEAP
        kinds = [r.kind for r in meter.ledger.submit(lambda rows: list(rows.audit()))]
        assert kinds == ["masked"] * 3


def test_one_without_a_price_there_does_not_stand_in(sandbox: Sandbox) -> None:
    """What is sold elsewhere is not asked for here."""
    to = {DEAR: "claude-haiku-4-5"}
    with Meter("memory://", budgets=["$0.02"], downgrade=to, downgrade_at=1) as meter:
        metered = meter.openai(client(sandbox), provider="openai")
        with pytest.raises(UnknownPrice):
            ask(metered, model="claude-haiku-4-5")
        ask(metered)
        ask(metered)
        assert served(sandbox) == [DEAR, DEAR]


@pytest.mark.parametrize(
    ("asked", "model", "fields", "may"),
    [
        ("gpt-4o", "gpt-4o-mini", {"temperature": 0.2, "max_tokens": 5}, True),
        ("gpt-4o", "o4-mini", {"max_completion_tokens": 5}, True),
        ("gpt-4o", "o4-mini", {"max_tokens": 5}, False),
        ("gpt-4o", "gpt-5-mini", {"temperature": 0.2}, False),
        ("o3", "gpt-4o-mini", {"reasoning_effort": "low"}, False),
        ("gpt-5", "gpt-5-mini", {"reasoning_effort": "low"}, True),
        ("claude-opus-4-5", "claude-haiku-4-5", {"thinking": {"type": "enabled"}}, True),
        ("claude-opus-4-5", "claude-3-5-haiku-latest", {"thinking": {"type": "enabled"}}, False),
        ("claude-opus-4-6", "claude-haiku-4-5", {"speed": "fast"}, False),
        ("gemini-2.5-pro", "gemini-2.5-flash", {"temperature": 0.2}, True),
    ],
)
def test_whether_it_takes_what_is_sent(asked: str, model: str, fields: dict[str, Any], may: bool) -> None:
    assert may_stand_in({"model": model, **fields}, asked) is may


def test_a_prompt_that_is_too_long_for_it(sandbox: Sandbox) -> None:
    """Its context window is known, and is smaller: the call goes on as it was asked."""
    long: Any = [{"role": "user", "content": "word " * 20_000}]
    with Meter("memory://", budgets=["$1"], downgrade={DEAR: "gpt-3.5-turbo"}, downgrade_at=1) as meter:
        metered = meter.openai(client(sandbox))
        ask(metered, messages=long, max_tokens=20)
        ask(metered, messages=long, max_tokens=20)
        ask(metered, max_tokens=20)
        assert served(sandbox) == [DEAR, DEAR, "gpt-3.5-turbo"]


# ── the limit ──────────────────────────────────────────────────────────────────────────

EACH = Decimal("0.05")


@pytest.mark.parametrize("streamed", [False, True])
def test_64_threads(streamed: bool, sqlite_store: str) -> None:
    with (
        Sandbox(latency=0.02, output_tokens=490, chunk_tokens=98) as sandbox,
        Meter(sqlite_store, budgets=["$0.05 per session"], downgrade=TO) as meter,
    ):
        metered = meter.openai(client(sandbox))

        def call(who: str) -> None:
            answer = ask(metered, user=who, stream=streamed)
            if streamed:
                list(answer)

        def work(number: int) -> None:
            who = person(number)
            with meter.session(f"of {who}", user=who):
                until_exhausted(lambda: call(who))

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(work, range(64)))
        assert_each_within(sandbox, EACH, EACH * 99 / 100)
        assert set(served(sandbox)) == {DEAR, CHEAP}
        assert_sound(meter)
        assert_agrees(meter, sandbox)
        assert_whose(meter, sandbox)


def test_64_tasks_some_of_which_leave(sqlite_store: str) -> None:
    """Streams that are left after an event: within the limit all the same."""

    async def run(sandbox: Sandbox, meter: Meter) -> None:
        metered = meter.openai(aclient(sandbox))

        async def call(who: str, leave: bool) -> None:
            stream = await ask(metered, user=who, stream=True)
            async for _ in stream:
                if leave:
                    break
            await stream.close()

        async def calls(number: int) -> None:
            who = person(number)
            with meter.session(f"of {who}", user=who):
                await auntil_exhausted(lambda: call(who, number % 4 == 0))

        await asyncio.gather(*(calls(n) for n in range(64)))
        await metered.close()

    with (
        Sandbox(latency=0.02, output_tokens=490, chunk_tokens=98) as sandbox,
        Meter(sqlite_store, budgets=["$0.05 per session"], downgrade=TO) as meter,
    ):
        asyncio.run(run(sandbox, meter))
        assert_each_within(sandbox, EACH, EACH / 2)  # what is left is booked at its worst
        booked = sum(entry.cost or 0 for entry in entries(meter))
        assert booked >= 2 * EACH * 10**9 * 99 / 100
        assert_sound(meter)
        assert_whose(meter, sandbox, exact=False)


# ── the gateway ────────────────────────────────────────────────────────────────────────


def test_the_gateway(tmp_path: Path, sandbox: Sandbox) -> None:
    """The cheaper one goes where its route leads; a key that may not call it is served as it asks."""
    routes = """
        [[gateway.routes]]
        models = ["gpt-4o"]
        provider = "sandbox"
        [[gateway.routes]]
        models = ["gpt-4o-mini"]
        provider = "other"
        [gateway.providers.other]
        base_url = "%s"
        retries = 0
        [downgrade]
        "gpt-4o" = "gpt-4o-mini"
    """
    with (
        Sandbox() as other,
        Gateway(
            tmp_path,
            sandbox,
            budgets=["$0.01 per project"],
            top="downgrade_at = 10",
            more=routes % other.base_url,
        ) as gateway,
    ):
        for project, models, heard in (("a", None, True), ("b", [DEAR], False)):
            with gateway.http(gateway.key(project=project, models=models)) as http:
                first = http.post("chat/completions", json=chat(max_tokens=200))
                assert first.status_code == 200
                assert "x-model-asked" not in first.headers
                http.post("chat/completions", json=chat(max_tokens=200))
                for stream in (False, True):
                    then = http.post("chat/completions", json=chat(max_tokens=200, stream=stream))
                    assert then.status_code == 200
                    assert then.headers.get("x-model-asked") == (DEAR if heard else None)
                    assert (CHEAP in then.text) is heard
        assert set(served(other)) == {CHEAP}
        assert set(served(sandbox)) == {DEAR}
        assert len(served(other)) >= 2
        with gateway.meter() as meter:
            asked = Counter((e.project, e.model, e.asked_model) for e in entries(meter))
        assert {key for key in asked if key[0] == "a"} == {("a", DEAR, None), ("a", CHEAP, DEAR)}
        assert {key for key in asked if key[0] == "b"} == {("b", DEAR, None)}
