"""The gateway in operation: a full disk, a port that is taken, an end without the ledger, odd providers."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from gateway_support import Gateway, chat

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
    assert f"cannot listen on 127.0.0.1 port {port}" in done.stderr
    assert "answers at" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_secret_that_is_too_short_is_said_before_anything_else(tmp_path: Path) -> None:
    done = serve(tmp_path, BEHEST_TOKEN_SECRET="short")
    assert done.returncode == 1
    assert "HS256 needs 32 or more" in done.stderr
    assert "answers at" not in done.stderr
