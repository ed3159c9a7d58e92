"""Pydantic AI's models, metered: what is booked is what the provider billed, and for whom."""

from __future__ import annotations

import asyncio
import inspect
import time
from contextlib import asynccontextmanager, suppress
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

from behest_integrations import BudgetExceeded, ConfigError, LoopDetected, Meter, UnknownPrice
from behest_integrations.sandbox import Sandbox

pytest.importorskip("pydantic_ai", reason="pydantic-ai-slim is not installed")
from pydantic import BaseModel
from pydantic_ai import Agent, direct
from pydantic_ai.embeddings import Embedder
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.messages import ModelRequest, ModelResponse, ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models import Model, StreamedResponse
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import RequestUsage

EACH = Decimal("0.5")
BUDGET = "$0.50 per session"
MINI = "gpt-4o-mini"


def openai(sandbox: Sandbox, name: str = MINI, cls: Any = OpenAIChatModel, **options: Any) -> Any:
    return cls(name, provider=OpenAIProvider(openai_client=aclient(sandbox, **options)))


class Elsewhere(Model):
    """A model of a provider whose SDK no door knows; what it is asked goes to the sandbox all the same."""

    def __init__(self, sandbox: Sandbox, name: str = MINI, **options: Any) -> None:
        super().__init__()
        self._ask = (openai(sandbox, name, **options),)

    async def request(self, messages: Any, model_settings: Any, model_request_parameters: Any) -> Any:
        return await self._ask[0].request(messages, model_settings, model_request_parameters)

    @asynccontextmanager
    async def request_stream(self, messages: Any, settings: Any, parameters: Any, context: Any = None) -> Any:
        async with self._ask[0].request_stream(messages, settings, parameters, context) as response:
            yield response

    def prepare_request(self, settings: Any, parameters: Any) -> Any:
        return self._ask[0].prepare_request(settings, parameters)

    @property
    def model_name(self) -> str:
        return str(self._ask[0].model_name)

    @property
    def system(self) -> str:
        return "elsewhere"


KINDS = {
    "chat": openai,
    "responses": lambda sandbox, name=MINI, **o: openai(sandbox, name, OpenAIResponsesModel, **o),
    "elsewhere": Elsewhere,
}


class City(BaseModel):
    name: str
    size: int


@pytest.fixture(autouse=True)
def _loop() -> Any:
    yield
    close_loop()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_booked_is_what_was_billed(kind: str, sandbox: Sandbox) -> None:
    """Whole, streamed, with tools, structured, asked directly."""
    with Meter("memory://", budgets=["$1 per session"]) as meter:
        model = meter.pydantic_ai(KINDS[kind](sandbox))
        assert isinstance(model, Model)
        agent = Agent(model, name="helper")

        @agent.tool_plain
        def look(word: str) -> str:
            """Look a word up."""
            return "nothing"

        async def run() -> None:
            said: dict[str, Any] = {"conversation_id": "c-1", "metadata": {"user_id": "ada"}}
            await agent.run("hello", **said)
            async with agent.run_stream("hello", **said) as streamed:
                await streamed.get_output()
            await Agent(model, output_type=City, name="helper").run("hello", **said)
            with meter.session("c-1", user="ada", tags={"agent": "helper"}):
                await direct.model_request(model, [ModelRequest.user_text_prompt("hello")])
                async with direct.model_request_stream(
                    model, [ModelRequest.user_text_prompt("hello")]
                ) as response:
                    async for _ in response:
                        pass

        arun(run())
        found = entries(meter)
        assert len(found) == len(sandbox.bill.lines) == 7  # a tool's call is followed by another request
        # Before 2.1 it does not ask streams of an address of one's own for their usage.
        counted = {"estimated"} if kind == "elsewhere" and version("pydantic-ai-slim") < "2.1" else set()
        assert {e.status for e in found} - counted <= {"settled"}
        assert {(e.session_id, e.user_id, e.tags.get("agent")) for e in found} == {("c-1", "ada", "helper")}
        if not counted:
            assert_agrees(meter, sandbox)
        assert_sound(meter)


