"""The loop guard: what is refused is what goes round in circles, and nothing else."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic_support
import pytest
from gateway_support import Gateway, chat
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import NotFoundError
from support import HELLO, arun, assert_sound, client, entries

from behest_integrations import CallRefused, ConfigError, LoopDetected, Meter
from behest_integrations.config import load
from behest_integrations.engine.guards import repeated
from behest_integrations.reports import Asked
from behest_integrations.reports.audit import decisions
from behest_integrations.sandbox import Sandbox
from behest_integrations.wire.tool_calls import conversation_of, steps_back

SECRET = "what was looked for"
Call = tuple[str, dict[str, Any]]


# ── one history, as each wire has it ───────────────────────────────────────────────────


def as_chat(steps: list[list[Call]]) -> list[Any]:
    said: list[Any] = [{"role": "user", "content": "go"}]
    for number, step in enumerate(steps):
        calls = [
            {
                "id": f"c{number}_{place}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for place, (name, arguments) in enumerate(step)
        ]
        said.append({"role": "assistant", "content": None, "tool_calls": calls})
        said += [{"role": "tool", "tool_call_id": call["id"], "content": "x"} for call in calls]
    return said


def as_messages(steps: list[list[Call]]) -> list[Any]:
    said: list[Any] = [{"role": "user", "content": "go"}]
    for number, step in enumerate(steps):
        calls = [
            {"type": "tool_use", "id": f"c{number}_{place}", "name": name, "input": arguments}
            for place, (name, arguments) in enumerate(step)
        ]
        said.append({"role": "assistant", "content": calls})
        results = [{"type": "tool_result", "tool_use_id": call["id"], "content": "x"} for call in calls]
        said.append({"role": "user", "content": results})
    return said


def as_items(steps: list[list[Call]]) -> list[Any]:
    said: list[Any] = [{"role": "user", "content": "go"}]
    for number, step in enumerate(steps):
        for place, (name, arguments) in enumerate(step):
            call = {"type": "function_call", "call_id": f"c{number}_{place}", "name": name}
            said.append({**call, "arguments": json.dumps(arguments)})
        for place in range(len(step)):
            said.append({"type": "function_call_output", "call_id": f"c{number}_{place}", "output": "x"})
    return said


def as_contents(steps: list[list[Call]]) -> list[Any]:
    said: list[Any] = [{"role": "user", "parts": [{"text": "go"}]}]
    for step in steps:
        parts = [{"functionCall": {"name": name, "args": arguments}} for name, arguments in step]
        results = [{"functionResponse": {"name": name, "response": {}}} for name, _ in step]
        said += [{"role": "model", "parts": parts}, {"role": "user", "parts": results}]
    return said


WIRES = {"messages": [as_chat, as_messages], "input": [as_items], "contents": [as_contents]}
ALL = [(field, make) for field, makes in WIRES.items() for make in makes]
SAME: list[list[Call]] = [[("search", {"q": SECRET, "n": 1})]] * 5


def found(field: str, said: list[Any], *allowed: str) -> tuple[str, int]:
    return repeated(steps_back(conversation_of({field: said})), allowed)


@pytest.mark.parametrize(("field", "make"), ALL)
def test_every_wire_shows_it(field: str, make: Any) -> None:
    assert found(field, make(SAME)) == ("search", 5)
    assert found(field, make(SAME[:2])) == ("search", 2)
    other: list[Call] = [("search", {"q": "another", "n": 1})]
    assert found(field, make([*SAME[:3], other, *SAME[:2]])) == ("search", 2)
    assert found(field, make([*SAME, other])) == ("search", 1)
    beside: list[list[Call]] = [[("fetch", {"n": n}), ("search", {"q": SECRET})] for n in range(4)]
    assert found(field, make(beside)) == ("search", 4)
    assert found(field, make(SAME), "sea*")[1] == 0
    assert found(field, []) == ("", 0)


def test_the_order_of_arguments_and_their_spacing_say_nothing() -> None:
    said = as_chat(SAME[:2])
    said[3]["tool_calls"][0]["function"]["arguments"] = '{ "n":1,"q":  "what was looked for"}'
    assert found("messages", said) == ("search", 2)


@pytest.mark.parametrize(("field", "make"), ALL)
def test_a_person_who_speaks_begins_anew(field: str, make: Any) -> None:
    """Whoever asks for the same thing five times gets it five times."""
    said = make(SAME[:4])
    assert found(field, [*said, *make(SAME[:1])]) == ("search", 1)
    assert found(field, [*said, *make([])]) == ("", 0)


NAMES = st.sampled_from(["search", "fetch", "wait_for_job", "write"])
CALL = st.tuples(NAMES, st.dictionaries(st.sampled_from("ab"), st.integers(0, 2), max_size=2))


def in_a_row(steps: list[list[Call]], allowed: tuple[str, ...] = ()) -> int:
    """By the definition: the most steps at the end that all have one call in common."""
    most = 0
    for call in steps[-1] if steps else []:
        if call[0] in allowed:
            continue
        times = 0
        while times < len(steps) and call in steps[-1 - times]:
            times += 1
        most = max(most, times)
    return most


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(CALL, min_size=1, max_size=3), max_size=8), st.sampled_from(ALL))
def test_what_is_counted_is_what_is_the_same_in_a_row(steps: list[list[Call]], wire: Any) -> None:
    field, make = wire
    assert found(field, make(steps))[1] == in_a_row(steps)
    assert found(field, make(steps), "wait_*")[1] == in_a_row(steps, ("wait_for_job",))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30, unique=True), st.sampled_from(ALL))
def test_other_arguments_are_no_loop(numbers: list[int], wire: Any) -> None:
    field, make = wire
    assert found(field, make([[("read", {"page": n})] for n in numbers]))[1] == 1
    turns: list[list[Call]] = [[("read", {"page": 1})], [("next", {})]] * len(numbers)
    assert found(field, make(turns))[1] == 1


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.text(max_size=5) | st.integers(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["role", "type", "content", "tool_calls", "function", "name", "arguments", "parts"]
                ),
                inner | st.sampled_from(["assistant", "user", "function_call", "tool_use"]),
                max_size=4,
            )
        ),
        max_leaves=20,
    )
)
def test_whatever_is_sent_is_looked_at_without_an_error(said: Any) -> None:
    for field in ("messages", "input", "contents"):
        found(field, [said] if isinstance(said, dict) else said)


# ── settings ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("guards", "said"),
    [
        ({"same_tool_calls": 5}, "same_tool_call"),
        ({"same_tool_call": 1}, "same_tool_call"),
        ({"steps": 0}, "steps"),
        ({"minutes": 0}, "minutes"),
        ({"allow_repeats": "wait"}, "list"),
        (5, "guards are Guards or a table"),
    ],
)
def test_guards_that_cannot_be_meant(guards: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Meter("memory://", guards=guards)


def test_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "behest.toml"
    file.write_text(
        'store = "memory://"\n[guards]\nsame_tool_call = 5\nsteps = 200\nminutes = 30\n'
        'allow_repeats = ["wait_for_job"]\n'
    )
    assert load(file).guards is not None
    with Meter.from_toml(file) as meter:
        assert meter.guarding is not None
        assert meter.guarding.guards.allow_repeats == ("wait_for_job",)
        assert str(meter.guarding.budget) == "200 calls per session as loop-guard"


def test_the_error_says_what_was_repeated_and_survives_a_process_pool() -> None:
    error = LoopDetected("same_tool_call", 5, 5, session="s", tool="search")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, CallRefused)
    assert (str(again), vars(again)) == (str(error), vars(error))
    assert "'search' has been called 5 times in a row" in str(error)
    assert len(LoopDetected("same_tool_call", 5, 5, tool="x" * 500).tool or "") == 64


# ── the doors ──────────────────────────────────────────────────────────────────────────


def circle(meter: Meter, call: Any, sandbox: Sandbox) -> LoopDetected:
    """Four of the same are let through, and five are not: what is raised, once, by whom."""
    with meter.session("s", user="ada"):
        call(SAME[:4])
        asked = sandbox.requests
        with pytest.raises(LoopDetected) as caught:
            call(SAME)
    assert asked == sandbox.requests == 1
    error = caught.value
    assert (error.guard, error.tool, error.times, error.limit) == ("same_tool_call", "search", 5, 5)
    assert error.session == "s"
    assert SECRET not in str(error)
    meter.flush()
    (told,) = decisions(meter.ledger, Asked(), kinds=("refused",))
    assert (told["rule"], told["session_id"], told["user_id"]) == ("guards.same_tool_call", "s", "ada")
    assert told["details"] == {"times": 5, "why": "loop"}
    assert_sound(meter)
    return error


GUARDS = {"same_tool_call": 5}
TOOLS: Any = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize("stream", [False, True])
def test_openais_client(stream: bool, store: str, sandbox: Sandbox) -> None:
    with Meter(store, budgets=["$1"], guards=GUARDS) as meter:
        metered = meter.openai(client(sandbox, max_retries=2))

        def call(steps: list[list[Call]]) -> None:
            answer = metered.chat.completions.create(model="gpt-4o", messages=as_chat(steps), stream=stream)
            if stream:
                list(answer)

        circle(meter, call, sandbox)


def test_openais_responses(sandbox: Sandbox) -> None:
    with Meter("memory://", guards=GUARDS) as meter:
        metered = meter.openai(client(sandbox, max_retries=2))
        circle(meter, lambda s: metered.responses.create(model="gpt-4o", input=as_items(s)), sandbox)


def test_anthropics_client(sandbox: Sandbox) -> None:
    with Meter("memory://", guards=GUARDS) as meter:
        metered = meter.anthropic(anthropic_support.client(sandbox, max_retries=2))
        asked = anthropic_support.asked
        circle(meter, lambda s: metered.messages.create(**asked(messages=as_messages(s))), sandbox)


def langchain_history(steps: list[list[Call]]) -> list[Any]:
    from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

    said: list[Any] = [HumanMessage("go")]
    for number, step in enumerate(steps):
        calls: Any = [
            {"name": name, "args": arguments, "id": f"c{number}_{place}"}
            for place, (name, arguments) in enumerate(step)
        ]
        said.append(AIMessage("", tool_calls=calls))
        said += [ToolMessage("x", tool_call_id=call["id"]) for call in calls]
    return said


@pytest.mark.parametrize("way", ["model", "callback"])
def test_langchain(way: str, sandbox: Sandbox) -> None:
    from langchain_openai import ChatOpenAI

    with Meter("memory://", guards=GUARDS) as meter:
        plain = ChatOpenAI(model="gpt-4o", base_url=sandbox.base_url, api_key="none", max_tokens=20)
        model = meter.langchain_model(plain) if way == "model" else plain
        config: Any = {"callbacks": [meter.langchain()]} if way == "callback" else {}
        circle(meter, lambda s: model.invoke(langchain_history(s), config), sandbox)


@pytest.mark.parametrize("way", ["model", "callback"])
def test_llama_index(way: str, sandbox: Sandbox) -> None:
    pytest.importorskip("llama_index.llms.openai")
    from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
    from llama_index.core.callbacks import CallbackManager
    from llama_index.llms.openai import OpenAI

    def history(steps: list[list[Call]]) -> list[Any]:
        said = [ChatMessage("go")]
        for number, step in enumerate(steps):
            blocks = [
                ToolCallBlock(tool_call_id=f"c{number}_{place}", tool_name=name, tool_kwargs=arguments)
                for place, (name, arguments) in enumerate(step)
            ]
            said.append(ChatMessage(role="assistant", blocks=blocks))
            ids = [{"tool_call_id": block.tool_call_id} for block in blocks]
            said += [ChatMessage("x", role="tool", additional_kwargs=id) for id in ids]
        return said

    with Meter("memory://", guards=GUARDS) as meter:
        options: Any = {"model": "gpt-4o", "api_base": sandbox.base_url, "api_key": "none", "max_tokens": 20}
        if way == "model":
            model = meter.llama_index(OpenAI(**options))
        else:
            model = OpenAI(**options, callback_manager=CallbackManager([meter.llama_index_handler()]))
        circle(meter, lambda s: model.chat(history(s)), sandbox)


def test_llama_indexs_agent(sandbox: Sandbox) -> None:
    """It ends with the guard's error, as it is."""
    pytest.importorskip("llama_index.llms.openai")
    from llama_index.core.agent.workflow import FunctionAgent
    from llama_index.llms.openai import OpenAI

    def price_of(word: str) -> str:
        """What a word costs."""
        return word

    async def run() -> None:
        await FunctionAgent(tools=[price_of], llm=model).run("What does a word cost?")

    with Meter("memory://", guards={"steps": 1}, wait=0) as meter, meter.session("s"):
        plain: Any = {"model": "gpt-4o", "api_base": sandbox.base_url, "api_key": "none"}
        model = meter.llama_index(OpenAI(**plain))
        with pytest.raises(LoopDetected, match="has made 1 calls, and 1"):
            arun(run())
        assert sandbox.requests == 1
        assert_sound(meter)


