"""HTTP as clients of every age speak it: offers of HTTP/2, HTTP/1.0, slashes, proxies, HEAD and OPTIONS."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_support import Gateway, chat

from behest_integrations.sandbox import Sandbox

ASK = chat(max_tokens=20)
JAVA = Path(__file__).parent / "clients" / "Client.java"
PAGE = "https://app.example.com"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    more = (
        '[gateway]\ntrusted_proxies = ["127.0.0.0/8"]\n'
        f'[gateway.projects.web]\norigins = ["{PAGE}", "http://localhost:*"]\n'
        '[gateway.projects."globex/web"]\norigins = ["https://*.globex.example"]\n'
    )
    with Sandbox() as sandbox, Gateway(tmp_path_factory.mktemp("wire"), sandbox, more=more) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def key(gateway: Gateway) -> str:
    return gateway.key()


def raw(gateway: Gateway, *parts: bytes) -> bytes:
    """What is answered to these bytes, until the server hangs up."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as connection:
        for part in parts:
            connection.sendall(part)
        found = b""
        while piece := connection.recv(65536):
            found += piece
        return found


def posted(key: str, body: dict[str, Any], *lines: str, version: str = "1.1") -> tuple[bytes, bytes]:
    """The head and the body of a call."""
    data = json.dumps(body).encode()
    head = [
        f"POST /v1/chat/completions HTTP/{version}", "Host: gateway", f"Authorization: Bearer {key}",
        "Content-Type: application/json", f"Content-Length: {len(data)}", *lines, "", "",
    ]  # fmt: skip
    return "\r\n".join(head).encode(), data


# ── offers, and old clients ────────────────────────────────────────────────────────────


