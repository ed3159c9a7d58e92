"""What a call cost, by kind of token: exact parts of what was booked.

An entry has its cost in one sum. Its parts are in proportion to what each kind of token costs by the
price list (or by the user's own price), and add up to the entry's cost to the nano-dollar, whatever
the price was when it was booked.
"""

from __future__ import annotations

from typing import NamedTuple

from ...prices import FEMTO_PER_NANO, ModelPricing, Pricing
from ...prices.rates import Rates
from ...rules.errors import UnknownPrice

INPUT = "Input Tokens"
CACHED = "Cached Input Tokens"
WRITE = "Cache Write Tokens"
AUDIO_IN = "Input Audio Tokens"
OUTPUT = "Output Tokens"
AUDIO_OUT = "Output Audio Tokens"
REQUESTS = "Requests"
KINDS = (INPUT, CACHED, WRITE, AUDIO_IN, OUTPUT, AUDIO_OUT, REQUESTS)


class Counts(NamedTuple):
    """Tokens of an entry, by class; all negative in a reversal."""

    inputs: int
    outputs: int
    cached: int = 0
    written: int = 0
    reasoning: int = 0
    audio_in: int = 0
    audio_out: int = 0


class Part(NamedTuple):
    """What one kind of token comes to.

    Attributes:
        quantity: tokens; of `REQUESTS`, calls.
        cost: nano-dollars.
        rate: femto-dollars a token, where the cost is that times the quantity; None: it is not.
    """

    kind: str
    quantity: int
    cost: int
    rate: int | None


class Splitting:
    """Splits what entries cost into parts.

    Args:
        pricing: finds what kinds of tokens cost.
    """

    def __init__(self, pricing: Pricing) -> None:
        self._pricing = pricing
        self._found: dict[tuple[str, str | None], ModelPricing | None] = {}

    def parts(
        self, model: str, provider: str | None, tier: str | None, counts: Counts, cost: int | None
    ) -> list[Part]:
        """The parts of an entry, of each kind of which it has any; their costs add up to its cost."""
        sign = -1 if min(counts) < 0 or (cost or 0) < 0 else 1
        counts = Counts(*(sign * n for n in counts))
        rates = self._rates(model, provider, tier, counts.inputs)
        kinds = _kinds(counts, rates or _EVEN)
        whole = sign * (cost or 0)
        known = sum(femto for _, _, femto in kinds)
        exact = rates is not None and abs(whole * FEMTO_PER_NANO - known) * 2 <= FEMTO_PER_NANO
        if whole and not known:
            # Nothing says what the tokens cost: a tool's use, an allowance, a worst case in dollars alone.
            kinds = [*kinds, (REQUESTS, 1, 1)]
            known = 1
        shares = _shares(whole, [femto for _, _, femto in kinds], known)
        return [
            Part(kind, sign * n, sign * share, femto // n if exact and n and femto % n == 0 else None)
            for (kind, n, femto), share in zip(kinds, shares, strict=True)
        ]

    def _rates(self, model: str, provider: str | None, tier: str | None, inputs: int) -> Rates | None:
        key = (model, provider)
        if key not in self._found:
            try:
                found: ModelPricing | None = self._pricing.find(model, provider)
            except UnknownPrice:
                found = None
            if len(self._found) >= _MOST:
                self._found.clear()
            self._found[key] = found
        pricing = self._found[key]
        if pricing is None:
            return None
        return pricing.tiers.get(tier or "", pricing.standard).rates(inputs)


_MOST = 10_000
"""Names of models come from outside: only so many are kept."""
_EVEN = Rates(1, 1, 1, 1, 1, 1, 1, 1, 1)
"""Where no price is known, tokens are alike."""


def _kinds(c: Counts, rates: Rates) -> list[tuple[str, int, int]]:
    """Each kind that there is: its name, how many, femto-dollars."""
    # Audio that was cached is counted in both: see `Rates.cost`.
    both = min(max(0, c.cached + c.written + c.audio_in - c.inputs), c.cached, c.audio_in)
    text = max(0, c.inputs - c.cached - c.written - c.audio_in + both)
    spoken = c.audio_out
    thought = min(c.reasoning, max(0, c.outputs - spoken))
    plain = max(0, c.outputs - spoken - thought)
    found = (
        (INPUT, text, text * rates.input),
        (CACHED, c.cached, (c.cached - both) * rates.cached_input + both * rates.cached_audio),
        (WRITE, c.written, c.written * rates.cache_write),
        (AUDIO_IN, c.audio_in - both, (c.audio_in - both) * rates.input_audio),
        (OUTPUT, plain + thought, plain * rates.output + thought * rates.reasoning),
        (AUDIO_OUT, spoken, spoken * rates.output_audio),
    )
    there = [kind for kind in found if kind[1]]
    return [*there, (REQUESTS, 1, rates.request)] if rates.request and there else there


def _shares(whole: int, weights: list[int], total: int) -> list[int]:
    """`whole` in proportion to `weights`, which add up to `total`; what rounding leaves goes to those
    who lost most of it."""
    if not whole or not total:
        return [0] * len(weights)
    shares = [whole * w // total for w in weights]
    lost = sorted(range(len(weights)), key=lambda i: -(whole * weights[i] % total))
    for i in lost[: whole - sum(shares)]:
        shares[i] += 1
    return shares
