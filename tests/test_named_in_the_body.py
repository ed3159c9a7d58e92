"""Whom a request's own body names, at every door: the last that is asked, and as far as it may."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gateway_support import Gateway, chat
from hypothesis import given
from hypothesis import strategies as st
from support import HELLO, client, entries
from test_fields_at_the_doors import DOORS

from behest_integrations import Attribution, Meter, session
from behest_integrations.rules.attribution import NOBODY, from_body
from behest_integrations.sandbox import Sandbox

SAID = {"user": "u-body", "metadata": {"session_id": "s-body"}}


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        sandbox.rules = SimpleNamespace(model="gpt-4o", provider=None)  # type: ignore[attr-defined]
        yield sandbox


def whose(meter: Meter) -> tuple[str | None, str | None]:
    (entry,) = entries(meter)
    return entry.session_id, entry.user_id


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
@pytest.mark.parametrize("scoped", [False, True])
def test_it_is_asked_last_at_every_door(sandbox: Sandbox, door: Callable[..., object], scoped: bool) -> None:
    with Meter("memory://", budgets=["$5 per user"]) as meter:
        if scoped:
            with session("s-scope"):
                door(meter, sandbox, SAID)
        else:
            door(meter, sandbox, SAID)
        assert whose(meter) == ("s-scope" if scoped else "s-body", "u-body")


def test_headers_and_the_clients_own_are_before_it(sandbox: Sandbox) -> None:
    with Meter("memory://", budgets=["$5 per user"]) as meter:
        one = meter.openai(client(sandbox, default_headers={"X-Session-Id": "s-client"}))
        one.chat.completions.create(
            model="gpt-4o", messages=HELLO, extra_headers={"X-End-User-Id": "u-header"}, extra_body=SAID
        )
        assert whose(meter) == ("s-client", "u-header")


def test_a_budget_holds_whom_the_body_names(sandbox: Sandbox) -> None:
    from behest_integrations import BudgetExceeded

    with Meter("memory://", budgets=["1 calls per user"]) as meter:
        one = meter.openai(client(sandbox))
        for user in ("ada", "alan"):
            one.chat.completions.create(model="gpt-4o", messages=HELLO, safety_identifier=user)
        with pytest.raises(BudgetExceeded, match="ada"):
            one.chat.completions.create(model="gpt-4o", messages=HELLO, safety_identifier="ada", user="alan")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=3),
)


@given(user=ANYTHING, safety=ANYTHING, session_id=ANYTHING)
def test_whatever_is_in_it_is_an_id_or_none(user: Any, safety: Any, session_id: Any) -> None:
    said = from_body({"user": user, "safety_identifier": safety, "metadata": {"session_id": session_id}})
    assert said.tenant is said.project is None
    for value in (said.user_id, said.session_id):
        assert value is None or (value == value.strip(" \t") and 0 < len(value) <= 256 and "\n" not in value)


@pytest.mark.parametrize(
    "body", [{}, {"user": ""}, {"user": "a\nb"}, {"metadata": []}, {"metadata": {"x": 1}}]
)
def test_what_names_nobody(body: dict[str, Any]) -> None:
    assert from_body(body) is NOBODY


def test_the_safety_identifier_is_before_the_older_field() -> None:
    assert from_body({"user": "old", "safety_identifier": "new"}) == Attribution(user_id="new")


def test_through_the_gateway_it_says_no_more_than_its_caller_may(sandbox: Sandbox, tmp_path: Path) -> None:
    with Gateway(tmp_path, sandbox) as gateway:
        key = gateway.key()
        bound = (
            gateway.http(key).post("/auth/mint", json={"user_id": "u-token", "session_id": "s-token"}).json()
        )
        asked = chat(max_tokens=5, **SAID)
        for text in (key, bound["token"], gateway.key(end_users=False)):
            assert gateway.http(text).post("/chat/completions", json=asked).status_code == 200
        headers = {"X-End-User-Id": "u-header"}
        assert gateway.http(key, **headers).post("/chat/completions", json=asked).status_code == 200
        with gateway.meter() as meter:
            assert [(e.session_id, e.user_id) for e in entries(meter)] == [
                ("s-body", "u-body"), ("s-token", "u-token"), ("s-body", None), ("s-body", "u-header"),
            ]  # fmt: skip
