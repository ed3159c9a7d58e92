"""Which functions one metered call makes, by module: `python tests/benchmarks/calls.py [STORE]`.

Counts do not depend on the machine, so a test holds them (`tests/test_calls_made.py`).
"""

from __future__ import annotations

import cProfile
import json
import pstats
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import openai
from openai import OpenAI

import behest_integrations
from behest_integrations import Meter

if int(openai.__version__.split(".")[0]) >= 3:
    import httpx2 as httpx
else:
    import httpx  # type: ignore[no-redef]

PACKAGE = str(Path(behest_integrations.__file__).parent)
BUDGETS = ["$1000000 per session", "$1000000/day per user", "100M calls/minute per user"]
MESSAGES: Any = [{"role": "user", "content": "What is the capital of France?"}]
REPLY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "gpt-4o-mini",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Paris."}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 80, "completion_tokens": 60, "total_tokens": 140},
    }
).encode()


def calls_made(store: str = "memory://", times: int = 50) -> Counter[str]:
    """Our functions that one `chat.completions.create` calls, by module."""

    def reply(_request: Any) -> Any:
        return httpx.Response(200, content=REPLY, headers={"content-type": "application/json"})

    transport: Any = httpx.Client(transport=httpx.MockTransport(reply))
    client = OpenAI(base_url="http://provider.test/v1", api_key="none", http_client=transport)
    found: Counter[str] = Counter()
    with Meter(store, budgets=BUDGETS) as meter, meter.session("conversation-1", user="user-1"):
        metered = meter.openai(client, provider="openai")

        def call() -> None:
            metered.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, max_tokens=200)

        for _ in range(5):
            call()
        profile = cProfile.Profile()
        profile.enable()
        for _ in range(times):
            call()
        profile.disable()
    stats: Any = pstats.Stats(profile)
    for (file, _line, _name), (_primitive, calls, *_rest) in stats.stats.items():
        if file.startswith(PACKAGE):
            found[str(Path(file).relative_to(PACKAGE))] += calls
    return Counter({module: round(calls / times) for module, calls in found.items()})


if __name__ == "__main__":
    made = calls_made(*sys.argv[1:2])
    for module, calls in made.most_common():
        print(f"{calls:5}  {module}")
    print(f"{sum(made.values()):5}  in all")