def test_each_retry_of_a_structured_output_is_a_call(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["4 calls per user"]) as meter:
        agent = Agent(meter.pydantic_ai(openai(sandbox)), output_type=City, retries=10)

        @agent.output_validator
        def never(city: City) -> City:
            from pydantic_ai import ModelRetry

            raise ModelRetry("again")

        with meter.session("s", user="ada"), pytest.raises(BudgetExceeded) as refusal:
            arun(agent.run("hello"))
        assert refusal.value.budget == "4 calls per user"
        assert len(entries(meter)) == len(sandbox.bill.lines) == 4
        assert_agrees(meter, sandbox)
        assert_sound(meter)


class Deps:
    def __init__(self) -> None:
        self.user_id, self.tenant = 7, "acme"


def test_whom_a_run_is_for(sandbox: Sandbox) -> None:
    """Said on the run, then the scope around it, then the framework's own; no id that nobody chose."""
    with Meter("memory://", budgets=["$1 per session"]) as meter:
        model = meter.pydantic_ai(openai(sandbox))
        plain: Any = Agent(model)
        with_deps = Agent(model, deps_type=Deps, name="deps")

        async def run() -> None:
            first = await plain.run("a")
            await plain.run("b", message_history=first.all_messages())
            await plain.run("c", conversation_id="chosen")
            await with_deps.run("d", deps=Deps())
            with meter.session("scope", user="eve"):
                await with_deps.run("e", deps=Deps(), conversation_id="chosen")
                await with_deps.run("f", deps=Deps(), metadata={"session_id": "said", "user_id": "bob"})

        arun(run())
        assert [(e.session_id, e.user_id, e.tenant) for e in entries(meter)] == [
            (None, None, None),
            (None, None, None),
            ("chosen", None, None),
            (None, "7", "acme"),
            ("scope", "eve", "acme"),
            ("said", "bob", "acme"),
        ]
        assert {e.tags.get("agent") for e in entries(meter)[3:]} == {"deps"}
        assert_agrees(meter, sandbox)


def test_what_answers_through_others(sandbox: Sandbox) -> None:
    """A wrapper, and a fallback whose first model fails: each request of theirs is one call."""
    with Meter("memory://", budgets=["$1"]) as meter:
        sandbox.fault("status", status=500, billed=True, times=1)
        inner = FallbackModel(openai(sandbox, "gpt-4o"), openai(sandbox))
        wrapped = meter.pydantic_ai(WrapperModel(inner))
        arun(Agent(wrapped).run("hello"))
        assert [(e.model, e.status) for e in entries(meter)] == [("gpt-4o", "assumed"), (MINI, "settled")]
        again = meter.pydantic_ai(WrapperModel(wrapped.wrapped.models[0]))
        arun(Agent(again).run("hello"))
        assert len(entries(meter)) == len(sandbox.bill.lines) == 3


