"""Who hangs up on a stream pays what the provider bills for it, where the rest is read on."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_support import Gateway, chat
from openai import OpenAI
from support import HELLO, aclient, assert_agrees, assert_sound, assert_whose, client, entries, holds, slow
from test_streams import EARLY, read_some, stream

from behest_integrations import BudgetExceeded, ConfigError, Meter, session
from behest_integrations.engine import draining
from behest_integrations.integrations.kit import response
from behest_integrations.sandbox import Sandbox
from behest_integrations.wire.hangups import HANG_UPS

MANY = 20


def provider(**options: Any) -> Sandbox:
    """It bills a stream in full, also where nobody reads it: it is the worst that one could do."""
    return Sandbox(**{"chunk_delay": 0.01, **options})


def assert_true(meter: Meter, sandbox: Sandbox, many: int) -> None:
    """Each stream that was left is booked at what was billed for it."""
    found = entries(meter)
    assert [e.status for e in found] == ["settled"] * many, [(e.flags, e.note) for e in found]
    # On a slow machine, one may have come whole before it was left.
    assert {"drained"} <= {e.flags for e in found} <= {"drained", ""}
    assert len(sandbox.bill.lines) == many
    assert not any(line.abandoned for line in sandbox.bill.lines)
    assert_agrees(meter, sandbox)
    assert_sound(meter)


async def until_read(meter: Meter) -> None:
    """The loop goes on meanwhile: it has to read."""
    deadline = time.monotonic() + 30
    while holds(meter):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("end", EARLY, ids=lambda f: f.__name__)
def test_however_a_stream_is_left_the_truth_is_booked(store: str, end: Callable[[OpenAI], None]) -> None:
    with provider() as sandbox, Meter(store, budgets=["$1"], on_abandoned="drain") as meter:
        with session("of ada", user="ada"):
            end(meter.openai(client(sandbox)))
        assert_true(meter, sandbox, 1)
        assert_whose(meter, sandbox)


def test_twenty_streams_that_a_user_closes(store: str) -> None:
    with provider() as sandbox, Meter(store, budgets=["$1"], on_abandoned="drain") as meter:
        metered = meter.openai(client(sandbox))
        with session("of ada", user="ada"):
            for _ in range(MANY):
                began = time.monotonic()
                read_some(stream(metered, max_tokens=1000)).close()
                assert time.monotonic() - began < 5
        assert_true(meter, sandbox, MANY)
        assert_whose(meter, sandbox)


@pytest.mark.parametrize("unread", [False, True])
def test_a_client_that_is_gone_before_its_stream_is_over(unread: bool) -> None:
    """The SDK closes the connections of a client that is collected."""
    with provider(chunk_delay=0.03) as sandbox, Meter("memory://", on_abandoned="drain") as meter:

        def leave() -> None:
            opened = stream(meter.openai(client(sandbox)))
            if not unread:
                read_some(opened).close()

        leave()
        gc.collect()
        assert_true(meter, sandbox, 1)


# ── coroutines ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["break", "cancel", "cancel_early", "close", "drop", "time_out"])
@pytest.mark.parametrize("many", [5, slow(MANY)])
def test_tasks_that_leave_their_streams(how: str, many: int) -> None:
    async def leave(metered: Any) -> None:
        got, waits = asyncio.Event(), asyncio.Event()

        async def read() -> None:
            opened = await metered.chat.completions.create(
                model="gpt-4o", messages=HELLO, max_tokens=1000, stream=True, user="ada"
            )
            got.set()
            if how == "drop":
                return
            number = 0
            async for _ in opened:
                number += 1
                if number == 3:
                    waits.set()
                    if how == "break":
                        return
                    if how == "close":
                        await opened.close()
                        return

        with session("of ada", user="ada"):
            task = asyncio.ensure_future(read())
        if how.startswith("cancel"):
            await (got if how == "cancel_early" else waits).wait()
            task.cancel()
        if how == "time_out":
            await waits.wait()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(task, 0.001)
        await asyncio.gather(task, return_exceptions=True)

    async def run() -> None:
        async with meter.openai(aclient(sandbox)) as metered:
            await asyncio.gather(*(leave(metered) for _ in range(many)))
            gc.collect()
            await until_read(meter)

    with (
        provider(output_tokens=200) as sandbox,
        Meter("memory://", budgets=["$1"], on_abandoned="drain") as meter,
    ):
        asyncio.run(run())
        assert_true(meter, sandbox, many)
        assert_whose(meter, sandbox)


def test_a_loop_that_ends_before_the_stream_books_the_worst_case(store: str) -> None:
    async def run() -> None:
        metered = meter.openai(aclient(sandbox))
        opened = await metered.chat.completions.create(
            model="gpt-4o", messages=HELLO, max_tokens=1000, stream=True
        )
        await opened.__anext__()
        await opened.close()
        assert holds(meter) == 1
        meter.flush()  # does not wait for what its own loop is to read

    with provider(chunk_delay=0.2) as sandbox, Meter(store, budgets=["$1"], on_abandoned="drain") as meter:
        asyncio.run(run())
        assert [(e.status, e.flags) for e in entries(meter)] == [("assumed", "closed_early")]
        assert_sound(meter)


# ── bounds ─────────────────────────────────────────────────────────────────────────────


def test_the_hold_stands_until_it_is_over(store: str) -> None:
    """So nothing gets past the limit meanwhile; and there is room again when the truth is in."""
    with (
        provider(chunk_delay=0.05) as sandbox,
        Meter(
            store, budgets=["800 output tokens"], on_abandoned="drain", wait=0, lower_limits=False
        ) as meter,
    ):
        metered = meter.openai(client(sandbox))
        read_some(stream(metered, max_tokens=700)).close()
        assert meter.spend()[0].held == 700
        with pytest.raises(BudgetExceeded) as caught:
            stream(metered, max_tokens=700)
        assert caught.value.busy
        meter.flush()
        assert (meter.spend()[0].held, meter.spend()[0].spent) == (0, 64)
        assert_agrees(meter, sandbox)


@pytest.mark.parametrize("bound", ["seconds", "bytes", "at_once"])
def test_what_takes_too_much_is_cut_off_and_booked_at_its_worst(
    bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draining, "MOST_SECONDS", 0.05 if bound == "seconds" else 60)
    monkeypatch.setattr(draining, "MOST_AT_ONCE", 0 if bound == "at_once" else 9)
    monkeypatch.setattr(response, "MOST_BYTES", 1 if bound == "bytes" else 10**6)
    delay = 0.05 if bound == "bytes" else 20
    with provider(chunk_delay=delay) as sandbox, Meter("memory://", on_abandoned="drain") as meter:
        opened = stream(meter.openai(client(sandbox)))
        next(iter(opened))
        opened.close()
        assert [(e.status, e.flags) for e in entries(meter)] == [("assumed", "closed_early")]
        assert_sound(meter)
        deadline = time.monotonic() + 20  # and its connection is closed
        while meter.drains._open:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_meter_that_is_closed_waits_for_what_is_read(sqlite_store: str) -> None:
    with provider() as sandbox:
        with Meter(sqlite_store, on_abandoned="drain") as meter:
            read_some(stream(meter.openai(client(sandbox)))).close()
        with Meter(sqlite_store) as meter:
            assert_true(meter, sandbox, 1)


def test_a_program_that_ends_does_not(sqlite_store: str) -> None:
    with provider(chunk_delay=20) as sandbox:
        program = f"""
