"""The gateway as its callers and whoever runs it see it: `behest serve`, over real connections."""

from __future__ import annotations

import itertools
import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_support import Gateway, chat
from recording import Answer, Received, Recorder, completion, failing
from support import assert_agrees, assert_sound, entries

from behest_integrations.ledger.book import Entry
from behest_integrations.rules.budgets import to_nano
from behest_integrations.sandbox import Sandbox

HELLO = chat(max_tokens=20)


class There:
    """A sandbox, a gateway in front of it, and a caller with a key; users are new for each test."""

    def __init__(self, sandbox: Sandbox, gateway: Gateway) -> None:
        self.sandbox = sandbox
        self.gateway = gateway
        self.key = gateway.key()
        self.http = gateway.http(self.key)
        self._numbers = itertools.count()

    def whose(self) -> dict[str, str]:
        number = next(self._numbers)
        return {"X-End-User-Id": f"u-{number}", "X-Session-Id": f"s-{number}"}

    def entries(self, who: dict[str, str]) -> list[Entry]:
        with self.gateway.meter() as meter:
            return [e for e in entries(meter) if e.session_id == who["X-Session-Id"]]


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[There]:
    folder = tmp_path_factory.mktemp("gateway")
    budgets = ["$0.50 per session", "$5/day per user"]
    with Sandbox() as sandbox, Gateway(folder, sandbox, budgets=budgets) as gateway:
        there = There(sandbox, gateway)
        yield there
        there.http.close()


def error(response: httpx.Response) -> dict[str, Any]:
    """What an error says, once it has the shape that all have."""
    found: dict[str, Any] = response.json()["error"]
    assert set(found) == {"message", "type", "code", "param", "details"}
    assert found["message"]
    assert response.headers["x-trace-id"]
    return found


def events(response: httpx.Response) -> list[dict[str, Any]]:
    data = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(d) for d in data[:-1]]


# ── calls ──────────────────────────────────────────────────────────────────────────────


def test_an_answer_is_the_providers_own(there: There) -> None:
    answered = there.http.post("/chat/completions", json=HELLO, headers=there.whose())
    direct = httpx.post(f"{there.sandbox.base_url}/chat/completions", json=HELLO)
    differs = ("id", "created")
    assert {k: v for k, v in answered.json().items() if k not in differs} == {
        k: v for k, v in direct.json().items() if k not in differs
    }


def test_a_call_is_an_entry_found_by_its_trace(there: There) -> None:
    who = there.whose()
    answered = there.http.post("/chat/completions", json=HELLO, headers=who)
    (entry,) = there.entries(who)
    assert (entry.tenant, entry.project, entry.user_id) == ("acme", "support", who["X-End-User-Id"])
    assert entry.tags["trace"] == answered.headers["x-trace-id"]
    # And the id of the key, by which reports find it; and with whose key the provider was asked.
    assert set(entry.tags) == {"trace", "key", "paid_by"}
    assert entry.status == "settled"
    assert entry.output_tokens == answered.json()["usage"]["completion_tokens"]
    assert entry.cost == to_nano(there.sandbox.bill.lines[-1].cost)


def test_an_answer_tells_the_budget_that_binds(there: There) -> None:
    answered = there.http.post("/chat/completions", json=HELLO, headers=there.whose())
    assert answered.headers["x-budget"] == "$0.50 per session"
    assert answered.headers["x-budget-limit"] == "$0.50"
    assert answered.headers["x-budget-left"].startswith("$0.499")
    assert "x-budget-reset" not in answered.headers


def test_every_answer_has_a_trace_of_its_own(there: There) -> None:
    client = httpx.Client(base_url=there.gateway.url)
    paths = [
        "/healthz",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/docs",
        "/nothing",
        "/v1/models",
        "/v1/usage",
    ]
    traces = [client.get(path).headers["x-trace-id"] for path in paths]
    traces += [client.post("/v1/chat/completions", json=HELLO).headers["x-trace-id"]]
    assert len(set(traces)) == len(traces)


