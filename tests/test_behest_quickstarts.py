"""Behest's own quickstarts, on a gateway as it is when it has just been started: no settings, no provider.

What its SDK's README shows is run out of the installed package, verbatim but for the key (the address is in
the environment, where the SDK looks for it). What its pages show of stock clients and cURL are programs of
the same calls (tests/clients/attributed.*). Each twice; and who it was for is as the program says.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from gateway_support import Gateway, chat
from support import entries, slow
from test_gateway_clients import npm, tool

from behest_integrations.gateway.keys import KeyStore
from behest_integrations.ledger.base import Entry

behest = pytest.importorskip("behest")

CLIENTS = Path(__file__).parent / "clients"


class Fresh:
    """`behest serve` in an empty folder, and the keys that its user has made for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gateway = Gateway(folder, None)
        (folder / "behest.toml").unlink()
        self.gateway.store = f"sqlite:///{folder}/behest.db"
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        self.key = self.gateway.key(prefix="bh_live_")
        with self.gateway.meter() as meter:
            self.kid = KeyStore(meter.ledger).add_signing(self.pem.encode(), tenant="acme").kid
        clean = {n: v for n, v in os.environ.items() if not n.startswith(("BEHEST_", "OPENAI_"))}
        self.env = {
            **clean,
            "BEHEST_BASE_URL": self.gateway.base_url,
            "BEHEST_API_KEY": self.key,
            "BEHEST_SIGNING_KEY_PEM": self.pem,
            "BEHEST_SIGNING_KEY_ID": self.kid,
            "BEHEST_TENANT_ID": "acme",
            "BEHEST_PROJECT_ID": "support",
        }

    def run(self, *command: str, under: str = ".") -> str:
        done = subprocess.run(
            command, cwd=self.folder / under, env=self.env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
        return done.stdout

    def booked(self) -> list[Entry]:
        with self.gateway.meter() as meter:
            return list(entries(meter))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fresh]:
    made = Fresh(tmp_path_factory.mktemp("fresh"))
    with made.gateway:
        yield made


@pytest.fixture(scope="module")
def readme() -> SimpleNamespace:
    """The programs of the SDK's README, by what each is about; some go on with the `client` of another."""
    text = metadata("behest-ai").get_payload() or metadata("behest-ai")["Description"]
    sections = re.findall(r"^### (.*?)$\n.*?```python\n(.*?)```", str(text), re.MULTILINE | re.DOTALL)
    names = ("API Key Flow", "Local Signing Flow", "Manual Token Signing", "Streaming", "Error Handling")
    found = [next(code for title, code in sections if title.startswith(name)) for name in names]
    return SimpleNamespace(key=found[0], signed=found[1], token=found[2], stream=found[3], errors=found[4])


def test_the_readme_with_a_key(fresh: Fresh, readme: SimpleNamespace) -> None:
    program = "\n".join((readme.key, readme.stream, "print()", readme.errors))
    assert program.count("bh_live_YOUR_API_KEY") == 2
    before = len(fresh.booked())
    for _ in range(2):
        said = fresh.run(sys.executable, "-c", program.replace("bh_live_YOUR_API_KEY", fresh.key))
        answered, streamed = said.splitlines()
        assert answered
        assert streamed
    made = fresh.booked()[before:]
    assert [(e.tenant, e.project, e.user_id, e.status) for e in made] == [
        ("acme", "support", None, "settled")
    ] * 6
    assert {e.model for e in made} == {"gemini-2.5-flash"}
    assert all(e.cost for e in made)


def test_the_readme_signing_for_itself(fresh: Fresh, readme: SimpleNamespace) -> None:
    ours = {"sk_a1b2c3...": fresh.kid, "your-tenant-id": "acme", "your-project-id": "support"}
    token = readme.token
    for theirs, mine in ours.items():
        assert token.count(theirs) == 1
        token = token.replace(theirs, mine)
    before = len(fresh.booked())
    for _ in range(2):
        said = fresh.run(sys.executable, "-c", "\n".join((readme.signed, readme.stream, "print()", token)))
        answered, streamed, signed = said.splitlines()
        assert answered
        assert streamed
        asked = fresh.gateway.http(signed).post("/chat/completions", json=chat(max_tokens=5))
        assert asked.status_code == 200, asked.text
    made = fresh.booked()[before:]
    assert [(e.tenant, e.project, e.user_id) for e in made] == [
        ("acme", "support", user) for user in ("anonymous", "anonymous", "alice") * 2
    ]


def in_python(fresh: Fresh) -> list[str]:
    return [sys.executable, str(CLIENTS / "attributed.py")]


def in_typescript(fresh: Fresh) -> list[str]:
    (fresh.folder / "package.json").write_text('{"type": "module"}')
    shutil.copy(CLIENTS / "attributed.ts", fresh.folder)
    npm(fresh.folder, "openai@6", "tsx@4")
    return ["node_modules/.bin/tsx", "attributed.ts"]


def in_curl(fresh: Fresh) -> list[str]:
    tool("curl")
    return [tool("sh"), str(CLIENTS / "attributed.sh")]


@pytest.mark.parametrize("language", [in_python, slow(in_typescript), in_curl])
def test_a_call_for_a_user_in_a_conversation(fresh: Fresh, language: Any) -> None:
    command, user = language(fresh), language.__name__
    before = len(fresh.booked())
    said = [fresh.run(*command, user, conversation) for conversation in ("1", "2")]
    assert said[0]
    made = fresh.booked()[before:]
    assert [(e.user_id, e.session_id, e.status) for e in made] == [
        (user, f"user-{user}-conv-{conversation}", "settled") for conversation in ("1", "2")
    ]
    assert all(e.cost and e.model == "gemini-2.5-flash" for e in made)


def test_an_app_that_mints_a_token_for_who_is_logged_in(
    fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shape of its quickstart for FastAPI: the SDK reads the key and the address out of the environment,
    and user and plan come from the app's own login."""
    pytest.importorskip("fastapi")
    from fastapi import Depends, FastAPI
    from fastapi.testclient import TestClient

    monkeypatch.setenv("BEHEST_KEY", fresh.gateway.key())
    monkeypatch.setenv("BEHEST_BASE_URL", fresh.gateway.url)
    backend, app = behest.Behest(), FastAPI()

    def logged_in() -> tuple[str, int]:
        return "ada", 2

    @app.post("/api/behest/token")
    def mint(user: Any = Depends(logged_in)) -> dict[str, Any]:  # noqa: B008
        minted = backend.auth.mint(user_id=user[0], tier=user[1], ttl=900)
        return {"token": minted.token, "ttl": minted.ttl, "sessionId": minted.session_id}

    with TestClient(app) as http:
        access = [http.post("/api/behest/token").json() for _ in range(2)]
    assert [a["ttl"] for a in access] == [900, 900]
    for one in access:
        answered = fresh.gateway.http(one["token"]).post("/chat/completions", json=chat(max_tokens=5))
        assert (answered.status_code, answered.headers["x-tier"]) == (200, "pro")
    assert [(e.user_id, e.session_id) for e in fresh.booked()[-2:]] == [
        ("ada", one["sessionId"]) for one in access
    ]
