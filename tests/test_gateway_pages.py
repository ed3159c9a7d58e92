"""The gateway's pages, as a newcomer follows them: what they tell to type is typed, twice, over one ledger.

The second time must be as clean as the first: what a run leaves behind is no obstacle to the next.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from gateway_support import SECRET, Gateway, chat, free_port
from support import assert_sound, entries
from test_gateway_clients import npm

from behest_integrations.cli import main
from behest_integrations.gateway.keys import KeyStore

FOLDER = Path(__file__).parent.parent / "quickstarts" / "gateway"
TWICE = ("the first time", "the second time")
OURS = "http://127.0.0.1:8080"


def blocks(page: str, language: str) -> list[str]:
    """What a page has of a language, in its order; commands of `.venv` itself aside: it is made here."""
    text = (FOLDER / page).read_text(encoding="utf-8")
    found = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return [re.sub(r"^python -m venv .*\n", "", block, flags=re.MULTILINE) for block in found]


class Newcomer:
    """Whoever is in the folder: with a `.venv` whose commands are those of the interpreter at work."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignored = shutil.ignore_patterns(".venv", "node_modules", "*.db*", "*key")
        shutil.copytree(FOLDER, folder, ignore=ignored)
        python = folder / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        settings = (folder / "behest.toml").read_text()
        self.gateway = Gateway(folder, None)
        (folder / "behest.toml").write_text(settings)
        self.gateway.store = f"sqlite:///{folder}/behest.db"
        self.env = {
            **os.environ,
            "BEHEST_BASE_URL": self.gateway.base_url,
            "BEHEST_TOKEN_SECRET": SECRET,
        }

    def types(self, commands: str, **env: str) -> str:
        """What it says to that. The commands of `behest` are called here: to start seven takes seconds."""
        env = {**self.env, **env}
        said, shell = "", ""
        for line in commands.replace(OURS, self.gateway.url).replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0].rpartition("/")[2] == "behest":
                said += self._shell(shell, env) + self._behest(words[1:], env)
                shell = ""
            elif words and words[0] == "export" and shell == "":
                name, _, value = line.removeprefix("export ").partition("=")
                env[name] = self._shell(f'printf %s "{value}"', env)
            else:
                shell += line + "\n"
        return said + self._shell(shell, env)

    def _behest(self, words: list[str], env: dict[str, str]) -> str:
        into = words[words.index(">") + 1] if ">" in words else None
        words = words[: words.index(">")] if into else words
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            done = CliRunner().invoke(main, words, env=env)
        finally:
            os.chdir(before)
        assert done.exit_code == 0, done.output
        if into:
            (self.folder / into).write_text(done.stdout)
        return "" if into else done.stdout

    def _shell(self, commands: str, env: dict[str, str]) -> str:
        if not commands.strip():
            return ""
        done = subprocess.run(
            ["sh", "-euc", commands], cwd=self.folder, env=env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    """With the README's first block behind them."""
    someone = Newcomer(tmp_path_factory.mktemp("quickstart") / "gateway")
    start = blocks("README.md", "sh")[0]
    create, serve = start.strip().splitlines()
    assert serve == ".venv/bin/behest serve"
    someone.types(create)
    with someone.gateway:
        yield someone
    with someone.gateway.meter() as meter:
        assert_sound(meter)


@pytest.mark.parametrize("_time", TWICE)
def test_the_readme(newcomer: Newcomer, _time: str) -> None:
    _start, call, look, _app = blocks("README.md", "sh")
    lines = call.splitlines()
    (in_node,) = [line for line in lines if "npm" in line]
    (in_curl,) = [line for line in lines if "chat.sh" in line]
    lines.remove(in_node)
    if not shutil.which("curl"):
        lines.remove(in_curl)
    said = newcomer.types("\n".join(lines))
    for words in ("One call:", "A streamed one:", "402 quota_exceeded", '"$0.01 per session"'):
        assert words in said, said
    if shutil.which("curl"):
        for words in ('"finish_reason"', "data: [DONE]", '"cost_usd"'):
            assert words in said, said
    said = newcomer.types(look)
    for words in ("python-", "gpt-4o", "$0.01 per session", "user u-7"):
        assert words in said, said


def test_the_readmes_line_for_typescript(newcomer: Newcomer) -> None:
    npm(newcomer.folder / "typescript")
    (line,) = [li for block in blocks("README.md", "sh") for li in block.splitlines() if "npm" in li]
    newcomer.types("cd typescript && npm run check --silent")
    for _time in TWICE:
        said = newcomer.types(f"export BEHEST_API_KEY=$(cat key)\n{line}")
        for words in ("One call:", "A streamed one:", "402 quota_exceeded", '"$0.01 per session"'):
            assert words in said, said


@pytest.mark.parametrize("_time", TWICE)
def test_the_page_of_anthropics_clients(newcomer: Newcomer, _time: str) -> None:
    pytest.importorskip("anthropic")
    sdk, claude_code = blocks("CLAUDE.md", "sh")
    said = newcomer.types(sdk)
    for words in ("One call:", "A streamed one:", "402 quota_exceeded", '"$0.01 per session"'):
        assert words in said, said
    if shutil.which("claude"):
        newcomer.types(claude_code.replace("\nclaude", '\nclaude -p "hello"'))


@pytest.mark.parametrize("_time", TWICE)
def test_the_page_of_keys_and_tokens(newcomer: Newcomer, _time: str) -> None:
    keys, over_http, signing = blocks("TOKENS.md", "sh")
    create, changes = keys.split("behest keys rotate", 1)
    newcomer.types(create)
    with newcomer.gateway.meter() as meter:
        made = KeyStore(meter.ledger).all()[-1]
    assert (made.tenant, made.project, made.models) == ("acme", "web", ("gpt-4o*",))
    newcomer.types(f"behest keys rotate{changes}".replace(" ID", f" {made.id}"))
    if shutil.which("curl"):
        admin = newcomer.types("behest keys create-admin").split()[-1]
        said = newcomer.types(over_http, BEHEST_ADMIN_KEY=admin)
        assert '"project":"web"' in said.replace(" ", ""), said
    if shutil.which("openssl"):
        assert "sk_" in newcomer.types(signing)


@pytest.mark.parametrize("_time", TWICE)
def test_the_readmes_token_is_believed(
    newcomer: Newcomer, monkeypatch: pytest.MonkeyPatch, _time: str
) -> None:
    (code,) = blocks("README.md", "python")
    monkeypatch.setenv("BEHEST_TOKEN_SECRET", SECRET)
    made: dict[str, Any] = {}
    exec(code, made)
    http = newcomer.gateway.http(made["token"])
    assert http.post("/chat/completions", json=chat(max_tokens=5)).status_code == 200
    assert http.get("/usage").json()["user_id"] == "u-7"


@pytest.mark.parametrize("_time", TWICE)
def test_the_app_that_mints_tokens(newcomer: Newcomer, _time: str) -> None:
    pytest.importorskip("fastapi")
    key = (newcomer.folder / "key").read_text().strip()
    port = free_port()
    app = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port), "--log-level", "error"],
        cwd=newcomer.folder, env={**newcomer.env, "BEHEST_API_KEY": key},
    )  # fmt: skip
    try:
        http = httpx.Client(base_url=f"http://127.0.0.1:{port}", auth=("ada", "lovelace"))
        deadline = time.monotonic() + 20
        while True:
            try:
                page = http.get("/")
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert "<h1>Ask</h1>" in page.text
        assert http.post("/token", auth=("ada", "wrong")).status_code == 401
        access = http.post("/token").json()
        origin = {"Origin": "http://127.0.0.1:8000", "Authorization": f"Bearer {access['token']}"}
        asked = f"{access['base_url']}/chat/completions"
        answered = httpx.post(asked, json=chat(max_tokens=5), headers=origin)
        assert answered.status_code == 200
        assert answered.headers["access-control-allow-origin"] == "http://127.0.0.1:8000"
        assert "X-Budget-Left" in answered.headers["access-control-expose-headers"]
        refused = httpx.post(asked, json=chat(), headers={**origin, "X-End-User-Id": "alan"})
        assert refused.status_code == 403
    finally:
        app.terminate()
        app.wait(20)
    with newcomer.gateway.meter() as meter:
        assert "alan" not in {entry.user_id for entry in entries(meter)}
        assert "ada" in {entry.user_id for entry in entries(meter)}


def test_a_budget_that_was_used_up_before_ends_in_a_sentence(newcomer: Newcomer) -> None:
    """Not even the first call goes through; and it is no traceback."""
    key = newcomer.gateway.key(budgets=["$0.0000001/day"])
    for program in ("chat.py", "messages.py"):
        said = newcomer.types(f".venv/bin/python {program}", BEHEST_API_KEY=key)
        assert "Stopped before call 1: 402 quota_exceeded" in said
        assert "$0.0000001/day" in said


def test_the_readme_names_what_is_there() -> None:
    for page in FOLDER.glob("*.md"):
        for path in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (FOLDER / path).exists(), f"{page.name}: {path}"


def test_every_page_is_followed_by_a_test() -> None:
    """A page that is added is followed as the others are."""
    tests = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py")]
    for page in FOLDER.glob("*.md"):
        assert any(f'"{page.name}"' in text for text in tests), f"no test follows {page.name}"
