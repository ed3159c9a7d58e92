"""Agno's runs, metered: what is booked is what the provider billed, and for whom; a refusal is raised."""

from __future__ import annotations

import asyncio
import inspect
import time
from contextlib import suppress
from decimal import Decimal
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
    client,
    close_loop,
    entries,
    ids,
    person,
    until_exhausted,
)

from behest_integrations import BudgetExceeded, LoopDetected, Meter, UnknownPrice
from behest_integrations.sandbox import Sandbox

pytest.importorskip("agno", reason="agno is not installed")
from agno.agent import Agent
from agno.db.in_memory import InMemoryDb
from agno.exceptions import RunCancelledException
from agno.models.openai import OpenAIChat, OpenAIResponses
from agno.run.base import RunStatus
from agno.team import Team
from agno.workflow import Parallel, Step, Workflow
from pydantic import BaseModel

EACH = Decimal("0.5")
BUDGET = "$0.50 per session"
MINI = "gpt-4o-mini"
TINY = "$0.000001"


def model(sandbox: Sandbox, cls: Any = OpenAIChat, name: str = MINI, **options: Any) -> Any:
    return cls(id=name, base_url=sandbox.base_url, api_key="none", **{"max_retries": 0, **options})


KINDS = {"chat": OpenAIChat, "responses": OpenAIResponses}


class City(BaseModel):
    name: str
    size: int


def look(word: str) -> str:
    """Look a word up."""
    return "nothing"


@pytest.fixture(autouse=True)
def _loop() -> Any:
    yield
    close_loop()


async def drained(events: Any) -> None:
    async for _ in events:
        pass


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_booked_is_what_was_billed(kind: str, sandbox: Sandbox) -> None:
    """Whole, streamed, awaited, with tools, structured, by a team and by a workflow."""
    with Meter("memory://", budgets=["$1 per session"]) as meter, meter.agno():
        said = {"session_id": "c-1", "user_id": "ada"}
        helper = Agent(name="helper", model=model(sandbox, KINDS[kind]), tools=[look])
        shaped = Agent(name="shaped", model=model(sandbox, KINDS[kind]), output_schema=City)
        helper.run("hello", **said)
        list(helper.run("hello", stream=True, **said))
        shaped.run("hello", **said)
        Workflow(name="flow", steps=[Step(name="one", agent=shaped)]).run("hello", **said)

        async def run() -> None:
            await helper.arun("hello", **said)
            await drained(helper.arun("hello", stream=True, **said))

        arun(run())
        found = entries(meter)
        assert len(found) == len(sandbox.bill.lines) >= 10  # a tool's call is followed by another request
        assert {(e.session_id, e.user_id, e.status) for e in found} == {("c-1", "ada", "settled")}
        assert {e.tags.get("agent") for e in found} == {"helper", "shaped"}
        assert_agrees(meter, sandbox)
        assert_sound(meter)


def test_whom_a_run_is_for(sandbox: Sandbox) -> None:
    """Said in the run's metadata, then the scope around it, then Agno's ids; none that nobody has chosen."""
    with Meter("memory://", budgets=["$1 per session"]) as meter, meter.agno():
        plain = Agent(model=model(sandbox))
        named = Agent(name="n", model=model(sandbox), session_id="own", user_id="kim")
        plain.run("a")
        plain.run("b")  # Agno keeps the session that it has made
        plain.run("c", session_id="chosen")
        named.run("d")
        with meter.session("scope", user="eve"):
            named.run("e", session_id="chosen")
            named.run("f", metadata={"session_id": "said", "user_id": "bob"})

        def ask(word: str) -> str:
            """Ask."""
            client(sandbox).chat.completions.create(model=MINI, messages=[{"role": "user", "content": word}])
            return "nothing"

        Agent(name="tooled", model=model(sandbox), tools=[ask]).run("g", session_id="s")
        team = Team(
            name="team",
            model=model(sandbox),
            members=[Agent(name="member", model=model(sandbox))],
            delegate_to_all_members=True,
        )
        team.run("h")
        assert [(e.session_id, e.user_id, e.tags.get("agent")) for e in entries(meter)[:9]] == [
            (None, None, None),
            (None, None, None),
            ("chosen", None, None),
            ("own", "kim", "n"),
            ("scope", "eve", "n"),
            ("said", "bob", "n"),
            ("s", None, "tooled"),
            ("s", None, "tooled"),  # what the tool asks by itself
            ("s", None, "tooled"),
        ]
        of_team = entries(meter)[9:]
        assert {e.session_id for e in of_team} == {None}
        assert {e.tags["agent"] for e in of_team} == {"team", "member"}
        assert_agrees(meter, sandbox)


