"""A budget that is used up interrupts the graph, which goes on with what is granted: once."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.tools import tool
from langchain_support import HELLO, chat, skip_unless_handed_on
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command
from support import arun, assert_agrees, assert_sound

from behest_integrations import BudgetExceeded, ConfigError, Meter
from behest_integrations.reports.audit import decisions
from behest_integrations.reports.shown import Asked
from behest_integrations.sandbox import Sandbox

ASKED = {"messages": [{"role": "user", "content": HELLO}]}
SMALL = {"model": "gpt-4o-mini", "max_tokens": 60}


@tool
def search(q: str) -> str:
    """Search."""
    return "found"


def config(thread: str) -> Any:
    return {"configurable": {"thread_id": thread}}


def agent(meter: Meter, sandbox: Sandbox, saver: Any, **options: Any) -> Any:
    return create_agent(
        chat(sandbox, **SMALL),
        checkpointer=saver,
        middleware=[
            *options.pop("around", ()),
            meter.langchain_middleware(on_exceeded="ask", **options.pop("ours", {})),
        ],
        **options,
    )


def grants(meter: Meter) -> list[tuple[str | None, str, str]]:
    """Who has granted what of which budget, as the audit has it."""
    return [
        (r["actor"], r["details"]["what"], r["rule"])
        for r in decisions(meter.ledger, Asked(), kinds=["budget"])
    ]


class Run:
    """An agent, blocking or awaited, whole or streamed."""

    def __init__(self, graph: Any, how: str) -> None:
        self.graph, self.how = graph, how

    def __call__(self, given: Any, thread: str) -> list[Any]:
        """Run it; the values of the interrupts that it ended with."""
        where = config(thread)
        if self.how == "invoke":
            found = [self.graph.invoke(given, where)]
        elif self.how == "ainvoke":
            found = [arun(self.graph.ainvoke(given, where))]
        elif self.how == "stream":
            found = list(self.graph.stream(given, where))
        else:

            async def read() -> list[Any]:
                return [step async for step in self.graph.astream(given, where)]

            found = arun(read())
        return [i.value for step in found for i in step.get("__interrupt__", ())]


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream"])
def test_it_is_asked_and_goes_on_with_what_was_granted(how: str, sandbox: Sandbox, store: str) -> None:
    if how.startswith("a"):
        skip_unless_handed_on("middleware")
    with Meter(store, budgets=["1 calls per session"], wait=0) as meter:
        run = Run(agent(meter, sandbox, InMemorySaver()), how)
        assert run(ASKED, "t") == []
        (asked,) = run(ASKED, "t")
        assert json.loads(json.dumps(asked)) == asked
        assert asked | {"message": "", "answer": ""} == {
            "type": "budget_exceeded", "message": "", "answer": "", "reason": "exhausted",
            "budget": "1 calls per session", "scope": "session t", "unit": "calls",
            "limit": 1, "spent": 1, "held": 0, "needed": 1, "least": "1 calls", "resets_at": None,
            "problem": None,
        }  # fmt: skip
        assert "limit 1 calls, spent 1 calls" in asked["message"]
        assert sandbox.requests == 1
        answer = {"grant": "2 calls", "by": "kim", "why": "a customer waits"}
        assert run(Command(resume=answer), "t") == []
        assert sandbox.requests == 2
        assert grants(meter) == [("kim", "granted 2 calls", "1 calls per session")]
        assert next(decisions(meter.ledger, Asked()))["details"]["why"] == "a customer waits"
        # Nobody else has any of it, and of it there is one call left.
        assert [run(ASKED, thread) == [] for thread in ("other", "other", "t", "t")] == [
            True,
            False,
            True,
            False,
        ]
        assert sandbox.requests == 4
        (balance,) = meter.spend("t")
        assert (balance.limit, balance.spent) == (3, 3)
        assert_agrees(meter, sandbox)
        assert_sound(meter)


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
@pytest.mark.parametrize("no", [False, {"grant": None}, {"grant": False, "by": "kim"}])
def test_a_refusal_is_the_error_that_it_was(how: str, no: Any, sandbox: Sandbox) -> None:
    if how.startswith("a"):
        skip_unless_handed_on("middleware")
    with Meter("memory://", budgets=["0 calls per session"], wait=0) as meter:
        run = Run(agent(meter, sandbox, InMemorySaver()), how)
        assert len(run(ASKED, "t")) == 1
        with pytest.raises(BudgetExceeded, match="0 calls per session"):
            run(Command(resume=no), "t")
        assert (sandbox.requests, grants(meter)) == (0, [])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("2 dollars", "expected"),
        ("$2", "not an amount of calls"),
        ("0 calls", "more than nothing"),
        (True, "how much"),
        ({"grant": "1 calls", "bye": "kim"}, "bye"),
        ({"grant": 3}, "grant"),
    ],
)
def test_an_answer_that_cannot_be_used_grants_nothing_and_is_asked_for_again(
    wrong: Any, says: str, sandbox: Sandbox
) -> None:
    with Meter("memory://", budgets=["0 calls per session"], wait=0) as meter:
        run = Run(agent(meter, sandbox, InMemorySaver()), "invoke")
        assert len(run(ASKED, "t")) == 1
        (asked,) = run(Command(resume=wrong), "t")
        assert says in asked["problem"]
        assert (sandbox.requests, grants(meter)) == (0, [])
        assert run(Command(resume="1 call"), "t") == []
        assert (sandbox.requests, len(grants(meter))) == (1, 1)


def test_each_grant_is_booked_once_however_often_its_node_runs_again(sandbox: Sandbox, store: str) -> None:
    """Too little is granted, three times; each time the node begins anew, and hears all answers."""
    with Meter(store, budgets=["$0.00001 per session"], wait=0) as meter:
        run = Run(agent(meter, sandbox, InMemorySaver()), "invoke")
        assert run(ASKED, "t")[0]["reason"] == "too_large"
        for _ in range(3):
            assert len(run(Command(resume="$0.000001"), "t")) == 1
        assert len(grants(meter)) == 3
        assert meter.balances(session="t")[0].limit == 13_000
        assert run(Command(resume={"grant": "$1"}), "t") == []
        assert len(grants(meter)) == 4
        assert sandbox.requests == 1
        assert_sound(meter)


def test_what_fails_after_the_grant_is_granted_no_more(sandbox: Sandbox) -> None:
    """The provider's error ends the node: whoever goes on with it grants no more."""
    from openai import APIStatusError

    with Meter("memory://", budgets=["1 calls per session"], wait=0) as meter:
        run = Run(agent(meter, sandbox, InMemorySaver()), "invoke")
        run(ASKED, "t")
        run(ASKED, "t")
        sandbox.fault("status", status=400)
        with pytest.raises(APIStatusError):
            run(Command(resume="1 call"), "t")
        assert run(Command(resume="1 call"), "t") == []
        assert grants(meter) == [(None, "granted 1 calls", "1 calls per session")]
        assert meter.spend("t")[0].limit == 2
        assert len(run(ASKED, "t")) == 1


