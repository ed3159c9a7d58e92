"""What limits of one's own cost: a call of one of 3,000 users who each have one, against one where none has.

pytest -n 0 -m benchmark tests/benchmarks/test_limits_speed.py -s
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from measure import interleaved, say

from behest_integrations import Meter, Usage, session
from behest_integrations.wire import RequestBound

pytestmark = pytest.mark.benchmark

USERS = 3000


def calling(meter: Meter, limited: int) -> Callable[[], None]:
    """Calls of one user after the other, of whom so many have a limit of their own."""
    for number in range(limited):
        meter.set_limit("$5/day per user", "$20", user=f"u{number}")
    bound, number = RequestBound(100, output_limit=100), 0

    def call() -> None:
        nonlocal number
        number = (number + 1) % USERS
        with session(user=f"u{number}"):
            meter.reserve(meter.plan("chat", "gpt-4o", bound)).settle(Usage(10, 10))

    return call


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_time_added_to_a_call_by_3000_limits(kind: str, tmp_path: Path) -> None:
    work = {}
    for limited in (0, USERS):
        store = "memory://" if kind == "memory" else f"sqlite:///{tmp_path}/{limited}.db"
        work[str(limited)] = calling(Meter(store, budgets=["$5/day per user"]), limited)
    interleaved(work, rounds=2, each=USERS // 2)
    found = interleaved(work, rounds=60, each=50)
    none, all_of_them = found["0"], found[str(USERS)]
    say(
        f"reserve and settle of one of {USERS} users, {kind}",
        f"  none has a limit of their own   {none * 1e6:7.0f} µs",
        f"  each has one                    {all_of_them * 1e6:7.0f} µs   {all_of_them / none:5.2f} ×",
        "  target: ≤ 1.10 ×",
    )
