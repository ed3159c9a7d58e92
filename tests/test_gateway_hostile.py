"""What a gateway is sent by those who mean it ill: refused or bounded, and it goes on serving."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from gateway_support import SECRET, Gateway, chat
from support import assert_sound

from behest_integrations.sandbox import Sandbox

BUDGETS = ["$0.50 per session", "$1000/day per tenant"]
LIMITS = """
[gateway.limits]
max_body = 1_000_000
max_values = 20_000
max_buffered = 8_000_000
max_header = 8192
max_in_flight = 20
max_connections = 60
header_timeout = 1.0
body_timeout = 1.5
write_timeout = 1.0
"""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as provider:
        yield provider


@pytest.fixture(scope="module")
def gateway(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("hostile"), sandbox, budgets=BUDGETS, more=LIMITS) as running:
        yield running
        # Whatever it was sent, nobody's call was lost and no hold was left.
        assert (
            running.http(running.key()).post("/chat/completions", json=chat(max_tokens=5)).status_code == 200
        )
        said = running.stop()
        assert "Traceback" not in said, said
        with running.meter() as meter:
            assert_sound(meter)


@pytest.fixture(scope="module")
def key(gateway: Gateway) -> str:
    return gateway.key()


def memory(gateway: Gateway) -> int:
    """Bytes that the gateway's process has in memory."""
    assert gateway.process is not None
    return int(psutil.Process(gateway.process.pid).memory_info().rss)


def post(gateway: Gateway, key: str, content: bytes, **headers: str) -> httpx.Response:
    return gateway.http(key).post(
        "/chat/completions", content=content, headers={"Content-Type": "application/json", **headers}
    )


# ── bodies ─────────────────────────────────────────────────────────────────────────────

HUGE = {
    "too long": b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "'
    + b"a" * 10_000_000
    + b'"}]}',
    "deep lists": b'{"model": "gpt-4o", "messages": ' + b"[" * 19_000 + b"]" * 19_000 + b"}",
    "deep objects": b'{"a":' * 19_000 + b"1" + b"}" * 19_000,
    "many values": b'{"model": "gpt-4o", "messages": [' + b"{}," * 300_000 + b"{}]}",
    "many numbers": b'{"model": "gpt-4o", "messages": [' + b"0," * 400_000 + b"0]}",
    "a long number": b'{"model": "gpt-4o", "max_tokens": ' + b"9" * 500_000 + b"}",
    "not JSON": b'{"model": ',
    "not an object": b"[]",
    "not UTF-8": b'{"model": "gpt-4o\xff"}',
    "half a character": b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "no number": b'{"model": "gpt-4o", "temperature": NaN, "messages": [{"role": "user", "content": "a"}]}',
    "nothing": b"",
}


@pytest.mark.parametrize("name", HUGE)
def test_a_body_that_is_too_much_is_refused(gateway: Gateway, sandbox: Sandbox, key: str, name: str) -> None:
    before = sandbox.requests
    answered = post(gateway, key, HUGE[name])
    assert answered.status_code in (400, 413)
    assert answered.json()["error"]["code"] in ("validation_error", "payload_too_large")
    assert sandbox.requests == before


def test_memory_stays_flat_under_large_bodies(gateway: Gateway, key: str) -> None:
    for _ in range(4):
        for body in HUGE.values():
            post(gateway, key, body)
    before = memory(gateway)
    for _ in range(12):
        for body in HUGE.values():
            post(gateway, key, body)
    assert memory(gateway) - before < 30_000_000


def test_a_body_whose_length_is_not_told_is_bounded_too(gateway: Gateway, key: str) -> None:
    def forever() -> Iterator[bytes]:
        for _ in range(2000):
            yield b"a" * 10_000

    headers = {"Content-Type": "application/json"}
    try:
        answered = gateway.http(key).post("/chat/completions", content=forever(), headers=headers)
        assert answered.status_code == 413
    except httpx.WriteError:
        pass  # it was hung up on before it had sent it all


def test_a_packed_body_is_not_unpacked(gateway: Gateway, key: str) -> None:
    assert post(gateway, key, b"\x1f\x8b", **{"Content-Encoding": "gzip"}).status_code == 415


