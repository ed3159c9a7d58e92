"""The table of `quickstarts/REFUSALS.md`: how a refusal arrives at each door, as tests have found it.

A test asks at a door until it is refused, and hands what it has caught to `as_documented`: the row says that.
With `BEHEST_WRITE_DOCS=1` and `-n 0`, the tests write their rows anew (test_refusals, test_gateway_clients,
test_gateway_messages, test_litellm_proxy); those of frameworks that are not installed stay as they are.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import entries

from behest_integrations import Budget, BudgetExceeded, Meter
from behest_integrations.sandbox import Sandbox

PAGE = Path(__file__).parent.parent / "quickstarts" / "REFUSALS.md"
BEGIN, END = "<!-- refusals -->\n", "<!-- /refusals -->\n"
HEAD = (
    "| door | asked by | what you catch | where the numbers are | asked again | reached the provider |\n"
    "|---|---|---|---|---|---|\n"
)
CAP = "$0.003 per session"
"""What a door's test gives to a session; its calls cost at most half of it, and are not shortened."""


@dataclass(frozen=True)
class Found:
    """What became of a call that did not fit.

    Args:
        caught: the class that its user catches, or the answer.
        numbers: where the limit is, what is spent and what was asked for.
        again: how often the framework asked the meter again.
        reached: how many requests the provider has seen that were not let through.
    """

    caught: str
    numbers: str
    again: int
    reached: int


def name_of(cls: type) -> str:
    """A class as people import it; ours by its name alone."""
    package = cls.__module__.split(".")[0]
    if package == "behest_integrations":
        return f"`{cls.__qualname__}`"
    whole = package if getattr(sys.modules[package], cls.__qualname__, None) is cls else cls.__module__
    return f"`{whole}.{cls.__qualname__}`"


def numbers_of(details: Mapping[str, Any]) -> str:
    """That the details of a gateway's answer have the numbers; what they are called there."""
    assert 0 <= details["usage"] <= details["limit"] < details["usage"] + details["held"] + details["needed"]
    return "`limit`, `usage`, `needed`"


def numbers_in(error: BaseException, cap: int) -> str:
    """Where the numbers are: in the error itself, or in one that it was made of."""
    for path in ("", ".__cause__", ".__cause__.__cause__", ".__context__"):
        found: Any = error
        for part in path.split(".")[1:]:
            found = getattr(found, part, None)
        if isinstance(found, BudgetExceeded):
            short = found.shortfall
            assert short.limit == cap
            assert 0 < short.spent <= cap < short.spent + short.held + short.asked
            return f"`error{path}.shortfall`"
    raise AssertionError(f"no numbers are in {error!r}")


def refused(meter: Meter, sandbox: Sandbox, ask: Callable[[], Any]) -> Found:
    """Ask until it is refused, and look at what came.

    Raises:
        AssertionError: it is not refused, or what is caught has no numbers.
    """
    begun = sandbox.requests
    for _ in range(12):
        before = _refusals(meter)
        try:
            ask()
        except Exception as error:
            assert sandbox.requests > begun, f"the provider was never asked: {error!r}"
            cap = Budget.parse(CAP).amount
            again = _refusals(meter) - before - 1
            return Found(name_of(type(error)), numbers_in(error, cap), again, _unbooked(meter, sandbox))
    raise AssertionError("never refused")


def _refusals(meter: Meter) -> int:
    meter.flush()
    return sum(row["count"] for row in meter.ledger.submit(lambda rows: rows.everything()).refusals)


def _unbooked(meter: Meter, sandbox: Sandbox) -> int:
    """How many requests have reached the provider beside those that were let through."""
    return sandbox.requests - len(entries(meter))


# ── the page ───────────────────────────────────────────────────────────────────────────


def rows() -> dict[str, str]:
    """The page's rows, by door."""
    table = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    lines = table.removeprefix("\n" + HEAD).removeprefix(HEAD).splitlines()
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines if line}


def as_documented(door: str, found: Mapping[str, Found]) -> None:
    """What was found, by way to ask, is what the page says of that door.

    Raises:
        AssertionError: it is not; or not every way found the same.
    """
    same = set(found.values())
    assert len(same) == 1, f"{door}: its ways differ, so they are doors of their own: {found}"
    (each,) = same
    cells = (
        door,
        ", ".join(found),
        each.caught,
        each.numbers,
        "no" if each.again == 0 else f"{each.again} times",
        "no" if each.reached == 0 else f"{each.reached} times",
    )
    row = f"| {' | '.join(cells)} |"
    if os.environ.get("BEHEST_WRITE_DOCS"):
        write({**rows(), door: row})
    assert rows().get(door) == row, f"{PAGE.name} is not what was found: {HOW}"


HOW = "see the first lines of tests/refusal_table.py"


def write(table: Mapping[str, str], order: Iterable[str] | None = None) -> None:
    """The page with these rows, in this order."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    lines = [table[door] for door in order or table if door in table]
    PAGE.write_text(before + BEGIN + "\n" + HEAD + "\n".join(lines) + "\n\n" + END + after, encoding="utf-8")
