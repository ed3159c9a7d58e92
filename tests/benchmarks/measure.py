"""How the benchmarks measure: in turns, so that a noisy machine is noisy for all alike."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import openai
from openai import OpenAI

if int(openai.__version__.split(".")[0]) >= 3:
    import httpx2 as httpx
else:
    import httpx  # type: ignore[no-redef]

BUDGETS = ["$1000000 per session", "$1000000/day per user", "100M calls/minute per user"]


def say(*lines: str) -> None:
    print("\n" + "\n".join(lines), flush=True)


def interleaved(work: dict[str, Callable[[], None]], *, rounds: int, each: int) -> dict[str, float]:
    """Median seconds per call of each, measured in turns so that noise hits all alike."""
    samples: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, function in work.items():
            started = time.perf_counter()
            for _ in range(each):
                function()
            samples[name].append((time.perf_counter() - started) / each)
    return {name: statistics.median(values) for name, values in samples.items()}


# ── a call that meets no network ───────────────────────────────────────────────────────

MESSAGES: Any = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France, and how many people live there? " * 4},
]
REPLY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "gpt-4o-mini",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Paris, about two million. " * 8},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 80, "completion_tokens": 60, "total_tokens": 140},
    }
).encode()


def reply(_request: Any) -> Any:
    return httpx.Response(200, content=REPLY, headers={"content-type": "application/json"})


def bare_client() -> OpenAI:
    transport: Any = httpx.Client(transport=httpx.MockTransport(reply))
    return OpenAI(base_url="http://provider.test/v1", api_key="none", http_client=transport)
