"""What tokens cost, by class, by tier, by name: the numbers that providers publish."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from genai_prices import Usage as ListUsage
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from behest_integrations import ConfigError, Meter, Price, UnknownPrice, Usage
from behest_integrations.calls.exchange import Exchange
from behest_integrations.config import load
from behest_integrations.prices import ModelPricing, Pricing, multiplier_for_url, provider_named
from behest_integrations.prices.habits import searching
from behest_integrations.prices.list import _TIER_CEILINGS, compile_model
from behest_integrations.prices.rates import PriceTable, Rates, ceil_nano
from behest_integrations.rules.names import read_name
from behest_integrations.wire import bound_request

NOW = datetime.now(timezone.utc)
LIST = Pricing()
MODELS = [
    (provider, info, pricing)
    for provider in get_snapshot().providers
    for info in provider.models
    if (pricing := compile_model(info, provider.id, NOW)) is not None
]
MILLION = 10**6


def cost(model: str, usage: Usage, provider: str | None = None, **how: Any) -> Decimal:
    """USD for `usage`."""
    return Decimal(LIST.find(model, provider).cost(usage, **how)) / 10**9


# ── classes of tokens ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", ["gpt-4o-audio-preview", "gpt-4o-mini-audio-preview", "gpt-4o"])
@pytest.mark.parametrize("way", ["input_audio", "output_audio"])
def test_audio_without_a_price_of_its_own_has_none(model: str, way: str) -> None:
    """The list has the text price of these alone; OpenAI's page has another for audio."""
    pricing = LIST.find(model, "openai")
    kind = way.replace("_", " ")
    with pytest.raises(UnknownPrice, match=f"no price for {kind}"):
        pricing.bound(1000, service_tier=None, **{way: True})  # type: ignore[arg-type]
    assert pricing.bound(1000, service_tier=None)[0] > 0
    usage = Usage(1000, 1000, **{f"{way}_tokens": 400})
    assert pricing.unpriced(usage) == (way,)
    assert pricing.unpriced(Usage(1000, 1000)) == ()
    text = pricing.standard.rates(0).input if way == "input_audio" else pricing.standard.rates(0).output
    dearest = {"input_audio": 100, "output_audio": 200}[way]
    added = pricing.cost(usage) - pricing.cost(Usage(1000, 1000))
    assert added == (400 * (dearest * 10**9 - text)) // 10**6


def test_a_class_without_a_price_refuses_nothing_where_no_budget_is_in_dollars() -> None:
    body = {"model": "gpt-4o-audio-preview", "messages": [], "modalities": ["text", "audio"], "max_tokens": 9}
    bound = bound_request("chat", body)
    assert bound.output_audio
    with Meter("memory://", budgets=["10 calls"]) as meter:
        meter.plan("chat", "gpt-4o-audio-preview", bound, provider="openai")
    with (
        Meter("memory://", budgets=["$1"]) as meter,
        pytest.raises(UnknownPrice, match="no price for output audio"),
    ):
        meter.plan("chat", "gpt-4o-audio-preview", bound, provider="openai")


def test_audio_with_a_price_is_priced() -> None:
    """https://platform.openai.com/docs/models/gpt-audio: $32 in and $64 out."""
    usage = Usage(MILLION, MILLION, input_audio_tokens=MILLION, output_audio_tokens=MILLION)
    assert cost("gpt-audio", usage) == 96
    assert LIST.find("gpt-audio").unpriced(usage) == ()
    fixed, per_output = LIST.find("gpt-audio").bound(
        MILLION, service_tier="default", input_audio=True, output_audio=True
    )
    assert (fixed, per_output) == (32 * 10**15, 64 * 10**9)


def test_geminis_one_price_is_for_audio_too_where_its_page_says_so() -> None:
    """https://ai.google.dev/gemini-api/docs/pricing: Pro has one input price, Flash two."""
    heard = Usage(100_000, 0, input_audio_tokens=100_000)
    assert cost("gemini-2.5-pro", heard) == Decimal("0.125")
    assert cost("gemini-2.5-flash", heard) == Decimal("0.1")
    with pytest.raises(UnknownPrice):
        LIST.find("gemini-2.5-pro").bound(1, service_tier=None, output_audio=True)