@pytest.mark.parametrize("asked", [False, True])
def test_a_stream_comes_as_it_is_made(there: There, asked: bool) -> None:
    who, options = there.whose(), {"stream_options": {"include_usage": True}} if asked else {}
    there.sandbox.chunk_delay = 0.03
    billed = len(there.sandbox.bill.lines)
    with there.http.stream(
        "POST", "/chat/completions", json={**HELLO, "stream": True, **options}, headers=who
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.iter_lines()
        next(lines)
        assert len(there.sandbox.bill.lines) == billed, "the first event came when all was made"
        last = [line for line in lines if line][-1]
    there.sandbox.chunk_delay = 0.0
    assert last == "data: [DONE]"
    (entry,) = there.entries(who)
    assert entry.status == "settled"
    assert entry.output_tokens == 20


def test_usage_is_told_to_who_asks_for_it(there: There) -> None:
    def stream(**more: Any) -> list[dict[str, Any]]:
        request = {**HELLO, "stream": True, **more}
        with there.http.stream("POST", "/chat/completions", json=request, headers=there.whose()) as response:
            return events(response)

    assert all(chunk["choices"] for chunk in stream())
    assert stream(stream_options={"include_usage": True})[-1]["usage"]["completion_tokens"] == 20


@pytest.mark.parametrize(
    ("path", "request_", "operation"),
    [
        ("/embeddings", {"model": "text-embedding-3-small", "input": ["one", "two"]}, "embeddings"),
        ("/responses", {"model": "gpt-4o", "input": "hello", "max_output_tokens": 20}, "responses"),
        ("/responses", {"model": "gpt-4o", "input": "hello", "stream": True}, "responses"),
        ("/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": "hello"}, "completions"),
        ("/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": "a", "stream": True}, "completions"),
    ],
)
def test_other_operations(there: There, path: str, request_: dict[str, Any], operation: str) -> None:
    who = there.whose()
    answered = there.http.post(path, json=request_, headers=who)
    assert answered.status_code == 200, answered.text
    (entry,) = there.entries(who)
    assert (entry.operation, entry.status) == (operation, "settled")
    assert entry.cost


def test_a_stored_response_is_continued_by_its_own_tenant_alone(there: There) -> None:
    who = there.whose()
    first = there.http.post("/responses", json={"model": "gpt-4o", "input": "hello"}, headers=who).json()[
        "id"
    ]
    following = {
        "model": "gpt-4o",
        "input": "and then?",
        "previous_response_id": first,
        "max_output_tokens": 16,
    }
    assert there.http.post("/responses", json=following, headers=who).status_code == 200
    for stranger in (there.gateway.key(tenant="globex"), there.gateway.key(project="sales")):
        answered = there.gateway.http(stranger).post("/responses", json=following, headers=who)
        assert answered.status_code == 404
        assert error(answered)["param"] == "previous_response_id"
    token = mint(there, user_id="somebody else")["token"]
    assert there.gateway.http(token).post("/responses", json=following).status_code == 404


def test_a_response_is_continued_at_its_length_by_a_gateway_that_did_not_see_it(tmp_path: Path) -> None:
    """Without that it would be bounded by the model's whole context, which this budget refuses."""
    request = {"model": "gpt-4o", "input": "hello", "max_output_tokens": 20}
    with Sandbox() as sandbox:
        with Gateway(tmp_path, sandbox, budgets=["$0.05 per session"]) as gateway:
            key = gateway.key()
            first = gateway.http(key).post("/responses", json=request).json()["id"]
        with Gateway(tmp_path, sandbox, budgets=["$0.05 per session"]) as gateway:
            following = {**request, "previous_response_id": first}
            answered = gateway.http(key).post("/responses", json=following)
            assert answered.status_code == 200, answered.text


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "conversation"),
    ],
)
def test_what_is_stored_under_the_gateways_key_is_not_reached(
    there: There, more: dict[str, Any], param: str
) -> None:
    before = there.sandbox.requests
    answered = there.http.post("/responses", json={"model": "gpt-4o", "input": "hello", **more})
    assert answered.status_code == 400
    assert error(answered)["param"] == param
    assert there.sandbox.requests == before


# ── who ────────────────────────────────────────────────────────────────────────────────


def mint(there: There, **said: Any) -> dict[str, Any]:
    answered = there.http.post("/auth/mint", json=said)
    assert answered.status_code == 200, answered.text
    found: dict[str, Any] = answered.json()
    return found


def test_a_token_is_for_its_user_and_session(there: There) -> None:
    who = there.whose()
    minted = mint(there, user_id=who["X-End-User-Id"], session_id=who["X-Session-Id"], ttl=600)
    assert (minted["session_id"], minted["ttl"]) == (who["X-Session-Id"], 600)
    http = there.gateway.http(minted["token"])
    assert http.post("/chat/completions", json=HELLO).status_code == 200
    assert http.post("/chat/completions", json=HELLO, headers=who).status_code == 200
    assert {e.user_id for e in there.entries(who)} == {who["X-End-User-Id"]}
    for header in who:
        answered = http.post("/chat/completions", json=HELLO, headers={header: "another"})
        assert answered.status_code == 403
        assert error(answered)["code"] == "forbidden"
        assert error(answered)["param"] == header


def test_a_token_without_a_session_is_given_one(there: There) -> None:
    one, two = mint(there, user_id="u"), mint(there, user_id="u")
    assert one["session_id"] != two["session_id"]


def test_a_token_mints_no_tokens_and_tells_nothing_of_others(there: There) -> None:
    http = there.gateway.http(mint(there, user_id="u-mine")["token"])
    assert http.post("/auth/mint", json={"user_id": "u-other"}).status_code == 403
    assert http.get("/usage", params={"user_id": "u-other"}).status_code == 403
    assert http.get("/usage").json()["user_id"] == "u-mine"


