"""What the sandbox charges. Priced by genai-prices itself, not by this package's pricing:
the two must agree without sharing code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

_NANO = Decimal("1e-9")
_ONE = Decimal(1)
_SEARCH = Decimal("0.01")
"""Each search of the web: https://platform.claude.com/docs/en/about-claude/pricing#web-search-tool"""
_ALWAYS = ("input_tokens", "output_tokens")


@dataclass(frozen=True)
class BillLine:
    """One call that was served, as the provider would bill it. `cost` in USD.

    `user_id` is what the caller's headers say, or else the `user` field of the request's body. `account`
    is who pays: the last eight characters of the key that the call was made with.
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
    written_tokens: int = 0
    written_1h_tokens: int = 0
    searches: int = 0
    account: str | None = None


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
        provider: str = "openai",
        written_tokens: int = 0,
        written_1h_tokens: int = 0,
        searches: int = 0,
        factor: Decimal = _ONE,
        account: str | None = None,
    ) -> None:
        used = {
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "cache_read_tokens": cached_tokens,
            "cache_write_tokens": written_tokens,
            "cache_write_1h_tokens": written_1h_tokens,
        }
        cost = self._cost(model, used, provider, factor, searches)
        self.lines.append(
            BillLine(
                session_id, user_id, operation, model, input_tokens, cached_tokens, output_tokens,
                reasoning_tokens, cost, abandoned, written_tokens, written_1h_tokens, searches, account,
            )
        )  # fmt: skip

    def _cost(
        self, model: str, used: Mapping[str, int], provider: str, factor: Decimal = _ONE, searches: int = 0
    ) -> Decimal:
        model = self.aliases.get(model, model)
        if model in self.prices:
            per_input, per_output = self.prices[model]
            total = (per_input * used["input_tokens"] + per_output * used["output_tokens"]) / 10**6
        else:
            total = _listed(model, used, provider)
        return (total * factor).quantize(_NANO, ROUND_HALF_EVEN) + _SEARCH * searches

    def knows(self, model: str, provider: str = "openai") -> bool:
        """Whether it has a price: what has none cannot be sold."""
        try:
            self._cost(model, dict.fromkeys(_ALWAYS, 0), provider)
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

    def by_account(self) -> dict[str | None, Decimal]:
        """USD by account."""
        totals: dict[str | None, Decimal] = {}
        for line in self.lines:
            totals[line.account] = totals.get(line.account, Decimal(0)) + line.cost
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


def _listed(model: str, used: Mapping[str, int], provider: str) -> Decimal:
    """A provider's price; of a model that is not OpenAI's, over OpenAI's wire, its maker's.

    Raises:
        LookupError: nobody has it.
    """
    from genai_prices import Usage, calc_price

    # Classes that a model has no price for are not asked about.
    usage = Usage(**{name: count for name, count in used.items() if count or name in _ALWAYS})
    try:
        return calc_price(usage, model, provider_id=provider).total_price
    except LookupError:
        if provider != "openai":
            raise
        return calc_price(usage, model).total_price
