"""CrewAI's runs, metered: what is booked is what the provider billed, and for whom; a refusal ends a crew."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from importlib.util import find_spec
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

if find_spec("crewai") is None:
    pytest.skip("crewai is not installed: it pins openai < 3, pydantic < 2.13", allow_module_level=True)
# Before it is imported; where it is not, tests of OpenTelemetry run.
os.environ["CREWAI_DISABLE_TELEMETRY"] = os.environ["OTEL_SDK_DISABLED"] = "true"
os.environ["CREWAI_TRACING_ENABLED"] = "false"
from crewai import LLM, Agent, Crew, Flow, Process, Task
from crewai.flow.flow import start
from crewai.tools import tool
from pydantic import BaseModel

EACH = Decimal("0.5")
BUDGET = "$0.50 per session"
MINI = "gpt-4o-mini"
TINY = "$0.000001"


class City(BaseModel):
    name: str
    size: int


@tool("look")
def look(word: str) -> str:
    """Look a word up."""
    return "nothing"


def model(sandbox: Sandbox, name: str = MINI, **options: Any) -> Any:
    to = {"base_url": sandbox.base_url, "api_key": "none", "max_retries": 0}
    return LLM(model=f"openai/{name}", **{**to, **options})


def agent(sandbox: Sandbox, role: str = "helper", llm: Any = None, **options: Any) -> Any:
    return Agent(role=role, goal="g", backstory="b", llm=llm or model(sandbox), **options)


def crew(helper: Any, task: Any = None, **options: Any) -> Any:
    tasks = [Task(description="Go on.", expected_output="x", agent=helper, **(task or {}))]
    return Crew(agents=[helper], tasks=tasks, **options)


def flow(sandbox: Sandbox) -> Any:
    class Asking(Flow):
        @start()
        def ask(self) -> str:
            return str(crew(agent(sandbox)).kickoff())

    return Asking()


async def drained(coming: Any) -> None:
    async for _ in await coming:
        pass


@pytest.fixture(autouse=True)
def _loop() -> Any:
    yield
    close_loop()


def ways(sandbox: Sandbox) -> dict[str, Any]:
    """How CrewAI is run; each asks a model."""

    def own(**options: Any) -> Any:
        return agent(sandbox, llm=model(sandbox, **options), max_retry_limit=5)

    manager: dict[str, Any] = {"process": Process.hierarchical, "manager_llm": model(sandbox)}
    return {
        "kickoff": lambda **said: crew(own()).kickoff(**said),
        "timed": lambda **said: crew(agent(sandbox, max_execution_time=60)).kickoff(**said),
        "kickoff_async": lambda **said: arun(crew(own()).kickoff_async(**said)),
        "akickoff": lambda **said: arun(crew(own()).akickoff(**said)),
        "streamed": lambda **said: list(crew(own(), stream=True).kickoff(**said)),
        "streamed, awaited": lambda **said: arun(drained(crew(own(), stream=True).kickoff_async(**said))),
        "flow": lambda **said: flow(sandbox).kickoff(**said),
        "flow, awaited": lambda **said: arun(flow(sandbox).kickoff_async(**said)),
        "structured": lambda **said: crew(own(), {"output_pydantic": City}).kickoff(**said),
        "in a thread": lambda **said: crew(own(), {"async_execution": True}).kickoff(**said),
        "model's stream": lambda **said: crew(agent(sandbox, llm=model(sandbox, stream=True))).kickoff(
            **said
        ),
        "with tools": lambda **said: crew(agent(sandbox, tools=[look])).kickoff(**said),
        "planned": lambda **said: crew(own(), planning=True, planning_llm=model(sandbox)).kickoff(**said),
        "hierarchical": lambda **said: Crew(
            agents=[own()], tasks=[Task(description="Go on.", expected_output="x")], **manager
        ).kickoff(**said),
    }


def test_what_is_booked_is_what_was_billed(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1 per session"]) as meter, meter.crewai():
        for name, way in ways(sandbox).items():
            if name not in ("planned", "hierarchical"):  # the sandbox's plans are no plans
                way(inputs={"session_id": "c-1", "user_id": "ada"})
        found = entries(meter)
        assert len(found) == len(sandbox.bill.lines) > 12  # a tool's call is followed by another request
        assert {(e.session_id, e.user_id, e.status) for e in found} == {("c-1", "ada", "settled")}
        assert {e.tags.get("agent") for e in found} == {"helper"}
        assert_agrees(meter, sandbox)
        assert_sound(meter)


def test_a_refusal_is_raised_and_nothing_is_begun_again(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=[TINY]) as meter, meter.crewai():
        for number, (name, way) in enumerate(ways(sandbox).items()):
            with pytest.raises(BudgetExceeded) as refusal:
                way()
            assert type(refusal.value) is BudgetExceeded, name
            assert refusal.value.shortfall.limit == 1000
            assert refused(meter) == number + 1, name
        for each in (agent(sandbox).kickoff, lambda said: arun(agent(sandbox).kickoff_async(said))):
            with pytest.raises(BudgetExceeded):
                each("hello")
        with pytest.raises(UnknownPrice, match="my-own"):
            crew(agent(sandbox, llm=model(sandbox, "my-own", provider="openai"))).kickoff()
        assert sandbox.requests == 0
        assert_sound(meter)


def refused(meter: Meter) -> int:
    meter.flush()
    return sum(row["count"] for row in meter.ledger.submit(lambda rows: rows.everything()).refusals)


def test_whom_a_run_is_for(sandbox: Sandbox) -> None:
    """The scope around it, then its inputs; a flow's state by its id; agents by their roles."""
    with Meter("memory://", budgets=["$1 per session"]) as meter, meter.crewai():
        helper = agent(sandbox, "Senior\n  Helper ")
        crew(helper).kickoff()
        crew(helper).kickoff({"user_id": 7, "tenant": "acme"})
        with meter.session("scope", user="eve"):
            crew(helper).kickoff(inputs={"session_id": "own", "user_id": "kim"})
        flow(sandbox).kickoff(inputs={"id": "state-1"})
        crew(helper).kickoff_for_each([{"session_id": "a"}, {"session_id": "b"}])
        helper.kickoff("hello")
        assert [(e.session_id, e.user_id, e.tenant, e.tags["agent"]) for e in entries(meter)] == [
            (None, None, None, "Senior Helper"),
            (None, "7", "acme", "Senior Helper"),
            ("scope", "eve", None, "Senior Helper"),
            ("state-1", None, None, "helper"),
            ("a", None, None, "Senior Helper"),
            ("b", None, None, "Senior Helper"),
            (None, None, None, "Senior Helper"),
        ]
        assert_agrees(meter, sandbox)


