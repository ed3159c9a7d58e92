"""Slices of budgets: what a process takes beforehand, to admit calls from it without asking each time.

A slice is a hold for calls that are yet to be made, all of them in the same buckets. So it counts as held;
`expire` books all of it as `assumed` if nobody comes back; and what holds and entries add up to needs to
know nothing of it. Whatever a process may still admit is in its slice here, held or assumed, before it
may, and leaves it only by that process's own word. So no clock decides whether a limit holds.

What is written here, as in `book`, runs inside of one transaction, and may be run again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import NamedTuple

from .admission import Ask
from .book import (
    LEASE,
    STAGE,
    Booked,
    Claim,
    Entry,
    HoldRecord,
    Limits,
    Rows,
    Standing,
    ThresholdEvent,
    _end,
    _events_after,
    _flag,
    _reverse,
    _spent,
    cancel,
    move_spent,
    settle,
)

Amounts = Mapping[str, int]
"""By unit."""

SHARE = 8
"""A slice takes at most so much of what nobody has: the nearer the limit, the smaller."""


class Lent(NamedTuple):
    """What a slice is after a look at its buckets.

    Attributes:
        there: whether it is in the books; False: its lease has run out, and it is assumed.
        more: what it has been given besides, by unit.
        buckets: the ids of its buckets, in the order of its claims.
        tightest: the bucket with the least left.
        events: thresholds that its buckets have reached.
    """

    there: bool
    more: Amounts
    buckets: Sequence[int] = ()
    tightest: Standing | None = None
    events: tuple[ThresholdEvent, ...] = ()


class Drawn(NamedTuple):
    """What of a slice is for one call.

    Attributes:
        lease: the slice's id.
        amounts: by unit, all that the call may come to.
        bookings: (bucket id, unit).
    """

    lease: str
    amounts: Amounts
    bookings: Sequence[tuple[int, str]]


def can_lend(claims: Sequence[Claim]) -> bool:
    """Whether slices can be taken of these: windows that hold still, limits that refuse, no stage."""
    return bool(claims) and not any(c.rolling_ms or c.soft or c.budget.startswith(STAGE) for c in claims)


def lend(
    rows: Rows,
    *,
    lease: str,
    known: bool,
    claims: Sequence[Claim],
    free: Amounts,
    want: Amounts,
    least: Amounts,
    now: int,
    lasts: int,
    owner: str,
    aside: Callable[[Amounts], Amounts],
) -> Lent:
    """Make a slice as large as is wanted, or as there is room for; and renew its lease.

    Args:
        known: whether it has been taken before.
        free: what of it no call has.
        want: what should be free.
        least: one call. Less than that is not worth a slice: all that is free is given back.
        lasts: the lease, in ms.
        aside: told what is too much; sets it aside, so that nobody has it, and says how much of it
            it could. Only that is given back.
    """
    hold = rows.take_hold(lease)
    if known and hold is None:
        return Lent(False, {})
    rows.load(claims)
    if hold is not None:
        hold = move_spent(rows, hold)
    limits = Limits(rows, now)
    part, of = 1, 1
    there = []
    tightest: Standing | None = None
    for claim in claims:
        limit = claim.limit if limits.as_configured else limits.of(claim)
        bucket = rows.bucket(*claim.key)
        there.append(bucket)
        if limit is None:  # not in force: what nobody counts needs no slice
            part = 0
            continue
        spent, held = (bucket.spent, bucket.held) if bucket is not None else (0, 0)
        if tightest is None or (limit - spent - held) * tightest.limit < limit * (
            tightest.limit - tightest.spent - tightest.held
        ):
            tightest = Standing(claim, limit, spent, held)
        most = max(0, limit - spent - held + free.get(claim.unit, 0)) // SHARE
        if most * of < part * want[claim.unit]:
            part, of = most, want[claim.unit]
    target = {unit: amount * part // of for unit, amount in want.items()}
    if any(target[unit] < amount for unit, amount in least.items()):
        target = dict.fromkeys(target, 0)
    more = {unit: max(0, amount - free.get(unit, 0)) for unit, amount in target.items()}
    # What is a little too much is left: it would be asked for again.
    less = {u: a - target.get(u, 0) for u, a in free.items() if a > 2 * target.get(u, 0)}
    if less:
        less = dict(aside(less))
    if hold is None and not any(more.values()):
        return Lent(True, {}, (), tightest)
    before = {} if hold is None else {id: amount for id, _, amount, _ in hold.bookings}
    held_before: Amounts = {} if hold is None else hold.call["held"]
    bookings = []
    for claim, bucket in zip(claims, there, strict=True):
        bucket = bucket or rows.new_bucket(*claim.key, claim.unit)
        change = more.get(claim.unit, 0) - less.get(claim.unit, 0)
        rows.change_bucket(bucket.id, 0, change)
        bookings.append((bucket.id, claim.unit, before.get(bucket.id, 0) + change, 0))
    amounts = {
        unit: held_before.get(unit, 0) + more.get(unit, 0) - less.get(unit, 0)
        for unit in {**held_before, **more}
    }
    call = {"operation": LEASE, "model": "", "started": now, "held": amounts, "spent": {}}
    rows.add_hold(HoldRecord(lease, now + lasts, bookings, call, owner))
    events = _events_after(rows, claims, now)
    return Lent(True, more, [id for id, *_ in bookings], tightest, events)


def give_back(rows: Rows, lease: str, less: Amounts, now: int) -> bool:
    """Take so much off a slice; or off what was assumed of it. Whether it is there."""
    hold = rows.take_hold(lease)
    if hold is None:
        last = rows.last_entry(lease)
        if last is not None and last.status == "assumed":
            _correct(rows, last, less, now)
        return False
    rows.add_hold(_changed(rows, hold, {unit: -amount for unit, amount in less.items()}, {}))
    return True


def _changed(rows: Rows, hold: HoldRecord, more: Amounts, spent: Amounts) -> HoldRecord:
    """A slice with so much more for calls, and so much more spent of it, which its buckets are not told."""
    bookings = []
    for id, unit, amount, slot in hold.bookings:
        change = more.get(unit, 0) + spent.get(unit, 0)
        rows.add_to_bucket(id, 0, change)
        bookings.append((id, unit, amount + change, slot))
    held = {unit: amount + more.get(unit, 0) for unit, amount in hold.call["held"].items()}
    before = hold.call["spent"]
    both = {unit: before.get(unit, 0) + spent.get(unit, 0) for unit in {**before, **spent}}
    call = {**hold.call, "held": held, "spent": both}
    return HoldRecord(hold.id, hold.expires, bookings, call, hold.owner)


def close_slice(rows: Rows, lease: str, now: int) -> None:
    """End a slice of which no call has anything any more, whatever is left of it."""
    hold = rows.take_hold(lease)
    if hold is not None:
        for id, _unit, amount, _slot in move_spent(rows, hold).bookings:
            rows.add_to_bucket(id, 0, -amount)
        return
    last = rows.last_entry(lease)
    if last is not None and last.status == "assumed":
        _correct(rows, last, None, now)


def _correct(rows: Rows, last: Entry, less: Amounts | None, now: int) -> None:
    """Take off what was assumed of a slice, because it is known now; `None`: all of it."""

    def left(unit: str, amount: int) -> int:
        return 0 if less is None else amount - min(amount, less.get(unit, 0))

    bookings = [(id, unit, left(unit, amount)) for id, unit, amount in last.bookings]
    if less is not None and bookings == [*last.bookings]:
        return
    _reverse(rows, last, now)
    for id, _unit, amount in bookings:
        rows.change_bucket(id, amount, 0)
    tokens = {name: left(name, getattr(last, name)) for name in ("input_tokens", "output_tokens")}
    known = {
        "at": now,
        "status": "failed" if less is None else "assumed",
        "cost": None if last.cost is None else left("usd", last.cost),
        "calls": left("calls", last.calls),
        "bookings": bookings,
        "note": "what became of it was told later",
    }
    rows.add_entry(Entry(**{**asdict(last), **tokens, **known}))


class Settled(NamedTuple):
    """What a settle of a drawn call did.

    Attributes:
        there: whether its slice is in the books.
        kept: what has been left in the slice, to be free; None: this call had been booked already.
    """

    booked: Booked
    there: bool
    kept: Amounts | None


def settle_drawn(
    rows: Rows,
    *,
    drawn: Drawn,
    entry: Entry,
    amounts: Amounts,
    claims: Sequence[Claim],
    now: int,
    sure: bool,
    keep: Callable[[Amounts], Amounts],
) -> Settled:
    """Book the truth of a call that was admitted from a slice.

    What was drawn for it leaves the slice in the transaction that writes its first entry, and in no other.

    Args:
        sure: whether this is not tried again: then it need not be looked for.
        keep: told what was drawn and not used; says how much of it stays in the slice.
    """
    if not sure and rows.last_entry(entry.call_id) is not None:
        return Settled(settle(rows, entry=entry, amounts=amounts, claims=claims, now=now), True, None)
    over = [unit for _, unit in drawn.bookings if amounts.get(unit, 0) > drawn.amounts[unit]]
    over = list(dict.fromkeys(over))
    if over:
        entry.flags = _flag(entry.flags, "over_bound")
    entry.bookings.extend((id, unit, amounts.get(unit, 0)) for id, unit in drawn.bookings)
    kept: Amounts = {}
    hold = rows.take_hold(drawn.lease)
    if hold is not None:
        # What is kept and what is spent are as much as was drawn, as a rule: then its buckets change in
        # nothing, and nobody waits for anybody.
        kept = keep({unit: max(0, held - amounts.get(unit, 0)) for unit, held in drawn.amounts.items()})
        more = {unit: kept.get(unit, 0) - held for unit, held in drawn.amounts.items()}
        units = {unit for _, unit in drawn.bookings}
        rows.add_hold(_changed(rows, hold, more, {unit: amounts.get(unit, 0) for unit in units}))
    else:
        # It has been assumed meanwhile. This call is known now.
        give_back(rows, drawn.lease, drawn.amounts, now)
        for id, _unit, amount in entry.bookings:
            rows.add_to_bucket(id, amount, 0)
    rows.add_entry(entry)
    unpriced = entry.cost is None or "unpriced" in entry.flags.split(",")
    return Settled(Booked(True, False, tuple(over), (), unpriced, entry.cost), hold is not None, kept)


def hand_part(
    rows: Rows, *, lease: str, call_id: str, amounts: Amounts, bookings: Sequence[tuple[int, str]]
) -> bool:
    """Have a call's own hold, which has just been written for the rest, hold a part of a slice as well.

    What is held in the slice's buckets is the same before and after, so nobody has to lock them.

    Args:
        bookings: (bucket id, unit) of the slice.

    Returns:
        Whether there is so much in the slice. If not, the call has no hold any more.
    """
    slice = rows.take_hold(lease)
    if slice is not None and any(slice.call["held"].get(unit, 0) < amounts[unit] for _, unit in bookings):
        rows.add_hold(slice)
        slice = None
    if slice is None:
        cancel(rows, call_id=call_id)
        return False
    rows.add_hold(_changed(rows, slice, {unit: -amount for unit, amount in amounts.items()}, {}))
    hold = rows.take_hold(call_id)
    assert hold is not None
    for id, unit in bookings:
        rows.add_to_bucket(id, 0, amounts[unit])
    part = [(id, unit, amounts[unit], 0) for id, unit in bookings]
    rows.add_hold(HoldRecord(call_id, hold.expires, [*hold.bookings, *part], hold.call, hold.owner))
    return True


def settle_part(
    rows: Rows,
    *,
    lease: str,
    buckets: Sequence[int],
    entry: Entry,
    amounts: Amounts,
    claims: Sequence[Claim],
    rest: Sequence[Claim],
    now: int,
    keep: Callable[[Amounts], Amounts],
) -> Settled:
    """Book the truth of a call whose hold has a part of a slice: it goes back there, as spent of it.

    Args:
        claims, rest: all of the call's, and those that the slice is not of.
    """
    hold = rows.take_hold(entry.call_id)
    slice = rows.take_hold(lease) if hold is not None else None
    if hold is None or slice is None:
        if hold is not None:
            rows.add_hold(hold)
        booked = settle(rows, entry=entry, amounts=amounts, claims=claims, now=now)
        return Settled(booked, hold is None, None)
    own = [booking for booking in hold.bookings if booking[0] not in buckets]
    part = [booking for booking in hold.bookings if booking[0] in buckets]
    over = _end(rows, HoldRecord(hold.id, hold.expires, own, hold.call, hold.owner), entry, amounts, now)
    for id, unit, held, _ in part:
        rows.add_to_bucket(id, 0, -held)
        entry.bookings.append((id, unit, amounts.get(unit, 0)))
        if amounts.get(unit, 0) > held and unit not in over:
            over.append(unit)
    kept = keep({unit: max(0, held - amounts.get(unit, 0)) for unit, held in hold.call["held"].items()})
    spent = {unit: amounts.get(unit, 0) for _, unit, _, _ in part}
    rows.add_hold(_changed(rows, slice, kept, spent))
    if over:
        entry.flags = _flag(entry.flags, "over_bound")
    rows.add_entry(entry)
    unpriced = entry.cost is None or "unpriced" in entry.flags.split(",")
    events = _events_after(rows, rest, now)
    return Settled(Booked(True, False, tuple(over), events, unpriced, entry.cost), True, kept)


def lacks(rows: Rows, claims: Sequence[Claim], ask: Ask, now: int) -> bool:
    """Whether some bucket has no room for all that a call would like."""
    rows.load(claims)
    limits = Limits(rows, now)
    for claim in claims:
        limit = claim.limit if limits.as_configured else limits.of(claim)
        bucket = rows.bucket(*claim.key)
        if limit is None or claim.soft:
            continue
        spent, held = (_spent(rows, claim, bucket, now), bucket.held) if bucket is not None else (0, 0)
        if ask.needs[claim.unit].amount(ask.want) > limit - spent - held:
            return True
    return False
