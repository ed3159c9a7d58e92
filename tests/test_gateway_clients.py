"""Stock clients, as their users write them: OpenAI's for Python and JavaScript, and cURL."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from gateway_support import Gateway, chat
from openai import AsyncOpenAI, OpenAI
from refusal_table import Found, as_documented, name_of, numbers_of
from support import HELLO

from behest_integrations.sandbox import Sandbox

CLIENT = Path(__file__).parent / "clients" / "client.mjs"
NPM_SECONDS = 240


class There:
    def __init__(self, sandbox: Sandbox, gateway: Gateway) -> None:
        self.sandbox, self.gateway = sandbox, gateway
        self.key = gateway.key()
        self.spent, self.rated = gateway.key(project="spent"), gateway.key(project="rated")
        while time.time() % 60 > 40:  # a minute's rate is used up in that minute
            time.sleep(1)
        for key in (self.spent, self.rated):
            # With the client's own user too, for budgets that are counted by user.
            assert gateway.http(key).post("/chat/completions", json=chat(max_tokens=20)).status_code == 200

    def client(self, key: str | None = None, user: str = "u", **options: Any) -> OpenAI:
        headers = {"X-End-User-Id": user, "X-Session-Id": "python"}
        return OpenAI(
            base_url=self.gateway.base_url, api_key=key or self.key, default_headers=headers, **options
        )

    def refusals(self, code: str) -> float:
        said = httpx.get(f"{self.gateway.url}/metrics").text
        found = re.search(rf'behest_gateway_refusals_total{{code="{code}"}} (\S+)', said)
        return float(found[1]) if found else 0.0


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[There]:
    budgets = ["$1/day per user", "1 calls/day for project spent", "1 calls/minute for project rated"]
    folder = tmp_path_factory.mktemp("clients")
    with Sandbox() as sandbox, Gateway(folder, sandbox, budgets=budgets) as gateway:
        yield There(sandbox, gateway)


# ── Python ─────────────────────────────────────────────────────────────────────────────


def test_the_python_client(there: There) -> None:
    client = there.client()
    answer = client.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=20)
    stream = client.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=20, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == answer.choices[0].message.content
    embedded = client.embeddings.create(model="text-embedding-3-small", input=["a", "b"])
    assert [len(d.embedding) for d in embedded.data] == [64, 64]
    response = client.responses.create(model="gpt-4o", input="hello", max_output_tokens=20)
    with client.responses.stream(model="gpt-4o", input="hello") as events:
        assert events.get_final_response().output_text.startswith(response.output_text)
    assert "gpt-4o" in [model.id for model in client.models.list()]
    raw = client.chat.completions.with_raw_response.create(model="gpt-4o", messages=HELLO, max_tokens=20)
    assert raw.headers["x-trace-id"] == raw.parse()._request_id
    assert raw.headers["x-budget"] == "$1/day per user"


def test_the_asynchronous_python_client(there: There) -> None:
    async def calls() -> list[int]:
        async with AsyncOpenAI(base_url=there.gateway.base_url, api_key=there.key) as client:

            async def one() -> int:
                stream = await client.chat.completions.create(
                    model="gpt-4o", messages=HELLO, max_tokens=20, stream=True,
                    stream_options={"include_usage": True},
                )  # fmt: skip
                last = [chunk async for chunk in stream][-1]
                assert last.usage is not None
                return last.usage.completion_tokens

            return list(await asyncio.gather(*(one() for _ in range(10))))

    assert asyncio.run(calls()) == [20] * 10


@pytest.mark.parametrize(
    ("key", "error", "status", "code"),
    [
        ("behest_sk_live_nobody", openai.AuthenticationError, 401, "invalid_token"),
        ("spent", openai.APIStatusError, 402, "quota_exceeded"),
    ],
)
def test_a_refusal_is_a_typed_error_and_is_not_repeated(
    there: There, key: str, error: type[openai.APIStatusError], status: int, code: str
) -> None:
    client, before, asked = (
        there.client(getattr(there, key, key)),
        there.refusals(code),
        there.sandbox.requests,
    )
    with pytest.raises(error) as caught:
        client.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=20)
    assert (caught.value.status_code, caught.value.code) == (status, code)
    again, reached = there.refusals(code) - before - 1, there.sandbox.requests - asked
    assert (again, reached) == (0, 0)
    if status == 402:
        said: Any = caught.value.body
        numbers = f'`error.body["details"]`: {numbers_of(said["details"])}'
        as_documented(
            "the gateway, OpenAI SDK",
            {"`create`": Found(f"{name_of(error)}, `status_code` 402", numbers, int(again), reached)},
        )


def test_a_rate_is_a_rate_limit_error_that_says_when(there: There) -> None:
    client, before = there.client(there.rated, max_retries=0), there.refusals("rate_limited")
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=20)
    assert caught.value.code == "rate_limited"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
    assert caught.value.response.headers["x-should-retry"] == "true"
    assert there.refusals("rate_limited") == before + 1


def test_a_busy_budget_is_waited_for_by_the_client_itself(tmp_path: Path) -> None:
    with (
        Sandbox(latency=0.7) as sandbox,
        Gateway(tmp_path, sandbox, budgets=["1 calls per session"], top="wait = 0") as gateway,
    ):
        client = OpenAI(base_url=gateway.base_url, api_key=gateway.key())
        sandbox.fault("status", status=400)

        def first() -> None:
            with pytest.raises(openai.BadRequestError):
                client.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=20)

        thread = threading.Thread(target=first)
        thread.start()
        while not sandbox.requests:
            time.sleep(0.01)
        assert client.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=20).usage
        thread.join()
        said = httpx.get(f"{gateway.url}/metrics").text
        assert 'behest_gateway_refusals_total{code="rate_limited"} 1.0' in said


def test_other_errors_are_typed(there: There) -> None:
    client = there.client()
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=[])
    assert caught.value.param == "messages"
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="gpt-4o", input="a", previous_response_id="resp_of_nobody")
    token = there.gateway.http(there.key).post("/auth/mint", json={"user_id": "x"}).json()["token"]
    with pytest.raises(openai.PermissionDeniedError):
        there.client(token, user="y").chat.completions.create(model="gpt-4o", messages=HELLO)


def test_a_provider_that_fails_is_not_asked_nine_times(there: There) -> None:
    """The gateway's retries are off here: the client's three attempts are all there are."""
    before = there.sandbox.requests
    there.sandbox.fault("status", status=503, times=3)
    with pytest.raises(openai.InternalServerError):
        there.client(max_retries=2).chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=20)
    assert there.sandbox.requests - before == 3


# ── cURL and JavaScript ────────────────────────────────────────────────────────────────


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name} on this machine: what it shows is not shown here")
    return found


def test_curl(there: There) -> None:
    def curl(*args: str) -> str:
        url = f"{there.gateway.base_url}/chat/completions"
        command = [tool("curl"), "-sS", "-H", "Content-Type: application/json", *args, url]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout

    def as_(key: str) -> tuple[str, ...]:
        return ("-H", f"Authorization: Bearer {key}", "-H", "X-End-User-Id: u-curl", "-H", "X-Session-Id: c")

    body = json.dumps(chat(max_tokens=20))
    assert json.loads(curl(*as_(there.key), "-d", body))["usage"]["completion_tokens"] == 20
    streamed = curl(*as_(there.key), "-N", "-d", json.dumps(chat(max_tokens=20, stream=True)))
    assert streamed.endswith("data: [DONE]\n\n")
    for key, status, code in (
        ("nobody", 401, "invalid_token"),
        (there.spent, 402, "quota_exceeded"),
        (there.rated, 429, "rate_limited"),
    ):
        said = curl(*as_(key), "-d", body, "-w", "\n%{http_code}")
        answered, told = said.rsplit("\n", 1)
        problem = json.loads(answered)["error"]
        assert (int(told), problem["code"]) == (status, code)
        if status == 402:
            numbers = f"`.error.details`: {numbers_of(problem['details'])}"
            as_documented("the gateway, cURL", {"`curl`": Found("status 402", numbers, 0, 0)})


def npm(folder: Path, *packages: str) -> None:
    """Install packages, or skip where the registry cannot be reached."""
    tool("node")
    try:
        done = subprocess.run(
            [tool("npm"), "install", "--no-audit", "--no-fund", "--no-package-lock", *packages],
            cwd=folder, capture_output=True, text=True, timeout=NPM_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not install within {NPM_SECONDS} s: what it shows is not shown here")
    if done.returncode:
        pytest.skip(f"npm could not install: what it shows is not shown here\n{done.stderr[-500:]}")


def test_the_javascript_client(there: There, tmp_path: Path) -> None:
    npm(tmp_path, "openai@6")
    shutil.copy(CLIENT, tmp_path)
    before = {code: there.refusals(code) for code in ("quota_exceeded", "invalid_token")}
    done = subprocess.run(
        [tool("node"), CLIENT.name, there.gateway.base_url, there.key, there.spent, there.rated],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["chat"] == 20
    assert said["streamed"] == said["text"]
    assert said["embedded"] == [64, 64]
    assert said["response"] > 0
    assert "gpt-4o" in said["models"]
    typed = {name: (said[name]["name"], said[name]["status"], said[name]["code"]) for name in
             ("unknown", "exhausted", "rated", "invalid")}  # fmt: skip
    assert typed == {
        "unknown": ("AuthenticationError", 401, "invalid_token"),
        "exhausted": ("APIError", 402, "quota_exceeded"),
        "rated": ("RateLimitError", 429, "rate_limited"),
        "invalid": ("BadRequestError", 400, "validation_error"),
    }
    for code, count in before.items():
        assert there.refusals(code) == count + 1, "a refusal was repeated"
