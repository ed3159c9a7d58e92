"""A call in flight, and how it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .ledger.book import Claim, Reserved
from .planning import Plan, Planner
from .steps import arun, run
from .usage import Usage
from .wire import METERED_OPERATIONS

if TYPE_CHECKING:
    from .meter import Meter


# What is known of a call replaces what was assumed of it, never the other way round.
_RANKS = {"assumed": 0, "estimated": 1, "failed": 2, "cancelled": 2, "settled": 2}

_USAGE_FIELDS = (
    "input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens",
    "reasoning_tokens", "input_audio_tokens", "output_audio_tokens",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How a call ended.

    Attributes:
        status: ``settled`` (the provider's usage), ``estimated`` (counted by us),
            ``assumed`` (unknown: the worst case is booked), ``failed`` (the provider says
            that it was not billed) or ``cancelled`` (it never left).
        usage: for the first two.
        model, service_tier, provider_id: as the reply says.
        note: for people: what happened. Never text of a prompt or an answer.
        flags: short words for queries.
    """

    status: Literal["settled", "estimated", "assumed", "failed", "cancelled"]
    usage: Usage | None = None
    model: str | None = None
    service_tier: str | None = None
    provider_id: str | None = None
    note: str = ""
    flags: tuple[str, ...] = ()


class Hold:
    """A call in flight and what is reserved for it. Ends exactly once, however often told.

    Attributes:
        id: the call's id, also of its entry.
        output_limit: the output tokens to ask the provider for (per choice); None: as sent.
        lowered_from: what the caller wanted, if less than that fits.
        amounts: what is held, by unit.
    """

    __slots__ = (
        "__weakref__",
        "_meter",
        "_rank",
        "amounts",
        "claims",
        "id",
        "lowered_from",
        "output_limit",
        "plan",
        "started",
    )  # fmt: skip

    def __init__(
        self,
        meter: Meter,
        plan: Plan,
        id: str,
        started: int,
        claims: Sequence[Claim],
        reserved: Reserved | None,
    ) -> None:
        self._meter = meter
        self.plan = plan
        self.id = id
        self.started = started
        self.claims = claims
        want = plan.ask.want
        output = reserved.output if reserved else want
        self.amounts: Mapping[str, int] = (
            reserved.amounts if reserved else {u: n.amount(want) for u, n in plan.ask.needs.items()}
        )
        self.output_limit = output if plan.sends_limit else None
        self.lowered_from = want if output < want else None
        self._rank = -1

    # Each way to end, once for blocking callers and once for coroutines; `post` is for
    # finalisers and cancelled tasks, which must not wait.

    def settle(self, usage: Usage, **said: Any) -> None:
        """Book the provider's own usage. `said`: see `Outcome`."""
        self.end(Outcome("settled", usage, **said))

    async def asettle(self, usage: Usage, **said: Any) -> None:
        """`settle` for coroutines."""
        await self.aend(Outcome("settled", usage, **said))

    def release(self) -> None:
        """The call never left: drop the hold as if it had not been reserved."""
        self.end(Outcome("cancelled"))

    def end(self, outcome: Outcome) -> None:
        """End the hold with any outcome."""
        steps = self._meter.ending(self, outcome)
        if steps is not None:
            run(self._meter.ledger, steps)

    async def aend(self, outcome: Outcome) -> None:
        """`end` for coroutines."""
        steps = self._meter.ending(self, outcome)
        if steps is not None:
            await arun(self._meter.ledger, steps)

    def post(self, outcome: Outcome) -> None:
        """`end` soon, without waiting: for finalisers and cancelled tasks."""
        self._meter.post_end(self, outcome)

    def takes(self, outcome: Outcome) -> bool:
        """Whether `outcome` says more than was known; notes that it is known now."""
        rank = _RANKS[outcome.status]
        if rank <= self._rank:
            return False
        self._rank = rank
        return True


def booking(
    hold: Hold, outcome: Outcome, planner: Planner, *, release: bool
) -> tuple[Mapping[str, int], dict[str, Any], int | None]:
    """(what to book by unit, the entry's tokens, its cost in nano-dollars).

    Args:
        release: book nothing where the usage is unknown.
    """
    plan = hold.plan
    if outcome.status == "failed":
        return {}, {}, 0
    if outcome.usage is None:
        if release:
            return {}, {}, 0
        held = dict(hold.amounts)
        tokens = {n: held.get(n, 0) for n in ("input_tokens", "output_tokens")}
        return held, tokens, held.get("usd")
    usage = outcome.usage
    amounts = {
        "tokens": usage.total_tokens,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "calls": 1,
    }
    # An allowance is booked as given: what it is for is not in the reply's usage.
    cost = plan.allowance.get("usd")
    pricing = planner.reply_pricing(plan, outcome.model)
    if pricing is not None and plan.operation in METERED_OPERATIONS:
        cost = pricing.cost(usage, outcome.service_tier) + (cost or 0)
    if cost is not None:
        amounts["usd"] = cost
    return amounts, {n: getattr(usage, n) for n in _USAGE_FIELDS}, cost
