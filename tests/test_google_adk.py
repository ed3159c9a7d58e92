"""Google's ADK: what its agents ask is booked as it is billed, and for whom the run is."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, suppress
from decimal import Decimal
from typing import Any

import pytest
from support import arun, assert_agrees, assert_sound, auntil_exhausted, close_loop, entries

from behest_integrations import BudgetExceeded, Meter, Unbounded, UnknownPrice
from behest_integrations.rules.budgets import to_nano
from behest_integrations.sandbox import Sandbox

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
pytest.importorskip("google.adk.runners", reason="google-adk is not installed")
from google.adk.agents import LlmAgent, SequentialAgent
from google.adk.agents.run_config import RunConfig, StreamingMode
from google.adk.models.base_llm import BaseLlm
from google.adk.models.google_llm import Gemini
from google.adk.models.llm_response import LlmResponse
from google.adk.runners import Runner
from google.adk.sessions import InMemorySessionService
from google.adk.tools import google_search
from google.adk.tools.agent_tool import AgentTool
from google.genai import types

FLASH, PRO = "gemini-2.5-flash", "gemini-2.5-pro"
SSE = RunConfig(streaming_mode=StreamingMode.SSE)


@pytest.fixture(autouse=True)
def _address(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    point_to(sandbox, monkeypatch)
    yield
    close_loop()


def point_to(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", sandbox.url)
    monkeypatch.setenv("GOOGLE_API_KEY", "none")


class Own(BaseLlm):  # type: ignore[misc]
    """A model of one's own, which no door knows; it asks the sandbox all the same."""

    url: str

    async def generate_content_async(self, llm_request: Any, stream: bool = False) -> AsyncIterator[Any]:
        import httpx

        config = {"maxOutputTokens": llm_request.config.max_output_tokens}
        contents = [{"parts": [{"text": p.text or ""} for p in c.parts]} for c in llm_request.contents]
        async with httpx.AsyncClient(verify=False) as client:
            reply = await client.post(
                f"{self.url}/v1beta/models/{self.model}:generateContent",
                json={"contents": contents, "generationConfig": config},
                timeout=60,
            )
        said = types.GenerateContentResponse.model_validate(reply.json())
        yield LlmResponse.create(said)


def lite(sandbox: Sandbox, model: str) -> Any:
    pytest.importorskip("litellm")
    from google.adk.models.lite_llm import LiteLlm

    return LiteLlm(model=f"openai/{model}", api_base=sandbox.base_url, api_key="none")


MODELS: dict[str, Any] = {
    "gemini": lambda sandbox, model=FLASH: Gemini(model=model),
    "litellm": lambda sandbox, model="gpt-4o-mini": lite(sandbox, model),
    "own": lambda sandbox, model=FLASH: Own(model=model, url=sandbox.url),
}


def look(word: str) -> str:
    """Look a word up."""
    return "nothing"


def agent(model: Any, name: str = "helper", limit: int = 60, **options: Any) -> Any:
    config = types.GenerateContentConfig(max_output_tokens=limit)
    return LlmAgent(name=name, model=model, generate_content_config=config, **options)


def runner(meter: Meter | None, root: Any, **options: Any) -> Any:
    plugins = [meter.google_adk()] if meter is not None else []
    service = InMemorySessionService()
    return Runner(
        app_name="app",
        agent=root,
        plugins=plugins,
        session_service=service,
        auto_create_session=True,
        **options,
    )


HELLO = types.Content(role="user", parts=[types.Part(text="hello")])


async def ask(runner: Any, **options: Any) -> None:
    async for _ in runner.run_async(user_id="ada", session_id="s", new_message=HELLO, **options):
        pass


WAYS = ("plugin", "beneath", "all")


def metered(meter: Meter, way: str, stack: ExitStack, root: Any) -> Any:
    """By the plugin alone; with the SDKs metered beneath; or all that there is, by itself."""
    if way == "all":
        stack.enter_context(meter.instrument())
        return runner(None, root)
    if way == "beneath":
        stack.enter_context(meter.instrument_google_genai())
        with suppress(ImportError):
            stack.enter_context(meter.litellm())
    return runner(meter, root)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", MODELS)
