"""Wires of single providers by `meter.httpx`: entry = bill, limits that hold, what is refused."""

from __future__ import annotations

import asyncio
import json
import threading
from binascii import crc32
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from itertools import pairwise
from typing import Any, NamedTuple

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import HELLO, assert_agrees, assert_sound, auntil_exhausted, entries, until_exhausted

from behest_integrations import BudgetExceeded, Meter, Unbounded, UnknownPrice
from behest_integrations.calls.restoring import RestoringReader
from behest_integrations.policy.texts import unreadable
from behest_integrations.sandbox import Sandbox
from behest_integrations.sandbox.parts import frame
from behest_integrations.wire import Reply, ReplyReader, RequestBound, bound_request
from behest_integrations.wire.cohere import searches
from behest_integrations.wire.fields import table_of
from behest_integrations.wire.frames import FrameReader
from behest_integrations.wire.hangups import bills_on
from behest_integrations.wire.wires import Found, find


class Wire(NamedTuple):
    """One wire, as it is called.

    Attributes:
        provider: whose prices apply, by the price list's id.
        path: where answers are asked for, and where streams are.
        body: a request with an output limit of so many tokens; None: without one.
        streamed: what a request for a stream has besides.
    """

    provider: str
    path: str
    streams: str
    body: Callable[[int | None], dict[str, Any]]
    streamed: dict[str, Any]


def _mistral(limit: int | None) -> dict[str, Any]:
    body = {"model": "mistral-medium-latest", "messages": HELLO}
    return body if limit is None else {**body, "max_tokens": limit}


def _fim(limit: int | None) -> dict[str, Any]:
    body = {"model": "codestral-latest", "prompt": "def f(", "suffix": "return 1"}
    return body if limit is None else {**body, "max_tokens": limit}


def _cohere(limit: int | None) -> dict[str, Any]:
    body = {"model": "command-a-03-2025", "messages": HELLO}
    return body if limit is None else {**body, "max_tokens": limit}


CLAUDE = "global.anthropic.claude-haiku-4-5-20251001-v1:0"


def _converse(limit: int | None) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": [{"text": "hello there"}]}]}
    return body if limit is None else {**body, "inferenceConfig": {"maxTokens": limit, "temperature": 0.5}}


CHAT = "/mistral/v1/chat/completions"
FIM = "/mistral/v1/fim/completions"
WIRES = {
    "mistral": Wire("mistral", CHAT, CHAT, _mistral, {"stream": True}),
    "mistral fim": Wire("mistral", FIM, FIM, _fim, {"stream": True}),
    "converse": Wire("aws", f"/model/{CLAUDE}/converse", f"/model/{CLAUDE}/converse-stream", _converse, {}),
    "cohere": Wire("cohere", "/cohere/v2/chat", "/cohere/v2/chat", _cohere, {"stream": True}),
}
OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mistral embeddings": (
        "mistral",
        "/mistral/v1/embeddings",
        {"model": "mistral-embed", "input": ["hello", "there"]},
    ),
    "cohere embeddings": (
        "cohere",
        "/cohere/v2/embed",
        {"model": "embed-v4.0", "texts": ["hello", "there"], "input_type": "search_query"},
    ),
    "cohere embeddings of inputs": (
        "cohere",
        "/cohere/v2/embed",
        {"model": "embed-v4.0", "inputs": [{"content": [{"type": "text", "text": "hello"}]}]},
    ),
}
"""Calls that answer in other things than text: whose prices, the path, the request."""


@pytest.fixture
def meter() -> Iterator[Meter]:
    with Meter("memory://", budgets=["$1 per session"]) as made:
        yield made


def host(sandbox: Sandbox) -> str:
    return f"{sandbox.host}:{sandbox.port}"


def metered(meter: Meter, sandbox: Sandbox, provider: str, library: Any = httpx) -> Any:
    return meter.httpx(library.Client(), provider=provider, hosts=[host(sandbox)])


def ametered(meter: Meter, sandbox: Sandbox, provider: str, library: Any = httpx) -> Any:
    return meter.httpx(library.AsyncClient(), provider=provider, hosts=[host(sandbox)])


