"""The rules of the books: reserve, settle, release, expire. Written once for every store.

Each function runs inside one transaction of a store, on its `Rows`. It reads what it
needs, decides, and only then writes, so a refusal needs no rollback. Functions return
values and change nothing else: a transaction may be run again.

Entries are append-only. Where the truth arrives after an assumption was booked, a reversal
of the assumption and a new entry are added; sums over all entries are always right.

Over 500 lines, so that all that may be done to the books is read in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from pydantic_core import to_json

from ..rules.balance import Reason
from ..rules.usage import Usage
from .admission import Ask, BucketState, Denied, decide
from .audit import Decision, Pruned, Record
from .outbox import Message, message_id

Status = Literal["settled", "estimated", "assumed", "failed"]
KNOWS: Mapping[str, int] = {"assumed": 0, "estimated": 1, "failed": 2, "cancelled": 2, "settled": 2}
"""How much a status knows of a call. A later report replaces an earlier one only if it knows more.

What the provider has said, billed or not, is final: the room that a failed call gave back may be
spent already. A ``cancelled`` call never left; it has no entry.
"""

REFUSED = ("session_id", "user_id", "project", "tenant", "model", "operation")
"""What refusals are counted by, in each bucket: names of a call's fields."""


LEASE = "lease"
"""The operation of what was taken for calls to come; see `lending`."""
STAGE = "stage "
"""What the identity of a stage's budget begins with."""


class Claim(NamedTuple):
    """What one budget has to do with one call.

    Attributes:
        budget: the budget's shape, the first part of its buckets' identity.
        scope: the scope key.
        start: the window's start in ms; 0 for a lifetime or a rolling window.
        unit, limit, text: of the budget.
        end: when the window ends, in ms.
        rolling_ms, slot_ms: for a rolling window, else 0.
        thresholds: fractions of the limit in percent, ascending, that fire an event.
        soft: it is counted, and refuses nothing.
    """

    budget: str
    scope: str
    start: int
    unit: str
    limit: int
    text: str
    end: int | None = None
    rolling_ms: int = 0
    slot_ms: int = 0
    thresholds: tuple[int, ...] = ()
    soft: bool = False

    @property
    def key(self) -> tuple[str, str, int]:
        return (self.budget, self.scope, self.start)


@dataclass(slots=True)
class Bucket:
    """A bucket's row."""

    id: int
    budget: str
    scope: str
    start: int
    unit: str
    spent: int = 0
    held: int = 0
    notified: int = 0


@dataclass(slots=True)
class HoldRecord:
    """A hold's row: what is held where, and what to write down if nobody comes back.

    Attributes:
        bookings: (bucket id, unit, amount, rolling slot length in ms or 0).
        call: the fields of the entry that are known before the call.
        owner: names the process that will end it.
    """

    id: str
    expires: int
    bookings: list[tuple[int, str, int, int]]
    call: dict[str, Any]
    owner: str = ""


@dataclass(slots=True)
class Entry:
    """One line of the ledger. Times in ms since 1970 UTC; cost in nano-dollars.

    `asked_model` is the model that was asked for, where a cheaper one stood in for it.
    """

    call_id: str
    at: int
    status: str
    started: int = 0
    session_id: str | None = None
    user_id: str | None = None
    project: str | None = None
    tenant: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    stage: str | None = None
    operation: str = ""
    provider: str | None = None
    model: str = ""
    service_tier: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    cost: int | None = None
    calls: int = 1
    output_limit: int | None = None
    lowered_from: int | None = None
    reversal: int = 0
    flags: str = ""
    note: str = ""
    provider_id: str | None = None
    asked_model: str | None = None
    bookings: list[tuple[int, str, int]] = field(default_factory=list)
    rates: str | None = None
    """By what it was priced: terms that are kept (`Rows.keep_terms`), and what it cost besides."""


class KnownBudget(NamedTuple):
    """A budget that was in force when a meter was last made, for those who only read the books."""

    shape: str
    text: str
    zone: str
    seen: int


class Grant(NamedTuple):
    """What one scope may spend of a budget over its limit, in the budget's unit, until `expires` (ms)."""

    budget: str
    scope: str
    amount: int
    expires: int


Lessons = Mapping[tuple[str, str], tuple[int, ...]]
"""What bills have taught, by server and model: nine whole numbers (see `wire.overheads.Learnt`)."""


