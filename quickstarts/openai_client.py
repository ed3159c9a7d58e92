"""The OpenAI client, metered: a session, a user, a budget that holds, and a report.

    python quickstarts/openai_client.py

Without OPENAI_API_KEY it talks to the sandbox provider, on this machine. With one it talks
to OpenAI (and, if set, OPENAI_BASE_URL), and spends at most the cent of its budget.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from openai import OpenAI

from behest_integrations import BudgetExceeded, Meter
from behest_integrations.reports import print_report
from behest_integrations.sandbox import Sandbox

MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")


def connect(stack: ExitStack) -> OpenAI:
    """A plain client: of OpenAI with a key, of the sandbox without."""
    if os.environ.get("OPENAI_API_KEY"):
        return OpenAI()
    sandbox = stack.enter_context(Sandbox(output_tokens=4000))
    print(f"No OPENAI_API_KEY: using the sandbox provider at {sandbox.base_url}\n")
    return OpenAI(base_url=sandbox.base_url, api_key="not-needed")


def main() -> None:
    with ExitStack() as stack:
        # 1. The budgets. Without a store the ledger would be ./behest.db, and would last.
        meter = stack.enter_context(Meter("memory://", budgets=["$0.01 per session", "$0.05/day per user"]))

        # 2. The one line: still an OpenAI client, and every call of it is metered.
        client = meter.openai(connect(stack))

        # 3. Who the calls are for. Everything inside is attributed to this session and user.
        with meter.session("conversation-42", user="user-7", tags={"feature": "quickstart"}):
            # 4. One call.
            reply = client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": "In one sentence: what is a token?"}],
                max_tokens=60,
            )
            print("One call:     ", short(reply.choices[0].message.content))

            # 5. A streamed call. Its usage is asked for, and hidden from you.
            text = ""
            for chunk in client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": "Count to ten, in words."}],
                max_tokens=60,
                stream=True,
            ):
                text += chunk.choices[0].delta.content or ""
            print("A streamed one:", short(text))

            # 6. On and on, until the budget says no. The refused call is never sent.
            for number in range(1, 100):
                try:
                    client.chat.completions.create(
                        model=MODEL,
                        messages=[{"role": "user", "content": "Tell me a very long story."}],
                        max_tokens=4000,
                    )
                except BudgetExceeded as error:
                    print(f"\nStopped before call {number}:\n{error}\n")
                    break

            # 7. What is left, and the report. `behest report` shows the same for a file.
            for balance in meter.spend():
                print(balance)
        print()
        print_report(meter.ledger, by=("session", "user", "model"))


def short(text: str | None, most: int = 60) -> str:
    text = " ".join((text or "").split())
    return text if len(text) <= most else text[: most - 1] + "…"


if __name__ == "__main__":
    main()
