"""Tenants' own keys at providers: who is billed is what the provider says, and never is it us by accident."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from gateway_support import Gateway, chat
from hypothesis import given
from hypothesis import strategies as st
from recording import Recorder

from behest_integrations import ConfigError
from behest_integrations.cli import main
from behest_integrations.gateway.byok import Masters, ProviderKeys, Unusable, new_master
from behest_integrations.gateway.keys import KeyStore
from behest_integrations.gateway.settings import ByokSettings
from behest_integrations.rules.units import to_usd
from behest_integrations.sandbox import Sandbox

ASK = chat(max_tokens=5)
OURS, THEIRS = "sk-ours-of-the-platform-ours0000", "sk-of-acme-itself-and-nobody-acme0001"
OUR_ACCOUNT, THEIR_ACCOUNT = OURS[-8:], THEIRS[-8:]
MORE = """
[gateway.providers.spare]
base_url = "{spare}"
api_key_env = "OUR_KEY"
retries = 0
headers = {{ OpenAI-Organization = "org-ours", X-Api-Key = "ours", X-Else = "else" }}
query = {{ key = "ours", version = "2" }}

[[gateway.routes]]
models = ["gpt-4o"]
provider = "sandbox"
fallback = [{{ provider = "spare" }}]

[[gateway.routes]]
models = ["gpt-4.1-mini"]
provider = "spare"

