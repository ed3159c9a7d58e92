"""Who a call is for: scopes, threads, tasks, headers, and ids of any script."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import HELLO, aclient, client, entries

from behest_integrations import Attribution, ConfigError, Meter, session
from behest_integrations.rules.attribution import current, from_headers
from behest_integrations.sandbox import Sandbox


def test_inner_scopes_override_what_they_name_and_add_tags() -> None:
    with session("outer", user="u", project="p", tags={"a": "1", "b": "1"}):
        with session("inner", tags={"b": "2"}) as who:
            assert who == Attribution("inner", "u", "p", None, {"a": "1", "b": "2"})
            assert current() == who
        assert current().session_id == "outer"
    assert current() == Attribution()


def test_a_scope_ends_with_an_exception_and_can_be_entered_again() -> None:
    scope = session("again")
    for _ in range(2):
        with pytest.raises(KeyError), scope, scope:
            raise KeyError
        assert current() == Attribution()


def test_tasks_keep_their_own_scope() -> None:
    async def one(name: str) -> str | None:
        async with session(name):
            await asyncio.sleep(0.001)
            inner = asyncio.create_task(asyncio.sleep(0, current().session_id))
            return await inner

    async def run() -> list[str | None]:
        return await asyncio.gather(*(one(f"s{i}") for i in range(50)))

    assert asyncio.run(run()) == [f"s{i}" for i in range(50)]


def test_threads_inherit_the_scope_where_the_pool_carries_the_context() -> None:
    async def to_thread() -> str | None:
        with session("threaded"):
            return await asyncio.to_thread(lambda: current().session_id)

    assert asyncio.run(to_thread()) == "threaded"
    with session("copied"), ThreadPoolExecutor(1) as pool:
        seen = pool.submit(contextvars.copy_context().run, lambda: current().session_id).result()
        plain = pool.submit(lambda: current().session_id).result()
    assert (seen, plain) == ("copied", None)


def test_decorated_functions_of_every_kind() -> None:
    scope = session("decorated", user="u")

    @scope
    def plain(x: int) -> tuple[int, str | None]:
        return x, current().session_id

    @scope
    async def coroutine() -> str | None:
        await asyncio.sleep(0)
        return current().session_id

    @scope
    def generator() -> Iterator[str | None]:
        got = yield current().session_id
        yield f"{got} {current().session_id}"

    @scope
    async def agenerator() -> AsyncIterator[str | None]:
        for _ in range(2):
            await asyncio.sleep(0)
            yield current().session_id

    async def collect() -> list[str | None]:
        found = []
        async for item in agenerator():
            assert current().session_id is None  # the consumer keeps its own
            found.append(item)
        return found

    assert plain(3) == (3, "decorated")
    assert plain.__name__ == "plain"
    assert asyncio.run(coroutine()) == "decorated"
    running: Any = generator()
    assert next(running) == "decorated"
    assert current().session_id is None
    assert running.send("sent") == "sent decorated"
    running.close()
    assert asyncio.run(collect()) == ["decorated", "decorated"]


def test_a_decorated_generator_passes_exceptions_in_and_closes() -> None:
    seen = []

    @session("s")
    def generator() -> Iterator[int]:
        try:
            yield 1
        except KeyError:
            seen.append("thrown")
            yield 2
        finally:
            seen.append("closed")

    running: Any = generator()
    assert next(running) == 1
    assert running.throw(KeyError()) == 2
    running.close()
    assert seen == ["thrown", "closed"]


@pytest.mark.parametrize("bad", ["", "x" * 257, "a\nb", "a\rb", "a\x00b", "a\u2028b", "\ud800", 5, b"bytes"])
def test_what_cannot_be_an_id_is_refused_at_once(bad: Any) -> None:
    with pytest.raises(ConfigError):
        session(bad)
    with pytest.raises(ConfigError):
        session(tags={"k": bad})
    with pytest.raises(ConfigError):
        session(tags={bad: "v"})


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=256))
def test_any_other_text_is_carried_as_it_is(text: str) -> None:
    with session(text, user=text, tags={text: text}) as who:
        assert (who.session_id, who.user_id, who.tags) == (text, text, {text: text})


def test_headers_are_read_whatever_their_case_and_script() -> None:
    read = from_headers({"X-SESSION-ID": "besçu ", b"x".decode(): "y", "x-end-user-id": "ü".encode()})
    assert read == Attribution("besçu", "ü")
    assert from_headers({"X-Session-Id": "  "}) == Attribution()
    assert from_headers(None) == Attribution()
    with pytest.raises(ConfigError, match="control"):
        from_headers({"X-Session-Id": "a\nb"})


def test_a_header_that_is_not_text_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="UTF-8"):
        from_headers({"X-Session-Id": b"\xff\xfe"})


def test_precedence_on_real_calls(sandbox: Sandbox) -> None:
    """The call's own headers, then the scope, then the client's, then the meter's."""
    with Meter("memory://", project="meter") as meter:
        metered = meter.openai(
            client(sandbox, default_headers={"X-Session-Id": "client", "X-End-User-Id": "c"})
        )

        def call(**headers: str) -> None:
            metered.chat.completions.create(
                model="gpt-4o", messages=HELLO, max_tokens=5, extra_headers=headers or None
            )

        call()
        with session("scope"):
            call()
            call(**{"x-session-id": "call"})
        metered.with_options(default_headers={"X-End-User-Id": "other"}).chat.completions.create(
            model="gpt-4o", messages=HELLO, max_tokens=5
        )
        who = [(e.session_id, e.user_id, e.project) for e in entries(meter)]
    assert who == [
        ("client", "c", "meter"),
        ("scope", "c", "meter"),
        ("call", "c", "meter"),
        ("client", "other", "meter"),
    ]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_ids_in_any_script_reach_the_ledger_and_the_provider(sandbox: Sandbox, asynchronous: bool) -> None:
    ids = ["séance-1", "会話", "🧾🔥", 'a,b;c="d"', "x" * 256]
    with Meter("memory://") as meter:
        if asynchronous:

            async def run() -> None:
                async with meter.openai(aclient(sandbox), send_attribution=True) as metered:
                    for id in ids:
                        async with session(id, user=id):
                            await metered.chat.completions.create(
                                model="gpt-4o", messages=HELLO, max_tokens=5
                            )

            asyncio.run(run())
        else:
            metered = meter.openai(client(sandbox), send_attribution=True)
            for id in ids:
                with session(id, user=id):
                    metered.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=5)
        assert [(e.session_id, e.user_id) for e in entries(meter)] == [(i, i) for i in ids]
    assert [(line.session_id, line.user_id) for line in sandbox.bill.lines] == [(i, i) for i in ids]


def test_calls_without_a_session_share_one_bucket(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["2 calls per session"]) as meter:
        metered = meter.openai(client(sandbox))
        for _ in range(2):
            metered.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=5)
        with pytest.raises(Exception, match="2 calls per session"):
            metered.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=5)
        with session("another"):
            metered.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=5)
