"""`meter.google_genai`: contents, streams, chats, embeddings, blocking and awaited; the bill is kept to."""

from __future__ import annotations

import asyncio
import gc
import inspect
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest
from support import assert_agrees, assert_sound, assert_whose, entries, holds, person, until_exhausted

from behest_integrations import BudgetExceeded, ConfigError, Meter, Unbounded
from behest_integrations.sandbox import Sandbox

genai = pytest.importorskip("google.genai")
types = pytest.importorskip("google.genai.types")

MODEL = "gemini-2.5-flash"
CONFIG: dict[str, Any] = {"max_output_tokens": 60}


def client(sandbox: Sandbox, **options: Any) -> Any:
    return genai.Client(api_key="none", http_options={"base_url": sandbox.url, **options})


def marked(who: str, **config: Any) -> dict[str, Any]:
    """A request that tells the provider whom it is for, in a field that is none of ours."""
    return {"model": MODEL, "contents": "hello", "config": {**config, "labels": {"user": who}}}


@pytest.fixture
def meter() -> Any:
    with Meter("memory://", budgets=["$1 per session"]) as made:
        yield made


def test_every_way_to_ask_is_booked_as_it_is_billed(meter: Meter, sandbox: Sandbox) -> None:
    google = meter.google_genai(client(sandbox))
    assert isinstance(google, genai.Client)
    assert type(google).__name__ == "Client"
    gc.collect()  # the plain one is kept, with its connections

    def price(word: str) -> str:
        """The price of a word."""
        return "nothing"

    with meter.session("s", user="u"):
        google.models.generate_content(model=MODEL, contents="hello", config=CONFIG)
        assert list(google.models.generate_content_stream(model=MODEL, contents="hello", config=CONFIG))
        chat = google.chats.create(model=MODEL, config=CONFIG)
        assert chat.send_message("hello").text
        assert [chunk.text for chunk in chat.send_message_stream("and on")]
        embedded = google.models.embed_content(model="gemini-embedding-001", contents=["one", "two"])
        assert len(embedded.embeddings) == 2
        called = google.models.generate_content(model=MODEL, contents="hello", config={"tools": [price]})
        assert called.text  # it was called, and its answer sent: two requests
        assert google.models.count_tokens(model=MODEL, contents="hello").total_tokens > 0

    async def run() -> None:
        await google.aio.models.generate_content(model=MODEL, contents="hello", config=CONFIG)
        async for _ in await google.aio.models.generate_content_stream(
            model=MODEL, contents="hi", config=CONFIG
        ):
            pass
        other = google.aio.chats.create(model=MODEL, config=CONFIG)
        await other.send_message("hello")
        await google.aio.models.embed_content(model="gemini-embedding-001", contents="one")

    asyncio.run(run())
    found = entries(meter)
    assert [(e.session_id, e.user_id) for e in found] == [("s", "u")] * 7 + [(None, None)] * 4
    assert {e.status for e in found} == {"settled"}
    assert {e.operation for e in found} == {"generate_content", "embed_content"}
    assert_agrees(meter, sandbox)
    assert_sound(meter)


