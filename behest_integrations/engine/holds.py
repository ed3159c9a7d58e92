"""A call in flight, and how it ends: exactly once, however often told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from ..ledger.book import KNOWS, Claim, Reserved
from ..rules.errors import handled
from ..rules.usage import Usage
from .leases import Draw, Parted
from .outcomes import CANCELLED, Outcome, outcome_of_error
from .plan import Plan
from .steps import Steps

T = TypeVar("T")

_FINAL = 1 + max(KNOWS.values())


class Keeper(Protocol):
    """Whoever wrote a hold down, and will end it."""

    closed: bool

    def ending(self, hold: Hold, outcome: Outcome) -> Steps[None] | None: ...
    def post_end(self, hold: Hold, outcome: Outcome) -> None: ...
    def run(self, steps: Steps[T]) -> T: ...
    async def arun(self, steps: Steps[T]) -> T: ...


class Hold:
    """A call in flight and what is reserved for it.

    Attributes:
        id: the call's id, also of its entry.
        output_limit: the output tokens to ask the provider for (per choice); None: as sent.
        lowered_from: what the caller wanted, if less than that fits.
        keeper, plan: who ends it, and what it was reserved for.
        heir: the hold of an inner layer that has taken this one's place.
        hang_up: closes the stream of its reply; returns an awaitable where that takes one.
        read_on: has the stream of its reply read on in the background, where it is to be; whether it
            is. The hold then ends with that.
        without_usage: its reply came whole, and told no usage.
        amounts: what is held, by unit.
        reserved: what the store said; None where the call goes ahead without it.
        seen: what telemetry keeps with it.
        before: what was being handled when it was made, see `errors.causes`.
    """

    __slots__ = (
        "__weakref__",
        "_rank",
        "amounts",
        "before",
        "claims",
        "hang_up",
        "heir",
        "id",
        "keeper",
        "lowered_from",
        "output_limit",
        "plan",
        "read_on",
        "reserved",
        "seen",
        "started",
        "without_usage",
    )

    def __init__(
        self,
        keeper: Keeper,
        plan: Plan,
        id: str,
        started: int,
        claims: Sequence[Claim],
        reserved: Reserved | None,
    ) -> None:
        self.keeper = keeper
        self.plan = plan
        self.id = id
        self.started = started
        self.claims = claims
        self.reserved = reserved
        want = plan.ask.want
        if reserved is not None:
            output = reserved.output
            self.amounts: Mapping[str, int] = reserved.amounts
        else:
            output = want
            self.amounts = {unit: need.amount(want) for unit, need in plan.ask.needs.items()}
        self.output_limit = output if plan.sends_limit else None
        self.lowered_from = want if output < want else None
        self.seen: Any = None
        self.before = handled()
        self._rank = -1
        self.heir: Hold | None = None
        self.hang_up: Callable[[], Any] | None = None
        self.read_on: Callable[[], bool] | None = None
        self.without_usage = False

    def failed(self, error: BaseException) -> Outcome:
        """How the call has ended that raised `error`."""
        return outcome_of_error(error, self.before, self.plan.provider)

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
        self.end(CANCELLED)

    def end(self, outcome: Outcome) -> None:
        """End the hold with any outcome."""
        steps = self.keeper.ending(self, outcome)
        if steps is not None:
            self.keeper.run(steps)

    async def aend(self, outcome: Outcome) -> None:
        """`end` for coroutines."""
        steps = self.keeper.ending(self, outcome)
        if steps is not None:
            await self.keeper.arun(steps)

    def post(self, outcome: Outcome) -> None:
        """`end` soon, without waiting: for finalisers and cancelled tasks."""
        self.keeper.post_end(self, outcome)

    def hand_over(self, heir: Hold | None = None) -> None:
        """Another layer of the same call has reserved in this one's place and books the call."""
        self._rank = _FINAL
        self.heir = heir

    @property
    def draw(self) -> Draw | Parted | None:
        """What of a slice it is; None: it has a hold of its own in the store."""
        drawn: Draw | Parted | None = self.reserved.drawn if self.reserved is not None else None
        return None if drawn is None or (drawn.over and not drawn.ending) else drawn

    @property
    def open(self) -> bool:
        """Whether nothing is known yet of how it ends."""
        return self._rank < 0

    def holds_in(self, key: tuple[str, str, int], unit: str) -> int:
        """What it holds in one bucket."""
        return self.amounts.get(unit, 0) if any(claim.key == key for claim in self.claims) else 0

    @property
    def last(self) -> Hold:
        """The hold that the call has now, through all the layers that took it over."""
        hold = self
        while hold.heir is not None:
            hold = hold.heir
        return hold

    def takes(self, outcome: Outcome) -> bool:
        """Whether `outcome` says more than was known; notes that it is known now."""
        rank = KNOWS[outcome.status]
        if rank <= self._rank:
            return False
        self._rank = rank
        self.without_usage = "no_usage" in outcome.flags
        return True
