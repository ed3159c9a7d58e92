"""What the sandbox charges. Priced by genai-prices itself, not by this package's pricing:
the two must agree without sharing code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

_NANO = Decimal("1e-9")


@dataclass(frozen=True)
class BillLine:
    """One call that was served, as the provider would bill it. `cost` in USD.

    `user_id` is what the caller's headers say, or else the `user` field of the request's body.
    """

    session_id: str | None
    user_id: str | None
    operation: str
    model: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost: Decimal
    abandoned: bool = False


@dataclass
class Bill:
    """All that was served.

    Args:
        prices: USD per million tokens, by model: (input, output), over the price list's.
        aliases: what else models are called.
    """

    prices: Mapping[str, tuple[Decimal, Decimal]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    lines: list[BillLine] = field(default_factory=list)

    def charge(
        self,
        *,
        session_id: str | None,
        user_id: str | None,
        operation: str,
        model: str,
        input_tokens: int,
        cached_tokens: int = 0,
        output_tokens: int = 0,
        reasoning_tokens: int = 0,
        abandoned: bool = False,
    ) -> None:
        cost = self._cost(model, input_tokens, cached_tokens, output_tokens)
        self.lines.append(
            BillLine(
                session_id, user_id, operation, model, input_tokens, cached_tokens, output_tokens,
                reasoning_tokens, cost, abandoned,
            )
        )  # fmt: skip

    def _cost(self, model: str, input_tokens: int, cached: int, output: int) -> Decimal:
        model = self.aliases.get(model, model)
        if model in self.prices:
            per_input, per_output = self.prices[model]
            total = (per_input * input_tokens + per_output * output) / 10**6
        else:
            total = _listed(model, input_tokens, cached, output)
        return total.quantize(_NANO, ROUND_HALF_EVEN)

    def knows(self, model: str) -> bool:
        """Whether it has a price: what has none cannot be sold."""
        try:
            self._cost(model, 0, 0, 0)
        except LookupError:
            return False
        return True

    def total(self, session_id: str | None = None) -> Decimal:
        """USD billed, in all or for one session."""
        return sum(
            (line.cost for line in self.lines if session_id is None or line.session_id == session_id),
            Decimal(0),
        )

    def tokens(self) -> int:
        """Tokens billed in all."""
        return sum(line.input_tokens + line.output_tokens for line in self.lines)

    def by_session(self) -> dict[str | None, Decimal]:
        """USD by session."""
        totals: dict[str | None, Decimal] = {}
        for line in self.lines:
            totals[line.session_id] = totals.get(line.session_id, Decimal(0)) + line.cost
        return totals

    def by_user(self) -> dict[str | None, Decimal]:
        """USD by user."""
        totals: dict[str | None, Decimal] = {}
        for line in self.lines:
            totals[line.user_id] = totals.get(line.user_id, Decimal(0)) + line.cost
        return totals

    def as_json(self) -> dict[str, Any]:
        """For `GET /sandbox/bill`; amounts in USD as text."""
        return {
            "total_usd": str(self.total()),
            "calls": len(self.lines),
            "tokens": self.tokens(),
            "by_session": [
                {"session_id": session, "cost_usd": str(cost)} for session, cost in self.by_session().items()
            ],
            "lines": [{**asdict(line), "cost": str(line.cost)} for line in self.lines],
        }


def _listed(model: str, input_tokens: int, cached: int, output: int) -> Decimal:
    """OpenAI's price; of a model that is not OpenAI's, its maker's.

    Raises:
        LookupError: nobody has it.
    """
    from genai_prices import Usage, calc_price

    usage = Usage(input_tokens=input_tokens, output_tokens=output, cache_read_tokens=cached)
    try:
        return calc_price(usage, model, provider_id="openai").total_price
    except LookupError:
        return calc_price(usage, model).total_price