# ── entry = bill ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
@pytest.mark.parametrize("name", WIRES)
def test_an_entry_is_the_bill_streamed_or_not(library: str, name: str, meter: Meter) -> None:
    http, wire = pytest.importorskip(library), WIRES[name]
    with Sandbox(chunk_tokens=7) as sandbox:
        client = metered(meter, sandbox, wire.provider, http)
        streamed = {**wire.body(40), **wire.streamed}
        with meter.session("s", user="u"):
            assert client.post(sandbox.url + wire.path, json=wire.body(40)).status_code == 200
            with client.stream("POST", sandbox.url + wire.streams, json=streamed) as response:
                assert response.status_code == 200
                plain = response.read()

        async def run() -> None:
            async with ametered(meter, sandbox, wire.provider, http) as other:
                assert (await other.post(sandbox.url + wire.path, json=wire.body(None))).status_code == 200
                async with other.stream("POST", sandbox.url + wire.streams, json=streamed) as response:
                    assert len(b"".join([part async for part in response.aiter_bytes()])) > 400

        asyncio.run(run())
        assert len(plain) > 400
        found = [(e.status, e.session_id, e.output_tokens, e.provider) for e in entries(meter)]
        assert found == [
            ("settled", "s", 40, wire.provider),
            ("settled", "s", 40, wire.provider),
            ("settled", None, 64, wire.provider),
            ("settled", None, 40, wire.provider),
        ]
        # Asked once each: nothing was put into a request that the provider refuses.
        assert sandbox.requests == 4
        assert_agrees(meter, sandbox)
        assert_sound(meter)


@pytest.mark.parametrize("name", OTHERS)
def test_what_answers_in_other_things_than_text(name: str, meter: Meter) -> None:
    provider, path, body = OTHERS[name]
    with Sandbox() as sandbox:
        assert metered(meter, sandbox, provider).post(sandbox.url + path, json=body).status_code == 200
        (entry,) = entries(meter)
        assert (entry.status, entry.output_tokens) == ("settled", 0)
        assert_agrees(meter, sandbox)


@pytest.mark.parametrize("name", WIRES)
def test_what_goes_wrong_is_booked_as_it_is_billed_or_more(name: str, meter: Meter) -> None:
    wire = WIRES[name]
    with Sandbox(chunk_tokens=4) as sandbox:
        client = metered(meter, sandbox, wire.provider)
        streamed = {**wire.body(60), **wire.streamed}
        sandbox.fault("status", status=429)
        assert client.post(sandbox.url + wire.path, json=wire.body(60)).status_code == 429
        sandbox.fault("no_usage")
        client.post(sandbox.url + wire.path, json=wire.body(60))
        sandbox.fault("cut")
        with (
            pytest.raises(httpx.RemoteProtocolError),
            client.stream("POST", sandbox.url + wire.streams, json=streamed) as response,
        ):
            response.read()
        with client.stream("POST", sandbox.url + wire.streams, json=streamed) as response:
            next(response.iter_bytes(16))  # and is left
        meter.flush()
        assert [e.status for e in entries(meter)][:3] == ["failed", "assumed", "assumed"]
        assert entries(meter)[3].status in ("settled", "assumed")
        booked = sum(e.cost or 0 for e in entries(meter))
        assert booked >= sandbox.bill.total() * 10**9
        assert_sound(meter)


# ── limits ─────────────────────────────────────────────────────────────────────────────

CAP = Decimal("0.05")


def provider() -> Sandbox:
    return Sandbox(latency=0.01, output_tokens=400, chunk_tokens=50)


def check(sandbox: Sandbox, meter: Meter) -> None:
    spent = sandbox.bill.total()
    assert spent <= CAP, f"the budget was passed: {spent}"
    assert spent >= CAP * 99 / 100, f"only {spent} was used"
    assert_sound(meter)


@pytest.mark.parametrize("name", [name for name in WIRES if name != "mistral fim"])
def test_threads_use_up_a_budget_and_pass_it_never(name: str) -> None:
    wire = WIRES[name]
    with provider() as sandbox, Meter("memory://", budgets=[f"${CAP}"]) as meter:
        client, number = metered(meter, sandbox, wire.provider), iter(range(10**6))
        lock = threading.Lock()

        def call() -> None:
            with lock:
                kind = next(number) % 3
            if kind == 0:
                reply = client.post(sandbox.url + wire.path, json=wire.body(400))
                assert reply.status_code == 200
                return
            streamed = {**wire.body(None if kind == 1 else 400), **wire.streamed}
            with client.stream("POST", sandbox.url + wire.streams, json=streamed) as response:
                assert response.status_code == 200
                if kind == 1 and bills_on(wire.provider):
                    next(response.iter_bytes(16))  # and is broken off: the rest is read for its usage
                else:
                    response.read()

        with ThreadPoolExecutor(32) as pool:
            list(pool.map(lambda _: until_exhausted(call), range(32)))
        check(sandbox, meter)


