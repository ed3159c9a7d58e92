"""LiteLLM, metered: two providers, a user, a router, a budget that holds, and a report.

    python quickstarts/litellm_client.py

Without OPENAI_API_KEY it talks to the sandbox provider, on this machine. With one it talks
to OpenAI (and, if set, OPENAI_BASE_URL), and spends at most the two cents of its budget.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the network as it is imported
from litellm import Router, completion

from behest_integrations import BudgetExceeded, Meter
from behest_integrations.reports import print_report
from behest_integrations.sandbox import Sandbox

MODEL = "openai/" + os.environ.get("OPENAI_MODEL", "gpt-4o-mini")
CLAUDE = "anthropic/" + os.environ.get("ANTHROPIC_MODEL", "claude-haiku-4-5")


def connect(stack: ExitStack) -> tuple[dict[str, Any], dict[str, Any]]:
    """What LiteLLM is told of two providers: of OpenAI with a key, of the sandbox without."""
    if os.environ.get("OPENAI_API_KEY"):
        openai = {"model": MODEL, "api_base": os.environ.get("OPENAI_BASE_URL")}
        return openai, {"model": CLAUDE} if os.environ.get("ANTHROPIC_API_KEY") else openai
    sandbox = stack.enter_context(Sandbox(output_tokens=2000))
    print(f"No OPENAI_API_KEY: using the sandbox provider at {sandbox.base_url}\n")
    to_openai = {"model": MODEL, "api_base": sandbox.base_url, "api_key": "not-needed"}
    return to_openai, {"model": CLAUDE, "api_base": sandbox.url, "api_key": "not-needed"}


def main() -> None:
    with ExitStack() as stack:
        # 1. The budgets. Without a store the ledger would be ./behest.db, and would last.
        meter = stack.enter_context(Meter("memory://", budgets=["$0.02 per session", "$0.05/day per user"]))

        # 2. The one line: all that LiteLLM is asked from now on, whoever has imported its functions already.
        stack.enter_context(meter.litellm())
        openai, claude = connect(stack)

        # 3. Who a call is for: in its metadata, or in a scope around it.
        who = {"session_id": "conversation-42", "user_id": "user-7"}
        reply = completion(**openai, messages=ask("What is a token?"), max_tokens=60, metadata=who)
        print("One call:            ", short(reply.choices[0].message.content))

        with meter.session("conversation-42", user="user-7"):
            # 4. A stream, of another provider.
            stream = completion(**claude, messages=ask("Count to ten, in words."), max_tokens=60, stream=True)
            print("A streamed one:      ", short("".join(c.choices[0].delta.content or "" for c in stream)))

            # 5. Through a router, which would retry and fall back from any other error, on and on, until the
            #    budget says no. The refused call is never sent, and nothing is tried in its place.
            router = Router(
                [
                    {"model_name": "writer", "litellm_params": openai},
                    {"model_name": "spare", "litellm_params": claude},
                ],
                fallbacks=[{"writer": ["spare"]}],
                num_retries=2,
            )
            for number in range(1, 100):
                try:
                    router.completion("writer", ask("Tell me a very long story."), max_tokens=4000)
                except BudgetExceeded as error:
                    print(f"\nStopped before call {number}:\n{error}\n")
                    break

            # 6. What is left, and the report. `behest report` shows the same for a file.
            for balance in meter.spend():
                print(balance)
        print()
        print_report(meter.ledger, by=("session", "user", "model"))


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def short(text: str, most: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


if __name__ == "__main__":
    main()