def test_what_a_reply_does_not_tell_apart_is_booked_at_the_dearest() -> None:
    """Images that Gemini puts out cost $30 per million tokens, its text $2.50."""
    pricing = LIST.find("gemini-2.5-flash-image")
    assert pricing.cost(Usage(0, MILLION)) == 30 * 10**9
    assert pricing.unpriced(Usage(5, 5)) == ("output_image",)
    assert LIST.find("text-embedding-3-small", "openai").unpriced(Usage(5, 5)) == ("output",)


def test_audio_that_was_cached() -> None:
    """gemini-2.5-flash: audio $1, cached $0.10; text $0.30, cached $0.03."""
    pricing = LIST.find("gemini-2.5-flash")
    whole = Usage(1000, 0, cached_input_tokens=1000, input_audio_tokens=1000)
    assert pricing.cost(whole) == 1000 * 100
    assert pricing.unpriced(whole) == ()
    # Which of these were cached is not told: the dearest that it can have been.
    partly = Usage(1000, 0, cached_input_tokens=300, input_audio_tokens=500)
    assert pricing.cost(partly) == 200 * 300 + 300 * 30 + 500 * 1000
    assert pricing.unpriced(partly) == ("cached_audio",)


def test_cache_writes_by_how_long_they_live() -> None:
    """https://platform.claude.com/docs/en/about-claude/pricing: Opus 4.6 has $5 of input, $6.25 for
    five minutes, $10 for an hour, $0.50 of hits, $25 of output."""
    usage = Usage(10_000, 100, cached_input_tokens=3000, cache_write_tokens=5000, cache_write_1h_tokens=2000)
    said = 2000 * 5000 + 3000 * 500 + 3000 * 6250 + 2000 * 10_000 + 100 * 25_000
    assert LIST.find("claude-opus-4-6").cost(usage) == said
    # Where nothing is said of an hour, it is five minutes; the hold is at the dearest.
    assert LIST.find("claude-opus-4-6").cost(Usage(1000, cache_write_tokens=1000)) == 6_250_000
    assert LIST.find("claude-opus-4-6").bound(1000, service_tier=None)[0] == 10_000_000 * 10**6


def test_claudes_cache_writes_where_the_list_has_none() -> None:
    """1.25 and 2 times the input, wherever it is served."""
    pricing = LIST.find("anthropic/claude-3.7-sonnet", "openrouter")
    assert pricing.cost(Usage(1000, cache_write_tokens=1000)) == 3_750_000
    assert pricing.cost(Usage(1000, cache_write_tokens=1000, cache_write_1h_tokens=1000)) == 6_000_000


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 400_000), st.integers(0, 50_000), st.tuples(*[st.floats(0, 1)] * 4))
def test_a_cost_is_the_price_lists_own_in_every_class(
    prompt: int, output: int, shares: tuple[float, float, float, float]
) -> None:
    """genai-prices's calculation over the whole list. Not where it is not right: where audio falls
    back to text, where an image may hide in the output, and where it lacks a fee or Claude's writes."""
    cached = int(prompt * shares[0])
    write = int((prompt - cached) * shares[1])
    hour = int(write * shares[2])
    thought = int(output * shares[3])
    usage = Usage(prompt, output, cached, write, thought, cache_write_1h_tokens=hour)
    theirs = ListUsage(
        input_tokens=prompt, output_tokens=output, cache_read_tokens=cached, cache_write_tokens=write,
        cache_write_1h_tokens=hour, cache_write_5m_tokens=write - hour, output_reasoning_tokens=thought,
        output_citation_tokens=0,
    )  # fmt: skip
    for provider, info, pricing in MODELS:
        price = info.get_prices(NOW)
        if pricing.unseen or searching(info.id) is not None or price.requests_kcount is not None:
            continue
        claude = read_name(info.id).plain.startswith("claude")
        if claude and (price.cache_write_mtok is None or price.cache_write_1h_mtok is None):
            continue
        said = info.calc_price(theirs, provider, genai_request_timestamp=NOW).total_price
        # Some prices of the list are what is left of floats: those differ in the tenth digit.
        assert abs(Decimal(pricing.cost(usage)) - said * 10**9) < Decimal("0.5001"), (provider.id, info.id)


# ── tiers, multipliers, fees ───────────────────────────────────────────────────────────


