"""LangChain's models that ask through no client of ours: masked in messages, put back into answers.

And its embeddings, which answer with no text.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from support import arun

from behest_integrations import Meter, PolicyRefused

pytest.importorskip("langchain_core")
pytest.importorskip("presidio_analyzer")

from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel, BaseLLM
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.outputs import (
    ChatGeneration,
    ChatGenerationChunk,
    ChatResult,
    Generation,
    GenerationChunk,
    LLMResult,
)

MAIL, KEY = "ada@example.com", "AKIAIOSFODNN7EXAMPLE"
TEXT = f"mail {MAIL} with {KEY} [EMAIL"
BACK = f"mail {MAIL} with [SECRET] [EMAIL"
POLICY: dict[str, Any] = {"pii": {"entities": {"EMAIL_ADDRESS": "mask", "SECRET": "redact"}}}
heard: list[str] = []


class Echo(BaseChatModel):
    """Says what it was told, in its text and to a tool."""

    max_tokens: int = 50

    @property
    def _llm_type(self) -> str:
        return "echo"

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        text = messages[-1].text if isinstance(messages[-1].text, str) else messages[-1].text()
        heard.append(text)
        call = {"name": "f", "args": {"said": text}, "id": "t", "type": "tool_call"}
        usage: Any = {"input_tokens": 5, "output_tokens": 5, "total_tokens": 10}
        message = AIMessage(text, tool_calls=[call], usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        text = messages[-1].content
        heard.append(text)
        for start in range(0, len(text), 3):
            yield ChatGenerationChunk(message=AIMessageChunk(content=text[start : start + 3]))
        for start in range(0, len(text), 5):
            call = {"name": None, "args": text[start : start + 5], "id": None, "index": 0}
            yield ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=[call]))  # type: ignore[list-item]

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream(messages):
            yield chunk


class Words(BaseLLM):
    """The same, of text."""

    max_tokens: int = 50

    @property
    def _llm_type(self) -> str:
        return "words"

    def _generate(self, prompts: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> LLMResult:
        heard.extend(prompts)
        return LLMResult(generations=[[Generation(text=p)] for p in prompts])

    def _stream(
        self, prompt: str, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[GenerationChunk]:
        heard.append(prompt)
        for start in range(0, len(prompt), 4):
            yield GenerationChunk(text=prompt[start : start + 4])


@pytest.fixture(scope="module")
def meter() -> Iterator[Meter]:
    with Meter("memory://", policy=POLICY) as meter:
        yield meter


def only_masked() -> None:
    assert heard
    assert not any(MAIL in text or KEY in text for text in heard)
    heard.clear()


def test_a_chat_model(meter: Meter) -> None:
    model = meter.langchain_model(Echo())
    for answer in (model.invoke(TEXT), arun(model.ainvoke([SystemMessage("x"), HumanMessage(TEXT)]))):
        assert answer.content == BACK
        assert answer.tool_calls[0]["args"] == {"said": BACK}
    assert model.invoke([HumanMessage([{"type": "text", "text": TEXT}])]).content == BACK
    only_masked()


def test_its_streams(meter: Meter) -> None:
    model = meter.langchain_model(Echo())

    async def stream() -> list[Any]:
        return [chunk async for chunk in model.astream(TEXT)]

    for chunks in (list(model.stream(TEXT)), arun(stream())):
        assert "".join(c.content for c in chunks) == BACK
        assert "".join(c["args"] or "" for m in chunks for c in m.tool_call_chunks) == BACK
    only_masked()


def test_a_model_of_text(meter: Meter) -> None:
    model = meter.langchain_model(Words())
    assert model.invoke(TEXT) == BACK
    assert "".join(model.stream(TEXT)) == BACK
    assert [g[0].text for g in model.generate([TEXT, "none"]).generations] == [BACK, "none"]
    only_masked()


class Numbers(Embeddings):
    """Their class's own two; LangChain makes the awaited ones of them."""

    model = "numbers-1"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        heard.extend(texts)
        return [[float(len(text))] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def test_embeddings(meter: Meter) -> None:
    embeddings = meter.langchain_embeddings(Numbers())
    masked = [float(len(f"[EMAIL_ADDRESS_{'0' * 8}]"))]
    assert embeddings.embed_query(MAIL) == arun(embeddings.aembed_query(MAIL)) == masked
    assert embeddings.embed_documents([MAIL, "none"]) == [masked, [4.0]]
    assert arun(embeddings.aembed_documents([KEY])) == [[float(len("[SECRET]"))]]
    only_masked()


def test_what_cannot_be_masked_is_refused(meter: Meter) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": f"writes to {MAIL}"}}
    with pytest.raises(PolicyRefused, match="settings or tools"):
        meter.langchain_model(Echo()).invoke("hello", tools=[tool])
    with pytest.raises(PolicyRefused, match="wrap the model itself"):
        Echo().invoke(TEXT, {"callbacks": [meter.langchain()]})
    assert heard == []
