"""LangChain adds up what each chunk of a stream says; what was billed is found all the same."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, LLMResult

from behest_integrations import Usage
from behest_integrations.integrations.langchain.translate import Chunks, hear, hear_chunks


def chunk(prompt: int, output: int, text: str = "a") -> ChatGenerationChunk:
    usage = {"input_tokens": prompt, "output_tokens": output, "total_tokens": prompt + output}
    said = {"model_name": "gpt-5", "service_tier": "priority", "id": "chatcmpl-1"}
    message = AIMessageChunk(text, usage_metadata=usage, response_metadata=said)  # type: ignore[arg-type]
    return ChatGenerationChunk(message=message)


def added(chunks: list[ChatGenerationChunk]) -> LLMResult:
    whole: Any = chunks[0]
    for more in chunks[1:]:
        whole = whole + more
    return LLMResult(generations=[[ChatGeneration(message=whole.message)]])


def test_running_totals_are_not_added_up() -> None:
    chunks = [chunk(8, n) for n in range(1, 31)]
    result = added(chunks)
    said = Chunks()
    for one in chunks:
        said.add(one)
    for heard in (hear(result, said), hear_chunks(chunks)):
        assert heard.usage == Usage(8, 30)
        assert (heard.model, heard.service_tier, heard.provider_id) == ("gpt-5", "priority", "chatcmpl-1")
    # Without its chunks, the names at least.
    assert (hear(result).model, hear(result).service_tier) == ("gpt-5", "priority")


def test_what_comes_in_parts_is_added_up() -> None:
    assert hear_chunks([chunk(8, 0, ""), chunk(0, 3), chunk(0, 4)]).usage == Usage(8, 7)


def test_zeros_beside_an_answer_are_no_usage() -> None:
    assert hear_chunks([chunk(0, 0), chunk(0, 0)]).usage is None
    message = AIMessage("hello", usage_metadata={"input_tokens": 9, "output_tokens": 0, "total_tokens": 9})
    heard = hear(LLMResult(generations=[[ChatGeneration(message=message)]]))
    assert (heard.usage, heard.text) == (None, "hello")


def test_community_models_leave_the_providers_own_words() -> None:
    said = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
    for metadata in ({"token_usage": said}, {"usage": said}, {"prompt_eval_count": 9, "eval_count": 2}):
        message = AIMessage("hello", response_metadata=metadata)
        assert hear(LLMResult(generations=[[ChatGeneration(message=message)]])).usage == Usage(9, 2)
    for output in ({"token_usage": said}, {"usage": said}):
        result = LLMResult(generations=[[Generation(text="hello")]], llm_output=output)
        assert hear(result).usage == Usage(9, 2)
    old = {"input_token_count": 9, "generated_token_count": 2}
    result = LLMResult(generations=[[Generation(text="hi")]], llm_output={"token_usage": old})
    assert hear(result).usage == Usage(9, 2)