def test_a_tier_that_the_list_does_not_have() -> None:
    """Not at the standard price: bounded by the provider's dearest, or refused."""
    nano = LIST.find("gpt-5-nano", "openai")
    assert "priority" not in nano.tiers
    fixed, _ = nano.bound(1000, service_tier="priority")
    assert fixed == 1000 * nano.standard.rates(1).input * 5 // 2
    usage = Usage(1000, 10)
    assert nano.cost(usage, "priority") > nano.cost(usage)
    assert nano.unpriced(usage, "priority") == ("service_tier",)
    for harmless in ("default", "standard", "flex", "on_demand", None):
        assert nano.unpriced(usage, harmless) == ()
    with pytest.raises(UnknownPrice, match="'performance'"):
        LIST.find("llama-3.3-70b-versatile", "groq").bound(1, service_tier="performance")


def test_the_ceilings_of_tiers_are_the_dearest_in_the_list() -> None:
    for provider, info, pricing in MODELS:
        for variant in info.price_variants or ():
            tier = variant.when.get("service_tier", "")
            ceiling = _TIER_CEILINGS.get(provider.id, {}).get(tier)
            if ceiling is None or tier not in pricing.tiers:
                continue
            for start, rates in pricing.standard.tiers:
                dear = pricing.tiers[tier].rates(start + 1)
                assert dear.output * ceiling[1] <= rates.output * ceiling[0], info.id
                assert dear.input * ceiling[1] <= rates.input * ceiling[0], info.id


def test_claudes_fast_mode_and_place() -> None:
    """17 calls of this size in fast mode were $0.51 against a cap of $0.30: six times $0.005."""
    opus = LIST.find("claude-opus-4-6")
    assert opus.multiplier({"speed": "fast"}) == (6, 1)
    assert opus.multiplier({"speed": "standard", "inference_geo": "global"}) is None
    assert opus.multiplier({"inference_geo": "us"}) == (11, 10)
    both = opus.multiplier({"speed": "fast", "inference_geo": "us"})
    assert both == (66, 10)
    usage = Usage(500, 100)
    assert opus.cost(usage) == 5_000_000
    assert opus.cost(usage, multiplier=(6, 1)) == 30_000_000
    assert opus.cost(usage, multiplier=both) == 33_000_000
    # https://platform.claude.com/docs/en/about-claude/pricing#fast-mode-pricing: Opus 5 at $10 and $50.
    assert LIST.find("claude-opus-5").multiplier({"speed": "fast"}) == (2, 1)
    assert LIST.find("claude-opus-5").bound(0, service_tier=None)[1] == 25 * 10**9
    for unknown in ({"speed": "ludicrous"}, {"inference_geo": "mars"}, {"speed": 5}):
        with pytest.raises(UnknownPrice, match="not known"):
            opus.multiplier(unknown)
    with pytest.raises(UnknownPrice):
        LIST.find("gpt-4o").multiplier({"speed": "fast"})


@given(st.integers(0, 10**7), st.integers(0, 10**6), st.integers(1, 99), st.integers(1, 99))
def test_a_multiplied_bound_is_above_a_multiplied_cost(
    prompt: int, output: int, over: int, under: int
) -> None:
    pricing = LIST.find("gpt-4o-search-preview", "openai")
    fixed, per_output = pricing.bound(prompt, service_tier=None, multiplier=(over, under))
    said = pricing.cost(Usage(prompt, output), multiplier=(over, under))
    assert said <= ceil_nano(fixed + per_output * output)
    exact = Decimal(prompt * 2500 + output * 10_000) * over / under + 25_000_000
    assert abs(said - exact) <= Decimal("0.5000001")


def test_requests_that_search_by_themselves_carry_their_fee() -> None:
    """$25 per 1,000 (https://developers.openai.com/api/docs/pricing); by size of the search context
    $5, $8, $12 (https://docs.perplexity.ai/getting-started/pricing)."""
    assert cost("gpt-4o-search-preview", Usage()) == Decimal("0.025")
    assert cost("openai/gpt-4o-mini-search-preview", Usage()) == Decimal("0.025")
    assert cost("gpt-4o-mini", Usage()) == 0
    sonar = LIST.find("sonar", "perplexity")
    said = [sonar.cost(Usage(), search_context=size) for size in ("low", "medium", "high", None, "vast")]
    assert said == [5 * MILLION, 8 * MILLION, 12 * MILLION, 12 * MILLION, 12 * MILLION]
    held = [
        sonar.bound(0, service_tier=None, search_context=size)[0] for size in ("low", "high", None, "vast")
    ]
    assert held == [5 * 10**12, 12 * 10**12, 12 * 10**12, 12 * 10**12]
    assert sonar.unpriced(Usage(1, 1)) == ("request",)
    assert sonar.unpriced(Usage(1, 1), search_context="low") == ()
    own = Pricing({"sonar": Price(input="1", output="1"), "sonar-pro": Price(input="1", request="0.001")})
    assert own.find("sonar").cost(Usage(), search_context="medium") == 8 * MILLION
    assert own.find("sonar-pro").cost(Usage()) == MILLION


