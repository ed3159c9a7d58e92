"""A LangGraph agent with tools: its thread is the session, and the budget ends it gracefully.

    python quickstarts/langgraph_agent.py

Without OPENAI_API_KEY it talks to the sandbox provider, on this machine. With one it talks
to OpenAI (and, if set, OPENAI_BASE_URL), and spends at most the cents of its budget.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import SecretStr

from behest_integrations import Meter
from behest_integrations.reports import print_report
from behest_integrations.sandbox import Sandbox

MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")


@tool
def search(query: str) -> str:
    """Search the archive of prices."""
    return f"Nothing is written about {query!r}, except that it is not free."


def connect(stack: ExitStack) -> ChatOpenAI:
    """A plain model: of OpenAI with a key, of the sandbox without."""
    if os.environ.get("OPENAI_API_KEY"):
        return ChatOpenAI(model=MODEL, max_completion_tokens=500)
    sandbox = stack.enter_context(Sandbox(output_tokens=500))
    print(f"No OPENAI_API_KEY: using the sandbox provider at {sandbox.base_url}\n")
    return ChatOpenAI(
        model=MODEL,
        max_completion_tokens=500,
        base_url=sandbox.base_url,
        api_key=SecretStr("not-needed"),
    )


def main() -> None:
    with ExitStack() as stack:
        # 1. The budget, for each conversation. A use of the search counts in it, too.
        meter = stack.enter_context(Meter("memory://", budgets=["$0.02 per session"]))

        # 2. The one line: middleware. It ends the agent with an answer in place of an exception.
        agent = create_agent(
            connect(stack),
            tools=[search],
            checkpointer=InMemorySaver(),
            middleware=[meter.langchain_middleware(on_exceeded="end", tool_prices={"search": "$0.005"})],
        )

        # 3. Two conversations. LangGraph's thread is the session; nothing else needs to be said.
        for thread in ("thread-a", "thread-b"):
            print(f"── {thread}")
            for turn in range(1, 20):
                last = stream(agent, thread, "What does a token cost? Search for it.")
                if "does not allow another step" in last:
                    print(f"turn {turn}: {last}\n")
                    break
                print(f"turn {turn}: {short(last)}")

        # 4. The report: what each conversation cost, in tokens and in searches.
        print_report(meter.ledger, by=("session", "operation", "model"))


def stream(agent: Any, thread: str, question: str) -> str:
    """Ask, reading the agent's steps as they come; its last message."""
    asked = {"messages": [{"role": "user", "content": question}]}
    last = ""
    for step in agent.stream(asked, {"configurable": {"thread_id": thread}}, stream_mode="updates"):
        for update in step.values():
            for message in (update or {}).get("messages", []):
                if message.type == "tool":
                    print(f"        searched: {short(str(message.content))}")
                elif message.content:
                    last = str(message.content)
    return last


def short(text: str, most: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


if __name__ == "__main__":
    main()
