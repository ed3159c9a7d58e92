"""The rules of FOCUS 1.2 to 1.4 that a file of usage can break, for every version of Python.

After https://focus.finops.org/focus-specification/v1-2/, by column. The specification's own validator
needs a newer Python than we do; what it finds in our file is written in its criteria, not here.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path

Row = Mapping[str, str]

# Mandatory, and what is mandatory where a provider has sub accounts, usage, unit prices or tags.
MANDATORY = (
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingAccountType", "BillingCurrency",
    "BillingPeriodEnd", "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription",
    "ChargeFrequency", "ChargePeriodEnd", "ChargePeriodStart", "ConsumedQuantity", "ConsumedUnit",
    "ContractedCost", "ContractedUnitPrice", "EffectiveCost", "InvoiceId", "InvoiceIssuerName",
    "ListCost", "ListUnitPrice", "PricingCategory", "PricingCurrency", "PricingQuantity",
    "PricingUnit", "RegionId", "RegionName", "ResourceId", "ResourceName", "ResourceType",
    "ServiceCategory", "ServiceName", "ServiceSubcategory", "SkuId", "SkuMeter", "SkuPriceDetails",
    "SkuPriceId", "SubAccountId", "SubAccountName", "SubAccountType", "Tags",
)  # fmt: skip
PROVIDERS = ("ProviderName", "PublisherName")  # 1.2 and 1.3
PROVIDERS_SINCE_1_4 = ("ServiceProviderName", "HostProviderName")
NOT_NULL = (
    "BilledCost", "BillingAccountId", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart",
    "ChargeCategory", "ChargeFrequency", "ChargePeriodEnd", "ChargePeriodStart", "ContractedCost",
    "EffectiveCost", "InvoiceIssuerName", "ListCost", "ServiceCategory", "ServiceName",
    "ServiceSubcategory",
)  # fmt: skip
COSTS = ("BilledCost", "ContractedCost", "EffectiveCost", "ListCost")
NUMBERS = (
    *COSTS,
    "ConsumedQuantity",
    "PricingQuantity",
    "ListUnitPrice",
    "ContractedUnitPrice",
    "PricingCurrencyEffectiveCost",
)
MOMENTS = ("BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd")
UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
NUMBER = re.compile(r"-?\d+\.\d+")
TOLERANCE = Decimal("1e-6")
"""Of a cost against its price times its quantity: each call's cost is rounded to the nano-dollar."""


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def problems(rows: Iterable[Row]) -> list[str]:
    """What breaks a rule: the line, the rule, the value."""
    return [f"line {i}: {said}" for i, row in enumerate(rows, 2) for said in _of_row(row)]


def _of_row(row: Row) -> Iterator[str]:
    for name in (*MANDATORY, *PROVIDERS, *PROVIDERS_SINCE_1_4):
        if name not in row:
            yield f"{name} is not there"
            return
    for name in (*NOT_NULL, *PROVIDERS, "ServiceProviderName"):
        if not row[name]:
            yield f"{name} is null"
            return
    for name in row:
        if not re.fullmatch(r"(x_)?([A-Z][a-z]*)+[A-Z]?", name):
            yield f"{name} is not in Pascal case"
    yield from _numbers(row)
    yield from _moments(row)
    yield from _usage(row)
    for name in ("Tags", "SkuPriceDetails"):
        try:
            said = json.loads(row[name])
        except ValueError:
            yield f"{name} is not JSON: {row[name]!r}"
            continue
        if not isinstance(said, dict) or not all(isinstance(v, (str, int, bool)) for v in said.values()):
            yield f"{name} is not a flat object: {row[name]!r}"
        if name == "SkuPriceDetails" and not all(k.startswith("x_") for k in said):
            yield f"{name} has a key of its own without x_: {row[name]!r}"


def _numbers(row: Row) -> Iterator[str]:
    for name in NUMBERS:
        if not row[name] and name in ("ConsumedQuantity", "PricingQuantity", "ListUnitPrice"):
            continue
        if not NUMBER.fullmatch(row[name]):
            yield f"{name} is not a decimal: {row[name]!r}"
    for name in ("ListUnitPrice", "ContractedUnitPrice"):
        if row[name].startswith("-"):
            yield f"{name} is negative"
    for name in ("BillingCurrency", "PricingCurrency"):
        if not re.fullmatch(r"[A-Z]{3}", row[name]):
            yield f"{name} is not a currency: {row[name]!r}"


def _moments(row: Row) -> Iterator[str]:
    for name in MOMENTS:
        if not UTC.fullmatch(row[name]):
            yield f"{name} is not a time in UTC: {row[name]!r}"
            return
    when = {name: datetime.fromisoformat(row[name].replace("Z", "+00:00")) for name in MOMENTS}
    month, after = when["BillingPeriodStart"], when["BillingPeriodEnd"]
    day, end = when["ChargePeriodStart"], when["ChargePeriodEnd"]
    if not (month < after and month.day == after.day == 1 and (after - month).days <= 31):
        yield "the billing period is not a month"
    if not day < end:
        yield "the charge period does not end after it begins"
    if row["ChargeClass"] not in ("", "Correction"):
        yield f"ChargeClass is {row['ChargeClass']!r}"
    within = month <= day and end <= after
    if within == (row["ChargeClass"] == "Correction"):
        yield "ChargeClass is Correction where, and only where, an earlier billing period is corrected"


def _usage(row: Row) -> Iterator[str]:
    if row["ChargeCategory"] != "Usage" or row["ChargeFrequency"] != "Usage-Based":
        yield "what is charged is usage"
    if row["PricingCategory"] != "Standard":
        yield f"PricingCategory is {row['PricingCategory']!r}"
    if bool(row["SubAccountId"]) != bool(row["SubAccountType"]):
        yield "SubAccountType is null where, and only where, SubAccountId is"
    if bool(row["ConsumedQuantity"]) != bool(row["ConsumedUnit"]):
        yield "ConsumedUnit is null where, and only where, ConsumedQuantity is"
    if bool(row["PricingQuantity"]) != bool(row["PricingUnit"]):
        yield "PricingUnit is null where, and only where, PricingQuantity is"
    if row["ChargeClass"] != "Correction":
        for name in (
            "ConsumedQuantity",
            "PricingQuantity",
            "ListUnitPrice",
            "ContractedUnitPrice",
            "SkuPriceId",
        ):
            if not row[name]:
                yield f"{name} is null in usage that corrects nothing"
                return
    try:
        for cost, price in (("ListCost", "ListUnitPrice"), ("ContractedCost", "ContractedUnitPrice")):
            said, made = Decimal(row[cost]), Decimal(row[price]) * Decimal(row["PricingQuantity"])
            if abs(said - made) > max(TOLERANCE * abs(said), TOLERANCE):
                yield f"{cost} is {said}, and {price} times PricingQuantity is {made}"
        per = re.match(r"\d+", row["PricingUnit"])
        priced = Decimal(row["PricingQuantity"]) * (int(per[0]) if per else 1)
        if priced != Decimal(row["ConsumedQuantity"]):
            yield "PricingQuantity and ConsumedQuantity are not the same tokens"
    except InvalidOperation:
        yield "what should be a number is none"