@pytest.mark.parametrize(
    ("model", "feature"),
    [
        ("gpt-5-search-api", "web_search"),
        ("o3-deep-research-2025-06-26", "deep_research"),
        ("openai/o4-mini-deep-research", "deep_research"),
        ("sonar-deep-research", "deep_research"),
        ("perplexity/sonar-pro-search", "web_search"),
        ("llama-3.1-sonar-large-128k-online", "web_search"),
        ("openai/gpt-4o:online", "web_search"),
        ("gpt-4o-search-preview", None),
        ("perplexity/sonar", None),
    ],
)
def test_models_that_do_more_than_they_are_asked(model: str, feature: str | None) -> None:
    found = LIST.searching(model)
    assert found is not None
    assert found.feature == feature
    assert bool(found.why) == (feature is not None)
    assert found.feature or found.fees
    assert LIST.searching("gpt-4o") is None


def test_endpoints_that_cost_more() -> None:
    """https://platform.claude.com/docs/en/about-claude/pricing and
    https://docs.together.ai/docs/serverless/geo-specific-inference."""
    vertex = "https://us-east5-aiplatform.googleapis.com/v1"
    assert multiplier_for_url(vertex, "claude-sonnet-4-5@20250929") == (11, 10)
    assert multiplier_for_url(vertex, "claude-3-5-haiku@20241022") is None
    assert multiplier_for_url(vertex, "gemini-2.5-pro") is None
    assert multiplier_for_url("https://aiplatform.googleapis.com/v1", "claude-opus-5") is None
    assert multiplier_for_url("https://us-api.together.ai/v1", "zai-org/GLM-5.3") == (5, 4)


def test_a_call_at_a_dearer_endpoint_is_held_and_booked_at_its_price() -> None:
    vertex = "https://us-east5-aiplatform.googleapis.com/v1"
    with Meter("memory://", budgets=["$1"]) as meter:
        body = {
            "model": "claude-sonnet-4-5",
            "max_tokens": 100,
            "messages": [{"role": "user", "content": "a"}],
        }
        held = []
        for where in ("https://aiplatform.googleapis.com/v1", vertex):
            plan = Exchange(meter, "chat", body, provider="google", where=where).plan
            hold = meter.reserve(plan)
            held.append(hold.amounts["usd"])
            hold.settle(Usage(1000, 100))
        plain, dearer = (e.cost for e in meter.ledger.snapshot()[2])
        assert plain == (1000 * 3 + 100 * 15) * 1000
        assert dearer == plain * 11 // 10
        assert held[1] == -(-held[0] * 11 // 10)


# ── names ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("model", "provider", "served", "usd"),
    [
        ("openai/gpt-4o", None, "openai", "2.5"),
        ("openai/gpt-4o", "openai", "openai", "2.5"),
        ("openai:gpt-4o", None, "openai", "2.5"),
        ("GPT-4o", None, "openai", "2.5"),
        ("azure/o4-mini", None, "azure", "1.1"),
        ("azure/gpt-4o", "azure", "azure", "2.5"),
        ("gpt-4o", "azure", "azure", "2.5"),
        ("models/gemini-2.5-flash", None, "google", "0.3"),
        ("models/gemini-2.5-flash", "google", "google", "0.3"),
        ("gemini/gemini-2.5-pro", None, "google", "1.25"),
        ("projects/p/locations/global/publishers/google/models/gemini-2.5-flash", "google", "google", "0.3"),
        ("claude-sonnet-4-5@20250929", "google", "google", "3"),
        ("openai/gpt-4o:nitro", "openrouter", "openrouter", "2.5"),
        ("openai/gpt-4o:floor", "openrouter", "openrouter", "2.5"),
        ("openai/gpt-4o:exacto", "openrouter", "openrouter", "2.5"),
        ("openai/gpt-4o:online", "openrouter", "openrouter", "2.5"),
        ("openai/gpt-4o:extended", "openrouter", "openrouter", "6"),
        ("openrouter/openai/gpt-4o", None, "openrouter", "2.5"),
        ("anthropic/claude-3.7-sonnet:thinking", "openrouter", "openrouter", "3"),
        ("deepseek/deepseek-r1:free", "openrouter", "openrouter", "0"),
        ("new/unlisted-model:free", "openrouter", "openrouter", "0"),
        # Regional profiles are 10 % above global ones from Sonnet 4.5 on.
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "aws", "aws", "3.3"),
        ("eu.anthropic.claude-sonnet-4-5-20250929-v1:0", None, "aws", "3.3"),
        ("global.anthropic.claude-sonnet-4-5-20250929-v1:0", "aws", "aws", "3"),
        ("apac.anthropic.claude-sonnet-4-20250514-v1:0", "aws", "aws", "3"),
        ("bedrock/us.amazon.nova-pro-v1:0", None, "aws", "0.8"),
        ("xai/grok-4", None, "x-ai", "3"),
        ("groq/llama-3.3-70b-versatile", None, "groq", "0.59"),
    ],
)  # fmt: skip
def test_ids_with_a_prefix_or_a_suffix(model: str, provider: str | None, served: str, usd: str) -> None:
    pricing = LIST.find(model, provider)
    assert pricing.provider == served
    assert pricing.standard.rates(1).input == int(Decimal(usd) * 10**9)


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("x/y:free", None),  # free at OpenRouter, and not known elsewhere
        ("openai/gpt-4o:pricey", "openrouter"),
        ("qwen/qwen3-max:thinking", "openrouter"),  # an entry of its own, or none
        ("openrouter/auto", "openrouter"),
        ("us-gov.anthropic.claude-3-5-sonnet-20240620-v1:0", "aws"),
        ("gpt-oss-120b", None),
        ("ft:gpt-5-2025-08-07:a::b", "openai"),
        ("anthropic/claude-sonnet-4-5", "openai"),
    ],
)
def test_what_no_price_is_known_of(model: str, provider: str | None) -> None:
    with pytest.raises(UnknownPrice):
        LIST.find(model, provider)


