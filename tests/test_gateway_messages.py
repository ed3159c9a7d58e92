"""`POST /v1/messages` of the gateway: what Anthropic's own clients are answered, and what they raise."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from gateway_support import Gateway
from refusal_table import Found, as_documented, name_of, numbers_of

from behest_integrations.reports import report, verify
from behest_integrations.rules.budgets import to_nano
from behest_integrations.sandbox import Sandbox

anthropic = pytest.importorskip("anthropic")
from anthropic_support import HELLO, MODEL, SMALL, asked  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

BOTH = 'retries = 0\napis = ["openai", "anthropic"]'
TOOL: Any = {"name": "look", "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}}}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Sandbox]]:
    budgets = ["$0.50/day per user", "$2 per session"]
    with (
        Sandbox(latency=0.02) as sandbox,
        Gateway(
            tmp_path_factory.mktemp("messages"),
            sandbox,
            budgets=budgets,
            provider=BOTH,
            more=(
                '[gateway.tiers]\nslow = ["3 calls/minute per user"]\n'
                f'[gateway.providers.other]\nbase_url = "{sandbox.base_url}"\n'
                '[[gateway.routes]]\nmodels = ["gpt-*"]\nprovider = "other"\n'
                '[[gateway.routes]]\nmodels = ["*"]\nprovider = "sandbox"\n'
            ),
        ) as gateway,
    ):
        yield gateway, sandbox


@pytest.fixture(scope="module")
def key(running: tuple[Gateway, Sandbox]) -> str:
    return running[0].key()


def client(gateway: Gateway, key: str, user: str, **options: Any) -> Any:
    headers = {"X-End-User-Id": user, **options.pop("headers", {})}
    return anthropic.Anthropic(
        base_url=gateway.url, api_key=key, default_headers=headers, **{"max_retries": 2, **options}
    )


def booked(gateway: Gateway, user: str) -> list[Any]:
    with gateway.meter() as meter:
        return [e for e in meter.ledger.snapshot()[2] if e.user_id == user]


def test_the_stock_sdk_is_answered_as_by_anthropic(running: tuple[Gateway, Sandbox], key: str) -> None:
    gateway, sandbox = running
    before = sandbox.bill.total()
    metered = client(gateway, key, "ada", headers={"X-Session-Id": "s-1"})
    assert metered.messages.create(**asked()).content[0].type == "text"
    with metered.messages.stream(**asked()) as stream:
        assert "".join(stream.text_stream)
        assert stream.get_final_message().usage.output_tokens == 64
    thinking = asked(max_tokens=2000, thinking={"type": "enabled", "budget_tokens": 1024})
    assert metered.messages.create(**thinking).content[0].type == "thinking"
    tools = asked(tools=[TOOL])
    used = metered.messages.create(**tools)
    result = {"type": "tool_result", "tool_use_id": used.content[0].id, "content": "nothing"}
    again = [*HELLO, {"role": "assistant", "content": used.content}, {"role": "user", "content": [result]}]
    assert metered.messages.create(**{**tools, "messages": again}).stop_reason == "end_turn"
    assert metered.messages.count_tokens(model=SMALL, messages=HELLO).input_tokens > 0
    raw = metered.messages.with_raw_response.create(**asked())
    assert raw.headers["x-budget"] == "$0.50/day per user"

    async def run() -> None:
        async with anthropic.AsyncAnthropic(
            base_url=gateway.url, auth_token=key, api_key=None, default_headers={"X-End-User-Id": "ada"}
        ) as other:
            await other.messages.create(**asked())

    asyncio.run(run())
    found = booked(gateway, "ada")
    assert {(e.operation, e.status, e.tenant, e.project) for e in found} == {
        ("messages", "settled", "acme", "support")
    }
    assert [e.session_id for e in found] == ["s-1"] * 6 + [None]
    assert sum(e.cost for e in found) == to_nano(sandbox.bill.total() - before)


REFUSED: dict[str, tuple[dict[str, Any], str, int, str]] = {
    "a model that nobody has": (asked(model="claude-none"), "BadRequestError", 400, "unknown_price"),
    # Its provider speaks OpenAI's API alone, and nothing is translated.
    "a model of another API": (asked(model="gpt-4o"), "NotFoundError", 404, "model_not_found"),
    "a field that is not known": (asked(extra_body={"zork": 1}), "BadRequestError", 400, "unbounded"),
    "a server tool": (
        asked(tools=[{"type": "web_search_20250305", "name": "web_search"}]),
        "BadRequestError",
        400,
        "unbounded",
    ),
    "no limit that can be": (asked(max_tokens=-1), "BadRequestError", 400, "validation_error"),
    "a thread": (
        asked(extra_body={"thread": {"type": "continue", "previous_message_id": "msg_1"}}),
        "BadRequestError",
        400,
        "validation_error",
    ),
    "a container": (asked(extra_body={"container": "c-1"}), "BadRequestError", 400, "validation_error"),
    "a file": (
        asked(
            messages=[
                {
                    "role": "user",
                    "content": [{"type": "document", "source": {"type": "file", "file_id": "file_1"}}],
                }
            ]
        ),
        "BadRequestError",
        400,
        "validation_error",
    ),
    "more than is left": (
        asked(model=MODEL, messages=[{"role": "user", "content": "long " * 40_000}]),
        "PaymentRequiredError",
        402,
        "quota_exceeded",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_refusal_is_the_error_that_the_sdk_knows(
    why: str, running: tuple[Gateway, Sandbox], key: str
) -> None:
    gateway, sandbox = running
    call, name, status, code = REFUSED[why]
    before = len(sandbox.bill.lines)
    with pytest.raises(anthropic.APIStatusError) as refused:
        client(gateway, key, "bob").messages.create(**call)
    error = refused.value
    assert error.status_code == status
    # SDKs before 2.0 have no class of its own for 402.
    assert type(error).__name__ in (name, "APIStatusError")
    said: Any = error.body
    assert (said["type"], said["error"]["code"]) == ("error", code)
    assert said["request_id"] == error.response.headers["request-id"]
    if status == 402:
        assert said["error"]["type"] == "billing_error"
        assert said["error"]["details"]["limit"] == 0.5
        numbers = f'`error.body["error"]["details"]`: {numbers_of(said["error"]["details"])}'
        reached = len(sandbox.bill.lines) - before
        as_documented(
            "the gateway, Anthropic SDK",
            {
                "`messages.create`": Found(
                    f"{name_of(anthropic.APIStatusError)}, `status_code` 402", numbers, 0, reached
                )
            },
        )
    assert error.response.headers.get("x-should-retry") != "true"
    assert len(sandbox.bill.lines) == before


def test_who_is_nobody_and_who_is_too_fast(running: tuple[Gateway, Sandbox], key: str) -> None:
    gateway, _ = running
    with pytest.raises(anthropic.AuthenticationError):
        client(gateway, "not-a-key", "cleo").messages.create(**asked())
    slow = client(gateway, gateway.key(tier="slow"), "cleo", max_retries=0)

    def until_refused() -> None:
        for _ in range(8):  # a minute may turn over in between
            slow.messages.create(**asked())

    with pytest.raises(anthropic.RateLimitError) as refused:
        until_refused()
    assert int(refused.value.response.headers["retry-after"]) >= 1


def test_a_stream_that_breaks_off_tells_it_in_an_event(running: tuple[Gateway, Sandbox], key: str) -> None:
    gateway, sandbox = running
    sandbox.fault("cut")
    with (
        pytest.raises(anthropic.APIStatusError) as broke,
        client(gateway, key, "dora", max_retries=0).messages.stream(**asked()) as stream,
    ):
        stream.get_final_message()
    assert "broke off" in str(broke.value)
    assert [(e.status, e.flags) for e in booked(gateway, "dora")] == [("assumed", "broken")]


def test_nothing_is_let_through(tmp_path: Path) -> None:
    """64 callers, a third of whose streams are left; at most the budget is billed, and 99 % of it used."""
    cap = Decimal("0.5")
    with (
        Sandbox(latency=0.05, output_tokens=1200, chunk_tokens=300) as sandbox,
        Gateway(tmp_path, sandbox, budgets=["$0.50/day per user"], provider=BOTH) as gateway,
    ):
        key = gateway.key()
        call = asked(model=MODEL, max_tokens=1200)
        metered = client(gateway, key, "ada", max_retries=0)

        def work(number: int) -> None:
            for _ in range(200):
                try:
                    if number % 3:
                        metered.messages.create(**call)
                        continue
                    with metered.messages.stream(**call) as stream:
                        for place, _event in enumerate(stream):
                            if number % 2 and place == 3:
                                break
                except anthropic.RateLimitError:
                    time.sleep(0.05)  # calls in flight hold what is left
                except anthropic.APIStatusError as error:
                    assert error.status_code == 402, error
                    return

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(work, range(64)))
        for _ in range(100):
            with gateway.meter() as meter:
                left = len(meter.ledger.snapshot()[1])
            if not left and len(sandbox.bill.lines) >= sandbox.requests:
                break
            time.sleep(0.1)
        spent = sandbox.bill.total()
        assert spent <= cap
        assert spent >= cap * 95 / 100
        with gateway.meter() as meter:
            assert verify(meter.ledger) == []
            assert to_nano(cap) >= report(meter.ledger).total.cost >= to_nano(spent)


CLAUDE = os.environ.get("BEHEST_CLAUDE_CODE") or shutil.which("claude")


@pytest.mark.skipif(not CLAUDE, reason="Claude Code is not here (npm install @anthropic-ai/claude-code)")
def test_claude_code_under_a_budget(tmp_path: Path) -> None:
    """A session with a tool call in it; its entries are the bill; then the budget ends it readably."""
    budget = "$1/day per user"
    with (
        Sandbox(output_tokens=40) as sandbox,
        Gateway(tmp_path, sandbox, budgets=[budget], provider=BOTH) as gateway,
    ):
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "ANTHROPIC_BASE_URL": gateway.url,
            "ANTHROPIC_AUTH_TOKEN": gateway.key(),
            "ANTHROPIC_CUSTOM_HEADERS": "X-End-User-Id: ada",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }

        def say() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [str(CLAUDE), "-p", "hello there", "--model", SMALL],
                env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
            )  # fmt: skip

        assert say().returncode == 0
        found = booked(gateway, "ada")
        assert len(found) >= 2
        assert len({e.session_id for e in found} - {None}) == 1
        assert sum(e.cost for e in found) == to_nano(sandbox.bill.total())
        with gateway.meter() as meter:
            meter.set_limit(budget, "$0.0001")
        done = say()
        assert done.returncode != 0
        assert "refused the call before it reached the provider" in done.stdout + done.stderr
        assert json.dumps(budget)[1:-1].split("/")[1] in done.stdout + done.stderr
