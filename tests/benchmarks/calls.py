"""Which functions one metered call makes, by module: `python tests/benchmarks/calls.py [STORE]`.

Counts do not depend on the machine, so a test holds them (`tests/test_calls_made.py`).
"""

from __future__ import annotations

import cProfile
import pstats
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from measure import BUDGETS, MESSAGES, bare_client

import behest_integrations
from behest_integrations import Meter

PACKAGE = str(Path(behest_integrations.__file__).parent)


def calls_made(store: str = "memory://", times: int = 50, policy: Any = None) -> Counter[str]:
    """Our functions that one `chat.completions.create` calls, by module."""

    found: Counter[str] = Counter()
    whose = {"session_id": "conversation-1", "user": "user-1"}
    with Meter(store, budgets=BUDGETS, policy=policy) as meter, meter.session(**whose):
        metered = meter.openai(bare_client(), provider="openai")

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
