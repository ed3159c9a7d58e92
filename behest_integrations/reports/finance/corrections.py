"""What an invoice has otherwise, booked: entries of their own, so that no difference is left."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime, time, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

from ...ledger import Entry, Ledger
from ...ledger.book import Claim, Rows, correct
from ...rules.attribution import NOBODY
from ...rules.budgets import Budget
from ...rules.units import format_usd
from ..shown import explained
from .differences import Difference
from .focus import CORRECTION
from .reconcile import Reconciliation

_MOST_CALLS = 30_000
"""In one entry: more are written as several."""


def book_differences(ledger: Ledger, found: Reconciliation, *, now: int, source: str = "") -> int:
    """Write each difference as an entry of its own, so that none is left; how many were written.

    They are in the budgets of everybody, of the day that they are about; in nobody's own. Booked
    twice, or by two at once, they are written once.

    Args:
        now: milliseconds since 1970.
        source: what the entries' notes call the invoice.

    Raises:
        StoreError: the store cannot be written.
    """
    made = [e for line in found.lines for e in _corrections(line, found, now, source)]

    def write(rows: Rows) -> int:
        known = [(Budget.parse(b.text), b.zone) for b in rows.known_budgets()]
        written = 0
        for entry, amounts in made:
            # A transaction may be run again, and must not find what it wrote.
            fresh = replace(entry, bookings=[])
            written += correct(rows, entry=fresh, amounts=amounts, claims=[*_claims(known, entry)])
        return written

    with explained(ledger):
        return ledger.submit(write) if made else 0


def _corrections(
    line: Difference, found: Reconciliation, now: int, source: str
) -> Iterator[tuple[Entry, dict[str, int]]]:
    if not (line.difference or line.inputs or line.outputs or line.calls):
        return
    named = (found.provider, line.day, line.model, line.billed, line.line, vars(line.booked))
    digest = hashlib.sha256(repr(named).encode()).hexdigest()[:24]
    why = "; ".join(f"{cause} {format_usd(nano)}" for cause, nano in line.causes.items())
    day = datetime.combine(line.day, time(12), _zone_of(found.zone))
    calls, part = line.calls, 0
    while True:
        now_calls = max(-_MOST_CALLS, min(_MOST_CALLS, calls))
        first = part == 0
        entry = Entry(
            f"reconcile-{digest}-{part}", now, "settled",
            started=int(day.timestamp() * 1000),
            operation=CORRECTION,
            provider=found.provider,
            model=line.model,
            input_tokens=line.inputs if first else 0,
            output_tokens=line.outputs if first else 0,
            cost=line.difference if first else 0,
            calls=now_calls,
            flags="reconciled",
            note=f"{source}: {why}".strip(": ") if first else source,
        )  # fmt: skip
        yield (
            entry,
            {
                "usd": entry.cost or 0,
                "tokens": entry.input_tokens + entry.output_tokens,
                "input_tokens": entry.input_tokens,
                "output_tokens": entry.output_tokens,
                "calls": entry.calls,
            },
        )
        calls, part = calls - now_calls, part + 1
        if not calls:
            return


def _zone_of(name: str) -> tzinfo:
    return timezone(timedelta(hours=int(name[3:]))) if name[:3] == "UTC" and name != "UTC" else ZoneInfo(name)


def _claims(known: Iterable[tuple[Budget, str]], entry: Entry) -> Iterator[Claim]:
    """The buckets of everybody that a correction counts in."""
    for budget, zone in known:
        if set(budget.per) <= {"model"} and budget.applies_to(NOBODY, entry.model) and not budget.rolling_ms:
            window = budget.window_at(entry.started, zone)
            key = budget.scope_key(NOBODY, entry.model)
            yield Claim(budget.shape, key, window.start, budget.unit, budget.amount, str(budget), window.end)