@pytest.mark.parametrize(
    ("model", "provider", "usd"),
    [
        # Input, cached input, output: https://platform.openai.com/docs/pricing (Fine-tuning).
        ("ft:gpt-4o-mini-2024-07-18:acme::abc", "openai", ("0.3", "0.15", "1.2")),
        ("ft:gpt-4o-mini-2024-07-18:acme:new-one:abc", None, ("0.3", "0.15", "1.2")),
        ("gpt-4o-mini-2024-07-18.ft-0e208cf33a6a466994aff31a08aba678", "azure", ("0.3", "0.15", "1.2")),
        ("ft:gpt-4o-2024-08-06:acme::abc", "openai", ("3.75", "1.875", "15")),
        ("ft:gpt-4.1-2025-04-14:acme::abc", "openai", ("3", "0.75", "12")),
        ("ft:gpt-4.1-mini-2025-04-14:acme::abc", "openai", ("0.8", "0.2", "3.2")),
        ("ft:gpt-3.5-turbo-0125:acme::abc", "openai", ("3", "3", "6")),
        ("ft:gpt-4-0613:acme::abc", "openai", ("45", "45", "90")),
    ],
)
def test_fine_tuned_models_in_every_class(
    model: str, provider: str | None, usd: tuple[str, str, str]
) -> None:
    rates = LIST.find(model, provider).standard.rates(1)
    assert [rates.input, rates.cached_input, rates.output] == [int(Decimal(u) * 10**9) for u in usd]
    assert rates.reasoning == rates.output


@pytest.mark.parametrize(
    ("model", "plain"),
    [
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "claude-sonnet-4-5-20250929"),
        ("anthropic/claude-3.7-sonnet:thinking", "claude-3-7-sonnet"),
        ("accounts/fireworks/models/llama-v3p3-70b-instruct", "llama-v3p3-70b-instruct"),
        ("ft:gpt-4o-mini-2024-07-18:acme::abc", "gpt-4o-mini-2024-07-18"),
        ("arn:aws:bedrock:us-east-1:1:inference-profile/us.amazon.nova-pro-v1:0", "nova-pro"),
        ("llama3.1:8b", "llama3.1"),
        ("vertex_ai/gemini-2.5-pro", "gemini-2.5-pro"),
        ("ours", "gpt-4o"),
        ("", ""), ("ft:", ""), ("/", ""), (":", ""),
    ],
)  # fmt: skip
def test_the_canonical_name(model: str, plain: str) -> None:
    assert Pricing(aliases={"ours": "openai/gpt-4o"}).canonical(model) == plain


