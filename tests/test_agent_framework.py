"""Microsoft Agent Framework: what its agents ask is booked as it is billed, and for whom the run is."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, suppress
from decimal import Decimal
from typing import Any

import pytest
from support import (
    ANSWER,
    MODEL,
    aclient,
    arun,
    assert_agrees,
    assert_each_within,
    assert_sound,
    assert_whose,
    auntil_exhausted,
    close_loop,
    entries,
    person,
)

from behest_integrations import BudgetExceeded, Meter, Unbounded, UnknownPrice
from behest_integrations.sandbox import Sandbox

pytest.importorskip("agent_framework", reason="agent-framework-core is not installed")
pytest.importorskip("agent_framework_openai", reason="agent-framework-openai is not installed")
from agent_framework import (
    Agent,
    AgentSession,
    BaseChatClient,
    ChatMiddlewareLayer,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    FunctionInvocationLayer,
    Message,
    ResponseStream,
    WorkflowBuilder,
    tool,
)
from agent_framework.openai import OpenAIChatClient, OpenAIChatCompletionClient
from pydantic import BaseModel

EACH = Decimal("0.5")
BUDGET = "$0.50 per session"
MINI = "gpt-4o-mini"
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    yield
    close_loop()


class Elsewhere(FunctionInvocationLayer, ChatMiddlewareLayer, BaseChatClient):  # type: ignore[misc]
    """A client of a provider whose SDK no door knows; what it is asked goes to the sandbox all the same."""

    def __init__(self, sandbox: Sandbox, name: str, **options: Any) -> None:
        super().__init__()
        self.model = name
        self._ask = (aclient(sandbox, **options),)

    def _inner_get_response(self, *, messages: Any, stream: bool, options: Any, **kwargs: Any) -> Any:
        asked = {
            "model": self.model,
            "messages": [{"role": str(m.role), "content": m.text} for m in messages],
        }
        asked |= {n: options[n] for n in ("max_tokens", "user") if options.get(n)}
        if not stream:
            return self._whole(asked)
        return ResponseStream(self._pieces(asked), finalizer=ChatResponse.from_updates)

    async def _whole(self, asked: Any) -> Any:
        reply = await self._ask[0].chat.completions.create(**asked)
        said = Message(role="assistant", contents=[reply.choices[0].message.content or ""])
        return ChatResponse(messages=[said], usage_details=self._usage(reply), model=reply.model)

    async def _pieces(self, asked: Any) -> AsyncIterator[Any]:
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
        async with await self._ask[0].chat.completions.create(**asked) as chunks:
            async for chunk in chunks:
                if chunk.choices and chunk.choices[0].delta.content:
                    text = Content.from_text(chunk.choices[0].delta.content)
                    yield ChatResponseUpdate(role="assistant", contents=[text])
                if chunk.usage:
                    usage = Content.from_usage(self._usage(chunk))
                    yield ChatResponseUpdate(role="assistant", contents=[usage])

    def _usage(self, reply: Any) -> Any:
        used = reply.usage
        return {"input_token_count": used.prompt_tokens, "output_token_count": used.completion_tokens}


def of_openai(cls: Any) -> Any:
    def make(sandbox: Sandbox, name: str = MINI, **options: Any) -> Any:
        return cls(model=name, async_client=aclient(sandbox, **options))

    return make


def beneath(cls: Any, meter: Meter, sandbox: Sandbox, name: str = MINI, **options: Any) -> Any:
    return cls(model=name, async_client=meter.openai(aclient(sandbox, **options)))


KINDS: dict[str, Any] = {
    "chat": of_openai(OpenAIChatCompletionClient),
    "responses": of_openai(OpenAIChatClient),
    "elsewhere": lambda sandbox, name=MINI, **options: Elsewhere(sandbox, name, **options),
}


class City(BaseModel):
    name: str


@tool
def look(word: str) -> str:
    """Look a word up."""
    return "nothing"


async def drained(stream: Any) -> None:
    async for _ in stream:
        pass


WAYS = ("middleware", "beneath", "all")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_booked_is_what_was_billed(kind: str, way: str, sandbox: Sandbox) -> None:
    """Whole, streamed, with a tool, structured; by the middleware alone, with the SDK metered, or all."""
    if (kind, way) == ("elsewhere", "beneath"):
        pytest.skip("no SDK is known to be beneath")
    with Meter("memory://", budgets=["$1 per session"]) as meter, ExitStack() as stack:
        if way == "all":
            stack.enter_context(meter.instrument())
        client = KINDS[kind](sandbox)
        if way == "beneath":
            client.client = meter.openai(client.client)
        middleware = [] if way == "all" else [meter.agent_framework()]
        options: dict[str, Any] = {"max_tokens": 60}
        if kind == "responses" and way == "middleware":
            options["store"] = False  # what is stored at a server that is not known has no bound here
        agent = Agent(client=client, name="a", tools=[look], middleware=middleware, default_options=options)
        session = AgentSession(session_id="conv")

        async def run() -> None:
            with meter.session(user="ada"):
                await agent.run("hello", session=session)
                await drained(agent.run("hello", session=session, stream=True))
                with suppress(Exception):  # what the sandbox says is no city
                    await agent.run("hello", session=session, options={"response_format": City})

        arun(run())
        found = entries(meter)
        assert len(found) == len(sandbox.bill.lines) == sandbox.requests >= 3
        assert {(e.session_id, e.user_id, e.tags["agent"]) for e in found} == {("conv", "ada", "a")}
        assert {e.status for e in found} == {"settled"}
        assert_agrees(meter, sandbox)
        assert_sound(meter)


def test_whom_a_run_is_for(sandbox: Sandbox) -> None:
    """The scope around it, then the run's session; an agent that is a tool has its caller's; workflows."""
    with Meter("memory://", budgets=["$1 per session"]) as meter:

        def agent(name: str, **options: Any) -> Any:
            client = KINDS["chat"](sandbox)
            return Agent(
                client=client, name=name, middleware=[meter.agent_framework()],
                default_options={"max_tokens": 20}, **options,
            )  # fmt: skip

        outer = agent("outer", tools=[agent("inner", description="Asks on.").as_tool()])
        alone = agent("alone")

        async def run() -> None:
            await outer.run("a", session=AgentSession(session_id="conv"))
            await alone.run("b")
            with meter.session("scope", user="eve"):
                await alone.run("c", session=AgentSession(session_id="conv"))
                await drained(alone.run("d", session=AgentSession(session_id="conv"), stream=True))
                first, second = agent("first"), agent("second")
                flow = WorkflowBuilder(start_executor=first).add_edge(first, second).build()
                await flow.run("e")

        arun(run())
        assert [(e.session_id, e.user_id, e.tags["agent"]) for e in entries(meter)] == [
            ("conv", None, "outer"),
            ("conv", None, "inner"),
            ("conv", None, "outer"),
            (None, None, "alone"),
            ("scope", "eve", "alone"),
            ("scope", "eve", "alone"),
            ("scope", "eve", "first"),
            ("scope", "eve", "second"),
        ]
        assert_agrees(meter, sandbox)
        assert_sound(meter)


@pytest.mark.parametrize("way", WAYS)
def test_a_refusal_comes_out_as_it_is(way: str, sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$0.000001"]) as meter, ExitStack() as stack:
        if way == "all":
            stack.enter_context(meter.instrument())
        for kind, make in KINDS.items():
            client = make(sandbox, max_retries=3)
            if way == "beneath" and kind != "elsewhere":
                client.client = meter.openai(client.client)
            agent = Agent(client=client, middleware=[] if way == "all" else [meter.agent_framework()])
            flow = WorkflowBuilder(start_executor=agent).build()
            for ask in (
                lambda agent=agent: agent.run("hello"),
                lambda agent=agent: drained(agent.run("hello", stream=True)),
                lambda flow=flow: flow.run("hello"),
            ):
                with pytest.raises(BudgetExceeded) as refusal:
                    arun(ask())
                assert refusal.value.shortfall.limit == 1000, kind
        assert sandbox.requests == 0
        assert entries(meter) == []
        assert_sound(meter)


def test_what_cannot_be_bounded_is_refused(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1"]) as meter:
        for make in KINDS.values():
            agent = Agent(client=make(sandbox, "my-own"), middleware=[meter.agent_framework()])
            with pytest.raises(UnknownPrice, match="my-own"):
                arun(agent.run("hello"))
        agent = Agent(client=KINDS["responses"](sandbox), middleware=[meter.agent_framework()])
        for options in ({"tools": [OpenAIChatClient.get_web_search_tool()]}, {"fancy_new_field": 1}):
            with pytest.raises(Unbounded):
                arun(agent.run("hello", options=options))
        assert sandbox.requests == 0
        assert_sound(meter)


def test_near_the_cap_answers_get_shorter(sandbox: Sandbox) -> None:
    for kind, make in KINDS.items():
        for stream in (False, True):
            with Meter("memory://", budgets=["100 output tokens per session"]) as meter:
                options = {"max_tokens": 64}
                client = make(sandbox)
                agent = Agent(client=client, middleware=[meter.agent_framework()], default_options=options)

                async def ask(agent: Any = agent, stream: bool = stream) -> None:
                    await (drained(agent.run("hello", stream=True)) if stream else agent.run("hello"))

                arun(ask())
                arun(ask())
                with pytest.raises(BudgetExceeded):
                    arun(ask())
                assert [e.output_tokens for e in entries(meter)] == [64, 36], (kind, stream)


def test_instrumented_and_no_more(sandbox: Sandbox) -> None:
    """Agents and clients that were there before, and a client that no agent uses."""
    client = KINDS["elsewhere"](sandbox)
    agent = Agent(client=client, name="a")
    with Meter("memory://", budgets=["3 calls"]) as meter:
        with meter.instrument():
            arun(agent.run("hello", session=AgentSession(session_id="conv")))
            arun(client.get_response([Message(role="user", contents=["hello"])]))
            arun(Agent(client=KINDS["chat"](sandbox), name="b").run("hello"))
            with pytest.raises(BudgetExceeded):
                arun(agent.run("hello"))
        arun(agent.run("hello"))
        whose = [(e.session_id, e.tags.get("agent")) for e in entries(meter)]
        assert whose == [("conv", "a"), (None, None), (None, "b")]
        assert len(sandbox.bill.lines) == 4
        assert_sound(meter)


# ── nothing is let through ─────────────────────────────────────────────────────────────


def provider() -> Sandbox:
    return Sandbox(latency=0.05, output_tokens=ANSWER, chunk_tokens=100)


def settled(sandbox: Sandbox, least: int) -> None:
    for _ in range(200):  # a stream that was broken off is billed when the provider notices
        if len(sandbox.bill.lines) >= sandbox.requests:
            break
        time.sleep(0.05)
    assert_each_within(sandbox, EACH, EACH * least / 100)


def marked(who: str) -> dict[str, Any]:
    """Options that tell the provider whom a call is for, in a field that is none of ours."""
    return {"max_tokens": ANSWER, "user": who}


@pytest.mark.parametrize(("kind", "least"), [("chat", 97), ("elsewhere", 97), ("beneath", 99)])
def test_64_tasks_whose_attempts_fail(kind: str, least: int) -> None:
    """A 500 is billed here all the same: with the SDK metered, each of its attempts is held on its own."""
    with provider() as sandbox, Meter("memory://", budgets=[BUDGET]) as meter:
        if kind == "beneath":
            sandbox.fault("status", status=500, billed=True, times=6)
            client = beneath(OpenAIChatCompletionClient, meter, sandbox, MODEL, max_retries=2)
        else:
            client = KINDS[kind](sandbox, MODEL)
        agent = Agent(client=client, middleware=[meter.agent_framework()])

        async def work(number: int) -> None:
            who = person(number)

            async def call() -> None:
                # A session of its own for each: what was said would be asked again.
                with meter.session(f"of {who}", user=who):
                    await agent.run("hello there", options=marked(who))

            await auntil_exhausted(call)

        async def all_of_them() -> None:
            await asyncio.gather(*map(work, range(64)))

        arun(all_of_them())
        settled(sandbox, least)
        assert_sound(meter)
        assert_whose(meter, sandbox, exact=kind != "beneath")


@pytest.mark.parametrize("kind", ["chat", "elsewhere", "beneath"])
def test_48_streams_a_third_left_a_third_cancelled(kind: str) -> None:
    """The provider here bills a stream that is hung up on in full, the worst it could do."""
    with provider() as sandbox, Meter("memory://", budgets=[BUDGET]) as meter:
        if kind == "beneath":
            client = beneath(OpenAIChatCompletionClient, meter, sandbox, MODEL)
        else:
            client = KINDS[kind](sandbox, MODEL)
        agent = Agent(client=client, middleware=[meter.agent_framework()])

        async def stream(who: str, number: int) -> None:
            with meter.session(f"of {who}", user=who):
                async with agent.run("hello there", options=marked(who), stream=True) as updates:
                    place = 0
                    async for _ in updates:
                        place += 1
                        if place == 2 and number % 3 == 0:
                            break
                        if place == 2 and number % 3 == 1:
                            raise asyncio.CancelledError

        async def call(who: str, number: int) -> None:
            with suppress(asyncio.CancelledError):
                await asyncio.ensure_future(stream(who, number))

        async def work(number: int) -> None:
            await auntil_exhausted(lambda: call(person(number), number))

        async def all_of_them() -> None:
            await asyncio.gather(*map(work, range(48)))

        arun(all_of_them())
        settled(sandbox, 97)
        assert_sound(meter)
        assert_whose(meter, sandbox, exact=False)


# ── what of the framework's internals is touched ───────────────────────────────────────


def test_what_is_touched_is_there(sandbox: Sandbox) -> None:
    """`internals.py` of the door names the versions that were read; this says what has moved."""
    from behest_integrations.integrations.agent_framework import internals

    owner, name = internals.RUN
    assert {"middleware", "client_kwargs", "session"} <= set(
        inspect.signature(getattr(owner, name)).parameters
    )
    assert issubclass(Agent, owner)
    owner, name = internals.ASK
    assert "client_kwargs" in inspect.signature(getattr(owner, name)).parameters
    client = KINDS["chat"](sandbox)
    assert isinstance(client, owner)
    assert internals.name_of(client, {}) == MINI
    assert internals.counts_cache_within(client)
    assert not internals.counts_cache_within(KINDS["elsewhere"](sandbox))
