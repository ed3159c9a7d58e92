"""Helpers for the tests of LlamaIndex: models against the sandbox, and each way to meter them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llama_index.core.callbacks import CallbackManager
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.llms import (
    ChatMessage,
    CompletionResponse,
    CompletionResponseGen,
    CustomLLM,
    LLMMetadata,
)
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.settings import Settings
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.llms.openai import OpenAI
from support import ANSWER, MODEL

from behest_integrations import Meter
from behest_integrations.sandbox import Sandbox

HELLO = [ChatMessage("hello there")]
SMALL = {"model": "gpt-4o-mini", "max_tokens": 60}


def llm(sandbox: Sandbox, **options: Any) -> OpenAI:
    """A plain model: its calls are the $0.03 call of the other tests."""
    settings = {"model": MODEL, "max_tokens": ANSWER, "max_retries": 0, **options}
    return OpenAI(api_base=sandbox.base_url, api_key="none", **settings)


def embedder(sandbox: Sandbox, **options: Any) -> OpenAIEmbedding:
    name = "text-embedding-3-small"
    return OpenAIEmbedding(
        api_base=sandbox.base_url, api_key="none", model_name=name, max_retries=0, **options
    )


@contextmanager
def opened(way: str, meter: Meter, model: Any) -> Iterator[Any]:
    """`model`, metered in the way of this name; `Settings` is as before afterwards."""
    kept = Settings._llm, Settings._embed_model, Settings._callback_manager
    name = "embed_model" if isinstance(model, BaseEmbedding) else "llm"
    try:
        if way == "wrapper":
            yield meter.llama_index(model)
        elif way == "settings":
            setattr(Settings, name, model)
            with meter.llama_index(Settings):
                yield getattr(Settings, name)
        elif way == "handler":
            Settings.callback_manager = CallbackManager([meter.llama_index_handler()])
            setattr(Settings, name, model)
            yield getattr(Settings, name)
        else:  # both
            Settings.callback_manager = CallbackManager([meter.llama_index_handler()])
            setattr(Settings, name, model)
            with meter.llama_index(Settings):
                yield getattr(Settings, name)
    finally:
        Settings._llm, Settings._embed_model, Settings._callback_manager = kept


@contextmanager
def no_collection() -> Iterator[None]:
    """LlamaIndex leaves the SDK's streams that it is asked to close to the garbage collector, which
    may come while httpcore's pool holds its lock, and then waits for itself. (A metered model
    closes them; with a handler alone nobody does.)"""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()


WAYS = ("wrapper", "settings", "handler", "both")
LOWERS = ("wrapper", "settings", "both")
"""The ways that can lower an output limit, and so use up the budget."""


class House(CustomLLM):
    """Not OpenAI's: it tells no usage, and its own limit."""

    model: str = "house-1"
    max_tokens: int = 50
    answer: str = "one two three"

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name=self.model, num_output=self.max_tokens)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text=self.answer[: self.max_tokens])

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        def chunks() -> CompletionResponseGen:
            text = ""
            for word in self.answer.split(" "):
                text += word
                yield CompletionResponse(text=text, delta=word)

        return chunks()
