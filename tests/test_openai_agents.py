"""The OpenAI Agents SDK's models, metered: what is booked is what the provider billed, and for whom."""

from __future__ import annotations

import asyncio
import inspect
import time
from contextlib import nullcontext, suppress
from decimal import Decimal
from importlib.metadata import version
from typing import Any

import pytest
from support import (
    ANSWER,
    MODEL,
    PEOPLE,
    aclient,
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

from behest_integrations import BudgetExceeded, ConfigError, Meter, Unbounded, UnknownPrice
from behest_integrations.sandbox import Sandbox

pytest.importorskip("agents", reason="openai-agents is not installed")
import agents
from agents import (
    Agent,
    ModelSettings,
    RunConfig,
    Runner,
    SQLiteSession,
    WebSearchTool,
    function_tool,
    set_tracing_disabled,
)
from agents.models.interface import Model, ModelProvider
from agents.models.multi_provider import MultiProvider
from agents.models.openai_chatcompletions import OpenAIChatCompletionsModel
from agents.models.openai_responses import OpenAIResponsesModel
from pydantic import BaseModel

EACH = Decimal("0.5")
BUDGET = "$0.50 per session"
MINI = "gpt-4o-mini"
# Version 0.19 does not mind yet, but in streams.
CUT_IS_AN_ERROR = not version("openai-agents").startswith("0.19")


class Elsewhere(Model):
    """A model of a provider whose SDK no door knows; what it is asked goes to the sandbox all the same."""

    def __init__(self, sandbox: Sandbox, name: str = MINI, **options: Any) -> None:
        self.model = name
        self._ask = (OpenAIChatCompletionsModel(name, aclient(sandbox, **options)),)

    async def get_response(self, *args: Any, **kwargs: Any) -> Any:
        return await self._ask[0].get_response(*args, **kwargs)

    async def stream_response(self, *args: Any, **kwargs: Any) -> Any:
        async for event in self._ask[0].stream_response(*args, **kwargs):
            yield event


def chat(sandbox: Sandbox, name: str = MINI, **options: Any) -> Any:
    return OpenAIChatCompletionsModel(name, aclient(sandbox, **options))


KINDS: dict[str, Any] = {
    "chat": chat,
    "responses": lambda sandbox, name=MINI, **o: OpenAIResponsesModel(name, aclient(sandbox, **o)),
    "elsewhere": Elsewhere,
}


class City(BaseModel):
    name: str
    size: int


@function_tool
def look(word: str) -> str:
    """Look a word up."""
    return "nothing"


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    set_tracing_disabled(True)
    yield
    close_loop()


async def drained(result: Any) -> None:
    async for _ in result.stream_events():
        pass


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_booked_is_what_was_billed(kind: str, sandbox: Sandbox) -> None:
    """Whole, streamed, with tools, structured, handed off; by `run`, `run_sync` and `run_streamed`."""
    with Meter("memory://", budgets=["$1 per session"]) as meter:
        model = meter.openai_agents(KINDS[kind](sandbox))
        assert isinstance(model, Model)
        settings = ModelSettings(include_usage=True)
        session = SQLiteSession("conv-1")
        config = RunConfig(trace_metadata={"user_id": "ada"})

        async def run() -> None:
            helper = Agent(name="helper", model=model, tools=[look], model_settings=settings)
            await Runner.run(helper, "hello", session=session, run_config=config)
            await drained(Runner.run_streamed(helper, "hello", session=session, run_config=config))
            shaped = Agent(name="shaped", model=model, output_type=City, model_settings=settings)
            await Runner.run(shaped, "hello", session=session, run_config=config)
            front = Agent(name="front", model=model, handoffs=[shaped], model_settings=settings)
            await Runner.run(front, "hello", session=session, run_config=config)

        arun(run())
        found = entries(meter)
        assert len(found) == len(sandbox.bill.lines)
        names = [e.tags["agent"] for e in found]  # who has a tool's answer in the session asks it no more
        assert names[0] == "helper"
        assert set(names) == {"helper", "shaped", "front"}
        assert {(e.session_id, e.user_id, e.status) for e in found} == {("conv-1", "ada", "settled")}
        assert_agrees(meter, sandbox)
        assert_sound(meter)


class Context:
    def __init__(self) -> None:
        self.user_id, self.tenant = 7, "acme"


def test_whom_a_run_is_for(sandbox: Sandbox) -> None:
    """Said on the run, then the scope around it, then the session, the trace's group, and the context."""
    with Meter("memory://", budgets=["$1 per session"]) as meter:
        agent: Any = Agent(name="a", model=meter.openai_agents(chat(sandbox)))

        async def run() -> None:
            await Runner.run(agent, "a")
            await Runner.run(agent, "b", run_config=RunConfig(group_id="thread-9"))
            await Runner.run(agent, "c", session=SQLiteSession("conv"), context=Context())
            with meter.session("scope", user="eve"):
                await Runner.run(agent, "d", session=SQLiteSession("conv"), context=Context())
                said = RunConfig(trace_metadata={"session_id": "said", "user_id": "bob"})
                await Runner.run(agent, "e", run_config=said)
            outer: Any = Agent(
                name="outer",
                model=meter.openai_agents(chat(sandbox)),
                tools=[agent.as_tool("ask", "Ask.")],
            )
            await Runner.run(outer, "f", session=SQLiteSession("conv"))

        arun(run())
        assert [(e.session_id, e.user_id, e.tenant, e.tags["agent"]) for e in entries(meter)] == [
            (None, None, None, "a"),
            ("thread-9", None, None, "a"),
            ("conv", "7", "acme", "a"),
            ("scope", "eve", "acme", "a"),
            ("said", "bob", None, "a"),
            ("conv", None, None, "outer"),
            ("conv", None, None, "a"),
            ("conv", None, None, "outer"),
        ]
        assert_agrees(meter, sandbox)


def test_a_refusal_is_not_repeated_and_comes_out_as_it_is(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$0.000001"]) as meter:
        for kind, make in KINDS.items():
            agent = Agent(name="a", model=meter.openai_agents(make(sandbox)))
            with pytest.raises(BudgetExceeded) as refusal:
                arun(Runner.run(agent, "hello"))
            assert refusal.value.shortfall.limit == 1000, kind

            async def stream(agent: Any = agent) -> None:
                await drained(Runner.run_streamed(agent, "hello"))

            with pytest.raises(BudgetExceeded):
                arun(stream())
        assert sandbox.requests == 0
        assert_sound(meter)


def test_what_cannot_be_bounded_is_refused(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1"]) as meter:
        agent = Agent(name="a", model=meter.openai_agents(Elsewhere(sandbox, "my-own")))
        with pytest.raises(UnknownPrice, match="my-own"):
            arun(Runner.run(agent, "hello"))
        searching = Agent(name="a", model=meter.openai_agents(Elsewhere(sandbox)), tools=[WebSearchTool()])
        with pytest.raises(Unbounded, match="web_search"):
            arun(Runner.run(searching, "hello"))
        with pytest.raises(ConfigError, match="takes a Model or a ModelProvider"):
            meter.openai_agents("gpt-4o")
        with pytest.raises(ConfigError, match="metered already"):
            meter.openai_agents(meter.openai_agents(chat(sandbox)))
        assert sandbox.requests == 0


def test_a_provider_of_models(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1"]) as meter:
        for own in (False, True):
            provider: ModelProvider = meter.openai_agents(
                MultiProvider(openai_client=aclient(sandbox), openai_use_responses=own)
            )
            assert isinstance(provider, MultiProvider)
            config = RunConfig(model_provider=provider)
            arun(Runner.run(Agent(name="a", model=MINI), "hello", run_config=config))
        assert [(e.operation, e.status) for e in entries(meter)] == [
            ("chat", "settled"),
            ("responses", "settled"),
        ]
        assert_agrees(meter, sandbox)


def test_near_the_cap_answers_get_shorter(sandbox: Sandbox) -> None:
    for kind, make in KINDS.items():
        with Meter("memory://", budgets=["100 output tokens per session"]) as meter:
            agent = Agent(name="a", model=meter.openai_agents(make(sandbox)))
            arun(Runner.run(agent, "hello"))
            if kind != "responses" or not CUT_IS_AN_ERROR:
                arun(Runner.run(agent, "hello"))
            else:  # the SDK takes an answer that ends at its limit for a failure
                with pytest.raises(BudgetExceeded, match="had room for 36 tokens") as refusal:
                    arun(Runner.run(agent, "hello"))
                assert refusal.value.shortfall.cut_at == 36
            assert [e.output_tokens for e in entries(meter)] == [64, 36], kind


def test_no_limit_that_is_put_into_a_request_is_above_the_one_that_is_held(sandbox: Sandbox) -> None:
    more = {"max_completion_tokens": 400}
    for put in ({"extra_args": more}, {"extra_body": {"max_tokens": 400, "model": "gpt-4o"}}):
        before = len(sandbox.bill.lines)
        with Meter("memory://", budgets=["50 output tokens per session", "$1"]) as meter:
            model = meter.openai_agents(Elsewhere(sandbox))
            arun(Runner.run(Agent(name="a", model=model, model_settings=ModelSettings(**put)), "hello"))
            (entry,), (line,) = entries(meter), sandbox.bill.lines[before:]
            assert (line.output_tokens, entry.cost) == (50, int(line.cost * 10**9))
            assert "over_bound" not in entry.flags


def test_an_answer_that_the_caller_has_cut_off_is_the_sdks_own_affair(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1"]) as meter:
        model = meter.openai_agents(KINDS["responses"](sandbox))
        agent = Agent(name="a", model=model, model_settings=ModelSettings(max_tokens=20))
        with pytest.raises(agents.exceptions.ModelBehaviorError) if CUT_IS_AN_ERROR else nullcontext():
            arun(Runner.run(agent, "hello"))
        assert_agrees(meter, sandbox)


def test_streams_near_the_cap(sandbox: Sandbox) -> None:
    for make in KINDS.values():
        with Meter("memory://", budgets=["100 output tokens per session"]) as meter:
            settings = ModelSettings(include_usage=True)
            agent = Agent(name="a", model=meter.openai_agents(make(sandbox)), model_settings=settings)

            async def stream(agent: Any = agent) -> None:
                for _ in range(3):
                    await drained(Runner.run_streamed(agent, "hello"))

            with pytest.raises(BudgetExceeded):
                arun(stream())
            assert [e.output_tokens for e in entries(meter)] == [64, 36]


def test_instrumented(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1"]) as meter:
        with meter.instrument():
            for make in KINDS.values():
                agent = Agent(name="a", model=make(sandbox))
                arun(Runner.run(agent, "hello", session=SQLiteSession("c")))
        assert [(e.session_id, e.tags, e.status) for e in entries(meter)] == [
            ("c", {"agent": "a"}, "settled")
        ] * 3
        assert_agrees(meter, sandbox)
        assert_sound(meter)
        arun(Runner.run(Agent(name="a", model=Elsewhere(sandbox)), "hello"))
        assert len(entries(meter)) == 3


def test_speech_needs_a_price_of_its_own() -> None:
    from agents.realtime.model import RealtimeModel

    made = []

    class Speaks(RealtimeModel):
        async def connect(self, options: Any) -> None:
            made.append(options)

        def add_listener(self, listener: Any) -> None: ...
        def remove_listener(self, listener: Any) -> None: ...
        async def send_event(self, event: Any) -> None: ...
        async def close(self) -> None: ...

    with Meter("memory://", budgets=["$1"]) as meter, meter.instrument():
        with pytest.raises(Unbounded, match="realtime"):
            arun(Speaks().connect({}))
        assert made == []
    with Meter("memory://", budgets=["$1"], allow={"realtime": "$0.50"}) as meter, meter.instrument():
        arun(Speaks().connect({}))
        assert [(e.operation, e.cost) for e in entries(meter)] == [("realtime", 500_000_000)]


def test_somebody_elses_package_of_that_name(tmp_path: Any) -> None:
    import subprocess
    import sys

    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").write_text("")
    (tmp_path / "agents" / "run.py").write_text("word = 'mine'")
    code = (
        "from behest_integrations import Meter\n"
        "with Meter('memory://', budgets=['$1']) as meter, meter.instrument():\n"
        "    import agents.run\n"
        "    print(agents.run.word)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.stdout.strip() == "mine", done.stderr


# ── nothing is let through ─────────────────────────────────────────────────────────────


def provider() -> Sandbox:
    return Sandbox(latency=0.05, output_tokens=ANSWER, chunk_tokens=100)


def config(who: str) -> RunConfig:
    marked = ModelSettings(max_tokens=ANSWER, include_usage=True, extra_body={"user": who})
    return RunConfig(group_id=ids(who)["session_id"], trace_metadata={"user_id": who}, model_settings=marked)


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


@pytest.mark.parametrize("kind", ["chat", "elsewhere"])
def test_64_tasks(kind: str) -> None:
    with provider() as sandbox, Meter("memory://", budgets=[BUDGET]) as meter:
        agent = Agent(name="a", model=meter.openai_agents(KINDS[kind](sandbox, MODEL)))
        arun(in_tasks(lambda who, _: Runner.run(agent, "hello there", run_config=config(who))))
        settled(sandbox, 99)
        assert_sound(meter)
        assert_agrees(meter, sandbox)
        assert_whose(meter, sandbox)


def test_64_threads(sqlite_store: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with provider() as sandbox, Meter(sqlite_store, budgets=[BUDGET]) as meter:

        def work(number: int) -> None:
            asyncio.set_event_loop(asyncio.new_event_loop())
            agent = Agent(name="a", model=meter.openai_agents(chat(sandbox, MODEL)))
            asked = config(person(number))
            until_exhausted(lambda: Runner.run_sync(agent, "hello there", run_config=asked))

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(work, range(64)))
        settled(sandbox, 99)
        assert_sound(meter)
        assert_agrees(meter, sandbox)
        assert_whose(meter, sandbox)


@pytest.mark.parametrize("kind", ["chat", "elsewhere"])
def test_64_streams_a_third_broken_off_a_third_cancelled(kind: str) -> None:
    """The provider here bills a stream that is hung up on in full, the worst it could do."""
    with provider() as sandbox, Meter("memory://", budgets=[BUDGET]) as meter:
        agent = Agent(name="a", model=meter.openai_agents(KINDS[kind](sandbox, MODEL)))

        async def stream(who: str, number: int) -> None:
            result = Runner.run_streamed(agent, "hello there", run_config=config(who))
            place = 0
            async for _ in result.stream_events():
                place += 1
                if place == 5 and number % 3 == 0:
                    result.cancel()
                if place == 5 and number % 3 == 1:
                    raise asyncio.CancelledError

        async def call(who: str, number: int) -> None:
            with suppress(asyncio.CancelledError):
                await asyncio.ensure_future(stream(who, number))

        arun(in_tasks(call))
        # Held here by the prompt's bytes, and booked at that where it is broken off.
        settled(sandbox, 99 if kind == "chat" else 97)
        assert_sound(meter)
        assert_whose(meter, sandbox, exact=False)


def test_attempts_of_the_sdk_are_within_the_cap() -> None:
    """A 500 is billed here all the same: each of the SDK's attempts is held on its own."""
    with provider() as sandbox, Meter("memory://", budgets=[BUDGET]) as meter:
        sandbox.fault("status", status=500, billed=True, times=6)
        agent = Agent(name="a", model=meter.openai_agents(chat(sandbox, MODEL, max_retries=2)))
        arun(in_tasks(lambda who, _: Runner.run(agent, "hello there", run_config=config(who))))
        settled(sandbox, 99)
        assert_sound(meter)
        assert_whose(meter, sandbox, exact=False)
        assert {e.user_id for e in entries(meter)} == set(PEOPLE)


# ── what of the SDK's internals is touched ─────────────────────────────────────────────


def test_what_is_touched_is_there() -> None:
    """`internals.py` of the door names the versions that were read; this says what has moved."""
    from agents.tracing import agent_span, get_current_span

    for name in ("run", "run_sync", "run_streamed"):
        assert {"session", "run_config", "conversation_id", "context"} <= set(
            inspect.signature(getattr(Runner, name)).parameters
        )
    names = list(inspect.signature(Model.get_response).parameters)
    assert names[1:8] == [
        "system_instructions", "input", "model_settings", "tools", "output_schema", "handoffs", "tracing",
    ]  # fmt: skip
    assert names == list(inspect.signature(Model.stream_response).parameters)
    set_tracing_disabled(True)
    with agent_span("an agent"):
        assert get_current_span().span_data.name == "an agent"
