"""What replies say of their cost: every provider's shape of usage, read right or known to be none."""

from __future__ import annotations

from typing import Any

import pytest
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st

from behest_integrations import Usage
from behest_integrations.rules.usage import RunningUsage, believable
from behest_integrations.wire import Reply
from behest_integrations.wire.usage_shapes import PLACES, SHAPES, find_usage, read_usage

OPENAI = "https://platform.openai.com/docs/api-reference/chat/object"
ANTHROPIC = "https://docs.claude.com/en/docs/build-with-claude/prompt-caching"
GEMINI = "https://ai.google.dev/api/generate-content#UsageMetadata"
BEDROCK = "https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_TokenUsage.html"
COHERE = "https://docs.cohere.com/reference/chat"
LANGCHAIN = "https://reference.langchain.com/python/langchain_core/messages/"

TABLE: list[tuple[str, dict[str, Any], Usage | None]] = [
    (
        OPENAI,
        {
            "prompt_tokens": 19, "completion_tokens": 10, "total_tokens": 29,
            "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 3},
            "completion_tokens_details": {
                "reasoning_tokens": 6, "audio_tokens": 2, "accepted_prediction_tokens": 0,
            },
        },
        Usage(19, 10, cached_input_tokens=4, reasoning_tokens=6, input_audio_tokens=3, output_audio_tokens=2),
    ),
    (
        "https://platform.openai.com/docs/api-reference/responses/object",
        {
            "input_tokens": 36, "output_tokens": 87, "total_tokens": 123,
            "input_tokens_details": {"cached_tokens": 30, "cache_write_tokens": 2},
            "output_tokens_details": {"reasoning_tokens": 80},
        },
        Usage(36, 87, cached_input_tokens=30, cache_write_tokens=2, reasoning_tokens=80),
    ),
    (
        "https://platform.openai.com/docs/api-reference/embeddings/create",
        {"prompt_tokens": 8, "total_tokens": 8},
        Usage(8),
    ),
    # The cache comes on top of `input_tokens`; what is in no part by lifetime lives for 5 minutes.
    (
        ANTHROPIC,
        {
            "input_tokens": 50, "output_tokens": 10,
            "cache_read_input_tokens": 100, "cache_creation_input_tokens": 248,
            "cache_creation": {"ephemeral_5m_input_tokens": 148, "ephemeral_1h_input_tokens": 100},
        },
        Usage(398, 10, 100, 248, cache_write_1h_tokens=100),
    ),
    (
        ANTHROPIC,
        {
            "input_tokens": 50, "output_tokens": 10, "cache_creation_input_tokens": 248,
            "cache_creation": {"ephemeral_1h_input_tokens": 100},
        },
        Usage(298, 10, 0, 248, cache_write_1h_tokens=100),
    ),
    (ANTHROPIC, {"input_tokens": 50, "output_tokens": 10, "cache_creation_input_tokens": 248},
     Usage(298, 10, 0, 248)),
    (
        GEMINI,
        {
            "promptTokenCount": 40, "candidatesTokenCount": 12, "thoughtsTokenCount": 100,
            "toolUsePromptTokenCount": 7, "cachedContentTokenCount": 30, "totalTokenCount": 159,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 35}, {"modality": "AUDIO", "tokenCount": 5},
            ],
        },
        Usage(47, 112, 30, reasoning_tokens=100, input_audio_tokens=5),
    ),
    (GEMINI, {"prompt_token_count": 40, "candidates_token_count": None, "thoughts_token_count": 9,
              "total_token_count": 49}, Usage(40, 9, reasoning_tokens=9)),
    # Gemini's and Vertex's compatible endpoints, and xAI: thoughts in the total only.
    ("https://ai.google.dev/gemini-api/docs/openai",
     {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 120}, Usage(5, 115)),
    (
        "https://docs.x.ai/docs/guides/reasoning",
        {
            "prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 135,
            "completion_tokens_details": {"reasoning_tokens": 94},
        },
        Usage(32, 103, reasoning_tokens=94),
    ),
    # `inputTokens` leaves the cache out, `totalTokens` has it in.
    (
        BEDROCK,
        {
            "inputTokens": 100, "outputTokens": 50, "totalTokens": 30350,
            "cacheReadInputTokens": 30000, "cacheWriteInputTokens": 200,
            "cacheDetails": [{"ttl": "1h", "inputTokens": 150}, {"ttl": "5m", "inputTokens": 50}],
        },
        Usage(30300, 50, 30000, 200, cache_write_1h_tokens=150),
    ),
    (
        "https://docs.llamaindex.ai/en/stable/api_reference/llms/bedrock_converse/",
        {
            "prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 30150,
            "cache_read_input_tokens": 30000, "cache_creation_input_tokens": 0,
        },
        Usage(30100, 50, 30000),
    ),
    # The same names, and the cache within: Databricks, LiteLLM.
    (
        "https://docs.litellm.ai/docs/completion/prompt_caching",
        {
            "prompt_tokens": 30100, "completion_tokens": 50, "total_tokens": 30150,
            "cache_read_input_tokens": 30000, "cache_creation_input_tokens": 0,
            "prompt_tokens_details": {"cached_tokens": 30000},
        },
        Usage(30100, 50, 30000),
    ),
    ("https://github.com/ollama/ollama/blob/main/docs/api.md",
     {"prompt_eval_count": 26, "eval_count": 298, "total_duration": 4935886791}, Usage(26, 298)),
    (
        COHERE,
        {"billed_units": {"input_tokens": 5.0, "output_tokens": 418.0},
         "tokens": {"input_tokens": 71.0, "output_tokens": 420.0}},
        Usage(5, 418),
    ),
    (COHERE, {"tokens": {"input_tokens": 71, "output_tokens": 420}, "cached_tokens": 16}, Usage(71, 420, 16)),
    ("https://docs.mistral.ai/api/",
     {"prompt_tokens": 16, "completion_tokens": 34, "total_tokens": 50, "num_cached_tokens": 4,
      "prompt_audio_seconds": None}, Usage(16, 34, 4)),
    (
        "https://api-docs.deepseek.com/api/create-chat-completion",
        {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25,
         "prompt_cache_hit_tokens": 16, "prompt_cache_miss_tokens": 4},
        Usage(20, 5, 16),
    ),
    ("https://platform.moonshot.ai/docs/api/chat",
     {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25, "cached_tokens": 19},
     Usage(20, 5, 19)),
    (
        "https://openrouter.ai/docs/use-cases/usage-accounting",
        {
            "prompt_tokens": 194, "completion_tokens": 2, "total_tokens": 196, "cost": 0.95,
            "prompt_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 100, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
        Usage(194, 2, 10, 100),
    ),
    (
        "https://docs.perplexity.ai/getting-started/pricing",
        {"prompt_tokens": 7, "completion_tokens": 10, "total_tokens": 17, "citation_tokens": 20,
         "num_search_queries": 3, "reasoning_tokens": 30},
        Usage(7, 60, reasoning_tokens=30),
    ),
    (
        LANGCHAIN,
        {
            "input_tokens": 350, "output_tokens": 240, "total_tokens": 590,
            "input_token_details": {"audio": 10, "cache_read": 100, "cache_creation": 0,
                                    "ephemeral_5m_input_tokens": 150, "ephemeral_1h_input_tokens": 50},
            "output_token_details": {"audio": 10, "reasoning": 200},
        },
        Usage(350, 240, 100, 200, 200, 10, 10, 50),
    ),
    (
        LANGCHAIN,
        {
            "input_tokens": 350, "output_tokens": 240, "total_tokens": 590,
            "input_token_details": {"priority_cache_read": 100, "priority": 250},
            "output_token_details": {"priority_reasoning": 200, "priority": 40},
        },
        Usage(350, 240, 100, reasoning_tokens=200),
    ),
    # Numbers are numbers however they are written; what cannot be one is no usage.
    # xAI: as many thoughts as cached tokens, by chance.
    (
        "https://docs.x.ai/docs/guides/reasoning",
        {
            "prompt_tokens": 71, "completion_tokens": 2, "total_tokens": 79,
            "prompt_tokens_details": {"cached_tokens": 6},
            "completion_tokens_details": {"reasoning_tokens": 6},
        },
        Usage(71, 8, 6, reasoning_tokens=6),
    ),
    (OPENAI, {"prompt_tokens": 100.0, "completion_tokens": "7", "total_tokens": "107.0"}, Usage(100, 7)),
    (OPENAI, {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, None),
    (OPENAI, {"prompt_tokens": 5, "completion_tokens": -1, "total_tokens": 4}, None),
    (OPENAI, {"prompt_tokens": 5, "completion_tokens": 1.5}, None),
    (OPENAI, {"prompt_tokens": True, "completion_tokens": 1}, None),
    (OPENAI, {"prompt_tokens": 5, "completion_tokens": float("nan")}, None),
    (OPENAI, {"prompt_tokens": "many", "completion_tokens": 1}, None),
    (OPENAI, {"prompt_tokens": 2**60, "completion_tokens": 1}, None),
    (OPENAI, {}, None),
]  # fmt: skip


@pytest.mark.parametrize(("source", "said", "usage"), TABLE)
def test_a_usage_is_read_as_its_provider_means_it(source: str, said: Any, usage: Usage | None) -> None:
    assert source.startswith("https://")
    assert read_usage(said) == usage


def test_every_shape_and_place_has_its_source() -> None:
    assert all(s.source.startswith("https://") for s in SHAPES)
    assert all(source.startswith("https://") for _, source in PLACES)


@pytest.mark.parametrize(
    ("provider", "flavor", "reply"),
    [
        ("openai", "chat", {"usage": TABLE[0][1]}),
        ("openai", "responses", {"usage": TABLE[1][1]}),
        ("openai", "embeddings", {"usage": TABLE[2][1]}),
        ("anthropic", "default", {"usage": TABLE[3][1]}),
        ("google", "default", {"usageMetadata": TABLE[6][1]}),
        ("aws", "default", {"usage": TABLE[10][1]}),
        ("cohere", "default", {"usage": TABLE[14][1]}),
        ("moonshotai", "chat", {"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}),
        ("x-ai", "chat", {"usage": TABLE[9][1]}),
        ("openrouter", "chat", {"usage": TABLE[19][1]}),
        ("perplexity", "default", {"usage": TABLE[20][1]}),
    ],
)
def test_the_price_list_reads_the_same(provider: str, flavor: str, reply: dict[str, Any]) -> None:
    found = next(p for p in get_snapshot().providers if p.id == provider)
    _, theirs = found.extract_usage({"model": "m", **reply}, api_flavor=flavor)
    ours = read_usage(find_usage(reply))
    assert ours is not None
    assert (ours.input_tokens, ours.output_tokens) == (theirs.input_tokens, theirs.output_tokens or 0)
    assert ours.cached_input_tokens == (theirs.cache_read_tokens or 0)
    assert ours.cache_write_tokens == (theirs.cache_write_tokens or 0)
    assert ours.cache_write_1h_tokens == (getattr(theirs, "cache_write_1h_tokens", None) or 0)


PLAIN = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


@pytest.mark.parametrize(
    "body",
    [
        {"usage": PLAIN},
        {"usage": None, "x_groq": {"usage": PLAIN}},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": PLAIN}]},
        {"type": "response.completed", "response": {"usage": PLAIN}},
        {"usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 4}},
        {
            "type": "message-end",
            "delta": {"usage": {"billed_units": {"input_tokens": 3, "output_tokens": 4}}},
        },
        {"metadata": {"usage": {"inputTokens": 3, "outputTokens": 4, "totalTokens": 7}}},
        {"result": {"usage": PLAIN}},
        {"meta": {"billed_units": {"input_tokens": 3, "output_tokens": 4}}},
        {"model": "m", "done": True, "prompt_eval_count": 3, "eval_count": 4},
        {"token_usage": PLAIN},
    ],
)
def test_usage_is_found_wherever_it_lies(body: dict[str, Any]) -> None:
    assert read_usage(find_usage(body)) == Usage(3, 4)


# ── usage that cannot be true ──────────────────────────────────────────────────────────


def test_usage_that_cannot_be_true_is_none() -> None:
    assert not believable(Usage())
    assert not believable(Usage(8), text=5)
    assert not believable(Usage(8), events=1)
    assert believable(Usage(8))  # an embedding
    assert believable(Usage(8, 1), text=200)
    assert not believable(Usage(8, 1), text=2000)
    assert not believable(Usage(8, 1), events=100)


def chunk(text: str | None = None, finish: str | None = None, usage: Any = None) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    return {
        "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        "usage": usage,
    }


ZEROS = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


@pytest.mark.parametrize(
    "zeros", [ZEROS, {**PLAIN, "completion_tokens": 0, "total_tokens": 3}, {**PLAIN, "prompt_tokens": 0}]
)
def test_zeros_beside_an_answer_are_no_usage(zeros: dict[str, int]) -> None:
    for message in ({"content": "hello"}, {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}):
        reply = Reply()
        reply.read({"choices": [{"message": message, "finish_reason": "stop"}], "usage": zeros})
        assert reply.usage is None, message


def test_zeros_never_overwrite_usage() -> None:
    reply = Reply()
    for event in (chunk("hi"), chunk(finish="stop", usage=PLAIN), {"choices": [], "usage": ZEROS}):
        reply.read(event)
    assert reply.usage == Usage(3, 4)
    assert reply.final_usage


def test_running_totals_are_no_end() -> None:
    def told(n: int) -> dict[str, int]:
        return {"prompt_tokens": 3, "completion_tokens": n, "total_tokens": 3 + n}

    reply = Reply()
    for n in range(1, 5):
        reply.read(chunk("a", usage=told(n)))
    assert reply.usage == Usage(3, 4)
    assert not reply.final_usage
    reply.read({"error": {"message": "overloaded"}})
    reply.ended = True  # [DONE] after an error
    assert reply.error
    assert not reply.final_usage

    whole = Reply(choices=2)
    whole.read({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": told(5)})
    assert not whole.final_usage  # the other one goes on
    whole.read({"choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}], "usage": told(9)})
    assert whole.final_usage


def test_anthropics_stream_tells_its_usage_in_two_parts() -> None:
    reply = Reply()
    start = {"input_tokens": 25, "cache_read_input_tokens": 100, "output_tokens": 1}
    reply.read({"type": "message_start", "message": {"model": "claude", "usage": start}})
    assert not reply.final_usage
    reply.read(
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 15}}
    )
    assert reply.usage == Usage(125, 15, 100)
    assert reply.final_usage


# ── the usages of a stream's chunks ────────────────────────────────────────────────────


def run(*usages: Usage | None) -> Usage | None:
    running = RunningUsage()
    for usage in usages:
        running.add(usage)
    return running.usage


@given(st.integers(1, 1000), st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_running_totals_are_their_last(prompt: int, steps: list[int]) -> None:
    outputs = [sum(steps[: i + 1]) + 50 for i in range(len(steps))]
    assert run(*(Usage(prompt, n) for n in outputs)) == Usage(prompt, outputs[-1])


@given(st.integers(1, 1000), st.lists(st.integers(0, 50), min_size=1, max_size=40))
def test_parts_are_added_up(prompt: int, outputs: list[int]) -> None:
    """langchain-anthropic and langchain-google-genai: the input with the first chunk only."""
    assert run(Usage(prompt), *(Usage(0, n) for n in outputs)) == Usage(prompt, sum(outputs))


def test_what_each_chunk_added_is_added_up() -> None:
    assert run(None, Usage(8, 3), Usage()) == Usage(8, 3)
    assert run(*[Usage(8, 1)] * 30) == Usage(8, 30)
    assert run(Usage(8, 5), Usage(8, 2), Usage(8, 3)) == Usage(8, 10)
    assert run(Usage(8, 20), Usage(8, 20)) == Usage(8, 20)
    assert run() is None
