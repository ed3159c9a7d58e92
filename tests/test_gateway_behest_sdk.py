"""Behest's own SDK for Python, as it is on PyPI, unchanged but for the address and the key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from gateway_support import Gateway
from support import HELLO, assert_sound, entries

from behest_integrations.gateway.keys import KeyStore, id_in
from behest_integrations.sandbox import Sandbox

behest = pytest.importorskip("behest", reason="behest-ai is not installed: what it shows is not shown here")

from behest import v1_5 as sdk  # noqa: E402

MODEL = "gemini-2.5-flash"
CHAT: dict[str, Any] = {"model": MODEL, "messages": HELLO}


@pytest.fixture(scope="module")
def pem() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def gateway(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    budgets = ["$1/day per user", "1 calls/day for project spent", "1 calls/minute for project rated"]
    tiers = '[gateway.tiers.team]\nnumber = 4\nbudgets = ["2 calls per user"]\n'
    with Gateway(tmp_path_factory.mktemp("sdk"), sandbox, budgets=budgets, more=tiers) as gateway:
        yield gateway


def client(gateway: Gateway, key: str | None = None, **options: Any) -> Any:
    return behest.Behest(key=key or gateway.key(), base_url=gateway.url, **options)


@pytest.fixture
def signing(gateway: Gateway, pem: str) -> str:
    """The id of a key that a tenant signs with."""
    with gateway.meter() as meter:
        keys = KeyStore(meter.ledger)
        return keys.add_signing(pem.encode(), tenant="acme").kid


# ── with a key ─────────────────────────────────────────────────────────────────────────


def test_a_fresh_gateway_answers_the_first_example(tmp_path: Path) -> None:
    """Nothing is configured; `bh_live_` as its README has it, and the model of every example."""
    with Gateway(tmp_path, None) as gateway:
        key = gateway.key(prefix="bh_live_")
        assert key.startswith("bh_live_")
        one = behest.BehestClient(api_key=key, base_url=gateway.base_url, end_user_id="ada")
        answer = one.chat.completions.create(model=MODEL, messages=HELLO)
        assert answer.choices[0].message.content
        stream = one.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert client(gateway).chat.completions.create(**CHAT)["choices"][0]["message"]["content"]
        assert one.models.retrieve(MODEL).id == MODEL
        with gateway.meter() as meter:
            assert {e.user_id for e in entries(meter)} == {"ada", "default"}
            assert all(e.status == "settled" and e.cost for e in entries(meter))


def test_it_mints_chats_and_streams(gateway: Gateway, sandbox: Sandbox) -> None:
    one = client(gateway)
    minted = one.auth.mint(user_id="u-mint", session_id="s-mint", ttl=600)
    assert (minted.session_id, minted.ttl) == ("s-mint", 600)
    answer = one.chat.completions.create(**CHAT, token=minted.token, session_id="s-mint")
    chunks = list(one.chat.completions.create(**CHAT, stream=True, user_id="u-mint", session_id="s-mint"))
    assert (
        "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
        == (answer["choices"][0]["message"]["content"])
    )
    with gateway.meter() as meter:
        mine = [e for e in entries(meter) if e.session_id == "s-mint"]
    assert [(e.user_id, e.tenant, e.project) for e in mine] == [("u-mint", "acme", "support")] * 2
    billed = sum((line.cost for line in sandbox.bill.lines if line.model == MODEL), Decimal(0))
    assert billed > 0
    assert sum(e.cost or 0 for e in mine) == sum(int(line.cost * 10**9) for line in sandbox.bill.lines[-2:])


def test_the_old_name_of_mint(gateway: Gateway) -> None:
    with pytest.warns(DeprecationWarning, match="mint_token"):
        minted = client(gateway).mint_token(userId="u", sessionId="s")
    assert minted["access_token"] == minted["token"]
    assert (minted["session_id"], minted["expires_in"]) == ("s", 3600)


def test_what_a_mint_answers(gateway: Gateway) -> None:
    said = {"user_id": "u", "role": "user", "ttl": 60, "session_id": "s", "tier": 2}
    minted = gateway.http(gateway.key()).post("/auth/mint", json=said).json()
    assert minted["access_token"] == minted["jwt"] == minted["token"]
    rest = {name: minted[name] for name in ("token_type", "project_id", "session_id", "ttl", "expires_in")}
    assert rest == {
        "token_type": "Bearer", "project_id": "support", "session_id": "s", "ttl": 60, "expires_in": 60,
    }  # fmt: skip
    assert behest.decode_token(minted["token"])["tier"] == 2


@pytest.mark.parametrize(("number", "name"), [(1, "free"), (2, "pro"), (3, "max"), (4, "team")])
def test_a_tier_has_a_number(gateway: Gateway, number: int, name: str) -> None:
    token = client(gateway, tier=number).auth.mint(user_id=f"u-{number}").token
    answered = gateway.http(token).post("/chat/completions", json=CHAT)
    assert answered.headers["x-tier"] == name
    assert gateway.http(token).get("/usage").headers["x-tier"] == name
    with gateway.meter() as meter:
        (entry,) = [e for e in entries(meter) if e.user_id == f"u-{number}"]
    assert entry.tags["tier"] == name


def test_a_tier_that_there_is_not(gateway: Gateway) -> None:
    with pytest.raises(sdk.BehestBadRequestError, match="tier 9 is not known"):
        client(gateway, tier=9).auth.mint(user_id="u")


def test_usage_is_told_to_who_may_ask(gateway: Gateway) -> None:
    one = client(gateway)
    one.chat.completions.create(**CHAT, user_id="u-usage")
    own = one.auth.mint(user_id="u-usage").token
    assert one.usage.get(user_id="u-usage", token=own)["total"]["requests"] == 1
    of_all = one.auth.mint(user_id="ops", role="admin").token
    assert one.usage.get(user_id="u-usage", token=of_all)["total"]["requests"] == 1
    with pytest.raises(sdk.BehestAuthError, match="role 'admin'") as refused:
        one.usage.get(user_id="u-usage", token=one.auth.mint(user_id="u-other").token)
    assert (refused.value.status, refused.value.code) == (403, "forbidden")


def test_errors_are_typed(gateway: Gateway, sandbox: Sandbox) -> None:
    with pytest.raises(sdk.BehestAuthError) as unknown:
        client(gateway, "behest_sk_live_nobody").chat.completions.create(**CHAT)
    assert (unknown.value.status, unknown.value.code) == (401, "invalid_token")
    assert unknown.value.trace_id
    spent, rated = (
        client(gateway, gateway.key(project="spent")),
        client(gateway, gateway.key(project="rated")),
    )
    with pytest.raises(sdk.BehestQuotaError) as over:
        [spent.chat.completions.create(**CHAT) for _ in range(2)]
    assert (over.value.status, over.value.code) == (402, "quota_exceeded")
    details = over.value.raw["error"]["details"]
    assert (details["limit"], details["usage"]) == (1, 1)
    with pytest.raises(sdk.BehestRateLimitError) as fast:
        [list(rated.chat.completions.create(**CHAT, stream=True)) for _ in range(3)]
    assert 1 <= fast.value.retry_after <= 60
    with pytest.raises(sdk.BehestBadRequestError) as wrong:
        client(gateway).chat.completions.create(model=MODEL, messages="hello")
    assert wrong.value.code == "validation_error"
    sandbox.fault("status", status=500)
    with pytest.raises(sdk.BehestServerError) as failed:
        client(gateway).chat.completions.create(**CHAT)
    assert (failed.value.status, failed.value.code) == (502, "server_error")


def test_a_key_that_is_revoked_ends_at_once(gateway: Gateway) -> None:
    key = gateway.key()
    one = client(gateway, key)
    token = one.auth.mint(user_id="u").token
    one.chat.completions.create(**CHAT, token=token)
    with gateway.meter() as meter:
        KeyStore(meter.ledger).revoke(str(id_in(key)))
    for call in (
        lambda: one.auth.mint(user_id="u"),
        lambda: one.chat.completions.create(**CHAT, token=token),
    ):
        with pytest.raises(sdk.BehestAuthError):
            call()


# ── that signs for itself ──────────────────────────────────────────────────────────────


def test_sign_mode(gateway: Gateway, pem: str, signing: str) -> None:
    one = behest.Behest(
        key=f"behest_pk_{pem}",
        kid=signing,
        tenant_id="acme",
        project_id="support",
        base_url=gateway.url,
        tier=1,
    )
    assert one.mode == "sign"
    who = {"user_id": "u-sign", "session_id": "s-sign"}
    answer = one.chat.completions.create(**CHAT, **who)
    assert answer["choices"]
    assert list(one.chat.completions.create(**CHAT, **who, stream=True))
    assert one.usage.get(token=one.auth.mint(user_id="u-sign").token)["total"]["requests"] == 2
    with gateway.meter() as meter:
        mine = [e for e in entries(meter) if e.session_id == "s-sign"]
    assert {(e.user_id, e.tenant, e.project, e.tags["tier"]) for e in mine} == {
        ("u-sign", "acme", "support", "free")
    }


def test_the_client_that_signs(gateway: Gateway, pem: str, signing: str) -> None:
    one = behest.BehestSigningClient(
        signing_key_pem=pem, key_id=signing, tenant_id="acme", project_id="support",
        base_url=gateway.base_url, default_user_id="u-openai",
    )  # fmt: skip
    said = {"X-Session-Id": "s-openai"}
    assert one.chat.completions.create(**CHAT, extra_headers=said).choices
    stream = one.chat.completions.create(**CHAT, stream=True, extra_headers=said)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    with gateway.meter() as meter:
        mine = [e for e in entries(meter) if e.session_id == "s-openai"]
    assert [(e.user_id, e.tenant) for e in mine] == [("u-openai", "acme")] * 2


def test_a_tenant_signs_for_itself_alone_and_as_long_as_its_key_is_believed(
    gateway: Gateway, sandbox: Sandbox, pem: str, signing: str
) -> None:
    def chat(**said: Any) -> int:
        options = {"signing_key_pem": pem, "key_id": signing, "tenant_id": "acme", "project_id": "support"}
        one = behest.BehestSigningClient(**{**options, **said}, base_url=gateway.base_url, max_retries=0)
        try:
            one.chat.completions.create(**CHAT)
        except openai.APIStatusError as error:
            return error.status_code
        return 200

    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    theirs = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    assert chat() == 200
    before = sandbox.requests
    assert chat(tenant_id="globex") == 401
    assert chat(signing_key_pem=theirs) == 401
    assert chat(key_id="sk_nobody") == 401
    with gateway.meter() as meter:
        keys = KeyStore(meter.ledger)
        bound = keys.add_signing(pem.encode(), tenant="acme", project="sales").kid
        assert chat(key_id=bound) == 401
        assert chat(key_id=bound, project_id="sales") == 200
        keys.revoke_signing(signing)
    assert chat() == 401
    assert sandbox.requests == before + 1


def test_what_the_gateway_signs_with_can_be_looked_up(tmp_path: Path, sandbox: Sandbox, pem: str) -> None:
    """RS256 here, and the key before it too: tokens of either are believed while it is being changed."""
    import jwt

    older = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (tmp_path / "old.pem").write_bytes(older.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "new.pem").write_text(pem)
    tokens = (
        f'[gateway.tokens]\nalgorithm = "RS256"\nprivate_key_file = "{tmp_path}/new.pem"\nkid = "new"\n'
        f'public_key_files = {{ old = "{tmp_path}/old.pem" }}\n'
    )
    with Gateway(tmp_path, sandbox, more=tokens) as gateway:
        token = client(gateway).auth.mint(user_id="u").token
        published = httpx.get(f"{gateway.url}/.well-known/jwks.json").json()
        assert {key["kid"] for key in published["keys"]} == {"old", "new"}
        fields = {"kty", "kid", "use", "alg", "n", "e"}
        assert all(set(key) == fields for key in published["keys"]), "no private half"
        key = jwt.PyJWKClient(f"{gateway.url}/.well-known/jwks.json").get_signing_key_from_jwt(token)
        claims = jwt.decode(token, key.key, algorithms=["RS256"], audience="behest")
        assert claims["uid"] == "u"
        by_old = jwt.encode(claims, (tmp_path / "old.pem").read_text(), "RS256", headers={"kid": "old"})
        assert gateway.http(by_old).get("/models").status_code == 200


def test_the_page_of_tokens_is_as_it_says(gateway: Gateway, pem: str, signing: str, tmp_path: Path) -> None:
    """Its Python, verbatim but for the address and the keys; and twice, for what is left behind."""
    said = (Path(__file__).parent.parent / "quickstarts" / "gateway" / "TOKENS.md").read_text()
    code = re.findall(r"```python\n(.*?)```", said, re.DOTALL)
    assert len(code) == 3
    (tmp_path / "key.pem").write_text(pem)
    first, signs, asks = (
        block.replace("http://127.0.0.1:8080", gateway.url)
        .replace("behest_sk_live_...", gateway.key())
        .replace("sk_...", signing)
        .replace('open("key.pem")', f'open("{tmp_path}/key.pem")')
        for block in code
    )
    for _ in range(2):
        names: dict[str, Any] = {}
        exec(first, names)
        exec(asks, names)
        exec(signs, names)
        answered = gateway.http(names["token"]).post("/chat/completions", json=CHAT)
        assert (answered.status_code, answered.headers["x-tier"]) == (200, "free")


# ── threads ────────────────────────────────────────────────────────────────────────────


def test_threads_are_sessions_without_what_was_said(gateway: Gateway) -> None:
    one = client(gateway, gateway.key(project="threads"), default_user_id="u-threads")
    for session in ("s-1", "s-1", "s-2"):
        one.chat.completions.create(**CHAT, session_id=session)
    other = client(gateway, one.config.key, default_user_id="u-other")
    other.chat.completions.create(**CHAT, session_id="s-other")

    listed = one.threads.list()
    assert [(t["id"], t["requests"], t["user_id"]) for t in listed] == [
        ("s-2", 1, "u-threads"), ("s-1", 2, "u-threads"),
    ]  # fmt: skip
    found = one.threads.get("s-1")
    assert found == listed[1]
    assert found["created_at"] <= found["last_active_at"]
    assert found["cost_usd"] > 0 < found["input_tokens"]
    (message,) = one.threads.messages("s-1")
    assert "not kept" in message["content"]
    for call in (other.threads.get, other.threads.messages, other.threads.delete):
        with pytest.raises(sdk.BehestError) as missing:
            call("s-1")
        assert missing.value.status == 404

    http = gateway.http(one.config.key)
    assert {t["id"] for t in http.get("/threads").json()} == {"s-1", "s-2", "s-other"}
    assert [t["id"] for t in http.get("/threads", params={"user_id": "u-other"}).json()] == ["s-other"]
    assert len(http.get("/threads", params={"limit": 1}).json()) == 1
    assert http.get("/threads", params={"limit": 0}).status_code == 400


def test_a_thread_that_is_deleted_is_forgotten_and_its_sums_are_kept(gateway: Gateway) -> None:
    key = gateway.key(project="erasure")
    one = client(gateway, key, default_user_id="u-erased")
    for session in ("s-erased", "s-kept"):
        one.chat.completions.create(**CHAT, session_id=session)
    http = gateway.http(key)
    before = http.get("/usage").json()["total"]
    one.threads.delete("s-erased")
    assert [t["id"] for t in one.threads.list()] == ["s-kept"]
    assert http.get("/usage").json()["total"] == before
    with pytest.raises(sdk.BehestError) as missing:
        one.threads.delete("s-erased")
    assert missing.value.status == 404
    with gateway.meter() as meter:
        mine = [e for e in entries(meter) if e.project == "erasure"]
        assert [(e.session_id, e.user_id) for e in mine][1] == ("s-kept", "u-erased")
        assert mine[0].session_id == mine[0].user_id
        assert mine[0].session_id is not None
        assert mine[0].session_id.startswith("forgotten-")
        assert_sound(meter)
        with meter.ledger.reading().connect() as connection:
            kept = connection.exec_driver_sql("SELECT * FROM audit").fetchall()
        assert any("session forgotten" in str(row) for row in kept)
        assert not any("s-erased" in str(row) for row in kept)


def test_a_forgotten_session_has_no_fresh_budget(tmp_path: Path, sandbox: Sandbox) -> None:
    with Gateway(tmp_path, sandbox, budgets=["1 calls per session"]) as gateway:
        minted = client(gateway).auth.mint(user_id="u", session_id="s")
        http = gateway.http(minted.token)
        assert http.post("/chat/completions", json=CHAT).status_code == 200
        assert http.delete("/threads/s").status_code == 204
        assert http.post("/chat/completions", json=CHAT).status_code == 402
