"""What no door has metered: it is seen, by every HTTP library, and warned of or refused; what is, is not."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import HELLO, assert_agrees, client, entries

from behest_integrations import ConfigError, Meter, Unmetered
from behest_integrations.engine.layers import offer
from behest_integrations.integrations.kit.instrument import instrumented
from behest_integrations.integrations.seen.libraries import LIBRARIES, watched
from behest_integrations.prices import model_host
from behest_integrations.sandbox import Sandbox
from behest_integrations.wire import RequestBound

CHAT = {"model": "gpt-4o", "messages": HELLO, "max_tokens": 5}
PATH = "/v1/chat/completions"


def by_httpx(url: str) -> None:
    import httpx

    httpx.post(url + PATH, json=CHAT)


def by_httpx_awaited(url: str) -> None:
    import httpx

    async def run() -> None:
        async with httpx.AsyncClient() as http:
            await http.post(url + PATH, json=CHAT)

    asyncio.run(run())


def by_httpx2(url: str) -> None:
    httpx2 = pytest.importorskip("httpx2")
    with httpx2.Client() as http, http.stream("POST", url + PATH, json={**CHAT, "stream": True}) as answer:
        answer.read()


def by_aiohttp(url: str) -> None:
    import aiohttp

    async def run() -> None:
        async with aiohttp.ClientSession(url) as session, session.post(PATH, json=CHAT) as answer:
            await answer.read()

    asyncio.run(run())


def by_requests(url: str) -> None:
    requests = pytest.importorskip("requests")
    requests.post(url + PATH, json=CHAT, timeout=10)


def by_urllib3(url: str) -> None:
    urllib3 = pytest.importorskip("urllib3")
    headers = {"Content-Type": "application/json"}
    urllib3.PoolManager().request("POST", url + PATH, body=json.dumps(CHAT), headers=headers)


def by_urllib(url: str) -> None:
    asked = urllib.request.Request(
        url + PATH, json.dumps(CHAT).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=10) as answer:
        answer.read()


def by_boto3(url: str) -> None:
    """By what is beneath its clients: those of Bedrock's models have a door."""
    session = pytest.importorskip("botocore.httpsession").URLLib3Session()
    from botocore.awsrequest import AWSRequest

    body = json.dumps({"messages": HELLO, "max_tokens": 5, "anthropic_version": "bedrock-2023-05-31"})
    path = "/model/anthropic.claude-3-haiku-20240307-v1:0/invoke"
    session.send(AWSRequest("POST", url + path, data=body).prepare())


CALLS: dict[str, tuple[str, Callable[[str], None]]] = {
    "httpx": ("httpx", by_httpx),
    "httpx, awaited": ("httpx", by_httpx_awaited),
    "httpx2": ("httpx2", by_httpx2),
    "aiohttp": ("aiohttp", by_aiohttp),
    "requests": ("requests", by_requests),
    "urllib3": ("urllib3", by_urllib3),
    "urllib.request": ("http.client", by_urllib),
    "boto3": ("boto3 (botocore)", by_boto3),
}


def host(sandbox: Sandbox) -> str:
    return f"{sandbox.host}:{sandbox.port}"


def watching(sandbox: Sandbox, **options: Any) -> Meter:
    return Meter("memory://", budgets=["$1"], hosts=[host(sandbox)], **options)


