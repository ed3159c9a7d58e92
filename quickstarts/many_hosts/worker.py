"""A worker: a program without a gateway, on the same budgets, by the same ledger.

    BEHEST_STORE=postgresql+psycopg://… python worker.py

It asks what OPENAI_BASE_URL and OPENAI_API_KEY say, until its session's budget stops it.
"""

from __future__ import annotations

import os

from openai import OpenAI

from behest_integrations import BudgetExceeded, Meter

RUN = os.environ.get("BEHEST_RUN", "nightly")


def main() -> None:
    calls = 0
    with Meter.from_toml() as meter:  # behest.toml of this folder; the ledger is BEHEST_STORE
        client = meter.openai(OpenAI())
        with meter.session(RUN, user=f"{RUN}-worker", tenant="acme", project="support"):
            try:
                while True:
                    client.chat.completions.create(
                        model="gpt-4o", messages=[{"role": "user", "content": "Hello"}], max_tokens=100
                    )
                    calls += 1
                    if calls == 1:
                        print("the worker has had its first answer", flush=True)
            except BudgetExceeded as error:
                print(f"the worker was stopped before call {calls + 1}: {error}")


if __name__ == "__main__":
    main()