from openai import OpenAI
from behest_integrations import Meter
meter = Meter({sqlite_store!r}, on_abandoned="drain")
client = meter.openai(OpenAI(base_url={sandbox.base_url!r}, api_key="none"))
stream = client.chat.completions.create(
    model="gpt-4", messages=[{{"role": "user", "content": "x"}}], max_tokens=400, stream=True)
next(iter(stream))
stream.close()
"""
        subprocess.run([sys.executable, "-c", program], timeout=60)
        assert not sandbox.bill.lines or sandbox.bill.lines[0].abandoned
        with Meter(sqlite_store) as meter:
            assert [e.status for e in entries(meter)] == ["assumed"]
            assert_sound(meter)


# ── frameworks ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", ["wrapper", "callback", "instrumented"])
def test_a_langchain_stream_that_is_left(way: str) -> None:
    pytest.importorskip("langchain_openai")
    from langchain_openai import ChatOpenAI

    with provider(chunk_delay=0.02) as sandbox, Meter("memory://", on_abandoned="drain") as meter:
        options: dict[str, Any] = {"base_url": sandbox.base_url, "api_key": "none", "max_retries": 0}
        undo = meter.instrument() if way == "instrumented" else None
        model: Any = ChatOpenAI(model="gpt-4o", max_tokens=64, **options)
        if way == "wrapper":
            model = meter.langchain_model(model)
        elif way == "callback":
            raw = meter.openai(client(sandbox))
            model = ChatOpenAI(
                model="gpt-4o", max_tokens=64, client=raw.chat.completions, root_client=raw, **options
            )
            model.callbacks = [meter.langchain()]
        try:
            chunks = model.stream("hello there")
            for _ in range(3):
                next(chunks)
            chunks.close()

            async def leave() -> None:
                chunks = model.astream("hello there")
                for _ in range(3):
                    await chunks.__anext__()
                await chunks.aclose()
                await until_read(meter)

            if way != "callback":
                asyncio.run(leave())
        finally:
            if undo is not None:
                undo.remove()
        assert_true(meter, sandbox, 1 if way == "callback" else 2)


def test_a_llama_index_stream_that_is_left() -> None:
    pytest.importorskip("llama_index.llms.openai")
    from llama_index.llms.openai import OpenAI as LlamaOpenAI

    with provider(chunk_delay=0.02) as sandbox, Meter("memory://", on_abandoned="drain") as meter:
        llm = meter.llama_index(
            LlamaOpenAI(model="gpt-4o", max_tokens=64, api_base=sandbox.base_url, api_key="none")
        )
        chunks: Any = llm.stream_complete("hello there")
        for _ in range(3):
            next(chunks)
        chunks.close()
        assert_true(meter, sandbox, 1)


# ── the gateway ────────────────────────────────────────────────────────────────────────


DRAINED = 'retries = 0\non_abandoned = "drain"\nservice_tier = "default"'


def test_twenty_clients_that_leave_the_gateway(tmp_path: Path) -> None:
    """At once, before the first word, or in the middle: each is booked what is billed for it."""
    with (
        provider(latency=0.3, chunk_delay=0.02) as sandbox,
        Gateway(tmp_path, sandbox, budgets=["$1"], provider=DRAINED) as gateway,
        gateway.http(gateway.key(), **{"X-End-User-Id": "ada", "X-Session-Id": "of ada"}) as http,
    ):
        request = {**chat(max_tokens=1000, user="ada"), "stream": True}

        def leave(number: int) -> None:
            if number % 2:
                with pytest.raises(httpx.ReadTimeout):
                    http.post("/chat/completions", json=request, timeout=0.15)
            else:
                with http.stream("POST", "/chat/completions", json=request) as answer:
                    next(answer.iter_lines())

        with ThreadPoolExecutor(5) as pool:
            list(pool.map(leave, range(MANY)))
        gateway.stop()  # it finishes what it reads
        with gateway.meter() as meter:
            assert_true(meter, sandbox, MANY)
            assert_whose(meter, sandbox)


# ── the default ────────────────────────────────────────────────────────────────────────


def test_the_default_is_by_provider(sandbox: Sandbox) -> None:
    names = [name for row in HANG_UPS for name in row.providers]
    assert len(names) == len(set(names))
    assert all(row.source.startswith("https://") for row in HANG_UPS)
    with Meter("memory://") as meter:
        assert meter.reads_on("groq")
        assert not meter.reads_on("openai")
        assert not meter.reads_on(None)  # a server of one's own, as often as not
        assert not meter.reads_on("groq", "close")
    with Meter("memory://", on_abandoned={"openai": "drain", "groq": "close"}) as meter:
        assert meter.reads_on("openai")
        assert not meter.reads_on("groq")
        assert meter.reads_on("mistral")
    with Meter("memory://", on_abandoned="close") as meter:
        assert not meter.reads_on("groq")
    with pytest.raises(ConfigError, match="on_abandoned"):
        Meter("memory://", on_abandoned="read")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="on_abandoned of 'openai'"):
        Meter("memory://", on_abandoned={"openai": "read"})  # type: ignore[dict-item]


def test_a_file_says_it(tmp_path: Path) -> None:
    path = tmp_path / "behest.toml"
    path.write_text('store = "memory://"\n[on_abandoned]\nopenai = "drain"\n')
    with Meter.from_toml(path) as meter:
        assert meter.reads_on("openai")
    path.write_text('on_abandoned = "read"\n')
    with pytest.raises(ConfigError, match="on_abandoned"):
        Meter.from_toml(path)
