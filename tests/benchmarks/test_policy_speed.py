"""What a policy adds to a call, as ratios to a bare client of the same run. Prints; asserts no times.

pytest -n 0 -m benchmark tests/benchmarks/test_policy_speed.py -s
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from measure import BUDGETS, MESSAGES, bare_client, interleaved, say

from behest_integrations import Meter

pytestmark = pytest.mark.benchmark

POLICIES: dict[str, Any] = {
    "off": None,
    "models": {
        "models": ["gpt-4o*"],
        "max_output_tokens": 500,
        "rules": [{"tenant": "acme", "priced": True}],
    },
    "models, audit off": {"models": ["gpt-4o*"], "audit": {"allowed": False}},
    "sentinel": {"sentinel": {}},
    "secrets": {"pii": {"entities": {"SECRET": "redact"}}},
    "pii": {"pii": {}},
}


def test_time_added_by_a_policy() -> None:
    clients: dict[str, Any] = {"bare": bare_client()}
    for name, policy in POLICIES.items():
        meter = Meter("memory://", budgets=BUDGETS, policy=policy)
        clients[name] = meter.openai(bare_client(), provider="openai")

    def call(client: Any) -> Callable[[], None]:
        return lambda: client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, max_tokens=200)

    work = {name: call(client) for name, client in clients.items()}
    interleaved(work, rounds=1, each=5)
    found = interleaved(work, rounds=15, each=5)
    bare, off = found["bare"], found["off"]
    say(
        f"time added by a policy, in-process transport, memory, 3 budgets; bare {bare * 1e6:.0f} µs",
        *(
            f"  {name:<18} {(found[name] - bare) * 1e6:+8.0f} µs   {(found[name] - bare) / bare:6.2f} × bare"
            f"   {(found[name] - off) / bare:+6.2f} × bare over off"
            for name in POLICIES
        ),
    )