@dataclass(frozen=True)
class Books:
    """Everything that a store holds, as of one moment.

    Attributes:
        refusals: ``bucket``, what `REFUSED` names, ``count`` and ``at`` (the last one's time).
        limits: by a budget's shape: the limit that was set since; None: removed.
        own_limits: by a budget's shape and a scope key: the limit of that scope alone.
        lessons: what bills have taught of models.
    """

    buckets: list[Bucket]
    holds: list[HoldRecord]
    entries: list[Entry]
    refusals: list[dict[str, Any]]
    limits: dict[str, int | None]
    budgets: list[KnownBudget]
    lessons: Lessons
    own_limits: Mapping[tuple[str, str], int]
    audit: Sequence[Record] = ()
    grants: Sequence[Grant] = ()
    terms: Mapping[str, str] = field(default_factory=dict)


ADDITIVE = (
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "input_audio_tokens",
    "output_audio_tokens",
    "calls",
)


class Rows(Protocol):
    """What a store offers inside a transaction.

    Whatever was written before in the same transaction is read back. What is returned is the
    caller's to change, but for a `Bucket`, which only these methods change.
    """

    def overrides(self) -> Mapping[str, int | None]:
        """The limits that were set since they were configured, by a budget's shape; None: removed."""

    def set_override(self, budget: str, amount: int | None) -> None: ...
    def drop_override(self, budget: str) -> None: ...
    def own_limited(self) -> frozenset[str]:
        """The shapes of the budgets in which some scope has a limit of its own."""

    def own_limit(self, budget: str, scope: str) -> int | None:
        """The limit of one scope alone, if it has one."""

    def set_own_limit(self, budget: str, scope: str, amount: int | None) -> None:
        """None: it has none any more."""

    def grants(self, budget: str, scope: str) -> Sequence[Grant]:
        """What one scope was granted, also what has expired."""

    def add_grant(self, grant: Grant) -> None:
        """From now on its budget is among `own_limited`."""

    def load(self, claims: Sequence[Claim]) -> None:
        """Say which buckets will be asked for, so that they can be fetched at once."""

    def bucket(self, budget: str, scope: str, start: int) -> Bucket | None: ...
    def bucket_by_id(self, id: int) -> Bucket | None: ...
    def new_bucket(self, budget: str, scope: str, start: int, unit: str) -> Bucket: ...
    def change_bucket(self, id: int, spent: int, held: int) -> None:
        """Add to what is spent and held in a bucket.

        Raises:
            StoreError: there is no such bucket; the books are damaged.
        """

    def add_to_bucket(self, id: int, spent: int, held: int) -> None:
        """`change_bucket` of what need not be read: at the end, where the store can, and so for a moment."""

    def set_notified(self, id: int, notified: int) -> None: ...
    def set_sums(self, id: int, spent: int, held: int) -> None: ...
    def rolling_spent(self, budget: str, scope: str, after: int) -> int:
        """What is spent in the slots that start later than `after`, and not at 0."""

    def count_refusal(self, id: int, call: Mapping[str, Any], now: int) -> None:
        """One more refusal in a bucket, of a call with these fields (see `REFUSED`)."""

    def add_hold(self, hold: HoldRecord) -> None: ...
    def take_hold(self, id: str) -> HoldRecord | None:
        """Remove a hold and return it; None if it has ended."""

    def expired_holds(self, now: int, most: int) -> list[str]:
        """At most so many ids of holds whose time is up, the longest over first."""

    def owners(self) -> Iterable[str]:
        """The processes that have holds; none where no process outlives the store."""

    def holds_of(self, owner: str, most: int) -> list[str]:
        """At most so many ids of holds of a process."""

    def add_entry(self, entry: Entry) -> None: ...
    def last_entry(self, call_id: str) -> Entry | None:
        """The newest entry of a call that is no reversal."""

    def usage_of_response(
        self, response: str, tenant: str | None, project: str | None, user: str | None
    ) -> Usage | None:
        """See `Ledger.usage_of_response`."""

    def remember_budget(self, budget: KnownBudget) -> None:
        """Keep it, in place of what was kept of the same shape."""

    def known_budgets(self) -> Iterable[KnownBudget]: ...
    def lessons(self) -> Lessons:
        """What bills have taught; another mapping than before where somebody has taught more."""

    def keep_lesson(self, server: str, model: str, values: tuple[int, ...]) -> None:
        """Keep it, in place of what was kept of the same model at the same server."""

    def add_message(self, message: Message) -> bool:
        """Keep it to be told; False if one of that id has been written to that sink, at any time."""

    def set_message(self, message: Message) -> None:
        """Keep it in place of what was kept of the same id and sink."""

    def open_messages(self, most: int) -> list[Message]:
        """At most so many that have not been told, the earliest due first."""

    def all_messages(self) -> list[Message]: ...
    def add_audit(self, decision: Decision) -> None:
        """Append to the audit, as the next record of this writer's chain (see `audit.Chain`)."""

    def audit(self) -> Sequence[Record]:
        """All of it, in the order of its chains, and in those by their numbers."""

    def drop_audit(self, pruned: Pruned) -> None:
        """Let go of the oldest records of each chain."""

    def keep_terms(self, id: str, text: str) -> None:
        """Keep by what calls were priced, if it is not kept yet."""

    def terms(self) -> Mapping[str, str]:
        """What is kept of it: the text, by its id."""

    def everything(self) -> Books: ...


