"""`behest reconcile`: a provider's own export held against the books, and the difference explained.

By day and model: tokens, dollars, per cent, and the causes that a difference has. What an invoice has
otherwise can be booked, as entries of their own: what was booked before is never changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from rich.table import Table

from ...ledger import Ledger, schema
from ...prices import Pricing
from ...rules.errors import ConfigError
from ...rules.units import format_usd, to_usd
from ..look import count, id_or_none
from ..shown import Shown, reading
from .differences import CAUSES, Booked, Difference, causes_of
from .focus import AT_ONCE
from .invoices import BilledLine

_e = schema.entries
_QUARTER = 900_000


@dataclass(frozen=True)
class Reconciliation:
    """An invoice against the books.

    Attributes:
        zone: in which days are meant: another than was asked for, where that explains a part.
        asked: the zone that was asked for.
        provider: whose calls were compared; None: everybody's.
    """

    lines: Sequence[Difference]
    zone: str
    provider: str | None
    asked: str = "UTC"

    @property
    def difference(self) -> int:
        """Nano-dollars that were billed beyond what is booked."""
        return sum(line.difference for line in self.lines)

    @property
    def moved(self) -> int:
        """Nano-dollars that would lie on other days in the zone that was asked for."""
        return sum(line.moved for line in self.lines if line.moved > 0)

    def by_cause(self) -> dict[str, int]:
        """Nano-dollars by cause, of all lines."""
        found = {cause: sum(line.causes.get(cause, 0) for line in self.lines) for cause in CAUSES}
        there = {cause for line in self.lines for cause in line.causes}
        return {cause: nano for cause, nano in found.items() if cause in there}


def reconcile(
    ledger: Ledger,
    invoice: Sequence[BilledLine],
    *,
    provider: str | None = None,
    pricing: Pricing | None = None,
    zone: str = "UTC",
    find_zone: bool = True,
) -> Reconciliation:
    """Hold an invoice against the books.

    Args:
        invoice: see `invoices.read_invoice`.
        provider: whose calls; None: everybody's. Calls of which it is not known who served them are
            compared where the invoice has their model.
        zone: the time zone of the invoice's days.
        find_zone: whether to look for the zone in which days differ least.

    Raises:
        ConfigError: there is nothing to compare.
        StoreError: the store cannot be read.
    """
    pricing = pricing or Pricing()
    if any(line.model is None for line in invoice):
        raise ConfigError(
            "the invoice does not say which model was billed: export it grouped by model (OpenAI's costs by "
            "line_item, Anthropic's by description)"
        )
    first, last = min(x.day for x in invoice), max(x.day for x in invoice)
    found = _booked(ledger, first, last, provider)
    names = _Names(pricing, provider, {x.model for x in invoice if x.model})
    zones = _zones(zone) if find_zone else {zone: ZoneInfo(zone)}
    by_zone = {name: _by_day(found, at, names, first, last) for name, at in zones.items()}
    best = min(by_zone, key=lambda name: _distance(invoice, by_zone[name], names))
    # A fifth less is no accident; a little less may be.
    if _distance(invoice, by_zone[best], names) * 5 > _distance(invoice, by_zone[zone], names) * 4:
        best = zone
    lines = _lines(invoice, by_zone[best])
    for line in lines:
        line.causes = causes_of(line, pricing, provider)
        line.moved = line.booked.cost - by_zone[zone].get((line.day, line.model), Booked()).cost
    return Reconciliation(lines, best, provider, zone)


def _zones(asked: str) -> dict[str, tzinfo]:
    """The zone that is asked for, and every whole hour: an invoice may be of any."""
    hours = {f"UTC{h:+d}": timezone(timedelta(hours=h)) for h in range(-12, 15)}
    return {asked: ZoneInfo(asked), **hours}


class _Names:
    """The invoice's names of models, and which of them the books' names stand for."""

    def __init__(self, pricing: Pricing, provider: str | None, billed: Iterable[str]) -> None:
        self._pricing = pricing
        self._provider = provider
        self.billed = frozenset(billed)
        self._known: dict[str, str] = {}

    def of(self, model: str) -> str:
        if model not in self._known:
            same = self._pricing.same_model
            one = (n for n in sorted(self.billed) if n == model or same(model, n, self._provider))
            self._known[model] = model if model in self.billed else next(one, model)
        return self._known[model]


_Key = tuple[date, str]


def _booked(
    ledger: Ledger, first: date, last: date, provider: str | None
) -> list[tuple[int, str, bool, Booked]]:
    """What is booked, by quarters of an hour and model, a day around the invoice's, too."""
    when = sa.case((_e.c.started > 0, _e.c.started), else_=_e.c.at)
    unsure = _e.c.status.in_(("assumed", "estimated"))
    unpriced = _e.c.cost.is_(None)
    quarter = (when - when % _QUARTER).label("quarter")
    known = _e.c.provider.is_not(None).label("known")

    def add(column: Any, only: Any = None) -> Any:
        return sa.func.coalesce(sa.func.sum(column if only is None else sa.case((only, column), else_=0)), 0)

    sums = (
        add(_e.c.calls),
        *map(add, (_e.c.input_tokens, _e.c.output_tokens, _e.c.cached_input_tokens, _e.c.cost)),
        *(add(column, unsure) for column in (_e.c.calls, _e.c.input_tokens, _e.c.output_tokens, _e.c.cost)),
        *(add(column, unpriced) for column in (_e.c.input_tokens, _e.c.output_tokens)),
    )
    begin = datetime.combine(first - timedelta(days=1), time(), timezone.utc)
    end = datetime.combine(last + timedelta(days=3), time(), timezone.utc)
    statement = (
        sa.select(quarter, _e.c.model, known, *sums)
        .where(when >= int(begin.timestamp() * 1000), when < int(end.timestamp() * 1000))
        .where(_e.c.operation != "tool")
        # What a tenant pays by its own key is on the tenant's invoice.
        .where(sa.func.coalesce(_e.c.tags["paid_by"].as_string(), "") != "tenant")
        .group_by(quarter, _e.c.model, known)
    )
    if provider is not None:
        statement = statement.where(sa.or_(_e.c.provider == provider, _e.c.provider.is_(None)))
    with reading(ledger) as connection:
        rows = connection.execution_options(yield_per=AT_ONCE).execute(statement)
        return [
            (at, model, bool(is_known) or provider is None, Booked(*map(int, values)))
            for at, model, is_known, *values in rows
        ]


