"""The Anthropic client, metered: a session, a user, a budget that holds, and a report.

    python quickstarts/anthropic_client.py

Without ANTHROPIC_API_KEY it talks to the sandbox provider, on this machine. With one it talks
to Anthropic (and, if set, ANTHROPIC_BASE_URL), and spends at most the two cents of its budget.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from anthropic import Anthropic
from anthropic.types import Message

from behest_integrations import BudgetExceeded, Meter
from behest_integrations.reports import print_report
from behest_integrations.sandbox import Sandbox

MODEL = os.environ.get("ANTHROPIC_MODEL", "claude-haiku-4-5")


def connect(stack: ExitStack) -> Anthropic:
    """A plain client: of Anthropic with a key, of the sandbox without."""
    if os.environ.get("ANTHROPIC_API_KEY"):
        return Anthropic()
    sandbox = stack.enter_context(Sandbox(output_tokens=4000))
    print(f"No ANTHROPIC_API_KEY: using the sandbox provider at {sandbox.url}\n")
    return Anthropic(base_url=sandbox.url, api_key="not-needed")


def main() -> None:
    with ExitStack() as stack:
        # 1. The budgets. Without a store the ledger would be ./behest.db, and would last.
        meter = stack.enter_context(Meter("memory://", budgets=["$0.02 per session", "$0.05/day per user"]))

        # 2. The one line: still an Anthropic client, and every call of it is metered.
        client = meter.anthropic(connect(stack))

        # 3. Who the calls are for. Everything inside is attributed to this session and user.
        with meter.session("conversation-42", user="user-7", tags={"feature": "quickstart"}):
            # 4. One call.
            reply = client.messages.create(
                model=MODEL,
                max_tokens=60,
                messages=[{"role": "user", "content": "In one sentence: what is a token?"}],
            )
            print("One call:      ", short(text_of(reply)))

            # 5. A streamed call.
            with client.messages.stream(
                model=MODEL,
                max_tokens=60,
                messages=[{"role": "user", "content": "Count to ten, in words."}],
            ) as stream:
                print("A streamed one:", short("".join(stream.text_stream)))

            # 6. On and on, until the budget says no. The refused call is never sent.
            for number in range(1, 100):
                try:
                    client.messages.create(
                        model=MODEL,
                        max_tokens=4000,
                        messages=[{"role": "user", "content": "Tell me a very long story."}],
                    )
                except BudgetExceeded as error:
                    print(f"\nStopped before call {number}:\n{error}\n")
                    break

            # 7. What is left, and the report. `behest report` shows the same for a file.
            for balance in meter.spend():
                print(balance)
        print()
        print_report(meter.ledger, by=("session", "user", "model"))


def text_of(reply: Message) -> str:
    return "".join(block.text for block in reply.content if block.type == "text")


def short(text: str, most: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


if __name__ == "__main__":
    main()