@given(st.text(max_size=60))
def test_no_name_breaks_the_reader(model: str) -> None:
    name = read_name(model)
    assert len(name.plain) <= len(model.lower()) + 4
    try:
        LIST.find(model)
    except UnknownPrice:
        pass


@pytest.mark.parametrize(
    ("one", "other", "provider", "same"),
    [
        ("gpt-4o", "gpt-4o-2024-08-06", "openai", True),
        ("openai/gpt-4o:nitro", "openai/gpt-4o", "openrouter", True),
        ("gpt-4o", "gpt-4o-2024-05-13", "openai", True),
        ("grok-4", "grok-4-0709", "x-ai", True),
        ("claude-sonnet-4-5", "claude-sonnet-4-5-20250929", "anthropic", True),
        ("models/gemini-2.5-flash", "gemini-2.5-flash", "google", True),
        ("mistral-small-latest", "mistral-small-2603", "mistral", True),
        ("ours", "gpt-4o-2024-08-06", None, True),
        ("gpt-4o", "gpt-4o-mini", "openai", False),
        ("openai/gpt-4o-mini", "openai/o1-pro", "openrouter", False),
        ("gpt-4o-mini", "gpt-4o-mini-search-preview", "openai", False),
        ("gpt-4o-2024-08-06", "gpt-4o-2024-05-13", "openai", False),
        ("ft:gpt-4o-mini-2024-07-18:a::b", "gpt-4o-mini-2024-07-18", "openai", False),
        ("unknown-1", "unknown-2", None, False),
    ],
)
def test_names_of_the_same_model(one: str, other: str, provider: str | None, same: bool) -> None:
    assert Pricing(aliases={"ours": "gpt-4o"}).same_model(one, other, provider) is same
    assert Pricing(aliases={"ours": "gpt-4o"}).same_model(other, one, provider) is same


def test_a_reply_of_another_model_is_looked_at() -> None:
    """`models: ["gpt-4o-mini", "o1-pro"]`, the first with a price of one's own."""
    own = Pricing({"gpt-4o-mini": Price(input="0.15", output="0.60"), "house": Price(input="1", output="1")})
    mine = own.find("gpt-4o-mini")
    usage = Usage(100, 100)

    said = own.for_reply(mine, "gpt-4o-mini", "o1-pro", "openai")
    assert (said.other, said.known) == (True, True)
    assert max(p.cost(usage) for p in said.pricings) == 100 * 150_000 + 100 * 600_000
    assert own.for_reply(mine, "gpt-4o-mini", "who-knows", "openai") == ((mine,), True, False)
    for name in (None, "gpt-4o-mini", "gpt-4o-mini-2024-07-18"):
        assert own.for_reply(mine, "gpt-4o-mini", name, "openai") == ((mine,), False, True)
    # A deployment's name says nothing of its model: its price is the user's word.
    house = own.find("house")
    assert own.for_reply(house, "house", "gpt-4o-2024-08-06") == ((house,), False, True)
    # A listed model that another answers for is billed as that one; a dated one has its own price.
    asked = LIST.find("gpt-4o", "openai")
    (dated,) = LIST.for_reply(asked, "gpt-4o", "gpt-4o-2024-05-13", "openai").pricings
    assert dated.standard.rates(1).input == 5 * 10**9
    (dear,) = LIST.for_reply(asked, "gpt-4o", "o1-pro", "openai").pricings
    assert dear.model == "o1-pro"
    free = LIST.find("deepseek/deepseek-r1:free", "openrouter")
    said = LIST.for_reply(free, "deepseek/deepseek-r1:free", "deepseek/deepseek-r1", "openrouter")
    assert said.pricings == (free,)
    assert LIST.for_reply(None, "x", "y") == ((), True, False)


# ── what is known of models ────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "model",
    ["gpt-4o", "openai/gpt-4o-mini", "gpt-4.1-2025-04-14", "azure/gpt-4o", "gpt-3.5-turbo", "ours",
     "us.anthropic.claude-3-5-sonnet-20241022-v2:0", "claude-sonnet-4-5", "models/gemini-2.0-flash",
     "ft:gpt-4o-mini-2024-07-18:a::b", "meta-llama/Llama-3.3-70B-Instruct-Turbo", "llama3.1:8b", "qwen2.5:7b",
     "mistral-small-2503", "deepseek-chat", "grok-3", "grok-4-fast-non-reasoning"],
)  # fmt: skip
def test_models_known_to_show_all_that_they_write(model: str) -> None:
    assert Pricing(aliases={"ours": "gpt-4o"}).shows_all_it_writes(model)


