"""`behest run` and `meter.instrument()`: programs with no line of ours in them, held to a cap."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from decimal import Decimal
from pathlib import Path

import pytest
from support import HELLO, aclient, assert_agrees, assert_sound, client, entries

from behest_integrations import BudgetExceeded, Meter
from behest_integrations.sandbox import Sandbox

# The quickstarts' plain versions: the same frameworks, asked on and on.
PROGRAMS = {
    "openai, looked for before": """
        from importlib.util import find_spec
        assert find_spec("openai") is not None
        from openai import OpenAI
        client = OpenAI(base_url=URL, api_key="none")
        messages = [{"role": "user", "content": "Go on."}]
        for _ in range(50):
            client.chat.completions.create(model="gpt-4o-mini", messages=messages)
    """,
    "google_genai": """
        import asyncio
        from google import genai
        client = genai.Client(api_key="none", http_options={"base_url": URL.removesuffix("/v1")})
        asked = {
            "model": "gemini-2.5-flash", "contents": "Go on.", "config": {"max_output_tokens": 100}
        }
        async def on_and_on():
            for _ in range(50):
                client.models.generate_content(**asked)
                await client.aio.models.generate_content(**asked)
                async for _ in await client.aio.models.generate_content_stream(**asked):
                    pass
        asyncio.run(on_and_on())
    """,
    "openai": """
        from openai import OpenAI
        client = OpenAI(base_url=URL, api_key="none")
        for _ in range(100):
            client.chat.completions.create(
                model="gpt-4o-mini", messages=[{"role": "user", "content": "Go on."}], max_tokens=100
            )
    """,
    "openai, threads and streams": """
        import threading
        from openai import OpenAI
        client = OpenAI(base_url=URL, api_key="none")
        failed = []
        def work():
            try:
                for _ in range(50):
                    for _ in client.chat.completions.create(
                        model="gpt-4o-mini", messages=[{"role": "user", "content": "Go on."}],
                        max_tokens=100, stream=True,
                    ):
                        pass
            except Exception as error:
                failed.append(error)
        threads = [threading.Thread(target=work) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        raise failed[0]
    """,
    "langchain": """
        from langchain_core.output_parsers import StrOutputParser
        from langchain_core.prompts import ChatPromptTemplate
        from langchain_openai import ChatOpenAI
        prompt = ChatPromptTemplate.from_messages([("user", "{question}")])
        model = ChatOpenAI(model="gpt-4o-mini", max_completion_tokens=100, base_url=URL, api_key="none")
        chain = prompt | model | StrOutputParser()
        for _ in range(50):
            chain.invoke({"question": "Go on."})
            "".join(chain.stream({"question": "Go on."}))
    """,
    "langgraph": """
        from langchain.agents import create_agent
        from langchain_openai import ChatOpenAI
        def search(query: str) -> str:
            "Search."
            return "nothing"
        model = ChatOpenAI(model="gpt-4o-mini", max_completion_tokens=100, base_url=URL, api_key="none")
        agent = create_agent(model, tools=[search])
        for _ in range(100):
            agent.invoke({"messages": [{"role": "user", "content": "Go on."}]})
    """,
    "llama_index": """
        import asyncio
        from llama_index.core import Document, Settings, VectorStoreIndex
        from llama_index.core.agent.workflow import FunctionAgent
        from llama_index.embeddings.openai import OpenAIEmbedding
        from llama_index.llms.openai import OpenAI
        Settings.llm = OpenAI(model="gpt-4o-mini", api_base=URL, api_key="none", max_tokens=100)
        Settings.embed_model = OpenAIEmbedding(
            model_name="text-embedding-3-small", api_base=URL, api_key="none"
        )
        index = VectorStoreIndex.from_documents([Document(text="one"), Document(text="two")])
        def price(word: str) -> str:
            "Price."
            return "nothing"
        async def ask():
            return await FunctionAgent(tools=[price], llm=Settings.llm).run("Go on.")
        for _ in range(50):
            index.as_query_engine().query("Go on.")
            "".join(index.as_query_engine(streaming=True).query("Go on.").response_gen)
            asyncio.run(ask())
    """,
    "pydantic_ai": """
        import asyncio
        from pydantic_ai import Agent
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider
        provider = OpenAIProvider(base_url=URL, api_key="none")
        agent = Agent(OpenAIChatModel("gpt-4o-mini", provider=provider, settings={"max_tokens": 100}))
        @agent.tool_plain
        def search(query: str) -> str:
            "Search."
            return "nothing"
        async def stream():
            async with agent.run_stream("Go on.") as streamed:
                await streamed.get_output()
        for _ in range(50):
            agent.run_sync("Go on.")
            asyncio.run(stream())
    """,
    "openai_agents": """
        import asyncio
        from agents import Agent, Runner, function_tool, set_default_openai_client, set_tracing_disabled
        from openai import AsyncOpenAI
        set_tracing_disabled(True)
        set_default_openai_client(AsyncOpenAI(base_url=URL, api_key="none"))
        @function_tool
        def search(query: str) -> str:
            "Search."
            return "nothing"
        agent = Agent(name="a", model="gpt-4o-mini", tools=[search])
        async def work():
            for _ in range(50):
                await Runner.run(agent, "Go on.")
                async for _ in Runner.run_streamed(agent, "Go on.").stream_events():
                    pass
        asyncio.run(work())
    """,
    "agent_framework": """
        import asyncio
        from agent_framework import Agent, tool
        from agent_framework.openai import OpenAIChatCompletionClient
        @tool
        def search(query: str) -> str:
            "Search."
            return "nothing"
        client = OpenAIChatCompletionClient(model="gpt-4o-mini", base_url=URL, api_key="none")
        agent = Agent(client=client, name="a", tools=[search], default_options={"max_tokens": 100})
        async def work():
            for _ in range(50):
                await agent.run("Go on.")
                async for _ in agent.run("Go on.", stream=True):
                    pass
        asyncio.run(work())
    """,
    "google_adk": """
        import asyncio, os
        os.environ |= {"GOOGLE_GEMINI_BASE_URL": URL.removesuffix("/v1"), "GOOGLE_API_KEY": "none"}
        from google.adk.agents import LlmAgent
        from google.adk.runners import InMemoryRunner
        from google.genai import types
        def search(query: str) -> str:
            "Search."
            return "nothing"
        limit = types.GenerateContentConfig(max_output_tokens=100)
        agent = LlmAgent(name="a", model="gemini-2.5-flash", tools=[search], generate_content_config=limit)
        asyncio.run(InMemoryRunner(agent=agent).run_debug(["Go on."] * 50, quiet=True))
    """,
    "dspy": """
        import dspy
        to = {"api_base": URL, "api_key": "none", "cache": False, "max_tokens": 100}
        dspy.configure(lm=dspy.LM("openai/gpt-4o-mini", **to))
        asked = [dspy.Example(question=str(number)).with_inputs("question") for number in range(4)]
        for _ in range(50):
            dspy.settings.lm("Go on.")
            dspy.Predict("question -> answer").batch(asked, max_errors=1, disable_progress_bar=True)
    """,
    "strands": """
        import asyncio
        from strands import Agent, tool
        from strands.models.openai import OpenAIModel
        from strands.multiagent import Swarm
        @tool
        def search(query: str) -> str:
            "Search."
            return "nothing"
        def agent(name, **options):
            to = {"base_url": URL, "api_key": "none"}
            model = OpenAIModel(client_args=to, model_id="gpt-4o-mini", params={"max_tokens": 101})
            return Agent(name=name, model=model, callback_handler=None, **options)
        async def stream():
            async for _ in agent("a").stream_async("Go on."):
                pass
        for _ in range(50):
            agent("a", tools=[search])("Go on.")
            asyncio.run(stream())
            Swarm([agent("a"), agent("b")])("Go on.")
    """,
    "crewai": """
        import asyncio
        import os
        os.environ["CREWAI_DISABLE_TELEMETRY"] = os.environ["OTEL_SDK_DISABLED"] = "true"
        os.environ["CREWAI_TRACING_ENABLED"] = "false"
        from crewai import LLM, Agent, Crew, Task
        from crewai.tools import tool
        @tool("search")
        def search(query: str) -> str:
            "Search."
            return "nothing"
        llm = LLM(model="openai/gpt-4o-mini", base_url=URL, api_key="none", max_tokens=100)
        agent = Agent(role="r", goal="g", backstory="b", llm=llm, tools=[search])
        for _ in range(50):
            asked = Task(description="Go on.", expected_output="x", agent=agent)
            Crew(agents=[agent], tasks=[asked]).kickoff()
            list(Crew(agents=[agent], tasks=[asked], stream=True).kickoff())
            asyncio.run(agent.kickoff_async("Go on."))
    """,
    "agno": """
        import asyncio
        from agno.agent import Agent
        from agno.models.openai import OpenAIChat
        from agno.team import Team
        def search(query: str) -> str:
            "Search."
            return "nothing"
        def made():  # a model's connections belong to one event loop
            return OpenAIChat(id="gpt-4o-mini", base_url=URL, api_key="none", retries=2)
        agent = Agent(model=made(), tools=[search], retries=2)
        team = Team(model=made(), members=[agent])
        async def stream():
            async for _ in Agent(model=made(), tools=[search], retries=2).arun("Go on.", stream=True):
                pass
        for _ in range(50):
            agent.run("Go on.")
            team.run("Go on.")
            asyncio.run(stream())
    """,
    "litellm": """
        import os
        os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
        from litellm import Router, completion
        to = {"model": "openai/gpt-4o-mini", "api_base": URL, "api_key": "none", "max_tokens": 100}
        messages = [{"role": "user", "content": "Go on."}]
        router = Router([{"model_name": "m", "litellm_params": to}], num_retries=3)
        for _ in range(50):
            for _ in completion(**to, messages=messages, stream=True):
                pass
            router.completion("m", messages)
    """,
}
NEEDS = {
    "strands": "strands.multiagent.swarm",
    "crewai": "crewai",
    "agno": "agno",
    "google_genai": "google.genai",
    "agent_framework": "agent_framework_openai",
    "dspy": "dspy.clients.execution",
    "google_adk": "google.adk.runners",
    "litellm": "litellm",
    "openai_agents": "agents",
    "langchain": "langchain_openai",
    "langgraph": "langgraph",
    "llama_index": "llama_index",
    "pydantic_ai": "pydantic_ai",
}
CAP = Decimal("0.001")
REFUSED = ("refused the call before it reached the provider", "tokens of an answer, which was cut off there")


def behest(*args: str, code: str, folder: Path, url: str = "") -> subprocess.CompletedProcess[str]:
    program = folder / "program.py"
    program.write_text(f"URL = {url!r}\n" + textwrap.dedent(code), encoding="utf-8")
    command = [sys.executable, "-m", "behest_integrations.cli", "run", *args[:-1], str(program), args[-1]]
    return subprocess.run(
        [c for c in command if c],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_ended_by_its_budget(name: str, tmp_path: Path) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    with Sandbox(output_tokens=100) as sandbox:
        done = behest(
            "--budget", f"${CAP} per session", "", code=PROGRAMS[name], folder=tmp_path, url=sandbox.base_url
        )
        assert done.returncode == 3, done.stderr
        assert "the program was ended by its budget" in done.stderr
        assert any(words in done.stderr for words in REFUSED)
        assert "Traceback" not in done.stderr.split("the program was ended")[1]
        asked = "gemini-2.5-flash" if name.startswith("google") else "gpt-4o-mini"
        assert asked in done.stderr.split("the program was ended")[1]
        # Callbacks hold a call's worst case before the client below may lower it; older versions of
        # Pydantic AI end at an answer that was cut off; the ADK asks all that was said again.
        least = {"pydantic_ai": 50, "google_adk": 40}.get(name, 80)
        assert CAP * least / 100 <= sandbox.bill.total() <= CAP


def test_a_program_is_run_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("word = 'beside'", encoding="utf-8")
    code = """
        import sys
        import beside
        print(__name__, beside.word, sys.argv[1:], sys.argv[0].endswith("program.py"))
        sys.exit(5)
    """
    done = behest("--budget", "$1", "--flag", code=code, folder=tmp_path)
    assert done.stdout.strip() == "__main__ beside ['--flag'] True"
    assert done.returncode == 5
    assert "total" in done.stderr


def test_its_own_errors_are_its_own(tmp_path: Path) -> None:
    done = behest("--budget", "$1", "", code="1 / 0", folder=tmp_path)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "ended by its budget" not in done.stderr
    done = behest("--budget", "$1", "", code="raise SystemExit('sorry')", folder=tmp_path)
    assert done.returncode == 1
    assert "sorry" in done.stderr


def test_a_budget_must_be_said_and_must_parse(tmp_path: Path) -> None:
    done = behest("", code="", folder=tmp_path)
    assert done.returncode == 2
    assert "--budget" in done.stderr
    done = behest("--budget", "much", "", code="", folder=tmp_path)
    assert done.returncode == 1
    assert "much" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_call_without_a_price_is_not_called_a_budget(tmp_path: Path) -> None:
    code = """
        from openai import OpenAI
        client = OpenAI(base_url=URL, api_key="none")
        client.chat.completions.create(model="my-model", messages=[{"role": "user", "content": "Go on."}])
    """
    done = behest("--budget", "$1", "", code=code, folder=tmp_path, url="http://127.0.0.1:9/v1")
    assert done.returncode == 3
    assert "no price is known for 'my-model'" in done.stderr
    assert "ended by its budget" not in done.stderr
    assert '`aliases."my-model" = "gpt-4o"`' in done.stderr
    assert "Meter(" not in done.stderr


def test_a_report_that_there_cannot_be_is_told_before_the_program_runs(tmp_path: Path) -> None:
    done = behest("--budget", "$1", "--by", "colour", "", code="print('it ran')", folder=tmp_path)
    assert done.returncode == 1
    assert "cannot report by 'colour'" in done.stderr
    assert "it ran" not in done.stdout


def test_session_and_user_are_those_of_all_its_threads(tmp_path: Path) -> None:
    code = """
        import threading
        from openai import OpenAI
        client = OpenAI(base_url=URL, api_key="none")
        def ask():
            client.chat.completions.create(
                model="gpt-4o-mini", messages=[{"role": "user", "content": "Hello."}], max_tokens=5
            )
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        ask()
    """
    with Sandbox() as sandbox:
        arguments = (
            "--budget",
            "$1 per session",
            "--session",
            "nightly",
            "--user",
            "cron",
            "--store",
            "b.db",
            "",
        )
        done = behest(*arguments, code=code, folder=tmp_path, url=sandbox.base_url)
    assert done.returncode == 0, done.stderr
    with Meter(f"sqlite:///{tmp_path}/b.db") as meter:
        assert {(e.session_id, e.user_id) for e in entries(meter)} == {("nightly", "cron")}
        assert len(entries(meter)) == 2


def test_instrumentation_from_inside(sandbox: Sandbox) -> None:
    import asyncio

    from openai import OpenAI

    before = client(sandbox)
    with Meter("memory://", budgets=["3 calls"]) as meter:
        with meter.instrument():
            made = client(sandbox)
            assert isinstance(made, OpenAI)
            ask = {"model": "gpt-4o-mini", "messages": HELLO, "max_tokens": 5}
            made.chat.completions.create(**ask)  # type: ignore[call-overload]
            made.with_options(timeout=9).chat.completions.create(**ask)  # type: ignore[call-overload]

            async def arun() -> None:
                async with aclient(sandbox) as other:
                    await other.chat.completions.create(**ask)

            asyncio.run(arun())
            with pytest.raises(BudgetExceeded):
                made.chat.completions.create(**ask)  # type: ignore[call-overload]
        after = client(sandbox)
        assert type(after) is type(before) is OpenAI
        after.chat.completions.create(**ask)  # type: ignore[call-overload]
        assert len(entries(meter)) == 3
        assert len(sandbox.bill.lines) == 4
        assert_sound(meter)


def test_instrumentation_before_and_after_the_import(tmp_path: Path) -> None:
    code = """
        import sys
        from behest_integrations import Meter
        meter = Meter("memory://", budgets=["$1"])
        if "early" in sys.argv:
            import openai
        metering = meter.instrument()
        import openai
        print(type(openai.OpenAI(api_key="none")).__mro__[1].__name__)
        metering.remove()
        print(type(openai.OpenAI(api_key="none")).__mro__[1].__name__)
    """
    for when in ("early", "late"):
        said = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), when], capture_output=True, text=True, timeout=60
        )
        assert said.stdout.split() == ["_MeteredSync", "SyncAPIClient"], said.stderr


def test_a_call_that_is_seen_by_every_instrumentation_is_one_entry(sandbox: Sandbox) -> None:
    pytest.importorskip("langchain_openai")
    from langchain_openai import ChatOpenAI

    with Meter("memory://", budgets=["$1"]) as meter, meter.instrument():
        model = ChatOpenAI(
            model="gpt-4o-mini",
            max_completion_tokens=20,
            base_url=sandbox.base_url,
            api_key="none",  # type: ignore[arg-type]
        )
        model.invoke("hello", {"metadata": {"session_id": "s"}})
        list(model.stream("hello", {"metadata": {"session_id": "s"}}))
        assert [(e.session_id, e.status) for e in entries(meter)] == [("s", "settled")] * 2
        assert_agrees(meter, sandbox)
        assert_sound(meter)
