"""Strands' runs, metered: what is booked is what the provider billed, and for whom; a refusal is raised."""

from __future__ import annotations

import asyncio
import inspect
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from support import (
    ANSWER,
    MODEL,
    PEOPLE,
    arun,
    assert_agrees,
    assert_each_within,
    assert_sound,
    assert_whose,
    auntil_exhausted,
    close_loop,
    entries,
    ids,
    person,
    until_exhausted,
)

from behest_integrations import BudgetExceeded, Meter, UnknownPrice
from behest_integrations.sandbox import Sandbox

pytest.importorskip("strands.multiagent.swarm", reason="strands-agents is not installed")
import boto3
from pydantic import BaseModel
from strands import Agent, tool
from strands.models import BedrockModel
from strands.models.openai import OpenAIModel
from strands.models.openai_responses import OpenAIResponsesModel
from strands.multiagent import GraphBuilder, Swarm
from strands.session.file_session_manager import FileSessionManager
from strands.types.exceptions import MaxTokensReachedException

EACH = Decimal("0.5")
BUDGET = "$0.50 per session"
MINI = "gpt-4o-mini"
TINY = "$0.000001"
CLAUDE = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"


class City(BaseModel):
    name: str
    size: int


@tool
def look(word: str) -> str:
    """Look a word up."""
    return "nothing"


def model(sandbox: Sandbox, name: str = MINI, cls: Any = OpenAIModel, **params: Any) -> Any:
    retries = params.pop("max_retries", 0)
    to = {"base_url": sandbox.base_url, "api_key": "none", "max_retries": retries}
    return cls(client_args=to, model_id=name, **({"params": params} if params else {}))


def agent(sandbox: Sandbox, name: str = "helper", **options: Any) -> Any:
    options.setdefault("model", model(sandbox))
    return Agent(name=name, callback_handler=None, **options)


def graph(sandbox: Sandbox) -> Any:
    builder = GraphBuilder()
    builder.add_node(agent(sandbox), "a")
    builder.add_node(agent(sandbox), "b")
    builder.add_edge("a", "b")
    return builder.build()


def swarm(sandbox: Sandbox) -> Any:
    return Swarm([agent(sandbox, "x"), agent(sandbox, "y")])


async def drained(events: Any) -> None:
    async for _ in events:
        pass


@pytest.fixture(autouse=True)
def _loop() -> Any:
    yield
    close_loop()


def ways(sandbox: Sandbox) -> dict[str, Any]:
    """How Strands is run; each asks a model."""
    inner = agent(sandbox, "inner")
    responses = model(sandbox, cls=OpenAIResponsesModel)
    session = boto3.Session("none", "none", region_name="us-east-1")
    bedrock = BedrockModel(boto_session=session, endpoint_url=sandbox.url, model_id=CLAUDE)
    return {
        "of Bedrock": lambda **said: agent(sandbox, model=bedrock)("hello", **said),
        "called": lambda **said: agent(sandbox)("hello", **said),
        "invoke_async": lambda **said: arun(agent(sandbox).invoke_async("hello", **said)),
        "stream_async": lambda **said: arun(drained(agent(sandbox).stream_async("hello", **said))),
        "of the Responses API": lambda **said: agent(sandbox, model=responses)("hello", **said),
        "with tools": lambda **said: agent(sandbox, tools=[look])("hello", **said),
        "structured": lambda **said: agent(sandbox, structured_output_model=City)("hello", **said),
        "an agent as a tool": lambda **said: agent(sandbox, tools=[inner.as_tool()])("hello", **said),
        "a graph": lambda **said: graph(sandbox)("hello", **said),
    }


