"""What the gateway adds to a call, under a load that does not wait for answers.

pytest -n 0 -m benchmark tests/benchmarks/test_gateway_speed.py -s

Calls come at times that are fixed beforehand, and a call's latency counts from the time at which it
was to come: who falls behind is not forgiven. Direct and through the gateway take turns. The load,
the gateway and the provider share this machine. Prints; asserts no times.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import httpx
import psutil
import pytest
from gateway_support import Gateway, chat, free_port
from measure import BUDGETS, say

pytestmark = pytest.mark.benchmark

RATES = (100, 300, 1000)
SECONDS = 6
ROUNDS = 3
CALLS = 100_000


class Provider:
    """The sandbox, in a process of its own."""

    def __init__(self, port: int) -> None:
        self.base_url = f"http://127.0.0.1:{port}/v1"


@contextmanager
def provider(latency: float) -> Iterator[Provider]:
    port = free_port()
    command = [sys.executable, "-m", "behest_integrations.cli", "sandbox", "--port", str(port)]
    process = subprocess.Popen([*command, "--latency", str(latency)], stdout=subprocess.DEVNULL)
    there = Provider(port)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                httpx.get(f"{there.base_url}/models")
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield there
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


async def load(url: str, key: str, rate: int, *, stream: bool, seed: int) -> list[tuple[float, float]]:
    """(seconds to the first byte, to the end) of each call, from when it was to be made."""
    rng = random.Random(seed)
    loop = asyncio.get_running_loop()
    body = chat(max_tokens=64, stream=stream)

    async def one(session: aiohttp.ClientSession, due: float) -> tuple[float, float]:
        async with session.post(f"{url}/chat/completions", json=body) as answer:
            assert answer.status == 200, await answer.text()
            first = 0.0
            async for _ in answer.content.iter_any():
                first = first or loop.time()
            return first - due, loop.time() - due

    headers = {"Authorization": f"Bearer {key}", "X-End-User-Id": "u", "X-Session-Id": "s"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        await asyncio.gather(*(one(session, loop.time()) for _ in range(20)))  # connections
        due, calls = loop.time() + 0.05, []
        for _ in range(rate * SECONDS // ROUNDS):
            await asyncio.sleep(max(0.0, due - loop.time()))
            calls.append(asyncio.ensure_future(one(session, due)))
            due += rng.expovariate(rate)
        return list(await asyncio.gather(*calls))


def at(samples: list[float], share: float) -> float:
    return sorted(samples)[min(len(samples) - 1, int(len(samples) * share))] * 1000


@pytest.mark.parametrize("stream", [False, True], ids=["in one piece", "streamed"])
def test_time_added_to_a_call(tmp_path: Path, stream: bool) -> None:
    with provider(0.0) as sandbox, Gateway(tmp_path, sandbox, budgets=BUDGETS) as gateway:  # type: ignore[arg-type]
        key = gateway.key()
        say(
            f"Added by the gateway, {'streamed' if stream else 'in one piece'}; ms, and as a ratio to direct:"
        )
        for rate in RATES:
            seen: dict[str, list[tuple[float, float]]] = {"direct": [], "gateway": []}
            for turn in range(ROUNDS):
                for name, url in (("direct", sandbox.base_url), ("gateway", gateway.base_url)):
                    seen[name] += asyncio.run(load(url, key, rate, stream=stream, seed=turn))
            for place, what in ((0, "first byte"), (1, "end")):
                if place == 0 and not stream:
                    continue
                times = {name: [s[place] for s in samples] for name, samples in seen.items()}
                line = f"  {rate:>5}/s {what:>10}:"
                for share in (0.5, 0.99):
                    direct, through = at(times["direct"], share), at(times["gateway"], share)
                    line += (
                        f"  p{share * 100:.0f} {direct:.2f} -> {through:.2f}"
                        f" (+{through - direct:.2f}, {through / direct:.2f} x)"
                    )
                say(line)


def test_one_call_after_another(tmp_path: Path) -> None:
    """Without a queue anywhere: what the gateway itself takes."""
    with provider(0.0) as sandbox, Gateway(tmp_path, sandbox, budgets=BUDGETS) as gateway:  # type: ignore[arg-type]
        key = gateway.key()

        async def some(url: str, count: int) -> list[float]:
            headers = {"Authorization": f"Bearer {key}", "X-End-User-Id": "u", "X-Session-Id": "s"}
            times = []
            async with aiohttp.ClientSession(headers=headers) as session:
                for _ in range(count):
                    started = time.perf_counter()
                    async with session.post(f"{url}/chat/completions", json=chat(max_tokens=64)) as answer:
                        await answer.read()
                    times.append(time.perf_counter() - started)
            return times[20:]

        seen: dict[str, list[float]] = {"direct": [], "gateway": []}
        for _ in range(6):
            seen["direct"] += asyncio.run(some(sandbox.base_url, 300))
            seen["gateway"] += asyncio.run(some(gateway.base_url, 300))
        for share in (0.5, 0.99):
            direct, through = at(seen["direct"], share), at(seen["gateway"], share)
            say(
                f"one by one, p{share * 100:.0f}: direct {direct:.2f} ms, gateway {through:.2f} ms "
                f"(+{through - direct:.2f} ms, {through / direct:.2f} x)"
            )


def test_memory_after_100_000_calls(tmp_path: Path) -> None:
    """Each of a session and a user of its own."""
    with provider(0.0) as sandbox, Gateway(tmp_path, sandbox, budgets=BUDGETS) as gateway:  # type: ignore[arg-type]
        key = gateway.key()
        assert gateway.process is not None
        process = psutil.Process(gateway.process.pid)

        async def calls(count: int) -> None:
            async def some() -> None:
                for _ in range(count // 32):
                    who = {"X-Session-Id": secrets.token_hex(16), "X-End-User-Id": secrets.token_hex(16)}
                    async with session.post(
                        f"{gateway.base_url}/chat/completions", json=chat(max_tokens=8), headers=who
                    ) as answer:
                        assert answer.status == 200
                        await answer.read()

            async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session:
                await asyncio.gather(*(some() for _ in range(32)))

        tenth = CALLS // 10
        started, before = time.monotonic(), 0
        for turn in range(10):
            asyncio.run(calls(tenth))
            now = process.memory_info().rss
            before = before or now
            say(f"{(turn + 1) * tenth:>7} calls: {now / 1e6:.1f} MB ({now / before:.2f} x after {tenth})")
        say(f"{CALLS / (time.monotonic() - started):.0f} calls/s, each session and user used once")
