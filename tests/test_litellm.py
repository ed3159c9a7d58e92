"""LiteLLM, metered: what is booked is what was billed, and for whom; refusals come out as they are."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from importlib.util import find_spec
from typing import Any

import pytest
from support import (
    ANSWER,
    HELLO,
    MODEL,
    PEOPLE,
    arun,
    assert_agrees,
    assert_each_within,
    assert_sound,
    assert_whose,
    auntil_exhausted,
    client,
    close_loop,
    entries,
    ids,
    person,
    until_exhausted,
)

from behest_integrations import BudgetExceeded, ConfigError, Meter, Unbounded, UnknownPrice
from behest_integrations.sandbox import Sandbox

if find_spec("litellm") is None:
    pytest.skip("litellm is not installed", allow_module_level=True)
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask the network
import litellm

# As people import them, before anything is metered.
from litellm import (
    Router,
    acompletion,
    aembedding,
    aresponses,
    completion,
    embedding,
    responses,
    text_completion,
)

EACH = Decimal("0.5")
BUDGET = "$0.50 per session"
MINI = "gpt-4o-mini"


def openai(sandbox: Sandbox, model: str = MINI, **fields: Any) -> dict[str, Any]:
    return {
        "model": f"openai/{model}",
        "api_base": sandbox.base_url,
        "api_key": "none",
        "messages": HELLO,
        **fields,
    }


def claude(sandbox: Sandbox, model: str = "claude-haiku-4-5", **fields: Any) -> dict[str, Any]:
    asked = {"api_base": sandbox.url, "api_key": "none", "messages": HELLO, "max_tokens": 100, **fields}
    return {"model": f"anthropic/{model}", **asked}


KINDS = {"openai": openai, "claude": claude}


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    litellm.in_memory_llm_clients_cache.flush_cache()  # its clients belong to a loop that is over
    yield
    arun(_end_workers())
    close_loop()
    litellm.num_retries = None


async def _end_workers() -> None:
    """LiteLLM's own, which would outlive the loop."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def drained(stream: Any) -> list[Any]:
    return [chunk async for chunk in stream]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_booked_is_what_was_billed(kind: str, sandbox: Sandbox) -> None:
    """Whole and streamed, blocking and awaited, however the function was imported."""
    asked = KINDS[kind](sandbox, metadata={"session_id": "s", "user_id": "ada"})
    bare = list(completion(**asked, stream=True))
    already = len(sandbox.bill.lines)
    with Meter("memory://", budgets=["$1 per session"]) as meter, meter.litellm():
        completion(**asked)
        streamed = list(completion(**asked, stream=True))
        assert len(streamed) == len(bare)
        assert not any(getattr(chunk, "usage", None) for chunk in streamed)  # it was not asked for
        told = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
        assert told[-1].usage.total_tokens > 64

        async def run() -> None:
            await acompletion(**asked)
            await drained(await litellm.acompletion(**asked, stream=True))

        arun(run())
        found = entries(meter)
        assert [(e.session_id, e.user_id, e.status) for e in found] == [("s", "ada", "settled")] * 5
        billed = sandbox.bill.lines[already:]
        assert [e.cost for e in found] == [int(line.cost * 10**9) for line in billed]
        assert_sound(meter)
    completion(**asked)
    assert len(found) == 5


def test_embeddings_responses_and_texts(sandbox: Sandbox) -> None:
    to = {"api_base": sandbox.base_url, "api_key": "none"}
    with Meter("memory://", budgets=["$1 per session"]) as meter, meter.litellm():
        with meter.session("s"):
            embedding(model="openai/text-embedding-3-small", input=["a b", "c"], **to)
            responses(model=f"openai/{MINI}", input="hello", **to)
            list(responses(model=f"openai/{MINI}", input="hello", stream=True, **to))
            text_completion(model=f"openai/{MINI}", prompt="hello", **to)

            async def run() -> None:
                await aembedding(model="openai/text-embedding-3-small", input=["a b", "c"], **to)
                await aresponses(model=f"openai/{MINI}", input="hello", **to)
                await drained(await aresponses(model=f"openai/{MINI}", input="hello", stream=True, **to))

            arun(run())
        assert {(e.session_id, e.status) for e in entries(meter)} == {("s", "settled")}
        assert len(entries(meter)) == len(sandbox.bill.lines) == 7
        assert_agrees(meter, sandbox)
        assert_sound(meter)


