"""Helpers for tests: clients of a sandbox, and what must hold after any run."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI

from behest_integrations import BudgetExceeded, Meter
from behest_integrations.ledger.book import Entry
from behest_integrations.reports import report, verify
from behest_integrations.rules.budgets import to_nano
from behest_integrations.sandbox import Sandbox

HELLO: Any = [{"role": "user", "content": "hello there"}]
# gpt-4 answers of 490 tokens cost $0.0294 and their prompts about $0.0003: the $0.03 call.
MODEL, ANSWER = "gpt-4", 490


def client(sandbox: Sandbox, **options: Any) -> OpenAI:
    return OpenAI(base_url=sandbox.base_url, api_key="none", **{"max_retries": 0, **options})


def aclient(sandbox: Sandbox, **options: Any) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=sandbox.base_url, api_key="none", **{"max_retries": 0, **options})


def entries(meter: Meter) -> list[Entry]:
    meter.flush()
    return meter.ledger.snapshot()[2]


def holds(meter: Meter) -> int:
    return len(meter.ledger.snapshot()[1])


def assert_sound(meter: Meter) -> None:
    """No hold is left, and the buckets equal the ledger."""
    meter.flush()
    assert holds(meter) == 0
    assert verify(meter.ledger) == []


def assert_agrees(meter: Meter, sandbox: Sandbox) -> None:
    """The ledger equals the provider's bill to the nano-dollar."""
    assert report(meter.ledger).total.cost == to_nano(sandbox.bill.total())


PEOPLE = ("ada", "bob")
"""Who calls, in tests of limits: each with a session and a budget, and marked for the provider by
the `user` field of the request, which is none of ours."""


def person(number: int) -> str:
    return PEOPLE[number % len(PEOPLE)]


def ids(who: str) -> dict[str, str]:
    """What a run's metadata or tags say of whom it is for."""
    return {"session_id": f"of {who}", "user_id": who}


def assert_whose(
    meter: Meter,
    sandbox: Sandbox,
    *,
    exact: bool = True,
    whose: Callable[[Entry], str | None] = lambda entry: entry.user_id,
) -> None:
    """What is booked for each, in entries and in buckets, is what the provider billed for them.

    Args:
        exact: whether it is, to the nano-dollar; else it is at least that.
        whose: what in an entry is the mark that the provider has seen.
    """
    billed = {mark: to_nano(cost) for mark, cost in sandbox.bill.by_user().items()}
    booked: Counter[str | None] = Counter()
    named: Counter[str | None] = Counter()
    for entry in entries(meter):
        booked[whose(entry)] += entry.cost or 0
        for name in {entry.session_id, entry.user_id} - {None}:
            named[name] += entry.cost or 0
        assert entry.user_id not in PEOPLE or entry.session_id == f"of {entry.user_id}"
    assert None not in billed, "a call has no mark of its caller"
    assert set(billed) <= set(booked)
    assert None not in booked, "a call is booked for nobody"
    for mark, cost in billed.items():
        assert booked[mark] == cost if exact else booked[mark] >= cost, f"{mark}: {booked} is not {billed}"
    buckets: Counter[tuple[str, str]] = Counter()
    for bucket in meter.ledger.snapshot()[0]:
        if bucket.unit == "usd" and bucket.scope:
            buckets[bucket.budget, bucket.scope] += bucket.spent
    for (_, scope), spent in buckets.items():
        (name,) = json.loads(scope)
        if isinstance(name, list):  # a tenant's own
            name = name[0]
        assert name is None or spent == named[name], f"the bucket of {name} is not what is booked for {name}"
        assert name is not None or spent == 0, "nobody's bucket is used"


def assert_each_within(sandbox: Sandbox, limit: Decimal, least: Decimal) -> None:
    """Each has been billed at most `limit`, and at least `least`."""
    for who, spent in sandbox.bill.by_user().items():
        assert spent <= limit, f"{who}'s budget was passed: {spent}"
        assert spent >= least, f"only {spent} of {who}'s was used"
    assert set(sandbox.bill.by_user()) == set(PEOPLE)


def until_exhausted(call: Any, *, most: int = 400, pause: float = 0.03) -> int:
    """Call on and on until the budget is used up, trying again while it is only busy."""
    made = 0
    for _ in range(most):
        try:
            call()
            made += 1
        except BudgetExceeded as error:
            if not error.busy:
                return made
            time.sleep(pause)
    raise AssertionError(f"not exhausted after {most} tries")


