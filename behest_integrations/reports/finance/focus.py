"""The books as FOCUS, the FinOps Open Cost and Usage Specification: 1.2 to 1.4 in one file.

https://focus.finops.org/focus-specification/v1-2/: a row for each kind of token, as in the specification's
own example of tokens. 1.4 has ServiceProviderName and HostProviderName in place of 1.2's ProviderName
and PublisherName: both pairs are there. Names that begin with ``x_`` are ours.

A row is a day of one session, user, model and status. Which rows there are is decided by when entries
were *booked*, and entries are append-only: what has been exported once is exported again as it was. A
truth that comes later is booked later; it is a correction, in the billing period in which it was
booked, of the day that it is about. How a cost is divided between kinds of tokens is by the prices that
are known when it is exported: the sums stay, whatever those become.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from decimal import ROUND_HALF_EVEN, Context, Decimal
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

import sqlalchemy as sa

from ...ledger import Ledger, schema
from ...prices import Pricing
from ...rules.units import to_usd
from ..lines import narrowed
from ..shown import Asked, reading
from .centres import CostCentres
from .kinds import KINDS, REQUESTS, Counts, Splitting

_e = schema.entries
_DAY = 86_400_000
_MTOK = 10**6
_PRECISE = Context(prec=40)
_PLACES = Decimal("1e-12")
"""Of a price that is worked out from a cost: dollars for a million tokens."""
AT_ONCE = 2_000
"""Rows that are read at once: so much is in memory, however many there are."""

TEXTS = (
    "BillingAccountId", "BillingAccountName", "BillingAccountType", "BillingCurrency", "ChargeCategory",
    "ChargeClass", "ChargeDescription", "ChargeFrequency", "ConsumedUnit", "HostProviderName",
    "InvoiceId", "InvoiceIssuerName", "PricingCategory", "PricingCurrency", "PricingUnit", "ProviderName",
    "PublisherName", "RegionId", "RegionName", "ResourceId", "ResourceName", "ResourceType",
    "ServiceCategory", "ServiceName", "ServiceProviderName", "ServiceSubcategory", "SkuId", "SkuMeter",
    "SkuPriceDetails", "SkuPriceId", "SubAccountId", "SubAccountName", "SubAccountType", "Tags",
    "AvailabilityZone", "CapacityReservationId", "CapacityReservationStatus",
    "CommitmentDiscountCategory", "CommitmentDiscountId", "CommitmentDiscountName",
    "CommitmentDiscountStatus", "CommitmentDiscountType", "CommitmentDiscountUnit",
)  # fmt: skip
MOMENTS = ("BillingPeriodEnd", "BillingPeriodStart", "ChargePeriodEnd", "ChargePeriodStart")
NUMBERS = (
    "BilledCost", "CommitmentDiscountQuantity", "ConsumedQuantity", "ContractedCost",
    "ContractedUnitPrice", "EffectiveCost", "ListCost", "ListUnitPrice",
    "PricingCurrencyContractedUnitPrice", "PricingCurrencyEffectiveCost", "PricingCurrencyListUnitPrice",
    "PricingQuantity",
)  # fmt: skip
_COSTS = ("BilledCost", "ContractedCost", "EffectiveCost", "ListCost", "PricingCurrencyEffectiveCost")
_PRICES = (
    "ContractedUnitPrice", "ListUnitPrice", "PricingCurrencyContractedUnitPrice",
    "PricingCurrencyListUnitPrice",
)  # fmt: skip
OURS = (
    "x_Correction", "x_CostCentre", "x_Operation", "x_ServiceTier", "x_SessionId", "x_Stage", "x_Status",
    "x_Unpriced", "x_UserId",
)  # fmt: skip
"""``x_Correction`` and ``x_Unpriced`` are "true" or empty; ``x_Status`` as in the ledger."""
COLUMNS = (*sorted((*TEXTS, *MOMENTS, *NUMBERS)), *OURS)

_BY = (
    "day", "booked", "tenant", "project", "session_id", "user_id", "provider", "model", "service_tier",
    "status", "stage", "operation", "tags", "late", "unpriced",
)  # fmt: skip


class _Group(NamedTuple):
    """What a day's rows have in common: the day that they are about, and that on which they were
    booked (in ms)."""

    day: int
    booked: int
    tenant: str | None
    project: str | None
    session_id: str | None
    user_id: str | None
    provider: str | None
    model: str
    service_tier: str | None
    status: str
    stage: str | None
    operation: str
    tags: str
    late: int
    unpriced: int


def focus_rows(
    ledger: Ledger, asked: Asked, *, pricing: Pricing | None = None, centres: CostCentres | None = None
) -> Iterator[dict[str, Any]]:
    """The rows, one after another: texts, `datetime`s and `Decimal`s, by `COLUMNS`; None: null.

    Args:
        asked: `since` and `until` are about when entries were booked.
        pricing: what divides an entry's cost between kinds of tokens; default: the price list.

    Raises:
        StoreError: the store cannot be read.
    """
    splitting = Splitting(pricing or Pricing())
    centres = centres or CostCentres()
    with reading(ledger) as connection:
        found = connection.execution_options(yield_per=AT_ONCE).execute(_statement(asked))
        for key, rows in groupby(found, key=lambda row: tuple(row[: len(_BY)])):
            group = _Group(*key)
            yield from _rows(group, _sums(group, rows, splitting), centres)


def _statement(asked: Asked) -> sa.Select[Any]:
    """Entries in an order in which those of one group follow each other."""
    # Calls of which an assumption was taken back, and when they were booked first.
    taken = sa.select(_e.c.call_id).where(_e.c.reversal == 1)
    first = (
        sa.select(_e.c.call_id, sa.func.min(_e.c.id).label("id"), sa.func.min(_e.c.at).label("at"))
        .where(_e.c.call_id.in_(taken))
        .group_by(_e.c.call_id)
        .subquery()
    )
    is_correction = _e.c.operation == CORRECTION
    about = sa.case((is_correction, _e.c.started), (first.c.at.is_not(None), first.c.at), else_=_e.c.at)
    late = sa.case((is_correction, 1), (first.c.id != _e.c.id, 1), else_=0)
    keys = {
        "day": about - about % _DAY,
        "booked": _e.c.at - _e.c.at % _DAY,
        "tags": sa.cast(_e.c.tags, sa.Text()),
        "late": late,
        "unpriced": sa.case((_e.c.cost.is_(None), 1), else_=0),
    }
    by = [keys[name] if name in keys else _e.c[name] for name in _BY]
    statement = sa.select(
        *(column.label(f"k{i}") for i, column in enumerate(by)),
        _e.c.input_tokens, _e.c.output_tokens, _e.c.cached_input_tokens, _e.c.cache_write_tokens,
        _e.c.reasoning_tokens, _e.c.input_audio_tokens, _e.c.output_audio_tokens, _e.c.cost,
    ).outerjoin_from(_e, first, first.c.call_id == _e.c.call_id)  # fmt: skip
    return narrowed(statement, asked).order_by(*(f"k{i}" for i in range(len(by))), _e.c.id)


CORRECTION = "correction"
"""The operation of entries that say what an invoice has otherwise: see `reconcile`."""


class _Sum:
    """What a kind of token comes to in a group."""

    __slots__ = ("cost", "quantity", "rate", "same")

    def __init__(self) -> None:
        self.quantity = self.cost = 0
        self.rate: int | None = None
        self.same = True

    def add(self, quantity: int, cost: int, rate: int | None) -> None:
        self.same = self.same and rate is not None and self.rate in (None, rate)
        self.rate = rate
        self.quantity += quantity
        self.cost += cost


def _sums(group: _Group, rows: Iterator[Any], splitting: Splitting) -> dict[str, _Sum]:
    sums: dict[str, _Sum] = {}
    for row in rows:
        counts, cost = Counts(*row[-8:-1]), row[-1]
        for part in splitting.parts(group.model, group.provider, group.service_tier, counts, cost):
            sums.setdefault(part.kind, _Sum()).add(part.quantity, part.cost, part.rate)
    return sums


def _rows(group: _Group, sums: Mapping[str, _Sum], centres: CostCentres) -> Iterator[dict[str, Any]]:
    there = [(kind, sums[kind]) for kind in KINDS if kind in sums]
    if not there:
        return
    common = _common(group, centres)
    for kind, found in there:
        if not found.quantity and not found.cost:
            continue
        yield {**common, **_of_kind(group, kind, found)}


def _common(group: _Group, centres: CostCentres) -> dict[str, Any]:
    day, booked = _moment(group.day), _moment(group.booked)
    month = booked.replace(day=1)
    after = (month + timedelta(days=32)).replace(day=1)
    tags: dict[str, str] = json.loads(group.tags)
    provider = _named(group.provider)
    correction = bool(group.late) and (day.year, day.month) != (booked.year, booked.month)
    project, tenant = group.project, group.tenant
    return {
        **dict.fromkeys(COLUMNS),
        "BillingAccountId": tenant or "default",
        "BillingAccountName": tenant or "default",
        "BillingAccountType": "Tenant",
        "BillingCurrency": "USD",
        "BillingPeriodStart": month,
        "BillingPeriodEnd": after,
        "ChargeCategory": "Usage",
        "ChargeClass": "Correction" if correction else None,
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodStart": day,
        "ChargePeriodEnd": day + timedelta(days=1),
        "HostProviderName": provider,
        "InvoiceIssuerName": provider,
        "PricingCategory": "Standard",
        "PricingCurrency": "USD",
        "ProviderName": provider,
        "PublisherName": provider,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": f"{provider} API",
        "ServiceProviderName": provider,
        "ServiceSubcategory": "Generative AI",
        "SkuPriceDetails": _json({"x_ModelId": group.model}),
        "SubAccountId": project,
        "SubAccountName": project,
        "SubAccountType": "Project" if project is not None else None,
        "Tags": _json(tags),
        "x_Correction": "true" if group.late else None,
        "x_CostCentre": centres.of_call(project, group.user_id, tenant, tags),
        "x_Operation": group.operation,
        "x_ServiceTier": group.service_tier,
        "x_SessionId": group.session_id,
        "x_Stage": group.stage,
        "x_Status": group.status,
        "x_Unpriced": "true" if group.unpriced else None,
        "x_UserId": group.user_id,
    }


def _of_kind(group: _Group, kind: str, found: _Sum) -> dict[str, Any]:
    cost = to_usd(found.cost)
    unit, per = ("Requests", 1) if kind == REQUESTS else ("Tokens", _MTOK)
    quantity = Decimal(found.quantity)
    priced = quantity / per
    if found.same and found.rate is not None:
        price = Decimal(found.rate * per).scaleb(-15)
    else:
        exact = _PRECISE.divide(cost, priced) if priced else Decimal(0)
        price = exact.quantize(_PLACES, ROUND_HALF_EVEN)
    sku = f"{group.model}/{kind}"
    return {
        **dict.fromkeys(_COSTS, cost),
        **dict.fromkeys(_PRICES, price),
        "ChargeDescription": f"{group.model} {kind}{' (correction)' if group.late else ''}",
        "ConsumedQuantity": quantity,
        "ConsumedUnit": unit,
        "PricingQuantity": priced,
        "PricingUnit": f"{_MTOK} Tokens" if per == _MTOK else unit,
        "SkuId": sku,
        "SkuMeter": kind,
        "SkuPriceId": f"{sku}/{group.service_tier or 'default'}",
    }


def _json(value: Mapping[str, str]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms // 1000, timezone.utc)


@lru_cache(maxsize=1024)
def _named(provider: str | None) -> str:
    """A provider as it writes itself; its id, where the price list has no name for it."""
    from genai_prices.data_snapshot import get_snapshot

    names: Sequence[str] = [p.name for p in get_snapshot().providers if p.id == provider]
    return names[0] if names else provider or "Unknown"
