"""The OpenAI client: every billable path is metered, and stays what it was for its caller."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from openai import (
    APIConnectionError,
    AsyncAzureOpenAI,
    AsyncOpenAI,
    AzureOpenAI,
    BadRequestError,
    InternalServerError,
    OpenAI,
    RateLimitError,
)
from pydantic import BaseModel
from support import HELLO, aclient, assert_agrees, assert_sound, client, entries, holds

from behest_integrations import BudgetExceeded, ConfigError, Meter, Price, Unbounded, UnknownPrice, session
from behest_integrations.sandbox import Sandbox

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Answer(BaseModel):
    city: str
    people: int


def chat_stream(c: OpenAI) -> None:
    for _ in c.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=40, stream=True):
        pass


def chat_stream_helper(c: OpenAI) -> None:
    with c.chat.completions.stream(model="gpt-4o", messages=HELLO, max_tokens=400) as stream:
        stream.get_final_completion()


def responses_stream_helper(c: OpenAI) -> None:
    with c.responses.stream(model="gpt-4o", input="hello", max_output_tokens=400) as stream:
        assert stream.get_final_response().usage


def streaming_response(c: OpenAI) -> None:
    with c.chat.completions.with_streaming_response.create(
        model="gpt-4o", messages=HELLO, max_tokens=40
    ) as response:
        assert "choices" in response.parse().model_dump()


def streaming_response_bytes(c: OpenAI) -> None:
    with c.chat.completions.with_streaming_response.create(
        model="gpt-4o", messages=HELLO, max_tokens=40, stream=True
    ) as response:
        assert b"data:" in b"".join(response.iter_bytes())


def raw(c: OpenAI) -> None:
    response = c.chat.completions.with_raw_response.create(model="gpt-4o", messages=HELLO, max_tokens=40)
    assert response.parse().choices


def raw_stream(c: OpenAI) -> None:
    response = c.chat.completions.with_raw_response.create(
        model="gpt-4o", messages=HELLO, max_tokens=40, stream=True
    )
    for _ in response.parse():
        pass


def completions_stream(c: OpenAI) -> None:
    for _ in c.completions.create(model="gpt-3.5-turbo-instruct", prompt="hello", max_tokens=9, stream=True):
        pass


def responses_stream(c: OpenAI) -> None:
    for _ in c.responses.create(model="gpt-4o", input="hello", max_output_tokens=40, stream=True):
        pass


PATHS: dict[str, tuple[str, Callable[[OpenAI], Any]]] = {
    "chat": ("chat", lambda c: c.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=40)),
    "chat n": ("chat", lambda c: c.chat.completions.create(model="gpt-4o", messages=HELLO, n=3)),
    "chat tools": ("chat", lambda c: c.chat.completions.create(model="gpt-4o", messages=HELLO, tools=[TOOL])),
    "chat parse": (
        "chat",
        lambda c: c.chat.completions.parse(model="gpt-4o", messages=HELLO, response_format=Answer),
    ),
    "chat stream": ("chat", chat_stream),
    "chat stream helper": ("chat", chat_stream_helper),
    "raw": ("chat", raw),
    "raw stream": ("chat", raw_stream),
    "streaming response": ("chat", streaming_response),
    "streaming response, bytes": ("chat", streaming_response_bytes),
    "completions": (
        "completions",
        lambda c: c.completions.create(model="gpt-3.5-turbo-instruct", prompt=["a", "b"], n=2),
    ),
    "completions stream": ("completions", completions_stream),
    "responses": (
        "responses",
        lambda c: c.responses.create(model="gpt-4o", input="hello", max_output_tokens=40),
    ),
    "responses parse": (
        "responses",
        lambda c: c.responses.parse(model="gpt-4o", input="hello", text_format=Answer),
    ),
    "responses stream": ("responses", responses_stream),
    "responses stream helper": ("responses", responses_stream_helper),
    "embeddings": (
        "embeddings",
        lambda c: c.embeddings.create(model="text-embedding-3-small", input=["hello", "there"]),
    ),
}


@pytest.mark.parametrize("path", PATHS)
def test_every_billable_path_is_metered_and_agrees_with_the_bill(
    sandbox: Sandbox, sqlite_store: str, path: str
) -> None:
    operation, call = PATHS[path]
    with Meter(sqlite_store, budgets=["$1 per session"]) as meter, session("s", user="u"):
        call(meter.openai(client(sandbox), send_attribution=True))
        (entry,) = entries(meter)
        assert (entry.operation, entry.status, entry.session_id, entry.user_id) == (
            operation, "settled", "s", "u",
        )  # fmt: skip
        assert entry.cost
        assert_agrees(meter, sandbox)
        assert_sound(meter)
    (line,) = sandbox.bill.lines
    assert (line.input_tokens, line.output_tokens) == (entry.input_tokens, entry.output_tokens)


async def achat(c: AsyncOpenAI) -> None:
    await c.chat.completions.create(model="gpt-4o", messages=HELLO)


async def achat_stream(c: AsyncOpenAI) -> None:
    async for _ in await c.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True):
        pass


async def achat_stream_helper(c: AsyncOpenAI) -> None:
    async with c.chat.completions.stream(model="gpt-4o", messages=HELLO) as stream:
        await stream.get_final_completion()


async def aparse(c: AsyncOpenAI) -> None:
    await c.chat.completions.parse(model="gpt-4o", messages=HELLO, response_format=Answer)


async def aresponses(c: AsyncOpenAI) -> None:
    await c.responses.create(model="gpt-4o", input="hello")


async def aresponses_stream(c: AsyncOpenAI) -> None:
    async with c.responses.stream(model="gpt-4o", input="hello") as stream:
        async for _ in stream:
            pass


async def astreaming(c: AsyncOpenAI) -> None:
    async with c.chat.completions.with_streaming_response.create(model="gpt-4o", messages=HELLO) as response:
        assert (await response.parse()).choices


async def araw(c: AsyncOpenAI) -> None:
    response = await c.embeddings.with_raw_response.create(model="text-embedding-3-small", input="hello")
    assert response.parse().data


@pytest.mark.parametrize(
    "call",
    [achat, achat_stream, achat_stream_helper, aparse, aresponses, aresponses_stream, astreaming, araw],
)
def test_every_asynchronous_path_too(sandbox: Sandbox, store: str, call: Any) -> None:
    async def run(meter: Meter) -> None:
        async with meter.openai(aclient(sandbox)) as metered:
            await call(metered)

    with Meter(store, budgets=["$1"]) as meter:
        asyncio.run(run(meter))
        assert [e.status for e in entries(meter)] == ["settled"]
        assert_agrees(meter, sandbox)
        assert_sound(meter)


# ── what the caller sees ───────────────────────────────────────────────────────────────


class House(OpenAI):
    """A subclass with a constructor of its own."""

    def __init__(self, house: str, **options: Any) -> None:
        super().__init__(**options)
        self.house = house

    def greet(self) -> str | None:
        return self.chat.completions.create(model="gpt-4o", messages=HELLO).choices[0].message.content


def test_it_is_still_an_instance_of_its_class(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1"]) as meter:
        original = House("mine", base_url=sandbox.base_url, api_key="none")
        metered = meter.openai(original)
        assert isinstance(metered, House)
        assert (type(metered).__name__, metered.house) == ("House", "mine")
        assert metered.greet()
        assert len(entries(meter)) == 1
        original.chat.completions.create(model="gpt-4o", messages=HELLO)  # the original stays as it was
        assert len(entries(meter)) == 1


def test_copies_stay_metered(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1"]) as meter:
        metered = meter.openai(client(sandbox))
        with_options = metered.with_options(timeout=5)
        for copy in (with_options, metered.copy(), metered.copy().with_options(max_retries=1)):
            copy.chat.completions.create(model="gpt-4o", messages=HELLO)
        assert len(entries(meter)) == 3


def test_a_resource_made_before_does_not_slip_past(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["0 calls"]) as meter:
        original = client(sandbox)
        original.chat.completions.create(model="gpt-4o", messages=HELLO)
        with pytest.raises(BudgetExceeded):
            meter.openai(original).chat.completions.create(model="gpt-4o", messages=HELLO)
    assert sandbox.requests == 1


def test_what_is_not_an_openai_client_is_refused() -> None:
    with Meter("memory://") as meter:
        with pytest.raises(ConfigError, match="takes an OpenAI"):
            meter.openai(object())  # type: ignore[type-var]
        with pytest.raises(ConfigError, match="metered already"):
            meter.openai(meter.openai(OpenAI(api_key="none")))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_azure_too(asynchronous: bool) -> None:
    with Sandbox(prices={"our-deployment": ("2.50", "10")}) as sandbox:
        _azure(sandbox, asynchronous)


def _azure(sandbox: Sandbox, asynchronous: bool) -> None:
    options: Any = {
        "azure_endpoint": f"http://{sandbox.host}:{sandbox.port}",
        "api_key": "none",
        "api_version": "2024-10-21",
    }
    with Meter("memory://", budgets=["$1"], aliases={"our-deployment": "gpt-4o"}) as meter:
        if asynchronous:

            async def run() -> None:
                async with meter.openai(AsyncAzureOpenAI(**options)) as metered:
                    assert isinstance(metered, AsyncAzureOpenAI)
                    await metered.chat.completions.create(model="our-deployment", messages=HELLO)

            asyncio.run(run())
        else:
            metered = meter.openai(AzureOpenAI(**options))
            assert isinstance(metered, AzureOpenAI)
            metered.chat.completions.create(model="our-deployment", messages=HELLO)
        (entry,) = entries(meter)
        assert entry.status == "settled"
        assert entry.cost


def test_free_paths_pass_even_when_nothing_is_left(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$0", "0 calls"]) as meter:
        metered = meter.openai(client(sandbox))
        assert any(m.id == "gpt-4o" for m in metered.models.list())
        assert entries(meter) == []


# ── the refusal ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", PATHS)
def test_a_refused_call_never_reaches_the_provider(sandbox: Sandbox, path: str) -> None:
    with Meter("memory://", budgets=["$0.0000001 per user as tiny"]) as meter:
        # Retries are on: a refusal is neither wrapped nor retried.
        metered = meter.openai(client(sandbox, max_retries=5))
        with pytest.raises(BudgetExceeded) as caught, session(user="u-7"):
            PATHS[path][1](metered)
        error = caught.value
        assert type(error) is BudgetExceeded
        assert isinstance(error, RuntimeError)
        assert error.reason == "too_large"
        assert (error.shortfall.spent, error.shortfall.held, error.shortfall.limit) == (0, 0, 100)
        assert "user u-7" in str(error)
        assert error.budget == "$0.0000001 per user as tiny"
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
        assert entries(meter) == []
        assert holds(meter) == 0
    assert sandbox.requests == 0


def test_an_asynchronous_refusal_too(sandbox: Sandbox, store: str) -> None:
    async def run(meter: Meter) -> None:
        async with meter.openai(aclient(sandbox, max_retries=5)) as metered:
            await achat(metered)

    with Meter(store, budgets=["$0.0000001"]) as meter, pytest.raises(BudgetExceeded):
        asyncio.run(run(meter))
    assert sandbox.requests == 0


def test_a_model_without_a_price_is_refused_under_dollars_only(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1"]) as meter:
        metered = meter.openai(client(sandbox))
        with pytest.raises(UnknownPrice, match=r"Price\(input="):
            metered.chat.completions.create(model="our-own-model", messages=HELLO)
    assert sandbox.requests == 0
    with Meter("memory://", budgets=["50k tokens", "3 calls"]) as meter:
        prices = {"our-own-model": ("1", "2")}
        with Sandbox(prices=prices) as own:
            meter.openai(client(own)).chat.completions.create(model="our-own-model", messages=HELLO)
        (entry,) = entries(meter)
        assert (entry.status, entry.cost) == ("settled", None)


def test_prices_of_your_own_are_used(sandbox: Sandbox) -> None:
    with (
        Sandbox(prices={"our-own-model": ("1", "2")}) as own,
        Meter("memory://", budgets=["$1"], prices={"our-own-model": Price(input="1", output="2")}) as meter,
    ):
        meter.openai(client(own)).chat.completions.create(model="our-own-model", messages=HELLO)
        assert_agrees(meter, own)


HOSTED: Any = [{"type": "web_search_preview"}]


def test_what_cannot_be_bounded_is_refused_unless_allowed(sandbox: Sandbox) -> None:
    spoken = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
    audio: Any = [{"role": "user", "content": [spoken]}]
    attempts: list[tuple[str, Callable[[OpenAI], Any]]] = [
        ("images", lambda c: c.images.generate(prompt="a cat", model="dall-e-3")),
        ("audio", lambda c: c.audio.speech.create(model="tts-1", voice="alloy", input="hello")),
        ("batches", lambda c: c.batches.create(
            completion_window="24h", endpoint="/v1/responses", input_file_id="f")),
        ("fine_tuning", lambda c: c.fine_tuning.jobs.create(model="gpt-4o", training_file="f")),
        ("web_search", lambda c: c.responses.create(model="gpt-4o", input="hello", tools=HOSTED)),
        ("input_audio", lambda c: c.chat.completions.create(model="gpt-4o-audio-preview", messages=audio)),
    ]  # fmt: skip
    with Meter("memory://", budgets=["$1"]) as meter:
        metered = meter.openai(client(sandbox))
        for feature, call in attempts:
            with pytest.raises(Unbounded, match="allow=") as caught:
                call(metered)
            assert caught.value.feature == feature
    assert sandbox.requests == 0


def test_an_allowance_is_reserved_and_booked(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$0.10"], allow={"images": "$0.04"}) as meter:
        metered = meter.openai(client(sandbox))
        for _ in range(2):
            metered.images.generate(prompt="a cat", model="dall-e-3")
        with pytest.raises(BudgetExceeded):
            metered.images.generate(prompt="a cat", model="dall-e-3")
        assert [(e.operation, e.cost, e.status) for e in entries(meter)] == [
            ("images", 40_000_000, "estimated")
        ] * 2


def test_other_billable_paths_are_counted_where_no_dollars_are(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["2 calls"]) as meter:
        metered = meter.openai(client(sandbox))
        for _ in range(2):
            metered.images.generate(prompt="a cat", model="dall-e-3")
        with pytest.raises(BudgetExceeded):
            metered.images.generate(prompt="a cat", model="dall-e-3")
    assert sandbox.requests == 2


def test_realtime_is_stopped_before_it_connects() -> None:
    with Meter("memory://", budgets=["$1"]) as meter:
        metered = meter.openai(OpenAI(api_key="none", base_url="http://127.0.0.1:9/v1"))
        with pytest.raises(Unbounded, match="realtime"), metered.realtime.connect(model="gpt-realtime"):
            pass
        with pytest.raises(Unbounded, match="realtime"), metered.responses.connect():
            pass

        async def run() -> None:
            other = meter.openai(AsyncOpenAI(api_key="none", base_url="http://127.0.0.1:9/v1"))
            async with other.realtime.connect(model="gpt-realtime"):
                pass

        with pytest.raises(Unbounded, match="realtime"):
            asyncio.run(run())
        assert entries(meter) == []


def test_realtime_is_counted_where_no_dollars_are() -> None:
    with Meter("memory://", budgets=["1 calls"]) as meter:
        metered = meter.openai(OpenAI(api_key="none", base_url="http://127.0.0.1:9/v1"))
        with pytest.raises(OSError), metered.realtime.connect(model="gpt-realtime"):  # noqa: PT011
            pass
        with pytest.raises(BudgetExceeded), metered.realtime.connect(model="gpt-realtime"):
            pass


# ── near the cap ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("model", "sent", "field"),
    [
        ("gpt-4o", {"max_tokens": 5000}, "max_tokens"),
        ("gpt-4o", {"max_completion_tokens": 5000}, "max_completion_tokens"),
        ("gpt-4o", {}, "max_tokens"),
        ("o4-mini", {}, "max_completion_tokens"),
    ],
)
def test_limits_are_lowered_in_the_right_field(model: str, sent: dict[str, int], field: str) -> None:
    with Sandbox(output_tokens=6000) as sandbox, Meter("memory://", budgets=["$0.01"]) as meter:
        seen = _spy(sandbox)
        metered = meter.openai(client(sandbox))
        reply = metered.chat.completions.create(model=model, messages=HELLO, **sent)  # type: ignore[call-overload]
        (entry,) = entries(meter)
        assert reply.choices[0].finish_reason == "length"
        assert entry.lowered_from == sent.get(field, 4096)
        assert seen[0][field] == entry.output_limit == entry.output_tokens
        assert "max_tokens" not in seen[0] or "max_completion_tokens" not in seen[0]
        assert sandbox.bill.total() <= 1 / 100


def test_limits_of_openai_itself_go_into_the_newer_field() -> None:
    with Sandbox(output_tokens=6000) as sandbox, Meter("memory://", budgets=["$0.01"]) as meter:
        seen = _spy(sandbox)
        metered = meter.openai(client(sandbox), provider="openai")
        metered.chat.completions.create(model="gpt-4o", messages=HELLO)
        assert set(seen[0]) & {"max_tokens", "max_completion_tokens"} == {"max_completion_tokens"}


def test_responses_are_lowered_in_their_own_field() -> None:
    with Sandbox(output_tokens=6000) as sandbox, Meter("memory://", budgets=["$0.01"]) as meter:
        seen = _spy(sandbox)
        reply = meter.openai(client(sandbox)).responses.create(model="gpt-4o", input="hello")
        (entry,) = entries(meter)
        assert reply.status == "incomplete"
        assert seen[0]["max_output_tokens"] == entry.output_limit
        assert entry.lowered_from == 4096


def test_the_limit_is_never_lowered_below_the_floor(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["100 output tokens"], min_output_tokens=40) as meter:
        metered = meter.openai(client(sandbox))
        for _ in range(2):
            metered.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=40)
        with pytest.raises(BudgetExceeded) as caught:
            metered.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=4000)
        assert caught.value.shortfall.asked == 40
        # A caller who asks for less than the floor gets it.
        metered.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=20)


def test_lowering_can_be_turned_off(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["100 output tokens"], lower_limits=False) as meter:
        with pytest.raises(BudgetExceeded):
            meter.openai(client(sandbox)).chat.completions.create(
                model="gpt-4o", messages=HELLO, max_tokens=101
            )
        meter.openai(client(sandbox)).chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=100)


def _spy(sandbox: Sandbox) -> list[dict[str, Any]]:
    """The request bodies as the provider gets them."""
    from starlette.requests import Request

    seen: list[dict[str, Any]] = []
    app: Any = sandbox.app
    for route in app.routes:
        if route.path in ("/v1/chat/completions", "/v1/responses") and "POST" in route.methods:
            inner = route.app

            async def spy(scope: Any, receive: Any, send: Any, inner: Any = inner) -> None:
                request = Request(scope, receive)
                body = await request.json()
                seen.append(body)

                async def again() -> Any:
                    import json

                    return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

                await inner(scope, again, send)

            route.app = spy
    return seen


# ── when the provider fails ────────────────────────────────────────────────────────────


def test_each_attempt_that_may_have_been_billed_is_accounted_for(sandbox: Sandbox, store: str) -> None:
    """Two failures after billing and one success: three bills, three entries."""
    sandbox.fault("status", status=500, times=2)
    with Meter(store, budgets=["$1"]) as meter:
        metered = meter.openai(client(sandbox, max_retries=3))
        metered.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=40)
        found = entries(meter)
        assert [e.status for e in found] == ["assumed", "assumed", "settled"]
        assert len(sandbox.bill.lines) == 3
        assert sum(e.cost or 0 for e in found) >= sandbox.bill.total() * 10**9
        assert_sound(meter)


def test_retries_stop_at_the_budget(sandbox: Sandbox) -> None:
    """A retry is a call like any other: it is made only if it fits."""
    sandbox.fault("status", status=500, times=10)
    with Meter("memory://", budgets=["2 calls"]) as meter:
        metered = meter.openai(client(sandbox, max_retries=5))
        with pytest.raises(BudgetExceeded):
            metered.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert sandbox.requests == 2


def test_a_rate_limit_is_not_billed_and_counts_in_no_budget(sandbox: Sandbox) -> None:
    sandbox.fault("status", status=429, times=1)
    with Meter("memory://", budgets=["1 calls", "$1"]) as meter:
        metered = meter.openai(client(sandbox))
        with pytest.raises(RateLimitError):
            metered.chat.completions.create(model="gpt-4o", messages=HELLO)
        assert [(e.status, e.cost) for e in entries(meter)] == [("failed", 0)]
        metered.chat.completions.create(model="gpt-4o", messages=HELLO)
        assert_agrees(meter, sandbox)
        assert_sound(meter)


def test_a_request_the_provider_rejects_is_not_billed(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1"]) as meter:
        with pytest.raises(BadRequestError):
            meter.openai(client(sandbox)).chat.completions.create(model="gpt-4o", messages=[])
        assert [e.status for e in entries(meter)] == ["failed"]
        assert_sound(meter)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_timeout_books_the_worst_case(sandbox: Sandbox, store: str, asynchronous: bool) -> None:
    sandbox.fault("timeout", seconds=2)
    with Meter(store, budgets=["$1"]) as meter:
        if asynchronous:

            async def run() -> None:
                async with meter.openai(aclient(sandbox, timeout=0.3)) as metered:
                    await metered.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=64)

            with pytest.raises(APIConnectionError):
                asyncio.run(run())
        else:
            with pytest.raises(APIConnectionError):
                meter.openai(client(sandbox, timeout=0.3)).chat.completions.create(
                    model="gpt-4o", messages=HELLO, max_tokens=64
                )
        (entry,) = entries(meter)
        assert entry.status == "assumed"
        assert (entry.cost or 0) >= sandbox.bill.total() * 10**9 > 0
        assert_sound(meter)


def test_a_provider_that_cannot_be_reached_costs_nothing() -> None:
    with Meter("memory://", budgets=["1 calls"]) as meter:
        metered = meter.openai(OpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=2))
        with pytest.raises(APIConnectionError):
            metered.chat.completions.create(model="gpt-4o", messages=HELLO)
        assert entries(meter) == []
        assert_sound(meter)


@pytest.mark.parametrize(
    ("choice", "status", "booked"), [("assume", "assumed", True), ("release", "assumed", False)]
)
def test_a_reply_without_usage(sandbox: Sandbox, choice: Any, status: str, booked: bool) -> None:
    sandbox.fault("no_usage")
    with Meter("memory://", budgets=["$1"], on_unknown=choice) as meter:
        meter.openai(client(sandbox)).chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=64)
        (entry,) = entries(meter)
        assert (entry.status, bool(entry.cost)) == (status, booked)
        assert "no_usage" in entry.flags
        if booked:
            assert (entry.cost or 0) >= sandbox.bill.total() * 10**9


def test_more_than_the_worst_case_is_booked_and_said(
    sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.fault("over_limit", factor=5)
    with Meter("memory://", budgets=["$0.001"]) as meter:
        metered = meter.openai(client(sandbox))
        metered.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=64)
        assert_agrees(meter, sandbox)
        assert "over_bound" in entries(meter)[0].flags
        assert "more than the worst case" in caplog.text
        with pytest.raises(BudgetExceeded, match="spent"):
            metered.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=64)
        assert_sound(meter)


# ── the responses API ──────────────────────────────────────────────────────────────────


def test_a_background_response_is_followed_to_its_end(sandbox: Sandbox) -> None:
    import time

    with Meter("memory://", budgets=["$1"]) as meter:
        metered = meter.openai(client(sandbox))
        queued = metered.responses.create(model="gpt-4o", input="hello", background=True)
        assert queued.status == "queued"
        assert (len(entries(meter)), holds(meter)) == (0, 1)
        for _ in range(100):
            if metered.responses.retrieve(queued.id).status == "completed":
                break
            time.sleep(0.01)
        assert_agrees(meter, sandbox)
        assert_sound(meter)


def test_a_background_stream_that_is_left_is_billed_and_read_on(sandbox: Sandbox) -> None:
    """As the SDK's own example leaves it: https://github.com/openai/openai-python, background_streaming.py"""
    with Meter("memory://", budgets=["$1"]) as meter:
        metered = meter.openai(client(sandbox))
        with metered.responses.create(model="gpt-4o", input="hi", background=True, stream=True) as stream:
            begun = [next(stream) for _ in range(3)]
        again = metered.responses.retrieve(begun[0].response.id, stream=True, starting_after=2)
        assert [event.type for event in again][-1] == "response.completed"
        meter.flush()
        assert [entry.status for entry in entries(meter)] == ["settled"]
        assert_agrees(meter, sandbox)
        assert_sound(meter)


def test_a_continued_response_is_bounded_by_what_came_before(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$1"]) as meter:
        metered = meter.openai(client(sandbox))
        first = metered.responses.create(model="gpt-4o", input="hello " * 200, max_output_tokens=50)
        metered.responses.create(
            model="gpt-4o", input="and?", previous_response_id=first.id, max_output_tokens=50
        )
        one, two = entries(meter)
        assert two.input_tokens > one.input_tokens
        assert "over_bound" not in two.flags
        assert_agrees(meter, sandbox)


def test_a_server_error_is_the_sdks_own(sandbox: Sandbox) -> None:
    sandbox.fault("status", status=503)
    with Meter("memory://") as meter, pytest.raises(InternalServerError):
        meter.openai(client(sandbox)).chat.completions.create(model="gpt-4o", messages=HELLO)
