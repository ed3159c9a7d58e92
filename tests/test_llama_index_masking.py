"""LlamaIndex's models that ask through no client of ours: masked in messages, put back into answers."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import arun, entries

from behest_integrations import Meter, PolicyRefused

pytest.importorskip("llama_index.core")
pytest.importorskip("presidio_analyzer")

from llama_index.core import Document, SummaryIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.callbacks import CallbackManager
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.llms import ChatMessage, ChatResponse, CompletionResponse, CustomLLM, LLMMetadata
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from openai.types.chat import ChatCompletionMessageFunctionToolCall

MAIL, KEY = "ada@example.com", "AKIAIOSFODNN7EXAMPLE"
TEXT = f"mail {MAIL} with {KEY} [EMAIL"
BACK = f"mail {MAIL} with [SECRET] [EMAIL"
POLICY: dict[str, Any] = {"pii": {"entities": {"EMAIL_ADDRESS": "mask", "SECRET": "redact"}}}
OTHER = "bob@example.org"
heard: list[str] = []


def called(said: str) -> Any:
    """A tool's call, as OpenAI's SDK has them and integrations pass them on."""
    function = {"name": "f", "arguments": json.dumps({"said": said})}
    return ChatCompletionMessageFunctionToolCall.model_validate(
        {"id": "call_1", "type": "function", "function": function}
    )


class Echo(FunctionCallingLLM):
    """Says what it was told, in its text and to a tool; a stream is cut after every third letter."""

    max_tokens: int = 50

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="echo-1", is_chat_model=True, is_function_calling_model=True)

    def _answer(self, text: str, delta: str | None = None) -> ChatResponse:
        message = ChatMessage(text, role="assistant", additional_kwargs={"tool_calls": [called(text)]})
        extra = {} if delta is None else {"thinking_delta": delta}
        return ChatResponse(message=message, delta=delta, additional_kwargs=extra)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        heard.append(str([m.model_dump() for m in messages]))
        return self._answer(messages[-1].content or "")

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        heard.append(str([m.model_dump() for m in messages]))
        text = messages[-1].content or ""

        def chunks() -> Iterator[ChatResponse]:
            for start in range(0, len(text), 3):
                yield self._answer(text[: start + 3], text[start : start + 3])

        return chunks()

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return self.chat(messages)

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        chunks = self.stream_chat(messages)

        async def each() -> Any:
            for chunk in chunks:
                yield chunk

        return each()

    def complete(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    acomplete = stream_complete = astream_complete = complete

    def _prepare_chat_with_tools(self, tools: Any, user_msg: Any = None, **kwargs: Any) -> dict[str, Any]:
        return {"messages": [*(kwargs.get("chat_history") or []), *([user_msg] if user_msg else [])]}

    def get_tool_calls_from_response(self, response: Any, **kwargs: Any) -> list[ToolSelection]:
        return []


class Words(CustomLLM):
    """The same, of text, with a template of its own."""

    max_tokens: int = 50

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="words-1")

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        prompt = prompt if formatted else self.completion_to_prompt(prompt)
        heard.append(prompt)
        return CompletionResponse(text=prompt)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        text = self.complete(prompt, formatted=formatted).text

        def chunks() -> Iterator[CompletionResponse]:
            for start in range(0, len(text), 4):
                yield CompletionResponse(text=text[: start + 4], delta=text[start : start + 4])

        return chunks()


class Numbers(BaseEmbedding):
    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embeddings([query])[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        heard.extend(texts)
        return [[float(len(text))] for text in texts]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


@pytest.fixture(scope="module")
def meter() -> Iterator[Meter]:
    with Meter("memory://", policy=POLICY) as meter:
        yield meter


def only_masked() -> None:
    assert heard
    assert not any(MAIL in text or KEY in text for text in heard)
    assert any("[EMAIL_ADDRESS_" in text for text in heard)
    heard.clear()


def said_to_a_tool(message: ChatMessage) -> Any:
    (call,) = message.additional_kwargs["tool_calls"]
    assert isinstance(call, ChatCompletionMessageFunctionToolCall)
    return json.loads(call.function.arguments)["said"]


def test_a_chat_model(meter: Meter) -> None:
    model = meter.llama_index(Echo())
    asked = [ChatMessage("x", role="system"), ChatMessage(TEXT)]
    for answer in (model.chat(asked), arun(model.achat(asked))):
        assert answer.message.content == BACK
        assert said_to_a_tool(answer.message) == BACK
    assert asked[1].content == TEXT, "the caller's messages are the caller's"
    only_masked()


def test_its_streams(meter: Meter) -> None:
    model = meter.llama_index(Echo())

    async def stream() -> list[Any]:
        return [chunk async for chunk in await model.astream_chat([ChatMessage(TEXT)])]

    for chunks in (list(model.stream_chat([ChatMessage(TEXT)])), arun(stream())):
        assert "".join(c.delta for c in chunks) == BACK
        assert "".join(c.additional_kwargs["thinking_delta"] for c in chunks) == BACK
        assert chunks[-1].message.content == BACK
        assert said_to_a_tool(chunks[-1].message) == BACK
        seen = [c.message.content for c in chunks]
        assert all(BACK.startswith(text) for text in seen), "what is told is not taken back"
    only_masked()


def test_what_a_conversation_carries_besides_text(meter: Meter) -> None:
    """Tool calls as SDKs' objects, and as JSON; what a tool has answered; ids are no texts."""
    model = meter.llama_index(Echo())
    asked = [
        ChatMessage("hi", role="assistant", additional_kwargs={"tool_calls": [called(TEXT)]}),
        ChatMessage(json.dumps({"to": MAIL}), role="tool", additional_kwargs={"tool_call_id": MAIL}),
    ]
    answer = model.chat(asked)
    assert json.loads(str(answer.message.content)) == {"to": MAIL}
    assert heard[0].count(MAIL) == 1, "an id is sent as it is"
    assert KEY not in heard[0]
    heard.clear()