@pytest.mark.parametrize("name", CALLS)
def test_each_library_is_seen(name: str, sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    library, call = CALLS[name]
    with watching(sandbox) as meter:
        with meter.instrument():
            for _ in range(3):
                call(sandbox.url)
        assert sandbox.requests == 3
        said = [r.getMessage() for r in caplog.records if "nothing has metered" in r.getMessage()]
        assert len(said) == 1
        assert f"by {library}, at {__file__}:" in said[0]
        assert host(sandbox) in said[0]
        (seen,) = meter.unmetered
        assert (seen.host, seen.library, seen.calls) == (host(sandbox), library, 3)
        assert seen.place.startswith(__file__)
        assert entries(meter) == []
        with meter.instrument(strict=True), pytest.raises(Unmetered) as refused:
            call(sandbox.url)
        assert sandbox.requests == 3
        assert (refused.value.host, refused.value.library) == (host(sandbox), library)
        assert refused.value.place.startswith(__file__)
        call(sandbox.url)  # nobody watches any more
        assert sandbox.requests == 4
        assert sum(s.calls for s in meter.unmetered) == 3


def test_what_a_door_has_metered_is_not_seen(sandbox: Sandbox) -> None:
    """Under `strict` it would be refused."""
    httpx = pytest.importorskip("httpx")
    from anthropic import Anthropic, AsyncAnthropic

    with watching(sandbox, strict=True) as meter, meter.instrument():
        made = client(sandbox)
        made.chat.completions.create(**CHAT)  # type: ignore[call-overload]
        list(made.chat.completions.create(**CHAT, stream=True))  # type: ignore[call-overload]
        made.models.list()
        meter.httpx(httpx.Client()).post(sandbox.url + PATH, json=CHAT)
        claude: Any = {"model": "claude-haiku-4-5", "messages": HELLO, "max_tokens": 5}
        options: Any = {"base_url": sandbox.url, "api_key": "none"}
        Anthropic(**options).messages.create(**claude)
        Anthropic(**options).messages.count_tokens(model=claude["model"], messages=HELLO)

        async def run() -> None:
            async with meter.httpx(httpx.AsyncClient()) as http:
                await http.post(sandbox.url + PATH, json=CHAT)
            async with AsyncAnthropic(**options) as other, other.messages.stream(**claude) as stream:
                await stream.get_final_message()

        asyncio.run(run())
        assert meter.unmetered == ()
        assert len(entries(meter)) == 6
        assert_agrees(meter, sandbox)


def test_what_a_callback_has_reserved_is_not_seen(sandbox: Sandbox) -> None:
    """A model over an HTTP library that no door is for; its attempts, and not what follows it."""
    pytest.importorskip("langchain_core")
    import requests
    from langchain_core.language_models import FakeListChatModel

    class Own(FakeListChatModel):
        def _call(self, *args: Any, **kwargs: Any) -> str:
            for _ in range(2):
                requests.post(sandbox.url + PATH, json=CHAT, timeout=10)
            return super()._call(*args, **kwargs)

    with (
        watching(sandbox, strict=True, prices={}, aliases={"own": "gpt-4o"}) as meter,
        meter.instrument(),
    ):
        handler = meter.langchain()
        Own(responses=["an answer"], metadata={"ls_model_name": "own"}, max_tokens=50).invoke(
            "hello", {"callbacks": [handler]}
        )  # type: ignore[call-arg]
        assert len(entries(meter)) == 1
        with pytest.raises(Unmetered):
            requests.post(sandbox.url + PATH, json=CHAT, timeout=10)


def test_what_is_no_call_of_a_model_is_none_of_ours(sandbox: Sandbox) -> None:
    import httpx

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={})

    urls = (
        "https://api.openai.com/v1/files",
        "https://api.openai.com/v1/moderations",
        "https://api.anthropic.com/v1/messages/count_tokens",
        "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:countTokens",
        "https://generativelanguage.googleapis.com/upload/v1beta/files?key=secret",
        "https://storage.googleapis.com/upload/storage/v1/b/bucket/o",
        "https://oauth2.googleapis.com/token",
        "https://us-central1-aiplatform.googleapis.com/v1/projects/p/locations/l/pipelineJobs",
        "https://somebody.modal.run/upload",
        "https://example.com/v1/chat/completions",
    )
    with watching(sandbox, strict=True) as meter, meter.instrument():
        http = httpx.Client(transport=httpx.MockTransport(answer))
        for url in urls:
            assert http.post(url, json={}).status_code == 200
        assert http.get("https://api.openai.com/v1/models").status_code == 200
        for url in (
            "https://eu.api.openai.com/v1/responses",
            "https://api.mistral.ai/v1/ocr?key=secret",
            "https://us-central1-aiplatform.googleapis.com/v1/projects/p/locations/l/publishers/google/models/"
            "gemini-2.5-flash:generateContent",
            "https://bedrock-runtime-fips.us-east-1.amazonaws.com/model/amazon.nova-pro-v1%3A0/converse",
            "https://somebody.modal.run/v1/chat/completions",
            "https://dbc-1.cloud.databricks.com/serving-endpoints/chat/completions",
        ):
            with pytest.raises(Unmetered) as refused:
                http.post(url, json={})
            assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://api.mistral.ai/v1/chat/completions", ("mistral", False)),
        ("https://aiplatform.eu.rep.googleapis.com/v1/projects/p", ("google", True)),
        ("https://firebasevertexai.googleapis.com/v1beta/models/m:generateContent", ("google", False)),
        ("https://router.huggingface.co/v1/chat/completions", (None, False)),
        ("https://api.cloudflare.com/client/v4/accounts/a/ai/run/m", ("cloudflare", False)),
        ("https://api.cloudflare.com/client/v4/zones", None),
        ("http://models.example.com/v1", (None, False)),
        ("http://localhost:8000/v1", (None, False)),
        ("http://localhost:8001/v1", None),
        ("https://www.googleapis.com/drive/v3/files", None),
        ("", None),
    ],
)
def test_hosts_of_models(url: str, found: tuple[str | None, bool] | None) -> None:
    assert model_host(url, frozenset({"models.example.com", "localhost:8000"})) == found