class Standing(NamedTuple):
    """A bucket as it stands, with a hold that has just been written in it."""

    claim: Claim
    limit: int
    spent: int
    held: int


class Reserved(NamedTuple):
    """A hold was written.

    Attributes:
        output: the output limit to send.
        amounts: what is held, by unit.
        tightest: the bucket with the least left, as a share of its limit; one that only warns if there is
            no other.
        drawn: what of a slice it is; None: it has a hold of its own.
    """

    output: int
    amounts: Mapping[str, int]
    expires: int
    tightest: Standing | None = None
    drawn: Any = None


@dataclass(frozen=True)
class Refused:
    """Nothing was written but the count of refusals.

    Attributes:
        frees: when so much of a rolling window will have left it that the call fits, in ms.
    """

    claim: Claim
    limit: int
    spent: int
    held: int
    asked: int
    reason: Reason
    events: tuple[ThresholdEvent, ...] = ()
    frees: int | None = None


@dataclass(frozen=True)
class ThresholdEvent:
    """A bucket has reached a share of its limit. Fires once per bucket and share.

    Attributes:
        percent: which of the meter's thresholds. 100 also where a call is refused because less than a
            twentieth is left.
        budget: the budget's text; `scope` whom the bucket is for.
        unit, spent, limit: the bucket, in its unit (nano-dollars for ``usd``).
        session, user, project, tenant, model, stage: whom it is for, in parts; None: for all of them.
        id: names this crossing, of this bucket, in every process.
    """

    percent: int
    budget: str
    scope: str
    unit: str
    spent: int
    limit: int
    session: str | None = None
    user: str | None = None
    project: str | None = None
    tenant: str | None = None
    model: str | None = None
    stage: str | None = None
    id: str = ""


class Booked(NamedTuple):
    """What a settle did.

    Attributes:
        written: whether anything was booked (False: it had been already).
        replaced: whether an earlier assumption was taken back.
        over: units in which more was booked than had been reserved.
        unpriced: whether what was booked has no price, or less than its price.
        cost: nano-dollars; None where nothing was written, or it has no price.
        call: what the engine would have with it.
        drawn: what of a slice it was, to be told when it is done.
    """

    written: bool
    replaced: bool = False
    over: tuple[str, ...] = ()
    events: tuple[ThresholdEvent, ...] = ()
    unpriced: bool = False
    cost: int | None = None
    call: Any = None
    drawn: Any = None


_There = tuple[Claim, Bucket | None, int, int, int]
"""A claim, its bucket if there is one yet, and the limit, what is spent and held there."""


class Limits:
    """The limits in force, read once for an operation.

    Attributes:
        as_configured: nobody has changed any: each claim's own is its limit.
    """

    __slots__ = ("_now", "_overrides", "_own", "_rows", "as_configured")

    def __init__(self, rows: Rows, now: int) -> None:
        self._rows = rows
        self._now = now
        self._overrides = rows.overrides()
        self._own = rows.own_limited()
        self.as_configured = not self._overrides and not self._own

    def of(self, claim: Claim) -> int | None:
        """The limit of a claim's bucket; None if the budget has been removed."""
        limit = self._overrides.get(claim.budget, claim.limit) if self._overrides else claim.limit
        if limit is None or not self._own or claim.budget not in self._own:
            return limit
        own = self._rows.own_limit(claim.budget, claim.scope)
        granted = self._rows.grants(claim.budget, claim.scope)
        limit = limit if own is None else own
        return limit + sum(g.amount for g in granted if g.expires > self._now) if granted else limit


