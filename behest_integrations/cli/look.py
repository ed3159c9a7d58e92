"""Tables of what is no report: keys and prices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from datetime import datetime, timezone
from typing import Any

from rich.table import Table
from rich.text import Text

from ..prices.rates import ModelPricing, PriceTable, Rates, round_nano
from ..reports.look import id_or_none
from ..rules.units import format_usd


def key_table(keys: Iterable[Mapping[str, Any]]) -> Table:
    """The gateway's keys, as the fields of each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("key", "tenant", "project", "tier", "end users", "name", "created", "state"):
        table.add_column(name, overflow="fold")
    for key in keys:
        made = datetime.fromtimestamp(key["created"] / 1000, timezone.utc)
        table.add_row(
            key["id"],
            Text(key["tenant"]),
            Text(key["project"]),
            id_or_none(key["tier"]),
            "any" if key["end_users"] else "none",
            Text(key["name"]),
            f"{made:%Y-%m-%d}",
            Text("revoked", style="red") if key["revoked"] else Text("in use", style="green"),
        )
    return table


def price_facts(found: ModelPricing) -> Iterator[str]:
    """What is known of a model besides its rates, a line each."""
    yield f"{found.model}{f' at {found.provider}' if found.provider else ''}"
    yield f"price:           from {found.source}"
    if found.context_window:
        yield f"context window:  {found.context_window:,} tokens"
    if not found.has_output:
        yield "output:          has no price; it is a model that writes none, or a call of it is refused"


def price_table(found: ModelPricing) -> Table:
    """A line for each class of tokens that has a price; a column for each service tier, and for each
    length of prompt from which another price holds."""
    alike: dict[PriceTable, list[str]] = {}
    for tier, prices in [("standard", found.standard), *found.tiers.items()]:
        alike.setdefault(prices, []).append(tier)
    columns = [
        (",\n".join(tiers) + (f"\nprompt over\n{start:,}" if start else ""), rates)
        for prices, tiers in alike.items()
        for start, rates in prices.tiers
    ]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("USD per\n1M tokens", no_wrap=True)
    for header, _rates in columns:
        table.add_column(header, justify="right", no_wrap=True)
    for name in (f.name for f in fields(Rates) if f.name != "request"):
        values = [getattr(rates, name) for _header, rates in columns]
        text = [getattr(rates, _AS_TEXT.get(name, ""), None) for _header, rates in columns]
        if any(values) and values != text:
            # Femto-dollars a token are nano-dollars a million tokens.
            table.add_row(name.replace("_", " "), *(format_usd(v) if v is not None else "-" for v in values))
    requests = [rates.request for _header, rates in columns]
    if any(requests):
        table.add_row("USD a request", *(format_usd(round_nano(value)) for value in requests))
    return table


# Audio that has no price of its own says nothing: most models take none.
_AS_TEXT = {"input_audio": "input", "cached_audio": "cached_input", "output_audio": "output"}
