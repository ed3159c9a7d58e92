"""How the benchmarks measure: in turns, so that a noisy machine is noisy for all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

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
