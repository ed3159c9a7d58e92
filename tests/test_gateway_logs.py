"""Logs as JSON: each line an object with names that are written down, from every worker; never a prompt."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from gateway_support import Gateway, chat

from behest_integrations.cli import main
from behest_integrations.gateway import logs
from behest_integrations.sandbox import Sandbox

PROMPT = "the secret of the prompt"
COMMON = {"time", "level", "logger", "event", "message"}
OF_A_REQUEST = {"trace", "method", "path", "status", "seconds", "bytes", "tenant", "project", "key"}


def lines_of(said: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in said.splitlines()]
    for line in found:
        assert set(line) >= COMMON
        assert set(line) <= COMMON | OF_A_REQUEST | {"error", "where"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    return found


def test_each_line_of_a_gateway_is_an_object_and_none_has_a_prompt(tmp_path: Path) -> None:
    with Sandbox() as sandbox:
        gateway = Gateway(
            tmp_path, sandbox, budgets=["$9 per user", "2 calls per session"], top="wait = 0",
            env={"BEHEST_LOG_FORMAT": "json"}, workers=2,
        )  # fmt: skip
        with gateway, gateway.http(gateway.key(), **{"X-Session-Id": "s-1", "X-End-User-Id": "u-1"}) as http:
            body = chat(messages=[{"role": "user", "content": PROMPT}])
            answers = [http.post("/chat/completions", json=body) for _ in range(3)]
            sandbox.fault("status", status=500, times=3)
            http.post("/chat/completions", json=body, headers={"X-Session-Id": "s-2"})
            http.get(f"/threads/{PROMPT}")
            http.get(f"/{PROMPT}")
            http.headers["Authorization"] = f"Bearer {PROMPT}"
            assert http.get("/usage").status_code == 401
            said = gateway.stop()
    found = lines_of(said)
    assert PROMPT not in said
    assert PROMPT.replace(" ", "%20") not in said
    assert not any("s-1" in str(line) or "u-1" in str(line) for line in found if line["event"] == "request")
    requests = {line["trace"]: line for line in found if line["event"] == "request"}
    assert [requests[a.headers["x-trace-id"]]["status"] for a in answers] == [200, 200, 402]
    first = requests[answers[0].headers["x-trace-id"]]
    assert (first["path"], first["method"], first["tenant"]) == ("/v1/chat/completions", "POST", "acme")
    assert first["bytes"] == len(answers[0].content)
    assert first["key"]
    paths = {line["path"] for line in requests.values()}
    assert {"/v1/threads/{id:path}", "(none)", "/v1/usage"} <= paths
    assert {line["event"] for line in found} == {"log", "request", "serving"}
    assert any("The gateway answers at" in line["message"] for line in found)


def test_an_exception_is_its_type_and_its_places() -> None:
    try:
        raise ValueError(PROMPT)
    except ValueError:
        record = logging.getLogger("behest").makeRecord(
            "behest", logging.ERROR, "", 0, "it failed: %s", ("here",), sys.exc_info()
        )
    (line,) = lines_of(logs.JSONLines().format(record))
    assert (line["error"], line["message"], line["level"]) == ("ValueError", "it failed: here", "error")
    assert "test_gateway_logs.py" in line["where"][0]
    assert PROMPT not in json.dumps({**line, "where": []})


def test_another_format_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(main, ["serve", "--log-format", "xml"]).exit_code == 2
    monkeypatch.setenv(logs.ENV, "xml")
    done = CliRunner().invoke(main, ["serve"])
    assert done.exit_code == 1
    assert "BEHEST_LOG_FORMAT is one of 'text', 'json'" in done.output