@pytest.mark.parametrize(
    "said",
    [
        {}, {"user_id": ""}, {"user_id": 7}, {"user_id": "u", "ttl": 0}, {"user_id": "u", "ttl": 10**6},
        {"user_id": "u\n", "ttl": 5}, {"user_id": "u", "tier": "platinum"}, {"user_id": "u", "more": 1},
    ],
)  # fmt: skip
def test_a_token_is_not_minted_for_what_cannot_be_one(there: There, said: dict[str, Any]) -> None:
    answered = there.http.post("/auth/mint", json=said)
    assert answered.status_code == 400
    assert error(answered)["code"] == "validation_error"


def test_a_key_without_end_users_speaks_for_none(there: There) -> None:
    http = there.gateway.http(there.gateway.key(end_users=False))
    assert http.post("/chat/completions", json=HELLO, headers={"X-Session-Id": "own"}).status_code == 200
    answered = http.post("/chat/completions", json=HELLO, headers={"X-End-User-Id": "u-7"})
    assert answered.status_code == 403
    assert error(answered)["param"] == "X-End-User-Id"
    assert http.post("/auth/mint", json={"user_id": "u-7"}).status_code == 403


def test_a_revoked_key_ends_and_its_tokens_with_it(there: There) -> None:
    from behest_integrations.gateway.keys import KeyStore, id_in

    key = there.gateway.key()
    token = there.gateway.http(key).post("/auth/mint", json={"user_id": "u"}).json()["token"]
    for text in (key, token):
        assert there.gateway.http(text).get("/models").status_code == 200
    with there.gateway.meter() as meter:
        KeyStore(meter.ledger).revoke(str(id_in(key)))
    deadline = time.monotonic() + 8
    left = {key, token}
    while left and time.monotonic() < deadline:
        left = {text for text in left if there.gateway.http(text).get("/models").status_code == 200}
        time.sleep(0.2)
    assert not left
    assert error(there.gateway.http(token).get("/models"))["code"] == "invalid_token"


def test_a_key_of_a_tier_mints_that_tier(there: There) -> None:
    http = there.gateway.http(there.gateway.key(tier="free"))
    assert http.post("/auth/mint", json={"user_id": "u"}).status_code == 200
    assert http.post("/auth/mint", json={"user_id": "u", "tier": "max"}).status_code == 403


def test_two_tenants_with_the_same_ids_are_two(tmp_path: Path) -> None:
    with Sandbox() as sandbox, Gateway(tmp_path, sandbox, budgets=["2 calls per session"]) as gateway:
        for tenant in ("acme", "globex"):
            http = gateway.http(gateway.key(tenant=tenant), **{"X-Session-Id": "conv-1"})
            assert [http.post("/chat/completions", json=HELLO).status_code for _ in range(3)] == [
                200,
                200,
                402,
            ]
        totals = [
            gateway.http(gateway.key(tenant=tenant)).get("/usage").json()["total"]["requests"]
            for tenant in ("acme", "globex", "initech")
        ]
        assert totals == [2, 2, 0]


def test_without_keys_this_machine_alone_is_let_in(tmp_path: Path) -> None:
    with Sandbox() as sandbox, Gateway(tmp_path, sandbox, keyless=True) as gateway:
        assert gateway.http().post("/chat/completions", json=HELLO).status_code == 200
        assert gateway.http("anything").post("/chat/completions", json=HELLO).status_code == 200
        # A page on the web whose name was made to point here.
        assert gateway.http().get("/models", headers={"Host": "evil.example"}).status_code == 403
        # What a browser sends to a foreign host without asking first is no JSON.
        plain = {"Content-Type": "text/plain"}
        answered = gateway.http().post("/chat/completions", content=json.dumps(HELLO), headers=plain)
        assert answered.status_code == 415


# ── refusals ───────────────────────────────────────────────────────────────────────────


def test_an_exhausted_budget_is_402_and_reaches_no_provider(tmp_path: Path) -> None:
    with Sandbox() as sandbox, Gateway(tmp_path, sandbox, budgets=["$0.0005/day per user"]) as gateway:
        http = gateway.http(gateway.key(), **{"X-End-User-Id": "u-7"})
        answers = [http.post("/chat/completions", json=HELLO) for _ in range(6)]
        refused = [a for a in answers if a.status_code != 200]
        assert refused
        assert len(answers) - len(refused) == sandbox.requests
        said = error(refused[-1])
        assert refused[-1].status_code == 402
        assert (said["code"], said["type"]) == ("quota_exceeded", "quota_error")
        assert said["details"]["limit"] == 0.0005
        assert said["details"]["usage"] == float(sandbox.bill.total())
        assert said["details"]["scope"] == "user u-7 (tenant acme)"
        assert said["details"]["resets_at"]
        assert "u-7" in said["message"]
        assert refused[-1].headers["x-should-retry"] == "false"
        assert refused[-1].headers["x-budget"] == "$0.0005/day per user"
        assert int(refused[-1].headers["x-budget-reset"]) > time.time()


