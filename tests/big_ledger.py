"""A ledger of many calls, written in bulk: what pages and reports are measured over, and looked at with.

Its rows are what settles write: `tests/test_blocks.py` holds them against some. What each call cost is by the
price list's rates, which are kept, so that `behest verify` proves every one.

python tests/big_ledger.py FILE [CALLS] [DAYS]
"""

from __future__ import annotations

import json
import random
import sqlite3
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from behest_integrations import Meter, Usage
from behest_integrations.ledger.schema import entries
from behest_integrations.prices import Pricing
from behest_integrations.prices.terms import terms_of
from behest_integrations.rules.attribution import Attribution
from behest_integrations.rules.budgets import Budget

MODELS = {  # whose, and how often
    "gpt-4o": ("openai", 4),
    "gpt-4o-mini": ("openai", 8),
    "claude-sonnet-4-5": ("anthropic", 3),
    "gemini-2.5-flash": ("google", 5),
    "text-embedding-3-small": ("openai", 1),
}
WHO = {"acme": ("support", "search"), "globex": ("agents", "support"), "initech": ("billing",)}
BUDGETS = ("$400/month per project", "$3/day per user", "$0.50 per session", "500 calls/day per user")
STAGES = (None, None, None, "research", "research/draft", "research/review", "answer")
_AT_ONCE = 20_000
_HOUR = 3_600_000


def fill(path: Path, calls: int, *, days: int = 60, now: float | None = None, seed: int = 1) -> None:
    """Write `calls` calls of the last `days` days, with their buckets: `behest verify` agrees."""
    chance = random.Random(seed)
    Meter(f"sqlite:///{path}", budgets=BUDGETS).close()
    budgets = [Budget.parse(text) for text in BUDGETS]
    until = int((now or time.time()) * 1000)
    buckets: dict[tuple[str, str, int], list[Any]] = {}
    windows: dict[tuple[int, int], int] = {}
    prices = Pricing()
    pricings = {name: prices.find(name, provider) for name, (provider, _) in MODELS.items()}
    terms: dict[str, str] = {}

    def bucket(shape: str, scope: str, start: int, unit: str, amount: int) -> tuple[int, str, int]:
        found = buckets.setdefault((shape, scope, start), [len(buckets) + 1, unit, 0])
        found[2] += amount
        return found[0], unit, amount

    def booked(scopes: list[str], run: str, stage: str | None, at: int, amounts: dict[str, int]) -> str:
        bookings = []
        for place, budget in enumerate(budgets):
            hour = (place, at // _HOUR)
            if hour not in windows:  # none of these windows begins within an hour
                windows[hour] = budget.window_at(at).start
            amount = amounts[budget.unit]
            bookings.append(bucket(budget.shape, scopes[place], windows[hour], budget.unit, amount))
        for name in stage.split("/") if stage else ():
            bookings.append(bucket("stage usd", json.dumps([f"{name}#{run}"]), 0, "usd", amounts["usd"]))
        return json.dumps(bookings, separators=(",", ":"))

    def rows() -> Iterator[tuple[Any, ...]]:
        names = [*MODELS]
        weights = [MODELS[name][1] for name in names]
        made = 0
        sessions = max(1, calls // 20)
        for number in range(sessions):
            tenant = chance.choices([*WHO], [5, 3, 1])[0]
            project = chance.choice(WHO[tenant])
            user = f"u-{int(chance.paretovariate(0.8)) % 5000}"
            session = f"{project}-{number:06}"
            run = f"{chance.getrandbits(48):012x}"
            tags = json.dumps({"feature": chance.choice(("chat", "rag", "summary"))}, separators=(",", ":"))
            who = Attribution(session_id=session, user_id=user, project=project, tenant=tenant)
            scopes = [budget.scope_key(who, "") for budget in budgets]
            first = until - days * 86_400_000 * (sessions - number) // sessions
            model = chance.choices(names, weights)[0]
            many = 20 if number < sessions - 1 else calls - made
            for turn in range(many):
                made += 1
                name = model if chance.random() < 0.85 else chance.choices(names, weights)[0]
                is_chat = not name.startswith("text-embedding")
                at = min(until - 1000, first + turn * 21_000)
                status = chance.choices(("settled", "assumed", "estimated", "failed"), (970, 12, 10, 8))[0]
                inputs, output = 200 + 150 * turn + chance.randrange(400), chance.randrange(20, 900)
                usage = Usage(
                    inputs,
                    output if is_chat else 0,
                    inputs // 3 if is_chat and status != "assumed" else 0,
                    reasoning_tokens=output // 4 if name == "gemini-2.5-flash" and status != "assumed" else 0,
                )
                cost, by = pricings[name].cost(usage), None
                if status == "failed":
                    usage, cost = Usage(0), 0
                elif status != "assumed":
                    priced = terms_of(pricings[name], usage, None, None, None)
                    assert priced is not None
                    terms[priced.id], by = priced.text, priced.id
                told = is_chat and status == "settled"
                stage = chance.choice(STAGES)
                counts = {"usd": cost, "calls": int(status != "failed")}
                yield (
                    f"{at:012x}{chance.getrandbits(64):016x}", at, status, at - chance.randrange(300, 9000),
                    session, user, project, tenant, tags, stage, "chat" if is_chat else "embeddings",
                    MODELS[name][0], name, "default" if told and name.startswith("gpt") else None,
                    usage.input_tokens, usage.output_tokens, usage.cached_input_tokens,
                    usage.reasoning_tokens, cost, counts["calls"], 1024 if is_chat else None,
                    f"chatcmpl-{chance.getrandbits(96):024x}" if told else None, by,
                    booked(scopes, run, stage, at, counts),
                )  # fmt: skip

    columns = (
        "call_id", "at", "status", "started", "session_id", "user_id", "project", "tenant", "tags", "stage",
        "operation", "provider", "model", "service_tier", "input_tokens", "output_tokens",
        "cached_input_tokens", "reasoning_tokens", "cost", "calls", "output_limit", "provider_id", "rates",
        "bookings",
    )  # fmt: skip
    rest = {
        c.name: "" if c.name in ("flags", "note") else 0
        for c in entries.columns
        if not c.nullable and c.name not in (*columns, "id")
    }
    names, values = [*columns, *rest], ["?"] * len(columns) + [repr(value) for value in rest.values()]
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        insert = f"INSERT INTO entries ({','.join(names)}) VALUES ({','.join(values)})"
        made = rows()
        while some := list(islice(made, _AT_ONCE)):
            connection.executemany(insert, some)
            connection.commit()
        connection.executemany("INSERT INTO terms (id, text) VALUES (?,?)", terms.items())
        connection.executemany(
            "INSERT INTO buckets (id, budget, scope, start, unit, spent, held, notified) "
            "VALUES (?,?,?,?,?,?,0,0)",
            ((id, *key, unit, spent) for key, (id, unit, spent) in buckets.items()),
        )
    connection.close()


if __name__ == "__main__":
    given = sys.argv[2:]
    fill(Path(sys.argv[1]), int(given[0]) if given else 20_000, days=int(given[1]) if len(given) > 1 else 60)
