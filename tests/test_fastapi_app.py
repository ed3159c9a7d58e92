"""The app of `quickstarts/fastapi_app`, as people run it: two workers, fifty users, some of whom leave.

Who, how much and which alerts: each is as the provider billed it, session by session.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from gateway_support import free_port
from support import assert_agrees, assert_sound, entries

from behest_integrations import Meter
from behest_integrations.rules.budgets import to_nano
from behest_integrations.sandbox import Sandbox

pytest.importorskip("fastapi")

APP = Path(__file__).parent.parent / "quickstarts" / "fastapi_app"
USERS = 50
SESSION, USER = to_nano("0.004"), to_nano("0.02")
TEXT = {"text": "hello there"}


@contextmanager
def serving(folder: Path, sandbox: Sandbox) -> Iterator[str]:
    port = free_port()
    env = {
        **os.environ,
        "OPENAI_BASE_URL": sandbox.base_url,
        "OPENAI_API_KEY": "none",
        "BEHEST_STORE": f"sqlite:///{folder}/ledger.db",
        "ALERTS": str(folder / "alerts.jsonl"),
    }
    command = [sys.executable, "-m", "uvicorn", "service:app", "--app-dir", str(APP), "--port", str(port)]
    command += ["--workers", "2", "--log-level", "warning", "--timeout-graceful-shutdown", "30"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=env, cwd=folder, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 90
        while True:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            try:
                httpx.get(f"{url}/openapi.json", timeout=5).raise_for_status()
                break
            except httpx.TransportError:
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(60)


async def visit(http: httpx.AsyncClient, number: int, told: Counter[int]) -> None:
    """One user, in two conversations: some leave a stream, some go on until the money is gone."""
    user = f"u{number}"

    async def post(conversation: str, path: str, body: object) -> None:
        headers = {"X-User": user, "X-Conversation": f"{user} {conversation}"}
        answered = await http.post(path, json=body, headers=headers)
        told[answered.status_code] += 1

    await post("first", "/ask", TEXT)
    if number % 2:
        headers = {"X-User": user, "X-Conversation": f"{user} second"}
        async with http.stream("POST", "/stream", json=TEXT, headers=headers) as answer:
            told[answer.status_code] += 1
            async for _piece in answer.aiter_raw():
                break
    else:
        await post("second", "/summarise", ["one", "two"])
    if number % 4 == 0:
        await post("second", "/summarise", ["one", "two"])
        await post("second", "/ask", TEXT)
        await post("second", "/ask", TEXT)
    if number == 0:
        refused = await http.post("/ask", json=TEXT)
        assert refused.status_code == 422  # FastAPI's own: who is it?


def test_fifty_users_some_of_whom_leave(tmp_path: Path) -> None:
    told: Counter[int] = Counter()
    with Sandbox(output_tokens=90, latency=0.01, chunk_delay=0.01) as sandbox:
        with serving(tmp_path, sandbox) as url:

            async def everybody() -> None:
                limits = httpx.Limits(max_connections=None)
                async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http:
                    await asyncio.gather(*(visit(http, n, told) for n in range(USERS)))

            asyncio.run(everybody())
        billed = {session: to_nano(cost) for session, cost in sandbox.bill.by_session().items()}
        with Meter(f"sqlite:///{tmp_path}/ledger.db") as meter:
            assert_sound(meter)
            assert_agrees(meter, sandbox)
            booked: Counter[str | None] = Counter()
            whose: dict[str | None, set[str | None]] = {}
            for entry in entries(meter):
                booked[entry.session_id] += entry.cost or 0
                whose.setdefault(entry.session_id, set()).add(entry.user_id)
                assert entry.status == "settled"
            left = sum("drained" in entry.flags for entry in entries(meter))
    # Who: each session is its user's alone. How much: as billed, and within the budget.
    assert whose == {f"u{n} {which}": {f"u{n}"} for n in range(USERS) for which in ("first", "second")}
    assert dict(booked) == billed
    assert max(billed.values()) <= SESSION
    assert told[402] > 0
    assert set(told) == {200, 402}
    assert left > 0
    # Alerts: each once, for whoever has used so much, and for nobody else.
    alerts = [json.loads(line) for line in (tmp_path / "alerts.jsonl").read_text().splitlines()]
    of_sessions = Counter((a["session"], a["percent"]) for a in alerts if a["session"] is not None)
    assert set(of_sessions.values()) == {1}
    assert {session for session, percent in of_sessions if percent == 80} == {
        session for session, cost in billed.items() if cost * 100 >= SESSION * 80
    }
    assert all(billed[session] * 100 >= SESSION * 95 for session, percent in of_sessions if percent == 100)
    said = (tmp_path / "log").read_text()
    assert "another context" not in said
    assert "Traceback" not in said