def test_what_is_booked_is_what_was_billed(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1 per session"]) as meter, meter.strands():
        for way in ways(sandbox).values():
            way(invocation_state={"session_id": "c-1", "user_id": "ada"})
        found = entries(meter)
        assert len(found) == len(sandbox.bill.lines) >= 12  # a tool's call is followed by another request
        assert {(e.session_id, e.user_id, e.status) for e in found} == {("c-1", "ada", "settled")}
        assert {e.tags.get("agent") for e in found} == {"helper", "inner"}
        assert_agrees(meter, sandbox)
        assert_sound(meter)


def refusals(meter: Meter) -> int:
    meter.flush()
    return sum(row["count"] for row in meter.ledger.submit(lambda rows: rows.everything()).refusals)


def test_a_refusal_is_raised_and_not_repeated(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=[TINY]) as meter, meter.strands():
        all_ways = {
            **ways(sandbox),
            "a swarm": lambda: swarm(sandbox)("hello"),
            "a swarm, streamed": lambda: arun(drained(swarm(sandbox).stream_async("hello"))),
            "by hand": lambda: agent(sandbox).structured_output(City, "hello"),
        }
        for number, (name, way) in enumerate(all_ways.items()):
            with pytest.raises(BudgetExceeded) as refusal:
                way()
            assert type(refusal.value) is BudgetExceeded, name
            assert refusal.value.shortfall.limit == 1000
            assert refusals(meter) == number + 1, name
        with pytest.raises(UnknownPrice, match="my-own"):
            agent(sandbox, model=model(sandbox, "my-own"))("hello")
        assert sandbox.requests == 0
        assert_sound(meter)


def test_whom_a_run_is_for(sandbox: Sandbox, tmp_path: Path) -> None:
    """The scope around it, then its state, its session manager, and what its traces are marked with."""

    def kept() -> Any:
        return FileSessionManager(session_id="kept", storage_dir=str(tmp_path))

    with Meter("memory://", budgets=["$1 per session"]) as meter, meter.strands():
        agent(sandbox, "plain")("a")
        agent(sandbox, session_manager=kept())("b", invocation_state={"user_id": 7, "tenant": "acme"})
        agent(sandbox, trace_attributes={"session.id": "traced", "user.id": "kim"})("c")
        with meter.session("scope", user="eve"):
            agent(sandbox)("d", invocation_state={"session_id": "own", "user_id": "bob"})
        graph(sandbox)("e", {"session_id": "g"})
        assert [(e.session_id, e.user_id, e.tenant, e.tags["agent"]) for e in entries(meter)] == [
            (None, None, None, "plain"),
            ("kept", "7", "acme", "helper"),
            ("traced", "kim", None, "helper"),
            ("scope", "eve", None, "helper"),
            ("g", None, None, "helper"),
            ("g", None, None, "helper"),
        ]
        assert_agrees(meter, sandbox)


def test_what_a_tool_is_refused_ends_the_run_unless_the_tool_takes_it(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1"]) as meter, meter.strands():
        caught: list[Any] = []

        @meter.cost("$2", name="paid")
        def paid(word: str) -> str:
            return "nothing"

        @tool
        def search(word: str) -> str:
            """Search."""
            return paid(word)

        @tool
        async def asearch(word: str) -> str:
            """Search."""
            return paid(word)

        @tool
        def ask(word: str) -> str:
            """Ask."""
            with meter.budget(TINY, name="inner"):
                return str(agent(sandbox)("hello"))

        @tool
        def careful(word: str) -> str:
            """Search, or not."""
            try:
                return paid(word)
            except BudgetExceeded as error:
                caught.append(error)
                return "nothing"

        for each in (search, asearch, ask):
            before = sandbox.requests
            with pytest.raises(BudgetExceeded) as refusal:
                agent(sandbox, tools=[each])("hello")
            assert refusal.value.budget == (TINY if each is ask else "$1")
            assert sandbox.requests - before == 1
        agent(sandbox, tools=[careful])("hello")
        assert caught
        assert_agrees(meter, sandbox)
        assert_sound(meter)


def test_an_answer_that_a_budget_has_cut_off_is_told_as_that(sandbox: Sandbox) -> None:
    """Strands makes an error of each that ends at its limit; of the caller's own limit, too."""
    with Meter("memory://", budgets=["100 output tokens per session"]) as meter, meter.strands():
        state = {"session_id": "s"}
        agent(sandbox)("hello", invocation_state=state)
        with pytest.raises(BudgetExceeded, match="had room for 36 tokens") as refusal:
            agent(sandbox)("hello", invocation_state=state)
        assert refusal.value.shortfall.cut_at == 36
        assert [e.output_tokens for e in entries(meter)] == [64, 36]
        with pytest.raises(MaxTokensReachedException):
            agent(sandbox, model=model(sandbox, max_tokens=20))("hello")
        assert_agrees(meter, sandbox)


def test_instrumented_and_not_any_more(sandbox: Sandbox) -> None:
    before = Agent.stream_async
    with Meter("memory://", budgets=["1 calls"]) as meter:
        with meter.instrument():
            helper = agent(sandbox)
            helper("hello", invocation_state={"session_id": "s"})
            with pytest.raises(BudgetExceeded):
                helper("hello")
        assert [(e.session_id, e.status) for e in entries(meter)] == [("s", "settled")]
        assert Agent.stream_async is before
        helper("hello")
        assert len(entries(meter)) == 1


# ── nothing is let through ─────────────────────────────────────────────────────────────


def provider() -> Sandbox:
    return Sandbox(latency=0.05, output_tokens=ANSWER - 1, chunk_tokens=100)


def agent_of(who: str, sandbox: Sandbox, **options: Any) -> Any:
    asked = model(sandbox, MODEL, max_tokens=ANSWER, extra_body={"user": who}, **options)
    return agent(sandbox, model=asked)


def settled(sandbox: Sandbox, meter: Meter, *, exact: bool = True) -> None:
    for _ in range(200):  # a stream that was broken off is billed when the provider notices
        if len(sandbox.bill.lines) >= sandbox.requests:
            break
        time.sleep(0.05)
    assert_each_within(sandbox, EACH, EACH * 99 / 100)
    assert_sound(meter)
    assert_whose(meter, sandbox, exact=exact)


def test_64_threads(sqlite_store: str) -> None:
    """And attempts of the SDK: a 500 is billed here all the same, and each attempt is held on its own."""
    with provider() as sandbox, Meter(sqlite_store, budgets=[BUDGET]) as meter, meter.strands():
        sandbox.fault("status", status=500, billed=True, times=4)

        def work(number: int) -> None:
            who = person(number)
            until_exhausted(
                lambda: agent_of(who, sandbox, max_retries=2)("hello there", invocation_state=ids(who))
            )

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(work, range(64)))
        settled(sandbox, meter, exact=False)


def test_64_tasks_a_third_broken_off_a_third_cancelled() -> None:
    """The provider here bills a stream that is hung up on in full, the worst it could do."""
    with provider() as sandbox, Meter("memory://", budgets=[BUDGET]) as meter, meter.strands():

        async def stream(who: str, number: int) -> None:
            events = agent_of(who, sandbox).stream_async("hello there", invocation_state=ids(who))
            async for event in events:
                if "data" in event and number % 3 == 0:
                    await events.aclose()
                    return
                if "data" in event and number % 3 == 1:
                    raise asyncio.CancelledError

        async def call(who: str, number: int) -> None:
            with suppress(asyncio.CancelledError):
                await asyncio.ensure_future(stream(who, number))

        async def work(number: int) -> None:
            await auntil_exhausted(lambda: call(person(number), number))

        async def run() -> None:
            await asyncio.gather(*map(work, range(64)))

        arun(run())
        settled(sandbox, meter, exact=False)
        assert {e.user_id for e in entries(meter)} == set(PEOPLE)


# ── what of Strands' internals is touched ──────────────────────────────────────────────


def test_what_is_touched_is_there(sandbox: Sandbox, tmp_path: Path) -> None:
    """`internals.py` of the door names the versions that were read; this says what has moved."""
    from behest_integrations.integrations.strands.internals import RUNS, session_of

    for owner, names in RUNS:
        for name in names:
            assert name in vars(owner)
    for owner in (Agent, *(owner for owner, _ in RUNS[1:])):
        assert "self.stream_async(" in inspect.getsource(owner.invoke_async)
    kept = FileSessionManager(session_id="kept", storage_dir=str(tmp_path))
    assert session_of(agent(sandbox, session_manager=kept)) == "kept"
    nodes = [agent(sandbox, "x")]
    assert session_of(Swarm(nodes, session_manager=kept)) == "kept"