def test_no_limit_that_is_put_into_a_request_is_above_the_one_that_is_held(sandbox: Sandbox) -> None:
    to = {"api_base": sandbox.base_url, "api_key": "none", "messages": HELLO}
    with Meter("memory://", budgets=["50 output tokens per session"]) as meter, meter.litellm():
        completion(model="deepseek/deepseek-chat", max_tokens=400, extra_body={"max_tokens": 400}, **to)
        assert [line.output_tokens for line in sandbox.bill.lines] == [50]
        assert [e.flags for e in entries(meter)] == [""]


def test_a_word_for_mocks_that_mocks_nothing_is_a_call(sandbox: Sandbox) -> None:
    """LiteLLM's proxy passes on what a client puts there."""
    for word in ({"mock_timeout": False}, {"mock_response": ""}):
        with Meter("memory://", budgets=["1 call per session"]) as meter, meter.litellm():
            before = len(sandbox.bill.lines)
            completion(**claude(sandbox), **word)
            with pytest.raises(BudgetExceeded):
                completion(**claude(sandbox), **word)
            assert len(sandbox.bill.lines) == before + 1
            assert len(entries(meter)) == 1


def test_a_client_of_its_proxy_is_who_its_key_says(sandbox: Sandbox) -> None:
    key = {"user_api_key_hash": "h", "user_api_key_user_id": "ada", "user_api_key_team_id": "red"}
    said = {"session_id": "s", "user_id": "bob", "project": "blue", "tenant": "others"}
    with Meter("memory://", budgets=["$1 per user"]) as meter, meter.litellm():
        completion(**claude(sandbox), metadata={**said, **key})
        forged = {**said, "user_api_key_user_id": "bob"}
        responses(
            model=f"openai/{MINI}", input="hello", api_base=sandbox.base_url, api_key="none",
            metadata=forged, litellm_metadata=key,
        )  # fmt: skip
        completion(**openai(sandbox), metadata=key, extra_headers={"X-End-User-Id": "bob"})
        completion(**claude(sandbox), metadata={**said, "user_api_key_hash": "h"})  # a key of nobody's
        assert [(e.session_id, e.user_id, e.project, e.tenant) for e in entries(meter)] == [
            ("s", "ada", "red", None), ("s", "ada", "red", None), (None, "ada", "red", None),
            ("s", "bob", None, None),
        ]  # fmt: skip


