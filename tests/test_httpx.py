"""`meter.httpx`: APIs called by hand, and SDKs over a client of it; entry = bill, and nothing twice."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest
from support import HELLO, assert_agrees, assert_sound, entries, until_exhausted

from behest_integrations import BudgetExceeded, ConfigError, Meter, Unbounded
from behest_integrations.sandbox import Sandbox
from behest_integrations.wire.wires import Found, find

LIBRARIES = ("httpx", "httpx2")
VERSION = {"anthropic-version": "2023-06-01"}
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"model": "gpt-4o", "messages": HELLO, "max_tokens": 40}),
    "responses": ("/v1/responses", {"model": "gpt-4o", "input": "hello", "max_output_tokens": 40}),
    "embeddings": ("/v1/embeddings", {"model": "text-embedding-3-small", "input": ["hello"]}),
    "messages": ("/v1/messages", {"model": "claude-haiku-4-5", "messages": HELLO, "max_tokens": 40}),
    "azure": ("/openai/deployments/gpt-4o/chat/completions", {"messages": HELLO, "max_tokens": 40}),
    "gemini": (
        "/v1beta/models/gemini-2.5-flash:generateContent",
        {
            "contents": [{"role": "user", "parts": [{"text": "hello"}]}],
            "generationConfig": {"maxOutputTokens": 60},
        },
    ),
    "gemini embeddings": (
        "/v1beta/models/gemini-embedding-001:embedContent",
        {"content": {"parts": [{"text": "hello"}]}, "taskType": "RETRIEVAL_QUERY"},
    ),
    "vertex": (
        "/projects/p/locations/l/publishers/anthropic/models/claude-haiku-4-5%4020251001:rawPredict",
        {"messages": HELLO, "max_tokens": 40, "anthropic_version": "vertex-2023-10-16"},
    ),
}


def host(sandbox: Sandbox) -> str:
    return f"{sandbox.host}:{sandbox.port}"


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", CALLS)
def test_an_entry_is_the_bill(library: str, name: str) -> None:
    httpx = pytest.importorskip(library)
    path, body = CALLS[name]
    with Sandbox() as sandbox, Meter("memory://", budgets=["$1 per session"]) as meter:
        url = sandbox.url + path
        client = meter.httpx(httpx.Client(headers=VERSION), hosts=[host(sandbox)])
        assert isinstance(client, httpx.Client)
        with meter.session("s", user="u"):
            assert client.post(url, json=body).status_code == 200
            assert client.post(url, json=body, headers={"X-Session-Id": "own"}).json()

        async def run() -> None:
            async with meter.httpx(httpx.AsyncClient(headers=VERSION), hosts=[sandbox.host]) as other:
                assert (await other.post(url, json=body)).status_code == 200

        asyncio.run(run())
        found = [(e.status, e.session_id, e.user_id) for e in entries(meter)]
        assert found == [("settled", "s", "u"), ("settled", "own", "u"), ("settled", None, None)]
        assert_agrees(meter, sandbox)
        assert_sound(meter)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", ["chat", "messages"])
def test_streams_and_those_that_are_left(library: str, name: str) -> None:
    httpx = pytest.importorskip(library)
    path, body = CALLS[name]
    with Sandbox(chunk_tokens=2) as sandbox, Meter("memory://", budgets=["$1"]) as meter:
        url, asked = sandbox.url + path, {**body, "stream": True}
        client = meter.httpx(httpx.Client(headers=VERSION), hosts=[host(sandbox)])
        with client.stream("POST", url, json=asked) as response:
            lines = [line for line in response.iter_lines() if line.startswith("data: {")]
        # What was asked for beside is not shown: no chunk without a choice.
        assert all(json.loads(line[6:]).get("choices", [1]) for line in lines)
        assert_agrees(meter, sandbox)

        async def leave() -> None:
            async with (
                meter.httpx(httpx.AsyncClient(headers=VERSION), hosts=[sandbox.host]) as other,
                other.stream("POST", url, json=asked) as left,
            ):
                async for _ in left.aiter_lines():
                    break

        with client.stream("POST", url, json=asked) as response:
            next(response.iter_lines())
        asyncio.run(leave())
        meter.flush()
        assert entries(meter)[0].status == "settled"
        assert {e.status for e in entries(meter)[1:]} <= {"assumed", "settled"}
        assert len(entries(meter)) == 3


def test_the_limit_is_lowered_and_then_it_is_refused() -> None:
    import httpx

    with (
        Sandbox(latency=0.02, output_tokens=2000) as sandbox,
        Meter("memory://", budgets=["$0.10"]) as meter,
    ):
        client = meter.httpx(httpx.Client(headers=VERSION), hosts=[host(sandbox)])
        path, body = CALLS["messages"]
        ask = {**body, "max_tokens": 2000}

        def call() -> None:
            assert client.post(sandbox.url + path, json=ask).status_code == 200

        with ThreadPoolExecutor(32) as pool:
            list(pool.map(lambda _: until_exhausted(call), range(32)))
        made = sandbox.requests
        with pytest.raises(BudgetExceeded):
            call()
        assert sandbox.requests == made
        assert Decimal("0.099") <= sandbox.bill.total() <= Decimal("0.1")
        assert_agrees(meter, sandbox)
        assert_sound(meter)


def test_what_is_none_of_ours_and_what_has_no_bound(sandbox: Sandbox) -> None:
    import httpx

    with Meter("memory://", budgets=["$1"]) as meter:
        stranger = meter.httpx(httpx.Client())
        assert stranger.post(f"{sandbox.url}/v1/images/generations", json={}).status_code == 200
        client = meter.httpx(httpx.Client(), hosts=[host(sandbox)])
        assert client.get(f"{sandbox.url}/v1/models").status_code == 200
        assert entries(meter) == []
        with pytest.raises(Unbounded, match="images"):
            client.post(f"{sandbox.url}/v1/images/generations", json={})
        with pytest.raises(Unbounded, match="predictLongRunning"):
            meter.httpx(httpx.Client()).post(
                "https://generativelanguage.googleapis.com/v1beta/models/veo-3.1-generate-preview:predictLongRunning"
            )
        assert sandbox.requests == 1
        for wrong in (object(), client):
            with pytest.raises(ConfigError):
                meter.httpx(wrong)


def test_an_sdk_over_a_metered_client_is_counted_once(sandbox: Sandbox) -> None:
    """An SDK that takes the client is metered by it, and one that is metered itself is not twice."""
    import openai

    library = pytest.importorskip("httpx2" if openai.__version__.startswith("3") else "httpx")
    with Meter("memory://", budgets=["$1"]) as meter:
        http = meter.httpx(library.Client(), hosts=[host(sandbox)])
        plain = openai.OpenAI(base_url=sandbox.base_url, api_key="none", http_client=http)
        ask: Any = {"model": "gpt-4o", "messages": HELLO, "max_tokens": 20}
        plain.chat.completions.create(**ask)
        assert len(entries(meter)) == 1
        meter.openai(plain).chat.completions.create(**ask)
        assert len(entries(meter)) == 2 == sandbox.requests
        assert_agrees(meter, sandbox)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/v1/chat/completions", Found("chat")),
        ("/api/v1/messages", Found("messages")),
        ("/v1/messages/count_tokens", None),
        ("/v1/files", None),
        ("/v1/models/gemini-2.5-flash:generateContent", Found("generate_content", "gemini-2.5-flash", False)),
        (
            "/v1beta1/projects/p/locations/l/publishers/google/models/gemini-2.5-pro:streamGenerateContent",
            Found("generate_content", "gemini-2.5-pro", True),
        ),
        ("/v1beta/tunedModels/own:generateContent", Found("generate_content", "tunedModels/own", False)),
        (
            "/v1beta/models/gemini-embedding-001:batchEmbedContents",
            Found("embed_content", "gemini-embedding-001"),
        ),
        ("/v1beta/models/gemini-2.5-flash:batchGenerateContent", Found("batchGenerateContent")),
        ("/v1beta/interactions", Found("interactions")),
        ("/upload/v1beta/files", None),
        ("/v1beta/models/gemini-2.5-flash:countTokens", None),
        ("/model/amazon.nova-pro-v1%3A0/converse-stream", Found("converse", "amazon.nova-pro-v1%3A0", True)),
        ("/model/anthropic.claude-opus-5-5/invoke", Found("messages", "anthropic.claude-opus-5-5", False)),
        ("/v1/audio/speech", Found("audio")),
    ],
)
def test_what_a_path_does(path: str, found: Found | None) -> None:
    assert find("POST", path) == found
    assert find("GET", path) is None