@pytest.mark.parametrize("split", ["at once", "head first", "in the middle"])
def test_an_offer_of_http_2_is_passed_over_and_the_body_read(gateway: Gateway, key: str, split: str) -> None:
    offer = ("Connection: Upgrade, HTTP2-Settings, close", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAA")
    head, body = posted(key, ASK, *offer)
    parts = {
        "at once": [head + body],
        "head first": [head, body],
        "in the middle": [head[:150], head[150:] + body[:20], body[20:]],
    }[split]
    answered = raw(gateway, *parts)
    assert answered.startswith(b"HTTP/1.1 200"), answered
    assert json.loads(answered.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 20


def test_an_offer_does_not_hide_a_second_request(gateway: Gateway, key: str) -> None:
    head, body = posted(key, ASK, "Connection: Upgrade", "Upgrade: h2c")
    second, more = posted(key, ASK, "Connection: close")
    answered = raw(gateway, head + body + second + more)
    assert answered.count(b"HTTP/1.1 200") == 2
    doubtful, body = posted(key, ASK, "Connection: Upgrade", "Upgrade: h2c", "Transfer-Encoding: chunked")
    assert raw(gateway, doubtful + body).startswith(b"HTTP/1.1 400")
    assert raw(gateway, b"CONNECT gateway:80 HTTP/1.1\r\nHost: gateway\r\n\r\n").startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("stream", [False, True])
def test_http_1_0_is_answered_without_chunks(gateway: Gateway, key: str, stream: bool) -> None:
    head, body = posted(key, {**ASK, "stream": stream}, version="1.0")
    answered = raw(gateway, head + body)
    top, _, said = answered.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in top.lower()
    if stream:
        assert said.startswith(b"data: {")
        assert said.endswith(b"data: [DONE]\n\n")
    else:
        assert json.loads(said)["usage"]["completion_tokens"] == 20


@pytest.mark.parametrize("option", ["--http2", "--http1.1", "--http1.0"])
def test_curl_of_any_version(gateway: Gateway, key: str, option: str) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("there is no curl here")
    command = [
        curl, "-sS", option, "-H", f"Authorization: Bearer {key}", "-H", "Content-Type: application/json",
        "-d", json.dumps({**ASK, "stream": True}), f"{gateway.base_url}/chat/completions",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.endswith("data: [DONE]\n\n"), done.stdout


def test_javas_own_client(gateway: Gateway, key: str) -> None:
    """It offers HTTP/2 with its first request, and reads a stream by lines."""
    java = shutil.which("java")
    if java is None:
        pytest.skip("there is no JDK here")
    done = subprocess.run(
        [java, "-XX:TieredStopAtLevel=1", str(JAVA), gateway.base_url, key],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["200", "200", "[DONE]", "401"]


# ── where things are ───────────────────────────────────────────────────────────────────


def test_a_slash_at_the_end_is_no_redirection(gateway: Gateway, key: str) -> None:
    http = gateway.http(key)
    assert http.post("/chat/completions/", json=ASK).status_code == 200
    assert http.get("/models/").status_code == 200
    for path in ("/usage/", "/nothing/", "//evil.example/models/"):
        answered = http.get(path)
        assert answered.status_code in (200, 404)
        assert "location" not in answered.headers


def test_the_root_says_where_things_are(gateway: Gateway) -> None:
    found = httpx.get(gateway.url).json()
    for name in ("docs", "openapi", "health", "ready", "keys"):
        assert httpx.get(gateway.url + found[name]).status_code == 200


def test_head_and_options(gateway: Gateway, key: str) -> None:
    http = gateway.http(key)
    head, got = http.head("/models"), http.get("/models")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == got.headers["content-length"]
    assert http.options("/models").headers["allow"] == "GET, HEAD, OPTIONS"
    asked = http.options("/chat/completions")
    assert (asked.status_code, asked.headers["allow"]) == (204, "OPTIONS, POST")
    assert http.options("/nothing").status_code == 404


def test_one_model(gateway: Gateway, key: str) -> None:
    http = gateway.http(key)
    assert http.get("/models/gpt-4o").json()["id"] == "gpt-4o"
    unlisted = http.get("/models/gemini-2.0-flash")
    assert (unlisted.status_code, unlisted.json()["id"]) == (200, "gemini-2.0-flash")
    missing = http.get("/models/nobody/knows-it")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_a_proxy_is_believed_where_it_is_named(gateway: Gateway) -> None:
    near = gateway.key(addresses=["10.1.0.0/16"])
    ask = gateway.http(near).get
    assert ask("/models", headers={"X-Forwarded-For": "10.1.2.3"}).status_code == 200
    assert ask("/models", headers={"X-Forwarded-For": "10.1.2.3, 192.0.2.1"}).status_code == 403
    assert ask("/models").status_code == 403


# ── browsers ───────────────────────────────────────────────────────────────────────────


def preflight(gateway: Gateway, origin: str, **more: str) -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang,x-stainless-os",
        **more,
    }
    return httpx.options(f"{gateway.base_url}/chat/completions", headers=headers)


@pytest.mark.parametrize(
    ("origin", "let_in"),
    [
        (PAGE, True),
        ("http://localhost:5173", True),
        ("https://eu.globex.example", True),
        ("https://app.example.com.evil.example", False),
        ("http://app.example.com", False),
        ("https://globex.example", False),
        ("https://evil.example/.globex.example", False),
        ("http://localhost:1@evil.example", False),
        ("null", False),
    ],
)
def test_a_browser_asks_first(gateway: Gateway, origin: str, let_in: bool) -> None:
    answered = preflight(gateway, origin)
    told = answered.headers
    assert answered.status_code == (204 if let_in else 403)
    assert told.get("access-control-allow-origin") == (origin if let_in else None)
    if let_in:
        assert "x-stainless-os" in told["access-control-allow-headers"]
        assert "POST" in told["access-control-allow-methods"]
        assert int(told["access-control-max-age"]) > 600
        assert "Origin" in told["vary"]


def test_a_page_calls_for_its_own_project_alone(gateway: Gateway) -> None:
    ours, theirs = gateway.key(project="web"), gateway.key(tenant="globex", project="web")
    page = {"Origin": PAGE}
    answered = gateway.http(ours, **page).post("/chat/completions", json=ASK)
    assert answered.status_code == 200
    assert answered.headers["access-control-allow-origin"] == PAGE
    for name in ("X-Trace-Id", "X-Budget-Left", "Retry-After", "X-Tier"):
        assert name in answered.headers["access-control-expose-headers"]
    refused = gateway.http(theirs, **page).post("/chat/completions", json=ASK)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "origin_not_allowed")
    assert "access-control-allow-origin" not in refused.headers
    here = {"Origin": gateway.url}
    assert gateway.http(ours, **here).post("/chat/completions", json=ASK).status_code == 200, "our own /docs"


def test_a_page_reads_errors_too(gateway: Gateway) -> None:
    page = {"Origin": PAGE}
    unknown = gateway.http("nobody", **page).get("/models")
    wrong = gateway.http(gateway.key(project="web"), **page).post(
        "/chat/completions", json={"model": "gpt-4o"}
    )
    nothing = httpx.get(f"{gateway.url}/nothing", headers=page)
    for answered, status in ((unknown, 401), (wrong, 400), (nothing, 404)):
        assert answered.status_code == status
        assert answered.headers["access-control-allow-origin"] == PAGE


def test_a_project_without_origins_takes_programs_that_send_one(gateway: Gateway, key: str) -> None:
    answered = gateway.http(key, Origin="app://desktop").post("/chat/completions", json=ASK)
    assert answered.status_code == 200
    assert "access-control-allow-origin" not in answered.headers
