"""What an entry must be: its cost is what is booked for it, and the price of its tokens.

A price is that of the rates which were kept when it was booked. Entries that name none are older than that,
or were not priced by tokens (tools, what was assumed or corrected): that they cannot be proved is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from ..ledger.blocks import COLUMNS
from ..prices import Pricing, Terms
from ..prices.terms import read_named
from ..rules.errors import UnknownPrice
from ..rules.units import format_amount, format_usd
from ..rules.usage import Usage

_PLACE = {name: place for place, name in enumerate(COLUMNS)}
_PICKED = tuple(
    _PLACE[name]
    for name in (
        "at", "status", "operation", "provider", "model", "service_tier", "input_tokens", "output_tokens",
        "cached_input_tokens", "cache_write_tokens", "reasoning_tokens", "input_audio_tokens",
        "output_audio_tokens", "cost", "calls", "flags", "rates", "lines",
    )
)  # fmt: skip
_COUNTED = ("settled", "estimated")

OLDER = "booked before rates were kept; their price is the price list's of that time"
OTHER = "booked before rates were kept; their price is not the price list's"
UNKNOWN = "booked at a price that was not known, or at the dearest of several"
PRUNED = "sums of entries that were pruned"


class Checking:
    """Looks at entries, one by one.

    Args:
        terms: by what calls were priced: the text, by its id.

    Attributes:
        unproven: how many costs cannot be proved, by why.
    """

    def __init__(self, terms: Mapping[str, str]) -> None:
        self.unproven: Counter[str] = Counter()
        self._terms = {id: Terms(id, text) for id, text in terms.items()}
        self._pricing = Pricing()

    def flaws(self, row: Sequence[Any], bookings: Sequence[tuple[int, str, int]]) -> Iterator[str]:
        """What is wrong with an entry.

        Args:
            row: of `COLUMNS`.
        """
        (
            at, status, operation, provider, model, tier, inputs, outputs, cached, written, thought, heard,
            spoken, cost, calls, flags, rates, lines,
        ) = [row[place] for place in _PICKED]  # fmt: skip
        if lines is not None:
            self.unproven[PRUNED] += 1
            return
        counts = {"input_tokens": inputs, "output_tokens": outputs, "calls": calls}
        if status != "assumed":
            counts["tokens"] = inputs + outputs
        if "repriced" not in flags:
            counts["usd"] = cost or 0
        for _bucket, unit, amount in bookings:
            if unit in counts and amount != counts[unit]:
                yield (
                    f"{format_amount(amount, unit)} are booked in budgets, and the entry says "
                    f"{format_amount(counts[unit], unit)}"
                )
                break
        if cost is None or status not in _COUNTED or operation in ("tool", "correction"):
            return
        tokens = (inputs, outputs, cached, written, thought, heard, spoken)
        sign = -1 if row[_PLACE["reversal"]] else 1
        if rates is not None:
            problem = self._priced(rates, [sign * n for n in tokens], sign * cost)
            if problem is not None:
                yield problem
        elif "unpriced" in flags or "allowance" in flags or "repriced" in flags or "other_model" in flags:
            self.unproven[UNKNOWN] += 1
        else:
            self.unproven[
                self._listed(model, provider, at, tier, [sign * n for n in tokens], sign * cost)
            ] += 1

    def _priced(self, rates: str, tokens: Sequence[int], cost: int) -> str | None:
        try:
            id, besides, hour = read_named(rates)
            right = self._terms[id].cost(Usage(*(*tokens, hour))) + besides
        except KeyError:
            return f"the rates {rates} that it was priced by are missing"
        except (ValueError, TypeError) as error:
            return f"its rates or its tokens are none: {error}"
        if right == cost:
            return None
        return f"its tokens cost {format_usd(right)} at its rates, and it says {format_usd(cost)}"

    def _listed(
        self, model: str, provider: str | None, at: int, tier: str | None, tokens: Sequence[int], cost: int
    ) -> str:
        try:
            found = self._pricing.find_at(model, provider, datetime.fromtimestamp(at / 1000, timezone.utc))
            same = found.cost(Usage(*tokens), tier) == cost
        except (UnknownPrice, ValueError, OverflowError):
            same = False
        return OLDER if same else OTHER