def test_who_it_is_for(meter: Meter, sandbox: Sandbox) -> None:
    own = {"http_options": {"headers": {"X-Session-Id": "own"}}}
    google = meter.google_genai(client(sandbox, headers={"X-Session-Id": "usual", "X-End-User-Id": "u"}))
    google.models.generate_content(model=MODEL, contents="hello", config=CONFIG)
    with meter.session("scope"):
        google.models.generate_content(model=MODEL, contents="hello", config=CONFIG)
        google.models.generate_content(model=MODEL, contents="hello", config={**CONFIG, **own})
    found = [(e.session_id, e.user_id) for e in entries(meter)]
    assert found == [("usual", "u"), ("scope", "u"), ("own", "u")]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_nothing_passes_a_limit(asynchronous: bool) -> None:
    """64 at once, streams among them, some of which are left early; attempts that fail are repeated."""
    budgets = [f"$0.04 for user {who} per user" for who in ("ada", "bob")]
    with (
        Sandbox(latency=0.02, output_tokens=2000, chunk_tokens=200) as sandbox,
        Meter("memory://", budgets=budgets) as meter,
    ):
        retries = {"attempts": 3, "initial_delay": 0.01, "http_status_codes": [503]}
        google = meter.google_genai(client(sandbox, retry_options=retries))
        sandbox.fault("status", status=503, times=6, billed=True)

        def ask(number: int) -> dict[str, Any]:
            return marked(person(number), max_output_tokens=400)

        def call(number: int) -> None:
            with meter.session(f"of {person(number)}", user=person(number)):
                if number % 3:
                    google.models.generate_content(**ask(number))
                    return
                for _ in google.models.generate_content_stream(**ask(number)):
                    if number % 4 == 0:
                        break

        async def acall(number: int) -> None:
            with meter.session(f"of {person(number)}", user=person(number)):
                if number % 3:
                    await google.aio.models.generate_content(**ask(number))
                    return
                async for _ in await google.aio.models.generate_content_stream(**ask(number)):
                    if number % 4 == 0:
                        break

        async def worker(number: int) -> None:
            while True:
                try:
                    await acall(number)
                except BudgetExceeded as refused:
                    if not refused.busy:
                        return
                except genai.errors.ServerError:
                    pass

        async def everybody() -> None:
            tasks = [asyncio.create_task(worker(n)) for n in range(64)]
            await asyncio.sleep(0.3)
            for task in tasks[:4]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        def until(number: int) -> None:
            while True:
                try:
                    until_exhausted(lambda: call(number))
                    return
                except genai.errors.ServerError:
                    pass

        if asynchronous:
            asyncio.run(everybody())
        else:
            with ThreadPoolExecutor(64) as pool:
                list(pool.map(until, range(64)))
        meter.flush()
        billed = sandbox.bill.by_user()
        for who in ("ada", "bob"):
            assert billed[who] <= Decimal("0.04")
            spent = meter.balances(user=who)[0].spent
            assert Decimal(spent) / 10**9 >= Decimal("0.0396"), (who, spent)
        assert_whose(meter, sandbox, exact=False)
        made = sandbox.requests
        with meter.session(user="ada"), pytest.raises(BudgetExceeded):
            google.models.generate_content(**marked("ada", max_output_tokens=400))
        assert sandbox.requests == made  # a refusal is not repeated, and does not reach it
        assert holds(meter) == 0


def test_each_attempt_is_an_entry(meter: Meter, sandbox: Sandbox) -> None:
    google = meter.google_genai(client(sandbox, retry_options={"attempts": 3, "initial_delay": 0.01}))
    sandbox.fault("status", status=503, billed=True)
    sandbox.fault("status", status=429)
    google.models.generate_content(model=MODEL, contents="hello", config=CONFIG)
    assert [e.status for e in entries(meter)] == ["assumed", "failed", "settled"]


def test_what_cannot_be_bounded(meter: Meter, sandbox: Sandbox) -> None:
    google = meter.google_genai(client(sandbox))

    async def live() -> None:
        async with google.aio.live.connect(model="gemini-live-2.5-flash"):
            pass

    with pytest.raises(Unbounded, match="realtime"):
        asyncio.run(live())
    with pytest.raises(Unbounded, match="googleSearch"):
        google.models.generate_content(
            model=MODEL, contents="hello", config={"tools": [types.Tool(google_search=types.GoogleSearch())]}
        )
    with pytest.raises(Unbounded, match="batchGenerateContent"):
        google.batches.create(model=MODEL, src=[{"contents": [{"parts": [{"text": "hello"}]}]}])
    if hasattr(google, "interactions"):
        with pytest.raises(Unbounded, match="interactions"):
            google.interactions.create(model=MODEL, input="hello")
    assert sandbox.requests == 0


