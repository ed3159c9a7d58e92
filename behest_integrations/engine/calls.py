"""A call in flight, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..ledger.book import KNOWS, Claim, Reserved, unknown
from ..rules.errors import CallRefused, StoreError
from ..rules.usage import Usage
from ..wire import METERED_OPERATIONS
from .planning import Plan, Planner
from .steps import arun, run

if TYPE_CHECKING:
    from ..meter import Meter


_FINAL = 3

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
        meter, plan: where it is booked, and what it was reserved for.
        heir: the hold of an inner layer that has taken this one's place.
        hang_up: closes the stream of its reply; returns an awaitable where that takes one.
        without_usage: its reply came whole, and told no usage.
        amounts: what is held, by unit.
        tightest: the bucket with the least left as of then, if there is a budget.
    """

    __slots__ = (
        "__weakref__",
        "_rank",
        "amounts",
        "claims",
        "hang_up",
        "heir",
        "id",
        "lowered_from",
        "meter",
        "output_limit",
        "plan",
        "started",
        "tightest",
        "without_usage",
    )

    def __init__(
        self,
        meter: Meter,
        plan: Plan,
        id: str,
        started: int,
        claims: Sequence[Claim],
        reserved: Reserved | None,
    ) -> None:
        self.meter = meter
        self.plan = plan
        self.id = id
        self.started = started
        self.claims = claims
        want = plan.ask.want
        output = reserved.output if reserved else want
        self.amounts: Mapping[str, int] = (
            reserved.amounts if reserved else {u: n.amount(want) for u, n in plan.ask.needs.items()}
        )
        self.tightest = reserved.tightest if reserved else None
        self.output_limit = output if plan.sends_limit else None
        self.lowered_from = want if output < want else None
        self._rank = -1
        self.heir: Hold | None = None
        self.hang_up: Callable[[], Any] | None = None
        self.without_usage = False

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
        steps = self.meter.ending(self, outcome)
        if steps is not None:
            run(self.meter.ledger, steps)

    async def aend(self, outcome: Outcome) -> None:
        """`end` for coroutines."""
        steps = self.meter.ending(self, outcome)
        if steps is not None:
            await arun(self.meter.ledger, steps)

    def post(self, outcome: Outcome) -> None:
        """`end` soon, without waiting: for finalisers and cancelled tasks."""
        self.meter.post_end(self, outcome)

    def hand_over(self, heir: Hold | None = None) -> None:
        """Another layer of the same call has reserved in this one's place and books the call."""
        self._rank = _FINAL
        self.heir = heir

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


# ── one call, seen by several layers ───────────────────────────────────────────────────


class Offer:
    """A hold that an inner layer of the same call may take over, so that it is metered once.

    A callback reserves, and then the metered client under it, which knows more: each layer
    takes the offer of the one around it. An offer is withdrawn when the call has begun to
    answer, because from then on the caller's own code runs again in the same context.
    """

    __slots__ = ("_holds", "layer")

    def __init__(self, hold: Hold, layer: str) -> None:
        self._holds = [hold]
        self.layer = layer

    @property
    def open(self) -> bool:
        return bool(self._holds)

    def withdraw(self) -> None:
        """Nobody may take it any more."""
        self._holds.clear()

    def take(self) -> Hold | None:
        """The hold, for one taker only."""
        try:
            return self._holds.pop()
        except IndexError:
            return None


_offers: ContextVar[tuple[tuple[Hold, Offer], ...]] = ContextVar("behest_offers", default=())


def offer(hold: Hold, layer: str) -> Offer:
    """Offer `hold` to the layers of its call that run inside the current context.

    Args:
        layer: whose it is. A layer never takes an offer of its own: two calls may begin side
            by side before either is made.
    """
    made = Offer(hold, layer)
    still_open = [o for o in _offers.get() if o[1].open]
    _offers.set((*still_open, (hold, made)))
    return made


@contextmanager
def offering(offered: Offer, hold: Hold) -> Iterator[None]:
    """Offer `hold` to what runs inside, and to nothing else."""
    token = _offers.set((*_offers.get(), (hold, offered)))
    try:
        yield
    finally:
        _offers.reset(token)


def take_offer(meter: Meter, operation: str, model: str, *, layer: str = "") -> Hold | None:
    """The hold of the layer around this one, if it is of the same meter and kind of call.

    Layers may know a model by different names (a deployment's, an alias): the one of the same
    name is preferred, not required.
    """
    if operation not in METERED_OPERATIONS:
        return None
    kind = operation == "embeddings"
    offers = [
        (hold, offered)
        for hold, offered in _offers.get()
        if hold.meter is meter
        and (hold.plan.operation == "embeddings") == kind
        and offered.open
        and (not layer or offered.layer != layer)
    ]
    # The innermost layer's, and in the order of its calls: `generate([a, b])` begins both.
    innermost = {offered.layer: place for place, (_hold, offered) in enumerate(offers)}
    for _hold, offered in sorted(offers, key=lambda o: (o[0].plan.model != model, -innermost[o[1].layer])):
        taken = offered.take()
        if taken is not None:
            return taken
    return None


# ── what an error says ─────────────────────────────────────────────────────────────────

# Errors after which nothing was sent: of httpx and httpx2 (same names in both), and of aiohttp.
_NEVER_SENT = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "InvalidURL", "ProxyError",
     "LocalProtocolError", "ClientConnectorError", "ConnectionTimeoutError"}
)  # fmt: skip


def outcome_of_status(status: int) -> Outcome | None:
    """The outcome of an HTTP status that is not a success; None if it is one."""
    if 200 <= status < 300:
        return None
    if status == 408 or status >= 500:
        # The request was taken in; whether it was billed cannot be known from here.
        return Outcome("assumed", note=f"HTTP {status}", flags=("server_error",))
    return Outcome("failed", note=f"HTTP {status}")


def outcome_of_error(error: BaseException) -> Outcome:
    """The outcome of a call that raised, whatever SDK it came through.

    SDKs wrap the errors of their HTTP library: the whole chain of causes is looked at.
    """
    if isinstance(error, asyncio.CancelledError):
        return Outcome("assumed", note="the task was cancelled", flags=("cancelled",))
    cause: BaseException | None = error
    for _ in range(8):
        if cause is None:
            break
        if isinstance(cause, (CallRefused, StoreError)):
            return Outcome("cancelled")
        if not _NEVER_SENT.isdisjoint(c.__name__ for c in type(cause).__mro__):
            return Outcome("cancelled")
        status = getattr(cause, "status_code", None)
        if status is None:
            status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int) and (known := outcome_of_status(status)) is not None:
            return known
        cause = cause.__cause__ or cause.__context__
    return Outcome("assumed", note=f"no answer: {type(error).__name__}", flags=("no_answer",))


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
        return unknown(hold.amounts, book=not release)
    usage = outcome.usage
    amounts = {
        "tokens": usage.total_tokens,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "calls": plan.ask.needs["calls"].amount(0),
    }
    # An allowance is booked as given: what it is for is not in the reply's usage.
    cost = plan.allowance.get("usd")
    pricing = planner.reply_pricing(plan, outcome.model)
    if pricing is not None and plan.operation in METERED_OPERATIONS:
        cost = pricing.cost(usage, outcome.service_tier) + (cost or 0)
    if cost is not None:
        amounts["usd"] = cost
    return amounts, {n: getattr(usage, n) for n in _USAGE_FIELDS}, cost