@pytest.mark.parametrize("name", [name for name in WIRES if name != "mistral fim"])
def test_tasks_use_up_a_budget_and_pass_it_never(name: str) -> None:
    wire = WIRES[name]
    with provider() as sandbox, Meter("memory://", budgets=[f"${CAP}"]) as meter:

        async def run() -> None:
            async with ametered(meter, sandbox, wire.provider) as client:
                turn = 0

                async def call() -> None:
                    nonlocal turn
                    turn += 1
                    if turn % 2:
                        await client.post(sandbox.url + wire.path, json=wire.body(400))
                        return
                    streamed = {**wire.body(400), **wire.streamed}
                    async with client.stream("POST", sandbox.url + wire.streams, json=streamed) as response:
                        async for _ in response.aiter_bytes(16):
                            if turn % 4 == 0:
                                break

                async def cancelled() -> None:
                    with suppress(asyncio.TimeoutError, BudgetExceeded):
                        await asyncio.wait_for(call(), 0.005)

                await asyncio.gather(*(cancelled() for _ in range(4)))
                await asyncio.gather(*(auntil_exhausted(call) for _ in range(32)))

        asyncio.run(run())
        spent = sandbox.bill.total()
        assert spent <= CAP
        # What was cancelled is booked at the worst: it may have been billed.
        meter.flush()
        assert sum(e.cost or 0 for e in entries(meter)) >= CAP * 10**9 * 99 / 100
        assert_sound(meter)


@pytest.mark.parametrize("name", WIRES)
def test_what_is_not_known_is_refused_before_it_is_sent(name: str, meter: Meter) -> None:
    wire = WIRES[name]
    with Sandbox() as sandbox:
        client = metered(meter, sandbox, wire.provider)
        with pytest.raises(Unbounded, match="brandNew"):
            client.post(sandbox.url + wire.path, json={**wire.body(10), "brandNew": 1})
        assert sandbox.requests == 0
        assert entries(meter) == []


# ── Mistral ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/v1/chat/completions", Found("chat")),
        ("/v1/fim/completions", Found("completions")),
        ("/v1/embeddings", Found("embeddings")),
        ("/v1/responses", Found("responses")),
        ("/v1/agents/completions", Found("agents.completions")),
        ("/v1/chat/moderations", Found("chat.moderations")),
        ("/v1/chat/classifications", Found("chat.classifications")),
        ("/v1/moderations", Found("moderations")),
        ("/v1/conversations", Found("conversations")),
        ("/v1/conversations/c1", Found("conversations")),
        ("/v1/ocr", Found("ocr")),
        ("/v1/audio/transcriptions", Found("audio")),
        ("/v1/batch/jobs", Found("batch.jobs")),
        ("/v1/libraries/l1/documents", Found("libraries")),
        ("/v1/batch/jobs/j1/cancel", None),
        ("/v1/agents", None),
        ("/v1/agents/a1", None),
        ("/v1/files", None),
    ],
)
def test_what_mistrals_paths_do(path: str, found: Found | None) -> None:
    assert find("POST", path, "mistral") == found


def test_at_any_other_host_an_agent_is_no_chat_of_a_model() -> None:
    assert find("POST", "/v1/agents/completions") == Found("agents.completions")
    assert find("POST", "/v1/chat/moderations") == Found("chat.moderations")
    assert find("POST", "/v1/moderations") is None  # OpenAI's are free
    assert find("POST", "/v1/fim/completions") == Found("completions")


def test_what_mistral_answers_besides_needs_a_price_of_its_own(meter: Meter) -> None:
    with Sandbox() as sandbox:
        client = metered(meter, sandbox, "mistral")
        for path, name in (("ocr", "ocr"), ("agents/completions", "agents.completions")):
            with pytest.raises(Unbounded, match=name):
                client.post(f"{sandbox.url}/mistral/v1/{path}", json={"agent_id": "a", "messages": HELLO})
        assert sandbox.requests == 0


def test_mistrals_addresses_and_what_they_cost() -> None:
    from behest_integrations.prices import provider_for_url
    from behest_integrations.prices.providers import multiplier_for_url

    for address in (
        "https://api.mistral.ai/v1",
        "https://api.eu.mistral.ai",
        "https://codestral.mistral.ai/v1",
    ):
        assert provider_for_url(address) == "mistral"
    assert provider_for_url("https://api.eu.mistral.ai.example.com") is None
    assert multiplier_for_url("https://api.eu.mistral.ai/v1", "mistral-medium-latest") == (11, 10)
    assert multiplier_for_url("https://api.mistral.ai/v1", "mistral-medium-latest") is None


