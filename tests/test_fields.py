"""What a request's fields do to its bill: nothing unknown passes, every limit is lowered, and what
multiplies a bill is in the bound. Numbers are the providers' own; `dialects` has the links."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import HELLO, client, entries

import behest_integrations.wire
from behest_integrations import ConfigError, Meter, Price, Unbounded
from behest_integrations.config import Config
from behest_integrations.sandbox import Sandbox
from behest_integrations.wire import RequestBound, bound_request, with_output_limit
from behest_integrations.wire.dialects import DIALECTS, EFFECTS
from behest_integrations.wire.fields import (
    OPERATIONS,
    framework_fields,
    read_fields,
    rows_of,
    table_as_markdown,
    table_of,
)

CHAT: dict[str, Any] = {"model": "llama-3", "messages": [{"role": "user", "content": "hi"}]}


def chat(at_provider: str | None = None, /, **fields: Any) -> RequestBound:
    return bound_request("chat", {**CHAT, **fields}, provider=at_provider, prefer_max_tokens=True)


def at(values: Any, path: str) -> Any:
    for step in path.split("."):
        values = values[step]
    return values


def put(path: str, value: Any) -> dict[str, Any]:
    """The body that has `value` at `path`."""
    for step in reversed(path.split(".")):
        value = {step: value}
    return dict(value)


# ── the table ──────────────────────────────────────────────────────────────────────────

SDK = {
    "chat": "chat.completion_create_params.CompletionCreateParamsBase",
    "completions": "completion_create_params.CompletionCreateParamsBase",
    "responses": "responses.response_create_params.ResponseCreateParamsBase",
    "embeddings": "embedding_create_params.EmbeddingCreateParams",
}


@pytest.mark.parametrize("operation", SDK)
@pytest.mark.parametrize("provider", ["openai", None])
def test_every_field_of_the_installed_openai_sdk_is_known(operation: str, provider: str | None) -> None:
    module, name = SDK[operation].rsplit(".", 1)
    params = getattr(importlib.import_module(f"openai.types.{module}"), name)
    table = table_of(operation, provider)
    official = set(params.__annotations__) | ({"stream"} if operation != "embeddings" else set())
    assert "model" in official
    assert official <= set(table.entries) | table.plain


def test_the_reasoning_settings_of_the_installed_openai_sdk_are_known() -> None:
    from openai.types.shared_params import Reasoning

    assert set(Reasoning.__annotations__) <= set(table_of("responses", "openai").entries["reasoning"].inside)


def test_every_field_of_the_installed_anthropic_sdk_is_known() -> None:
    params = importlib.import_module("anthropic.types.message_create_params").MessageCreateParamsBase
    table = table_of("chat", "anthropic")
    assert set(params.__annotations__) <= set(table.entries) | table.plain


def test_the_data_says_only_what_is_defined() -> None:
    for dialect in DIALECTS:
        assert dialect.source.startswith("https://")
        for operation in OPERATIONS:
            assert {row.effect for _, row in rows_of(dialect, operation)} <= set(EFFECTS)


def test_the_page_is_made_from_the_data() -> None:
    page = Path(behest_integrations.wire.__file__).with_name("FIELDS.md")
    assert page.read_text(encoding="utf-8") == table_as_markdown()


USUAL = {
    "openai": {"temperature": 1, "top_p": 1, "seed": 1, "logprobs": True, "top_logprobs": 2, "store": True},
    "vllm": {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "guided_json": {}, "ignore_eos": True},
    "llama.cpp": {"mirostat": 2, "dry_multiplier": 1, "cache_prompt": True, "samplers": [], "grammar": "g"},
    "ollama": {"keep_alive": "5m", "options": {"num_ctx": 8192, "temperature": 0, "top_k": 3}, "think": True},
    "tgi": {"do_sample": True, "watermark": True, "parameters": {"typical_p": 0.5}},
    "openrouter": {"top_a": 1, "transforms": [], "usage": {"include": True}, "reasoning": {"effort": "low"}},
    "mistral": {"random_seed": 3, "prompt_mode": "reasoning"},
    "groq": {"reasoning_format": "parsed", "service_tier": "flex"},
    "deepseek": {"thinking": {"type": "enabled"}},
    "together": {"top_k": 4, "reasoning": {"enabled": True}},
    "fireworks": {"mirostat_target": 1, "context_length_exceeded_behavior": "truncate"},
    "x-ai": {"deferred": True, "search_parameters": {"mode": "off"}},
    "google": {"extra_body": {"google": {"thinking_config": {"include_thoughts": True}}}},
    "anthropic": {"thinking": {"type": "adaptive"}, "top_k": 3, "speed": "standard"},
}


@pytest.mark.parametrize("provider", USUAL)
@pytest.mark.parametrize("known", [True, False], ids=["by its URL", "anywhere"])
def test_the_usual_settings_of_the_usual_servers_do_nothing(provider: str, known: bool) -> None:
    bound = chat(provider if known else None, max_tokens=7, **USUAL[provider])
    assert bound.features == {}
    assert (bound.output_limit, bound.choices, bound.extra_output, bound.multiplier) == (7, 1, 0, (1, 1))
    assert bound.models == ()


# ── limits ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "limit", "carried"),
    [
        # llama.cpp lets it override: tools/server/server-common.cpp, oaicompat_chat_params_parse.
        ({"max_tokens": 1, "n_predict": 200}, 200, ("max_tokens", "n_predict")),
        ({"max_tokens": 1, "options": {"num_predict": 300}}, 300, ("max_tokens", "options.num_predict")),
        ({"max_tokens": 9, "max_completion_tokens": 4}, 9, ("max_completion_tokens", "max_tokens")),
        ({"max_tokens": 1, "extra_body": {"n_predict": 50}}, 50, ("max_tokens", "extra_body.n_predict")),
        (
            {"max_tokens": 1, "generation_config": {"max_output_tokens": 70}},
            70,
            ("max_tokens", "generation_config.max_output_tokens"),
        ),
        # The answer has at least so many, where the limit is not checked against it.
        ({"max_tokens": 5, "min_tokens": 80}, 80, ("max_tokens", "min_tokens")),
    ],
)
def test_the_largest_of_several_limits_bounds_the_answer(
    fields: dict[str, Any], limit: int, carried: tuple[str, ...]
) -> None:
    bound = chat(**fields)
    assert (bound.output_limit, bound.limit_fields, bound.send_limit) == (limit, carried, False)
    lowered = with_output_limit({**CHAT, **fields}, bound, 3)
    assert all(at(lowered, path) <= 3 for path in carried)


def test_a_field_that_says_no_limit_leaves_none() -> None:
    bound = chat(max_tokens=100, n_predict=-1)
    assert (bound.output_limit, bound.limit_fields) == (None, ("max_tokens", "n_predict"))
    assert with_output_limit({**CHAT, "max_tokens": 100, "n_predict": -1}, bound, 4096)["n_predict"] == 4096


def test_a_limit_that_the_server_may_pass_over_is_sent_in_a_field_that_it_reads() -> None:
    """Ollama and TGI take no `max_completion_tokens`; nobody but llama.cpp takes `n_predict`."""
    body = {**CHAT, "max_completion_tokens": 50}
    bound = bound_request("chat", body, prefer_max_tokens=True)
    assert (bound.output_limit, bound.send_limit) == (50, True)
    sent = with_output_limit(body, bound, 50)
    assert sent["max_tokens"] == 50
    assert "max_completion_tokens" not in sent
    alone = chat(n_predict=20)
    assert (alone.send_limit, alone.limit_fields) == (True, ("n_predict", "max_tokens"))
    openai = bound_request("chat", {**body, "model": "gpt-4o"}, prefer_max_tokens=True)
    assert (openai.send_limit, openai.limit_fields) == (False, ("max_completion_tokens",))
    assert chat("mistral", max_completion_tokens=50).send_limit
    assert not chat("vllm", max_completion_tokens=50).send_limit


def test_thoughts_are_kept_below_the_limit_or_added_to_it() -> None:
    claude = {"max_tokens": 4000, "thinking": {"type": "enabled", "budget_tokens": 2000}}
    bound = chat("anthropic", **claude)
    assert (bound.output_limit, bound.extra_output) == (4000, 0)
    lowered = with_output_limit({**CHAT, **claude}, bound, 1500)
    assert (lowered["max_tokens"], lowered["thinking"]["budget_tokens"]) == (1500, 1499)
    config = {"google": {"thinking_config": {"thinking_budget": 8000}}}
    for fields in ({"extra_body": config}, config):
        gemini = chat(max_tokens=10, n=2, **fields)
        assert (gemini.output_limit, gemini.choices, gemini.extra_output) == (10, 2, 16_000)


LIMITS = sorted(
    {path for d in DIALECTS for path, row in rows_of(d, "chat") if row.effect == "limit"} - {"max_tokens"}
)


@given(
    st.dictionaries(st.sampled_from(LIMITS), st.integers(1, 5000), min_size=1, max_size=4),
    st.integers(1, 5000),
    st.integers(1, 5000),
)
def test_lowering_sets_every_field_that_carries_a_limit(
    given_limits: dict[str, int], usual: int, lower: int
) -> None:
    body: dict[str, Any] = {**CHAT, "max_tokens": usual}
    for path, value in given_limits.items():
        level = body
        *outer, name = path.split(".")
        for step in outer:
            level = level.setdefault(step, {})
        level[name] = value
    bound = bound_request("chat", body)
    assert bound.output_limit == max(usual, *given_limits.values())
    lowered = with_output_limit(body, bound, lower)
    for path in ("max_tokens", *given_limits):
        assert at(lowered, path) == min(at(body, path), lower)


# ── more answers, more tokens, fees, multiples, other models ───────────────────────────


@pytest.mark.parametrize(
    ("fields", "choices"),
    [
        ({"n": 3}, 3),
        ({"best_of": 5, "n": 2}, 5),
        ({"use_beam_search": True, "beam_width": 4}, 4),
        ({"n_cmpl": 6}, 6),
        ({"parameters": {"best_of": 7}}, 7),
        ({"generation_config": {"candidate_count": 2}}, 2),
    ],
)
def test_more_answers_multiply_the_limit(fields: dict[str, Any], choices: int) -> None:
    assert chat(max_tokens=10, **fields).choices == choices


def test_what_becomes_part_of_the_prompt_is_counted() -> None:
    plain = chat().input_tokens or 0
    for name in ("documents", "chat_template", "system", "tool_prompt", "prompt"):
        assert (chat(**{name: "word " * 100}).input_tokens or 0) >= plain + 500, name
    assert (chat("mistral", safe_prompt=True).input_tokens or 0) >= plain + 256
    completion = {"model": "m", "prompt": "a"}
    suffixed = bound_request("completions", {**completion, "suffix": "b" * 50}).input_tokens or 0
    assert suffixed >= (bound_request("completions", completion).input_tokens or 0) + 50


@pytest.mark.parametrize(
    ("fields", "feature"),
    [
        ({"plugins": [{"id": "web"}]}, "web_search"),
        ({"plugins": [{"id": "file-parser"}]}, "file"),
        ({"plugins": [{"id": "fusion"}]}, "plugin:fusion"),
        ({"search_parameters": {"mode": "auto"}}, "web_search"),
        ({"web_search_options": {}}, "web_search"),
        ({"enable_search": True}, "web_search"),
        ({"provider": {"order": ["x"]}}, "provider_routing"),
        ({"modalities": ["text", "image"]}, "image_output"),
        ({"context_management": [{"type": "compaction"}]}, "compaction"),
    ],
)
def test_fees_are_named(fields: dict[str, Any], feature: str | None) -> None:
    assert list(chat(**fields).features) == ([feature] if feature else [])


@pytest.mark.parametrize(
    ("fields", "ratio"),
    [
        ({"speed": "fast", "model": "claude-opus-4-6"}, (6, 1)),
        ({"speed": "fast", "model": "claude-opus-4-8"}, (2, 1)),
        ({"speed": "fast", "model": "claude-new"}, (6, 1)),
        ({"inference_geo": "us"}, (11, 10)),
        ({"inference_geo": "global"}, (1, 1)),
        ({"inference_geo": "us", "speed": "fast"}, (66, 10)),
        ({"service_tier": "ultrafast"}, (6, 1)),
    ],
)
def test_multiples_of_the_price(fields: dict[str, Any], ratio: tuple[int, int]) -> None:
    bound = chat("anthropic", **fields)
    assert (bound.multiplier, bound.features) == (ratio, {})


def test_tiers_have_one_name_and_a_price_where_the_list_has_none() -> None:
    assert chat(service_tier="fast").service_tier == chat(service_tier="priority").service_tier == "priority"
    assert chat(service_tier="fast").tier_multiplier == (5, 2)
    assert chat(service_tier="flex")[6] == "flex"
    assert list(chat(service_tier="warp").features) == ["field:service_tier"]
    assert list(chat(inference_geo="mars").features) == ["field:inference_geo"]


@pytest.mark.parametrize(
    "fields",
    [
        {"models": ["gpt-4o-mini", "o1-pro"]},
        {"fallbacks": ["gpt-4o-mini", {"model": "o1-pro"}]},
        {"fallbacks": [{"llama-3": ["gpt-4o-mini", "o1-pro"]}]},
        {"model": ["llama-3", "gpt-4o-mini", "o1-pro"]},
    ],
)
def test_other_models_that_may_answer_are_reported(fields: dict[str, Any]) -> None:
    bound = chat(**fields)
    assert (bound.models, bound.features) == (("gpt-4o-mini", "o1-pro"), {})


def test_a_fallback_that_changes_the_request_is_refused() -> None:
    bound = chat(fallbacks=[{"model": "gpt-4o", "messages": [{"role": "user", "content": "x" * 10**6}]}])
    assert list(bound.features) == ["field:fallbacks"]


def test_other_models_that_search_by_themselves_are_refused_too() -> None:
    bound = chat(models=["gpt-4o", "o3-deep-research"])
    with Meter("memory://", budgets=["$10"]) as meter, pytest.raises(Unbounded) as refused:
        meter.plan("chat", "gpt-4o", bound)
    assert refused.value.feature == "deep_research"


# ── what is not known ──────────────────────────────────────────────────────────────────

names = st.from_regex(r"[a-z]{3,12}_zz", fullmatch=True)
values = st.booleans() | st.integers() | st.text(max_size=9) | st.lists(st.integers(), max_size=2)


@settings(deadline=None)
@given(
    st.sampled_from(["", "extra_body.", "options.", "google.thinking_config.", "reasoning.", "provider."]),
    names,
    values,
    st.sampled_from([None, "openai", "openrouter", "vllm"]),
    st.sampled_from(["$1 per session", "9k tokens per session"]),
)
def test_what_is_not_known_is_refused_by_its_name(
    outer: str, name: str, value: Any, provider: str | None, budget: str
) -> None:
    path = outer + name
    body = {**CHAT, "max_tokens": 5, **put(path, value)}
    with Meter("memory://", budgets=[budget], prices={"llama-3": Price(input="1", output="1")}) as meter:
        with pytest.raises(Unbounded) as caught:
            meter.plan("chat", "llama-3", bound_request("chat", body, provider=provider))
        assert caught.value.feature == f"field:{path}"
        assert f"allow_fields=[{path!r}]" in str(caught.value)
        for allowed in (path, path.split(".")[0]):
            meter.plan(
                "chat",
                "llama-3",
                bound_request("chat", body, provider=provider, allowed=frozenset([allowed])),
            )


def test_what_does_not_count_tokens_or_money_needs_no_knowledge() -> None:
    with Meter("memory://", budgets=["9 calls per session"]) as meter:
        meter.plan("chat", "llama-3", chat(whatever=1))


def test_a_null_is_no_field() -> None:
    assert chat(whatever=None, models=None, n_predict=None) == chat()


@pytest.mark.parametrize("bad", ["many", 1.5, True])
@pytest.mark.parametrize("path", ["n_predict", "options.num_predict", "best_of"])
def test_impossible_values_are_errors(path: str, bad: Any) -> None:
    with pytest.raises(ConfigError, match=path):
        chat(**put(path, bad))


def test_allow_fields_in_code_and_file() -> None:
    assert Config(allow_fields=["x"]).arguments()["allow_fields"] == ["x"]
    with Meter("memory://", allow_fields=["x"]) as meter:
        assert meter.allow_fields == {"x"}
    with pytest.raises(ConfigError, match="allow_fields"):
        Meter("memory://", allow_fields="x")


# ── frameworks ─────────────────────────────────────────────────────────────────────────


def test_a_frameworks_settings_as_fields_of_the_wire() -> None:
    """Only what the table knows of a model object's own names; all that is kept to be sent."""
    settings_of_a_model = {
        "cache": None,
        "client": object(),
        "verbose": True,
        "anything_of_the_class": 3,
        "temperature": 0.1,
        "model_kwargs": {"n_predict": 200, "new_field": 1},
        "extra_body": {"options": {"num_predict": 300}},
    }
    found = framework_fields(settings_of_a_model, {"callbacks": [], "bound_field": 2, "best_of": 4})
    assert found == {
        "temperature": 0.1,
        "n_predict": 200,
        "new_field": 1,
        "options": {"num_predict": 300},
        "bound_field": 2,
        "best_of": 4,
    }
    effects = read_fields("chat", found)
    assert effects.limits == {"n_predict": 200, "options.num_predict": 300}
    assert list(effects.features) == ["field:new_field", "field:bound_field"]


# ── through the client ─────────────────────────────────────────────────────────────────


def test_extra_body_is_part_of_the_request(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["400 tokens per session"], allow_fields=["mine"]) as meter:
        c = meter.openai(client(sandbox))
        send = c.chat.completions.create
        with pytest.raises(Unbounded, match="field 'strange'"):
            send(model="gpt-4o", messages=HELLO, max_tokens=20, extra_body={"strange": 1})
        assert sandbox.requests == 0
        send(model="gpt-4o", messages=HELLO, max_tokens=20, extra_body={"mine": 1, "top_k": 4})
        assert len(entries(meter)) == 1
