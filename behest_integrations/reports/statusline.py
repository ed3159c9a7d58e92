"""`behest statusline`: what was spent today and the fullest budget, in one line for a prompt or a bar."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from ..ledger import Ledger
from ..rules.units import format_usd, to_usd
from .budgets import BucketLine, buckets
from .look import count, resets
from .shown import Asked, Shown
from .spending import report_of


def show_statusline(ledger: Ledger, asked: Asked) -> Shown:
    """Today's spending, and of the budgets in use the one that is fullest."""
    zone = ZoneInfo(asked.zone)
    midnight = datetime.combine(asked.at.astimezone(zone).date(), datetime.min.time(), zone)
    today = report_of(ledger, ("model",), replace(asked, since=midnight)).total
    lines = buckets(ledger, now_ms=int(asked.at.timestamp() * 1000), asked=asked)
    limited = [line for line in lines if line.limit is not None and line.stage is None]
    fullest = max(limited, key=_presses, default=None)
    row: dict[str, Any] = {
        "today_usd": format(to_usd(today.cost), "f"),
        "calls": today.calls,
        "refused": today.refused,
        "budget": fullest.budget if fullest else None,
        "scope": fullest.scope if fullest else None,
        "percent": fullest.percent if fullest else None,
    }
    return Shown([row], lambda: _line(today.cost, today.calls, fullest, asked.at))


def _presses(line: BucketLine) -> tuple[bool, int]:
    """What is nearly used up and then refuses goes before what only warns, however much that is over."""
    percent = line.percent or 0
    return percent >= 80 and not line.soft, percent


def _line(cost: int, calls: int, fullest: BucketLine | None, now: datetime) -> str:
    said = f"{_rounded(cost)} today, {count(calls)} calls"
    if fullest is None:
        return said
    whose = f" ({fullest.scope})" if fullest.scope else ""
    turn = resets(fullest.end, now)
    end = "" if turn == "never" else f", resets {turn}"
    return f"{said} · {fullest.percent} % of {fullest.budget}{whose}{end}"


def _rounded(nano: int) -> str:
    """To the cent, or to two digits of what is less than one: a bar has little room."""
    size = 10_000_000
    while nano and nano < size * 10 and size > 1:
        size //= 10
    return format_usd((nano + size // 2) // size * size)