def test_what_mistral_thought_is_sent_back_and_counted() -> None:
    thought = "a long thought " * 40
    said = [
        {"type": "thinking", "thinking": [{"type": "text", "text": thought}]},
        {"type": "text", "text": "so"},
        {"type": "reference", "reference_ids": [1]},
    ]
    body = {"model": "magistral-medium-latest", "messages": [*HELLO, {"role": "assistant", "content": said}]}
    bound = bound_request("chat", body, provider="mistral", prefer_max_tokens=True)
    plain = bound_request("chat", {**body, "messages": HELLO}, provider="mistral", prefer_max_tokens=True)
    assert bound.features == {}
    assert (bound.input_tokens or 0) >= (plain.input_tokens or 0) + len(thought)
    page = [{"type": "document_url", "document_url": "https://example.com/a.pdf"}]
    asked = bound_request(
        "chat", {**body, "messages": [{"role": "user", "content": page}]}, provider="mistral"
    )
    assert list(asked.features) == ["part:document_url"]
    thinking = bound_request(
        "chat", {**body, "messages": HELLO, "prompt_mode": "reasoning"}, provider="mistral"
    )
    assert (thinking.input_tokens or 0) >= (plain.input_tokens or 0) + 256


# ── Cohere ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/v2/chat", Found("chat_v2")),
        ("/v2/embed", Found("embed_v2")),
        ("/v2/rerank", Found("rerank")),
        ("/v1/rerank", Found("rerank")),
        ("/v1/chat", Found("chat_v1")),
        ("/v1/embed", Found("embed")),
        ("/v1/generate", Found("generate")),
        ("/v1/embed-jobs", Found("embed-jobs")),
        ("/v2/batches", Found("batches")),
        ("/v2/audio/transcriptions", Found("audio")),
        ("/compatibility/v1/chat/completions", Found("chat")),
        ("/compatibility/v1/embeddings", Found("embeddings")),
        ("/v1/tokenize", None),
        ("/v1/check-api-key", None),
        ("/v1/embed-jobs/j/cancel", None),
        ("/v2/batches/b:cancel", None),
    ],
)
def test_what_coheres_paths_do(path: str, found: Found | None) -> None:
    assert find("POST", path, "cohere") == found


def test_what_cohere_is_asked_at_another_host() -> None:
    assert find("POST", "/v2/chat") == Found("chat_v2")
    assert find("POST", "/v1/chat") == Found("chat_v1")  # no chat of OpenAI's
    assert find("POST", "/v1/tokenize") == Found("tokenize")


def test_what_coheres_model_reads_is_counted() -> None:
    def bound(**more: Any) -> RequestBound:
        return bound_request("chat_v2", {**_cohere(50), **more}, provider="cohere")

    plain, words = bound(), "a word " * 60
    assert plain.features == {}
    assert plain.output_limit == 50
    found = {"type": "document", "document": {"id": "1", "data": {"text": words}}}
    tool = {"role": "tool", "tool_call_id": "c", "content": [found]}
    thought = {"role": "assistant", "content": [{"type": "thinking", "thinking": words}], "tool_plan": "so"}
    for more in (
        {"documents": [words]},
        {"documents": [{"id": "d", "data": {"snippet": words}}]},
        {"messages": [*HELLO, tool]},
        {"messages": [*HELLO, thought]},
        {"tools": [{"type": "function", "function": {"name": "f", "description": words}}]},
        {"response_format": {"type": "json_object", "json_schema": {"title": words}}},
    ):
        more_of_it = bound(**more)
        assert more_of_it.features == {}, more
        assert (more_of_it.input_tokens or 0) >= (plain.input_tokens or 0) + len(words), more
    asked = bound(thinking={"type": "enabled", "token_budget": 900})
    assert asked.below_limit == ("thinking.token_budget",)
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}
    assert list(bound(messages=[image]).features) == ["image"]
    assert list(bound(connectors=[{"id": "web-search"}]).features) == ["field:connectors"]
    seen = bound_request("embed_v2", {"model": "embed-v4.0", "images": ["data:x"]}, provider="cohere")
    assert list(seen.features) == ["image"]