def _by_day(
    found: Iterable[tuple[int, str, bool, Booked]], zone: tzinfo, names: _Names, first: date, last: date
) -> dict[_Key, Booked]:
    days: dict[_Key, Booked] = {}
    for at, model, known, booked in found:
        day = datetime.fromtimestamp(at / 1000, zone).date()
        name = names.of(model)
        if first <= day <= last and (known or name in names.billed):
            days.setdefault((day, name), Booked()).add(booked)
    return days


def _distance(invoice: Sequence[BilledLine], days: Mapping[_Key, Booked], names: _Names) -> Decimal:
    """How far the invoice is from the books, day by day: in tokens where it has any, else in dollars."""
    in_tokens = any(line.inputs is not None for line in invoice)
    total, seen = Decimal(0), set()
    for line in invoice:
        key = (line.day, line.model or "")
        seen.add(key)
        booked = days.get(key, Booked())
        if in_tokens:
            total += abs((line.inputs or 0) + (line.outputs or 0) - booked.inputs - booked.outputs)
        else:
            total += abs(_nano(line.cost) - booked.cost)
    # What is on no invoice says nothing of its days.
    left = (b for key, b in days.items() if key not in seen and key[1] in names.billed)
    rest = (b.inputs + b.outputs if in_tokens else b.cost for b in left)
    return total + sum(map(abs, rest))


def _nano(usd: Decimal | None) -> int:
    return 0 if usd is None else int((usd * 10**9).quantize(Decimal(1), ROUND_HALF_EVEN))


def _lines(invoice: Sequence[BilledLine], days: Mapping[_Key, Booked]) -> list[Difference]:
    billed = {(line.day, line.model or ""): line for line in invoice}
    has_costs = any(line.cost is not None for line in invoice)
    has_tokens = any(line.inputs is not None for line in invoice)
    has_calls = any(line.requests is not None for line in invoice)
    lines = []
    for day, model in sorted({*billed, *days}):
        zero = 0 if has_tokens else None
        none = BilledLine(day, model, Decimal(0), 0 if has_calls else None, zero, zero)
        line = billed.get((day, model), none)
        nano = _nano(line.cost) if has_costs else None
        lines.append(Difference(day, model, nano, line, days.get((day, model), Booked())))
    return lines


# ── how it is shown ────────────────────────────────────────────────────────────────────


def show_reconciliation(found: Reconciliation) -> Shown:
    """The difference by day and model, and by cause."""
    rows = [line.as_dict() for line in found.lines]
    causes = {cause: format(to_usd(nano), "f") for cause, nano in found.by_cause().items()}
    flat = [{**row, "causes": "; ".join(f"{c}: {usd}" for c, usd in row["causes"].items())} for row in rows]
    return Shown(
        flat,
        lambda: _table(found),
        data={
            "zone": found.zone,
            "on_another_day_usd": format(to_usd(found.moved), "f"),
            "provider": found.provider,
            "lines": rows,
            "difference_usd": format(to_usd(found.difference), "f"),
            "causes": causes,
        },
        empty="Nothing was billed, and nothing is booked.",
    )


def _table(found: Reconciliation) -> Any:
    from rich.console import Group
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_footer=True, header_style="bold", footer_style="bold")
    table.add_column("day", footer="total", no_wrap=True)
    table.add_column("model", overflow="fold", min_width=8)
    billed, booked = sum(x.billed or 0 for x in found.lines), sum(x.booked.cost for x in found.lines)
    footers = (format_usd(billed), format_usd(booked), format_usd(found.difference), "", "")
    for name, footer in zip(("billed", "booked", "difference", "%", "tokens"), footers, strict=True):
        table.add_column(name, footer=footer, justify="right", no_wrap=True)
    for x in found.lines:
        table.add_row(
            x.day.isoformat(), id_or_none(x.model), "" if x.billed is None else format_usd(x.billed),
            format_usd(x.booked.cost), format_usd(x.difference), str(x.per_cent or ""), count(x.tokens),
        )  # fmt: skip
    said = [f"{format_usd(nano)}  {cause}" for cause, nano in found.by_cause().items()]
    why = Text("\n".join(["Why:", *said]) if said else "There is no difference in dollars.")
    days = f"Days are meant in {found.zone}."
    if found.zone != found.asked:
        days = (
            f"The invoice's days are those of {found.zone}: {format_usd(found.moved)} lie on other days in "
            f"{found.asked}."
        )
    return Group(table, "", why, Text(days, style="dim"))
