"""A ledger of many calls, written in bulk: what pages and reports are measured over, and looked at with.

python tests/big_ledger.py FILE [CALLS] [DAYS]
"""

from __future__ import annotations

import json
import random
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from behest_integrations import Meter
from behest_integrations.ledger.schema import entries
from behest_integrations.rules.attribution import Attribution
from behest_integrations.rules.budgets import Budget

MODELS = {  # dollars a million tokens, in and out; how often
    "gpt-4o": (2500, 10000, 4),
    "gpt-4o-mini": (150, 600, 8),
    "claude-sonnet-4-5": (3000, 15000, 3),
    "gemini-2.5-flash": (300, 2500, 5),
    "text-embedding-3-small": (20, 0, 1),
}
WHO = {"acme": ("support", "search"), "globex": ("agents", "support"), "initech": ("billing",)}
BUDGETS = ("$400/month per project", "$3/day per user", "$0.50 per session", "500 calls/day per user")
STAGES = (None, None, None, "research", "research/draft", "research/review", "answer")


def fill(path: Path, calls: int, *, days: int = 60, now: float | None = None, seed: int = 1) -> None:
    """Write `calls` calls of the last `days` days, with their buckets: `behest verify` agrees."""
    chance = random.Random(seed)
    Meter(f"sqlite:///{path}", budgets=BUDGETS).close()
    budgets = [Budget.parse(text) for text in BUDGETS]
    until = int((now or time.time()) * 1000)
    buckets: dict[tuple[str, str, int], list[int]] = {}
    units: dict[str, str] = {budget.shape: budget.unit for budget in budgets}

    def booked(who: Attribution, model: str, at: int, amounts: dict[str, int]) -> str:
        bookings = []
        for budget in budgets:
            key = (budget.shape, budget.scope_key(who, model), budget.window_at(at).start)
            bucket = buckets.setdefault(key, [len(buckets) + 1, 0])
            bucket[1] += amounts[budget.unit]
            bookings.append((bucket[0], budget.unit, amounts[budget.unit]))
        return json.dumps(bookings)

    def rows() -> Iterator[tuple[Any, ...]]:
        names = [*MODELS]
        weights = [MODELS[name][2] for name in names]
        made = 0
        sessions = max(1, calls // 20)
        for number in range(sessions):
            tenant = chance.choices([*WHO], [5, 3, 1])[0]
            project = chance.choice(WHO[tenant])
            user = f"u-{int(chance.paretovariate(0.8)) % 5000}"
            session = f"{project}-{number:06}"
            tags = json.dumps({"feature": chance.choice(("chat", "rag", "summary"))})
            first = until - days * 86_400_000 * (sessions - number) // sessions
            model = chance.choices(names, weights)[0]
            many = 20 if number < sessions - 1 else calls - made
            for turn in range(many):
                made += 1
                name = model if chance.random() < 0.85 else chance.choices(names, weights)[0]
                at = min(until - 1000, first + turn * 21_000)
                status = chance.choices(("settled", "assumed", "estimated", "failed"), (970, 12, 10, 8))[0]
                inputs, output = 200 + 150 * turn + chance.randrange(400), chance.randrange(20, 900)
                of_input, of_output, _ = MODELS[name]
                cost = inputs * of_input + output * of_output
                if status == "failed":
                    inputs = output = cost = 0
                who = Attribution(session_id=session, user_id=user, project=project, tenant=tenant)
                counts = {"usd": cost, "calls": int(status != "failed")}
                yield (
                    f"call-{made}", at, status, at - chance.randrange(300, 9000), session, user, project,
                    tenant, tags, chance.choice(STAGES), "embeddings" if "embedding" in name else "chat",
                    "openai", name, inputs, output if of_output else 0, inputs // 3,
                    output // 4 if name == "gemini-2.5-flash" else 0, cost, counts["calls"],
                    booked(who, name, at, counts),
                )  # fmt: skip

    columns = (
        "call_id", "at", "status", "started", "session_id", "user_id", "project", "tenant", "tags", "stage",
        "operation", "provider", "model", "input_tokens", "output_tokens", "cached_input_tokens",
        "reasoning_tokens", "cost", "calls", "bookings",
    )  # fmt: skip
    rest = {
        c.name: "" if c.name in ("flags", "note") else 0
        for c in entries.columns
        if not c.nullable and c.name not in (*columns, "id")
    }
    names, values = [*columns, *rest], ["?"] * len(columns) + [repr(value) for value in rest.values()]
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        connection.executemany(f"INSERT INTO entries ({','.join(names)}) VALUES ({','.join(values)})", rows())
        connection.executemany(
            "INSERT INTO buckets (id, budget, scope, start, unit, spent, held, notified) "
            "VALUES (?,?,?,?,?,?,0,0)",
            ((id, *key, units[key[0]], spent) for key, (id, spent) in buckets.items()),
        )
    connection.close()


if __name__ == "__main__":
    given = sys.argv[2:]
    fill(Path(sys.argv[1]), int(given[0]) if given else 20_000, days=int(given[1]) if len(given) > 1 else 60)