def test_what_is_made_is_metered(sandbox: Sandbox) -> None:
    before = client(sandbox)
    with Meter("memory://", budgets=["$1"], strict=True) as meter:
        with meter.instrument():
            made = client(sandbox)
            assert type(made) is type(before)
            made.models.generate_content(model=MODEL, contents="hello", config=CONFIG)
            list(made.models.generate_content_stream(model=MODEL, contents="hello", config=CONFIG))

            async def run() -> None:
                await made.aio.models.generate_content(model=MODEL, contents="hello", config=CONFIG)

            asyncio.run(run())
            with pytest.raises(ConfigError, match="already"):
                meter.google_genai(made)
            assert meter.unmetered == ()
        after = client(sandbox)
        after.models.generate_content(model=MODEL, contents="hello", config=CONFIG)
        before.models.generate_content(model=MODEL, contents="hello", config=CONFIG)
        assert len(entries(meter)) == 3
        assert sandbox.requests == 5


def test_what_it_does_not_take(meter: Meter) -> None:
    with pytest.raises(ConfigError, match="not str"):
        meter.google_genai("client")  # type: ignore[type-var]
    aiohttp = pytest.importorskip("aiohttp")

    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            other = genai.Client(api_key="none", http_options={"aiohttp_client": session})
            with pytest.raises(ConfigError, match="aiohttp"):
                meter.google_genai(other)

    if "aiohttp_client" in types.HttpOptions.model_fields:
        asyncio.run(run())


def test_what_of_its_own_we_stand_on() -> None:
    from google.genai import _api_client, live

    from behest_integrations.integrations.google_genai import internals

    plain = genai.Client(api_key="none")
    api = plain._api_client
    for name in (*internals.HTTP_CLIENTS, internals.SOCKETS, internals.AIOHTTP):
        assert hasattr(api, name), f"BaseApiClient has no {name}: see integrations/google_genai/internals.py"
    for part in (plain.models, plain.aio.models, plain.files, plain.batches, plain.caches, plain.aio.live):
        assert part._api_client is api
    assert f"_api_client.{internals.SOCKETS}" in inspect.getsource(live)
    source = inspect.getsource(_api_client.BaseApiClient)
    assert source.count(f"self.{internals.AIOHTTP}()") >= 2


def test_googles_agents_are_metered_beneath(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Agent Development Kit asks Gemini by this client: whole and streamed; and the refusal is ours."""
    agents = pytest.importorskip("google.adk.agents")
    from google.adk.agents.run_config import RunConfig, StreamingMode
    from google.adk.runners import InMemoryRunner

    monkeypatch.setenv("GOOGLE_API_KEY", "none")
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", sandbox.url)
    with Meter("memory://", budgets=["2 calls per session"]) as meter, meter.instrument_google_genai():
        brief = types.GenerateContentConfig(max_output_tokens=100)
        agent = agents.Agent(
            name="teller", model=MODEL, instruction="Be brief.", generate_content_config=brief
        )
        runner = InMemoryRunner(agent=agent, app_name="shop")
        said = types.Content(role="user", parts=[types.Part(text="Go on.")])

        async def ask(session: str, mode: Any) -> None:
            asked = {"user_id": "ada", "session_id": session, "new_message": said}
            with meter.session(session, user="ada"):
                async for _ in runner.run_async(**asked, run_config=RunConfig(streaming_mode=mode)):
                    pass

        async def run() -> None:
            session = await runner.session_service.create_session(app_name="shop", user_id="ada")
            await ask(session.id, StreamingMode.NONE)
            await ask(session.id, StreamingMode.SSE)
            with pytest.raises(BudgetExceeded):
                await ask(session.id, StreamingMode.NONE)
            assert [(e.session_id, e.user_id, e.status) for e in entries(meter)] == [
                (session.id, "ada", "settled")
            ] * 2

        asyncio.run(run())
        assert sandbox.requests == 2
        assert_agrees(meter, sandbox)