def test_a_busy_budget_is_429_until_the_call_ends(tmp_path: Path) -> None:
    with (
        Sandbox(latency=1.0) as sandbox,
        Gateway(
            tmp_path, sandbox, budgets=["1 calls per session", "5 calls/day per user"], top="wait = 0"
        ) as gateway,
    ):
        http = gateway.http(gateway.key(), **{"X-End-User-Id": "u"})
        sandbox.fault("status", status=400)  # it will be given back
        first = threading.Thread(target=lambda: http.post("/chat/completions", json=HELLO))
        first.start()
        while not sandbox.requests:
            time.sleep(0.01)
        busy = http.post("/chat/completions", json=HELLO)
        first.join()
        assert busy.status_code == 429
        assert error(busy)["code"] == "rate_limited"
        assert error(busy)["details"]["reason"] == "busy"
        assert busy.headers["retry-after"] == "1"
        assert busy.headers["x-should-retry"] == "true"
        assert http.post("/chat/completions", json=HELLO).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_busy_budget_is_waited_for_as_long_as_the_client_waits(tmp_path: Path, stream: bool) -> None:
    with (
        Sandbox(latency=1.5) as sandbox,
        Gateway(tmp_path, sandbox, budgets=["1 calls per session", "5 calls/day per user"]) as gateway,
    ):
        http = gateway.http(gateway.key(), **{"X-End-User-Id": "u"})
        sandbox.fault("status", status=400)  # it will be given back
        first = threading.Thread(target=lambda: http.post("/chat/completions", json=HELLO))
        first.start()
        while not sandbox.requests:
            time.sleep(0.01)
        body = {**HELLO, "stream": stream}
        with pytest.raises(httpx.ReadTimeout):  # who hangs up leaves nothing behind
            gateway.http(gateway.key(), **{"X-End-User-Id": "u"}).post(
                "/chat/completions", json=body, timeout=0.4
            )
        assert http.post("/chat/completions", json=body).status_code == 200
        first.join()
        assert sandbox.requests == 2
        with gateway.meter() as meter:
            assert [e.status for e in entries(meter)] == ["failed", "settled"]
            assert_sound(meter)


@pytest.mark.parametrize(
    ("budget", "retry", "least", "most"),
    [
        ("1 calls/minute", "true", 1, 60),
        # When the call has left the window, with the slot of a minute that it was booked in.
        ("1 calls per 1h rolling", "false", 3600, 3661),
    ],
)
def test_a_rate_is_429_with_the_time_to_wait(
    tmp_path: Path, budget: str, retry: str, least: int, most: int
) -> None:
    with Sandbox() as sandbox, Gateway(tmp_path, sandbox, budgets=[budget]) as gateway:
        http = gateway.http(gateway.key())
        while time.time() % 60 > 50:
            time.sleep(1)
        assert http.post("/chat/completions", json=HELLO).status_code == 200
        refused = http.post("/chat/completions", json=HELLO)
        assert refused.status_code == 429
        assert error(refused)["code"] == "rate_limited"
        assert least <= int(refused.headers["retry-after"]) <= most
        assert refused.headers["x-should-retry"] == retry
        assert sandbox.requests == 1


@pytest.mark.parametrize(
    ("request_", "code", "param"),
    [
        ({}, "validation_error", "model"),
        ({"model": "gpt-4o"}, "validation_error", "messages"),
        ({"model": "gpt-4o", "messages": []}, "validation_error", "messages"),
        ({"model": "gpt-4o", "messages": "hello"}, "validation_error", "messages"),
        ({"model": 7, "messages": HELLO["messages"]}, "validation_error", "model"),
        (chat(stream="yes"), "validation_error", "stream"),
        (chat(messages=[{"role": "user", "content": 7}]), "validation_error", "messages.0.content"),
        (chat(max_tokens=0), "validation_error", "max_tokens"),
        (chat(max_tokens=True), "validation_error", "max_tokens"),
        (chat(n=-1), "validation_error", "n"),
        (chat(model="no-such-model-anywhere"), "unknown_price", "model"),
        (chat(web_search_options={}), "unbounded", None),
    ],
)
def test_what_cannot_be_used_is_said_at_once(
    there: There, request_: dict[str, Any], code: str, param: str | None
) -> None:
    before = there.sandbox.requests
    answered = there.http.post("/chat/completions", json=request_)
    assert answered.status_code == 400
    assert error(answered)["code"] == code
    assert error(answered)["param"] == param
    assert there.sandbox.requests == before


