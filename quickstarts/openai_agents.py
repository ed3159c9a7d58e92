"""Agents of the OpenAI Agents SDK, metered: a session, a user, a budget that holds, and a report.

    python quickstarts/openai_agents.py

Without OPENAI_API_KEY it talks to the sandbox provider, on this machine. With one it talks
to OpenAI (and, if set, OPENAI_BASE_URL), and spends at most the two cents of its budget.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    RunConfig,
    Runner,
    SQLiteSession,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

from behest_integrations import BudgetExceeded, Meter
from behest_integrations.reports import print_report
from behest_integrations.sandbox import Sandbox

MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")


def connect(stack: ExitStack) -> OpenAIChatCompletionsModel:
    """A plain model: of OpenAI with a key, of the sandbox without."""
    if os.environ.get("OPENAI_API_KEY"):
        return OpenAIChatCompletionsModel(MODEL, AsyncOpenAI())
    set_tracing_disabled(True)  # it would be sent to OpenAI
    sandbox = stack.enter_context(Sandbox(output_tokens=4000))
    print(f"No OPENAI_API_KEY: using the sandbox provider at {sandbox.base_url}\n")
    return OpenAIChatCompletionsModel(MODEL, AsyncOpenAI(base_url=sandbox.base_url, api_key="not-needed"))


def look_up(word: str) -> str:
    """Look a word up in the dictionary."""
    return f"{word}: nothing is written about it"


async def main() -> None:
    with ExitStack() as stack:
        # 1. The budgets. Without a store the ledger would be ./behest.db, and would last.
        meter = stack.enter_context(Meter("memory://", budgets=["$0.02 per session", "$0.05/day per user"]))

        # 2. The one line: still an OpenAIChatCompletionsModel, and every call of it is metered.
        model = meter.openai_agents(connect(stack))

        brief = ModelSettings(max_tokens=60)
        writer = Agent(name="writer", model=model, tools=[function_tool(look_up)], model_settings=brief)
        front = Agent(name="front", model=model, handoffs=[writer], model_settings=brief)

        # 3. The session is the SDK's own, the user is in the trace's metadata.
        session = SQLiteSession("conversation-42")
        config = RunConfig(trace_metadata={"user_id": "user-7"})
        result = await Runner.run(front, "What is a token?", session=session, run_config=config)
        print("Two agents, a tool:", short(str(result.final_output)))

        # 4. Or say both once, for all that is inside.
        with meter.session("conversation-42", user="user-7"):
            streamed = Runner.run_streamed(writer, "Count to ten, in words.")
            async for _event in streamed.stream_events():
                pass
            print("A streamed run:    ", short(str(streamed.final_output)))

            # 5. On and on, until the budget says no. The refused call is never sent.
            teller = Agent(name="teller", model=model, model_settings=ModelSettings(max_tokens=4000))
            for number in range(1, 100):
                try:
                    await Runner.run(teller, "Tell me a very long story.")
                except BudgetExceeded as error:
                    print(f"\nStopped before run {number}:\n{error}\n")
                    break

            # 6. What is left, and the report. `behest report` shows the same for a file.
            for balance in meter.spend():
                print(balance)
        print()
        print_report(meter.ledger, by=("session", "user", "tag:agent"))


def short(text: str, most: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


if __name__ == "__main__":
    asyncio.run(main())