def test_what_is_not_billed_is_not_counted(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1"]) as meter, meter.litellm():
        completion(**openai(sandbox), mock_response="hello")
        litellm.cache = litellm.Cache(type="local")
        try:
            for _ in range(3):
                completion(**openai(sandbox), caching=True)
        finally:
            litellm.cache = None
        assert len(entries(meter)) == len(sandbox.bill.lines) == 1
        assert_agrees(meter, sandbox)


def router(sandbox: Sandbox, **options: Any) -> Router:
    return Router(
        [
            {
                "model_name": "small",
                "litellm_params": {k: v for k, v in openai(sandbox).items() if k != "messages"},
            },
            {
                "model_name": "claude",
                "litellm_params": {k: v for k, v in claude(sandbox).items() if k != "messages"},
            },
        ],
        **options,
    )


def test_retries_fallbacks_and_routes_are_calls_of_their_own(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1"]) as meter, meter.litellm():
        # The SDK's own attempts, then LiteLLM's, then another model.
        sandbox.fault("status", status=500, billed=True, times=2)
        completion(**openai(sandbox), max_retries=1, num_retries=1)
        assert [e.status for e in entries(meter)] == ["assumed", "assumed", "settled"]
        sandbox.fault("status", status=500, billed=True, times=1)
        routes = router(sandbox, fallbacks=[{"small": ["claude"]}], num_retries=0)
        arun(routes.acompletion("small", HELLO, max_retries=0))
        assert [(e.provider, e.status) for e in entries(meter)[3:]] == [
            ("openai", "assumed"),
            ("anthropic", "settled"),
        ]
        assert len(sandbox.bill.lines) == 5
        assert_sound(meter)


def refusals(sandbox: Sandbox) -> dict[str, Any]:
    """Every way to ask, with all that LiteLLM could do about an error."""
    asked = openai(sandbox)
    instead = {"num_retries": 3, "fallbacks": [claude(sandbox)["model"]]}
    to = {"api_base": sandbox.base_url, "api_key": "none"}
    routes = router(sandbox, fallbacks=[{"small": ["claude"]}], num_retries=3)

    async def stream(awaited: Any) -> None:
        await drained(await awaited)

    return {
        "completion": lambda: completion(**asked),
        "litellm.completion": lambda: litellm.completion(**asked, **instead),
        "claude": lambda: completion(**claude(sandbox), num_retries=3),
        "a stream": lambda: list(completion(**asked, stream=True)),
        "acompletion": lambda: arun(acompletion(**asked, num_retries=3)),
        "litellm.acompletion": lambda: arun(litellm.acompletion(**asked, **instead)),
        "an awaited stream": lambda: arun(stream(litellm.acompletion(**asked, stream=True))),
        "embedding": lambda: embedding(model="openai/text-embedding-3-small", input="x" * 5000, **to),
        "aembedding": lambda: arun(aembedding(model="openai/text-embedding-3-small", input="x" * 5000, **to)),
        "responses": lambda: responses(model=asked["model"], input="hello", **to),
        "aresponses": lambda: arun(aresponses(model=asked["model"], input="hello", **to)),
        "text_completion": lambda: text_completion(model=asked["model"], prompt="hello", **to),
        "Router.completion": lambda: routes.completion("small", HELLO),
        "Router.acompletion": lambda: arun(routes.acompletion("small", HELLO)),
        "Router, a stream": lambda: arun(stream(routes.acompletion("small", HELLO, stream=True))),
        "Router.aresponses": lambda: arun(routes.aresponses(model="small", input="hello")),
    }


def test_a_refusal_comes_out_as_it_is_and_nothing_is_tried_instead(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$0.000001"]) as meter, meter.litellm():
        for way, ask in refusals(sandbox).items():
            begun = time.monotonic()
            with pytest.raises(BudgetExceeded) as refusal:
                ask()
            assert refusal.value.shortfall.limit == 1000, way
            assert time.monotonic() - begun < 5, f"{way}: it was waited for something"
        assert sandbox.requests == 0
        assert_sound(meter)


def test_a_refusal_of_the_client_beneath_comes_out_as_well(sandbox: Sandbox) -> None:
    """The first attempt of OpenAI's SDK is billed and fails, and its second does not fit."""
    with Meter("memory://", budgets=["1 call"]) as meter, meter.litellm():
        for ask in (completion, lambda **asked: arun(litellm.acompletion(**asked))):
            sandbox.fault("status", status=500, billed=True, times=1)
            with pytest.raises(BudgetExceeded):
                ask(**openai(sandbox), max_retries=2)
            break
        assert len(entries(meter)) == len(sandbox.bill.lines) == 1
        assert_sound(meter)


def test_what_cannot_be_bounded_is_refused(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1"]) as meter:
        with meter.litellm():
            with pytest.raises(UnknownPrice, match="my-own"):
                completion(**openai(sandbox, "my-own"))
            with pytest.raises(Unbounded, match="bonus"):
                completion(**openai(sandbox), bonus=7)
            with pytest.raises(Unbounded, match="images"):
                litellm.image_generation(prompt="a cat", model="openai/gpt-image-1", api_key="none")
            with Meter("memory://") as other, pytest.raises(ConfigError, match="another meter has LiteLLM"):
                other.litellm()
        sandbox.fault("status", status=500, billed=False, times=9)
        with pytest.raises(litellm.exceptions.InternalServerError):
            completion(**openai(sandbox), max_retries=0)
        assert entries(meter) == []


def test_what_is_billed_in_other_ways_is_counted_once(sandbox: Sandbox) -> None:
    to = {"api_base": sandbox.base_url, "api_key": "none"}
    for way in ("litellm", "instrument"):
        with Meter("memory://", budgets=["$1"], allow={"images": "$0.05"}) as meter:
            with getattr(meter, way)(), suppress(Exception):  # the sandbox draws nothing
                litellm.image_generation(prompt="a cat", model="openai/gpt-image-1", **to, max_retries=0)
            assert [(e.operation, e.cost) for e in entries(meter)] == [("images", 50_000_000)], way


def test_near_the_cap_answers_get_shorter(sandbox: Sandbox) -> None:
    for kind, asked in KINDS.items():
        with Meter("memory://", budgets=["100 output tokens per session"]) as meter, meter.litellm():
            for stream in (False, True):
                said = completion(**asked(sandbox), stream=stream)
                if stream:
                    list(said)
            assert [e.output_tokens for e in entries(meter)] == [64, 36], kind


def test_one_entry_where_several_doors_see_a_call(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1"]) as meter, meter.instrument():
        completion(**openai(sandbox))
        list(completion(**openai(sandbox), stream=True))
        completion(**openai(sandbox), client=client(sandbox))
        arun(litellm.acompletion(**openai(sandbox)))
        assert [e.status for e in entries(meter)] == ["settled"] * 4
        assert_agrees(meter, sandbox)
        assert_sound(meter)


def test_a_stream_that_is_dropped_ends_its_call(sandbox: Sandbox) -> None:
    for kind, asked in KINDS.items():
        with Meter("memory://", budgets=["$1"]) as meter, meter.litellm():
            stream = completion(**asked(sandbox), stream=True)
            next(stream)
            del stream
            gc.collect()
            assert_sound(meter)
            assert len(entries(meter)) == 1, kind


# ── nothing is let through ─────────────────────────────────────────────────────────────


def provider() -> Sandbox:
    return Sandbox(latency=0.05, output_tokens=ANSWER, chunk_tokens=100)


def asking(sandbox: Sandbox, kind: str, who: str) -> dict[str, Any]:
    metadata = ids(who)
    if kind == "openai":
        return openai(sandbox, MODEL, max_tokens=ANSWER, user=who, metadata=metadata)
    return claude(sandbox, "claude-opus-4-1", max_tokens=400, user=who, metadata=metadata)


def settled(sandbox: Sandbox, least: int) -> None:
    for _ in range(200):  # a stream that was broken off is billed when the provider notices
        if len(sandbox.bill.lines) >= sandbox.requests:
            break
        time.sleep(0.05)
    assert_each_within(sandbox, EACH, EACH * least / 100)


def in_threads(call: Any) -> None:
    with ThreadPoolExecutor(64) as pool:
        list(pool.map(lambda number: until_exhausted(lambda: call(person(number), number)), range(64)))


async def in_tasks(call: Any) -> None:
    async def work(number: int) -> None:
        await auntil_exhausted(lambda: call(person(number), number))

    await asyncio.gather(*map(work, range(64)))


@pytest.mark.parametrize("kind", KINDS)
def test_64_threads(kind: str, sqlite_store: str) -> None:
    with provider() as sandbox, Meter(sqlite_store, budgets=[BUDGET]) as meter, meter.litellm():
        in_threads(lambda who, _: completion(**asking(sandbox, kind, who)))
        # Claude's prompt is held by its bytes, and as if it were written to a cache for an hour.
        settled(sandbox, 99 if kind == "openai" else 97)
        assert_sound(meter)
        assert_agrees(meter, sandbox)
        assert_whose(meter, sandbox)


def test_64_tasks_through_a_router() -> None:
    with provider() as sandbox, Meter("memory://", budgets=[BUDGET]) as meter, meter.litellm():
        to = {"model": f"openai/{MODEL}", "api_base": sandbox.base_url, "api_key": "none"}
        routes = Router([{"model_name": "m", "litellm_params": to}], num_retries=2)

        def ask(who: str, _: int) -> Any:
            return routes.acompletion("m", HELLO, max_tokens=ANSWER, user=who, metadata=ids(who))

        arun(in_tasks(ask))
        settled(sandbox, 98)
        assert_sound(meter)
        # A connection that has idled for too long may break under a request, which never arrives: that is
        # booked at its worst, and made again.
        booked = [e for e in entries(meter) if e.status == "settled"]
        lost = [e for e in entries(meter) if e.status == "assumed"]
        assert sum(e.cost or 0 for e in booked) == sandbox.bill.total() * 10**9
        assert len(lost) == len(entries(meter)) - sandbox.requests
        assert all(e.note == "no answer: ReadError" for e in lost)
        assert_whose(meter, sandbox, exact=not lost)


@pytest.mark.parametrize("kind", KINDS)
def test_64_streams_a_third_broken_off_a_third_cancelled(kind: str) -> None:
    """The provider here bills a stream that is hung up on in full, the worst it could do."""
    with provider() as sandbox, Meter("memory://", budgets=[BUDGET]) as meter, meter.litellm():

        async def stream(who: str, number: int) -> None:
            place = 0
            streamed = await litellm.acompletion(**asking(sandbox, kind, who), stream=True)
            async for _ in streamed:
                place += 1
                if place == 2 and number % 3 == 0:
                    await streamed.aclose()
                    break
                if place == 2 and number % 3 == 1:
                    raise asyncio.CancelledError

        async def call(who: str, number: int) -> None:
            with suppress(asyncio.CancelledError):
                await asyncio.ensure_future(stream(who, number))

        arun(in_tasks(call))
        # What is broken off is booked at its worst: of Claude's, a third above the bill, for two of three.
        settled(sandbox, 99 if kind == "openai" else 75)
        assert_sound(meter)
        assert_whose(meter, sandbox, exact=False)


def test_attempts_that_fail_are_within_the_cap() -> None:
    """A 500 is billed here all the same: each attempt, of the SDK's and of LiteLLM's, is held on its own."""
    with provider() as sandbox, Meter("memory://", budgets=[BUDGET]) as meter, meter.litellm():
        sandbox.fault("status", status=500, billed=True, times=6)
        retrying = {"max_retries": 1, "num_retries": 2}
        in_threads(lambda who, _: litellm.completion(**asking(sandbox, "openai", who), **retrying))
        settled(sandbox, 99)
        assert_sound(meter)
        assert_whose(meter, sandbox, exact=False)
        assert {e.user_id for e in entries(meter)} == set(PEOPLE)


# ── what of LiteLLM's internals is touched ─────────────────────────────────────────────


def test_what_is_touched_is_there() -> None:
    """`internals.py` of the door names the versions that were read; this says what has moved."""
    from importlib import import_module

    from behest_integrations.integrations.litellm.internals import (
        ATTEMPTS,
        AWAITED,
        CLIENTS,
        COUNTED,
        ROUTERS,
        cell_of,
    )

    for name, module in {**ATTEMPTS, **AWAITED}.items():
        cell = cell_of(module, name)
        assert cell is not None, name
        assert cell.cell_contents.__name__ == name
    found = {name for name, module, _ in COUNTED if cell_of(module, name) is not None}
    assert found >= {
        "image_generation",
        "transcription",
        "speech",
        "rerank",
        "create_batch",
        "anthropic_messages",
    }
    routers = [
        hasattr(getattr(import_module(module), owner), name)
        for module, owner, names in ROUTERS
        for name in names
        if find_spec(module.rpartition(".")[0]) is not None
    ]
    assert any(routers)
    assert all(hasattr(getattr(import_module(module), owner), name) for module, owner, name in CLIENTS)


# ── a cheaper model ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("openai", "called"),
        ("openai", "by place"),
        ("claude", "awaited"),
        ("claude", "streamed"),
        ("bedrock", "called"),
        ("bedrock", "streamed"),
    ],
)
def test_a_cheaper_model_stands_in(kind: str, how: str) -> None:
    """Whichever provider LiteLLM asks, and whatever the door beneath it could have changed."""
    names = {"openai": ("gpt-4o", MINI), "claude": ("claude-opus-4-5", "claude-haiku-4-5")}
    start = "global.anthropic.claude"
    names["bedrock"] = (f"{start}-opus-4-5-v1:0", f"{start}-haiku-4-5-20251001-v1:0")
    dear, cheap = names[kind]
    budget = {"openai": "$0.02", "claude": "$0.05", "bedrock": "$0.05"}[kind]
    with (
        Sandbox(output_tokens=490) as sandbox,
        Meter("memory://", budgets=[budget], downgrade={dear: cheap}, downgrade_at=50) as meter,
        meter.litellm(),
    ):
        asked = KINDS.get(kind, bedrock)(sandbox, dear, max_tokens=490)

        def call() -> None:
            if how == "called":
                completion(**asked)
            elif how == "awaited":
                arun(acompletion(**asked))
            elif how == "streamed":
                list(completion(**asked, stream=True))
            else:
                rest = {name: value for name, value in asked.items() if name not in ("model", "messages")}
                completion(asked["model"], asked["messages"], **rest)

        until_exhausted(call)
        served = [line.model for line in sandbox.bill.lines]
        many = served.count(dear)
        assert served == [dear] * many + [cheap] * (len(served) - many)
        assert 0 < many < len(served)
        found = [(e.model.rpartition("/")[2], e.asked_model) for e in entries(meter)]
        assert found == [(dear, None)] * many + [(cheap, dear)] * (len(served) - many)
        assert_agrees(meter, sandbox)
        assert_sound(meter)


def bedrock(sandbox: Sandbox, model: str, **fields: Any) -> dict[str, Any]:
    keys = {"aws_access_key_id": "none", "aws_secret_access_key": "none", "aws_region_name": "us-east-1"}
    asked = {"api_base": sandbox.url, "messages": HELLO, **keys, **fields}
    return {"model": f"bedrock/{model}", **asked}