class Again(AgentMiddleware):  # type: ignore[type-arg]
    """Whatever goes wrong is tried once more, in the same node."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        try:
            return handler(request)
        except (BudgetExceeded, ConfigError):
            raise
        except Exception as error:
            if type(error).__name__ == "GraphInterrupt":
                raise
            return handler(request)


def test_two_grants_in_one_run_of_a_node_are_two(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["0 calls per session"], wait=0) as meter:
        run = Run(agent(meter, sandbox, InMemorySaver(), around=[Again()]), "invoke")
        run(ASKED, "t")
        sandbox.fault("status", status=500)  # it may have been billed: what was granted is used up
        assert len(run(Command(resume="1 call"), "t")) == 1
        assert run(Command(resume="1 call"), "t") == []
        assert len(grants(meter)) == 2
        assert meter.spend("t")[0].spent == 2


# ── tools at a price ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_a_tool_at_a_price_asks_as_well_and_is_used_once(how: str, sandbox: Sandbox) -> None:
    if how.startswith("a"):
        skip_unless_handed_on("middleware")
    with Meter("memory://", budgets=["$0.01 per session"], wait=0) as meter:
        made = agent(
            meter, sandbox, InMemorySaver(), tools=[search], ours={"tool_prices": {"search": "$0.02"}}
        )
        run = Run(made, how)
        (asked,) = run(ASKED, "t")
        assert asked["needed"] == 20_000_000
        assert run(Command(resume={"grant": "$0.03", "by": "kim"}), "t") == []
        uses = [e for e in meter.ledger.snapshot()[2] if e.operation == "tool"]
        assert [e.cost for e in uses] == [20_000_000]
        assert len(grants(meter)) == 1
        assert_sound(meter)


# ── branches, and another process ──────────────────────────────────────────────────────


class State(TypedDict):
    done: Annotated[list[str], lambda a, b: [*a, *b]]


@contextmanager
def branches(meter: Meter, sandbox: Sandbox, saver: Any) -> Iterator[Any]:
    """Two agents of different users, side by side in one graph."""
    graph = StateGraph(State)
    for user in ("ada", "bob"):
        inner = agent(meter, sandbox, None)

        def node(state: State, user: str = user, inner: Any = inner) -> Any:
            with meter.session(user=user):
                inner.invoke(ASKED, {"metadata": {"user_id": user}})
            return {"done": [user]}

        graph.add_node(user, node)
        graph.add_edge(START, user)
        graph.add_edge(user, END)
    yield graph.compile(checkpointer=saver)


def test_two_branches_are_asked_side_by_side(sandbox: Sandbox, store: str) -> None:
    with (
        Meter(store, budgets=["0 calls per user"], wait=0) as meter,
        branches(meter, sandbox, InMemorySaver()) as graph,
    ):
        found = graph.invoke({"done": []}, config("t"))["__interrupt__"]
        by_scope = {i.value["scope"]: i.id for i in found}
        assert set(by_scope) == {"user ada", "user bob"}
        # One is answered, the other is asked again; then that one is.
        left = graph.invoke(
            Command(resume={by_scope["user ada"]: {"grant": "1 call", "by": "kim"}}), config("t")
        )
        assert [i.value["scope"] for i in left["__interrupt__"]] == ["user bob"]
        assert sandbox.requests == 1
        both = Command(resume={by_scope["user bob"]: {"grant": "3 calls", "by": "lee"}})
        assert sorted(graph.invoke(both, config("t"))["done"]) == ["ada", "bob"]
        assert sandbox.requests == 2
        assert sorted(grants(meter), key=str) == [
            ("kim", "granted 1 calls", "0 calls per user"), ("lee", "granted 3 calls", "0 calls per user"),
        ]  # fmt: skip
        assert {b.scope: (b.limit, b.spent) for b in meter.balances()} == {
            "user ada": (1, 1), "user bob": (3, 1),
        }  # fmt: skip
        assert_sound(meter)


FIRST = """
import sqlite3, sys
from langchain.agents import create_agent
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.sqlite import SqliteSaver
from behest_integrations import Meter
url, folder = sys.argv[1:]
meter = Meter(f"sqlite:///{folder}/ledger.db", budgets=["0 calls/month per session"], wait=0)
model = ChatOpenAI(base_url=url, api_key="none", model="gpt-4o-mini", max_tokens=60)
saver = SqliteSaver(sqlite3.connect(f"{folder}/checkpoints.db", check_same_thread=False))
made = create_agent(model, checkpointer=saver, middleware=[meter.langchain_middleware(on_exceeded="ask")])
asked = {"messages": [{"role": "user", "content": "hello there"}]}
print(made.invoke(asked, {"configurable": {"thread_id": "t"}})["__interrupt__"][0].value["scope"])
"""


def test_another_process_goes_on_with_it(sandbox: Sandbox, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST, sandbox.base_url, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == "session t", done.stderr
    assert sandbox.requests == 0
    checkpoints = (tmp_path / "checkpoints.db").read_bytes()
    for more in (0, 1):  # the second time, as if the first had died before it wrote its checkpoint
        (tmp_path / "checkpoints.db").write_bytes(checkpoints)
        with Meter(f"sqlite:///{tmp_path}/ledger.db", budgets=["0 calls/month per session"], wait=0) as meter:
            with closing(sqlite3.connect(tmp_path / "checkpoints.db", check_same_thread=False)) as at:
                left = Run(agent(meter, sandbox, SqliteSaver(at)), "invoke")(
                    Command(resume={"grant": "1 call", "by": "kim"}), "t"
                )
            # What was granted is used up then: it is asked for more, and not given it twice.
            assert len(left) == more
            assert sandbox.requests == 1
            (granted,) = grants(meter)
            assert granted[0] == "kim"
            assert granted[1].startswith("granted 1 calls until 20")  # with the month


def test_it_is_said_where_there_is_nothing_to_interrupt(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["0 calls"], wait=0) as meter:
        middleware = meter.langchain_middleware(on_exceeded="ask")

        class Request:
            model = chat(sandbox, **SMALL)

            def override(self, model: Any) -> Any:
                self.model = model
                return self

        with pytest.raises(ConfigError, match="graph with a checkpointer"):
            middleware.wrap_model_call(Request(), lambda request: request.model.invoke(HELLO))