@settings(max_examples=40)
@given(st.lists(st.text(max_size=900), min_size=1, max_size=9), st.text(max_size=80), st.integers(1, 600))
def test_searches_are_never_more_than_was_held_for(documents: list[str], query: str, longest: int) -> None:
    """Against a count of its own: the tokens are at most the bytes, and each 500 of them are a document."""
    held = searches({"query": query, "documents": documents, "max_tokens_per_doc": longest})
    chunks = 0
    for document in documents:
        left, room = min(len(document.split()), longest), 500 - len(query.split())
        chunks += max(1, -(-left // room))
    assert held >= -(-chunks // 100)


def test_ranking_has_a_price_of_its_own(meter: Meter) -> None:
    few = {"model": "rerank-v4.0-fast", "query": "which?", "documents": ["one", "two"]}
    many = {**few, "documents": ["a document"] * 101}
    with Sandbox() as sandbox, Meter("memory://", budgets=["$1"], allow={"rerank": "$0.002"}) as ranking:
        path = f"{sandbox.url}/cohere/v2/rerank"
        with pytest.raises(Unbounded, match="rerank"):
            metered(meter, sandbox, "cohere").post(path, json=few)
        client = metered(ranking, sandbox, "cohere")
        assert client.post(path, json=few).status_code == 200
        with pytest.raises(Unbounded, match="as 2 searches"):
            client.post(path, json=many)
        assert sandbox.requests == 1
        assert [(e.operation, e.cost) for e in entries(ranking)] == [("rerank", 2_000_000)]
        # Counting tokens is free.
        assert client.post(f"{sandbox.url}/cohere/v1/tokenize", json={"text": "a b"}).status_code == 200
        assert len(entries(ranking)) == 1


@pytest.mark.parametrize("size", [1, 3, 7])
def test_what_was_masked_is_put_back_into_coheres_streams(size: int) -> None:
    from behest_integrations.policy.placeholders import Placeholders, Restorer

    said = "write to ada@example.com, or to bob@example.com"
    hidden, marked = Placeholders([said]), said
    for address in ("ada@example.com", "bob@example.com"):
        marked = marked.replace(address, hidden.of("EMAIL_ADDRESS", address))
    pieces = [marked[at : at + size] for at in range(0, len(marked), size)]
    events: list[dict[str, Any]] = [
        {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": piece}}}}
        for piece in pieces
    ]
    events += [{"type": "content-end", "index": 0}, {"type": "message-end", "delta": {}}]
    raw = "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events).encode()
    reader = RestoringReader(ReplyReader(Reply(), events=True, hide_usage=False), Restorer(hidden.texts))
    out = b"".join(reader.feed(raw[at : at + 11]) for at in range(0, len(raw), 11)) + reader.finish()
    shown = [json.loads(line[6:]) for line in out.splitlines() if line.startswith(b"data: ")]
    deltas = [e["delta"]["message"]["content"]["text"] for e in shown if e["type"] == "content-delta"]
    assert "".join(deltas) == said
    assert [e["type"] for e in shown][-2:] == ["content-end", "message-end"]


def test_a_tool_of_coheres_is_streamed_and_booked(meter: Meter) -> None:
    tools = [{"type": "function", "function": {"name": "price", "parameters": {"type": "object"}}}]
    with Sandbox() as sandbox:
        client = metered(meter, sandbox, "cohere")
        for more in ({}, {"stream": True}):
            body = {**_cohere(60), "tools": tools, **more}
            assert client.post(f"{sandbox.url}/cohere/v2/chat", json=body).status_code == 200
        assert [e.status for e in entries(meter)] == ["settled", "settled"]
        assert_agrees(meter, sandbox)


# ── Converse ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/model/amazon.nova-pro-v1:0/converse", Found("converse", "amazon.nova-pro-v1:0", False)),
        ("/model/amazon.nova-pro-v1:0/converse-stream", Found("converse", "amazon.nova-pro-v1:0", True)),
        (
            "/model/arn:aws:bedrock:us-east-1:1:inference-profile/us.amazon.nova-pro-v1:0/converse",
            Found("converse", "arn:aws:bedrock:us-east-1:1:inference-profile/us.amazon.nova-pro-v1:0", False),
        ),
        ("/model/amazon.nova-pro-v1:0/count-tokens", None),
        ("/model/amazon.nova-pro-v1:0/invoke", Found("messages", "amazon.nova-pro-v1:0", False)),
        ("/async-invoke", Found("async-invoke")),
        ("/guardrail/g/version/1/apply", Found("guardrail")),
    ],
)
def test_what_bedrocks_paths_do(path: str, found: Found | None) -> None:
    assert find("POST", path, "aws") == found


def conversed(**more: Any) -> RequestBound:
    return bound_request("converse", {"model": CLAUDE, **_converse(50), **more}, provider="aws")


def said(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


def test_what_a_conversation_is_made_of_is_counted() -> None:
    plain, empty, words = conversed(), conversed(messages=[]), "a word " * 60
    assert plain.features == {}
    assert (plain.output_limit, plain.cache_writes) == (50, "none")
    document = {"format": "txt", "name": "n", "source": {"text": words}}
    cut = {"format": "txt", "name": "n", "source": {"content": [{"text": words}]}}
    spec = {"name": "f", "description": words, "inputSchema": {"json": {"type": "object"}}}
    for more in (
        said({"text": words}),
        said({"document": document}),
        said({"document": cut}),
        said({"toolUse": {"toolUseId": "t", "name": "f", "input": {"a": words}}}),
        said({"toolResult": {"toolUseId": "t", "content": [{"json": {"a": words}}]}}),
        said({"toolResult": {"toolUseId": "t", "content": [{"text": words}], "status": "success"}}),
        said({"reasoningContent": {"reasoningText": {"text": words, "signature": "s"}}}),
        said({"guardContent": {"text": {"text": words}}}),
        said({"searchResult": {"source": "s", "title": "t", "content": [{"text": words}]}}),
        said({"citationsContent": {"content": [{"text": words}]}}),
        {"system": [{"text": words}]},
        {"toolConfig": {"tools": [{"toolSpec": spec}], "toolChoice": {"auto": {}}}},
        {"outputConfig": {"textFormat": {"type": "json_schema", "structure": {"jsonSchema": words}}}},
    ):
        bound = conversed(**more)
        assert bound.features == {}, more
        assert (bound.input_tokens or 0) >= (empty.input_tokens or 0) + len(words), more
    short, long = {"cachePoint": {"type": "default"}}, {"cachePoint": {"type": "default", "ttl": "1h"}}
    assert conversed(**said({"text": "a"}, short)).cache_writes == "5m"
    assert conversed(**said({"text": "a"}, long, short)).cache_writes == "1h"
    assert conversed(toolConfig={"tools": [{"toolSpec": spec}, short]}).cache_writes == "5m"
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 2000}}
    thought = conversed(additionalModelRequestFields=thinking)
    assert thought.below_limit == ("additionalModelRequestFields.thinking.budget_tokens",)
    assert conversed(serviceTier={"type": "flex"}).service_tier == "flex"
    assert conversed(performanceConfig={"latency": "standard"}) == plain
    assert (conversed(**said({"image": {"format": "png", "source": {"bytes": "aa"}}})).features) == {}


@pytest.mark.parametrize(
    ("feature", "more"),
    [
        ("file", said({"document": {"format": "pdf", "name": "n", "source": {"bytes": "aa"}}})),
        ("video", said({"video": {"format": "mp4", "source": {"bytes": "aa"}}})),
        ("input_audio", said({"audio": {"format": "mp3", "source": {"bytes": "aa"}}})),
        ("file", said({"toolResult": {"content": [{"document": {"source": {"s3Location": {}}}}]}})),
        ("part:brandNew", said({"brandNew": 1})),
        ("image", {**said({"image": {"source": {"bytes": "a"}}}), "model": "amazon.nova-pro-v1:0"}),
        ("nova_grounding", {"toolConfig": {"tools": [{"systemTool": {"name": "nova_grounding"}}]}}),
        ("guardrails", {"guardrailConfig": {"guardrailIdentifier": "g", "guardrailVersion": "1"}}),
        ("field:performanceConfig.latency", {"performanceConfig": {"latency": "optimized"}}),
        ("field:serviceTier.type", {"serviceTier": {"type": "reserved"}}),
        (
            "field:additionalModelRequestFields.max_tokens",
            {"additionalModelRequestFields": {"max_tokens": 9}},
        ),
        ("field:inferenceConfig.brandNew", {"inferenceConfig": {"brandNew": 1}}),
        ("field:toolConfig.brandNew", {"toolConfig": {"brandNew": 1}}),
    ],
)
def test_what_of_a_conversation_has_no_bound(feature: str, more: dict[str, Any]) -> None:
    assert list(conversed(**more).features) == [feature]


def test_every_field_of_botocores_model_is_known() -> None:
    model = pytest.importorskip("botocore.session").get_session().get_service_model("bedrock-runtime")
    table = table_of("converse", "aws")
    for operation in ("Converse", "ConverseStream"):
        shape = model.operation_model(operation).input_shape
        assert set(shape.members) - {"modelId"} <= set(table.entries) | table.plain
        for name in ("inferenceConfig", "toolConfig", "serviceTier", "performanceConfig", "outputConfig"):
            assert set(shape.members[name].members) <= set(table.entries[name].inside)
    block = model.shape_for("ContentBlock")
    for name in block.members:
        assert not any(f.startswith("part:") for f in conversed(**said({name: {}})).features), name


def test_stored_prompts_and_profiles_of_ones_own_have_no_price(meter: Meter) -> None:
    client = meter.httpx(httpx.Client())
    host = "https://bedrock-runtime.us-east-1.amazonaws.com/model/"
    for model in ("prompt%2FABC:1", "application-inference-profile%2Fabc", "default-prompt-router%2Fmeta:1"):
        with pytest.raises(UnknownPrice):
            client.post(f"{host}arn:aws:bedrock:us-east-1:1:{model}/converse", json=_converse(9))


def test_what_is_in_the_cache_is_booked_at_its_price(meter: Meter) -> None:
    body = {**_converse(20), "system": [{"text": "be brief " * 200}, {"cachePoint": {"type": "default"}}]}
    with Sandbox() as sandbox:
        client = metered(meter, sandbox, "aws")
        for path in ("converse", "converse", "converse-stream"):
            assert client.post(f"{sandbox.url}/model/{CLAUDE}/{path}", json=body).status_code == 200
        first, second, third = entries(meter)
        assert first.cache_write_tokens == second.cached_input_tokens == third.cached_input_tokens > 400
        assert_agrees(meter, sandbox)


def test_a_tool_in_frames_is_booked(meter: Meter) -> None:
    spec = {"name": "price", "inputSchema": {"json": {"type": "object", "properties": {}}}}
    body = {**_converse(60), "toolConfig": {"tools": [{"toolSpec": spec}]}}
    with Sandbox() as sandbox:
        client = metered(meter, sandbox, "aws")
        for path in ("converse", "converse-stream"):
            client.post(f"{sandbox.url}/model/{CLAUDE}/{path}", json=body)
        assert [e.status for e in entries(meter)] == ["settled", "settled"]
        assert_agrees(meter, sandbox)


def test_a_signature_is_made_of_what_is_sent(meter: Meter) -> None:
    """An `auth=` of the client comes after the limit has been put in."""

    class Signed(httpx.Auth):
        requires_request_body = True

        def auth_flow(self, request: httpx.Request) -> Any:
            request.headers["x-signed"] = str(len(request.content))
            seen.append((request.headers["x-signed"], request.content))
            yield request

    seen: list[tuple[str, bytes]] = []
    with Sandbox() as sandbox:
        client = meter.httpx(httpx.Client(auth=Signed()), provider="aws", hosts=[host(sandbox)])
        client.post(f"{sandbox.url}/model/{CLAUDE}/converse", json=_converse(None))
    ((signed, sent),) = seen
    assert json.loads(sent)["inferenceConfig"]["maxTokens"] > 0
    assert signed == str(len(sent))


# ── frames ─────────────────────────────────────────────────────────────────────────────

events_of_a_stream = st.lists(
    st.tuples(
        st.sampled_from(["messageStart", "contentBlockDelta", "messageStop", "chunk"]),
        st.dictionaries(st.text(max_size=6), st.text(max_size=40) | st.integers(), max_size=3),
    ),
    min_size=1,
    max_size=6,
)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(at % (len(data) + 1) for at in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@settings(max_examples=60, deadline=None)
@given(events_of_a_stream, st.lists(st.integers(0, 10**6), max_size=8))
def test_frames_are_what_botocore_reads_of_them(
    made: list[tuple[str, dict[str, Any]]], cuts: list[int]
) -> None:
    stream = pytest.importorskip("botocore.eventstream")
    data = b"".join(frame(kind, event) for kind, event in made)
    buffer, ours, failed = stream.EventStreamBuffer(), [], []
    reader = FrameReader(lambda event, kind: bool(ours.append((kind, event))), lambda: failed.append(1))
    for piece in cut(data, cuts):
        buffer.add_data(piece)
        assert reader.feed(piece) == piece
    theirs = [(m.headers[":event-type"], json.loads(m.payload)) for m in buffer]
    assert ours == theirs == made
    assert not failed


@settings(max_examples=60, deadline=None)
@given(events_of_a_stream, st.integers(0, 10**6), st.integers(1, 255))
def test_a_frame_that_is_broken_is_read_by_neither(
    made: list[tuple[str, dict[str, Any]]], place: int, flip: int
) -> None:
    stream = pytest.importorskip("botocore.eventstream")
    data = bytearray(b"".join(frame(kind, event) for kind, event in made))
    data[place % len(data)] ^= flip
    ours: list[Any] = []
    failed: list[int] = []
    reader = FrameReader(lambda event, kind: bool(ours.append((kind, event))), lambda: failed.append(1))
    assert reader.feed(bytes(data)) == data
    buffer, theirs = stream.EventStreamBuffer(), []
    buffer.add_data(bytes(data))
    try:
        for message in buffer:
            theirs.append((message.headers[":event-type"], json.loads(message.payload)))
        waits = True
    except stream.ParserError:
        waits = False
    # Those before it are read; a length that is wrong may only look like a frame that is not yet whole.
    assert ours == theirs == made[: len(ours)]
    assert len(ours) < len(made)
    assert bool(failed) is not waits


def test_what_of_a_conversation_no_scanner_reads() -> None:
    picture = said({"image": {"format": "png", "source": {"bytes": "aa"}}}, {"text": "a"})
    page = said({"toolResult": {"content": [{"document": {"source": {"s3Location": {"uri": "s3://a"}}}}]}})
    assert (unreadable(picture), unreadable(page)) == ({"image": 1}, {"document": 1})
    assert unreadable(said({"document": {"source": {"text": "a"}}})) == {}


def test_an_exception_in_a_stream_is_no_answer() -> None:
    reply = Reply()
    reader = ReplyReader(reply, events=False, hide_usage=False)
    reader.feed(frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "so"}}))
    said = {":exception-type": "throttlingException", ":message-type": "exception"}
    headers = b"".join(
        bytes([len(n)]) + n.encode() + b"\x07" + len(v).to_bytes(2, "big") + v.encode()
        for n, v in said.items()
    )
    payload = b'{"message": "slow down"}'
    head = (len(headers) + len(payload) + 16).to_bytes(4, "big") + len(headers).to_bytes(4, "big")
    head += crc32(head).to_bytes(4, "big")
    reader.feed(head + headers + payload + crc32(head + headers + payload).to_bytes(4, "big"))
    assert reply.error
    assert not reply.final_usage