def test_what_is_not_there_is_said_in_the_same_shape(there: There) -> None:
    http = httpx.Client(base_url=there.gateway.url)
    assert error(http.get("/v2/chat"))["code"] == "not_found"
    assert error(http.get("/v1/chat/completions"))["code"] == "method_not_allowed"
    assert http.get("/v1/chat/completions").status_code == 405


def test_a_ledger_that_is_gone_refuses_every_call(tmp_path: Path) -> None:
    with Sandbox() as sandbox, Gateway(tmp_path, sandbox, budgets=["$1"]) as gateway:
        http = gateway.http(gateway.key())
        assert http.post("/chat/completions", json=HELLO).status_code == 200
        for file in tmp_path.glob("ledger.db*"):
            file.rename(file.with_suffix(".away"))
        refused = http.post("/chat/completions", json=HELLO)
        assert refused.status_code == 503
        assert error(refused)["code"] == "store_unavailable"
        deadline = time.monotonic() + 10  # that it was ready is believed for a second
        while httpx.get(f"{gateway.url}/readyz").status_code != 503:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert httpx.get(f"{gateway.url}/healthz").status_code == 200
        assert sandbox.requests == 1


# ── providers ──────────────────────────────────────────────────────────────────────────


def two(tmp_path: Path, first: Recorder, second: Recorder, **options: Any) -> Gateway:
    """A gateway with two providers; what goes to the first may fall back to the second."""
    routes = f"""
[gateway.providers.first]
base_url = "{first.base_url}"
api_key_env = "FIRST_KEY"
retries = 1
headers = {{ X-Org = "o-1" }}
query = {{ api-version = "v9" }}

[gateway.providers.second]
base_url = "{second.base_url}"
auth_header = "api-key"
api_key_env = "SECOND_KEY"
retries = 0
send_attribution = true

[[gateway.routes]]
models = ["gpt-4o*"]
provider = "first"
fallback = [{{ provider = "second", model = "gpt-4o-mini" }}]

[[gateway.routes]]
models = ["fast"]
provider = "second"
model = "gpt-4o-mini"
"""
    keys = {"FIRST_KEY": "key-1", "SECOND_KEY": "key-2"}
    known = 'allow_fields = ["x_unknown"]'
    return Gateway(tmp_path, None, top=known, more=routes, budgets=["$10"], env=keys, **options)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Recorder, Recorder, Gateway]]:
    with Recorder() as first, Recorder() as second, two(tmp_path, first, second) as gateway:
        yield first, second, gateway


Pair = tuple[Recorder, Recorder, Gateway]


def test_a_provider_that_refuses_stream_options_is_asked_without_them(pair: Pair) -> None:
    first, _second, gateway = pair

    def answer(received: Received) -> Answer:
        if "stream_options" in received.json:
            return Answer(422, b'{"detail": "stream_options: extra fields not permitted"}')
        said = [{"index": 0, "delta": {"content": "yes"}, "finish_reason": "stop"}]
        event = {"id": "c", "object": "chat.completion.chunk", "model": "gpt-4o", "choices": said}
        return Answer(
            body=b"data: %s\n\ndata: [DONE]\n\n" % json.dumps(event).encode(),
            headers=(("Content-Type", "text/event-stream"),),
        )

    first.answer = answer
    http = gateway.http(gateway.key())
    for _ in range(2):
        answered = http.post("/chat/completions", json=chat(max_tokens=20, stream=True))
        assert answered.status_code == 200
        assert '"yes"' in answered.text
    assert ["stream_options" in r.json for r in first.received] == [True, False, False]
    with gateway.meter() as meter:
        assert [(e.status, e.output_tokens) for e in entries(meter)] == [("estimated", 1)] * 2


def test_a_request_goes_on_as_it_came(pair: Pair) -> None:
    first, second, gateway = pair
    who = {"X-End-User-Id": "Zoë", "X-Session-Id": "conv-42"}
    raw = {k.encode(): v.encode() for k, v in who.items()}
    asked = chat(max_tokens=20, seed=7, x_unknown={"a": [1, None, 1.5, "ü"]}, metadata={"k": "v"})
    http = gateway.http(gateway.key())
    http.post("/chat/completions", json=asked, headers=raw)
    (received,) = first.received
    assert received.json == asked
    assert received.path == "/v1/chat/completions?api-version=v9"
    assert received.headers["authorization"] == "Bearer key-1"
    assert received.headers["x-org"] == "o-1"
    assert not {"x-end-user-id", "x-session-id"} & set(received.headers)

    http.post("/chat/completions", json={**asked, "model": "fast"}, headers=raw)
    (received,) = second.received
    assert received.json == {**asked, "model": "gpt-4o-mini"}
    assert received.headers["api-key"] == "key-2"
    assert "authorization" not in received.headers
    assert received.headers["x-session-id"] == "conv-42"
    assert received.headers["x-end-user-id"].encode("latin-1").decode() == "Zoë"


