"""The worst case of a request is an upper bound of what it is billed: over every price in
the list, for random requests and usages, with and without a tokenizer."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any

import pytest
from genai_prices import Usage as ListUsage
from genai_prices import calc_price
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from behest_integrations import ConfigError, Meter, Price, Unbounded, UnknownPrice, Usage
from behest_integrations.prices import Pricing
from behest_integrations.prices.habits import searching
from behest_integrations.prices.list import compile_model
from behest_integrations.prices.rates import ceil_nano, round_nano
from behest_integrations.sandbox.model import prompt_tokens
from behest_integrations.wire import bound_request, image_bound, operation_of
from behest_integrations.wire import tokens as token_module
from behest_integrations.wire.usage_shapes import read_usage

NOW = datetime.now(timezone.utc)
WIDE = Context(prec=60)
MODELS = [
    (provider.id, info, compiled)
    for provider in get_snapshot().providers
    for info in provider.models
    if (compiled := compile_model(info, provider.id, NOW)) is not None
]


@st.composite
def usages(draw: st.DrawFn, *, audio: bool = True) -> Usage:
    total = draw(st.integers(0, 3_000_000) | st.sampled_from([0, 1, 128_000, 200_000, 200_001, 272_001]))
    cached = draw(st.integers(0, total))
    write = draw(st.integers(0, total - cached))
    heard = draw(st.integers(0, total - cached - write)) if audio else 0
    output = draw(st.integers(0, 200_000))
    reasoning = draw(st.integers(0, output))
    spoken = draw(st.integers(0, output - reasoning)) if audio else 0
    return Usage(total, output, cached, write, reasoning, heard, spoken)


def test_the_whole_list_compiles() -> None:
    assert len(MODELS) > 1500
    assert {"openai", "anthropic", "google", "azure", "groq", "mistral", "x-ai"} <= {p for p, _, _ in MODELS}


@settings(max_examples=300, deadline=None)
@given(usages(), st.integers(0, 50_000), st.integers(0, 50_000))
def test_a_bound_is_at_least_the_cost_for_every_model(usage: Usage, more_in: int, more_out: int) -> None:
    """Whatever tier the reply names, and however much smaller the truth is than the bound."""
    heard, said = usage.input_audio_tokens, usage.output_audio_tokens
    silent = replace(usage, input_audio_tokens=0, output_audio_tokens=0)
    for provider, info, pricing in MODELS:
        hears = "input_audio" not in pricing.standard.rates(0).missing
        speaks = "output_audio" not in pricing.standard.rates(0).missing
        usage = replace(silent, input_audio_tokens=heard if hears else 0, output_audio_tokens=said * speaks)
        fixed, per_output = pricing.bound(
            usage.input_tokens + more_in, service_tier=None, input_audio=hears, output_audio=speaks
        )
        bound = ceil_nano(fixed + per_output * (usage.output_tokens + more_out))
        for tier in [None, *pricing.tiers]:
            assert pricing.cost(usage, tier) <= bound, (provider, info.id, tier)


@settings(max_examples=200, deadline=None)
@given(usages(audio=False), st.sampled_from([None, "default", "flex", "priority"]))
def test_a_bound_without_audio_or_for_a_pinned_tier(usage: Usage, tier: str | None) -> None:
    for provider, info, pricing in MODELS:
        if tier == "priority" and not {tier} & {*pricing.tiers, *pricing.ceilings}:
            with pytest.raises(UnknownPrice, match="tier 'priority'"):
                pricing.bound(usage.input_tokens, service_tier=tier)
            continue
        fixed, per_output = pricing.bound(usage.input_tokens, service_tier=tier)
        bound = ceil_nano(fixed + per_output * usage.output_tokens)
        assert pricing.cost(usage, tier) <= bound, (provider, info.id, tier)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1_000_000), st.integers(0, 100_000), st.floats(0, 1))
def test_a_cost_is_what_the_price_list_says(prompt: int, output: int, share: float) -> None:
    cached = int(prompt * share)
    usage = Usage(prompt, output, cached_input_tokens=cached)
    theirs = ListUsage(input_tokens=prompt, output_tokens=output, cache_read_tokens=cached)
    for provider, info, pricing in MODELS:
        if not info.match or info.get_prices(NOW).requests_kcount is not None or pricing.unseen:
            continue
        if searching(info.id) is not None:  # it carries a fee that the list does not have
            continue
        try:
            said = calc_price(theirs, info.id, provider_id=provider, genai_request_timestamp=NOW)
        except LookupError:
            continue
        if said.model.id != info.id:
            continue
        cost = said.total_price.quantize(Decimal("1e-9"), ROUND_HALF_EVEN)
        assert Decimal(pricing.cost(usage)) == cost * 10**9, (provider, info.id)


@given(st.integers(0, 10**30))
def test_bounds_round_up_and_costs_to_even(femto: int) -> None:
    exact = Decimal(femto) / 10**6
    assert ceil_nano(femto) >= exact > ceil_nano(femto) - 1 or ceil_nano(femto) == exact
    assert round_nano(femto) == int(
        (Decimal(femto).scaleb(-6)).quantize(Decimal(1), ROUND_HALF_EVEN, context=WIDE)
    )


# ── requests ───────────────────────────────────────────────────────────────────────────

texts = st.text(max_size=200) | st.sampled_from(
    ["", "hello there", "会話" * 50, "🧾" * 40, "a" * 500, " " * 90]
)
parameters: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


@st.composite
def chats(draw: st.DrawFn) -> dict[str, Any]:
    part = st.builds(lambda t: {"type": "text", "text": t}, texts)
    call = st.builds(
        lambda name, arguments: {
            "id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments},
        },
        texts, texts,
    )  # fmt: skip
    message = st.builds(
        lambda role, content, calls: {
            "role": role,
            "content": content,
            **({"tool_calls": calls} if calls else {}),
        },
        st.sampled_from(["system", "user", "assistant", "tool", "developer"]),
        texts | st.lists(part, max_size=3),
        st.lists(call, max_size=2),
    )
    tool = st.builds(
        lambda name, schema: {"type": "function", "function": {"name": name, "parameters": schema}},
        texts, parameters,
    )  # fmt: skip
    body: dict[str, Any] = {
        "model": draw(st.sampled_from(["gpt-4o", "gpt-4", "gpt-5", "o3", "claude-sonnet-4-5", "llama-3"])),
        "messages": draw(st.lists(message, min_size=1, max_size=5)),
    }
    if draw(st.booleans()):
        body["tools"] = draw(st.lists(tool, max_size=3))
    if draw(st.booleans()):
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": draw(texts), "schema": draw(parameters)},
        }
    return body


@pytest.mark.parametrize("exact", [True, False], ids=["tokenizer", "bytes"])
@settings(max_examples=150, deadline=None)
@given(body=chats())
def test_a_chat_is_never_billed_for_more_input_than_bounded(exact: bool, body: dict[str, Any]) -> None:
    """The sandbox counts a request's text with the real tokenizer, as the provider would."""
    original = token_module._encoder
    if not exact:
        token_module._encoder = lambda encoding: None  # type: ignore[assignment]
    try:
        bound = bound_request("chat", body).input_tokens
    finally:
        token_module._encoder = original
    prompt = [body["messages"], body.get("tools"), body.get("response_format")]
    billed = prompt_tokens(prompt, body["model"]) + 3 * len(body["messages"]) + 3
    assert bound is not None
    assert billed <= bound


