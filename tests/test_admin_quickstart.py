"""The gateway's page about tenants' own keys and administration: each of its commands, as it is written."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from gateway_support import Gateway, chat

from behest_integrations.cli import main
from behest_integrations.gateway.keys import KeyStore
from behest_integrations.sandbox import Sandbox

PAGE = Path(__file__).parent.parent / "quickstarts" / "gateway" / "ADMIN.md"


def commands(page: str) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [c for block in blocks for c in block.replace("\\\n", " ").splitlines()]


@pytest.mark.skipif(shutil.which("curl") is None, reason="it is written for cURL")
def test_the_page_runs_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = PAGE.read_text(encoding="utf-8")
    (toml,) = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acme.key").write_text("sk-acme-of-its-own-0001\n")
    # A master key is made before a gateway is started that is told of it.
    first = "behest byok new-master byok.master"
    others = [command for command in commands(page) if command != first]
    run_behest(first)
    with Sandbox() as sandbox, Gateway(tmp_path, sandbox, more=toml) as gateway:
        with gateway.meter() as meter:
            admin = KeyStore(meter.ledger).create_admin()[1]
        http, tiers = gateway.http(gateway.key()), []
        for command in others * 2:  # the second time is as clean as the first
            if command.startswith("behest "):
                run_behest(command)
            else:
                run_curl(command, gateway, admin)
            if command.startswith(("behest projects", "behest byok")):
                answered = http.post("/chat/completions", json=chat(max_tokens=5))
                assert answered.status_code == 200, command
                tiers.append(answered.headers.get("x-tier"))
        http.close()
        half = len(tiers) // 2
        assert tiers[:half] == tiers[half:]
        assert tiers[:3] == ["trial", "trial", None]  # set, listed, and reset
        # With its own key, and with the gateway's (which has none here) once that was removed.
        assert {line.account for line in sandbox.bill.lines} == {"own-0001", None}


def run_behest(command: str) -> None:
    command, _, file = command.partition(" < ")
    given = Path(file).read_text() if file else None
    done = CliRunner().invoke(main, shlex.split(command)[1:], input=given)
    assert done.exit_code == 0, f"{command}: {done.output}"


def run_curl(command: str, gateway: Gateway, admin: str) -> None:
    command = command.replace("http://127.0.0.1:8080", gateway.url)
    command = command.replace("curl ", "curl -sS --fail-with-body ", 1)
    env = {**os.environ, "BEHEST_ADMIN_KEY": admin}
    done = subprocess.run(["sh", "-c", command], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
