"""Slices of hot budgets in the hands of this process, and the calls that are admitted from them.

What a slice is in the books, and why that is safe, is in `ledger.lending`; the argument as a whole is in
`.github/LIMITS.md`. This is the other half: how much this process has of it, and may still give to calls.

It waits for nothing and asks no store by itself: it posts operations and is told how they ended, so that a
test can be the network. What an operation gives is counted only once it is known to be done; what it takes
is set aside before it is begun. Where nobody knows whether it was done, the slice is dead: nothing is drawn
from it any more, and what is left of it is given back when its last call has ended.

Over 500 lines, so that a slice's life is read in one place.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from ..ledger.admission import Ask
from ..ledger.book import Booked, Claim, Entry, Refused, Reserved, Rows, Standing, ThresholdEvent
from ..ledger.lending import (
    Drawn,
    Lent,
    can_lend,
    close_slice,
    give_back,
    hand_part,
    lacks,
    lend,
    settle_drawn,
    settle_part,
)
from ..ledger.operations import Operation
from .owners import this_process

log = logging.getLogger("behest")

T = TypeVar("T")
Key = tuple[str, str, int]
Post = Callable[[Operation[Any], Callable[[BaseException], None], Callable[[Any], None]], None]

LASTS_MS = 10_000
"""The lease. Renewed at a third of it; drawn from for at most eight tenths of it, by a clock that began
before the store was asked."""
TICK = 0.5
_IDLE = 2.0
_SOON, _LATER = 0.05, 1.0
"""Seconds between two times that more is asked for: where there was room, and where there was none."""
_FIRST, _MOST = 8, 2048
"""Calls that a slice is for, at first and at most."""
_FEWEST = 4
"""Calls for which it is worth taking one: near a limit, the store is asked for each."""
_OFTEN = 16
"""Calls of one set of buckets within a second, from which on a slice is worth it."""
_MOST_SETS = 1000


class Slice:
    """A slice of some buckets.

    Attributes:
        free: what no call has, by unit.
        out: calls that have something of it, and have not ended.
        known: whether the store has said that it is there.
        rest: until when nobody asks for more, in monotonic seconds.
        tight: whether there was no room for it when it was last renewed.
        retired: nothing is drawn from it any more; it is given back.
        dead: nor is known how much of it there is.
    """

    __slots__ = (
        "asked", "buckets", "claims", "closing", "dead", "drawn", "dry", "free", "id", "key", "known", "out",
        "pending", "renewed", "rest", "retired", "size", "tight", "tightest", "typical", "until",
        "used",
    )  # fmt: skip

    def __init__(self, id: str, key: tuple[Key, ...], claims: Sequence[Claim], now: float) -> None:
        self.id = id
        self.key = key
        self.claims = claims
        self.free: dict[str, int] = {}
        self.typical: dict[str, int] = {}
        self.buckets: Sequence[int] = ()
        self.tightest: Standing | None = None
        self.out = self.drawn = self.asked = 0
        self.size = _FIRST
        self.known = self.retired = self.dead = self.tight = self.dry = False
        self.pending = self.closing = False
        self.until = self.renewed = self.rest = 0.0
        self.used = now

    def want(self) -> dict[str, int]:
        """What should be free of it."""
        return {} if self.retired else {unit: amount * self.size for unit, amount in self.typical.items()}

    def saw(self, amounts: Mapping[str, int]) -> None:
        """A call of these amounts has come."""
        typical = self.typical
        for unit, amount in amounts.items():
            before = typical.get(unit)
            typical[unit] = amount if before is None else before + (amount - before) // 16

    def gets(self, amounts: Mapping[str, int]) -> None:
        """What a call or an operation had of it is free again; of a dead one nothing. The lock is held."""
        for unit, amount in amounts.items():
            if unit in self.free:
                self.free[unit] += amount

    def die(self) -> None:
        """It is not known what of it is there: nobody draws from it any more."""
        self.free, self.retired, self.dead = {}, True, True


_NONE = Slice("", (), (), 0.0)


class Leases:
    """The slices of this process.

    Args:
        post: has an operation run, and tells how it ended: what the store says, or that it failed. Never
            says so within the call itself.
        clock: the store's, in ms.
        hot: the buckets that many processes write.
        parts: whether it is worth a slice that calls which count in others as well have a hold all the same.
        write_events, tell_events: for thresholds that are reached: within the transaction, and after it.
        monotonic: seconds.
        new_id: names slices.
        timer: whether a thread keeps house; else whoever has it calls `tick`.
        often: calls of one set of buckets within a second, from which on a slice is worth it.
    """

    def __init__(
        self,
        post: Post,
        *,
        clock: Callable[[], int],
        hot: Container[Key],
        parts: bool = True,
        write_events: Callable[[Rows, int, tuple[ThresholdEvent, ...]], object] = lambda *_: None,
        tell_events: Callable[[tuple[ThresholdEvent, ...]], object] = lambda _: None,
        monotonic: Callable[[], float] = time.monotonic,
        new_id: Callable[[], str] = lambda: f"lease-{os.urandom(12).hex()}",
        owner: Callable[[], str] = this_process,
        timer: bool = True,
        often: int = _OFTEN,
    ) -> None:
        self.post = post
        self.clock = clock
        self.monotonic = monotonic
        self.owner = owner
        self.write_events = write_events
        self.tell_events = tell_events
        self._hot = hot
        self._parts = parts
        self._new_id = new_id
        self._timed = timer
        self._often = often
        self._begin()

    def _begin(self) -> None:
        # A finaliser may end a call while its very thread is in here.
        self.lock = threading.RLock()
        self.pid = os.getpid()
        self._stopped = False
        self.drawn = 0
        """Calls that were admitted without asking."""
        self._slices: dict[tuple[Key, ...], Slice] = {}
        self._retired: list[Slice] = []
        self._of_bucket: dict[Key, list[Slice]] = {}
        self._asked: dict[tuple[Key, ...], int] = {}
        self._counted_from = 0.0
        self._timer: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._slices) + len(self._retired)

    @property
    def mine(self) -> bool:
        """Whether these slices are of this process; after a fork they are the parent's."""
        return self.pid == os.getpid()

    # ── calls ──────────────────────────────────────────────────────────────────────────

    def draw(self, claims: Sequence[Claim], ask: Ask) -> Reserved | None:
        """Admit a call from a slice; None: the store is to be asked."""
        if not self.mine:
            self._begin()
        if self._stopped:
            return None
        if not all(map(self._is_hot, claims)):
            return None
        key = tuple([claim.key for claim in claims])
        with self.lock:
            slice, amounts, fits, renewing = self._take(key, claims, ask)
        if renewing:
            self._renew(slice)
        if not fits:
            return None
        drawn = Drawn(slice.id, amounts, [(b, c.unit) for b, c in zip(slice.buckets, claims, strict=True)])
        return Reserved(ask.want, amounts, self.clock() + LASTS_MS, slice.tightest, Draw(self, slice, drawn))

    def _is_hot(self, claim: Claim) -> bool:
        """Whether its bucket is one of which slices are taken, or has been."""
        return claim.key in self._of_bucket or claim.key in self._hot

    def _take(
        self, key: tuple[Key, ...], claims: Sequence[Claim], ask: Ask
    ) -> tuple[Slice, Mapping[str, int], bool, bool]:
        """Have what a call needs of a slice: the slice, how much that is, whether it was there, and whether
        the slice is to be renewed. The lock is held."""
        amounts = {unit: need.amount(ask.want) for unit, need in ask.needs.items()}
        slice = self._slices.get(key) or self._new(key, claims)
        if slice is None:
            return _NONE, amounts, False, False
        now = self.monotonic()
        slice.saw(amounts)
        slice.used = now
        slice.asked += 1
        free = slice.free
        fits = now < slice.until
        low = False
        for unit, amount in amounts.items():
            there = free.get(unit, -1)
            fits = fits and there >= amount
            low = low or there - amount < slice.typical[unit] * slice.size // 2
        if fits:
            for unit, amount in amounts.items():
                free[unit] -= amount
            slice.out += 1
            slice.drawn += 1
            self.drawn += 1
        elif slice.known:
            slice.dry = True
        return slice, amounts, fits, low and now >= slice.rest and self._renewal(slice)

    def part(
        self, claims: Sequence[Claim], ask: Ask, asking: Callable[[Sequence[Claim]], Operation[Any]]
    ) -> Part | None:
        """The operation that reserves a call in those of its buckets that are not hot, and has a slice of the
        others for the rest; None: there is none, or not enough.

        Args:
            asking: the operation that reserves in some of its buckets.
        """
        if not self._parts or not self.mine or self._stopped:
            return None
        hot = tuple([c for c in claims if self._is_hot(c) and can_lend((c,))])
        if not hot or len(hot) == len(claims):
            return None
        key = tuple([claim.key for claim in hot])
        with self.lock:
            slice, amounts, fits, renewing = self._take(key, hot, ask)
        if renewing:
            self._renew(slice)
        if not fits:
            return None
        return Part(self, slice, amounts, asking([c for c in claims if c not in hot]), hot)

    def _new(self, key: tuple[Key, ...], claims: Sequence[Claim]) -> Slice | None:
        """A slice of these, if they are hot and this process calls them often."""
        now = self.monotonic()
        if now - self._counted_from > 1.0 or len(self._asked) > _MOST_SETS:
            self._asked.clear()
            self._counted_from = now
        count = self._asked[key] = self._asked.get(key, 0) + 1
        if count < self._often or not can_lend(claims):
            return None
        slice = self._slices[key] = Slice(self._new_id(), key, tuple(claims), now)
        for one in key:
            self._of_bucket.setdefault(one, []).append(slice)
        self._start_timer()
        return slice

    def asking(self, work: Operation[T], ask: Ask) -> Operation[T]:
        """`work`, which reserves in the store, with what is free here out of its way if it is in it."""
        if not self._of_bucket or not self.mine:
            return work
        with self.lock:
            found = {s.id: s for claim in work.claims for s in self._of_bucket.get(claim.key, ())}
        return GivingWay(self, list(found.values()), work, ask) if found else work

    # ── keeping house ──────────────────────────────────────────────────────────────────

    def tick(self) -> None:
        """Renew what is used, give back what is not."""
        if not self.mine:
            return
        now = self.monotonic()
        renew: list[Slice] = []
        close: list[Slice] = []
        with self.lock:
            for slice in list(self._slices.values()):
                if now - slice.used > _IDLE:
                    self._retire(slice)
                elif slice.asked * 2 < slice.size:
                    slice.size = max(_FIRST, slice.size // 2)
                due = slice.drawn or any(slice.free.values()) or self._due(slice, now)
                slice.drawn = slice.asked = 0
                if due and self._renewal(slice):
                    renew.append(slice)
            for slice in self._retired:
                if not slice.out and not slice.pending and not slice.closing:
                    slice.closing = True
                    close.append(slice)
                elif (any(slice.free.values()) or self._due(slice, now)) and self._renewal(slice):
                    renew.append(slice)
        for slice in renew:
            self._renew(slice)
        for slice in close:
            self._post(Closing(self, slice))

    @staticmethod
    def _due(slice: Slice, now: float) -> bool:
        """Whether its lease is to be renewed: at a third of it."""
        return now - slice.renewed > LASTS_MS / 3000

    def _renewal(self, slice: Slice) -> bool:
        """Whether it is this caller's to renew. The lock is held."""
        if slice.pending or slice.closing:
            return False
        slice.pending = True
        return True

    def _renew(self, slice: Slice) -> None:
        self._post(Renewal(self, slice))

    def _post(self, work: Work[Any]) -> None:
        self.post(work, work.failed, work.done)

    def _retire(self, slice: Slice) -> None:
        """Nothing is drawn from it any more. The lock is held."""
        slice.retired = True
        slice.until = 0.0
        if self._slices.get(slice.key) is slice:
            del self._slices[slice.key]
            for key in slice.key:
                self._of_bucket[key].remove(slice)
                if not self._of_bucket[key]:
                    del self._of_bucket[key]
            self._retired.append(slice)

    def kill(self, slice: Slice) -> None:
        """It is not known what of it is there. The lock is held."""
        self._retire(slice)
        slice.die()

    def closed(self, slice: Slice) -> None:
        """It is given back, all of it. The lock is held."""
        if slice in self._retired:
            self._retired.remove(slice)

    def retire_all(self) -> list[Work[Any]]:
        """Operations that give back all that no call has, to be run now, in this order."""
        if not self.mine:
            return []
        with self.lock:
            for slice in list(self._slices.values()):
                self._retire(slice)
            work: list[Work[Any]] = []
            for slice in self._retired:
                if slice.out:
                    slice.pending = True
                    work.append(Renewal(self, slice))
                elif not slice.closing:
                    slice.closing = True
                    work.append(Closing(self, slice))
            return work

    def _start_timer(self) -> None:
        if self._timed and (self._timer is None or not self._timer.is_alive()):
            self._timer = threading.Thread(target=self._keep_house, name="behest-leases", daemon=True)
            try:
                self._timer.start()
            except RuntimeError:  # the interpreter is ending
                self._timer = None

    def _keep_house(self) -> None:
        """For as long as there are slices: also those of a meter that nobody has any more."""
        while True:
            time.sleep(TICK)
            with self.lock:
                if self._stopped or not len(self):
                    self._timer = None
                    return
            try:
                self.tick()
            except Exception:
                log.exception("leases could not be renewed")

    def stop(self) -> None:
        """The store is let go of: what has not been given back ends by its lease."""
        self._stopped = True


# ── what the store is asked ────────────────────────────────────────────────────────────


class Work(Operation[T], Generic[T]):
    """An operation on slices, which is told how it ended: with `done`, or with `failed`."""

    __slots__ = ("_aside", "_leases")

    def __init__(self, leases: Leases, claims: Sequence[Claim], takes: Sequence[str], **said: Any) -> None:
        super().__init__(self._run, claims=claims, takes=takes, **said)
        self._leases = leases
        self._aside: dict[str, tuple[Slice, dict[str, int]]] = {}

    def _run(self, rows: Rows) -> T:
        raise NotImplementedError

    def done(self, result: Any) -> None:
        """It was done."""
        self._aside.clear()

    def failed(self, error: BaseException) -> None:
        """It was not done, or nobody knows: what was set aside for it may be gone."""
        with self._leases.lock:
            for slice, less in self._aside.values():
                if any(less.values()):
                    self._leases.kill(slice)
            self._aside.clear()

    def _again(self) -> None:
        """It is begun, or begun anew, after nothing of it was done. The lock is held."""
        for slice, less in self._aside.values():
            slice.gets(less)
        self._aside.clear()

    def _set_aside(self, slice: Slice, less: Mapping[str, int]) -> Mapping[str, int]:
        """Have so much of it, or what there is; nobody else has it then. The lock is held."""
        had = {unit: min(amount, slice.free[unit]) for unit, amount in less.items() if unit in slice.free}
        for unit, amount in had.items():
            slice.free[unit] -= amount
        if had:
            self._aside[slice.id] = (slice, had)
        return had


class Renewal(Work[Lent]):
    """Makes a slice as large as it should be, and renews its lease."""

    __slots__ = ("_began", "_now", "_slice")

    def __init__(self, leases: Leases, slice: Slice) -> None:
        self._began = leases.monotonic()  # before the store is asked, whenever it is
        self._now = leases.clock()
        self._slice = slice
        super().__init__(leases, slice.claims, (slice.id,), now=self._now)

    def _run(self, rows: Rows) -> Lent:
        slice, leases = self._slice, self._leases
        with leases.lock:
            self._again()
            free, typical = dict(slice.free), dict(slice.typical)
            if slice.dry:
                slice.size = min(_MOST, slice.size * 2)
            want = slice.want()

        def aside(less: Mapping[str, int]) -> Mapping[str, int]:
            with leases.lock:
                return self._set_aside(slice, less)

        lent = lend(
            rows,
            lease=slice.id,
            known=slice.known,
            claims=slice.claims,
            free=free,
            want=want or dict.fromkeys(typical, 0),
            least={unit: amount * _FEWEST for unit, amount in typical.items()} if want else {},
            now=self._now,
            lasts=LASTS_MS,
            owner=leases.owner(),
            aside=aside,
        )
        if lent.events:
            leases.write_events(rows, self._now, lent.events)
        return lent

    def done(self, lent: Lent) -> None:
        slice, leases = self._slice, self._leases
        with leases.lock:
            super().done(lent)
            slice.pending = slice.dry = False
            slice.tight = not any(lent.more.values()) and not any(slice.free.values())
            slice.renewed = self._began
            given = lent.more and all(lent.more.get(u) or slice.free.get(u) for u in slice.typical)
            slice.rest = leases.monotonic() + (_SOON if given else _LATER)
            if not lent.there:
                leases.kill(slice)
                log.info("a slice of %s was taken for dead, and is assumed", slice.claims[0].text)
            elif not slice.dead:
                slice.tightest = lent.tightest or slice.tightest
                if lent.buckets:
                    slice.known = True
                    slice.buckets = lent.buckets
                    for unit, amount in lent.more.items():
                        slice.free[unit] = slice.free.get(unit, 0) + amount
                    if not slice.retired:
                        slice.until = self._began + LASTS_MS * 0.0008
        if lent.events:
            leases.tell_events(lent.events)

    def failed(self, error: BaseException) -> None:
        slice, leases = self._slice, self._leases
        with leases.lock:
            super().failed(error)
            slice.pending = False
            slice.renewed = self._began  # not at once again
            leases.kill(slice)


class Closing(Work[None]):
    """Ends a slice that no call has anything of."""

    __slots__ = ("_slice",)

    def __init__(self, leases: Leases, slice: Slice) -> None:
        self._slice = slice
        super().__init__(leases, (), (slice.id,))

    def _run(self, rows: Rows) -> None:
        close_slice(rows, self._slice.id, self._leases.clock())

    def done(self, result: Any) -> None:
        with self._leases.lock:
            self._leases.closed(self._slice)

    def failed(self, error: BaseException) -> None:
        with self._leases.lock:
            self._slice.closing = False  # tried again
            self._slice.dead = True
        log.info("a slice could not be given back yet: %s", error)


class GivingWay(Work[T]):
    """A reserve in the store. Where there is no room, what is free here is given back first."""

    __slots__ = ("_ask", "_inner", "_slices")

    def __init__(self, leases: Leases, slices: Iterable[Slice], inner: Operation[T], ask: Ask) -> None:
        self._slices = [*slices]
        self._inner = inner
        self._ask = ask
        super().__init__(
            leases,
            inner.claims,
            (*inner.takes, *(s.id for s in self._slices)),
            makes=inner.makes,
            now=inner.now,
            sweeps=inner.sweeps,
        )

    def _run(self, rows: Rows) -> T:
        leases = self._leases
        with leases.lock:
            self._again()
        if lacks(rows, self.claims, self._ask, self.now):
            for slice in self._slices:
                with leases.lock:
                    less = self._set_aside(slice, dict(slice.free))
                if any(less.values()):
                    give_back(rows, slice.id, less, self.now)
        return self._inner(rows)


class Part(Work["Reserved | Refused | None"]):
    """Reserves a call in the buckets that are its own, and has a part of a slice held for it in the others.

    None: the slice is not there any more.
    """

    __slots__ = ("_amounts", "_hot", "_inner", "_slice")

    def __init__(
        self,
        leases: Leases,
        slice: Slice,
        amounts: Mapping[str, int],
        inner: Operation[Any],
        hot: Sequence[Claim],
    ) -> None:
        super().__init__(
            leases,
            inner.claims,
            (*inner.takes, slice.id),
            makes=inner.makes,
            now=inner.now,
            sweeps=inner.sweeps,
        )
        self._slice = slice
        self._amounts = amounts
        self._inner = inner
        self._hot = hot

    def _run(self, rows: Rows) -> Reserved | Refused | None:
        slice, id = self._slice, self.makes
        assert id is not None
        found: Reserved | Refused = self._inner(rows)
        if not isinstance(found, Reserved):
            return found
        bookings = [(b, c.unit) for b, c in zip(slice.buckets, self._hot, strict=True)]
        if not hand_part(rows, lease=slice.id, call_id=id, amounts=found.amounts, bookings=bookings):
            return None
        return found._replace(drawn=Parted(self._leases, slice, id, self.claims))

    def done(self, found: Reserved | Refused | None) -> None:
        slice = self._slice
        used: Mapping[str, int] = found.amounts if isinstance(found, Reserved) else {}
        with self._leases.lock:
            slice.out -= 1
            if found is None:
                self._leases.kill(slice)
            elif not slice.dead:
                for unit, amount in self._amounts.items():
                    slice.free[unit] += amount - used.get(unit, 0)

    def failed(self, error: BaseException) -> None:
        with self._leases.lock:
            self._slice.out -= 1
            self._leases.kill(self._slice)


class Parted:
    """What of a slice the hold of a call has, until the call ends."""

    __slots__ = ("_leases", "_settled", "_slice", "ending", "id", "locks", "over")

    def __init__(self, leases: Leases, slice: Slice, id: str, rest: Sequence[Claim]) -> None:
        self._leases = leases
        self._slice = slice
        self._settled: Mapping[str, int] = {}
        self.id = id
        self.locks = rest
        self.over = self.ending = False

    def put_back(self) -> bool:
        """The call never left. False: its hold is the store's to drop."""
        return False

    def takes(self) -> tuple[str, ...]:
        """The ids of the holds that its end changes."""
        return (self.id, self._slice.id)

    def settle(
        self,
        rows: Rows,
        *,
        entry: Entry,
        amounts: Mapping[str, int],
        claims: Sequence[Claim],
        now: int,
    ) -> Booked:
        """Its end, in place of `book.settle`; whoever ran it calls `ended` when it is done."""
        slice = self._slice
        settled = settle_part(
            rows,
            lease=slice.id,
            buckets=slice.buckets,
            entry=entry,
            amounts=amounts,
            claims=claims,
            rest=self.locks,
            now=now,
            keep=lambda unused: {} if slice.dead or slice.retired or slice.tight else unused,
        )
        if settled.kept is not None:
            self._settled = settled.kept
        return settled.booked._replace(drawn=self)

    def ended(self) -> None:
        """Its entry is written."""
        slice = self._slice
        with self._leases.lock:
            if self.over:
                return
            self.over = True
            slice.gets(self._settled)


class Draw:
    """What a call has of a slice, from its admission to its end."""

    __slots__ = ("_leases", "_settled", "_slice", "_tried", "drawn", "ending", "over")

    locks: Sequence[Claim] = ()
    """The claims whose buckets its end locks."""

    def __init__(self, leases: Leases, slice: Slice, drawn: Drawn) -> None:
        self._leases = leases
        self._slice = slice
        self.drawn = drawn
        self.over = False
        """Whether it has left the slice, or is back in it."""
        self.ending = False
        """Whether an entry is being written for it."""
        self._tried = False
        self._settled: tuple[bool, Mapping[str, int]] = (True, {})

    @property
    def mine(self) -> bool:
        """Whether it is this process's to end; one that was inherited by a fork is the parent's."""
        return self._leases.mine

    def put_back(self) -> bool:
        """The call never left. Whether there was anything to put back."""
        leases, slice = self._leases, self._slice
        with leases.lock:
            if self.over or self.ending or not self.mine:
                return False
            self.over = True
            slice.out -= 1
            slice.gets(self.drawn.amounts)
            return True

    def takes(self) -> tuple[str, ...]:
        """The ids of the holds that its end changes."""
        return (self.drawn.lease,)

    def settle(
        self,
        rows: Rows,
        *,
        entry: Entry,
        amounts: Mapping[str, int],
        claims: Sequence[Claim],
        now: int,
    ) -> Booked:
        """Its end, in place of `book.settle`; whoever ran it calls `ended` when it is done."""
        if not self.mine:
            return Booked(False)
        sure, self._tried = not self._tried, True
        settled = settle_drawn(
            rows,
            drawn=self.drawn,
            entry=entry,
            amounts=amounts,
            claims=claims,
            now=now,
            sure=sure,
            keep=self._keep,
        )
        if settled.kept is not None:
            self._settled = (settled.there, settled.kept)
        return settled.booked._replace(drawn=self)

    def _keep(self, unused: Mapping[str, int]) -> Mapping[str, int]:
        """All of it: what is too much is given back when the slice is renewed. Near the limit, nothing."""
        return {} if self._slice.dead or self._slice.tight else unused

    def ended(self) -> None:
        """Its entry is written."""
        leases, slice = self._leases, self._slice
        there, kept = self._settled
        with leases.lock:
            if self.over:
                return
            self.over = True
            slice.out -= 1
            if not there:
                leases.kill(slice)
            else:
                slice.gets(kept)
