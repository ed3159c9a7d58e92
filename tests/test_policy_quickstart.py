"""The gateway's page about policies, as a newcomer follows it; and what `behest policy` says is on."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from gateway_support import free_port

from behest_integrations.cli import main

pytest.importorskip("presidio_analyzer")

FOLDER = Path(__file__).parent.parent / "quickstarts" / "gateway"


@pytest.mark.skipif(shutil.which("curl") is None, reason="it is written for cURL")
def test_the_page_runs_as_it_is_written(tmp_path: Path) -> None:
    """And its four questions a second time, over the same ledger."""
    for name in ("policy.toml", "policy.sh"):
        shutil.copy(FOLDER / name, tmp_path)
    page = (FOLDER / "POLICY.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\.venv/bin/behest (.*)$", page, re.MULTILINE)
    create, serve, *audits = [c.split(" > ")[0].split() for c in commands]
    behest = [sys.executable, "-m", "behest_integrations.cli"]

    def run(*args: str) -> str:
        done = subprocess.run([*behest, *args], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    (tmp_path / "policy.key").write_text(run(*create))
    port = free_port()
    serve = [*serve[:-1], str(port)]
    with subprocess.Popen([*behest, *serve], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as gateway:
        try:
            deadline = time.monotonic() + 100
            while time.monotonic() < deadline and gateway.poll() is None:
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.1)
            env = {**os.environ, "BEHEST_URL": f"http://127.0.0.1:{port}/v1"}
            told = [
                subprocess.run(
                    ["sh", "policy.sh"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
                ).stdout
                for _ in range(2)
            ]
        finally:
            gateway.send_signal(signal.SIGTERM)
            said = gateway.stderr.read() if gateway.stderr else ""
    for once in told:
        assert re.findall(r"status (\d+)", once) == ["200", "403", "451", "451"], once + said
        for code in ("policy_refused", "pii_blocked", "content_blocked"):
            assert f'"code":"{code}"' in once
    assert "Traceback" not in said
    assert "EMAIL_ADDRESS: mask, by EmailRecognizer" in said
    listed, proof = (run(*audit) for audit in audits)
    decided = ["masked", *["refused"] * 3]
    assert [line.split("  ")[1] for line in listed.splitlines()] == ["key", *decided, *decided]
    assert "all as they were written" in proof


def test_the_command_says_what_is_on(tmp_path: Path) -> None:
    said = CliRunner().invoke(main, ["policy", "--config", str(FOLDER / "policy.toml")])
    assert said.exit_code == 0, said.output
    assert "policy (for all calls): models gpt-4o*; at most 500 output tokens" in said.output
    assert "no model: names of people and places are not found" in said.output
    assert "CREDIT_CARD: block, by CreditCardRecognizer" in said.output
    assert "SECRET: redact, by AWS Access Key" in said.output
    assert "sentinel, enforce: prompt injection, a blocklist of 1" in said.output
    assert "trial keeps it short (for tag tier=trial): at most 100 output tokens" in said.output
    assert "audit: every decision, kept for 400 days" in said.output
    other = tmp_path / "behest.toml"
    other.write_text("budgets = []\n")
    said = CliRunner().invoke(main, ["policy", "--config", str(other)])
    assert said.exit_code == 1
    assert "anything may be asked" in said.output


def test_what_the_page_says_of_its_settings_is_there() -> None:
    page = (FOLDER / "POLICY.md").read_text(encoding="utf-8")
    from behest_integrations.policy import Pii, Policy, Sentinel

    for name in (
        "models",
        "deny_models",
        "providers",
        "regions",
        "places",
        "max_output_tokens",
        "priced",
        "audit",
    ):
        assert name in Policy.model_fields
        assert name in page
    assert {"mode", "patterns", "words", "unscanned", "timeout", "on_failure"} <= set(Pii.model_fields)
    assert {"blocklist", "classifier", "patterns"} <= set(Sentinel.model_fields)