def test_what_is_asked_in_the_background_is_for_the_same(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1 per session"]) as meter, meter.agno():
        agent = Agent(name="a", model=model(sandbox), db=InMemoryDb(), update_memory_on_run=True)
        agent.run("hello", session_id="s", user_id="ada")
        found = entries(meter)
        assert len(found) == len(sandbox.bill.lines) >= 2
        assert {(e.session_id, e.user_id, e.tags["agent"]) for e in found} == {("s", "ada", "a")}


def test_a_refusal_is_raised_and_not_repeated(sandbox: Sandbox) -> None:
    """Whatever is set to try again or to fall back: blocking, awaited, streamed, by members and steps."""
    with Meter("memory://", budgets=[TINY]) as meter, meter.agno():
        for cls in KINDS.values():
            options: dict[str, Any] = {"retries": 3, "delay_between_retries": 30}
            agent = Agent(
                model=model(sandbox, cls, retries=3, delay_between_retries=30),
                fallback_models=[model(sandbox)],
                **options,
            )
            team = Team(model=model(sandbox, cls), members=[agent], **options)
            flow = Workflow(steps=[Step(name="one", agent=agent), Step(name="two", agent=agent)])
            both = Workflow(steps=[Parallel(Step(name="one", agent=agent), Step(name="two", team=team))])
            for runner in (agent, team, flow, both):

                async def awaited(runner: Any = runner) -> None:
                    await runner.arun("hello")

                async def streamed(runner: Any = runner) -> None:
                    await drained(runner.arun("hello", stream=True))

                for call in (
                    lambda runner=runner: runner.run("hello"),
                    lambda runner=runner: list(runner.run("hello", stream=True)),
                    lambda: arun(awaited()),
                    lambda: arun(streamed()),
                ):
                    began = time.monotonic()
                    with pytest.raises(BudgetExceeded) as refusal:
                        call()
                    assert type(refusal.value) is BudgetExceeded
                    assert refusal.value.shortfall.limit == 1000
                    assert time.monotonic() - began < 10
        assert sandbox.requests == 0
        assert_sound(meter)


def test_what_there_is_of_a_refused_run_is_kept(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["2 calls"]) as meter, meter.agno():
        agent = Agent(model=model(sandbox), tools=[look], db=InMemoryDb(), add_history_to_context=True)
        agent.run("first", session_id="s")
        with pytest.raises(BudgetExceeded, match="2 calls"):
            agent.run("second", session_id="s")
        runs = agent.get_session(session_id="s").runs
        assert [run.status for run in runs] == [RunStatus.completed, RunStatus.cancelled]
        assert "2 calls" in runs[1].content


def test_what_a_tool_is_refused_ends_the_run_unless_the_tool_takes_it(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1"]) as meter, meter.agno():
        caught: list[Any] = []

        @meter.cost("$2", name="search")
        def search(word: str) -> str:
            """Search."""
            return "nothing"

        async def asearch(word: str) -> str:
            """Search."""
            return search(word)

        def careful(word: str) -> str:
            """Search, or not."""
            try:
                return search(word)
            except BudgetExceeded as error:
                caught.append(error)
                return "nothing"

        inner = Agent(name="inner", model=model(sandbox))

        def ask(word: str) -> str:
            """Ask."""
            with meter.budget(TINY, name="inner"):
                return str(inner.run(word).content)

        for tool in (search, asearch, ask):
            before = sandbox.requests
            agent = Agent(model=model(sandbox), tools=[tool])
            for call in (lambda a=agent: a.run("hello"), lambda a=agent: arun(a.arun("hello"))):
                if tool is asearch and call.__code__.co_names == ("run",):
                    continue
                with pytest.raises(BudgetExceeded) as refusal:
                    call()
                assert refusal.value.budget == (TINY if tool is ask else "$1")
                assert type(refusal.value) is BudgetExceeded
            assert sandbox.requests - before == (1 if tool is asearch else 2)
        assert Agent(model=model(sandbox), tools=[careful]).run("hello").status == RunStatus.completed
        assert caught
        assert_agrees(meter, sandbox)
        assert_sound(meter)


def test_other_errors_are_agnos_own_affair(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1"]) as meter, meter.agno():
        sandbox.fault("status", status=400, times=1)
        agent = Agent(model=model(sandbox))
        assert agent.run("hello").status == RunStatus.error
        with pytest.raises(UnknownPrice, match="my-own"):
            Agent(model=model(sandbox, name="my-own")).run("hello")
    with Meter("memory://", guards={"steps": 1}) as meter, meter.agno(), pytest.raises(LoopDetected):
        Agent(model=model(sandbox), tools=[look]).run("hello", session_id="s")


def test_near_the_cap_answers_get_shorter(sandbox: Sandbox) -> None:
    for cls in KINDS.values():
        with Meter("memory://", budgets=["100 output tokens per session"]) as meter, meter.agno():
            agent = Agent(model=model(sandbox, cls), session_id="s")
            for _ in range(2):
                agent.run("hello")
            assert [e.output_tokens for e in entries(meter)] == [64, 36]


def test_instrumented_and_not_any_more(sandbox: Sandbox) -> None:
    before = Agent.run
    with Meter("memory://", budgets=["1 calls"]) as meter:
        with meter.instrument():
            agent = Agent(model=model(sandbox), session_id="s")
            agent.run("hello")
            with pytest.raises(BudgetExceeded):
                agent.run("hello")
        assert [(e.session_id, e.status) for e in entries(meter)] == [("s", "settled")]
        assert Agent.run is before
        assert Agent(model=model(sandbox)).run("hello").status == RunStatus.completed
        assert len(entries(meter)) == 1


# ── nothing is let through ─────────────────────────────────────────────────────────────


def provider() -> Sandbox:
    return Sandbox(latency=0.05, output_tokens=ANSWER, chunk_tokens=100)


def agent_of(who: str, sandbox: Sandbox, **options: Any) -> Any:
    asked = model(sandbox, name=MODEL, max_tokens=ANSWER, extra_body={"user": who}, **options)
    return Agent(model=asked, telemetry=False)


def settled(sandbox: Sandbox, least: int) -> None:
    for _ in range(200):  # a stream that was broken off is billed when the provider notices
        if len(sandbox.bill.lines) >= sandbox.requests:
            break
        time.sleep(0.05)
    assert_each_within(sandbox, EACH, EACH * least / 100)


async def in_tasks(call: Any) -> None:
    async def work(number: int) -> None:
        await auntil_exhausted(lambda: call(person(number), number))

    await asyncio.gather(*map(work, range(64)))


def test_64_tasks_and_attempts_of_the_sdk() -> None:
    """A 500 is billed here all the same: each of the SDK's attempts is held on its own."""
    with provider() as sandbox, Meter("memory://", budgets=[BUDGET]) as meter, meter.agno():
        sandbox.fault("status", status=500, billed=True, times=6)
        agents = {who: agent_of(who, sandbox, max_retries=2) for who in PEOPLE}
        arun(in_tasks(lambda who, _: agents[who].arun("hello there", **ids(who))))
        settled(sandbox, 99)
        assert_sound(meter)
        assert_whose(meter, sandbox, exact=False)


def test_64_threads(sqlite_store: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with provider() as sandbox, Meter(sqlite_store, budgets=[BUDGET]) as meter, meter.agno():
        agents = {who: agent_of(who, sandbox) for who in PEOPLE}

        def work(number: int) -> None:
            who = person(number)
            until_exhausted(lambda: agents[who].run("hello there", **ids(who)))

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(work, range(64)))
        settled(sandbox, 99)
        assert_sound(meter)
        assert_agrees(meter, sandbox)
        assert_whose(meter, sandbox)


def test_64_streams_a_third_broken_off_a_third_cancelled() -> None:
    """The provider here bills a stream that is hung up on in full, the worst it could do."""
    with provider() as sandbox, Meter("memory://", budgets=[BUDGET]) as meter, meter.agno():
        agents = {who: agent_of(who, sandbox) for who in PEOPLE}

        async def stream(who: str, number: int) -> None:
            events, place = agents[who].arun("hello there", stream=True, **ids(who)), 0
            async for _ in events:
                place += 1
                if place == 3 and number % 3 == 0:
                    await events.aclose()
                    return
                if place == 3 and number % 3 == 1:
                    raise asyncio.CancelledError

        async def call(who: str, number: int) -> None:
            with suppress(asyncio.CancelledError):
                await asyncio.ensure_future(stream(who, number))

        arun(in_tasks(call))
        settled(sandbox, 99)
        assert_sound(meter)
        assert_whose(meter, sandbox, exact=False)


# ── what of Agno's internals is touched ────────────────────────────────────────────────


def test_what_is_touched_is_there() -> None:
    """`internals.py` of the door names the versions that were read; this says what has moved."""
    from agno.models.base import Model
    from agno.tools.function import FunctionCall

    from behest_integrations.integrations.agno.internals import ATTEMPTS, RETRIED, RUNS, TOOLS

    for name in (*ATTEMPTS, RETRIED):
        assert name in vars(Model)
    for runner in (Agent, Team, Workflow):
        for name in RUNS:
            assert name in vars(runner)
        assert {"session_id", "user_id", "metadata"} <= set(inspect.signature(runner.run).parameters) | {
            "metadata"
        }
    for name in TOOLS:
        assert name in vars(FunctionCall)
    assert {"CANCELLED", "ERROR"} <= {status.value for status in RunStatus}
    # It passes what retries, falls back, or makes an answer of an error.
    executing = getattr(FunctionCall, "_execute", FunctionCall.execute)
    assert "except RunCancelledException:\n            raise" in inspect.getsource(executing)
    assert not issubclass(RunCancelledException, RuntimeError)