def test_each_attempt_is_a_call_of_its_own(pair: Pair) -> None:
    first, second, gateway = pair
    answers = iter([failing(500), completion])
    first.answer = lambda received: next(answers)(received)
    answered = gateway.http(gateway.key()).post("/chat/completions", json=HELLO)
    assert answered.status_code == 200
    assert (len(first.received), len(second.received)) == (2, 0)
    with gateway.meter() as meter:
        assert [e.status for e in entries(meter)] == ["assumed", "settled"]
        assert_sound(meter)


@pytest.mark.parametrize(
    ("answer", "attempts"),
    [
        (failing(503), 2),
        (failing(429), 2),
        (failing(429, **{"Retry-After": "30"}), 1),
        (failing(401), 1),
        (failing(302, Location="http://127.0.0.1:1/"), 1),
    ],
)
def test_another_provider_stands_in(pair: Pair, answer: Any, attempts: int) -> None:
    first, second, gateway = pair
    first.answer = answer
    answered = gateway.http(gateway.key()).post("/chat/completions", json=HELLO)
    assert answered.status_code == 200
    assert answered.json()["model"] == "gpt-4o-mini"
    assert (len(first.received), len(second.received)) == (attempts, 1)


def test_a_provider_that_is_not_there(tmp_path: Path) -> None:
    with Recorder() as gone:
        pass
    with Recorder() as second, two(tmp_path, gone, second) as gateway:
        http = gateway.http(gateway.key())
        assert http.post("/chat/completions", json=HELLO).status_code == 200
        with gateway.meter() as meter:
            assert [e.status for e in entries(meter)] == ["settled"], "what was never sent is not booked"
        second.answer = failing(500)
        answered = http.post("/chat/completions", json=HELLO)
        assert answered.status_code == 502
        assert error(answered)["details"] == {"provider": "second", "status": 500}


def test_a_request_that_the_provider_refuses(pair: Pair) -> None:
    first, second, gateway = pair
    first.answer = failing(400, "temperature is too high")
    answered = gateway.http(gateway.key()).post("/chat/completions", json=HELLO)
    assert answered.status_code == 400
    assert error(answered)["message"] == "temperature is too high"
    assert error(answered)["code"] == "some_code"
    assert error(answered)["param"] == "p"
    assert (len(first.received), len(second.received)) == (1, 0)
    with gateway.meter() as meter:
        assert [e.status for e in entries(meter)] == ["failed"]


@pytest.mark.parametrize("status", [401, 402, 403])
def test_the_gateways_own_troubles_are_not_the_callers(pair: Pair, status: int) -> None:
    first, second, gateway = pair
    first.answer = second.answer = failing(status, "your key sk-123 is wrong")
    answered = gateway.http(gateway.key()).post("/chat/completions", json=HELLO)
    assert answered.status_code == 502
    assert error(answered)["code"] == "server_error"
    assert "sk-123" not in answered.text


def test_no_route_for_a_model(pair: Pair) -> None:
    _first, _second, gateway = pair
    http = gateway.http(gateway.key())
    answered = http.post("/chat/completions", json=chat(model="claude-sonnet-4-5"))
    assert answered.status_code == 404
    assert error(answered)["code"] == "model_not_found"
    assert [m["id"] for m in http.get("/models").json()["data"]] == ["fast"]


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (Answer(body=b"", headers=()), "assumed"),
        (Answer(body=b"not json"), "assumed"),
        (Answer(body=b'{"usage": {"prompt_tokens": 1}}', headers=()), "settled"),
    ],
)
def test_answers_that_are_none_are_booked_at_their_worst(pair: Pair, answer: Answer, status: str) -> None:
    first, _second, gateway = pair
    first.answer = lambda received: answer
    assert gateway.http(gateway.key()).post("/chat/completions", json=HELLO).status_code == 200
    with gateway.meter() as meter:
        assert [e.status for e in entries(meter)] == [status]
        assert_sound(meter)


def test_an_answer_that_breaks_off(pair: Pair) -> None:
    first, second, gateway = pair
    first.answer = lambda received: Answer(body=b'{"id": "' + b"x" * 100, close_after=20)
    answered = gateway.http(gateway.key()).post("/chat/completions", json=HELLO)
    assert answered.status_code == 502
    assert (len(first.received), len(second.received)) == (1, 0), "it is billed: it is not repeated"
    with gateway.meter() as meter:
        assert [e.status for e in entries(meter)] == ["assumed"]
        assert_sound(meter)


# ── ends ───────────────────────────────────────────────────────────────────────────────


