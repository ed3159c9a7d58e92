"""Every endpoint, by everybody: what each may see and do, and none more. And keys changed as it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from gateway_support import Gateway, chat

from behest_integrations.gateway.byok import Masters, ProviderKeys
from behest_integrations.gateway.keys import KeyStore, id_in
from behest_integrations.gateway.openapi import document
from behest_integrations.gateway.settings import ByokSettings
from behest_integrations.sandbox import Sandbox

ASK = chat(max_tokens=5)
KEY = {"tenant": "acme", "project": "made"}
MESSAGE = {"model": "claude-sonnet-4-5", "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]}
ADDED = {"budget": "$1000/month"}
OWN_KEY = {"tenant": "acme", "provider": "spare", "key": "sk-acme-its-own-key-0001"}

ENDPOINTS: dict[tuple[str, str], dict[str, Any] | None] = {
    ("post", "/v1/chat/completions"): ASK,
    ("post", "/v1/completions"): {"model": "gpt-3.5-turbo-instruct", "prompt": "hello", "max_tokens": 5},
    ("post", "/v1/responses"): {"model": "gpt-4o", "input": "hello", "max_output_tokens": 16},
    ("post", "/v1/messages"): MESSAGE,
    ("post", "/v1/messages/count_tokens"): MESSAGE,
    ("post", "/v1/embeddings"): {"model": "text-embedding-3-small", "input": "hello"},
    ("get", "/v1/models"): None,
    ("get", "/v1/models/{id}"): None,
    ("get", "/v1/threads"): None,
    ("get", "/v1/threads/{id}"): None,
    ("get", "/v1/threads/{id}/messages"): None,
    ("delete", "/v1/threads/{id}"): None,
    ("get", "/v1/usage"): None,
    ("get", "/v1/billing/usage"): None,
    ("post", "/v1/auth/mint"): {"user_id": "u"},
    ("get", "/admin/v1/keys"): None,
    ("post", "/admin/v1/keys"): KEY,
    ("delete", "/admin/v1/keys/{id}"): None,
    ("post", "/admin/v1/keys/{id}/rotate"): {},
    ("post", "/admin/v1/keys/{id}/expire"): {"ttl": 1000},
    ("get", "/admin/v1/byok"): None,
    ("post", "/admin/v1/byok"): OWN_KEY,
    ("delete", "/admin/v1/byok/{id}"): None,
    ("get", "/admin/v1/projects"): None,
    ("put", "/admin/v1/projects/{name}"): {"budgets": ["$5/day"]},
    ("delete", "/admin/v1/projects/{name}"): None,
    ("get", "/admin/v1/tiers"): None,
    ("put", "/admin/v1/tiers/{name}"): {"budgets": ["$5/day per user"]},
    ("delete", "/admin/v1/tiers/{name}"): None,
    ("get", "/admin/v1/defaults"): None,
    ("put", "/admin/v1/defaults"): {},
    ("delete", "/admin/v1/defaults"): None,
    ("get", "/admin/v1/budgets"): None,
    ("post", "/admin/v1/budgets"): ADDED,
    ("post", "/admin/v1/budgets/set"): {**ADDED, "amount": "$1000"},
    ("post", "/admin/v1/budgets/raise"): {**ADDED, "amount": "$1"},
    ("post", "/admin/v1/budgets/grant"): {**ADDED, "amount": "$1", "seconds": 60},
    ("post", "/admin/v1/budgets/pause"): ADDED,
    ("post", "/admin/v1/budgets/resume"): ADDED,
    ("post", "/admin/v1/budgets/reset"): ADDED,
    ("post", "/admin/v1/budgets/remove"): ADDED,
}
MASTER = "BEHEST_BYOK_KEY"
SPARE = """
[gateway.providers.spare]
base_url = "{url}"

