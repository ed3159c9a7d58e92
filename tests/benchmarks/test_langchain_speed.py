"""What metering adds to a call of LangChain, as ratios to the bare model in the same run.

The model is a fake that answers at once: of a real call, of hundreds of milliseconds, this is little.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from measure import BUDGETS, interleaved, say

pytest.importorskip("langchain.agents")

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from behest_integrations import Meter

pytestmark = pytest.mark.benchmark

QUESTION = "What is the capital of France, and how many people live there? " * 4


class Instant(BaseChatModel):
    """Answers at once, with usage, as a provider's model would."""

    max_tokens: int = 200

    @property
    def _llm_type(self) -> str:
        return "instant"

    def _get_ls_params(self, stop: Any = None, **kwargs: Any) -> Any:
        return {"ls_provider": "openai", "ls_model_name": "gpt-4o-mini", "ls_max_tokens": 200}

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        usage = {"input_tokens": 80, "output_tokens": 60, "total_tokens": 140}
        answer = AIMessage("Paris, about two million.", usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=answer)])


def test_time_added_to_a_call_of_langchain(tmp_path: Path) -> None:
    bare = Instant()
    asked = {"messages": [{"role": "user", "content": QUESTION}]}
    agent = create_agent(bare)
    for store in ("memory://", f"sqlite:///{tmp_path}/b.db"):
        meter = Meter(store, budgets=BUDGETS)
        handler = {"callbacks": [meter.langchain()]}
        wrapped = meter.langchain_model(bare)
        lean = create_agent(bare, middleware=[meter.langchain_middleware()])
        work = {
            "bare model": lambda: bare.invoke(QUESTION),
            "callback": lambda h=handler: bare.invoke(QUESTION, h),
            "wrapper": lambda w=wrapped: w.invoke(QUESTION),
            "bare agent": lambda: agent.invoke(asked),
            "middleware": lambda a=lean: a.invoke(asked),
        }
        with meter.session("conversation-1", user="user-1"):
            interleaved(work, rounds=2, each=20)
            found = interleaved(work, rounds=30, each=15)
        model, graph = found["bare model"], found["bare agent"]

        def added(name: str, to: float, found: dict[str, float] = found) -> str:
            more = found[name] - to
            return f"  {name:<12} {more * 1e6:+7.0f} µs  {more / to:5.2f} × bare"

        say(
            f"time added to a call of LangChain, a model that answers at once, 3 budgets, {store[:6]}",
            f"  bare model   {model * 1e6:7.0f} µs",
            added("callback", model),
            added("wrapper", model),
            f"  bare agent   {graph * 1e6:7.0f} µs",
            added("middleware", graph),
        )