# ── SDKs over a metered client ─────────────────────────────────────────────────────────


def _mistral_sdk(sandbox: Sandbox, http: Any) -> Iterator[Callable[[], Any]]:
    sdk = pytest.importorskip("mistralai.client").Mistral(
        api_key="none", server_url=f"{sandbox.url}/mistral", client=http
    )
    ask: Any = {"model": "mistral-medium-latest", "messages": HELLO, "max_tokens": 30}
    yield lambda: sdk.chat.complete(**ask)
    yield lambda: list(sdk.chat.stream(**ask))
    yield lambda: sdk.fim.complete(model="codestral-latest", prompt="a", suffix="b", max_tokens=30)
    yield lambda: sdk.embeddings.create(model="mistral-embed", inputs=["hello"])


def _groq_sdk(sandbox: Sandbox, http: Any) -> Iterator[Callable[[], Any]]:
    """Of the generator that made those of Together, Fireworks and Cerebras as well."""
    sdk = pytest.importorskip("groq").Groq(
        api_key="none", base_url=sandbox.url, http_client=http, max_retries=1
    )
    url, ask = "/v1/chat/completions", {"model": "gpt-4o", "messages": HELLO, "max_tokens": 30}
    yield lambda: sdk.post(url, body=ask, cast_to=object)