def test_a_stranger_is_refused_before_the_body_is_read(gateway: Gateway) -> None:
    answered = raw(
        gateway, b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n{"
    )
    assert answered.startswith(b"HTTP/1.1 401")


# ── connections ────────────────────────────────────────────────────────────────────────


def connect(gateway: Gateway) -> socket.socket:
    return socket.create_connection(("127.0.0.1", gateway.port), timeout=10)


def raw(gateway: Gateway, *parts: bytes, pause: float = 0.0) -> bytes:
    """What the gateway says to these bytes, until it hangs up or has said something."""
    with connect(gateway) as there:
        try:
            for part in parts:
                there.sendall(part)
                time.sleep(pause)
            return there.recv(65536)
        except (ConnectionError, TimeoutError):
            return b""


def test_a_head_that_is_too_large(gateway: Gateway) -> None:
    lines = b"".join(b"X-%d: %s\r\n" % (n, b"a" * 200) for n in range(100))
    assert raw(gateway, b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n").startswith(b"HTTP/1.1 431")
    one = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 100_000
    assert b" 431 " in raw(gateway, one) or b" 400 " in raw(gateway, one)
    endless = [b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: ", *[b"a" * 3000] * 10]
    said = raw(gateway, *endless, pause=0.01)
    assert said == b"" or said.startswith(b"HTTP/1.1 431")
    assert raw(gateway, b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n").startswith(
        b"HTTP/1.1 431"
    )


def test_what_is_not_http(gateway: Gateway) -> None:
    said = raw(gateway, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    assert said.startswith(b"HTTP/1.1 400")
    assert b'"validation_error"' in said
    assert b"x-trace-id" in said


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: -1\r\n",
        b"X-Session-Id : s\r\n",
        b"X-Session-Id: a\x00b\r\n",
    ],
)
def test_a_head_that_two_readers_could_take_for_two_things(gateway: Gateway, head: bytes) -> None:
    request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + head + b"\r\nhello"
    assert raw(gateway, request).startswith((b"HTTP/1.1 400", b"HTTP/1.1 401"))


def test_a_client_that_sends_nothing_is_hung_up_on(gateway: Gateway) -> None:
    with connect(gateway) as silent:
        started = time.monotonic()
        assert silent.recv(10) == b""
        assert time.monotonic() - started < 5
    with connect(gateway) as slow:
        try:
            for piece in b"GET /healthz HTTP/1.1\r\nX-Slow: ":
                slow.sendall(bytes([piece]))
                time.sleep(0.1)
            ended = slow.recv(10) == b""
        except ConnectionError:
            ended = True
        assert ended


def test_a_body_that_trickles_in_is_given_up(gateway: Gateway, key: str) -> None:
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    )
    assert raw(gateway, head.encode()).startswith(b"HTTP/1.1 408")


def test_a_client_that_does_not_read_is_left(gateway: Gateway, sandbox: Sandbox, key: str) -> None:
    """Its stream is ended, and what it had held is booked."""
    sandbox.output_tokens, sandbox.chunk_tokens = 100_000, 1
    body = json.dumps(chat(model="gpt-4o-mini", stream=True, max_tokens=100_000)).encode()
    try:
        with connect(gateway) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.sendall(
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
                "X-Session-Id: deaf\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            deadline = time.monotonic() + 15
            ended: list[Any] = []
            while not ended and time.monotonic() < deadline:
                time.sleep(0.2)
                with gateway.meter() as meter:
                    ended = [e for e in meter.ledger.snapshot()[2] if e.session_id == "deaf"]
        assert [e.status for e in ended] == ["assumed"]
    finally:
        sandbox.output_tokens, sandbox.chunk_tokens = 64, 8


def test_more_connections_than_there_is_room_for(gateway: Gateway, key: str) -> None:
    held = []
    try:
        for _ in range(200):
            held.append(connect(gateway))
        time.sleep(1.5)  # those that say nothing are hung up on
        assert gateway.http(key).get("/models").status_code == 200
    finally:
        for connection in held:
            connection.close()


def test_more_calls_than_there_is_room_for(gateway: Gateway, sandbox: Sandbox, key: str) -> None:
    import asyncio

    async def all_at_once() -> list[int]:
        limits = httpx.Limits(max_connections=40)
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=gateway.base_url, headers=headers, limits=limits) as client:
            calls = (client.post("/chat/completions", json=chat(max_tokens=5), timeout=30) for _ in range(40))
            return [answer.status_code for answer in await asyncio.gather(*calls)]

    sandbox.latency = 1.5
    try:
        statuses = asyncio.run(all_at_once())
    finally:
        sandbox.latency = 0.0
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 20


# ── ids ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "value",
    [b"a\tb", b"\x7f", b"x" * 257, b"\xff\xfe", "\u2028".encode(), "\u0085".encode()],
)
def test_an_id_that_cannot_be_one(gateway: Gateway, sandbox: Sandbox, key: str, value: bytes) -> None:
    before = sandbox.requests
    for header in (b"X-Session-Id", b"X-End-User-Id"):
        said = raw(
            gateway,
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + key.encode()
            + b"\r\nContent-Type: application/json\r\nContent-Length: 2\r\n" + header + b": " + value
            + b"\r\n\r\n{}",
        )  # fmt: skip
        assert said.startswith(b"HTTP/1.1 400")
    assert sandbox.requests == before


