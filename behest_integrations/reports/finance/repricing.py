"""`behest reprice`: what was booked without a price gets the one that is known now."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa

from ...ledger import Ledger, schema
from ...ledger.book import reprice as book_reprice
from ...prices import ModelPricing, Pricing
from ...rules.errors import UnknownPrice
from ...rules.usage import Usage
from ..shown import explained, reading

_e = schema.entries


@dataclass(frozen=True)
class Repriced:
    """What has been done.

    Attributes:
        calls: that have a price now.
        cost: nano-dollars, of those.
        unknown: calls that still have none, by model.
    """

    calls: int
    cost: int
    unknown: dict[str, int]


def reprice(ledger: Ledger, pricing: Pricing, *, now: int) -> Repriced:
    """Price each call that was booked without a price. Those that had one are not touched, nor are sums of
    calls that were pruned: what each of them used, and which have been priced since, is not known any more.

    A call is taken back and booked again with its cost, now: what was exported of a month that is over stays.

    Args:
        now: milliseconds since 1970.

    Raises:
        StoreError: the store cannot be read or written.
    """
    prices: dict[tuple[str, str | None], ModelPricing | None] = {}
    unknown: dict[str, int] = {}
    calls = cost = 0
    taken = sa.select(_e.c.call_id).where(_e.c.reversal == 1, _e.c.cost.is_(None))
    statement = sa.select(
        _e.c.call_id, _e.c.model, _e.c.provider, _e.c.service_tier, _e.c.input_tokens, _e.c.output_tokens,
        _e.c.cached_input_tokens, _e.c.cache_write_tokens, _e.c.reasoning_tokens, _e.c.input_audio_tokens,
        _e.c.output_audio_tokens,
    ).where(_e.c.cost.is_(None), _e.c.reversal == 0, _e.c.call_id.not_in(taken))  # fmt: skip
    statement = statement.where(_e.c.lines.is_(None))
    with reading(ledger) as connection:
        found = connection.execute(statement).fetchall()
    for call_id, model, provider, tier, *tokens in found:
        key = (model, provider)
        if key not in prices:
            try:
                prices[key] = pricing.find(model, provider)
            except UnknownPrice:
                prices[key] = None
        price = prices[key]
        if price is None:
            unknown[model] = unknown.get(model, 0) + 1
            continue
        nano = price.cost(Usage(*tokens), tier)
        with explained(ledger):
            if ledger.submit(partial(book_reprice, call_id=call_id, cost=nano, now=now)):
                calls, cost = calls + 1, cost + nano
    return Repriced(calls, cost, unknown)
