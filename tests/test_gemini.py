"""Gemini's wire, by `meter.httpx`: what is asked, bounded, lowered, told and billed; what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest
from support import assert_agrees, assert_sound, entries

from behest_integrations import BudgetExceeded, ConfigError, Meter, PolicyRefused, Unbounded, UnknownPrice
from behest_integrations.sandbox import Sandbox
from behest_integrations.wire import Reply, bound_request, read_whole
from behest_integrations.wire.gemini import EMBED, GENERATE

MODEL = "gemini-2.5-flash"
HELLO: Any = [{"role": "user", "parts": [{"text": "hello there"}]}]


def url(sandbox: Sandbox, verb: str = "generateContent", model: str = MODEL) -> str:
    return f"{sandbox.url}/v1beta/models/{model}:{verb}"


def metered(meter: Meter, sandbox: Sandbox) -> httpx.Client:
    return meter.httpx(httpx.Client(), hosts=[f"{sandbox.host}:{sandbox.port}"])


@pytest.fixture
def meter() -> Iterator[Meter]:
    with Meter("memory://", budgets=["$1"]) as made:
        yield made


@pytest.mark.parametrize("query", ["?alt=sse", ""])
def test_streams_are_booked_as_they_are_billed(query: str, meter: Meter) -> None:
    with Sandbox(chunk_tokens=3) as sandbox:
        client = metered(meter, sandbox)
        ask = {"contents": HELLO, "generationConfig": {"maxOutputTokens": 80, "candidateCount": 2}}
        with client.stream("POST", url(sandbox, "streamGenerateContent") + query, json=ask) as response:
            said = response.read().decode()
        chunks = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: ")]
        chunks = chunks or json.loads(said)
        assert len(chunks) > 4
        (entry,) = entries(meter)
        assert (entry.status, entry.model, entry.provider) == ("settled", MODEL, "google")
        assert (entry.output_tokens, entry.reasoning_tokens) == (2 * 80, 2 * 32)
        assert_agrees(meter, sandbox)
        # Left early, and broken off: Google bills all of it anyway, so it is read on.
        with client.stream("POST", url(sandbox, "streamGenerateContent") + query, json=ask) as response:
            next(response.iter_raw())
        meter.flush()
        assert entries(meter)[-1].status in ("settled", "assumed")
        sandbox.fault("cut")
        with (
            pytest.raises(httpx.RemoteProtocolError),
            client.stream("POST", url(sandbox, "streamGenerateContent") + query, json=ask) as response,
        ):
            response.read()
        assert entries(meter)[-1].status == "assumed"
        assert_sound(meter)


@pytest.mark.parametrize(
    "names", [("generationConfig", "maxOutputTokens"), ("generation_config", "max_output_tokens")]
)
@pytest.mark.parametrize("limit", [None, 4000])
def test_the_limit_is_lowered_in_the_spelling_that_was_used(
    names: tuple[str, str], limit: int | None
) -> None:
    config, name = names
    seen: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        usage = {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15}
        said = [{"finishReason": "STOP", "content": {"parts": [{"text": "yes"}]}}]
        return httpx.Response(200, json={"candidates": said, "usageMetadata": usage})

    with Meter("memory://", budgets=["$0.002"]) as meter:
        client = meter.httpx(httpx.Client(transport=httpx.MockTransport(answer)))
        where = f"https://generativelanguage.googleapis.com/v1beta/models/{MODEL}:generateContent"
        inside: dict[str, Any] = {"temperature": 0} if limit is None else {"temperature": 0, name: limit}
        client.post(where, json={"contents": HELLO, config: inside})
        (sent,) = seen
        assert set(sent) == {"contents", config}
        camel_or_own = name if limit is not None else "maxOutputTokens"
        assert 16 <= sent[config][camel_or_own] < 900
        assert sent[config]["temperature"] == 0
        # The path says which model it is, whatever the body says beside it.
        with pytest.raises(BudgetExceeded):
            client.post(
                where.replace(MODEL, "gemini-2.5-pro"), json={"contents": HELLO * 200, "model": MODEL}
            )


def test_what_is_thought_and_asked_of_tools_is_counted(meter: Meter) -> None:
    with Sandbox() as sandbox:
        client = metered(meter, sandbox)
        tools = [
            {"functionDeclarations": [{"name": "price", "parameters": {"type": "OBJECT", "properties": {}}}]}
        ]
        ask: dict[str, Any] = {
            "contents": HELLO,
            "tools": tools,
            "systemInstruction": {"parts": [{"text": "Be."}]},
        }
        reply = client.post(url(sandbox), json=ask).json()
        call = reply["candidates"][0]["content"]
        answered = {"role": "user", "parts": [{"functionResponse": {"name": "price", "response": {"a": 1}}}]}
        client.post(url(sandbox), json={**ask, "contents": [*HELLO, call, answered]})
        client.post(url(sandbox), json={**ask, "generationConfig": {"thinkingConfig": {"thinkingBudget": 0}}})
        assert [e.reasoning_tokens for e in entries(meter)] == [32, 32, 0]
        assert_agrees(meter, sandbox)


def test_counting_is_free_and_embeddings_are_not(meter: Meter) -> None:
    with Sandbox() as sandbox:
        client = metered(meter, sandbox)
        assert client.post(url(sandbox, "countTokens"), json={"contents": HELLO}).json()["totalTokens"] > 0
        assert entries(meter) == []
        asked = [{"model": "models/gemini-embedding-001", "content": HELLO[0]}] * 3
        where = url(sandbox, "batchEmbedContents", "gemini-embedding-001")
        assert len(client.post(where, json={"requests": asked}).json()["embeddings"]) == 3
        (entry,) = entries(meter)
        assert (entry.operation, entry.output_tokens) == (EMBED, 0)
        assert_agrees(meter, sandbox)


@pytest.mark.parametrize(
    ("feature", "body"),
    [
        ("web_search", {"tools": [{"googleSearch": {}}]}),
        ("web_search", {"tools": [{"google_search": {}}]}),
        ("code_execution", {"tools": [{"codeExecution": {}}]}),
        ("url_context", {"tools": [{"urlContext": {}}]}),
        ("brandNew", {"tools": [{"brand_new": {}}]}),
        ("file", {"contents": [{"parts": [{"fileData": {"fileUri": "gs://a"}}]}]}),
        (
            "input_audio",
            {"contents": [{"parts": [{"inline_data": {"mime_type": "audio/wav", "data": "AA"}}]}]},
        ),
        ("file", {"contents": {"parts": {"inlineData": {"mimeType": "application/pdf", "data": "AA"}}}}),
        ("part:brandNew", {"contents": [{"parts": [{"brandNew": 1}]}]}),
        ("image_output", {"generationConfig": {"responseModalities": ["TEXT", "IMAGE"]}}),
        ("image_output", {"model": "gemini-2.5-flash-image"}),
        ("routing", {"generationConfig": {"routingConfig": {"autoMode": {}}}}),
        ("field:brandNew", {"brandNew": 1}),
        ("field:generationConfig.brandNew", {"generation_config": {"brand_new": 1}}),
        ("field:generation_config", {"generationConfig": {"maxOutputTokens": 5}, "generation_config": {}}),
    ],
)
def test_what_has_no_bound(feature: str, body: dict[str, Any]) -> None:
    bound = bound_request(GENERATE, {"model": MODEL, "contents": HELLO, **body}, provider="google")
    assert feature in bound.features


def test_an_image_is_bounded_wherever_it_is() -> None:
    stored = {"fileUri": "gs://bucket/scones.jpg", "mimeType": "image/jpeg"}
    contents = [{"parts": [{"fileData": stored}]}]
    bound = bound_request(GENERATE, {"model": "gemini-3.5-flash", "contents": contents}, provider="google")
    assert bound.features == {}
    assert (bound.input_tokens or 0) >= 2240
    video = [{"parts": [{"file_data": {**stored, "mimeType": "video/mp4"}}]}]
    bound = bound_request(GENERATE, {"model": "gemini-3.5-flash", "contents": video}, provider="google")
    assert "file" in bound.features


def test_bounds() -> None:
    plain = bound_request(GENERATE, {"model": MODEL, "contents": HELLO}, provider="google")
    assert plain.features == {}
    assert plain.input_tokens is not None
    config: dict[str, Any] = {
        "maxOutputTokens": 50,
        "candidateCount": 3,
        "thinkingConfig": {"thinkingBudget": 512},
        "responseModalities": ["TEXT"],
    }
    asked = bound_request(GENERATE, {"model": MODEL, "contents": HELLO, "generationConfig": config})
    assert (asked.output_limit, asked.choices, asked.extra_output) == (50, 3, 512)
    assert asked.below_limit == ("generationConfig.thinkingConfig.thinkingBudget",)
    image = {"role": "user", "parts": [{"inlineData": {"mimeType": "image/png", "data": "AA"}}]}
    seen = bound_request(GENERATE, {"model": "gemini-3.5-flash", "contents": [*HELLO, image]})
    assert seen.input_tokens is not None
    assert 2240 < seen.input_tokens - plain.input_tokens < 2400
    stored = bound_request(GENERATE, {"model": MODEL, "contents": HELLO, "cachedContent": "cachedContents/a"})
    assert (stored.input_tokens, stored.extra_input) == (None, plain.input_tokens)
    spoken = {
        "model": "gemini-2.5-flash-tts",
        "contents": HELLO,
        "generationConfig": {"responseModalities": ["AUDIO"]},
    }
    assert bound_request(GENERATE, spoken).output_audio
    tier = bound_request(GENERATE, {"model": MODEL, "contents": HELLO, "serviceTier": "FLEX"})
    assert tier.service_tier == "flex"
    with pytest.raises(ConfigError, match="maxOutputTokens"):
        bound_request(
            GENERATE, {"model": MODEL, "contents": HELLO, "generationConfig": {"maxOutputTokens": 0}}
        )


def test_replies() -> None:
    blocked = Reply()
    read_whole(
        blocked,
        b'{"promptFeedback": {"blockReason": "SAFETY"}, "modelVersion": "gemini-2.5-flash",'
        b' "responseId": "r", "usageMetadata": {"promptTokenCount": 7, "totalTokenCount": 7}}',
    )
    assert blocked.final_usage
    assert (blocked.model, blocked.id) == (MODEL, "r")
    assert blocked.usage is not None
    assert (blocked.usage.input_tokens, blocked.usage.output_tokens) == (7, 0)


def test_models_of_ones_own_need_a_price(meter: Meter) -> None:
    host = "https://generativelanguage.googleapis.com"
    where = f"{host}/v1beta/tunedModels/{MODEL}:generateContent"
    with pytest.raises(UnknownPrice, match="tunedModels"):
        meter.httpx(httpx.Client()).post(where, json={"contents": HELLO})


def test_a_policy_reads_it() -> None:
    pytest.importorskip("presidio_analyzer")
    rules = {"pii": {"mode": "enforce", "entities": {"EMAIL_ADDRESS": "mask", "IBAN_CODE": "block"}}}
    with Sandbox() as sandbox, Meter("memory://", budgets=["$1"], policy=rules) as meter:
        client = metered(meter, sandbox)
        said = [{"role": "user", "parts": [{"text": "IBAN DE89370400440532013000"}]}]
        for body in ({"contents": said}, {"contents": said[0]}):
            with pytest.raises(PolicyRefused):
                client.post(url(sandbox), json=body)
        with pytest.raises(PolicyRefused):
            client.post(url(sandbox, "countTokens"), json={"contents": said})
        assert sandbox.requests == 0


def test_what_google_runs_at_a_price_of_ones_own() -> None:
    with Sandbox() as sandbox, Meter("memory://", budgets=["$1"], allow={"web_search": "$0.05"}) as meter:
        ask = {"contents": HELLO, "tools": [{"googleSearch": {}}]}
        assert metered(meter, sandbox).post(url(sandbox), json=ask).status_code == 200
        (entry,) = entries(meter)
        assert entry.cost is not None
        assert Decimal(entry.cost) / 10**9 == sandbox.bill.total() + Decimal("0.05")
    with Sandbox() as sandbox, Meter("memory://", budgets=["$1"]) as meter:
        with pytest.raises(Unbounded, match="googleSearch"):
            metered(meter, sandbox).post(url(sandbox), json=ask)
        assert sandbox.requests == 0