def test_an_id_given_twice(gateway: Gateway, key: str) -> None:
    headers = [
        (b"X-Session-Id", b"mine"),
        (b"X-Session-Id", b"another's"),
        (b"Authorization", f"Bearer {key}".encode()),
    ]
    answered = httpx.post(f"{gateway.base_url}/chat/completions", json=chat(), headers=headers)
    assert answered.status_code == 400
    twice = [(b"Authorization", f"Bearer {key}".encode()), (b"Authorization", b"Bearer other")]
    assert httpx.post(f"{gateway.base_url}/chat/completions", json=chat(), headers=twice).status_code == 401


@pytest.mark.parametrize(
    "value", ["'; DROP TABLE entries; --", "../../etc", "%0d%0aX-Evil: 1", "{{7*7}}", "=1+1", "Zoë 🐘"]
)
def test_an_id_that_is_only_odd_is_carried_as_it_is(gateway: Gateway, key: str, value: str) -> None:
    answered = post(
        gateway,
        key,
        json.dumps(chat(max_tokens=5)).encode(),
        **{"X-Session-Id": value.encode()},  # type: ignore[arg-type]
    )
    assert answered.status_code == 200
    assert "x-evil" not in answered.headers
    with gateway.meter() as meter:
        assert value in {e.session_id for e in meter.ledger.snapshot()[2]}