def _cohere_sdk(sandbox: Sandbox, http: Any) -> Iterator[Callable[[], Any]]:
    sdk = pytest.importorskip("cohere").ClientV2("none", base_url=f"{sandbox.url}/cohere", httpx_client=http)
    ask: Any = {"model": "command-a-03-2025", "messages": HELLO, "max_tokens": 30}
    yield lambda: sdk.chat(**ask)
    yield lambda: list(sdk.chat_stream(**ask))
    yield lambda: sdk.embed(
        model="embed-v4.0", texts=["hello"], input_type="search_query", embedding_types=["float"]
    )


SDKS: dict[str, tuple[Any, str | None, bool]] = {
    "mistralai": (_mistral_sdk, "mistral", True),
    "cohere": (_cohere_sdk, "cohere", True),
    "groq": (_groq_sdk, None, False),
}
"""Its calls, whose prices apply, and whether a refusal comes out as it is, and at once."""


@pytest.mark.parametrize("name", SDKS)
def test_an_sdk_over_a_metered_client(name: str, meter: Meter) -> None:
    calls, whose, plain = SDKS[name]
    with Sandbox() as sandbox:
        made = [call() for call in calls(sandbox, metered(meter, sandbox, whose))]
        assert all(made)
        assert [e.status for e in entries(meter)] == ["settled"] * len(made)
        assert_agrees(meter, sandbox)
    with Sandbox() as sandbox, Meter("memory://", budgets=["1 tokens"]) as poor:
        for call in calls(sandbox, metered(poor, sandbox, whose)):
            with pytest.raises(Exception, match=r"Budget|Connection error") as refused:
                call()
            cause = refused.value if plain else refused.value.__cause__
            assert isinstance(cause, BudgetExceeded)
            assert cause.budget == "1 tokens"
        assert sandbox.requests == 0
        assert entries(poor) == []