@pytest.mark.parametrize(
    "model",
    ["o1", "o3-mini", "o4-mini", "azure/o4-mini", "gpt-5", "openai/gpt-5", "gpt-5-2025-08-07",
     "gemini-2.5-flash", "models/gemini-2.5-pro", "deepseek-reasoner", "grok-4", "x-ai/grok-4", "qwen3-32b",
     "qwen/qwen3-32b", "ours", "anthropic/claude-3.7-sonnet:thinking", "claude-opus-5", "gpt-oss-120b",
     "deepseek-r1-distill-llama-70b", "gemini-2.0-flash-thinking-exp", "magistral-small",
     "mistral-small-latest", "phi-4-reasoning", "my-deployment"],
)  # fmt: skip
def test_models_that_think_or_are_not_known(model: str) -> None:
    assert not Pricing(aliases={"ours": "o4-mini"}).shows_all_it_writes(model)


# ── prices of one's own ────────────────────────────────────────────────────────────────


def test_an_own_price_without_audio_is_none_for_audio() -> None:
    pricing = Pricing({"m": Price(input="1", output="2", input_audio="8")}).find("m")
    assert pricing.bound(1000, service_tier=None, input_audio=True)[0] == 8000 * 10**9
    with pytest.raises(UnknownPrice, match="output audio"):
        pricing.bound(1000, service_tier=None, output_audio=True)
    assert pricing.unpriced(Usage(10, 10, input_audio_tokens=5, output_audio_tokens=5)) == ("output_audio",)


def test_an_own_price_of_writes_for_an_hour() -> None:
    usage = Usage(1000, cache_write_tokens=1000, cache_write_1h_tokens=400)
    price = Price(input="1", output="1", cache_write="1.25")
    assert Pricing({"m": price}).find("m").cost(usage) == 1_250_000
    price = replace(price, cache_write_1h="2")
    assert Pricing({"m": price}).find("m").cost(usage) == 600 * 1250 + 400 * 2000


def test_a_price_as_a_float_says_how_to_write_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'write it as text: input = "0\.15"'):
        Price(input=0.15)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r'write it as text: output = "0\.15"'):
        Price(input=1, output="cheap")
    file = tmp_path / "behest.toml"
    for text, says in (
        ("[prices.m]\ninput = 0.15", 'prices.m.input: write it as text: input = "0.15"'),
        ('[[prices.m]]\ninput = "1"\noutput = 0.6', 'prices.m.0.output: write it as text: output = "0.6"'),
        ('[prices.m]\noutput = "1"', "prices.m.input: it is missing"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load(file)
        assert str(caught.value).endswith(says)


# ── finding ────────────────────────────────────────────────────────────────────────────


def test_a_price_that_does_not_change_is_worked_out_once() -> None:
    pricing = Pricing({"m": Price(input="1")})
    for name in ("gpt-4o", "m", "openai/gpt-4o"):
        assert pricing.find(name) is pricing.find(name)
        assert pricing.find(name).valid_until == float("inf")


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=4),
    st.integers(0, 1200),
    st.integers(0, 1200),
)
def test_a_longer_prompt_never_has_a_lower_bound(
    steps: list[tuple[int, int, int]], shorter: int, longer: int
) -> None:
    """Prices may fall with length; what was bounded as long may turn out short."""
    rows = {0: Rates(input=7, output=7), **{s: Rates(input=i, output=o) for s, i, o in steps}}
    table = PriceTable(tuple(sorted(rows.items())))
    pricing = ModelPricing("m", None, "", table, {}, ((None, table),), None, True, float("inf"))
    shorter, longer = sorted((shorter, longer))
    fixed, per_output = pricing.bound(longer, service_tier=None)
    for used in (shorter, longer):
        assert table.rates(used).cost(Usage(used, 9)) <= fixed + 9 * per_output


def test_usual_names_of_providers() -> None:
    assert [provider_named(n) for n in ("Azure", "vertex", "amazon_bedrock", "xai", "nobody")] == [
        "azure", "google", "aws", "x-ai", None,
    ]  # fmt: skip