def test_langgraphs_agent_ends_kindly(sandbox: Sandbox) -> None:
    """A model that calls the same tool for ever: its agent ends with what the guard says."""
    from langchain.agents import create_agent
    from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage
    from langchain_core.tools import tool

    ran: list[str] = []

    @tool
    def search(q: str) -> str:
        """Look something up."""
        ran.append(q)
        return "nothing"

    class Stubborn(GenericFakeChatModel):
        def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
            return self

    def forever() -> Any:
        number = 0
        while True:
            number += 1
            yield AIMessage("", tool_calls=[{"name": "search", "args": {"q": "x"}, "id": f"c{number}"}])

    with Meter("memory://", guards={"same_tool_call": 3}) as meter:
        for on_exceeded in ("end", "raise"):
            ran.clear()
            agent = create_agent(
                Stubborn(messages=forever()),
                [search],
                middleware=[meter.langchain_middleware(on_exceeded=on_exceeded)],  # type: ignore[arg-type]
            )
            asked: Any = {"messages": [{"role": "user", "content": "go"}]}
            if on_exceeded == "raise":
                with pytest.raises(LoopDetected, match="'search' has been called 3 times"):
                    agent.invoke(asked)
            else:
                last = agent.invoke(asked)["messages"][-1]
                assert "loop guard" in last.content
                assert last.response_metadata["behest"] == "loop"
            assert ran == ["x"] * 3


