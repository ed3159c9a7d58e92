"""The Anthropic client, metered: entry = bill, streamed or not, and refused before it is sent."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from anthropic_support import HELLO, MODEL, SMALL, aclient, asked, client
from support import assert_agrees, assert_sound, entries, until_exhausted

from behest_integrations import BudgetExceeded, ConfigError, Meter, Unbounded
from behest_integrations.reports import report
from behest_integrations.rules.budgets import to_nano
from behest_integrations.sandbox import Sandbox
from behest_integrations.wire import bound_request, with_output_limit
from behest_integrations.wire.anthropic import operation_of
from behest_integrations.wire.frames import FrameReader
from behest_integrations.wire.replies import Reply, ReplyReader

anthropic = pytest.importorskip("anthropic")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

TOOL: Any = {
    "name": "weather",
    "description": "The weather of a place.",
    "input_schema": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
}
LONG = "a long story of a budget that holds " * 200


def cached(ttl: str) -> Any:
    return [{"type": "text", "text": LONG, "cache_control": {"type": "ephemeral", "ttl": ttl}}]


CALLS: dict[str, dict[str, Any]] = {
    "plain": asked(),
    "system": asked(
        system="Be brief.", stop_sequences=["x"], extra_body={"temperature": 0.5}, metadata={"user_id": "u"}
    ),
    "blocks": asked(messages=[{"role": "user", "content": [{"type": "text", "text": "hello"}]}]),
    "tools": asked(tools=[TOOL], tool_choice={"type": "any"}),
    "thinking": asked(max_tokens=2000, thinking={"type": "enabled", "budget_tokens": 1024}),
    "adaptive": asked(
        model=MODEL, thinking={"type": "adaptive"}, extra_body={"output_config": {"effort": "low"}}
    ),
    "cache 5m": asked(system=cached("5m")),
    "cache 1h": asked(system=cached("1h")),
    "cache of all": asked(
        extra_body={"cache_control": {"type": "ephemeral"}}, messages=[{"role": "user", "content": LONG}]
    ),
    "warming": asked(max_tokens=0, system=cached("1h")),
    "fast": asked(model=MODEL, extra_body={"speed": "fast"}),
    "in the US": asked(model=MODEL, extra_body={"inference_geo": "us"}),
    "fast, in the US, cached": asked(
        model=MODEL, extra_body={"speed": "fast", "inference_geo": "us"}, system=cached("1h")
    ),
    "tier": asked(service_tier="standard_only"),
    "search": asked(tools=[{"type": "web_search_20250305", "name": "web_search", "max_uses": 1}]),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_entry_is_the_bill(name: str) -> None:
    """Twice, so that what was written to the cache is read from it; whole, and as a stream."""
    for streamed in (False, True):
        with Sandbox() as sandbox, Meter("memory://", budgets=["$5"], allow={"web_search": "$0.02"}) as meter:
            metered = meter.anthropic(client(sandbox))
            for _ in range(2):
                if streamed:
                    with metered.messages.stream(**CALLS[name]) as stream:
                        message = stream.get_final_message()
                else:
                    message = metered.messages.create(**CALLS[name])
            assert_agrees(meter, sandbox)
            assert_sound(meter)
            assert {e.status for e in entries(meter)} == {"settled"}
            last, line = entries(meter)[-1], sandbox.bill.lines[-1]
            assert (last.model, last.provider, last.operation) == (message.model, "anthropic", "messages")
            assert last.provider_id == message.id
            assert (last.input_tokens, last.output_tokens) == (line.input_tokens, line.output_tokens)
            assert (last.cached_input_tokens, last.reasoning_tokens) == (
                line.cached_tokens,
                line.reasoning_tokens,
            )
            assert last.flags == ""


def test_where_a_workspace_runs_is_in_the_bound_and_in_the_bill() -> None:
    """A request that does not say where is held at the price of the US, and booked at what was billed."""
    for geo in ("us", "global"):
        with Sandbox(inference_geo=geo) as sandbox, Meter("memory://", budgets=["$1"]) as meter:  # type: ignore[arg-type]
            meter.anthropic(client(sandbox)).messages.create(**asked(model=MODEL))
            assert_agrees(meter, sandbox)
    assert bound_request("messages", asked(model=MODEL)).multiplier == (11, 10)
    assert bound_request("messages", asked(model=MODEL), provider="aws").multiplier == (1, 1)
    assert bound_request("messages", asked(model=SMALL)).multiplier == (1, 1)


@pytest.mark.parametrize("way", ["create", "raw", "streaming", "parse", "beta", "tool_runner"])
def test_every_way_to_ask_is_metered(way: str) -> None:
    with Sandbox() as sandbox, Meter("memory://", budgets=["$1 per session"]) as meter:
        metered = meter.anthropic(client(sandbox))
        assert isinstance(metered, anthropic.Anthropic)
        with meter.session("s", user="u"):
            if way == "create":
                metered.messages.create(**asked())
            elif way == "raw":
                assert metered.messages.with_raw_response.create(**asked()).parse().type == "message"
            elif way == "streaming":
                with metered.messages.with_streaming_response.create(**asked()) as response:
                    assert response.parse().usage.output_tokens
            elif way == "parse":
                if not hasattr(metered.messages, "parse"):
                    pytest.skip("this version of the SDK has no parse")
                metered.messages.parse(**asked())
            elif way == "beta":
                metered.beta.messages.create(**asked(betas=["context-management-2025-06-27"]))
            else:
                tool = anthropic.beta_tool(lambda place: "fine", name="weather", description="The weather.",
                                           input_schema=TOOL["input_schema"])  # fmt: skip
                list(metered.beta.messages.tool_runner(**asked(tools=[tool])))
        booked = entries(meter)
        assert len(booked) == (2 if way == "tool_runner" else 1) == sandbox.requests
        assert {(e.session_id, e.user_id, e.status) for e in booked} == {("s", "u", "settled")}
        assert_agrees(meter, sandbox)


def test_tasks_are_metered() -> None:
    async def run(sandbox: Sandbox, meter: Meter) -> None:
        async with meter.anthropic(aclient(sandbox)) as metered:
            assert isinstance(metered, anthropic.AsyncAnthropic)
            await metered.messages.create(**asked())
            async with metered.messages.stream(**asked()) as stream:
                await stream.get_final_message()
            async for _ in await metered.messages.create(**asked(stream=True)):
                pass
            await metered.with_options(timeout=5).messages.create(**asked())

    with Sandbox() as sandbox, Meter("memory://", budgets=["$1"]) as meter:
        asyncio.run(run(sandbox, meter))
        assert len(entries(meter)) == 4
        assert_agrees(meter, sandbox)
        assert_sound(meter)


def test_whom_a_call_is_for() -> None:
    with Sandbox() as sandbox, Meter("memory://") as meter:
        metered = meter.anthropic(client(sandbox, default_headers={"X-Session-Id": "of the client"}))
        metered.messages.create(**asked())
        with meter.session("of the scope", user="ада"):
            metered.messages.create(**asked())
            metered.messages.create(**asked(), extra_headers={"X-Session-Id": "of the call"})
        found = [(e.session_id, e.user_id) for e in entries(meter)]
        assert found == [("of the client", None), ("of the scope", "ада"), ("of the call", "ада")]
        sent = meter.anthropic(client(sandbox), send_attribution=True)
        with meter.session("s", user="ада"):
            sent.messages.create(**asked())
        assert (sandbox.bill.lines[-1].session_id, sandbox.bill.lines[-1].user_id) == ("s", "ада")


# ── what is free, and what is not known ────────────────────────────────────────────────


def test_counting_is_free_and_batches_are_not() -> None:
    with Sandbox() as sandbox, Meter("memory://", budgets=["$1"]) as meter:
        metered = meter.anthropic(client(sandbox))
        assert metered.messages.count_tokens(model=SMALL, messages=HELLO).input_tokens > 0
        assert next(iter(metered.models.list())).id
        assert entries(meter) == []
        with pytest.raises(Unbounded, match=r"messages\.batches"):
            metered.messages.batches.create(requests=[])
        assert sandbox.requests == 0
    with (
        Sandbox() as sandbox,
        Meter("memory://", budgets=["$1"], allow={"messages.batches": "$0.10"}) as meter,
    ):
        meter.anthropic(client(sandbox)).messages.batches.create(requests=[])
        assert [(e.operation, e.cost) for e in entries(meter)] == [("messages.batches", 100_000_000)]


@pytest.mark.parametrize(
    ("path", "operation"),
    [
        ("/v1/messages?beta=true", "messages"),
        ("/v1/messages/count_tokens?beta=true", None),
        ("/v1/messages/batches", "messages.batches"),
        ("/v1/messages/batches/b1/cancel", None),
        ("/v1/complete", "complete"),
        ("/v1/files", None),
        ("/v1/sessions", "sessions"),
        ("/v1/sessions/s/events", "sessions"),
        ("/v1/sessions/s/archive", None),
        ("/v1/agents?beta=true", None),
        ("/v1/environments/e/work/w/heartbeat", None),
        ("/v1/deployments/d/run", "deployments"),
        ("/v1/not_yet_there", "not_yet_there"),
        ("/model/us.anthropic.claude-opus-5-5/invoke-with-response-stream", "messages"),
        ("/v1/projects/p/locations/l/publishers/anthropic/models/claude-opus-5-5:rawPredict", "messages"),
        ("/v1/projects/p/locations/l/publishers/anthropic/models/count-tokens:rawPredict", None),
    ],
)
def test_what_a_request_does(path: str, operation: str | None) -> None:
    assert operation_of("post", path) == operation
    assert operation_of("get", path) is None


@pytest.mark.parametrize(
    ("fields", "feature"),
    [
        ({"extra_body": {"zork": 1}}, "field:zork"),
        ({"extra_body": {"speed": "ludicrous"}}, "field:speed"),
        ({"extra_body": {"inference_geo": "mars"}}, "field:inference_geo"),
        ({"extra_body": {"mcp_servers": [{"type": "url"}]}}, "mcp"),
        ({"extra_body": {"container": "c"}}, "code_execution"),
        ({"extra_body": {"fallbacks": [{"model": "claude-opus-5-5"}]}}, "fallbacks"),
        ({"extra_body": {"context_management": {"edits": [{"type": "compact_20260112"}]}}}, "compaction"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search"),
        ({"tools": [{"type": "code_execution_20260521", "name": "code_execution"}]}, "code_execution"),
        ({"tools": [{"type": "tool_search_tool_regex_20251119", "name": "t"}]}, "tool_search_tool"),
        (
            {"model": "claude-2.1", "messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "image",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, "file"),
        ({"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, "part:hologram"),
    ],
)
def test_what_cannot_be_bounded_is_refused_by_name(fields: dict[str, Any], feature: str) -> None:
    with Sandbox() as sandbox, Meter("memory://", budgets=["$1"]) as meter:
        with pytest.raises(Unbounded) as refused:
            meter.anthropic(client(sandbox)).messages.create(**asked(**fields))
        assert refused.value.feature == feature
        assert sandbox.requests == 0
        assert_sound(meter)


def test_edits_that_only_take_out_are_let_through() -> None:
    edits = {
        "edits": [{"type": "clear_thinking_20251015", "keep": "all"}, {"type": "clear_tool_uses_20250919"}]
    }
    assert not bound_request("messages", asked(context_management=edits)).features


def test_every_field_of_the_installed_sdk_is_known() -> None:
    from anthropic.types.beta import message_create_params as beta
    from anthropic.types.message_create_params import MessageCreateParamsBase

    from behest_integrations.wire.fields import table_of

    table = table_of("messages", "anthropic")
    known = set(table.entries) | table.plain
    for params in (MessageCreateParamsBase, beta.MessageCreateParamsBase):
        assert set(params.__annotations__) <= known


def test_every_content_of_the_installed_sdk_is_known() -> None:
    import typing

    from anthropic.types.beta.beta_content_block_param import BetaContentBlockParam

    from behest_integrations.wire.anthropic import _BLOCKS, _COUNTED

    kinds = set()
    for block in typing.get_args(BetaContentBlockParam):
        hints = typing.get_type_hints(block) if isinstance(block, type) else {}
        kinds |= set(re.findall(r"Literal\['(\w+)'\]", str(hints.get("type"))))
    assert {"text", "tool_use"} <= kinds
    assert kinds <= set(_BLOCKS) | _COUNTED


# ── the cap ────────────────────────────────────────────────────────────────────────────


def test_the_limit_is_lowered_to_what_is_left() -> None:
    with Sandbox(output_tokens=4000) as sandbox, Meter("memory://", budgets=["$0.01"]) as meter:
        metered = meter.anthropic(client(sandbox))
        message = metered.messages.create(**asked(max_tokens=4000))
        assert message.stop_reason == "max_tokens"
        assert 1800 < message.usage.output_tokens < 2000
        (booked,) = entries(meter)
        assert (booked.lowered_from, booked.output_limit) == (4000, message.usage.output_tokens)
        made = 1 + until_exhausted(lambda: metered.messages.create(**asked(max_tokens=4000)))
        with pytest.raises(BudgetExceeded):
            metered.messages.create(**asked(max_tokens=4000))
        assert sandbox.requests == made
        assert Decimal("0.0099") <= sandbox.bill.total() <= Decimal("0.01")


def test_a_budget_for_thoughts_stays_below_the_limit() -> None:
    """Below what may be thought at least, a limit would be a mistake: the call is refused instead."""
    thinking = {"type": "enabled", "budget_tokens": 3000}
    body = asked(max_tokens=4000, thinking=thinking)
    bound = bound_request("messages", body)
    lowered = with_output_limit(body, bound, 2000)
    assert (lowered["max_tokens"], lowered["thinking"]["budget_tokens"]) == (2000, 1999)
    assert thinking["budget_tokens"] == 3000
    with Sandbox(output_tokens=4000) as sandbox, Meter("memory://", budgets=["$0.01"]) as meter:
        metered = meter.anthropic(client(sandbox))
        until_exhausted(lambda: metered.messages.create(**body))
        assert sandbox.requests >= 1
        assert {e.status for e in entries(meter)} == {"settled"}  # none was a mistake to the provider
        assert min(e.output_limit or 0 for e in entries(meter)) >= 1025
        assert sandbox.bill.total() <= Decimal("0.01")


def test_each_attempt_of_the_sdk_is_a_call_of_its_own() -> None:
    with Sandbox() as sandbox, Meter("memory://", budgets=["$1"]) as meter:
        sandbox.fault("status", status=529, times=2)
        sandbox.fault("status", status=429, times=1)
        metered = meter.anthropic(client(sandbox, max_retries=4))
        metered._calculate_retry_timeout = lambda *_: 0.0  # type: ignore[method-assign]
        metered.messages.create(**asked())
        assert [e.status for e in entries(meter)] == ["assumed", "assumed", "failed", "settled"]
        assert report(meter.ledger).total.cost >= to_nano(sandbox.bill.total())
        assert_sound(meter)


def test_a_stream_that_is_left_is_booked_at_its_worst() -> None:
    with Sandbox(chunk_tokens=4) as sandbox, Meter("memory://", budgets=["$1"]) as meter:
        metered = meter.anthropic(client(sandbox))
        with metered.messages.stream(**asked()) as stream:
            next(iter(stream.text_stream))
        (booked,) = entries(meter)
        assert (booked.status, booked.flags) == ("assumed", "closed_early")
        del stream
        assert_sound(meter)


def test_a_stream_that_fails_half_way() -> None:
    with Sandbox(chunk_tokens=4) as sandbox, Meter("memory://", budgets=["$1"]) as meter:
        sandbox.fault("cut")
        metered = meter.anthropic(client(sandbox))
        with pytest.raises(Exception, match=r".") as broke, metered.messages.stream(**asked()) as stream:
            stream.get_final_message()
        assert not isinstance(broke.value, BudgetExceeded)
        assert [(e.status, e.flags) for e in entries(meter)] == [("assumed", "broken")]
        assert_sound(meter)


def test_a_client_with_middleware_is_metered_within_it() -> None:
    """From 0.125 on: what passes the middleware must still pass the meter."""
    if not hasattr(anthropic, "Middleware"):
        pytest.skip("this version has no middleware")
    seen = []

    def note(request: Any, call_next: Any) -> Any:
        seen.append(1)
        return call_next(request)

    with Sandbox() as sandbox, Meter("memory://", budgets=["$1"]) as meter:
        metered = meter.anthropic(client(sandbox, middleware=[note]))
        metered.messages.create(**asked())
        metered.with_options(timeout=3).messages.create(**asked())
        assert len(seen) == len(entries(meter)) == 2
        assert_agrees(meter, sandbox)


# ── Bedrock and Vertex ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["bedrock", "vertex"])
def test_the_clients_of_bedrock_and_vertex(kind: str) -> None:
    with Sandbox() as sandbox, Meter("memory://", budgets=["$1"]) as meter:
        plain: Any
        if kind == "bedrock":
            pytest.importorskip("botocore")
            keys = {"aws_access_key": "a", "aws_secret_key": "b", "aws_region": "us-east-1"}
            plain = anthropic.AnthropicBedrock(base_url=sandbox.url, max_retries=0, **keys)
            model, provider = "us.anthropic.claude-sonnet-4-5-20250929-v1:0", "aws"
        else:
            pytest.importorskip("google.auth")
            project = {"access_token": "t", "project_id": "p", "region": "global"}
            plain = anthropic.AnthropicVertex(base_url=sandbox.url, max_retries=0, **project)
            model, provider = "claude-haiku-4-5@20251001", "google"
        metered = meter.anthropic(plain, provider=provider)
        assert type(metered).__name__ == type(plain).__name__
        metered.messages.create(**asked(model=model))
        with metered.messages.stream(**asked(model=model)) as stream:
            stream.get_final_message()
        booked = [(e.status, e.provider, e.model) for e in entries(meter)]
        assert booked == [("settled", provider, model)] * 2
        assert_agrees(meter, sandbox)


def test_frames_are_read_in_any_pieces() -> None:
    from behest_integrations.sandbox.anthropic import _frame

    start = {"type": "message_start", "message": {"model": SMALL, "usage": {"input_tokens": 9}}}
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}}
    data = b"".join(map(_frame, (start, end, {"type": "message_stop"})))
    for size in (1, 7, 64, len(data)):
        reply = Reply()
        reader = ReplyReader(reply, events=False, hide_usage=False)
        passed = b"".join(reader.feed(data[i : i + size]) for i in range(0, len(data), size))
        assert passed + reader.finish() == data
        assert isinstance(reader.events, FrameReader)
        assert reader.done
        assert reply.final_usage
        assert reply.usage is not None
        assert (reply.model, reply.usage.input_tokens, reply.usage.output_tokens) == (SMALL, 9, 5)
    broken = Reply()
    reader = ReplyReader(broken, events=False, hide_usage=False)
    assert reader.feed(data[:40]) == data[:40]
    assert reader.feed(b"\xff" * 400) == b"\xff" * 400
    assert not broken.final_usage


# ── programs as they are ───────────────────────────────────────────────────────────────


def test_every_client_that_is_made_is_metered(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1"]) as meter:
        with meter.instrument():
            made = client(sandbox)
            made.messages.create(**asked())
        client(sandbox).messages.create(**asked())
        assert len(entries(meter)) == 1
        assert sandbox.requests == 2
        with pytest.raises(ConfigError, match="metered already"):
            meter.anthropic(made)
        with pytest.raises(ConfigError, match="Anthropic client"):
            meter.anthropic(object())  # type: ignore[type-var]


def test_a_program_is_run_as_it_is(sandbox: Sandbox, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from anthropic import Anthropic\n"
        f"client = Anthropic(base_url={sandbox.url!r}, api_key='none')\n"
        "for _ in range(100):\n"
        f"    client.messages.create(model={SMALL!r}, max_tokens=60,\n"
        "        messages=[{'role': 'user', 'content': 'hello'}])\n"
    )
    run = [sys.executable, "-m", "behest_integrations.cli", "run", "--budget", "$0.001 per session"]
    done = subprocess.run([*run, str(program)], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode != 0
    assert "ended by its budget" in done.stderr
    assert 0 < sandbox.bill.total() <= Decimal("0.001")
    assert sandbox.requests == len(sandbox.bill.lines)


@pytest.mark.parametrize("instrumented", [False, True])
def test_a_model_of_langchain_over_it_is_metered_once(sandbox: Sandbox, instrumented: bool) -> None:
    chat = pytest.importorskip("langchain_anthropic").ChatAnthropic
    options: Any = {"model": SMALL, "api_key": "none", "base_url": sandbox.url, "max_tokens": 100}
    with Meter("memory://", budgets=["$1 per session"]) as meter:
        if instrumented:
            with meter.instrument():
                model = chat(**options)
                model.invoke("hello", {"metadata": {"session_id": "s"}})
                list(model.stream("hello", {"metadata": {"session_id": "s"}}))
        else:
            model = meter.langchain_model(chat(**options))
            model.invoke("hello", {"metadata": {"session_id": "s"}})
            list(model.stream("hello", {"metadata": {"session_id": "s"}}))
        assert [(e.status, e.session_id) for e in entries(meter)] == [("settled", "s")] * 2
        assert sandbox.requests == 2
        assert_agrees(meter, sandbox)
        assert_sound(meter)


def test_a_model_of_llama_index_over_it_is_metered_once(sandbox: Sandbox) -> None:
    llm = pytest.importorskip("llama_index.llms.anthropic").Anthropic

    def made(at: Sandbox) -> Any:
        return llm(model=SMALL, api_key="none", base_url=at.url, max_tokens=100)

    with Sandbox() as other:
        try:
            made(other).complete("hello")
        except TypeError as error:  # llama-index-llms-anthropic 0.12.3 with anthropic 2.14
            pytest.skip(f"LlamaIndex's package does not work with this SDK, metered or not: {error}")
    with Meter("memory://", budgets=["$1 per session"]) as meter:
        model = meter.llama_index(made(sandbox))
        with meter.session("s"):
            model.complete("hello")
            list(model.stream_complete("hello"))
        assert [(e.status, e.session_id) for e in entries(meter)] == [("settled", "s")] * 2
        assert_agrees(meter, sandbox)
        assert_sound(meter)
