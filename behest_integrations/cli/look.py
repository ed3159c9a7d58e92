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
from ..wire.overheads import Learnt


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
            _state(key),
        )
    return table


def _state(key: Mapping[str, Any]) -> Text:
    if key["revoked"]:
        return Text("revoked", style="red")
    if key["expires"] is None:
        return Text("in use", style="green")
    ends = datetime.fromtimestamp(key["expires"] / 1000, timezone.utc)
    if ends <= datetime.now(timezone.utc):
        return Text("expired", style="red")
    return Text(f"in use until {ends:%Y-%m-%d %H:%M}Z", style="green")


def price_facts(found: ModelPricing) -> Iterator[str]:
    """What is known of a model besides its rates, a line each."""
    yield f"{found.model}{f' at {found.provider}' if found.provider else ''}"
    for name, told in _facts(found):
        yield f"{name + ':':<16} {told}"


def lesson_facts(server: str, values: tuple[int, ...]) -> Iterator[str]:
    """What bills have taught of how a model's prompts are counted, a line each."""
    learnt = Learnt.from_row(values)
    yield f"\nlearnt from its bills{f' at {server}' if server else ''}:"
    seen = learnt.witness
    if seen is not None:
        roles = {"system": seen.systems, "user": seen.users, "assistant": seen.assistants}
        told = " and ".join(f"{count:,} {role}" for role, count in roles.items() if count)
        yield f"  around the texts of {told} message(s): at most {seen.tokens:,} tokens"
    if learnt.request:
        yield (
            "  bills were over the starting bound: since then at least "
            f"{learnt.request:,} tokens are added a request, {learnt.message:,} a message, "
            f"{learnt.tool:,} a tool, {learnt.kilobyte:,} for every 1,000"
        )
    if learnt.distrusted:
        yield "  the same prompt was billed differently: nothing is bounded more tightly for that"


def _facts(found: ModelPricing) -> Iterator[tuple[str, str]]:
    yield "price", f"from {found.source}"
    if found.context_window:
        yield "context window", f"{found.context_window:,} tokens"
    for size, femto in found.fees.items():
        yield "its own search", f"{format_usd(round_nano(femto))} a request, context {size}"
    for (name, value), (over, under) in found.multipliers.items():
        yield f'{name} "{value}"', f"{over / under:g} times the price"
    for tier, (over, under) in found.ceilings.items():
        if tier not in found.tiers:
            yield f"tier {tier}", f"at most {over / under:g} times the standard price"
    if not found.has_output:
        yield "output", "has no price: the model writes none"
    if found.unseen:
        yield "not told apart", f"{_words(found.unseen)}: booked at the dearest"
    if absent := sorted(_absent(found)):
        yield "no price for", f"{_words(absent)}: a call that may use it is refused"


def _absent(found: ModelPricing) -> frozenset[str]:
    """The classes that have no rate in any tier."""
    tables = (found.standard, *found.tiers.values())
    return frozenset.intersection(*(rates.missing for table in tables for _start, rates in table.tiers))


def _words(classes: Iterable[str]) -> str:
    return ", ".join(name.replace("_", " ") for name in classes)


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
    for name in CLASSES:
        told = [_rate(rates, name) for _header, rates in columns]
        if any(told):
            # Femto-dollars a token are nano-dollars a million tokens.
            table.add_row(_words([name]), *("-" if rate is None else format_usd(rate) for rate in told))
    requests = [rates.request for _header, rates in columns]
    if any(requests) and not found.fees:
        table.add_row("USD a request", *(format_usd(round_nano(femto)) for femto in requests))
    return table


def _rate(rates: Rates, name: str) -> int | None:
    """A class's rate; None where it has none: what stands there is for booking from above."""
    absent = name in rates.missing or (name == "cached_audio" and "input_audio" in rates.missing)
    return None if absent else int(getattr(rates, name))


CLASSES = tuple(f.name for f in fields(Rates) if f.name not in ("request", "missing"))
"""The classes of tokens that a price tells apart."""
