"""A Pydantic AI agent, metered: a conversation, a user, a budget that holds, and a report.

    python quickstarts/pydantic_ai_agent.py

Without OPENAI_API_KEY it talks to the sandbox provider, on this machine. With one it talks
to OpenAI (and, if set, OPENAI_BASE_URL), and spends at most the two cents of its budget.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from behest_integrations import BudgetExceeded, Meter
from behest_integrations.reports import print_report
from behest_integrations.sandbox import Sandbox

MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")


class Word(BaseModel):
    word: str
    syllables: int


def look_up(word: str) -> str:
    """Look a word up in the dictionary."""
    return f"{word}: nothing is written about it"


def connect(stack: ExitStack) -> OpenAIChatModel:
    """A plain model: of OpenAI with a key, of the sandbox without."""
    if os.environ.get("OPENAI_API_KEY"):
        return OpenAIChatModel(MODEL)
    sandbox = stack.enter_context(Sandbox(output_tokens=4000))
    print(f"No OPENAI_API_KEY: using the sandbox provider at {sandbox.base_url}\n")
    return OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=sandbox.base_url, api_key="not-needed"))


async def main() -> None:
    with ExitStack() as stack:
        # 1. The budgets. Without a store the ledger would be ./behest.db, and would last.
        meter = stack.enter_context(Meter("memory://", budgets=["$0.02 per session", "$0.05/day per user"]))

        # 2. The one line: still an OpenAIChatModel, and every request of it is metered.
        model = meter.pydantic_ai(connect(stack))
        agent = Agent(model, name="writer", tools=[look_up], model_settings={"max_tokens": 60})

        # 3. The session is the conversation, the user is in the run's metadata.
        reply = await agent.run(
            "What is a token?", conversation_id="conversation-42", metadata={"user_id": "user-7"}
        )
        print("An agent, with a tool:", short(reply.output))

        # 4. Or say both once, for all that is inside: direct requests and other agents too.
        with meter.session("conversation-42", user="user-7"):
            async with agent.run_stream("Count to ten, in words.") as stream:
                print("A streamed one:       ", short(await stream.get_output()))

            word = await Agent(model, output_type=Word, name="counter").run("How many syllables has 'token'?")
            print("A structured one:     ", word.output)

            # 5. On and on, until the budget says no. The refused request is never sent.
            story: Agent[None, str] = Agent(model, name="teller", model_settings={"max_tokens": 4000})
            for number in range(1, 100):
                try:
                    await story.run("Tell me a very long story.")
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
