"""A LangChain chain with a callback: attributed, priced, and stopped before the provider.

    python quickstarts/langchain_chain.py

Without OPENAI_API_KEY it talks to the sandbox provider, on this machine. With one it talks
to OpenAI (and, if set, OPENAI_BASE_URL), and spends at most the cents of its budgets.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from behest_integrations import BudgetExceeded, Meter
from behest_integrations.reports import print_report
from behest_integrations.sandbox import Sandbox

MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")


def connect(stack: ExitStack) -> ChatOpenAI:
    """A plain model: of OpenAI with a key, of the sandbox without."""
    if os.environ.get("OPENAI_API_KEY"):
        return ChatOpenAI(model=MODEL, max_completion_tokens=2000)
    sandbox = stack.enter_context(Sandbox(output_tokens=2000))
    print(f"No OPENAI_API_KEY: using the sandbox provider at {sandbox.base_url}\n")
    return ChatOpenAI(
        model=MODEL,
        max_completion_tokens=2000,
        stream_usage=True,
        base_url=sandbox.base_url,
        api_key=SecretStr("not-needed"),
    )


def main() -> None:
    with ExitStack() as stack:
        # 1. The budgets. Without a store the ledger would be ./behest.db, and would last.
        meter = stack.enter_context(Meter("memory://", budgets=["$0.005 per session", "$0.05/day per user"]))

        # 2. A chain as you have it.
        prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("user", "{question}")])
        model = connect(stack)
        chain = prompt | model | StrOutputParser()

        # 3. The one line: a callback. The session and the user are said in the run's metadata.
        metered = chain.with_config(
            callbacks=[meter.langchain()], metadata={"session_id": "conversation-1", "user_id": "user-7"}
        )
        print("One call:      ", short(metered.invoke({"question": "What is a token?"})))

        # 4. A streamed call; here who it is for is said by the scope around it.
        with meter.session("conversation-2", user="user-8"):
            chunks = chain.stream({"question": "Count to ten."}, {"callbacks": [meter.langchain()]})
            print("A streamed one:", short("".join(chunks)))

        # 5. On and on, until the budget says no. The refused call is never sent.
        stopped_by_callback = until_stopped(metered)
        print(f"\nThe callback stopped call {stopped_by_callback}: it cannot make an answer shorter.")

        # 6. Metered itself, the model can: it lowers its output limit to what the budget has left.
        wrapped = prompt | meter.langchain_model(model) | StrOutputParser()
        config = {"session_id": "conversation-3", "user_id": "user-7"}
        stopped = until_stopped(wrapped.with_config(metadata=config))
        print(f"The metered model went on to call {stopped}, its last answer being shorter.\n")

        print_report(meter.ledger, by=("session", "user", "model"))


def until_stopped(chain: object) -> int:
    """Ask until the budget refuses; the number of the refused call."""
    for number in range(1, 100):
        try:
            chain.invoke({"question": "Tell me a very long story."})  # type: ignore[attr-defined]
        except BudgetExceeded as error:
            print(f"\nStopped before call {number}:\n{error}")
            return number
    raise RuntimeError("the budget was never used up")


def short(text: str, most: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


if __name__ == "__main__":
    main()