def test_many_sessions_do_not_fill_the_memory(gateway: Gateway, sandbox: Sandbox) -> None:
    """A session for each call; the soak run makes 100,000 of them (tests/benchmarks)."""
    import asyncio

    import aiohttp

    key = gateway.key(tenant="many")

    async def call(count: int) -> None:
        async def some() -> None:
            for _ in range(count // 10):
                headers = {"X-Session-Id": secrets.token_hex(16)}
                async with session.post(
                    f"{gateway.base_url}/chat/completions", json=chat(max_tokens=1), headers=headers
                ) as answer:
                    assert answer.status == 200
                    await answer.read()

        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session:
            await asyncio.gather(*(some() for _ in range(10)))

    asyncio.run(call(1000))
    before = memory(gateway)
    asyncio.run(call(2000))
    assert memory(gateway) - before < 10_000_000


# ── tokens ─────────────────────────────────────────────────────────────────────────────

NOW = int(time.time())
CLAIMS: dict[str, Any] = {
    "tid": "acme", "pid": "support", "uid": "u-7", "sid": "conv-42", "role": "user", "scp": ["inference"],
    "iss": "behest", "aud": "behest", "iat": NOW, "nbf": NOW, "exp": NOW + 3600, "jti": "1",
}  # fmt: skip


def signed(claims: dict[str, Any], secret: Any = SECRET, algorithm: str | None = "HS256", **head: Any) -> str:
    return jwt.encode(claims, secret, algorithm=algorithm, headers=head or None)


def without(*names: str, **more: Any) -> dict[str, Any]:
    return {**{k: v for k, v in CLAIMS.items() if k not in names}, **more}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def by_hand(head: dict[str, Any], claims: dict[str, Any], secret: bytes) -> str:
    text = f"{b64(json.dumps(head).encode())}.{b64(json.dumps(claims).encode())}"
    return f"{text}.{b64(hmac.new(secret, text.encode(), hashlib.sha256).digest())}"


FORGED = {
    "no algorithm": lambda: signed(CLAIMS, None, "none"),
    "no signature": lambda: signed(CLAIMS).rsplit(".", 1)[0] + ".",
    "another secret": lambda: signed(CLAIMS, "another secret of thirty-two bytes"),
    "other claims under the signature": lambda: ".".join(
        (signed(CLAIMS).split(".")[0], b64(json.dumps(without("uid", uid="boss")).encode()),
         signed(CLAIMS).split(".")[2])
    ),
    "a stronger algorithm of the same key": lambda: signed(CLAIMS, algorithm="HS512"),
    "expired": lambda: signed(without("exp", exp=NOW - 60)),
    "never expires": lambda: signed(without("exp")),
    "not yet": lambda: signed(without("nbf", nbf=NOW + 600)),
    "of tomorrow": lambda: signed(without("iat", iat=NOW + 86400)),
    "for another audience": lambda: signed(without("aud", aud="elsewhere")),
    "for no audience": lambda: signed(without("aud")),
    "of another issuer": lambda: signed(without("iss", iss="elsewhere")),
    "for no tenant": lambda: signed(without("tid")),
    "for no user": lambda: signed(without("uid")),
    "for an empty user": lambda: signed(without("uid", uid="")),
    "for a user that is a list": lambda: signed(without("uid", uid=["a", "b"])),
    "for a user with a line break": lambda: signed(without("uid", uid="a\nb")),
    "its expiry is a text": lambda: signed(without("exp", exp="tomorrow")),
    "its expiry is endless": lambda: by_hand(
        {"alg": "HS256", "typ": "JWT"}, without("exp", exp=1e400), SECRET.encode()
    ),
    "its scopes are a number": lambda: signed(without("scp", scp=7)),
    "of a key that there is not": lambda: signed(without(key="abcdefghijkm")),
    "a key in its head": lambda: signed(CLAIMS, "x" * 32, jwk={"kty": "oct", "k": b64(b"x" * 32)}),
    "a critical extension": lambda: signed(CLAIMS, crit=["exp2"], exp2=1),
    "long": lambda: signed(without("jti", jti="x" * 20_000)),
    "deep": lambda: f"{b64(b'{' + b'{' * 3000)}.{b64(b'[' * 3000)}.x",
    "dots": lambda: "..",
    "no base64": lambda: "a.b!.c",
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_a_token_that_is_not_to_be_believed(gateway: Gateway, sandbox: Sandbox, name: str) -> None:
    before = sandbox.requests
    answered = gateway.http(FORGED[name]()).post("/chat/completions", json=chat(max_tokens=5))
    assert answered.status_code in (401, 431), answered.text
    if answered.status_code == 401:
        assert answered.json()["error"]["code"] == "invalid_token"
        assert answered.headers["www-authenticate"] == "Bearer"
    assert sandbox.requests == before


def test_the_token_that_they_were_made_from_is_good(gateway: Gateway) -> None:
    assert gateway.http(signed(CLAIMS)).post("/chat/completions", json=chat(max_tokens=5)).status_code == 200
    assert gateway.http(signed(CLAIMS)).get("/usage").status_code == 403, "its scope is inference alone"
    unknown = signed(without(tier="platinum"))
    assert gateway.http(unknown).post("/chat/completions", json=chat()).status_code == 403


@pytest.mark.parametrize(
    "text",
    ["", "Bearer", "Basic dTpw", "Bearer sk-123", "Bearer behest_sk_live_",
     "Bearer behest_sk_live_abc",
     "Bearer behest_sk_live_abcdefghijkm_" + "x" * 43, "Bearer behest_sk_live_abcdefghijkm_' OR 1=1 --"],
)  # fmt: skip
def test_a_key_that_is_none(gateway: Gateway, text: str) -> None:
    answered = httpx.post(
        f"{gateway.base_url}/chat/completions", json=chat(), headers={"Authorization": text}
    )
    assert answered.status_code == 401


def test_a_key_with_another_secret(gateway: Gateway, key: str) -> None:
    wrong = key[:-4] + ("aaaa" if key[-4:] != "aaaa" else "bbbb")
    assert gateway.http(wrong).get("/models").status_code == 401
    assert gateway.http(key + "a").get("/models").status_code == 401


def test_rs256(tmp_path: Path) -> None:
    """Signed elsewhere with a private key; the gateway has the public one alone."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "public.pem").write_bytes(public)

    def pem(key: rsa.RSAPrivateKey) -> bytes:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    settings = (
        f'[gateway.tokens]\nalgorithm = "RS256"\npublic_key_files = {{ k1 = "{tmp_path}/public.pem" }}\n'
    )
    with Sandbox() as sandbox, Gateway(tmp_path, sandbox, more=settings) as gateway:

        def status(token: str) -> int:
            return gateway.http(token).post("/chat/completions", json=chat(max_tokens=5)).status_code

        assert status(signed(CLAIMS, pem(private), "RS256", kid="k1")) == 200
        assert status(signed(CLAIMS, pem(private), "RS256")) == 200, "there is only one key that it can be"
        assert status(signed(CLAIMS, pem(private), "RS256", kid="k2")) == 401
        assert status(signed(CLAIMS, pem(other), "RS256", kid="k1")) == 401
        # The public key is no secret: it must not be taken for one.
        assert status(by_hand({"alg": "HS256", "typ": "JWT", "kid": "k1"}, CLAIMS, public)) == 401
        minted = gateway.http(gateway.key()).post("/auth/mint", json={"user_id": "u"})
        assert minted.status_code == 400
        assert "signed elsewhere" in minted.json()["error"]["message"]
        assert sandbox.requests == 2


def test_rs256_minted_here(tmp_path: Path) -> None:
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (tmp_path / "key.pem").write_bytes(
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    settings = f'[gateway.tokens]\nalgorithm = "RS256"\nprivate_key_file = "{tmp_path}/key.pem"\nkid = "k9"\n'
    with Sandbox() as sandbox, Gateway(tmp_path, sandbox, more=settings) as gateway:
        token = gateway.http(gateway.key()).post("/auth/mint", json={"user_id": "u"}).json()["token"]
        assert jwt.get_unverified_header(token) == {"alg": "RS256", "kid": "k9", "typ": "JWT"}
        assert gateway.http(token).post("/chat/completions", json=chat()).status_code == 200