def test_what_is_booked_is_what_was_billed(kind: str, way: str, sandbox: Sandbox) -> None:
    """Steps with a tool, streams, agents one after the other."""
    model = MODELS[kind](sandbox)
    with Meter("memory://", budgets=["$1 per session"]) as meter, ExitStack() as stack:
        first, second = agent(model, "first", tools=[look]), agent(model, "second")
        both = metered(meter, way, stack, SequentialAgent(name="both", sub_agents=[first, second]))
        arun(ask(both))
        arun(ask(both, run_config=SSE))
        found = entries(meter)
        assert len(found) == len(sandbox.bill.lines) == sandbox.requests
        assert {(e.session_id, e.user_id, e.tags["app"]) for e in found} == {("s", "ada", "app")}
        assert {e.tags["agent"] for e in found} == {"first", "second"}
        assert {e.status for e in found} <= {"settled", "estimated"}
        if {e.status for e in found} == {"settled"}:
            assert_agrees(meter, sandbox)
        else:  # LiteLLM's stream alone tells no usage
            assert (kind, way) == ("litellm", "plugin")
        assert_sound(meter)


def test_whom_a_run_is_for(sandbox: Sandbox) -> None:
    """The scope around it, then the run's own ids; an agent that is a tool has its caller's."""
    with Meter("memory://", budgets=["$1 per session"]) as meter:
        inner = agent(Gemini(model=FLASH), "inner", description="Asks on.")
        outer = runner(meter, agent(Gemini(model=FLASH), "outer", tools=[AgentTool(agent=inner)]))
        arun(ask(outer))
        with meter.session("scope", user="eve"):
            arun(ask(runner(meter, agent(Gemini(model=FLASH), "alone"))))
        with meter.session(user="eve"):
            arun(ask(runner(meter, agent(Gemini(model=FLASH), "alone"))))
        assert [(e.session_id, e.user_id, e.tags["agent"]) for e in entries(meter)] == [
            ("s", "ada", "outer"),
            ("s", "ada", "inner"),
            ("s", "ada", "outer"),
            ("scope", "eve", "alone"),
            ("s", "eve", "alone"),
        ]
        assert_agrees(meter, sandbox)


