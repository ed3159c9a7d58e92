"""What metering adds to a call of LlamaIndex, as ratios to the bare model in the same run.

The model is a fake that answers at once: of a real call, of hundreds of milliseconds, this is little.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from measure import BUDGETS, interleaved, say

pytest.importorskip("llama_index.core")

from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms import ChatMessage, ChatResponse, CustomLLM, LLMMetadata
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback

from behest_integrations import Meter

pytestmark = pytest.mark.benchmark

ASKED = [ChatMessage("What is the capital of France, and how many people live there? " * 4)]
USAGE = {"prompt_tokens": 80, "completion_tokens": 60, "total_tokens": 140}


class Instant(CustomLLM):
    """Answers at once, with usage, as a provider's model would."""

    model: str = "gpt-4o-mini"
    max_tokens: int = 200

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name=self.model, num_output=self.max_tokens, is_chat_model=True)

    @llm_chat_callback()
    def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        answer = ChatMessage("Paris, about two million.", role="assistant")
        return ChatResponse(message=answer, raw={"usage": USAGE})

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError


def test_time_added_to_a_call_of_llama_index(tmp_path: Path) -> None:
    bare = Instant()
    for store in ("memory://", f"sqlite:///{tmp_path}/b.db"):
        meter = Meter(store, budgets=BUDGETS)
        handled = Instant(callback_manager=CallbackManager([meter.llama_index_handler()]))
        wrapped = meter.llama_index(bare)
        work = {
            "bare model": lambda: bare.chat(ASKED),
            "handler": lambda h=handled: h.chat(ASKED),
            "wrapper": lambda w=wrapped: w.chat(ASKED),
        }
        with meter.session("conversation-1", user="user-1"):
            interleaved(work, rounds=2, each=20)
            found = interleaved(work, rounds=30, each=15)
        model = found["bare model"]
        say(
            f"time added to a call of LlamaIndex, a model that answers at once, 3 budgets, {store[:6]}",
            f"  bare model   {model * 1e6:7.0f} µs",
            *(
                f"  {n:<12} {(found[n] - model) * 1e6:+7.0f} µs  {(found[n] - model) / model:5.2f} × bare"
                for n in ("handler", "wrapper")
            ),
        )
