"""A world for leases: hosts, a network and one store, all of it decided by a seed.

The code is the real one: `engine.leases` on each host, the rules of `ledger.book` and `ledger.lending` in the
store. What is made up is time, and what may go wrong in it: messages are late or lost, transactions are
rolled back and run again, replies never come, hosts pause, are cut off, die and come back, their clocks are
wrong, limits change. After each step it is asked whether what must always hold still does.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from behest_integrations.engine.leases import Leases, Parted, Work
from behest_integrations.ledger.admission import Ask
from behest_integrations.ledger.book import (
    LEASE,
    Claim,
    Entry,
    Reserved,
    Rows,
    cancel,
    expire,
    reserve,
    settle,
    unmoved,
)
from behest_integrations.ledger.memory import MemoryLedger
from behest_integrations.ledger.operations import Operation
from behest_integrations.rules.errors import StoreError
from behest_integrations.rules.units import Need

Key = tuple[str, str, int]
EPOCH = 1_800_000_000_000
LENGTH = 12_000.0
"""Milliseconds for which calls are made."""
WINDOW = 5_000
LEASE_MS = 6_000
"""Of a call that has a hold of its own."""


class Broken(AssertionError):
    """Something that must always hold does not."""


class Shared:
    """The buckets of all, not of one user."""

    def __contains__(self, key: object) -> bool:
        return isinstance(key, tuple) and key[0] != "user"


class Call:
    def __init__(self, host: Host, id: str, claims: tuple[Claim, ...], ask: Ask, bill: float) -> None:
        self.host, self.id, self.claims, self.ask = host, id, claims, ask
        self.reserved: Reserved | None = None
        self.share_billed = bill
        self.billed: dict[str, int] | None = None
        self.asked_at = 0.0


class Host:
    """One process: its clocks, its queue to the store, its slices, its calls."""

    def __init__(self, world: World, number: int, life: int) -> None:
        r = world.random
        self.world, self.number = world, number
        self.name = f"host-{number}-{life}"
        self.rate = r.uniform(0.99, 1.01)
        self.skew = r.choice([0.0, 0.0, r.uniform(-4000, 4000)])
        self.alive, self.paused_until, self.cut_until = True, 0.0, 0.0
        self.queue: list[tuple[Operation[Any], Callable[..., Any], Callable[..., Any]]] = []
        self.busy = False
        self.batches = 0
        self.unwritten: list[tuple[Call, Operation[Any]]] = []
        self.calls: dict[str, Call] = {}
        slices = iter(range(10**6))
        self.leases = Leases(
            self.post,
            clock=lambda: EPOCH + int(world.now + self.skew),
            hot=Shared(),
            monotonic=lambda: world.now * self.rate / 1000,
            new_id=lambda: f"lease {self.name} {next(slices)}",
            owner=lambda: self.name,
            timer=False,
            often=2,
        )

    # ── to the store and back ──────────────────────────────────────────────────────────

    def post(
        self,
        work: Operation[Any],
        failed: Callable[[BaseException], Any],
        done: Callable[[Any], Any] = lambda _: None,
    ) -> None:
        self.queue.append((work, failed, done))
        self.world.at(0, self.send, self)

    def send(self) -> None:
        """One transaction at a time, of what has come meanwhile, as `ledger.base` does."""
        if self.busy or not self.queue:
            return
        world, r = self.world, self.world.random
        most = r.choice([1, 3, 10])
        batch, self.queue = self.queue[:most], self.queue[most:]
        self.busy = True
        self.batches += 1
        number = self.batches
        answered = False

        def arrive() -> None:
            # What comes late comes to a server that has given up on it.
            if self.batches != number or world.now < self.cut_until:
                return
            results = world.transaction([work for work, _, _ in batch])
            if r.random() >= world.lossy:
                world.at(world.delay(), back, self, results)

        def back(results: list[Any]) -> None:
            nonlocal answered
            if answered or world.now < self.cut_until:
                return
            answered, self.busy = True, False
            for (_, _, done), result in zip(batch, results, strict=True):
                done(result)
            self.send()

        def give_up() -> None:
            nonlocal answered
            if answered:
                return
            answered, self.busy = True, False
            for _, failed, _ in batch:
                failed(StoreError("nobody knows"))
            self.send()

        if r.random() >= world.lossy:
            world.at(world.delay(), arrive)
        world.at(world.timeout, give_up, self)

    # ── calls ──────────────────────────────────────────────────────────────────────────

    def begin(self, call: Call) -> None:
        if drawn := self.leases.draw(call.claims, call.ask):
            self.admitted(call, drawn)
            return
        world, now = self.world, EPOCH + int(self.world.now + self.skew)

        def reserving(claims: Sequence[Claim]) -> Operation[Any]:
            def work(rows: Rows) -> Any:
                before = world.sums()
                found = reserve(
                    rows, call_id=call.id, claims=claims, ask=call.ask, call={"started": now, "model": "m",
                    "operation": "chat"}, now=now, lease=LEASE_MS, owner=self.name,
                )  # fmt: skip
                if not isinstance(found, Reserved) and world.sums() != before:
                    raise Broken("a refusal changed something (invariant 3)")
                return found

            return Operation(work, claims=claims, makes=call.id, now=now)

        part = self.leases.part(call.claims, call.ask, reserving)
        asking: Operation[Any] = part or self.leases.asking(reserving(call.claims), call.ask)
        left = world.random.random() < 0.03  # whoever waits for it is cancelled

        def done(found: Any) -> None:
            if isinstance(asking, Work):
                asking.done(found)
            if found is None:
                self.begin(call)  # the slice has gone
            elif isinstance(found, Reserved):
                self.admitted(call, found)
            elif found.reason == "busy" and world.now - call.asked_at < 2500 and not world.over:
                world.at(world.random.uniform(100, 800), self.begin, self, call)
            else:
                world.refused += 1
                if found.reason == "busy" and not world.over:
                    key, unit = found.claim.key, found.claim.unit
                    slices = [s for h in world.hosts for s in h.leases._slices.values() if key in s.key]
                    idle = sum(s.free.get(unit, 0) for s in slices)
                    world.stranded += idle >= found.asked

        def failed(error: BaseException) -> None:
            if isinstance(asking, Work):
                asking.failed(error)
            # The store is asked for the hold later, as the ledger does that is in doubt.
            self.post(Operation(lambda rows: cancel(rows, call_id=call.id)), lambda _: None)

        if left:
            self.post(asking, lambda _: None)
            world.at(world.random.uniform(0, 50), failed, self, StoreError("cancelled"))
        else:
            self.post(asking, failed, done)

    def admitted(self, call: Call, reserved: Reserved) -> None:
        call.reserved = reserved
        world, r = self.world, self.world.random
        self.calls[call.id] = call
        if isinstance(reserved.drawn, Parted):
            world.parted += 1
        elif reserved.drawn is not None:
            world.drawn += 1
        if r.random() < 0.08:
            world.at(r.uniform(0, 300), self.end, self, call, "cancelled")
            return
        # It may take its time before it leaves: the process is paused between two lines.
        world.at(r.choice([0.0, 1.0, 3000.0]), self.leave, self, call)

    def leave(self, call: Call) -> None:
        world, r = self.world, self.world.random
        assert call.reserved is not None
        for claim in call.claims:
            world.exposed[claim.key] += call.reserved.amounts[claim.unit]
        world.sent.append(call)
        # The provider answers also those who have died.
        world.at(r.choice([5.0, 200.0, 2000.0, 9000.0]) * r.random(), self.answer, None, call)

    def answer(self, call: Call) -> None:
        world, r = self.world, self.world.random
        held = call.reserved.amounts  # type: ignore[union-attr]
        share = r.choice([0.0, 0.1, 0.1, 0.5, 1.0])
        call.billed = {unit: int(amount * share) for unit, amount in held.items()}
        for claim in call.claims:
            world.exposed[claim.key] += call.billed[claim.unit] - held[claim.unit]
        kind = "failed" if not share else "settled"
        if r.random() < 0.1:
            # First it is thought to be lost, and then told after all.
            world.at(0, self.end, self, call, "assumed")
            world.at(r.choice([0.0, 20.0, 2000.0]), self.end, self, call, kind)
        else:
            world.at(0, self.end, self, call, kind)
        if r.random() < 0.05:
            world.at(r.uniform(0, 1000), self.end, self, call, "cancelled")  # an end that comes too late

    def end(self, call: Call, status: str) -> None:
        if call.id not in self.calls:
            return
        reserved = call.reserved
        assert reserved is not None
        draw = reserved.drawn
        now = EPOCH + int(self.world.now + self.skew)
        if status == "cancelled":
            if call.billed is not None or draw is None or not draw.put_back():
                if call.billed is None:
                    work = Operation(lambda rows: cancel(rows, call_id=call.id), takes=(call.id,))
                    self.write(call, work)
            else:
                del self.calls[call.id]
            return
        assert call.billed is not None
        amounts = dict(reserved.amounts) if status == "assumed" else call.billed
        cost = amounts["usd"]

        def book(rows: Rows) -> Any:
            entry = Entry(call.id, now, status, cost=cost, calls=amounts.get("calls", 0), model="m")
            how = settle if draw is None or (draw.over and not draw.ending) else draw.settle
            return how(rows, entry=entry, amounts=amounts, claims=call.claims, now=now)

        if draw is not None:
            draw.ending = True
        self.write(call, Operation(book, claims=call.claims, takes=(call.id,), now=now, settles=True))

    def write(self, call: Call, work: Operation[Any]) -> None:
        def done(booked: Any) -> None:
            if getattr(booked, "drawn", None) is not None:
                booked.drawn.ended()

        self.post(work, lambda _: self.unwritten.append((call, work)), done)

    def keep_house(self) -> None:
        waiting, self.unwritten = self.unwritten, []
        for call, work in waiting:
            self.write(call, work)
        self.leases.tick()
        if self.world.random.random() < 0.4:
            self.sweep()
        if not self.world.over:
            self.world.at(500, self.keep_house, self)

    def sweep(self) -> None:
        now = EPOCH + int(self.world.now + self.skew)
        dead = {host.name for host in self.world.buried}
        sees = self.world.random.random() < 0.3  # that they have died: it may be on another machine
        self.post(
            Operation(
                lambda rows: expire(rows, now=now, book=True, has_died=lambda who: sees and who in dead)
            ),
            lambda _: None,
        )


class World:
    """One seed's history; `run` raises `Broken` where something that must hold does not."""

    def __init__(self, seed: int, *, calm: bool = False) -> None:
        self.seed = seed
        self.random = r = random.Random(seed)
        self.now = 0.0
        self.over = False
        self.calm = calm
        self.lossy = 0.0 if calm else r.choice([0.0, 0.0, 0.05, 0.3])
        self.slowest = 5.0 if calm else r.choice([1.0, 20.0, 300.0])
        self.timeout = 1000.0
        self.aborts = 0.0 if calm else r.choice([0.0, 0.1, 0.5])
        self.rows = MemoryLedger()._rows
        self.events: list[tuple[float, int, Callable[..., None], Host | None, tuple[Any, ...]]] = []
        self.count = 0
        self.exposed: dict[Key, int] = defaultdict(int)
        self.sent: list[Call] = []
        self.drawn = self.parted = self.refused = self.crashes = 0
        self.stranded = 0
        """Calls that were refused, after they had waited, although as much was free in slices."""
        self.entry_sums: dict[int, int] = defaultdict(int)
        self.summed = 0
        self.totals: dict[int, int] = {}
        self.buried: list[Host] = []
        self.limits = {"usd": r.choice([200, 2_000, 40_000]), "calls": r.choice([30, 400, 10_000])}
        self.sets = r.choice([("usd",), ("usd", "calls"), ("usd", "user"), ("usd", "calls", "user")])
        self.windowed = r.random() < 0.4
        self.hosts = [Host(self, number, 0) for number in range(r.randint(2, 4))]

    # ── time ───────────────────────────────────────────────────────────────────────────

    def at(self, after: float, what: Callable[..., None], host: Host | None = None, *args: Any) -> None:
        """Do it after so many ms, on a host: not while that is paused, and not if it has died."""
        self.count += 1
        heapq.heappush(self.events, (self.now + after, self.count, what, host, args))

    def delay(self) -> float:
        return self.random.random() * self.slowest

    def step(self) -> None:
        self.now, _, what, host, args = heapq.heappop(self.events)
        if host is not None:
            if not host.alive:
                return
            if self.now < host.paused_until:
                self.at(host.paused_until - self.now, what, host, *args)
                return
        what(*args)

    # ── the store ──────────────────────────────────────────────────────────────────────

    def sums(self) -> dict[Key, tuple[int, int]]:
        return {key: (b.spent, b.held) for key, b in self.rows.buckets.items() if b.spent or b.held}

    def transaction(self, work: list[Operation[Any]]) -> list[Any]:
        rows = self.rows
        if self.random.random() < self.aborts:  # somebody is in the way: it is run again
            before = {id: (b.spent, b.held, b.notified) for id, b in rows.by_id.items()}
            keys, holds, last = list(rows.buckets), dict(rows.holds), dict(rows.last)
            entries, refusals = len(rows.entries), dict(rows.refusals)
            for one in work:
                one(rows)
            for key in [key for key in rows.buckets if key not in keys]:
                del rows.by_id[rows.buckets.pop(key).id]
            for id, sums in before.items():
                bucket = rows.by_id[id]
                bucket.spent, bucket.held, bucket.notified = sums
            rows.holds, rows.last, rows.refusals = holds, last, refusals
            del rows.entries[entries:]
            rows.slots.clear()
        results = [one(rows) for one in work]
        self.check_books()
        return results

    # ── what must hold ─────────────────────────────────────────────────────────────────

    def limit_of(self, bucket: Any) -> int:
        if bucket.budget == "user":
            return 10**12
        return self.rows.limits.get(bucket.budget, self.limits[bucket.budget])  # type: ignore[return-value]

    def check_books(self) -> None:
        rows = self.rows
        held: dict[int, int] = defaultdict(int)
        for hold in rows.holds.values():
            for id, _unit, amount, _slot in hold.bookings:
                if amount < 0:
                    raise Broken(f"less than nothing is held by {hold.id}")
                held[id] += amount
        moving = unmoved(rows.holds.values())
        for entry in rows.entries[self.summed :]:
            for id, _unit, amount in entry.bookings:
                self.entry_sums[id] += amount
        self.summed = len(rows.entries)
        for id, bucket in rows.by_id.items():
            if bucket.held != held[id] or bucket.spent != self.entry_sums[id] - moving.get(id, 0):
                raise Broken(f"the ledger is not the sum of its entries and holds: {bucket} (invariant 6)")
            total = bucket.spent + bucket.held
            if total > max(self.limit_of(bucket), self.totals.get(id, 0)):
                raise Broken(f"{total} of {self.limit_of(bucket)} in {bucket} (invariant 1)")
            self.totals[id] = total

    def check_truth(self) -> None:
        """What providers have billed, and may yet bill for what is under way, is spent or held."""
        for key, exposed in self.exposed.items():
            bucket = self.rows.buckets.get(key)
            total = 0 if bucket is None else bucket.spent + bucket.held
            if exposed > total:
                raise Broken(f"{exposed} may be billed in {key}, and the books say {total} (invariant 1)")

    def check_end(self) -> None:
        """All has ended; each call is booked as it was billed (invariant 4)."""
        if self.rows.holds:
            raise Broken(f"held for ever: {list(self.rows.holds.values())}")
        net: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        for entry in self.rows.entries:
            for id, _unit, amount in entry.bookings:
                net[entry.call_id][id] += amount
        for call in self.sent:
            if not call.host.alive:
                continue  # nobody is left to tell
            for claim in call.claims:
                booked = net[call.id][self.rows.buckets[claim.key].id]
                if booked != call.billed[claim.unit]:  # type: ignore[index]
                    raise Broken(f"{call.id} was billed {call.billed}, and {booked} is booked in {claim.key}")
        left = {id: n for id, n in net.items() if id.startswith(LEASE) and any(n.values())}
        alive = {host.name for host in self.hosts}
        if any(id.split()[1] in alive for id in left):
            raise Broken(f"assumed for ever, of hosts that live: {left}")

    # ── what happens ───────────────────────────────────────────────────────────────────

    def claims(self) -> tuple[Claim, ...]:
        r = self.random
        start = EPOCH + int(self.now) // WINDOW * WINDOW if self.windowed else 0
        usd = Claim("usd", "", start, "usd", self.limits["usd"], "$", thresholds=(50, 80, 100))
        calls = Claim("calls", "", 0, "calls", self.limits["calls"], "calls")
        user = Claim("user", r.choice("ab"), 0, "usd", 10**12, "per user")
        some = r.choice(self.sets)
        return {"usd": (usd,), "calls": (usd, calls), "user": (usd, user)}[some]

    def call(self, host: Host, number: int) -> None:
        r = self.random
        want = r.choice([10, 10, 10, 40])
        ask = Ask({"usd": Need(5, 1), "calls": Need(1)}, want, r.choice([want, 4]))
        call = Call(host, f"call {number}", self.claims(), ask, r.random())
        call.asked_at = self.now
        host.begin(call)

    def crash(self, number: int) -> None:
        host = self.hosts[number]
        if not host.alive:
            return
        host.alive = False
        self.crashes += 1
        self.buried.append(host)
        self.at(self.random.choice([0.0, 3000.0]), self.restart, None, number)

    def restart(self, number: int) -> None:
        self.hosts[number] = Host(self, number, len(self.buried))
        self.at(0, self.hosts[number].keep_house, self.hosts[number])

    def pause(self, number: int) -> None:
        self.hosts[number].paused_until = self.now + self.random.choice([200, 3000, 15_000])

    def cut(self, number: int) -> None:
        self.hosts[number].cut_until = self.now + self.random.choice([200, 3000, 15_000])

    def change(self) -> None:
        budget = self.random.choice(["usd", "calls"])
        percent = self.random.choice([0, 30, 80, 100, 150])
        self.rows.set_override(budget, self.limits[budget] * percent // 100)
        self.totals.clear()
        self.totals.update({id: b.spent + b.held for id, b in self.rows.by_id.items()})

    def run(self) -> World:
        r = self.random
        busy = r.choice([20, 50, 90])
        if self.calm:
            busy = 600
        for number in range(busy):
            host = r.randrange(len(self.hosts))
            begin = r.random() * LENGTH * r.choice([0.05, 0.3, 1.0])
            self.at(begin, lambda host=host, number=number: self._call_on(host, number))  # type: ignore[misc]
        for host in self.hosts:
            self.at(r.random() * 500, host.keep_house, host)
        faults = [self.crash, self.pause, self.cut]
        for _ in range(0 if self.calm else r.choice([0, 2, 6])):
            self.at(r.random() * LENGTH, r.choice(faults), None, r.randrange(len(self.hosts)))
        for _ in range(0 if self.calm else r.choice([0, 0, 3])):
            self.at(r.random() * LENGTH, self.change)
        while self.events and self.now < LENGTH + 1000:
            self.step()
            self.check_truth()
        self.settle_down()
        self.check_end()
        return self

    def _call_on(self, number: int, call: int) -> None:
        host = self.hosts[number]
        if host.alive and self.now >= host.paused_until:
            self.call(host, call)

    def settle_down(self) -> None:
        """The network is as it should be again, and everything comes to its end."""
        self.lossy, self.slowest, self.aborts, self.over = 0.0, 1.0, 0.0, True
        for host in self.hosts:
            host.cut_until = host.paused_until = 0.0
        for _ in range(40):
            end = self.now + 1000
            for host in self.hosts:
                if host.alive:
                    self.at(0, host.keep_house, host)
            while self.events and self.events[0][0] < end:
                self.step()
                self.check_truth()
            self.now = end
            left = any(len(h.leases) or h.unwritten for h in self.hosts if h.alive)
            if not self.rows.holds and not left and not self.events:
                break
        while self.events:
            self.step()
