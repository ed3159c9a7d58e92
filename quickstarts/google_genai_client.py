"""Google's Gen AI client, metered: a session, a user, a budget that holds, and a report.

    python quickstarts/google_genai_client.py

Without GEMINI_API_KEY it talks to the sandbox provider, on this machine. With one it talks to
Gemini (and, if set, GEMINI_BASE_URL), and spends at most the two cents of its budget.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from google import genai
from google.genai import types

from behest_integrations import BudgetExceeded, Meter
from behest_integrations.reports import print_report
from behest_integrations.sandbox import Sandbox

MODEL = os.environ.get("GEMINI_MODEL", "gemini-2.5-flash")


def connect(stack: ExitStack) -> genai.Client:
    """A plain client: of Gemini with a key, of the sandbox without."""
    key = os.environ.get("GEMINI_API_KEY")
    if key:
        return genai.Client(
            api_key=key, http_options=types.HttpOptions(base_url=os.environ.get("GEMINI_BASE_URL"))
        )
    sandbox = stack.enter_context(Sandbox(output_tokens=4000))
    print(f"No GEMINI_API_KEY: using the sandbox provider at {sandbox.url}\n")
    return genai.Client(api_key="not-needed", http_options=types.HttpOptions(base_url=sandbox.url))


def main() -> None:
    with ExitStack() as stack:
        # 1. The budgets. Without a store the ledger would be ./behest.db, and would last.
        meter = stack.enter_context(Meter("memory://", budgets=["$0.02 per session", "$0.05/day per user"]))

        # 2. The one line: still a google.genai client, and every call of it is metered, `.aio` too.
        client = meter.google_genai(connect(stack))
        brief = types.GenerateContentConfig(max_output_tokens=60)

        # 3. Who the calls are for. Everything inside is attributed to this session and user.
        with meter.session("conversation-42", user="user-7", tags={"feature": "quickstart"}):
            # 4. One call.
            reply = client.models.generate_content(
                model=MODEL, contents="In one sentence: what is a token?", config=brief
            )
            print("One call:      ", short(reply.text or ""))

            # 5. A streamed call.
            stream = client.models.generate_content_stream(
                model=MODEL, contents="Count to ten, in words.", config=brief
            )
            print("A streamed one:", short("".join(chunk.text or "" for chunk in stream)))

            # 6. A chat, on and on, until the budget says no. The refused call is never sent.
            chat = client.chats.create(model=MODEL)
            for number in range(1, 100):
                try:
                    chat.send_message("Tell me a very long story.")
                except BudgetExceeded as error:
                    print(f"\nStopped before message {number}:\n{error}\n")
                    break

            # 7. What is left, and the report. `behest report` shows the same for a file.
            for balance in meter.spend():
                print(balance)
        print()
        print_report(meter.ledger, by=("session", "user", "model"))


def short(text: str, most: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


if __name__ == "__main__":
    main()