def ended(there: There, who: dict[str, str]) -> list[Entry]:
    deadline = time.monotonic() + 5
    while not (found := there.entries(who)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def test_a_client_that_hangs_up_ends_the_providers_stream(there: There) -> None:
    who = there.whose()
    there.sandbox.chunk_delay, there.sandbox.abandoned = 0.05, "sent"
    try:
        request = {**chat(max_tokens=4000), "stream": True}
        there.sandbox.output_tokens = 4000
        with there.http.stream("POST", "/chat/completions", json=request, headers=who) as response:
            next(response.iter_lines())
        (entry,) = ended(there, who)
        assert (entry.status, entry.flags) == ("assumed", "closed_early")
        deadline = time.monotonic() + 5
        while (
            not (left := [b for b in there.sandbox.bill.lines if b.abandoned]) and time.monotonic() < deadline
        ):
            time.sleep(0.05)
        assert left[0].output_tokens < 400
    finally:
        there.sandbox.chunk_delay, there.sandbox.abandoned, there.sandbox.output_tokens = 0.0, "all", 64


def test_a_client_that_leaves_when_all_is_said_is_billed_what_was_said(there: There) -> None:
    """Between the last word and the usage: the gateway reads on, as it is nearly there."""
    who = there.whose()
    there.sandbox.chunk_delay = 0.2
    try:
        request = {**HELLO, "stream": True}
        with there.http.stream("POST", "/chat/completions", json=request, headers=who) as response:
            next(line for line in response.iter_lines() if '"finish_reason":"length"' in line)
        (entry,) = ended(there, who)
        assert (entry.status, entry.output_tokens) == ("settled", 20)
    finally:
        there.sandbox.chunk_delay = 0.0


def test_a_client_that_hangs_up_before_the_first_event(there: There) -> None:
    who = there.whose()
    there.sandbox.latency = 3.0
    try:
        with pytest.raises(httpx.ReadTimeout):
            there.http.post("/chat/completions", json={**HELLO, "stream": True}, headers=who, timeout=0.3)
        (entry,) = ended(there, who)
        assert (entry.status, entry.flags) == ("assumed", "cancelled")
    finally:
        there.sandbox.latency = 0.0


def test_an_answer_in_one_piece_is_booked_as_it_was_though_nobody_waits_for_it(there: There) -> None:
    who = there.whose()
    there.sandbox.latency = 0.6
    try:
        with pytest.raises(httpx.ReadTimeout):
            there.http.post("/chat/completions", json=HELLO, headers=who, timeout=0.2)
        (entry,) = ended(there, who)
        assert (entry.status, entry.output_tokens) == ("settled", 20)
    finally:
        there.sandbox.latency = 0.0


def test_a_stream_that_breaks_says_so(there: There) -> None:
    who = there.whose()
    there.sandbox.fault("cut")
    with there.http.stream(
        "POST", "/chat/completions", json={**HELLO, "stream": True}, headers=who
    ) as response:
        data = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    assert json.loads(data[-1])["error"]["code"] == "server_error"
    (entry,) = ended(there, who)
    assert (entry.status, entry.flags) == ("assumed", "broken")


def slow(tmp_path: Path, sandbox: Sandbox, seconds: int) -> Gateway:
    limits = f"[gateway.limits]\nshutdown_timeout = {seconds}\n"
    return Gateway(tmp_path, sandbox, budgets=["$10"], more=limits)


def test_a_shutdown_lets_streams_finish(tmp_path: Path) -> None:
    with Sandbox(chunk_delay=0.1) as sandbox, slow(tmp_path, sandbox, 20) as gateway:
        http = gateway.http(gateway.key())
        with http.stream("POST", "/chat/completions", json={**HELLO, "stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            assert gateway.process is not None
            gateway.process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        gateway.stop()
        with gateway.meter() as meter:
            assert [e.status for e in entries(meter)] == ["settled"]
            assert_sound(meter)
            assert_agrees(meter, sandbox)


def test_a_shutdown_cuts_off_what_takes_too_long_and_settles_it(tmp_path: Path) -> None:
    with Sandbox(chunk_delay=0.5, output_tokens=4000) as sandbox, slow(tmp_path, sandbox, 1) as gateway:
        http = gateway.http(gateway.key())
        with http.stream("POST", "/chat/completions", json=chat(stream=True, max_tokens=4000)) as response:
            next(response.iter_lines())
            said = gateway.stop()
        assert "Traceback" not in said
        with gateway.meter() as meter:
            assert [e.status for e in entries(meter)] == ["assumed"]
            assert_sound(meter)


# ── what it tells ──────────────────────────────────────────────────────────────────────


def test_usage_and_billing_are_the_providers_bill(tmp_path: Path) -> None:
    with Sandbox() as sandbox, Gateway(tmp_path, sandbox, budgets=["$10"]) as gateway:
        http = gateway.http(gateway.key())
        for number in range(6):
            model = ("gpt-4o", "gpt-4o-mini")[number % 2]
            who = {"X-End-User-Id": f"u-{number % 3}"}
            assert http.post("/chat/completions", json=chat(model=model), headers=who).status_code == 200
        usage, billing = http.get("/usage").json(), http.get("/billing/usage").json()
        total = float(sandbox.bill.total())
        assert usage["total"]["cost_usd"] == billing["platform"]["cost_usd"] == total
        assert usage["total"]["requests"] == billing["platform"]["requests"] == 6
        tokens = billing["platform"]["input_tokens"] + billing["platform"]["output_tokens"]
        assert tokens == sandbox.bill.tokens()
        assert [m["model"] for m in billing["platform"]["by_model"]] == ["gpt-4o", "gpt-4o-mini"]
        assert sum(m["cost_usd"] for m in billing["platform"]["by_model"]) == pytest.approx(total)
        assert (billing["project_id"], billing["byok"]["requests"]) == ("support", 0)
        assert http.get("/usage", params={"user_id": "u-1"}).json()["total"]["requests"] == 2
        for granularity, form in (
            ("hour", r"\d{4}-\d\d-\d\dT\d\d:00\+0000"), ("day", r"\d{4}-\d\d-\d\d"), ("month", r"\d{4}-\d\d"),
        ):  # fmt: skip
            periods = http.get("/usage", params={"granularity": granularity}).json()["data"]
            assert sum(p["requests"] for p in periods) == 6
            assert all(re.fullmatch(form, p["period"]) for p in periods)
        past = {"from": "2020-01-01", "to": "2020-02-01T00:00:00Z"}
        assert http.get("/usage", params=past).json()["total"]["requests"] == 0


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"from": "yesterday"}, "from"),
        ({"to": "2026-13-01"}, "to"),
        ({"to": "0001-01-01"}, "to"),
        ({"from": "9999-12-31T23:59:59-23:59"}, "from"),
        ({"from": "2026-02-01", "to": "2026-01-01"}, "from"),
        ({"from": "2020-01-01"}, "from"),
        ({"granularity": "week"}, "granularity"),
        ({"user": "u-1"}, "user"),
    ],
)
def test_a_time_that_is_none(there: There, params: dict[str, str], param: str) -> None:
    answered = there.http.get("/usage", params=params)
    assert answered.status_code == 400
    assert error(answered)["param"] == param


