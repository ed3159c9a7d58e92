"""How amounts and times are written on the pages: short. The exact number is in the element's title."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from zoneinfo import ZoneInfo

from ..reports.standing import Standing
from ..rules.pace import Pace
from ..rules.units import format_amount, format_usd, to_usd


def money(nano: int | None) -> str:
    """Nano-dollars, rounded to what a person reads: ``$1,234.50``, ``$0.0123``, ``$0.0000021``."""
    if nano is None:
        return "no price"
    if nano == 0:
        return "$0"
    sign, value = ("−" if nano < 0 else ""), to_usd(abs(nano))
    if value >= 1:
        return f"{sign}${value.quantize(Decimal('0.01'), ROUND_HALF_EVEN):,}"
    # Three digits that say something, and at least cents.
    digits = max(2, 2 - value.adjusted())
    text = f"{value.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_EVEN):f}"
    whole, _, fraction = text.partition(".")
    return f"{sign}${whole}.{fraction.rstrip('0').ljust(2, '0')}"


def amount(n: int, unit: str) -> str:
    """An amount of a budget's unit: ``$67.20``, ``1.2M tokens``, ``10 calls``."""
    if unit == "usd":
        return money(n)
    words = format_amount(0, unit).partition(" ")[2]
    return f"{number(n)} {words}"


def exact(n: int | None, unit: str = "usd") -> str:
    """The same without rounding."""
    if n is None:
        return ""
    return format_usd(n) if unit == "usd" else f"{n:,}"


def number(n: int) -> str:
    """A count: whole up to 99,999, then ``123k``, ``1.23M``, ``4.56G``."""
    sign, n = ("−" if n < 0 else ""), abs(n)
    for suffix, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if n >= size and n >= 100_000:
            value = Decimal(n) / size
            digits = max(0, 2 - value.adjusted())
            return f"{sign}{value.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_EVEN):f}{suffix}"
    return f"{sign}{n:,}"


def percent(permille: int) -> str:
    """Thousandths as per cent; what is not nothing is never 0, what is not all is never 100."""
    if 0 < permille < 10 or 990 < permille < 1000:
        return f"{permille / 10:.1f} %"
    return f"{permille // 10} %"


def share(part: int, whole: int) -> int:
    """In thousandths, between 0 and 1000; what is not nothing is at least one."""
    return max(0, min(1000, max(int(part > 0), part * 1000 // whole))) if whole > 0 else 0


def clock(ms: int, zone: ZoneInfo, now: datetime) -> str:
    """A moment, as much of it as is needed: ``14:03:07`` today, else ``24 Nov 14:03:07``."""
    at, today = datetime.fromtimestamp(ms / 1000, zone), now.astimezone(zone)
    if at.date() == today.date():
        return f"{at:%H:%M:%S}"
    day = f"{at.day} {at:%b}" + (f" {at.year}" if at.year != today.year else "")
    return f"{day} {at:%H:%M:%S}"


def ago(ms: int, now: datetime) -> str:
    """How long something has been: ``now``, ``12 s ago``, ``3 days ago``."""
    seconds = int(now.timestamp() - ms / 1000)
    return "now" if seconds < 1 else f"{lasting(seconds)} ago"


def lasting(seconds: int) -> str:
    """A duration in one unit: ``12 s``, ``5 min``, ``3 h``, ``2 days``."""
    if seconds < 90:
        return f"{seconds} s"
    if seconds < 90 * 60:
        return f"{seconds // 60} min"
    if seconds < 48 * 3600:
        return f"{seconds // 3600} h"
    return f"{seconds // 86400} days"


def until(ms: int, zone: ZoneInfo, now: datetime) -> str:
    """A moment to come, as it is said: ``in 12 min``, ``at 17:40``, ``on Friday``, ``on the 24th``."""
    at, today = datetime.fromtimestamp(ms / 1000, zone), now.astimezone(zone)
    seconds = int(at.timestamp() - now.timestamp())
    if seconds < 90 * 60:
        return f"in {lasting(max(0, seconds))}"
    if at.date() == today.date():
        return f"at {at:%H:%M}"
    if at.date() == (today + timedelta(days=1)).date():
        return f"tomorrow at {at:%H:%M}"
    if (at.year, at.month) == (today.year, today.month):
        return f"on the {_ordinal(at.day)}"
    return f"on {at.day} {at:%b}" + (f" {at.year}" if at.year != today.year else "")


def _ordinal(n: int) -> str:
    return f"{n}{'th' if 10 < n % 100 < 14 else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')}"


def outlook(standing: Standing, zone: ZoneInfo, now: datetime) -> str:
    """What comes of a budget: when it is out, or when it resets; "" where there is nothing to say."""
    full = standing.spent >= standing.limit
    resets = f"resets {until(standing.end, zone, now)}" if standing.end is not None else ""
    if full and standing.soft:
        over = amount(standing.spent - standing.limit, standing.unit)
        return ", ".join([f"over by {over}, it warns only", *filter(None, [resets])])
    if full:
        return f"used up, {resets}" if resets else "used up" + ("" if standing.rolling else " for good")
    said: Pace | None = standing.pace
    if said is not None and said.out_at is not None and said.out_at - now.timestamp() * 1000 < 366 * 86400e3:
        return f"out {until(said.out_at, zone, now)} at this rate"
    if said is not None and said.by_end is not None and resets:
        return f"{resets}, on course for {percent(share(said.by_end, standing.limit))}"
    return resets


def stands(standing: Standing, zone: ZoneInfo, now: datetime) -> str:
    """The sentence: ``$67 of $100, 67 %, out on the 24th at this rate``."""
    spent = amount(standing.spent, standing.unit)
    if standing.unit != "usd":
        spent = number(standing.spent)
    said = [f"{spent} of {amount(standing.limit, standing.unit)}", percent(standing.permille)]
    return ", ".join([*said, *filter(None, [outlook(standing, zone, now)])])