def test_what_a_tool_is_refused_ends_the_crew_unless_the_tool_takes_it(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1"]) as meter, meter.crewai():
        caught: list[Any] = []

        @meter.cost("$2", name="paid")
        def paid(word: str) -> str:
            return "nothing"

        @tool("search")
        def search(word: str) -> str:
            """Search."""
            return paid(word)

        @tool("answer", result_as_answer=True)
        def answer(word: str) -> str:
            """Answer."""
            return paid(word)

        @tool("ask")
        def ask(word: str) -> str:
            """Ask."""
            with meter.budget(TINY, name="inner"):
                return str(crew(agent(sandbox)).kickoff())

        @tool("careful")
        def careful(word: str) -> str:
            """Search, or not."""
            try:
                return paid(word)
            except BudgetExceeded as error:
                caught.append(error)
                return "nothing"

        for each in (search, answer, ask):
            before = sandbox.requests
            with pytest.raises(BudgetExceeded) as refusal:
                crew(agent(sandbox, tools=[each])).kickoff()
            assert type(refusal.value) is BudgetExceeded
            assert refusal.value.budget == (TINY if each is ask else "$1")
            assert sandbox.requests - before == 1, each.name
        crew(agent(sandbox, tools=[careful])).kickoff()
        assert caught
        assert_agrees(meter, sandbox)
        assert_sound(meter)


def test_near_the_cap_answers_get_shorter(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["100 output tokens per session"]) as meter, meter.crewai():
        for _ in range(2):
            crew(agent(sandbox)).kickoff(inputs={"session_id": "s"})
        assert [e.output_tokens for e in entries(meter)] == [64, 36]


def test_instrumented_and_not_any_more(sandbox: Sandbox) -> None:
    before = Crew.kickoff, LLM.call
    with Meter("memory://", budgets=["1 calls"]) as meter:
        with meter.instrument():
            crew(agent(sandbox)).kickoff(inputs={"session_id": "s"})
            with pytest.raises(BudgetExceeded):
                crew(agent(sandbox)).kickoff(inputs={"session_id": "s"})
        assert [(e.session_id, e.status) for e in entries(meter)] == [("s", "settled")]
        assert (Crew.kickoff, LLM.call) == before
        crew(agent(sandbox)).kickoff()
        assert len(entries(meter)) == 1


# ── nothing is let through ─────────────────────────────────────────────────────────────


def provider() -> Sandbox:
    return Sandbox(latency=0.05, output_tokens=ANSWER, chunk_tokens=100)


def crew_of(who: str, sandbox: Sandbox, **options: Any) -> Any:
    asked = model(sandbox, MODEL, max_tokens=ANSWER, additional_params={"user": who})
    return crew(agent(sandbox, llm=asked), **options)


def settled(sandbox: Sandbox, meter: Meter, *, exact: bool = True) -> None:
    for _ in range(200):  # what was left goes on in its thread
        if len(sandbox.bill.lines) >= sandbox.requests:
            break
        time.sleep(0.05)
    assert_each_within(sandbox, EACH, EACH * 99 / 100)
    assert_sound(meter)
    assert_whose(meter, sandbox, exact=exact)


def test_32_threads(sqlite_store: str) -> None:
    """Of which a third begin streams, and leave them."""
    with provider() as sandbox, Meter(sqlite_store, budgets=[BUDGET]) as meter, meter.crewai():

        def work(number: int) -> None:
            who, streams = person(number), number % 3 == 0

            def call() -> None:
                out = crew_of(who, sandbox, stream=streams).kickoff(inputs=ids(who))
                for place, _ in enumerate(out if streams else ()):
                    if place == 2 and number % 6 == 0:
                        out.close()
                        return

            until_exhausted(call)

        with ThreadPoolExecutor(32) as pool:
            list(pool.map(work, range(32)))
        time.sleep(1)
        settled(sandbox, meter, exact=False)


def test_32_tasks() -> None:
    with provider() as sandbox, Meter("memory://", budgets=[BUDGET]) as meter, meter.crewai():

        async def work(number: int) -> None:
            who = person(number)
            await auntil_exhausted(lambda: crew_of(who, sandbox).akickoff(inputs=ids(who)))

        async def run() -> None:
            await asyncio.gather(*map(work, range(32)))

        arun(run())
        settled(sandbox, meter)
        assert_agrees(meter, sandbox)
        assert {e.user_id for e in entries(meter)} == set(PEOPLE)


# ── what of CrewAI's internals is touched ──────────────────────────────────────────────


def test_what_is_touched_is_there() -> None:
    """`internals.py` of the door names the versions that were read; this says what has moved."""
    from crewai.agent import core
    from crewai.hooks.dispatch import HookAborted

    from behest_integrations.integrations.crewai.internals import ASKED, MODELS, RUNS, TOOLS

    for owner, names in (*RUNS, *TOOLS):
        for name in names:
            assert callable(getattr(owner, name))
    for owner in (Crew, Flow):
        assert list(inspect.signature(owner.kickoff).parameters)[1] == "inputs"
    assert "task" in inspect.signature(Agent.execute_task).parameters
    assert {*MODELS} <= set(Agent.model_fields)
    assert all(hasattr(LLM, name) for name in ASKED)
    assert HookAborted in core._passthrough_exceptions