def _spent(rows: Rows, claim: Claim, bucket: Bucket, now: int) -> int:
    if not claim.rolling_ms:
        return bucket.spent
    # A slot counts until all of it has left the window; slots ahead of a clock that was
    # set back count too.
    return rows.rolling_spent(claim.budget, claim.scope, now - claim.rolling_ms - claim.slot_ms)


def reserve(
    rows: Rows,
    *,
    call_id: str,
    claims: Sequence[Claim],
    ask: Ask,
    call: Mapping[str, Any],
    now: int,
    lease: int,
    count: bool = True,
    count_busy: bool = True,
    replaces: str | None = None,
    sharing: int = 0,
    owner: str = "",
) -> Reserved | Refused:
    """Hold the worst case in every bucket, or refuse and say which said no.

    Args:
        replaces: the hold of an outer layer of the same call: it ends here, either way.
        count, count_busy: whether a refusal (one that is only `busy`) is the caller's
            answer, and so counted, or will be tried again.
        sharing: how many others wait for the same room: where the output must be lowered to fit,
            the first does not take all that is left.
        owner: names the process that will end the hold.
    """
    if replaces is not None:
        cancel(rows, call_id=replaces)
    limits = Limits(rows, now)
    rows.load(claims)
    amounts = {unit: need.amount(ask.want) for unit, need in ask.needs.items()}
    there: list[_There] = []
    fits = True
    for claim in claims:
        limit = claim.limit if limits.as_configured else limits.of(claim)
        if limit is None:
            continue
        bucket = rows.bucket(claim.budget, claim.scope, claim.start)
        if bucket is None:
            there.append((claim, None, limit, 0, 0))
            fits = fits and (claim.soft or amounts[claim.unit] <= limit)
        else:
            spent = _spent(rows, claim, bucket, now) if claim.rolling_ms else bucket.spent
            held = bucket.held
            there.append((claim, bucket, limit, spent, held))
            fits = fits and (claim.soft or amounts[claim.unit] <= limit - spent - held)
    output = ask.want
    if not fits:  # all that is wanted; else there is something to decide
        hard = [one for one in there if not one[0].soft]
        states = [BucketState(claim.unit, limit, spent, held) for claim, _, limit, spent, held in hard]
        decision = decide(states, ask)
        if isinstance(decision, Denied):
            final = count and (count_busy or decision.reason != "busy")
            return _refuse(rows, hard[decision.index], decision, call, now, final)
        output = max(ask.floor, decision.output // (sharing + 1))
        amounts = {unit: need.amount(output) for unit, need in ask.needs.items()}
    bookings = []
    tightest: Standing | None = None
    least = of = 0
    for claim, bucket, limit, spent, held in there:
        if bucket is None:
            bucket = _new_bucket(rows, claim)
        amount = 0 if claim.soft and claim.unit in ask.unbounded else amounts[claim.unit]
        held += amount
        left = limit - spent - held
        if tightest is None or (
            left * of < least * limit if claim.soft is tightest.claim.soft else tightest.claim.soft
        ):
            tightest, least, of = Standing(claim, limit, spent, held), left, limit
        rows.change_bucket(bucket.id, 0, amount)
        bookings.append((bucket.id, claim.unit, amount, claim.slot_ms))
    record = {**call, "started": now, "held": amounts, "output_limit": output if ask.want else None}
    if output < ask.want:
        record["lowered_from"] = ask.want
    if ask.unbounded:
        record["unbounded"] = sorted(ask.unbounded)
    rows.add_hold(HoldRecord(call_id, now + lease, bookings, record, owner))
    return Reserved(output, amounts, now + lease, tightest)


def _new_bucket(rows: Rows, claim: Claim) -> Bucket:
    """A claim's first bucket. No configuration says what a stage's limit was: the books do."""
    if claim.budget.startswith(STAGE):
        rows.set_own_limit(claim.budget, claim.scope, claim.limit)
    return rows.new_bucket(*claim.key, claim.unit)


def _refuse(
    rows: Rows, there: _There, denied: Denied, call: Mapping[str, Any], now: int, final: bool
) -> Refused:
    claim, bucket, limit, spent, held = there
    events: tuple[ThresholdEvent, ...] = ()
    if final:
        if bucket is None:
            bucket = _new_bucket(rows, claim)
        rows.count_refusal(bucket.id, call, now)
        if denied.reason == "exhausted":
            # A call may be refused for its size alone; of a twentieth there is little to be had.
            full = spent * 20 >= limit * 19
            events = _thresholds(rows, claim, bucket, limit, spent, now, full=full)
    frees = _frees(rows, claim, limit - denied.asked, now) if denied.reason == "exhausted" else None
    return Refused(claim, limit, spent, held, denied.asked, denied.reason, events, frees)


def _frees(rows: Rows, claim: Claim, most: int, now: int) -> int | None:
    """When no more than `most` of what is spent will be left in a rolling window, in ms."""
    slot, length = claim.slot_ms, claim.rolling_ms
    if not length:
        return None
    # The slots that count now, in the order in which they leave: at `start + length + slot`.
    oldest = (now - length - slot) // slot * slot
    few, many = 1, length // slot + 2
    while few < many:
        middle = (few + many) // 2
        if rows.rolling_spent(claim.budget, claim.scope, oldest + middle * slot) <= most:
            many = middle
        else:
            few = middle + 1
    return oldest + few * slot + length + slot


def _thresholds(
    rows: Rows, claim: Claim, bucket: Bucket, limit: int, spent: int, now: int, *, full: bool = False
) -> tuple[ThresholdEvent, ...]:
    if not claim.thresholds or (
        spent * 100 < claim.thresholds[0] * limit and not bucket.notified and not full
    ):
        return ()  # as nearly always
    reached = [p for p in claim.thresholds if spent * 100 >= p * limit or (full and p <= 100)]
    top = reached[-1] if reached else 0
    before = bucket.notified
    if top == before or (top < before and not claim.rolling_ms):
        return ()
    # A rolling window can fall below a threshold and reach it again: that is a new event.
    rows.set_notified(bucket.id, top)
    return tuple(
        ThresholdEvent(
            p,
            claim.text,
            claim.scope,
            claim.unit,
            spent,
            limit,
            id=crossing(claim, p, now if claim.rolling_ms else 0),
        )
        for p in reached
        if p > before
    )


def crossing(claim: Claim, percent: int | str, now: int = 0) -> str:
    """The id of what is told of a bucket: once a window; of a rolling one, each time that it comes to it."""
    return message_id(claim.budget, claim.scope, claim.start, percent, now)


def settle(
    rows: Rows,
    *,
    entry: Entry,
    amounts: Mapping[str, int],
    claims: Sequence[Claim],
    now: int,
) -> Booked:
    """Release the hold and book the truth; or replace what was assumed meanwhile.

    Args:
        entry: the line to write; its bookings are filled in here.
        amounts: what to book, by unit; empty books nothing (a call that was not billed).
        claims: the call's claims, for thresholds and for a hold that was never written.
    """
    hold = rows.take_hold(entry.call_id)
    rows.load(claims)
    replaced = False
    over: list[str] = []
    if hold is not None:
        over = _end(rows, hold, entry, amounts, now)
    else:
        last = rows.last_entry(entry.call_id)
        if last is not None:
            if KNOWS[last.status] >= KNOWS[entry.status]:
                return Booked(False)
            replaced = True
            _reverse(rows, last, now)
            for id, unit, assumed in last.bookings:
                amount = amounts.get(unit, 0)
                if last.status == "assumed" and amount > assumed > 0 and unit not in over:
                    over.append(unit)
                rows.change_bucket(id, amount, 0)
                entry.bookings.append((id, unit, amount))
        else:
            # The hold was never written: the store was out and the user chose to go on.
            for claim in claims:
                bucket = rows.bucket(*claim.key) or rows.new_bucket(*claim.key, claim.unit)
                amount = amounts.get(claim.unit, 0)
                entry.bookings.append(
                    (_book(rows, bucket.id, amount, 0, claim.slot_ms, now), claim.unit, amount)
                )
    if over:
        entry.flags = _flag(entry.flags, "over_bound")
    rows.add_entry(entry)
    unpriced = entry.cost is None or "unpriced" in entry.flags.split(",")
    return Booked(True, replaced, tuple(over), _events_after(rows, claims, now), unpriced, entry.cost)


def _events_after(rows: Rows, claims: Sequence[Claim], now: int) -> tuple[ThresholdEvent, ...]:
    events: tuple[ThresholdEvent, ...] = ()
    limits = Limits(rows, now)
    for claim in claims:
        if not claim.thresholds:
            continue
        bucket = rows.bucket(claim.budget, claim.scope, claim.start)
        limit = claim.limit if limits.as_configured else limits.of(claim)
        if bucket is None or limit is None:
            continue
        spent = _spent(rows, claim, bucket, now) if claim.rolling_ms else bucket.spent
        if bucket.notified or spent * 100 >= claim.thresholds[0] * limit:  # hardly ever
            events += _thresholds(rows, claim, bucket, limit, spent, now)
    return events


def _book(rows: Rows, id: int, amount: int, held: int, slot: int, now: int) -> int:
    """Book `amount` in place of what was `held`; the id of the bucket that it went to.

    In a rolling window spending counts from the end of the call, in the slot of that time.
    """
    if not slot:
        rows.change_bucket(id, amount, -held)
        return id
    rows.change_bucket(id, 0, -held)
    head = rows.bucket_by_id(id)
    assert head is not None
    start = max(1, now // slot * slot)
    into = rows.bucket(head.budget, head.scope, start) or rows.new_bucket(
        head.budget, head.scope, start, head.unit
    )
    rows.change_bucket(into.id, amount, 0)
    return into.id


def _reverse(rows: Rows, last: Entry, now: int) -> None:
    negative = Entry(**{**asdict(last), "at": now, "reversal": 1, "note": "replaced by a later report"})
    for name in ADDITIVE:
        setattr(negative, name, -getattr(last, name))
    negative.cost = None if last.cost is None else -last.cost
    negative.bookings = [(id, unit, -amount) for id, unit, amount in last.bookings]
    for id, _unit, amount in last.bookings:
        rows.change_bucket(id, -amount, 0)
    rows.add_entry(negative)


def correct(rows: Rows, *, entry: Entry, amounts: Mapping[str, int], claims: Sequence[Claim]) -> bool:
    """Book a line that is no call, but what an invoice has otherwise; False if it has been booked.

    Args:
        entry: its `call_id` names the difference, so that it is booked once.
        amounts: by unit; they may be negative.
        claims: of budgets for everybody. Those of rolling windows are left alone: what left them is gone.
    """
    if rows.last_entry(entry.call_id) is not None:
        return False
    for claim in claims:
        amount = amounts.get(claim.unit, 0)
        if claim.rolling_ms or not amount:
            continue
        bucket = rows.bucket(*claim.key) or rows.new_bucket(*claim.key, claim.unit)
        rows.change_bucket(bucket.id, amount, 0)
        entry.bookings.append((bucket.id, claim.unit, amount))
    rows.add_entry(entry)
    return True


def reprice(rows: Rows, *, call_id: str, cost: int, now: int) -> bool:
    """Give a call that had no price the price that is known now; False if it has one.

    Its bookings stay as they are: no budget in dollars has let it through.
    """
    last = rows.last_entry(call_id)
    if last is None or last.cost is not None:
        return False
    bookings = [*last.bookings]
    _reverse(rows, last, now)
    for id, _unit, amount in bookings:
        rows.change_bucket(id, amount, 0)
    flags = _flag(",".join(f for f in last.flags.split(",") if f and f != "unpriced"), "repriced")
    rows.add_entry(
        Entry(
            **{
                **asdict(last),
                "at": now,
                "cost": cost,
                "flags": flags,
                "bookings": bookings,
                "note": "priced",
            }
        )
    )
    return True


def cancel(rows: Rows, *, call_id: str) -> bool:
    """Drop the hold of a call that never left; as if it had not been reserved."""
    hold = rows.take_hold(call_id)
    if hold is None:
        return False
    for id, _unit, held, _slot in hold.bookings:
        rows.change_bucket(id, 0, -held)
    return True


def expire(
    rows: Rows,
    *,
    now: int,
    book: bool,
    most: int = 200,
    has_died: Callable[[str], bool] = lambda owner: False,
) -> list[str]:
    """End holds whose lease has run out, or whose process is gone; the call ids.

    Args:
        book: whether the worst case is booked (`assumed`), or nothing.
        has_died: whether a process is known to be gone.
    """
    ids = rows.expired_holds(now, most)
    why = dict.fromkeys(ids, ("the lease ran out before the outcome was known", "expired"))
    for owner in rows.owners():
        if owner and has_died(owner):
            for call_id in rows.holds_of(owner, most):
                why.setdefault(call_id, ("its process ended before the outcome was known", "process_died"))
    for call_id, (note, flag) in why.items():
        hold = rows.take_hold(call_id)
        if hold is None:
            continue
        hold = move_spent(rows, hold)
        call = {name: value for name, value in hold.call.items() if name != "spent"}
        # Of a slice calls may still be made, until its own process has said that there are none.
        book_it = book or call.get("operation") == LEASE
        amounts, tokens, cost = unknown(call.pop("held", {}), book=book_it)
        call.pop("unbounded", None)
        entry = Entry(
            **call,
            **tokens,
            call_id=call_id,
            at=now,
            status="assumed",
            cost=cost,
            calls=amounts.get("calls", 0),
            note=note,
            flags=flag,
        )
        _end(rows, hold, entry, amounts, now)
        rows.add_entry(entry)
    return list(why)


def move_spent(rows: Rows, hold: HoldRecord) -> HoldRecord:
    """Write down in its buckets what calls have spent of a slice; it holds that no more.

    Their settles have not: all of a bucket's processes would wait for each other there. Till then it is
    held, and `unmoved`.
    """
    spent = hold.call.get("spent")
    if not spent:
        return hold
    bookings = []
    for id, unit, amount, slot in hold.bookings:
        part = spent.get(unit, 0)
        rows.add_to_bucket(id, part, -part)
        bookings.append((id, unit, amount - part, slot))
    return HoldRecord(hold.id, hold.expires, bookings, {**hold.call, "spent": {}}, hold.owner)


def unmoved(holds: Iterable[HoldRecord]) -> dict[int, int]:
    """What entries have booked in each bucket that is still held there by slices, by bucket id."""
    found: dict[int, int] = {}
    for hold in holds:
        if spent := hold.call.get("spent"):
            for id, unit, _amount, _slot in hold.bookings:
                found[id] = found.get(id, 0) + spent.get(unit, 0)
    return found


def unknown(held: Mapping[str, int], *, book: bool) -> tuple[Mapping[str, int], dict[str, Any], int | None]:
    """What is booked of a call whose usage is not known: all that was held for it.

    Args:
        held: by unit.
        book: False: nothing is booked, as the user chose.

    Returns:
        The amounts by unit, the entry's tokens, and its cost in nano-dollars.
    """
    if not book:
        return {}, {}, 0
    tokens = {name: held.get(name, 0) for name in ("input_tokens", "output_tokens")}
    return dict(held), tokens, held.get("usd")


def _end(rows: Rows, hold: HoldRecord, entry: Entry, amounts: Mapping[str, int], now: int) -> list[str]:
    """Book `amounts` in place of what was held; the units of which more was booked than held."""
    over: list[str] = []
    unbounded = hold.call.get("unbounded", ())
    for id, unit, held, slot in hold.bookings:
        amount = amounts.get(unit, 0)
        if amount > held and unit not in over and unit not in unbounded:
            over.append(unit)
        if slot:
            id = _book(rows, id, amount, held, slot, now)
        else:
            rows.change_bucket(id, amount, -held)
        entry.bookings.append((id, unit, amount))
    return over


def _flag(flags: str, flag: str) -> str:
    return f"{flags},{flag}" if flags else flag


def encode(value: object) -> str:
    """JSON for a row: compact, and with text as it is."""
    return to_json(value).decode()


def merge_amounts(parts: Iterable[tuple[int, str, int]]) -> dict[int, int]:
    """What a list of bookings adds to each bucket, by bucket id."""
    totals: dict[int, int] = {}
    for id, _unit, amount in parts:
        totals[id] = totals.get(id, 0) + amount
    return totals
