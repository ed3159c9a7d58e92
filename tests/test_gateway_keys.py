"""What a key may do, for how long, from where: made by `behest keys`, held to by a gateway that runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_support import Gateway, chat

from behest_integrations import ConfigError, Meter
from behest_integrations.gateway.keys import KeyStore, id_in
from behest_integrations.sandbox import Sandbox

ASK = chat(max_tokens=5)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def gateway(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("keys"), sandbox, workers=2) as gateway:
        yield gateway


def behest(gateway: Gateway, *args: str) -> str:
    command = [sys.executable, "-m", "behest_integrations.cli", "keys", *args]
    done = subprocess.run(command, cwd=gateway.folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def status(gateway: Gateway, key: str, **headers: str) -> int:
    return gateway.http(key, **headers).post("/chat/completions", json=ASK).status_code


def both(gateway: Gateway, key: str) -> set[int]:
    """What the workers say: each request is a connection of its own, and either may take it."""
    return {status(gateway, key) for _ in range(12)}


def test_a_key_is_for_its_models_and_so_are_its_tokens(gateway: Gateway, sandbox: Sandbox) -> None:
    key = gateway.key(models=["gpt-4o-*", "text-*"])
    token = gateway.http(key).post("/auth/mint", json={"user_id": "u"}).json()["token"]
    before = sandbox.requests
    for text in (key, token):
        http = gateway.http(text)
        refused = http.post("/chat/completions", json=ASK)
        assert refused.status_code == 403
        assert refused.json()["error"]["code"] == "model_not_allowed"
        assert "gpt-4o-*" in refused.json()["error"]["message"]
        besides = {**ASK, "model": "gpt-4o-mini", "models": ["gpt-4o"]}
        assert http.post("/chat/completions", json=besides).status_code == 403
        # LiteLLM's: https://docs.litellm.ai/docs/proxy/reliability
        for fallbacks in (["gpt-4o"], [{"model": "gpt-4o", "temperature": 0}]):
            asked = {**ASK, "model": "gpt-4o-mini", "fallbacks": fallbacks}
            assert http.post("/chat/completions", json=asked).status_code == 403
    assert sandbox.requests == before
    allowed = {**ASK, "model": "gpt-4o-mini"}
    assert [gateway.http(t).post("/chat/completions", json=allowed).status_code for t in (key, token)] == [
        200
    ] * 2


def test_a_key_is_used_from_its_addresses_alone(gateway: Gateway, sandbox: Sandbox) -> None:
    here, elsewhere = (
        gateway.key(addresses=["127.0.0.0/8"]),
        gateway.key(addresses=["10.1.2.3", "2001:db8::/32"]),
    )
    assert status(gateway, here) == 200
    before = sandbox.requests
    assert status(gateway, elsewhere) == 403
    assert status(gateway, elsewhere, **{"X-Forwarded-For": "10.1.2.3"}) == 403, "anybody can say that"
    assert sandbox.requests == before


def test_a_keys_own_budget_holds_all_its_calls_in_every_worker_and_after_rotation(
    gateway: Gateway, sandbox: Sandbox
) -> None:
    key, other = gateway.key(budgets=["6 calls/day"]), gateway.key(budgets=["6 calls/day"])
    token = gateway.http(key).post("/auth/mint", json={"user_id": "u"}).json()["token"]
    before = sandbox.requests
    answered = [status(gateway, (key, token)[i % 2]) for i in range(5)]
    rotated = behest(gateway, "rotate", str(id_in(key)))
    answered += [status(gateway, rotated) for _ in range(6)]
    assert answered == [200] * 6 + [402] * 5
    assert sandbox.requests - before == 6
    assert status(gateway, other) == 200, "it has its own"


def test_a_key_is_rotated_with_an_overlap(gateway: Gateway) -> None:
    old = behest(gateway, "create", "--tenant", "acme", "--project", "support", "--model", "gpt-4o")
    new = behest(gateway, "rotate", str(id_in(old)), "--hours", "1")
    assert both(gateway, old) == both(gateway, new) == {200}
    assert gateway.http(new).post("/chat/completions", json={**ASK, "model": "gpt-4"}).status_code == 403
    newest = behest(gateway, "rotate", str(id_in(new)), "--hours", "0")
    assert both(gateway, new) == {401}
    assert both(gateway, newest) == {200}
    found = {key["id"]: key for key in json.loads(behest(gateway, "list", "--json"))}
    assert found[id_in(newest)]["line"] == id_in(old)
    assert found[id_in(old)]["expires"]


def test_a_revoked_key_ends_at_once_in_every_worker(gateway: Gateway) -> None:
    key = gateway.key()
    assert both(gateway, key) == {200}
    behest(gateway, "revoke", str(id_in(key)))
    assert both(gateway, key) == {401}


@pytest.mark.parametrize("header", ["api-key", "x-api-key"])
def test_a_key_where_other_clients_put_it(gateway: Gateway, header: str) -> None:
    key = gateway.key()
    http = gateway.http(**{header: key})
    assert http.post("/chat/completions", json=ASK).status_code == 200
    same = gateway.http(key, **{header: key})
    assert same.get("/models").status_code == 200
    another = gateway.http(gateway.key(), **{header: key})
    assert another.get("/models").status_code == 401, "whose it is, is not guessed"


# ── in the store ───────────────────────────────────────────────────────────────────────


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def test_a_key_expires(tmp_path: Path) -> None:
    clock = Clock()
    with Meter(f"sqlite:///{tmp_path}/k.db") as meter:
        keys = KeyStore(meter.ledger, now=clock)
        key, text = keys.create(tenant="t", project="p", seconds=60)
        assert keys.find(text) is not None
        keys.expire(key.id, 600)
        clock.now += 60
        assert keys.find(text) is None, "it is not lengthened"
        with pytest.raises(ConfigError, match="has ended already"):
            keys.rotate(key.id)
        one, text = keys.create(tenant="t", project="p", seconds=1000)
        keys.expire(one.id, 10)
        clock.now += 9
        assert keys.find(text) is not None
        clock.now += 1
        assert keys.find(text) is None


def test_each_change_is_another_revision(tmp_path: Path) -> None:
    with Meter(f"sqlite:///{tmp_path}/k.db") as meter, Meter(f"sqlite:///{tmp_path}/k.db") as elsewhere:
        keys, seen = KeyStore(meter.ledger), KeyStore(elsewhere.ledger)
        told = [seen.revision()]
        key, _text = keys.create(tenant="t", project="p")
        told.append(seen.revision())
        keys.expire(key.id, 100)
        told.append(seen.revision())
        keys.rotate(key.id)
        told.append(seen.revision())
        assert len(set(told)) == len(told)
        assert seen.revision() == told[-1]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"models": []}, "patterns of models"),
        ({"addresses": ["10.0.0.300"]}, "an address is one such as"),
        ({"budgets": ["5 dollars"]}, "5 dollars"),
        ({"budgets": ["$5/day", "$6/day"]}, "count the same"),
        ({"seconds": 0}, "in the future"),
        ({"prefix": "sk-"}, "begins with"),
    ],
)
def test_a_key_that_cannot_be_made(tmp_path: Path, said: dict[str, object], why: str) -> None:
    with Meter(f"sqlite:///{tmp_path}/k.db") as meter:
        with pytest.raises(ConfigError, match=why):
            KeyStore(meter.ledger).create(tenant="t", project="p", **said)  # type: ignore[arg-type]
        assert KeyStore(meter.ledger).all() == []


def test_a_signing_key_is_public_rsa_and_its_id_is_taken_once(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    long = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    curve = ec.generate_private_key(ec.SECP256R1())
    private = long.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with Meter(f"sqlite:///{tmp_path}/k.db") as meter:
        keys = KeyStore(meter.ledger)
        kept = keys.add_signing(private, tenant="t", kid="k1")
        assert "PRIVATE" not in kept.pem
        assert b"PRIVATE" not in (tmp_path / "k.db").read_bytes()
        for wrong in (short, curve):
            public = wrong.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            with pytest.raises(ConfigError, match="RSA key of 2048 bits"):
                keys.add_signing(public, tenant="t")
        with pytest.raises(ConfigError, match="cannot use the key"):
            keys.add_signing(b"no key", tenant="t")
        with pytest.raises(ConfigError, match="already"):
            keys.add_signing(private, tenant="t", kid="k1")
        keys.revoke_signing("k1")
        assert keys.signing("k1") is None
        with pytest.raises(ConfigError, match="not revoked"):
            keys.revoke_signing("k1")
