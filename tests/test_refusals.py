"""How a refusal arrives at each door: what is caught, where its numbers are, that nothing is tried again.

Each function here is a row of the table in `quickstarts/REFUSALS.md`: it gives the ways to ask at a door,
with all that the framework would do about an error. The rows of servers are made by the tests that run them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

import pytest
from refusal_table import CAP, PAGE, as_documented, refused, rows, write
from support import HELLO, aclient, arun, client

from behest_integrations import Meter
from behest_integrations.sandbox import Sandbox

Ways = Mapping[str, Callable[[], Any]]
DOORS: dict[str, Callable[[Meter, Sandbox, ExitStack], Ways]] = {}
SERVERS = ("LiteLLM's proxy", "the gateway, OpenAI SDK", "the gateway, Anthropic SDK", "the gateway, cURL")
"""Rows of test_litellm_proxy, test_gateway_clients and test_gateway_messages."""
ANSWER = 120  # of gpt-4o: $0.0012


def door(name: str) -> Callable[[Any], Any]:
    """Makes a row of a function from a meter, a sandbox, and what ends with its test, to the ways to ask."""

    def add(function: Any) -> Any:
        DOORS[name] = function
        return function

    return add


async def drained(stream: Any) -> None:
    async for _ in stream:
        pass


async def awaited(stream: Any) -> None:
    await drained(await stream)


@door("OpenAI SDK")
def openai(meter: Meter, sandbox: Sandbox, stack: ExitStack) -> Ways:
    chat = meter.openai(client(sandbox, max_retries=3))
    achat = meter.openai(aclient(sandbox, max_retries=3)).chat.completions
    asked: Any = {"model": "gpt-4o", "messages": HELLO, "max_tokens": ANSWER}
    return {
        "`create`": lambda: chat.chat.completions.create(**asked),
        "a stream": lambda: list(chat.chat.completions.create(**asked, stream=True)),
        "`responses.create`": lambda: chat.responses.create(
            model="gpt-4o", input="hello", max_output_tokens=ANSWER
        ),
        "awaited": lambda: arun(achat.create(**asked)),
        "an awaited stream": lambda: arun(awaited(achat.create(**asked, stream=True))),
    }


@door("Anthropic SDK")
def anthropic(meter: Meter, sandbox: Sandbox, stack: ExitStack) -> Ways:
    from anthropic import Anthropic, AsyncAnthropic

    options: Any = {"base_url": sandbox.url, "api_key": "none", "max_retries": 3}
    messages = meter.anthropic(Anthropic(**options)).messages
    amessages = meter.anthropic(AsyncAnthropic(**options)).messages
    asked: Any = {"model": "claude-haiku-4-5", "messages": HELLO, "max_tokens": 2 * ANSWER}

    async def stream() -> None:
        async with amessages.stream(**asked) as events:
            await drained(events)

    return {
        "`create`": lambda: messages.create(**asked),
        "a stream": lambda: list(messages.create(**asked, stream=True)),
        "awaited": lambda: arun(amessages.create(**asked)),
        "an awaited stream": lambda: arun(stream()),
    }


@door("google-genai")
def google_genai(meter: Meter, sandbox: Sandbox, stack: ExitStack) -> Ways:
    from google import genai

    retry: Any = {"attempts": 4, "initial_delay": 0.01}
    google = meter.google_genai(
        genai.Client(api_key="none", http_options={"base_url": sandbox.url, "retry_options": retry})
    )
    asked: Any = {
        "model": "gemini-2.5-flash", "contents": "hello", "config": {"max_output_tokens": 4 * ANSWER},
    }  # fmt: skip
    chat = google.chats.create(model=asked["model"], config=asked["config"])
    return {
        "`generate_content`": lambda: google.models.generate_content(**asked),
        "a stream": lambda: list(google.models.generate_content_stream(**asked)),
        "a chat": lambda: chat.send_message("hello"),
        "awaited": lambda: arun(google.aio.models.generate_content(**asked)),
        "an awaited stream": lambda: arun(awaited(google.aio.models.generate_content_stream(**asked))),
    }


@door("boto3 (`bedrock-runtime`)")
def boto3(meter: Meter, sandbox: Sandbox, stack: ExitStack) -> Ways:
    boto3 = pytest.importorskip("boto3")
    from botocore.config import Config

    bedrock = meter.bedrock(
        boto3.client(
            "bedrock-runtime",
            endpoint_url=sandbox.url,
            region_name="us-east-1",
            aws_access_key_id="none",
            aws_secret_access_key="none",
            config=Config(retries={"max_attempts": 3}),
        )
    )
    asked = {
        "modelId": "global.anthropic.claude-haiku-4-5-20251001-v1:0",
        "messages": [{"role": "user", "content": [{"text": "hello there"}]}],
        "inferenceConfig": {"maxTokens": 2 * ANSWER},
    }
    return {
        "`converse`": lambda: bedrock.converse(**asked),
        "`converse_stream`": lambda: list(bedrock.converse_stream(**asked)["stream"]),
    }


@door("httpx, httpx2")
def http(meter: Meter, sandbox: Sandbox, stack: ExitStack) -> Ways:
    import httpx

    host = f"{sandbox.host}:{sandbox.port}"
    url = f"{sandbox.base_url}/chat/completions"
    asked = {"model": "gpt-4o", "messages": HELLO, "max_tokens": ANSWER}
    blocking = meter.httpx(httpx.Client(), hosts=[host])
    other = meter.httpx(httpx.AsyncClient(), hosts=[host])

    def stream() -> None:
        with blocking.stream("POST", url, json={**asked, "stream": True}) as response:
            response.read()

    return {
        "a request": lambda: blocking.post(url, json=asked),
        "a stream": stream,
        "awaited": lambda: arun(other.post(url, json=asked)),
    }


# ── LangChain ──────────────────────────────────────────────────────────────────────────


def chat_openai(sandbox: Sandbox) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(
        model="gpt-4o", max_completion_tokens=ANSWER, max_retries=3, base_url=sandbox.base_url,
        api_key="none",
    )  # type: ignore[arg-type]  # fmt: skip


def runs(model: Any, asked: Any) -> Ways:
    return {
        "`invoke`": lambda: model.invoke(asked),
        "`stream`": lambda: list(model.stream(asked)),
        "`ainvoke`": lambda: arun(model.ainvoke(asked)),
        "`astream`": lambda: arun(drained(model.astream(asked))),
    }


@door("LangChain, callback")
def langchain(meter: Meter, sandbox: Sandbox, stack: ExitStack) -> Ways:
    from langchain_core.output_parsers import StrOutputParser

    chain = chat_openai(sandbox) | StrOutputParser()
    return runs(chain.with_config(callbacks=[meter.langchain()]), "hello")


@door("LangChain, wrapped model")
def langchain_model(meter: Meter, sandbox: Sandbox, stack: ExitStack) -> Ways:
    return runs(meter.langchain_model(chat_openai(sandbox)), "hello")


@door("LangChain, agent with middleware")
def langchain_middleware(meter: Meter, sandbox: Sandbox, stack: ExitStack) -> Ways:
    from langchain.agents import create_agent

    agent = create_agent(chat_openai(sandbox), middleware=[meter.langchain_middleware()])
    return runs(agent, {"messages": HELLO})


@door("LangGraph, callback")
def langgraph(meter: Meter, sandbox: Sandbox, stack: ExitStack) -> Ways:
    from langgraph.graph import END, START, MessagesState, StateGraph
    from langgraph.types import RetryPolicy

    if sys.version_info < (3, 11):
        pytest.skip("before Python 3.11, LangGraph hands no callbacks on in asynchronous nodes")
    model = chat_openai(sandbox)
    graph = StateGraph(MessagesState)
    graph.add_node(
        "ask", lambda state: {"messages": [model.invoke(state["messages"])]}, retry_policy=RetryPolicy()
    )
    graph.add_edge(START, "ask")
    graph.add_edge("ask", END)
    compiled = graph.compile().with_config(callbacks=[meter.langchain()])
    return runs(compiled, {"messages": HELLO})


# ── LlamaIndex ─────────────────────────────────────────────────────────────────────────


def llama(sandbox: Sandbox, **options: Any) -> Any:
    from llama_index.llms.openai import OpenAI

    return OpenAI(
        model="gpt-4o", max_tokens=ANSWER, max_retries=3, api_base=sandbox.base_url, api_key="none", **options
    )


def chats(llm: Any) -> Ways:
    from llama_index.core.llms import ChatMessage

    hello = [ChatMessage("hello")]
    return {
        "`chat`": lambda: llm.chat(hello),
        "`complete`": lambda: llm.complete("hello"),
        "`stream_chat`": lambda: list(llm.stream_chat(hello)),
        "`achat`": lambda: arun(llm.achat(hello)),
        "`astream_chat`": lambda: arun(awaited(llm.astream_chat(hello))),
    }


@door("LlamaIndex, handler")
def llama_index_handler(meter: Meter, sandbox: Sandbox, stack: ExitStack) -> Ways:
    from llama_index.core.callbacks import CallbackManager

    return chats(llama(sandbox, callback_manager=CallbackManager([meter.llama_index_handler()])))


@door("LlamaIndex, wrapped model or `Settings`")
def llama_index(meter: Meter, sandbox: Sandbox, stack: ExitStack) -> Ways:
    from llama_index.core import SummaryIndex
    from llama_index.core.schema import TextNode

    llm = meter.llama_index(llama(sandbox))
    engine = SummaryIndex([TextNode(text="one")]).as_query_engine(llm=llm)
    return {**chats(llm), "a query engine": lambda: engine.query("hello")}


@door("LlamaIndex, `FunctionAgent` and `AgentWorkflow`")
def llama_index_agent(meter: Meter, sandbox: Sandbox, stack: ExitStack) -> Ways:
    from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent

    def look(word: str) -> str:
        """Look a word up."""
        return "nothing"

    agent = FunctionAgent(name="one", description="one", tools=[look], llm=meter.llama_index(llama(sandbox)))
    workflow = AgentWorkflow(agents=[agent])

    async def run(asked: Any) -> None:
        await asked.run("hello")

    return {
        "`agent.run`": lambda: arun(run(agent)),
        "`workflow.run`": lambda: arun(run(workflow)),
    }


# ── other frameworks ───────────────────────────────────────────────────────────────────


@door("LiteLLM")
def litellm(meter: Meter, sandbox: Sandbox, stack: ExitStack) -> Ways:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask the network
    litellm = pytest.importorskip("litellm")
    asked: Any = {
        "model": "openai/gpt-4o", "api_base": sandbox.base_url, "api_key": "none", "messages": HELLO,
        "max_tokens": ANSWER,
    }  # fmt: skip
    instead = {"num_retries": 3, "fallbacks": [{**asked, "model": "openai/gpt-4o-mini"}]}
    stack.enter_context(meter.litellm())
    return {
        "`completion`": lambda: litellm.completion(**asked, **instead),
        "a stream": lambda: list(litellm.completion(**asked, stream=True)),
        "`acompletion`": lambda: arun(litellm.acompletion(**asked, **instead)),
        "an awaited stream": lambda: arun(awaited(litellm.acompletion(**asked, stream=True))),
    }


@door("LiteLLM's `Router`")
def litellm_router(meter: Meter, sandbox: Sandbox, stack: ExitStack) -> Ways:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    litellm = pytest.importorskip("litellm")
    to = {"api_base": sandbox.base_url, "api_key": "none", "max_tokens": ANSWER}
    models = [
        {"model_name": name, "litellm_params": {"model": f"openai/{model}", **to}}
        for name, model in (("first", "gpt-4o"), ("spare", "gpt-4o-mini"))
    ]
    router = litellm.Router(models, num_retries=3, fallbacks=[{"first": ["spare"]}])
    stack.enter_context(meter.litellm())
    return {
        "`completion`": lambda: router.completion("first", HELLO),
        "`acompletion`": lambda: arun(router.acompletion("first", HELLO)),
        "an awaited stream": lambda: arun(awaited(router.acompletion("first", HELLO, stream=True))),
    }


@door("Pydantic AI")
def pydantic_ai(meter: Meter, sandbox: Sandbox, stack: ExitStack) -> Ways:
    pytest.importorskip("pydantic_ai")
    from pydantic_ai import Agent, direct
    from pydantic_ai.messages import ModelRequest
    from pydantic_ai.models.fallback import FallbackModel
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(openai_client=aclient(sandbox, max_retries=3))
    model = meter.pydantic_ai(OpenAIChatModel("gpt-4o", provider=provider, settings={"max_tokens": ANSWER}))
    agent, fallback = Agent(model, retries=3), Agent(FallbackModel(model, model))
    hello = [ModelRequest.user_text_prompt("hello")]

    async def stream() -> None:
        async with agent.run_stream("hello") as streamed:
            await streamed.get_output()

    return {
        "`run`": lambda: arun(agent.run("hello")),
        "`run_stream`": lambda: arun(stream()),
        "a `FallbackModel`": lambda: arun(fallback.run("hello")),
        "`direct.model_request`": lambda: arun(direct.model_request(model, hello)),
    }


@door("OpenAI Agents SDK")
def openai_agents(meter: Meter, sandbox: Sandbox, stack: ExitStack) -> Ways:
    pytest.importorskip("agents")
    from agents import Agent, ModelSettings, Runner, set_tracing_disabled
    from agents.models.openai_chatcompletions import OpenAIChatCompletionsModel
    from agents.models.openai_responses import OpenAIResponsesModel

    set_tracing_disabled(True)
    settings = ModelSettings(max_tokens=ANSWER)
    chat, responses = (
        Agent(
            name="a", model_settings=settings,
            model=meter.openai_agents(model("gpt-4o", aclient(sandbox, max_retries=3))),
        )
        for model in (OpenAIChatCompletionsModel, OpenAIResponsesModel)
    )  # fmt: skip

    async def stream(agent: Any) -> None:
        await drained(Runner.run_streamed(agent, "hello").stream_events())

    return {
        "`Runner.run`": lambda: arun(Runner.run(chat, "hello")),
        "`run_streamed`": lambda: arun(stream(chat)),
        "of the Responses API": lambda: arun(Runner.run(responses, "hello")),
    }


@door("DSPy")
def dspy(meter: Meter, sandbox: Sandbox, stack: ExitStack) -> Ways:
    dspy = pytest.importorskip("dspy")
    pytest.importorskip("dspy.clients.execution", reason="dspy is older than 3.4")
    options = {"cache": False, "max_tokens": ANSWER, "num_retries": 3, "api_key": "none"}
    model = meter.dspy(dspy.LM("openai/gpt-4o", api_base=sandbox.base_url, **options))
    adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)  # a second try is a call of its own

    def look(word: str) -> str:
        """Look a word up."""
        return "nothing"

    def by(ask: Callable[[], Any]) -> Callable[[], Any]:
        def asked() -> None:
            with dspy.context(lm=model, adapter=adapter):
                try:
                    ask()
                except dspy.utils.exceptions.AdapterParseError:
                    pass  # what the sandbox says has no fields

        return asked

    predict = dspy.Predict("question -> answer")
    return {
        "a `dspy.LM`": by(lambda: model("hello")),
        "awaited": by(lambda: arun(model.acall("hello"))),
        "`Predict`": by(lambda: predict(question="hello")),
        "`ReAct`": by(lambda: dspy.ReAct("question -> answer", tools=[look])(question="hello")),
        "`streamify`": by(lambda: arun(drained(dspy.streamify(predict)(question="hello")))),
        "`Parallel`, once it gives up": by(
            lambda: dspy.Parallel(num_threads=1, max_errors=1, disable_progress_bar=True)(
                [(lambda **_: model("hello"), {})]
            )
        ),
    }


@door("Google's ADK")
def google_adk(meter: Meter, sandbox: Sandbox, stack: ExitStack) -> Ways:
    pytest.importorskip("google.adk.runners", reason="google-adk is not installed")
    from google.adk.agents import LlmAgent
    from google.adk.agents.run_config import RunConfig, StreamingMode
    from google.adk.models.google_llm import Gemini
    from google.adk.runners import Runner
    from google.adk.sessions import InMemorySessionService
    from google.genai import types

    retries = types.HttpRetryOptions(attempts=4, initial_delay=0.01)
    model = Gemini(model="gemini-2.5-flash", base_url=sandbox.url, retry_options=retries)
    stack.enter_context(pytest.MonkeyPatch.context()).setenv("GOOGLE_API_KEY", "none")
    config = types.GenerateContentConfig(max_output_tokens=4 * ANSWER)
    agent = LlmAgent(name="a", model=model, generate_content_config=config)
    hello = types.Content(role="user", parts=[types.Part(text="hello")])

    def ask(streamed: bool) -> Any:
        runner = Runner(
            app_name="app", agent=agent, plugins=[meter.google_adk()],
            session_service=InMemorySessionService(), auto_create_session=True,
        )  # fmt: skip
        how = RunConfig(streaming_mode=StreamingMode.SSE if streamed else StreamingMode.NONE)
        return arun(drained(runner.run_async(user_id="u", session_id="s", new_message=hello, run_config=how)))

    return {"`run_async`": lambda: ask(False), "`run_async`, streamed": lambda: ask(True)}


@door("Microsoft Agent Framework")
def agent_framework(meter: Meter, sandbox: Sandbox, stack: ExitStack) -> Ways:
    pytest.importorskip("agent_framework_openai", reason="agent-framework-openai is not installed")
    from agent_framework import Agent, WorkflowBuilder
    from agent_framework.openai import OpenAIChatClient, OpenAIChatCompletionClient

    chat, responses = (
        Agent(
            client=cls(model="gpt-4o", async_client=meter.openai(aclient(sandbox, max_retries=3))),
            middleware=[meter.agent_framework()], default_options={"max_tokens": ANSWER},
        )
        for cls in (OpenAIChatCompletionClient, OpenAIChatClient)
    )  # fmt: skip
    flow = WorkflowBuilder(start_executor=chat).build()
    return {
        "`agent.run`": lambda: arun(chat.run("hello")),
        "streamed": lambda: arun(drained(chat.run("hello", stream=True))),
        "of the Responses API": lambda: arun(responses.run("hello")),
        "a workflow": lambda: arun(flow.run("hello")),
    }


@door("Agno")
def agno(meter: Meter, sandbox: Sandbox, stack: ExitStack) -> Ways:
    pytest.importorskip("agno")
    from agno.agent import Agent
    from agno.models.openai import OpenAIChat
    from agno.team import Team

    stack.enter_context(meter.agno())
    tries: dict[str, Any] = {"retries": 3, "delay_between_retries": 1}
    to: dict[str, Any] = {"base_url": sandbox.base_url, "api_key": "none", "max_tokens": ANSWER}
    model, another = (OpenAIChat(id="gpt-4o", max_retries=3, **to, **tries) for _ in range(2))
    agent = Agent(model=model, fallback_models=[another], **tries)
    team = Team(model=model, members=[Agent(model=another)], **tries)
    return {
        "`run`": lambda: agent.run("hello"),
        "a stream": lambda: list(agent.run("hello", stream=True)),
        "`arun`": lambda: arun(agent.arun("hello")),
        "an awaited stream": lambda: arun(drained(agent.arun("hello", stream=True))),
        "a team": lambda: team.run("hello"),
    }


@door("CrewAI")
def crewai(meter: Meter, sandbox: Sandbox, stack: ExitStack) -> Ways:
    if find_spec("crewai") is None:
        pytest.skip("crewai is not installed")
    for name in ("CREWAI_DISABLE_TELEMETRY", "OTEL_SDK_DISABLED"):
        os.environ.setdefault(name, "true")
    os.environ.setdefault("CREWAI_TRACING_ENABLED", "false")
    from crewai import LLM, Agent, Crew, Task

    stack.enter_context(meter.crewai())
    llm = LLM(
        model="openai/gpt-4o", base_url=sandbox.base_url, api_key="none", max_tokens=ANSWER, max_retries=3
    )
    agent = Agent(role="a", goal="g", backstory="b", llm=llm, max_retry_limit=3)

    def crew(**options: Any) -> Any:
        tasks = [Task(description="hello", expected_output="x", agent=agent)]
        return Crew(agents=[agent], tasks=tasks, **options)

    return {
        "`kickoff`": lambda: crew().kickoff(),
        "a stream": lambda: list(crew(stream=True).kickoff()),
        "`kickoff_async`": lambda: arun(crew().kickoff_async()),
        "`akickoff`": lambda: arun(crew().akickoff()),
        "an awaited stream": lambda: arun(awaited(crew(stream=True).kickoff_async())),
        "an agent": lambda: agent.kickoff("hello"),
    }


@door("Strands")
def strands(meter: Meter, sandbox: Sandbox, stack: ExitStack) -> Ways:
    pytest.importorskip("strands.multiagent.swarm", reason="strands-agents is not installed")
    from strands import Agent
    from strands.models.openai import OpenAIModel
    from strands.multiagent import Swarm

    stack.enter_context(meter.strands())
    to = {"base_url": sandbox.base_url, "api_key": "none", "max_retries": 3}

    def agent(name: str = "a") -> Any:
        model = OpenAIModel(client_args=to, model_id="gpt-4o", params={"max_tokens": ANSWER})
        return Agent(name=name, model=model, callback_handler=None)

    return {
        "an agent": lambda: agent()("hello"),
        "`invoke_async`": lambda: arun(agent().invoke_async("hello")),
        "`stream_async`": lambda: arun(drained(agent().stream_async("hello"))),
        "a swarm": lambda: Swarm([agent("a"), agent("b")])("hello"),
    }


# ── each of them ───────────────────────────────────────────────────────────────────────

NEEDS = {
    "Anthropic SDK": "anthropic",
    "google-genai": "google.genai",
    "LangChain": "langchain_openai",
    "LangGraph": "langchain_openai",
    "LlamaIndex": "llama_index.llms.openai",
}


@pytest.mark.parametrize("name", DOORS)
def test_a_refusal_arrives_as_the_page_says(name: str) -> None:
    for prefix, package in NEEDS.items():
        if name.startswith(prefix):
            pytest.importorskip(package, reason=f"{package} is not installed")
    options: Any = {"budgets": [CAP], "lower_limits": False, "service_tier": "default"}
    # LiteLLM 1.108 sends a variable of its own to the provider, where it has fallbacks.
    options["allow_fields"] = ["drops_unsupported"]
    found = {}
    with Sandbox(output_tokens=100) as sandbox, Meter("memory://", **options) as meter, ExitStack() as stack:
        for way, ask in DOORS[name](meter, sandbox, stack).items():
            with meter.session(f"{name}, {way}"):
                found[way] = refused(meter, sandbox, ask)
    assert {each.again for each in found.values()} == {0}, "a refusal was asked again"
    assert {each.reached for each in found.values()} == {0}, "a refused call reached the provider"
    as_documented(name, found)


def test_every_row_of_the_page_has_its_test() -> None:
    if os.environ.get("BEHEST_WRITE_DOCS"):
        write(rows(), [*DOORS, *SERVERS])
    assert list(rows()) == [*DOORS, *SERVERS]
    assert PAGE.name in (PAGE.parent / "README.md").read_text(encoding="utf-8")