def test_models_are_those_of_the_providers(there: There) -> None:
    listed = there.http.get("/models").json()
    assert listed["object"] == "list"
    assert "gpt-4o" in [m["id"] for m in listed["data"]]


def test_metrics_count_and_name_nobody(there: There) -> None:
    who = there.whose()
    there.http.post("/chat/completions", json=HELLO, headers=who)
    there.http.post("/chat/completions", json={}, headers=who)
    said = httpx.get(f"{there.gateway.url}/metrics").text
    assert re.search(r'behest_gateway_attempts_total\{outcome="200",provider="sandbox"\} \d', said)
    assert re.search(r'behest_gateway_refusals_total\{code="validation_error"\} \d', said)
    assert who["X-End-User-Id"] not in said
    assert there.key not in said


def test_the_metrics_of_all_workers_are_told_by_any(tmp_path: Path) -> None:
    with Sandbox() as sandbox, Gateway(tmp_path, sandbox, workers=2) as gateway:
        key = gateway.key()
        for _ in range(20):  # a connection each: the workers take turns
            assert gateway.http(key).post("/chat/completions", json=HELLO).status_code == 200
        said = httpx.get(f"{gateway.url}/metrics").text
        assert 'behest_gateway_attempts_total{outcome="200",provider="sandbox"} 20.0' in said


def test_with_nothing_configured_the_sandbox_answers_and_says_so(tmp_path: Path) -> None:
    with Gateway(tmp_path, None) as gateway:
        assert gateway.http(gateway.key()).post("/chat/completions", json=HELLO).status_code == 200
        said = gateway.stop()
    assert "none is configured, so the sandbox answers" in said


def test_the_page_of_the_api_needs_no_other_host(there: There) -> None:
    http = httpx.Client(base_url=there.gateway.url)
    page = http.get("/docs")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    wanted = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(wanted) == 4
    for url in wanted:
        if url != "data:,":
            assert url.startswith("/")
            assert http.get(url).status_code == 200


def test_browsers_of_other_origins_are_let_in_where_they_are_named(tmp_path: Path) -> None:
    origin = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    more = 'cors_origins = ["https://app.example"]'
    with Sandbox() as sandbox, Gateway(tmp_path, sandbox, more=f"[gateway]\n{more}\n") as gateway:
        http = httpx.Client(base_url=gateway.url)
        allowed = http.options("/v1/chat/completions", headers=origin)
        assert allowed.headers["access-control-allow-origin"] == "https://app.example"
        other = http.options("/v1/chat/completions", headers={**origin, "Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