def test_blocks_of_other_kinds(meter: Meter) -> None:
    types = pytest.importorskip("llama_index.core.base.llms.types")
    if not hasattr(types, "ToolCallBlock"):
        pytest.skip("this version has no blocks of tools")
    call = types.ToolCallBlock(tool_call_id="call_1", tool_name="f", tool_kwargs={"to": MAIL, "n": 3})
    blocks = [types.TextBlock(text=f"to {MAIL}"), call, types.ThinkingBlock(content=f"is it {MAIL}?")]
    answer = meter.llama_index(Echo()).chat([ChatMessage(role="assistant", blocks=blocks)])
    assert answer.message.content == f"to {MAIL}"
    assert heard[0].count("[EMAIL_ADDRESS_") == 3
    only_masked()
    picture = types.ImageBlock(image=b"\x89PNG\r\n\x1a\n", image_mimetype="image/png")
    with pytest.raises(PolicyRefused, match="1 image"):
        meter.llama_index(Echo()).chat([ChatMessage(role="user", blocks=[picture])])
    assert heard == []


@pytest.mark.parametrize("template", [None, f"For {MAIL}: {{}}"])
def test_a_model_of_text(meter: Meter, template: str | None) -> None:
    """What was looked through is what is sent, its template included."""
    own = {} if template is None else {"completion_to_prompt": template.format}
    model, back = meter.llama_index(Words(**own)), (template or "{}").format(BACK)
    assert model.complete(TEXT).text == back
    chunks = list(model.stream_complete(TEXT))
    assert "".join(c.delta or "" for c in chunks) == chunks[-1].text == back
    only_masked()
    assert model.complete("nothing of anybody").text.endswith("nothing of anybody")
    heard.clear()


def test_what_is_built_on_it(meter: Meter) -> None:
    """An index and an agent, which keep what was said in their memory: masked anew for each call."""
    model = meter.llama_index(Echo())
    index = SummaryIndex.from_documents([Document(text=f"She is at {MAIL}.")])
    assert MAIL in str(index.as_query_engine(llm=model).query("where?"))
    streamed: Any = index.as_query_engine(llm=model, streaming=True).query("where?")
    assert MAIL in "".join(streamed.response_gen)

    async def ask() -> str:
        return str(await FunctionAgent(tools=[], llm=model).run(f"I am {MAIL}"))

    assert asyncio.run(ask()) == f"I am {MAIL}"
    only_masked()


def test_embeddings(meter: Meter) -> None:
    model = meter.llama_index(Numbers())
    masked = len(f"[EMAIL_ADDRESS_{'0' * 8}]")
    assert model.get_query_embedding(MAIL) == [float(masked)]
    assert model.get_text_embedding_batch([MAIL, "none"]) == [[float(masked)], [4.0]]
    assert arun(model.aget_query_embedding(MAIL)) == [float(masked)]
    assert heard.count(heard[0]) == 3, "one text has one placeholder, wherever it is embedded"
    only_masked()


def test_what_cannot_be_masked_is_refused(meter: Meter) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": f"writes to {MAIL}"}}
    with pytest.raises(PolicyRefused, match="settings or tools"):
        meter.llama_index(Echo()).chat([ChatMessage("hello")], tools=[tool])
    plain = Echo(callback_manager=CallbackManager([meter.llama_index_handler()]))
    with pytest.raises(PolicyRefused, match="wrap the model itself"):
        plain.chat([ChatMessage(TEXT)])
    carried = ChatMessage("hi", role="assistant", additional_kwargs={"tool_calls": [called(TEXT)]})
    with pytest.raises(PolicyRefused, match="wrap the model itself"):
        plain.chat([carried])
    assert heard == []


def test_nothing_is_kept_and_what_was_sent_is_what_is_counted(meter: Meter) -> None:
    with meter.session("s-masked", user="u"):
        meter.llama_index(Echo()).chat([ChatMessage(TEXT)])
    (entry,) = [e for e in entries(meter) if e.session_id == "s-masked"]
    assert entry.user_id == "u"
    with meter.ledger.reading().connect() as connection:
        kept = connection.exec_driver_sql("SELECT * FROM audit").fetchall()
    assert any("masked" in str(row) for row in kept)
    assert not any(MAIL in str(row) or KEY in str(row) for row in kept)
    only_masked()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([MAIL, "bob@example.org", "[", "]", "[EMAIL_ADDRESS_", "a ", '"', "é"])),
    st.data(),
)
def test_masking_and_putting_back_is_the_identity_wherever_a_stream_is_cut(
    parts: list[str], data: st.DataObject
) -> None:
    from behest_integrations.integrations.llama_index.masking import ChunksPutBack
    from behest_integrations.policy.placeholders import Placeholders, Restorer

    text = " ".join(parts)
    placeholders = Placeholders([text])
    masked = text
    for mail in (MAIL, OTHER):
        masked = masked.replace(mail, placeholders.of("EMAIL_ADDRESS", mail))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(masked)))) | {0, len(masked)})
    whole, told = ChunksPutBack(Restorer(placeholders.texts)), []
    for start, end in itertools.pairwise(cuts):
        chunk = CompletionResponse(text=masked[:end], delta=masked[start:end])
        told.append(whole.chunk(chunk))
    told.extend(whole.rest())
    if told:
        assert "".join(c.delta or "" for c in told) == told[-1].text == text
        assert all(text.startswith(c.text) for c in told)