def test_a_refusal_is_not_repeated_and_comes_out_as_it_is(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$0.000001"]) as meter:
        for kind, make in KINDS.items():
            model = meter.pydantic_ai(make(sandbox))
            fallback = FallbackModel(model, model)
            for asked in (model, fallback):
                agent = Agent(asked, retries=3)
                with pytest.raises(BudgetExceeded) as refusal:
                    arun(agent.run("hello"))
                assert refusal.value.shortfall.limit == 1000, kind
                assert refusal.value.__cause__ is None

                async def stream(agent: Any = agent) -> None:
                    async with agent.run_stream("hello") as streamed:
                        await streamed.get_output()

                with pytest.raises(BudgetExceeded):
                    arun(stream())
        assert sandbox.requests == 0
        assert_sound(meter)


def test_what_cannot_be_bounded_is_refused(sandbox: Sandbox) -> None:
    from behest_integrations import Unbounded

    with Meter("memory://", budgets=["$1"]) as meter:
        with pytest.raises(UnknownPrice, match="my-own"):
            arun(Agent(meter.pydantic_ai(Elsewhere(sandbox, "my-own"))).run("hello"))
        settings: Any = {"elsewhere_bonus": 7}
        agent = Agent(meter.pydantic_ai(Elsewhere(sandbox)))
        with pytest.raises(Unbounded, match="elsewhere_bonus"):
            arun(agent.run("hello", model_settings=settings))
        with pytest.raises(ConfigError, match="takes a model of Pydantic AI"):
            meter.pydantic_ai("gpt-4o")
        model = meter.pydantic_ai(openai(sandbox))
        with pytest.raises(ConfigError, match="metered already"):
            meter.pydantic_ai(model)
        assert sandbox.requests == 0


def test_embeddings(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1 per session"]) as meter:
        provider = OpenAIProvider(openai_client=aclient(sandbox))
        embedder = Embedder(
            meter.pydantic_ai(OpenAIEmbeddingModel("text-embedding-3-small", provider=provider))
        )
        with meter.session("s"):
            arun(embedder.embed_documents(["one", "two"]))
        assert [(e.operation, e.session_id, e.status) for e in entries(meter)] == [
            ("embeddings", "s", "settled")
        ]
        assert_agrees(meter, sandbox)


def test_near_the_cap_answers_get_shorter(sandbox: Sandbox) -> None:
    for kind, make in KINDS.items():
        before = len(sandbox.bill.lines)
        with Meter("memory://", budgets=["100 output tokens per session"]) as meter:
            agent = Agent(meter.pydantic_ai(make(sandbox)))
            for _ in range(2):
                arun(agent.run("hello"))
            assert [e.output_tokens for e in entries(meter)] == [64, 36], kind
        assert len(sandbox.bill.lines) == before + 2


def test_no_limit_that_is_put_into_a_request_is_above_the_one_that_is_held(sandbox: Sandbox) -> None:
    for put in ({"max_tokens": 400}, {"max_completion_tokens": 400, "model": "gpt-4o"}):
        before = len(sandbox.bill.lines)
        with Meter("memory://", budgets=["50 output tokens per session", "$1"]) as meter:
            agent = Agent(meter.pydantic_ai(Elsewhere(sandbox)), model_settings={"extra_body": put})
            arun(agent.run("hello"))
            (entry,), (line,) = entries(meter), sandbox.bill.lines[before:]
            assert (line.output_tokens, entry.cost) == (50, int(line.cost * 10**9))
            assert entry.model.startswith(line.model)
            assert "over_bound" not in entry.flags


def test_instrumented(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1"]) as meter:
        with meter.instrument():
            models = [make(sandbox) for make in KINDS.values()]
            models.append(FallbackModel(openai(sandbox), openai(sandbox)))
            for model in models:
                arun(Agent(model).run("hello", conversation_id="c"))
        assert [(e.session_id, e.status) for e in entries(meter)] == [("c", "settled")] * 4
        assert_agrees(meter, sandbox)
        assert_sound(meter)
        arun(Agent(openai(sandbox)).run("hello"))
        assert len(entries(meter)) == 4


def test_speech_and_pictures_need_a_price_of_their_own(sandbox: Sandbox) -> None:
    realtime = pytest.importorskip("pydantic_ai.realtime", reason="this Pydantic AI has no speech")
    images = pytest.importorskip("pydantic_ai.images", reason="this Pydantic AI has no pictures")
    made = []

    class Speaks(realtime.RealtimeModel):
        model_name, system = "gpt-realtime", "openai"

        @asynccontextmanager
        async def connect(self, **asked: Any) -> Any:
            made.append("connection")
            yield "a connection"

    class Draws(images.ImageGenerationModel):
        model_name, system = "paint-1", "elsewhere"

        async def generate(self, prompt: str, **asked: Any) -> Any:
            made.append("picture")
            return "a picture"

    async def use(meter: Meter) -> None:
        async with meter.pydantic_ai(Speaks()).connect(messages=[]) as connection:
            assert connection == "a connection"
        assert await meter.pydantic_ai(Draws()).generate("a cat") == "a picture"

    from behest_integrations import Unbounded

    with Meter("memory://", budgets=["$1"]) as meter:
        with pytest.raises(Unbounded, match="realtime"):
            arun(use(meter))
        assert made == []
    with Meter("memory://", budgets=["$1"], allow={"realtime": "$0.50", "images": "$0.05"}) as meter:
        arun(use(meter))
        assert made == ["connection", "picture"]
        assert [(e.operation, e.cost) for e in entries(meter)] == [
            ("realtime", 500_000_000),
            ("images", 50_000_000),
        ]


# ── nothing is let through ─────────────────────────────────────────────────────────────


def provider() -> Sandbox:
    return Sandbox(latency=0.05, output_tokens=ANSWER, chunk_tokens=100)


def asking(who: str) -> dict[str, Any]:
    said = ids(who)
    return {
        "conversation_id": said["session_id"],
        "metadata": {"user_id": who},
        "model_settings": {"max_tokens": ANSWER, "extra_body": {"user": who}},
    }


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
        agent = Agent(meter.pydantic_ai(KINDS[kind](sandbox, MODEL)))
        arun(in_tasks(lambda who, _: agent.run("hello there", **asking(who))))
        settled(sandbox, 99)
        assert_sound(meter)
        assert_agrees(meter, sandbox)
        assert_whose(meter, sandbox)


def test_64_threads(sqlite_store: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with provider() as sandbox, Meter(sqlite_store, budgets=[BUDGET]) as meter:

        def work(number: int) -> None:
            agent = Agent(meter.pydantic_ai(openai(sandbox, MODEL)))
            until_exhausted(lambda: agent.run_sync("hello there", **asking(person(number))))

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
        agent = Agent(meter.pydantic_ai(KINDS[kind](sandbox, MODEL)))

        async def stream(who: str, number: int) -> None:
            async with agent.run_stream("hello there", **asking(who)) as streamed:
                async for _ in streamed.stream_text(delta=True, debounce_by=None):
                    if number % 3 == 0:
                        break
                    if number % 3 == 1:
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
        agent = Agent(meter.pydantic_ai(openai(sandbox, MODEL, max_retries=2)))
        arun(in_tasks(lambda who, _: agent.run("hello there", **asking(who))))
        settled(sandbox, 99)
        assert_sound(meter)
        assert_whose(meter, sandbox, exact=False)
        assert {e.user_id for e in entries(meter)} == set(PEOPLE)


# ── what of Pydantic AI's internals is touched ─────────────────────────────────────────


def test_what_is_touched_is_there() -> None:
    """`internals.py` of the door names the versions that were read; this says what has moved."""
    from pydantic_ai._run_context import get_current_run_context

    assert get_current_run_context() is None
    assert inspect.isfunction(StreamedResponse._get_event_iterator)
    assert "self._get_event_iterator()" in inspect.getsource(StreamedResponse.__aiter__)
    assert "_provider" in inspect.getsource(Model.provider.fget)
    assert "self.wrapped = " in inspect.getsource(WrapperModel.__init__)
    assert "self.models = " in inspect.getsource(FallbackModel.__init__)
    names = {"input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "input_audio_tokens"}
    assert all(hasattr(RequestUsage(), name) for name in names)


def test_the_loop_guard_sees_what_its_messages_show(sandbox: Sandbox) -> None:
    """Also of providers whose SDK no door knows; the agent ends with the guard's error, as it is."""

    def history(times: int) -> list[Any]:
        said: list[Any] = [ModelRequest([UserPromptPart("go")])]
        for number in range(times):
            id = f"c{number}"
            said.append(ModelResponse([ToolCallPart("search", {"q": "x"}, tool_call_id=id)]))
            said.append(ModelRequest([ToolReturnPart("search", "nothing", tool_call_id=id)]))
        return said

    with Meter("memory://", guards={"same_tool_call": 3}) as meter:
        model = meter.pydantic_ai(Elsewhere(sandbox))
        arun(direct.model_request(model, history(2)))
        with pytest.raises(LoopDetected, match="'search' has been called 3 times"):
            arun(direct.model_request(model, history(3)))
        assert sandbox.requests == 1