async def auntil_exhausted(call: Any, *, most: int = 400, pause: float = 0.03) -> int:
    made = 0
    for _ in range(most):
        try:
            await call()
            made += 1
        except BudgetExceeded as error:
            if not error.busy:
                return made
            await asyncio.sleep(pause)
    raise AssertionError(f"not exhausted after {most} tries")


def four(call: Any) -> list[BudgetExceeded]:
    """Four calls, with no retry of the caller's own; the refusals."""
    refused = []
    for _ in range(4):
        try:
            call()
        except BudgetExceeded as error:
            refused.append(error)
    return refused


async def afour(call: Any) -> list[BudgetExceeded]:
    refused = []
    for _ in range(4):
        try:
            await call()
        except BudgetExceeded as error:
            refused.append(error)
    return refused


def assert_used_up(
    sandbox: Sandbox, meter: Meter, refused: list[list[BudgetExceeded]], left: Decimal = Decimal("0.01")
) -> None:
    """Of a budget of one dollar nothing was passed, and at most `left` is left; and nobody was
    refused before that."""
    spent = sandbox.bill.total()
    assert spent <= 1, f"the budget was passed: {spent}"
    assert spent >= 1 - left, f"only {spent} was used"
    errors = [error for some in refused for error in some]
    assert errors
    assert not any(error.busy for error in errors)
    assert all(error.shortfall.spent + error.shortfall.held >= to_nano(1 - left) for error in errors)
    assert_sound(meter)
    assert_agrees(meter, sandbox)


PRELOADED = [
    "alembic.command", "behest_integrations.cli", "behest_integrations.gateway.app",
    "behest_integrations.gateway.server", "behest_integrations.reports", "bpe_openai", "genai_prices",
    "httpx", "openai", "psutil", "pytest", "rich.console", "rich.table", "sqlalchemy",
]  # fmt: skip


def forkserver() -> Any:
    """For processes that have nothing of this one's: forks of one that has imported what they all do."""
    context = multiprocessing.get_context("forkserver")
    # The first to start it says what that is, for all.
    context.set_forkserver_preload(PRELOADED)
    return context


def slow(*value: Any) -> Any:
    """A parameter of a test that is left to the slow ones."""
    return pytest.param(*value, marks=pytest.mark.slow)


_loop: asyncio.AbstractEventLoop | None = None


def arun(work: Any) -> Any:
    """`asyncio.run`, on one loop for all of a test: models keep their connections, which belong
    to a loop."""
    global _loop
    if _loop is None:
        _loop = asyncio.new_event_loop()
    return _loop.run_until_complete(work)


def close_loop() -> None:
    """At the end of a test. A loop that lived on would hear the sockets of clients that have been
    collected, whose numbers new ones then get."""
    global _loop
    if _loop is not None:
        _loop.run_until_complete(_loop.shutdown_asyncgens())
        _loop.close()
        _loop = None
    clients = sys.modules.get("langchain_openai.chat_models._client_utils")
    for name in ("_cached_sync_httpx_client", "_cached_async_httpx_client"):
        if hasattr(clients, name):
            getattr(clients, name).cache_clear()


def kill_in_mid_call(code: str, provider: Sandbox) -> None:
    """Run `code` in a process of its own, and kill it as soon as `provider` is asked."""
    import subprocess

    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    try:
        for _ in range(6000):  # a framework is long to import where much else goes on
            if provider.requests or process.poll() is not None:
                break
            time.sleep(0.02)
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert provider.requests == 1
    finally:
        process.kill()
        process.communicate()


def older_ledger(path: Path, revision: str) -> None:
    """A ledger as a version of before wrote it, with a call of ada's."""
    import sqlalchemy as sa
    from alembic import command
    from alembic.config import Config

    import behest_integrations.ledger.schema as schema

    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        columns = sa.inspect(connection).get_columns("entries")
        values = {c["name"]: 0 if "INT" in str(c["type"]) else "" for c in columns if not c["nullable"]}
        values |= {
            "user_id": "ada",
            "tags": "{}",
            "bookings": "[]",
            "status": "settled",
            "calls": 1,
            "cost": 5,
        }
        names = ", ".join(values)
        connection.exec_driver_sql(
            f"INSERT INTO entries ({names}) VALUES ({', '.join('?' * len(values))})", tuple(values.values())
        )
    engine.dispose()