def test_hosts_are_named_as_they_are_called() -> None:
    for wrong in ("localhost", ["http://localhost"], [""], [1]):
        with pytest.raises(ConfigError, match="host"):
            Meter("memory://", hosts=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="strict"):
        Meter("memory://", strict="yes")  # type: ignore[arg-type]


def test_libraries_are_not_imported_for_it() -> None:
    code = (
        "import sys; from behest_integrations import Meter\n"
        "with Meter('memory://') as meter, meter.instrument():\n"
        "    from behest_integrations.integrations.seen.libraries import LIBRARIES\n"
        "    print([l.module for l in LIBRARIES if l.module in sys.modules and l.module != 'http.client'])\n"
        "    import requests\n"
        "    print(requests.Session.send.__wrapped__.__name__)\n"
        "print(hasattr(requests.Session.send, '__wrapped__'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    before, within, after = done.stdout.splitlines()
    assert (set(json.loads(before.replace("'", '"'))) <= {"httpx2"}, within, after) == (True, "send", "False")


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
def test_where_libraries_send(library: Any) -> None:
    """`integrations/seen/libraries.py` reads these arguments."""
    module = pytest.importorskip(library.module)
    for cls, name, _read in library.senders:
        method = getattr(getattr(module, cls), name)
        arguments = list(inspect.signature(method).parameters)[1:3]
        assert arguments[0] in ("request", "method"), f"{library.module}.{cls}.{name} has moved"
        assert arguments[0] == "request" or "url" in arguments[1]
        assert inspect.iscoroutinefunction(method) != (cls in library.blocking)


PROGRAM = """
import requests
for _ in range(4):
    requests.post(URL, json={"model": "gpt-4o", "messages": MESSAGES, "max_tokens": 5}, timeout=10)
"""


@pytest.mark.parametrize("strict", [False, True])
def test_behest_run_says_what_it_did_not_meter(strict: bool, tmp_path: Path, sandbox: Sandbox) -> None:
    program = tmp_path / "program.py"
    program.write_text(f"URL, MESSAGES = {sandbox.url + PATH!r}, {HELLO}\n{PROGRAM}", encoding="utf-8")
    (tmp_path / "behest.toml").write_text(
        f"hosts = [{host(sandbox)!r}]\nbudgets = ['$1']\n", encoding="utf-8"
    )
    command = [sys.executable, "-m", "behest_integrations.cli", "run", *(["--strict"] if strict else [])]
    done = subprocess.run([*command, str(program)], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert sandbox.requests == (0 if strict else 4)
    if strict:
        assert done.returncode == 3, done.stderr
        assert f"ended by a call of {host(sandbox)} that was refused: nothing has metered it" in done.stderr
        assert "`strict = false`" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("nothing has metered") == 1
        assert f"behest: not metered: {host(sandbox)}, 4 times, by requests at {program}:5" in done.stderr


def test_what_a_closed_meter_has_left_open_covers_nothing(sandbox: Sandbox) -> None:
    with watching(sandbox) as gone:
        offer(gone.reserve(gone.plan("chat", "gpt-4o", RequestBound(1, output_limit=5))), "a callback")
    with watching(sandbox) as meter, meter.instrument(strict=True), pytest.raises(Unmetered):
        by_httpx(sandbox.url)


def test_several_meters_watch_and_one_may_stop(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with watching(sandbox) as one, watching(sandbox) as other:
        with one.instrument(strict=True) as outer, instrumented(watched(other, strict=False)):
            with pytest.raises(Unmetered):
                by_requests(sandbox.url)
            outer.remove()
            by_requests(sandbox.url)
        by_requests(sandbox.url)
        assert sandbox.requests == 2
        assert (one.unmetered, len(other.unmetered)) == ((), 1)