def test_what_may_be_repeated_goes_on(sandbox: Sandbox) -> None:
    guards = {"same_tool_call": 2, "allow_repeats": ["search"]}
    with Meter("memory://", guards=guards) as meter:
        metered = meter.openai(client(sandbox))
        metered.chat.completions.create(model="gpt-4o", messages=as_chat(SAME))
        assert sandbox.requests == 1


# ── steps and minutes ──────────────────────────────────────────────────────────────────


def say(metered: Any, **options: Any) -> Any:
    return metered.chat.completions.create(
        **{"model": "gpt-4o", "messages": HELLO, "max_tokens": 8, **options}
    )


def test_the_steps_of_a_session(store: str, sandbox: Sandbox) -> None:
    with Meter(store, guards={"steps": 3}, wait=0) as meter:
        metered = meter.openai(client(sandbox))
        for session in ("a", "b"):
            with meter.session(session, user="ada"):
                for _ in range(3):
                    say(metered)
                with pytest.raises(LoopDetected, match="has made 3 calls, and 3") as caught:
                    say(metered)
                error = caught.value
                assert (error.guard, error.times, error.limit, error.session) == ("steps", 3, 3, session)
        for _ in range(5):
            say(metered)  # of no session
        assert sandbox.requests == 11
        meter.flush()
        told = decisions(meter.ledger, Asked(), kinds=("refused",))
        assert [one["rule"] for one in told] == ["guards.steps"] * 2
        assert_sound(meter)


