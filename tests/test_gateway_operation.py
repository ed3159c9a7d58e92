"""The gateway in operation: a full disk, a port that is taken, an end without the ledger, odd providers."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from gateway_support import Gateway, chat
from openai import APIError, OpenAI
from recording import Answer, Recorder, completion
from support import HELLO, assert_sound, entries

from behest_integrations.sandbox import Sandbox

ASK = chat(max_tokens=20)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    with Sandbox() as sandbox, Gateway(tmp_path, sandbox, budgets=["$10"]) as gateway:
        yield gateway


def serve(folder: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "behest_integrations.cli", "serve", *args]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **env}, capture_output=True, text=True, timeout=60
    )


def test_it_is_not_ready_while_the_disk_is_full(gateway: Gateway) -> None:
    """No file of the process may grow: what a full disk is to SQLite."""
    assert gateway.process is not None
    process, everything = psutil.Process(gateway.process.pid), (resource.RLIM_INFINITY,) * 2
    http = gateway.http(gateway.key())

    def ready(wanted: int) -> httpx.Response:
        deadline = time.monotonic() + 20
        while True:  # what was found a moment ago is told for a second
            answered = httpx.get(f"{gateway.url}/readyz")
            if answered.status_code == wanted or time.monotonic() > deadline:
                return answered
            time.sleep(0.05)

    process.rlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    answered = ready(503)
    assert answered.status_code == 503
    assert answered.json()["error"]["code"] == "store_unavailable"
    assert http.post("/chat/completions", json=ASK).status_code == 503
    assert httpx.get(f"{gateway.url}/healthz").status_code == 200
    process.rlimit(resource.RLIMIT_FSIZE, everything)
    assert ready(200).status_code == 200
    assert http.post("/chat/completions", json=ASK).status_code == 200


def test_an_end_without_the_ledger_is_said_without_a_traceback(gateway: Gateway) -> None:
    http = gateway.http(gateway.key())
    assert http.post("/chat/completions", json=ASK).status_code == 200
    for path in gateway.folder.glob("ledger.db*"):
        path.unlink()
    assert http.post("/chat/completions", json=ASK).status_code == 503
    said = gateway.stop()
    assert "Traceback" not in said
    assert "ledger" in said


def test_a_port_that_is_taken_is_said_before_anything_else(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = serve(tmp_path, "--port", str(port))
    assert done.returncode == 1
    assert "cannot listen on 127.0.0.1" in done.stderr
    assert str(port) in done.stderr
    assert "answers at" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_secret_that_is_too_short_is_said_before_anything_else(tmp_path: Path) -> None:
    done = serve(tmp_path, BEHEST_TOKEN_SECRET="short")
    assert done.returncode == 1
    assert "HS256 needs 32 or more" in done.stderr
    assert "answers at" not in done.stderr


# ── providers that answer oddly ────────────────────────────────────────────────────────

EVENTS = (("Content-Type", "text/event-stream"),)
OVERLOADED = {"error": {"message": "the model is overloaded", "code": "overloaded", "type": "server_error"}}
Pair = tuple[Recorder, Recorder, Gateway]


def said(*events: dict[str, Any] | str) -> Answer:
    texts = (event if isinstance(event, str) else json.dumps(event) for event in events)
    return Answer(body="".join(f"data: {text}\n\n" for text in texts).encode(), headers=EVENTS)


def chunk(text: str, finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "model": "gpt-4o", "choices": [choice]}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with Recorder() as first, Recorder() as second:
        providers = (
            f'[gateway.providers.first]\nbase_url = "{first.base_url}"\nretries = 2\n'
            f'[gateway.providers.second]\nbase_url = "{second.base_url}"\nretries = 0\n'
            f'[gateway.providers.plain]\nbase_url = "{second.base_url}"\nstream_usage = false\n'
            '[[gateway.routes]]\nmodels = ["gpt-4o"]\nprovider = "first"\n'
            'fallback = [{ provider = "second", model = "gpt-4o-mini" }]\n'
            '[[gateway.routes]]\nmodels = ["gpt-4"]\nprovider = "first"\n'
            '[[gateway.routes]]\nmodels = ["gpt-4.1"]\nprovider = "plain"\n'
        )
        folder = tmp_path_factory.mktemp("odd")
        with Gateway(folder, None, budgets=["$10"], more=providers) as gateway:
            yield first, second, gateway


@pytest.fixture
def asking(pair: Pair) -> Iterator[tuple[Recorder, Recorder, httpx.Client]]:
    first, second, gateway = pair
    first.answer = second.answer = completion
    first.received.clear()
    second.received.clear()
    with gateway.http(gateway.key()) as http:
        yield first, second, http
    with gateway.meter() as meter:
        assert_sound(meter)


Asking = tuple[Recorder, Recorder, httpx.Client]


def last(pair: Pair, count: int) -> list[str]:
    with pair[2].meter() as meter:
        return [e.status for e in entries(meter)][-count:]


def test_a_packing_that_nobody_asked_for_is_not_asked_for_again(pair: Pair, asking: Asking) -> None:
    first, second, http = asking
    first.answer = lambda received: Answer(
        body=b"\x0b\x02\x80hello\x03",
        headers=(("Content-Type", "application/json"), ("Content-Encoding", "br")),
    )
    answered = http.post("/chat/completions", json=ASK)
    assert first.received[0].headers["accept-encoding"] == "identity"
    assert (len(first.received), len(second.received)) == (1, 0)
    assert answered.status_code == 502
    assert "cannot be read" in answered.json()["error"]["message"]
    assert last(pair, 1) == ["assumed"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_inside_a_success_lets_another_stand_in(pair: Pair, asking: Asking, stream: bool) -> None:
    first, second, http = asking
    first.answer = lambda received: (
        said(OVERLOADED) if stream else Answer(body=json.dumps(OVERLOADED).encode())
    )
    second.answer = lambda received: said(chunk("yes", "stop"), "[DONE]") if stream else completion(received)
    answered = http.post("/chat/completions", json={**ASK, "stream": stream})
    assert answered.status_code == 200
    assert "yes" in answered.text
    assert "overloaded" not in answered.text
    assert (len(first.received), len(second.received)) == (1, 1)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("code", "status"), [("overloaded", 502), (429, 429), (401, 502)])
def test_an_error_inside_a_success_is_an_error(
    pair: Pair, asking: Asking, stream: bool, code: str | int, status: int
) -> None:
    first, _second, http = asking
    error = {"error": {"message": "the model is overloaded", "code": code}}
    first.answer = lambda received: said(error) if stream else Answer(body=json.dumps(error).encode())
    answered = http.post("/chat/completions", json={**ASK, "model": "gpt-4", "stream": stream})
    assert answered.status_code == status
    assert len(first.received) == 1, "what has been answered is not asked for again"
    assert ("overloaded" in answered.json()["error"]["message"]) == (code != 401)
    assert last(pair, 1) == ["assumed"], "it may have been billed"


def test_a_stream_that_ends_before_its_end_says_so(pair: Pair, asking: Asking) -> None:
    first, _second, http = asking
    first.answer = lambda received: said(chunk("ye"))
    answered = http.post("/chat/completions", json={**ASK, "stream": True})
    events = [json.loads(line[6:]) for line in answered.text.splitlines() if line]
    assert events[0]["choices"][0]["delta"]["content"] == "ye"
    assert events[-1]["error"]["code"] == "server_error"
    assert "[DONE]" not in answered.text
    assert last(pair, 1) == ["assumed"]
    client = OpenAI(base_url=str(http.base_url), api_key=http.headers["authorization"][7:])
    with pytest.raises(APIError, match="ended before its answer did"):
        list(client.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True))


@pytest.mark.parametrize("events", [[chunk("yes", "stop")], [chunk("yes"), "[DONE]"]])
def test_a_stream_that_says_its_end_in_one_way_is_whole(asking: Asking, events: list[Any]) -> None:
    first, _second, http = asking
    first.answer = lambda received: said(*events)
    answered = http.post("/chat/completions", json={**ASK, "stream": True})
    assert "error" not in answered.text


def test_a_provider_that_is_not_asked_for_the_usage_of_streams(pair: Pair, asking: Asking) -> None:
    _first, second, http = asking
    second.answer = lambda received: said(chunk("yes", "stop"), "[DONE]")
    assert http.post("/chat/completions", json={**ASK, "model": "gpt-4.1", "stream": True}).status_code == 200
    assert "stream_options" not in second.received[0].json
    assert last(pair, 1) == ["estimated"]