@given(texts)
def test_bytes_bound_every_encoding(text: str) -> None:
    for model in ("gpt-4o", "gpt-4"):
        assert token_module.bound_tokens(text, model) <= token_module.byte_length(text)


@pytest.mark.parametrize(
    ("body", "choices", "limit"),
    [
        ({"n": 4, "max_tokens": 10}, 4, 10),
        ({"max_tokens": 10, "max_completion_tokens": 20}, 1, 20),
        ({}, 1, None),
        ({"n": None}, 1, None),
    ],
)
def test_output_is_bounded_times_n(body: dict[str, Any], choices: int, limit: int | None) -> None:
    bound = bound_request("chat", {"model": "gpt-4o", "messages": [], **body})
    assert (bound.choices, bound.output_limit) == (choices, limit)


def test_completions_multiply_prompts_and_choices_and_have_a_default_limit() -> None:
    body = {"model": "gpt-3.5-turbo-instruct", "prompt": ["a", "b", "c"], "n": 2, "best_of": 5}
    bound = bound_request("completions", body)
    assert (bound.choices, bound.output_limit) == (15, 16)
    assert bound_request("completions", {**body, "echo": True}).extra_output > 0


@pytest.mark.parametrize("bad", [0, -1, "ten", 1.5, True])
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "n"])
def test_impossible_limits_are_refused_before_they_can_hide_a_cost(field: str, bad: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        bound_request("chat", {"model": "gpt-4o", "messages": [], field: bad})


def test_a_rejected_prediction_is_billed_as_output() -> None:
    prediction = {"type": "content", "content": "some code " * 30}
    plain = bound_request("chat", {"model": "gpt-4o", "messages": []})
    predicted = bound_request("chat", {"model": "gpt-4o", "messages": [], "prediction": prediction})
    assert predicted.extra_output >= 60 > plain.extra_output == 0


def image(model: str, **extra: Any) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA" * 500, **extra}}
    return {"model": model, "messages": [{"role": "user", "content": [part]}]}


def test_images_are_bounded_by_the_published_rule_or_refused() -> None:
    low = bound_request("chat", image("gpt-4o", detail="low"))
    high = bound_request("chat", image("gpt-4o"))
    assert 85 <= (low.input_tokens or 0) < 200 < 85 + 8 * 170 <= (high.input_tokens or 0)
    assert high.features == {}
    assert image_bound("some-other-model") is None
    assert image_bound("gpt-5.6-sol") is None
    assert image_bound("gpt-5.55") is None
    assert image_bound("openai/gpt-5.5-2026-04-23") == image_bound("gpt-5.4-mini") > 10_000 * 1.2
    # https://platform.claude.com/docs/en/build-with-claude/vision, by whatever door and name
    assert 4784 <= (image_bound("us.anthropic.claude-opus-5-5") or 0) == image_bound("claude-sonnet-5")
    assert 1661 <= (image_bound("claude-haiku-4-5-20251001") or 0) < 4784
    part = {
        "role": "user",
        "content": [{"type": "image", "source": {"type": "url", "url": "https://a/b.png"}}],
    }
    asked = {"model": "claude-sonnet-5", "max_tokens": 9, "messages": [part]}
    assert 4784 <= (bound_request("messages", asked, provider="anthropic").input_tokens or 0) < 10_000
    assert "image" in bound_request("chat", image("some-other-model")).features


@pytest.mark.parametrize(
    ("part", "feature"),
    [
        ({"type": "input_audio", "input_audio": {"data": "AA=="}}, "input_audio"),
        ({"type": "file", "file": {"file_id": "f"}}, "file"),
        ({"type": "video", "video": "v"}, "part:video"),
    ],
)
def test_what_has_no_rule_is_named(part: dict[str, Any], feature: str) -> None:
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": [part]}]}
    assert list(bound_request("chat", body).features) == [feature]


@pytest.mark.parametrize(
    ("tool", "feature"),
    [
        ({"type": "web_search_preview_2025_03_11"}, "web_search"),
        ({"type": "file_search", "vector_store_ids": ["v"]}, "file_search"),
        ({"type": "code_interpreter", "container": {"type": "auto"}}, "code_interpreter"),
        ({"type": "mcp", "server_url": "https://example.org"}, "mcp"),
        ({"type": "image_generation"}, "image_generation"),
    ],
)
def test_hosted_tools_are_named(tool: dict[str, Any], feature: str) -> None:
    body = {"model": "gpt-4o", "input": "hello", "tools": [tool]}
    assert list(bound_request("responses", body).features) == [feature]


def test_an_unknown_stored_context_is_bounded_by_the_context_window_or_refused() -> None:
    body = {
        "model": "gpt-4o",
        "input": "and?",
        "previous_response_id": "resp_elsewhere",
        "max_output_tokens": 9,
    }
    with Meter("memory://", budgets=["$1"]) as meter:
        plan = meter.plan("responses", "gpt-4o", bound_request("responses", body), provider="openai")
        window = Pricing().find("gpt-4o", "openai").context_window
        assert window
        assert plan.ask.needs["input_tokens"].amount(0) >= window
    with (
        Meter("memory://", budgets=["$1"], prices={"own": Price(input="1", output="1")}) as meter,
        pytest.raises(Unbounded, match="previous_response_id"),
    ):
        meter.plan("responses", "own", bound_request("responses", {**body, "model": "own"}))


@pytest.mark.parametrize(
    ("method", "path", "operation"),
    [
        ("POST", "/chat/completions", "chat"),
        ("post", "chat/completions?x=1", "chat"),
        ("POST", "/responses", "responses"),
        ("POST", "/responses/compact", "responses.compact"),
        ("POST", "/responses/input_tokens", None),
        ("POST", "/responses/resp_1/cancel", None),
        ("GET", "/responses/resp_1", None),
        ("POST", "/embeddings", "embeddings"),
        ("POST", "/moderations", None),
        ("POST", "/files", None),
        ("POST", "/images/generations", "images"),
        ("POST", "/audio/speech", "audio"),
        ("POST", "/batches", "batches"),
        ("POST", "/fine_tuning/jobs", "fine_tuning"),
        ("POST", "/traces/ingest", None),
        ("POST", "/assistants", None),
        ("POST", "/threads", None),
        ("POST", "/threads/t/messages", None),
        ("POST", "/threads/runs", "threads"),
        ("POST", "/threads/t/runs", "threads"),
        ("POST", "/threads/t/runs/r/submit_tool_outputs", "threads"),
        ("POST", "/threads/t/runs/r/cancel", None),
        ("POST", "/evals/e/runs", "evals"),
        ("POST", "/realtime/calls/c/accept", "realtime"),
        ("POST", "/realtime/calls/c/hangup", None),
        ("POST", "/videos", "videos"),
        ("POST", "/something/new", "something"),
        ("DELETE", "/files/f", None),
    ],
)
def test_endpoints_that_are_not_known_are_taken_for_billable(
    method: str, path: str, operation: str | None
) -> None:
    assert operation_of(method, path) == operation


# ── prices of your own ─────────────────────────────────────────────────────────────────


def test_own_prices_win_over_the_list_and_start_on_their_day() -> None:
    today = NOW.date()
    pricing = Pricing(
        {
            "gpt-4o": [
                Price(input="1", output="2"),
                Price(input="10", output="20", start=today - timedelta(days=1)),
                Price(input="100", output="200", start=today + timedelta(days=30)),
            ],
            "gpt-4o-mini": Price(input="7", output="7", start=today + timedelta(days=30)),
        }
    )
    assert pricing.find("gpt-4o").cost(Usage(10**6, 10**6)) == 30 * 10**9
    assert pricing.find("gpt-4o-mini", "openai").source == "genai-prices"


def test_a_price_that_starts_tomorrow_counts_in_the_bound_today() -> None:
    pricing = Pricing(
        {
            "m": [
                Price(input="1", output="1"),
                Price(input="5", output="5", start=NOW.date() + timedelta(days=1)),
            ]
        }
    )
    fixed, per_output = pricing.find("m").bound(1, service_tier=None)
    assert (fixed, per_output) == (5 * 10**9, 5 * 10**9)


def test_classes_default_to_the_dearer_side() -> None:
    found = Pricing({"m": Price(input="2", output="8", cached_input="0.5", request="0.01")}).find("m")
    usage = Usage(1000, 100, cached_input_tokens=400, reasoning_tokens=50)
    assert found.cost(usage) == 10_000_000 + 600 * 2000 + 400 * 500 + 100 * 8000


@pytest.mark.parametrize("bad", [0.15, -1, "cheap", "NaN", "Infinity", True, 10**7])
def test_impossible_prices_are_refused(bad: Any) -> None:
    with pytest.raises(ConfigError):
        Price(input=bad)


def test_an_unknown_model_says_what_to_do() -> None:
    with pytest.raises(UnknownPrice, match="aliases"):
        Pricing().find("no-such-model-at-all")
    assert Pricing(aliases={"ours": "gpt-4o"}).find("ours").model == "gpt-4o"


def test_a_model_priced_for_input_only_cannot_be_asked_for_output() -> None:
    with (
        Meter("memory://", budgets=["$1"], prices={"m": Price(input="1", start=date(2020, 1, 1))}) as meter,
        pytest.raises(UnknownPrice, match="input tokens only"),
    ):
        meter.plan("chat", "m", bound_request("chat", {"model": "m", "messages": []}))


# ── usage as providers report it ───────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("said", "usage"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}, Usage(5, 3)),
        ({"prompt_tokens": 5, "total_tokens": 5}, Usage(5, 0)),
        ({"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 20}, Usage(5, 15)),
        (
            {
                "input_tokens": 9, "output_tokens": 7, "total_tokens": 16,
                "input_tokens_details": {"cached_tokens": 4},
                "output_tokens_details": {"reasoning_tokens": 6},
            },
            Usage(9, 7, cached_input_tokens=4, reasoning_tokens=6),
        ),
        (
            {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 99}},
            Usage(5, cached_input_tokens=5),
        ),
        ({"completion_tokens": 3}, None),
        ({"prompt_tokens": -1, "completion_tokens": 3}, None),
        ({"prompt_tokens": "5"}, Usage(5)),
        (None, None),
        ("usage", None),
    ],
)  # fmt: skip
def test_usage_is_read_or_known_to_be_missing(said: Any, usage: Usage | None) -> None:
    assert read_usage(said) == usage


names = st.sampled_from(
    ["prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "cached_tokens",
     "completion_tokens_details", "reasoning_tokens"]
)  # fmt: skip
shapes = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.dictionaries(names, inner),
    max_leaves=12,
)


@given(shapes)
def test_no_usage_shape_breaks_the_reader(said: Any) -> None:
    found = read_usage(json.loads(json.dumps(said)))
    assert found is None or found.output_tokens >= found.reasoning_tokens