@pytest.mark.parametrize("way", WAYS)
def test_a_refusal_comes_out_as_it_is(way: str, sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$0.000001"]) as meter, ExitStack() as stack:
        for kind, make in MODELS.items():
            asked = metered(meter, way, stack, agent(make(sandbox), tools=[look]))
            for options in ({}, {"run_config": SSE}):
                with pytest.raises(BudgetExceeded) as refusal:
                    arun(ask(asked, **options))
                assert refusal.value.shortfall.limit == 1000, (kind, options)
        assert sandbox.requests == 0
        assert entries(meter) == []
        assert_sound(meter)


def test_what_cannot_be_bounded_is_refused(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1"]) as meter:
        for kind, make in MODELS.items():
            with pytest.raises(UnknownPrice, match="my-own"):
                arun(ask(runner(meter, agent(make(sandbox, "my-own")))))
            if kind == "gemini":
                with pytest.raises(Unbounded, match="web_search"):
                    arun(ask(runner(meter, agent(make(sandbox), tools=[google_search]))))
        picture = types.GenerateContentConfig(response_modalities=["IMAGE"])
        with pytest.raises(Unbounded):
            arun(ask(runner(meter, LlmAgent(name="a", model=FLASH, generate_content_config=picture))))
        assert sandbox.requests == 0
        assert_sound(meter)


def test_near_the_cap_answers_get_shorter(sandbox: Sandbox) -> None:
    for kind, make in MODELS.items():
        with Meter("memory://", budgets=["100 output tokens per session"]) as meter:
            asked = runner(meter, agent(make(sandbox), limit=64))
            for _ in range(2):
                arun(ask(asked))
            with pytest.raises(BudgetExceeded):
                arun(ask(asked))
            assert [e.output_tokens for e in entries(meter)] == [64, 36], kind


def test_a_session_of_live_is_counted_or_refused() -> None:
    from google.adk.agents.live_request_queue import LiveRequestQueue

    async def live(asked: Any) -> None:
        async for _ in asked.run_live(user_id="ada", session_id="s", live_request_queue=LiveRequestQueue()):
            break

    with Meter("memory://", budgets=["$1"]) as meter:
        asked = runner(meter, agent(Gemini(model="gemini-live-2.5-flash-preview")))
        with pytest.raises((Unbounded, RuntimeError)) as refusal:
            arun(live(asked))
        cause = refusal.value if isinstance(refusal.value, Unbounded) else refusal.value.__cause__
        assert isinstance(cause, Unbounded)
        assert cause.feature == "realtime"


def test_instrumented_and_no_more(sandbox: Sandbox) -> None:
    before = runner(None, agent(Own(model=FLASH, url=sandbox.url)))
    with Meter("memory://", budgets=["2 calls"]) as meter:
        with meter.instrument():
            arun(ask(before))
            arun(ask(runner(None, agent(Gemini(model=FLASH)))))
            with pytest.raises(BudgetExceeded):
                arun(ask(before))
        arun(ask(before))
        assert [(e.session_id, e.user_id) for e in entries(meter)] == [("s", "ada")] * 2
        assert len(sandbox.bill.lines) == 3
        assert_sound(meter)


# ── nothing is let through ─────────────────────────────────────────────────────────────

EACH = Decimal("0.03")
ASKS = {"ada": FLASH, "bob": PRO}
"""Who asks which model: so does the provider know whom a call is for."""


@pytest.mark.parametrize(("kind", "least"), [("gemini", 97), ("own", 97)])
def test_64_tasks_some_of_which_leave_their_streams(
    kind: str, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attempts that fail and are billed are among them; a stream that is left is billed in full."""
    with (
        Sandbox(latency=0.02, output_tokens=2000, chunk_tokens=100) as sandbox,
        Meter("memory://", budgets=[f"${EACH} per session"]) as meter,
    ):
        point_to(sandbox, monkeypatch)
        asked = {
            who: runner(meter, agent(MODELS[kind](sandbox, model), limit=300)) for who, model in ASKS.items()
        }

        # Each asks in a session of the ADK's own: it would ask all that was said in one again.
        places = itertools.count()

        async def call(who: str, place: int) -> None:
            told = {"user_id": who, "session_id": str(place), "new_message": HELLO}
            with meter.session(f"of {who}"):
                events = asked[who].run_async(**told, run_config=SSE)
                async for _ in events:
                    if place % 3 == 0:
                        break
                await events.aclose()

        async def work(number: int) -> None:
            who = ("ada", "bob")[number % 2]
            await auntil_exhausted(lambda: call(who, next(places)))

        async def all_of_them() -> None:
            await asyncio.gather(*map(work, range(64)))

        arun(all_of_them())
        for _ in range(100):
            if len(sandbox.bill.lines) >= sandbox.requests:
                break
            time.sleep(0.05)
        billed: Counter[str] = Counter()
        for line in sandbox.bill.lines:
            billed[line.model] += to_nano(line.cost)
        booked: Counter[str] = Counter()
        for entry in entries(meter):
            booked[entry.user_id or ""] += entry.cost or 0
        for who, model in ASKS.items():
            assert EACH * least / 100 <= Decimal(billed[model]) / 10**9 <= EACH, (who, billed)
            assert booked[who] >= billed[model]
        assert_sound(meter)


# ── what of the ADK's internals is touched ─────────────────────────────────────────────


def test_what_is_touched_is_there(sandbox: Sandbox) -> None:
    """`internals.py` of the door names the versions that were read; this says what has moved."""
    from behest_integrations.integrations.google_adk import internals

    for name in internals.CALLBACKS:
        assert inspect.iscoroutinefunction(getattr(internals.PluginManager, f"run_{name}"))
    assert list(inspect.signature(BaseLlm.generate_content_async).parameters) == [
        "self",
        "llm_request",
        "stream",
    ]
    assert internals.maker_of(Gemini(model=FLASH)) == "google"
    with Meter("memory://") as meter:
        assert not internals.is_seen_beneath(Gemini(model=FLASH), meter)
        with meter.instrument_google_genai():
            assert internals.is_seen_beneath(Gemini(model=FLASH), meter)
        asked = runner(meter, agent(Gemini(model=FLASH)))

        async def said_to_nobody_else() -> None:
            from behest_integrations.integrations.google_adk.metering import _asking, _run

            await ask(asked)
            assert (_asking.get(), _run.get()) == (None, None)

        arun(said_to_nobody_else())