def test_each_run_of_a_stage_has_its_own_steps(sandbox: Sandbox) -> None:
    with Meter("memory://", guards={"steps": 2}, wait=0) as meter, meter.session("s"):
        metered = meter.openai(client(sandbox))
        for _ in range(3):
            with meter.budget("$1", name="run"):
                say(metered)
                say(metered)
                with pytest.raises(LoopDetected, match="stage 'run' has made 2 calls"):
                    say(metered)
        assert sandbox.requests == 6
        say(metered)
        assert_sound(meter)


def test_what_a_provider_refuses_is_no_step(sandbox: Sandbox) -> None:
    with Meter("memory://", guards={"steps": 1}, wait=0) as meter, meter.session("s"):
        metered = meter.openai(client(sandbox))
        with pytest.raises(NotFoundError):
            say(metered, model="nobody-has-this")
        say(metered)


OTHER = """
import sys
from openai import OpenAI
from behest_integrations import LoopDetected, Meter
store, url = sys.argv[1:]
refused = 0
with Meter(store, guards={"steps": 20}) as meter, meter.session("s"):
    metered = meter.openai(OpenAI(base_url=url, api_key="none", max_retries=0))
    for _ in range(15):
        try:
            metered.chat.completions.create(
                model="gpt-4o", messages=[{"role": "user", "content": "hello"}], max_tokens=8
            )
        except LoopDetected:
            refused += 1
print(refused)
"""