[[gateway.routes]]
models = ["*"]
provider = "sandbox"
"""


def of_file(path: Path) -> Masters:
    return Masters(ByokSettings(key_env="BEHEST_NO_SUCH_KEY", key_file=path))


# ── sealing ────────────────────────────────────────────────────────────────────────────


@given(secret=st.text("abc-_XYZ09~!", min_size=1, max_size=200), tenant=st.text(min_size=1, max_size=20))
def test_what_is_sealed_opens_for_whom_it_was_sealed_alone(secret: str, tenant: str) -> None:
    masters = _of_text("22" * 32)
    sealed = masters.seal(tenant, "openai", secret, 0)
    assert masters.open(sealed) == secret
    assert masters.seal(tenant, "openai", secret, 0).sealed != sealed.sealed
    moved = (
        replace(sealed, tenant=tenant + "2"),
        replace(sealed, provider="azure"),
        replace(sealed, id="0"),
        replace(sealed, sealed=_changed(sealed.sealed)),
        replace(sealed, sealed="?"),
        replace(sealed, sealed=""),
        replace(sealed, master="00000000"),
    )
    for wrong in moved:
        with pytest.raises(Unusable):
            masters.open(wrong)
    with pytest.raises(Unusable):
        _of_text("33" * 32).open(replace(sealed, master=_of_text("33" * 32).first()[0]))


def _of_text(text: str) -> Masters:
    os.environ["BEHEST_TEST_MASTER"] = text
    try:
        masters = Masters(ByokSettings(key_env="BEHEST_TEST_MASTER"))
        kept = masters.all()
    finally:
        del os.environ["BEHEST_TEST_MASTER"]
    masters.all = lambda: kept  # type: ignore[method-assign]
    return masters


def _changed(text: str) -> str:
    return ("B" if text[0] != "B" else "C") + text[1:]


@pytest.mark.parametrize("wrong", ["secret", "correct horse battery staple", "ab" * 31, "ab" * 33, "é" * 44])
def test_what_is_no_master_key_is_said_and_not_quoted(wrong: str, tmp_path: Path) -> None:
    path = tmp_path / "master"
    path.write_text(wrong)
    with pytest.raises(ConfigError, match="new-master") as raised:
        of_file(path).first()
    assert wrong.split()[0] not in str(raised.value)


def test_a_file_of_master_keys_is_its_owners_and_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "byok.master"
    with pytest.raises(ConfigError, match="cannot be read"):
        of_file(path).first()
    new_master(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="--rotate"):
        new_master(path)
    masters = of_file(path)
    old = masters.seal("acme", "openai", THEIRS, 0)
    new_master(path, first=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    new = masters.seal("acme", "openai", THEIRS, 0)
    assert old.master != new.master
    assert [masters.open(key) for key in (old, new)] == [THEIRS, THEIRS]
    path.write_text(path.read_text().splitlines()[0])
    with pytest.raises(Unusable, match=old.master):
        masters.open(old)
    assert masters.open(new) == THEIRS
    assert list(tmp_path.iterdir()) == [path]


# ── calls ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def spare() -> Iterator[Recorder]:
    with Recorder() as recorder:
        yield recorder


@pytest.fixture(scope="module")
def gateway(sandbox: Sandbox, spare: Recorder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("byok")
    new_master(folder / "byok.master")
    with Gateway(
        folder,
        sandbox,
        workers=2,
        budgets=["$1/day per tenant for tag paid_by=platform as platform", "200 calls/day per user as calls"],
        provider='retries = 0\napi_key_env = "OUR_KEY"\napis = ["openai", "anthropic"]',
        more=MORE.format(spare=spare.base_url) + '[gateway.byok]\nkey_file = "byok.master"\n',
        env={"OUR_KEY": OURS},
    ) as gateway:
        yield gateway


def behest(gateway: Gateway, *args: str, given: str | None = None, ok: bool = True) -> str:
    return in_folder(gateway.folder, *args, given=given, ok=ok)


def in_folder(folder: Path, *args: str, given: str | None = None, ok: bool = True) -> str:
    here = os.getcwd()
    os.chdir(folder)
    try:
        done = CliRunner().invoke(main, ["byok", *args], input=given)
    finally:
        os.chdir(here)
    assert (done.exit_code == 0) is ok, done.output
    return done.output


@pytest.fixture
def own(gateway: Gateway) -> Iterator[ProviderKeys]:
    """Set for acme, at both providers; nothing is left of it afterwards."""
    with gateway.meter() as meter:
        keys = ProviderKeys(meter.ledger, of_file(gateway.folder / "byok.master"))
        for provider in ("sandbox", "spare"):
            keys.set("acme", provider, THEIRS)
        yield keys
        for key in keys.all():
            keys.remove(key.tenant, key.provider)


def everywhere(http: httpx.Client, **fields: object) -> set[int]:
    """What the workers say: each request is a connection of its own, and either may take it."""
    return {
        http.post("/chat/completions", json={**ASK, **fields}, headers={"Connection": "close"}).status_code
        for _ in range(8)
    }


def test_who_is_billed_and_who_is_told(gateway: Gateway, sandbox: Sandbox) -> None:
    acme, globex = (gateway.http(gateway.key(tenant=t)) for t in ("acme", "globex"))
    said = behest(gateway, "set", "--tenant", "acme", "--provider", "sandbox", given=THEIRS + "\n")
    assert "0001" in said
    assert THEIRS not in said
    sandbox.bill.lines.clear()
    started = time.time() - 1
    message = {"model": "claude-sonnet-4-5", "max_tokens": 5, "messages": ASK["messages"]}
    for http in (acme, globex):
        assert everywhere(http) == {200}
        assert http.post("/chat/completions", json={**ASK, "stream": True}).text.endswith("[DONE]\n\n")
        embed = {"model": "text-embedding-3-small", "input": "hello"}
        assert http.post("/embeddings", json=embed).status_code == 200
        assert http.post("/messages", json=message).status_code == 200
        assert http.post("/messages/count_tokens", json=message).status_code == 200
    paid = sandbox.bill.by_account()
    assert set(paid) == {OUR_ACCOUNT, THEIR_ACCOUNT}
    for http, account, half in ((acme, THEIR_ACCOUNT, "byok"), (globex, OUR_ACCOUNT, "platform")):
        told = http.get("/billing/usage").json()
        other = told["platform" if half == "byok" else "byok"]
        assert other["requests"] == 0
        assert other["cost_usd"] == 0
        assert told[half]["requests"] == 11
        assert told[half]["cost_usd"] == pytest.approx(float(paid[account]), abs=1e-12)
        assert len(told[half]["by_model"]) == 3
        assert http.get("/usage").json()["total"]["requests"] == 11
    with gateway.meter() as meter, meter.ledger.reading().connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT tenant, json_extract(tags, '$.paid_by'), SUM(cost) FROM entries WHERE at > ?"
            " GROUP BY 1, 2",
            (int(started * 1000),),
        ).fetchall()
    assert {(tenant, by): to_usd(cost) for tenant, by, cost in rows} == {
        ("acme", "tenant"): paid[THEIR_ACCOUNT],
        ("globex", "platform"): paid[OUR_ACCOUNT],
    }
    # As soon as it is removed, in every worker.
    behest(gateway, "remove", "--tenant", "acme", "--provider", "sandbox", "--why", "it was asked for")
    before = len(sandbox.bill.lines)
    assert everywhere(acme) == {200}
    assert {line.account for line in sandbox.bill.lines[before:]} == {OUR_ACCOUNT}
    for http in (acme, globex):
        http.close()


def test_nothing_of_ours_goes_with_a_tenants_key(
    gateway: Gateway, spare: Recorder, own: ProviderKeys
) -> None:
    sent = []
    for tenant in ("acme", "globex"):
        http = gateway.http(gateway.key(tenant=tenant))
        assert http.post("/chat/completions", json={**ASK, "model": "gpt-4.1-mini"}).status_code == 200
        http.close()
        sent.append(spare.received[-1])
    theirs, ours = sent
    assert theirs.headers["authorization"] == f"Bearer {THEIRS}"
    assert "ours" not in json.dumps([theirs.path, dict(theirs.headers)])
    assert theirs.path.endswith("?version=2")
    assert theirs.headers["x-else"] == "else"
    assert ours.headers["authorization"] == f"Bearer {OURS}"
    assert ours.headers["openai-organization"] == "org-ours"


def test_a_key_that_cannot_be_read_is_refused_and_ours_is_not_used(
    gateway: Gateway, sandbox: Sandbox, spare: Recorder, own: ProviderKeys
) -> None:
    acme, globex = (gateway.http(gateway.key(tenant=t)) for t in ("acme", "globex"))
    assert everywhere(acme) == {200}
    with gateway.meter() as meter:
        keys = meter.ledger.keys()
        (sealed, _other) = keys.provider_keys("acme")
        keys.put_provider_key(replace(sealed, sealed=_changed(sealed.sealed)))
    asked = sandbox.requests
    alone = {**ASK, "model": "gpt-4o-mini"}
    assert everywhere(acme, model="gpt-4o-mini") == {503}
    refused = acme.post("/chat/completions", json={**alone, "stream": True})
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "provider_key_unusable"
    assert refused.headers["x-should-retry"] == "false"
    message = {"model": "claude-sonnet-4-5", "max_tokens": 5, "messages": ASK["messages"]}
    for path in ("/messages", "/messages/count_tokens"):
        answered = acme.post(path, json=message)
        assert (answered.status_code, answered.json()["type"]) == (503, "error")
    assert sandbox.requests == asked
    assert everywhere(globex, model="gpt-4o-mini") == {200}
    # Its own key at the other provider is as good as it was: a route may fall back to that.
    assert everywhere(acme) == {200}
    assert spare.received[-1].headers["authorization"] == f"Bearer {THEIRS}"
    own.remove("acme", "spare")
    fell_back = len(spare.received)
    assert everywhere(acme) == {503}
    assert len(spare.received) == fell_back
    assert "refused: it is not as it was encrypted" in " ".join(behest(gateway, "list").split())
    own.set("acme", "sandbox", THEIRS)
    assert everywhere(acme) == {200}


def test_a_key_that_its_provider_refuses_does_not_become_ours(
    gateway: Gateway, sandbox: Sandbox, spare: Recorder, own: ProviderKeys
) -> None:
    http = gateway.http(gateway.key())
    sandbox.strangers.add(THEIR_ACCOUNT)
    try:
        # By the tenant's own key at another provider it may go on.
        assert http.post("/chat/completions", json=ASK).status_code == 200
        assert spare.received[-1].headers["authorization"] == f"Bearer {THEIRS}"
        own.remove("acme", "spare")
        before = len(spare.received)
        refused = http.post("/chat/completions", json=ASK)
        assert refused.status_code == 502
        assert refused.json()["error"]["code"] == "provider_key_refused"
        assert "byok set" in refused.json()["error"]["message"]
        assert len(spare.received) == before
        own.set("acme", "spare", THEIRS)
    finally:
        sandbox.strangers.clear()
    # With the gateway's own, a route falls back as ever.
    globex = gateway.http(gateway.key(tenant="globex"))
    sandbox.strangers.add(OUR_ACCOUNT)
    try:
        assert globex.post("/chat/completions", json=ASK).status_code == 200
        assert spare.received[-1].headers["authorization"] == f"Bearer {OURS}"
    finally:
        sandbox.strangers.clear()
    http.close()
    globex.close()


def test_ours_takes_its_place_where_that_is_said(sandbox: Sandbox, spare: Recorder, tmp_path: Path) -> None:
    new_master(tmp_path / "byok.master")
    with Gateway(
        tmp_path,
        sandbox,
        provider='retries = 0\napi_key_env = "OUR_KEY"',
        more=MORE.format(spare=spare.base_url) + '[gateway.byok]\nkey_file = "byok.master"\n'
        "ours_instead = true\n",
        env={"OUR_KEY": OURS},
    ) as gateway:
        http = gateway.http(gateway.key())
        with gateway.meter() as meter:
            ProviderKeys(meter.ledger, of_file(tmp_path / "byok.master")).set("acme", "sandbox", THEIRS)
        sandbox.bill.lines.clear()
        assert http.post("/chat/completions", json=ASK).status_code == 200
        sandbox.strangers.add(THEIR_ACCOUNT)
        assert http.post("/chat/completions", json=ASK).status_code == 200
        sandbox.strangers.clear()
        assert spare.received[-1].headers["authorization"] == f"Bearer {OURS}"
        (tmp_path / "byok.master").write_text("44" * 32)
        with gateway.meter() as meter:
            KeyStore(meter.ledger).create(tenant="t", project="p")  # whatever changes
        assert http.post("/chat/completions", json=ASK).status_code == 200
        assert [line.account for line in sandbox.bill.lines] == [THEIR_ACCOUNT, OUR_ACCOUNT]
        halves = http.get("/billing/usage").json()
        assert [halves[half]["requests"] for half in ("byok", "platform")] == [1, 2]
        http.close()
        said = gateway.stop()
    assert "cannot be used" in said
    assert THEIRS not in said


def test_the_master_key_is_changed_while_it_runs(gateway: Gateway, own: ProviderKeys) -> None:
    http = gateway.http(gateway.key())
    path = gateway.folder / "byok.master"
    assert everywhere(http) == {200}
    assert "--rotate" in behest(gateway, "new-master", "byok.master", ok=False)
    behest(gateway, "new-master", "byok.master", "--rotate")
    assert everywhere(http) == {200}
    assert "2 keys" in behest(gateway, "reseal")
    assert "0 keys" in behest(gateway, "reseal")
    path.write_text(path.read_text().splitlines()[0] + "\n")
    assert everywhere(http) == {200}
    listed = json.loads(behest(gateway, "list", "--json"))
    assert {key["unusable"] for key in listed} == {None}
    assert "sealed" not in listed[0]
    http.close()


def test_budgets_hold_whoever_pays_and_can_tell_who_does(
    gateway: Gateway, sandbox: Sandbox, own: ProviderKeys
) -> None:
    with gateway.meter() as meter:
        meter.set_limit("platform", "$0.0000001", tenant="budgeted")
        meter.set_limit("calls", "3 calls", user="u", tenant="budgeted")
    http = gateway.http(gateway.key(tenant="budgeted"), **{"X-End-User-Id": "u"})
    assert http.post("/chat/completions", json=ASK).status_code == 402
    own.set("budgeted", "sandbox", THEIRS)
    sandbox.bill.lines.clear()
    got = [http.post("/chat/completions", json=ASK).status_code for _ in range(5)]
    assert got == [200, 200, 200, 402, 402]
    assert {line.account for line in sandbox.bill.lines} == {THEIR_ACCOUNT}
    assert len(sandbox.bill.lines) == 3
    http.close()


def test_over_http_by_who_may(gateway: Gateway, sandbox: Sandbox) -> None:
    with gateway.meter() as meter:
        keys = KeyStore(meter.ledger)
        admin, acmes = (
            httpx.Client(base_url=f"{gateway.url}/admin/v1", headers={"Authorization": f"Bearer {text}"})
            for _key, text in (keys.create_admin(), keys.create_admin(tenant="acme"))
        )
    asked = {"tenant": "acme", "provider": "sandbox", "key": THEIRS}
    made = acmes.post("/byok", json=asked)
    assert made.status_code == 201
    assert made.json()["hint"] == "0001"
    assert acmes.post("/byok", json={**asked, "tenant": "globex"}).status_code == 403
    theirs = admin.post("/byok", json={**asked, "tenant": "globex"}).json()
    assert {key["tenant"] for key in admin.get("/byok").json()["data"]} == {"acme", "globex"}
    assert [key["tenant"] for key in acmes.get("/byok").json()["data"]] == ["acme"]
    assert acmes.delete(f"/byok/{theirs['id']}").status_code == 404
    for wrong in ({"provider": "openai"}, {"key": "two words"}, {"key": ""}, {"key": "a\nb"}, {"key": "ü"}):
        refused = admin.post("/byok", json={**asked, **wrong})
        assert refused.status_code == 400, wrong
        assert "two words" not in refused.text
    sandbox.bill.lines.clear()
    http = gateway.http(gateway.key(tenant="globex"))
    assert everywhere(http) == {200}
    assert {line.account for line in sandbox.bill.lines} == {THEIR_ACCOUNT}
    for key in admin.get("/byok").json()["data"]:
        assert admin.delete(f"/byok/{key['id']}").status_code == 200
    assert admin.get("/byok").json()["data"] == []
    for one in (admin, acmes, http):
        one.close()


def test_the_command_line_says_what_is_wrong(gateway: Gateway, tmp_path: Path) -> None:
    asked = ("--tenant", "acme", "--provider")
    assert "did you mean" in behest(gateway, "set", *asked, "sandbx", given=THEIRS, ok=False)
    assert "no blanks" in behest(gateway, "set", *asked, "sandbox", given="two words", ok=False)
    assert "no key of its own" in behest(gateway, "remove", *asked, "sandbox", ok=False)
    assert "say one" in behest(gateway, "set", *asked, "sandbox", "--file", "-", "--key", "x", ok=False)
    assert "new-master" in in_folder(tmp_path, "set", *asked, "sandbox", given=THEIRS, ok=False)
    assert list(tmp_path.iterdir()) == []


def test_a_key_is_written_down_nowhere(gateway: Gateway) -> None:
    with gateway.meter() as meter:
        meter.flush()
        kept = meter.ledger.reading().connect().exec_driver_sql("SELECT * FROM audit").fetchall()
    assert any("provider key set" in map(str, row) for row in kept)
    assert any("it was asked for" in str(row) for row in kept)
    for path in gateway.folder.iterdir():
        found = path.read_bytes()
        assert THEIRS.encode() not in found, path
        assert OURS.encode() not in found, path
