"""A LlamaIndex RAG: an index, questions in two sessions, a stream, an agent, and a cap that holds.

    python quickstarts/llama_index_rag.py

Without OPENAI_API_KEY it talks to the sandbox provider, on this machine. With one it talks
to OpenAI (and, if set, OPENAI_BASE_URL), and spends at most the cents of its budgets.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack
from typing import Any

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.settings import Settings
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.llms.openai import OpenAI

from behest_integrations import BudgetExceeded, Meter
from behest_integrations.reports import print_report
from behest_integrations.sandbox import Sandbox

MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")

DOCUMENTS = [
    Document(text="A token is a piece of a word. A page of English has about 600 of them."),
    Document(text="Input tokens are what is sent to a model; output tokens are what it writes."),
    Document(text="Output tokens cost about four times as much as input tokens do."),
    Document(text="An embedding turns a text into numbers. It costs a hundredth of a chat, or less."),
]


def connect(stack: ExitStack) -> None:
    """LlamaIndex's Settings as you have them: of OpenAI with a key, of the sandbox without."""
    base = os.environ.get("OPENAI_BASE_URL")
    key = os.environ.get("OPENAI_API_KEY")
    if not key:
        sandbox = stack.enter_context(Sandbox(output_tokens=200))
        print(f"No OPENAI_API_KEY: using the sandbox provider at {sandbox.base_url}\n")
        base, key = sandbox.base_url, "not-needed"
    Settings.llm = OpenAI(model=MODEL, api_base=base, api_key=key, max_tokens=200)
    Settings.embed_model = OpenAIEmbedding(model_name="text-embedding-3-small", api_base=base, api_key=key)


def price_of(tokens: int) -> str:
    """What so many output tokens cost, in dollars."""
    return f"${tokens * 0.6 / 10**6:.6f}"


def main() -> None:
    with ExitStack() as stack:
        connect(stack)

        # 1. The budgets. Without a store the ledger would be ./behest.db, and would last.
        meter = stack.enter_context(Meter("memory://", budgets=["$0.0008 per session", "$0.05/day per user"]))

        # 2. The one line: all that is asked through Settings is metered from here on.
        stack.enter_context(meter.llama_index(Settings))

        # 3. The index. Its embeddings are booked on a session of their own.
        with meter.session("indexing", user="librarian"):
            index = VectorStoreIndex.from_documents(DOCUMENTS)
        print(f"Indexed {len(DOCUMENTS)} documents.")

        # 4. Two users, each in a session: a question, and a streamed one.
        with meter.session("conversation-1", user="user-7"):
            print("One answer:    ", short(str(index.as_query_engine().query("What is a token?"))))
        with meter.session("conversation-2", user="user-8"):
            streamed: Any = index.as_query_engine(streaming=True).query("What does a token cost?")
            print("A streamed one:", short("".join(streamed.response_gen)))

            # 5. An agent with a tool, in the same session.
            agent = FunctionAgent(tools=[price_of], llm=Settings.llm)
            print("An agent:      ", short(asyncio.run(ask(agent, "What do 500 tokens cost?"))))

        # 6. On and on, until the budget says no. The refused call is never sent.
        engine = index.as_query_engine()
        with meter.session("conversation-1", user="user-7"):
            for number in range(2, 100):
                try:
                    engine.query("Tell me everything about tokens.")
                except BudgetExceeded as error:
                    print(f"\nStopped at question {number}:\n{error}\n")
                    break

        # 7. The report: what was embedded, and what was asked.
        print_report(meter.ledger, by=("session", "user", "operation"))


async def ask(agent: FunctionAgent, question: str) -> str:
    return str(await agent.run(question))


def short(text: str, most: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


if __name__ == "__main__":
    main()