def test_steps_hold_in_all_processes(sqlite_store: str, sandbox: Sandbox) -> None:
    other = [sys.executable, "-c", OTHER, sqlite_store, sandbox.base_url]
    with subprocess.Popen(other, stdout=subprocess.PIPE, text=True) as process:
        refused = 0
        with Meter(sqlite_store, guards={"steps": 20}) as meter, meter.session("s"):
            metered = meter.openai(client(sandbox))
            for _ in range(15):
                try:
                    say(metered)
                except LoopDetected:
                    refused += 1
        refused += int(process.communicate()[0])
    assert (len(sandbox.bill.lines), refused) == (20, 10)


def test_steps_hold_under_64_threads(sqlite_store: str) -> None:
    with Sandbox(latency=0.01) as sandbox, Meter(sqlite_store, guards={"steps": 50}) as meter:
        metered = meter.openai(client(sandbox))

        def work(_number: int) -> int:
            with meter.session("s"):
                try:
                    say(metered)
                    return 1
                except LoopDetected:
                    return 0

        with ThreadPoolExecutor(64) as pool:
            assert sum(pool.map(work, range(64))) == 50
        assert sandbox.requests == 50
        assert_sound(meter)


def test_the_minutes_of_a_session(store: str, sandbox: Sandbox) -> None:
    """Since its first call, in whatever process that was."""
    now = [1_800_000_000_000]
    options: Any = {"guards": {"minutes": 30}, "clock": lambda: now[0]}
    with Meter(store, **options) as meter:
        metered = meter.openai(client(sandbox))
        with meter.session("s"):
            say(metered)
            now[0] += 29 * 60_000
            say(metered)
        # Another process knows of it from the ledger.
        other = Meter(meter.ledger, **options)
        beside = other.openai(client(sandbox))
        now[0] += 2 * 60_000
        for each in (metered, beside):
            with meter.session("s"), pytest.raises(LoopDetected, match="for 31 minutes, and 30") as caught:
                say(each)
            assert (caught.value.guard, caught.value.times, caught.value.limit) == ("minutes", 31, 30)
        with meter.session("another"):
            say(beside)
        with meter.session("s"), meter.budget("$1", name="run"):
            say(metered)
        say(metered)
        assert sandbox.requests == 5
        assert_sound(meter)


def test_nothing_is_kept_where_nothing_is_guarded(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1"]) as meter, meter.session("s"):
        assert meter.guarding is None
        assert meter.auditor is None
        say(meter.openai(client(sandbox)))
        assert [b.budget for b in meter.ledger.snapshot()[0]] == ["usd"]
        assert len(entries(meter)) == 1


# ── the gateway ────────────────────────────────────────────────────────────────────────


def test_the_gateway(tmp_path: Path, sandbox: Sandbox) -> None:
    """403 with a code of its own, which SDKs do not repeat; in Anthropic's shape where that is asked."""
    import anthropic
    import openai

    more = "[guards]\nsame_tool_call = 5\nsteps = 3\n"
    provider = 'retries = 0\napis = ["openai", "anthropic"]'
    with Gateway(tmp_path, sandbox, more=more, provider=provider) as gateway:
        key = gateway.key()
        with gateway.http(key, **{"X-Session-Id": "s"}) as http:
            refused = http.post("chat/completions", json=chat(messages=as_chat(SAME)))
            assert refused.status_code == 403
            assert refused.headers["x-should-retry"] == "false"
            error = refused.json()["error"]
            assert error["code"] == "loop_detected"
            assert error["details"] == {
                "guard": "same_tool_call", "times": 5, "limit": 5, "tool": "search",
            }  # fmt: skip
            assert SECRET not in refused.text
            assert [http.post("chat/completions", json=chat()).status_code for _ in range(3)] == [200] * 3
            assert http.post("chat/completions", json=chat()).json()["error"]["details"]["guard"] == "steps"
        with pytest.raises(openai.PermissionDeniedError) as caught:
            openai.OpenAI(base_url=gateway.base_url, api_key=key).responses.create(
                model="gpt-4o", input=as_items(SAME)
            )
        assert caught.value.code == "loop_detected"
        with pytest.raises(anthropic.PermissionDeniedError, match="'search' has been called 5 times"):
            anthropic.Anthropic(base_url=gateway.url, api_key=key).messages.create(
                **anthropic_support.asked(messages=as_messages(SAME))
            )
        assert sandbox.requests == 3
