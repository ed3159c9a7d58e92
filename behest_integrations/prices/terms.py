"""By what a call was priced: kept with the books, so that its cost can be computed again from its tokens,
whatever the price list says by then.

An entry names its terms by their id, with what it cost besides: ``ID``, ``ID+EXTRA`` (nano-dollars for uses
of the provider's tools and for what was allowed), ``ID~TOKENS`` (of its writes to the cache those that are
kept for an hour, which an entry does not tell), or both.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from functools import lru_cache
from typing import NamedTuple

from ..rules.usage import Usage
from .rates import ModelPricing, Rates, is_harmless, round_nano

_RATES = tuple(f.name for f in fields(Rates) if f.name != "missing")


class Terms(NamedTuple):
    """Rates, and what their sum is multiplied by; a request's own fee is not multiplied.

    Attributes:
        id: a hash of `text`.
        text: all of it as JSON.
    """

    id: str
    text: str

    @classmethod
    def made(cls, rates: Rates, over: int = 1, under: int = 1) -> Terms:
        """The terms of these rates."""
        there = {name: rate for name in _RATES if (rate := getattr(rates, name))}
        text = json.dumps([over, under, there], separators=(",", ":"))
        return cls(_hash(text), text)

    def cost(self, usage: Usage) -> int:
        """Nano-dollars for `usage`; as `ModelPricing.cost`.

        Raises:
            ValueError: these are no terms, or are not those that their id names.
        """
        over, under, rates = _read(self)
        return round_nano((rates.cost(usage) - rates.request) * over + rates.request * under, under)


@lru_cache(maxsize=1000)
def _read(terms: Terms) -> tuple[int, int, Rates]:
    over, under, there = json.loads(terms.text)
    if terms.id != _hash(terms.text):
        raise ValueError("the rates are not those that the id was made of")
    return over, under, Rates(**there)


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def terms_of(
    pricing: ModelPricing,
    usage: Usage,
    tier: str | None,
    multiplier: tuple[int, int] | None,
    search_context: str | None,
) -> Terms | None:
    """The terms of a call; None where it was booked at the dearest of several prices.

    Args: as of `ModelPricing.cost`.
    """
    table = pricing.standard if tier is None else pricing.tiers.get(tier)
    over, under = multiplier or (1, 1)
    if table is None:
        table = pricing.standard
        if not pricing.own and not is_harmless(tier):
            if tier not in pricing.ceilings:
                return None
            more, less = pricing.ceilings[tier or ""]
            over, under = over * more, under * less
    rates = table.flat or table.rates(usage.input_tokens)
    key = (id(rates), over, under, search_context)
    found = pricing.terms.get(key)
    if found is None:
        made = rates
        if search_context is not None and pricing.fees:
            dearest = max(pricing.fees.values())
            fee = pricing.fees.get(search_context, dearest) - dearest
            made = Rates(**{**{n: getattr(rates, n) for n in _RATES}, "request": rates.request + fee})
        found = pricing.terms[key] = Terms.made(made, over, under)
    return found


def named(terms: Terms, extra: int, hour: int) -> str:
    """How an entry names its terms.

    Args:
        extra: nano-dollars besides. hour: tokens written to the cache for an hour.
    """
    if not extra and not hour:
        return terms.id
    return f"{terms.id}{f'+{extra}' if extra else ''}{f'~{hour}' if hour else ''}"


def read_named(text: str) -> tuple[str, int, int]:
    """The id of an entry's terms, the nano-dollars besides, the tokens written for an hour.

    Raises:
        ValueError: it is nothing of the kind.
    """
    rest, _, hour = text.partition("~")
    id, _, extra = rest.partition("+")
    return id, int(extra or 0), int(hour or 0)