[[gateway.routes]]
models = ["*"]
provider = "sandbox"
"""
OPEN = {"/", "/.well-known/jwks.json", "/healthz", "/readyz", "/metrics"}
SETTINGS = {f"/admin/v1/{what}": 403 for what in ("projects", "tiers", "defaults", "budgets")}
"""What is for who administers every tenant."""
SPENDING = ("/v1/usage", "/v1/billing/usage")


@dataclass
class Caller:
    text: str
    refused: dict[str, int] = field(default_factory=dict)
    """Statuses by the beginning of a path, the longest first; what is not named is let in."""

    def status(self, path: str) -> int | None:
        return next(
            (self.refused[p] for p in sorted(self.refused, key=len)[::-1] if path.startswith(p)), None
        )


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def gateway(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(
        tmp_path_factory.mktemp("tenancy"),
        sandbox,
        provider='retries = 0\napis = ["openai", "anthropic"]',
        more=SPARE.format(url=sandbox.base_url),
        env={MASTER: "11" * 32},
    ) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def callers(gateway: Gateway) -> dict[str, Caller]:
    key, revoked, expired = gateway.key(), gateway.key(), gateway.key()
    http = gateway.http(key)

    def token(by: str = key, **said: Any) -> str:
        return str(gateway.http(by).post("/auth/mint", json={"user_id": "u", **said}).json()["token"])

    ended = token(by=revoked)
    with gateway.meter() as meter:
        keys = KeyStore(meter.ledger)
        keys.revoke(str(id_in(revoked)))
        past = KeyStore(meter.ledger, now=lambda: 1_700_000_000.0)
        past.expire(str(id_in(expired)), 60)
        everything = keys.create_admin()[1]
        acmes = keys.create_admin(tenant="acme")[1]
    http.close()
    theirs = {"/admin": 403}
    return {
        "a key": Caller(key, theirs),
        "a key for no end users": Caller(gateway.key(end_users=False), {**theirs, "/v1/auth/mint": 403}),
        "a user's token": Caller(token(), {**theirs, "/v1/auth/mint": 403}),
        "an admin's token": Caller(token(role="admin"), {**theirs, "/v1/auth/mint": 403}),
        "another tenant's key": Caller(gateway.key(tenant="globex"), {**theirs, "/v1/threads/": 404}),
        "another project's key": Caller(gateway.key(project="sales"), {**theirs, "/v1/threads/": 404}),
        "another user's token": Caller(
            token(user_id="other"), {**theirs, "/v1/auth/mint": 403, "/v1/threads/": 404}
        ),
        "an admin key": Caller(everything, {"/v1": 403}),
        "a tenant's admin key": Caller(acmes, {"/v1": 403, **SETTINGS}),
        "a revoked key": Caller(revoked, {"/": 401}),
        "a token of a revoked key": Caller(ended, {"/": 401}),
        "an expired key": Caller(expired, {"/": 401}),
        "nobody": Caller("", {"/": 401}),
        "a stranger": Caller("sk-nobody", {"/": 401}),
    }


def test_every_endpoint_is_in_the_table() -> None:
    documented = {(m, path) for path, found in document()["paths"].items() for m in found}
    assert {(m, path) for m, path in documented if path not in OPEN} == set(ENDPOINTS)


def test_what_everybody_may_do(
    gateway: Gateway, sandbox: Sandbox, callers: dict[str, Caller], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MASTER, "11" * 32)
    acme = gateway.http(callers["a key"].text)
    wrong: list[str] = []
    for name, caller in callers.items():
        headers = {"Authorization": f"Bearer {caller.text}"} if caller.text else {}
        with httpx.Client(base_url=gateway.url, headers=headers, timeout=30) as http:
            for (method, path), body in ENDPOINTS.items():
                id = "gpt-4o"
                if "threads" in path:
                    id = "s-acme"
                    said = {"X-Session-Id": id, "X-End-User-Id": "u"}
                    assert acme.post("/chat/completions", json=ASK, headers=said).status_code == 200
                elif "keys" in path:
                    id = str(id_in(gateway.key()))
                elif "byok" in path:
                    with gateway.meter() as meter:
                        own = ProviderKeys(meter.ledger, Masters(ByokSettings()))
                        id = own.set(*OWN_KEY.values()).id
                elif name == "an admin key" and method == "delete":
                    put = path.replace("{name}", id)
                    assert http.put(put, json=ENDPOINTS["put", path]).status_code == 200
                before = sandbox.requests
                answered = http.request(method, path.replace("{id}", id).replace("{name}", id), json=body)
                wanted = caller.status(path)
                refused = answered.status_code if answered.status_code >= 400 else None
                if refused != wanted:
                    wrong.append(f"{name}: {method} {path}: {answered.status_code}, and not {wanted}")
                if refused and sandbox.requests != before:
                    wrong.append(f"{name}: {method} {path}: refused, and yet a provider was called")
    acme.close()
    assert wrong == []


def test_what_is_told_is_the_callers_own(gateway: Gateway, callers: dict[str, Caller]) -> None:
    here = {"X-Session-Id": "s-told", "X-End-User-Id": "u-told"}
    told = gateway.key(project="told")
    assert gateway.http(told, **here).post("/chat/completions", json=ASK).status_code == 200
    for name in ("another tenant's key", "another project's key", "a user's token", "another user's token"):
        http = gateway.http(callers[name].text)
        assert "s-told" not in http.get("/threads").text
        for path in SPENDING:
            assert "told" not in http.get(path.removeprefix("/v1")).text


# ── administration ─────────────────────────────────────────────────────────────────────


def test_keys_are_made_and_ended_as_it_runs(gateway: Gateway, callers: dict[str, Caller]) -> None:
    headers = {"Authorization": f"Bearer {callers['an admin key'].text}"}
    admin = httpx.Client(base_url=f"{gateway.url}/admin/v1", headers=headers, timeout=30)

    def status(secret: str) -> int:
        return gateway.http(secret).post("/chat/completions", json=ASK).status_code

    asked = {**KEY, "tier": "free", "models": ["gpt-4o*"], "budgets": ["$1/day"], "ttl": 3600}
    made = admin.post("/keys", json=asked)
    assert made.status_code == 201
    first = made.json()
    assert {n: first["key"][n] for n in ("tenant", "tier", "models", "budgets")} == {
        "tenant": "acme", "tier": "free", "models": ["gpt-4o*"], "budgets": ["$1/day"],
    }  # fmt: skip
    assert status(first["secret"]) == 200
    second = admin.post(f"/keys/{first['key']['id']}/rotate", json={"overlap": 60}).json()
    assert [status(one["secret"]) for one in (first, second)] == [200, 200]
    assert second["key"]["line"] == first["key"]["id"]
    left = admin.post(f"/keys/{second['key']['id']}/expire", json={"ttl": 60}).json()
    assert left["expires"] < second["key"]["expires"]
    assert admin.delete(f"/keys/{second['key']['id']}").json()["revoked"]
    assert status(second["secret"]) == 401
    listed = admin.get("/keys").text
    assert first["key"]["id"] in listed
    assert first["secret"][-43:] not in listed
    for wrong in ({**KEY, "tier": "platinum"}, {**KEY, "budgets": ["5 dollars"]}, {"tenant": "acme"}):
        assert admin.post("/keys", json=wrong).status_code == 400
    assert admin.delete(f"/keys/{second['key']['id']}").status_code == 400
    assert admin.delete("/keys/nobody").status_code == 404
    admin.close()
    with gateway.meter() as meter, meter.ledger.reading().connect() as connection:
        kept = connection.exec_driver_sql("SELECT actor, rule, details FROM audit").fetchall()
    mine = [rule for actor, rule, details in kept if actor == id_in(callers["an admin key"].text)]
    assert len(mine) >= 4


def test_a_tenants_admin_key_is_for_that_tenant(gateway: Gateway, callers: dict[str, Caller]) -> None:
    text = callers["a tenant's admin key"].text
    headers = {"Authorization": f"Bearer {text}"}
    admin = httpx.Client(base_url=f"{gateway.url}/admin/v1", headers=headers, timeout=30)
    theirs = gateway.key(tenant="globex")
    assert {key["tenant"] for key in admin.get("/keys").json()["data"]} == {"acme"}
    assert admin.post("/keys", json={**KEY, "tenant": "globex"}).status_code == 403
    assert admin.delete(f"/keys/{id_in(theirs)}").status_code == 404
    assert admin.post(f"/keys/{id_in(theirs)}/rotate", json={}).status_code == 404
    assert gateway.http(theirs).get("/models").status_code == 200
    assert admin.delete(f"/keys/{id_in(callers['an admin key'].text)}").status_code == 404
    admin.close()
