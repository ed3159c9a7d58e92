"""Leases: what slices of hot budgets are in a store, and what a meter does with them.

What happens to them when everything goes wrong at once is in `test_lease_simulation`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import postgres
import psycopg
import pytest
from store_suite import NOW, entry
from support import HELLO, MODEL, assert_agrees, assert_sound, auntil_exhausted, forkserver, until_exhausted

from behest_integrations import BudgetExceeded, ConfigError, Meter, StoreError, Usage
from behest_integrations.engine.leases import Draw, Leases, Parted
from behest_integrations.engine.outcomes import Outcome
from behest_integrations.ledger import Claim, Ledger, open_store
from behest_integrations.ledger.book import LEASE, Rows, expire, unmoved
from behest_integrations.ledger.contention import Contention, SharedFile
from behest_integrations.ledger.lending import (
    Drawn,
    Lent,
    Settled,
    close_slice,
    give_back,
    lend,
    settle_drawn,
)
from behest_integrations.ledger.operations import Operation
from behest_integrations.reports import repair, verify
from behest_integrations.sandbox import Sandbox
from behest_integrations.wire import RequestBound

BOUND = RequestBound(1, output_limit=0)
HOT = Claim("usd all", "[]", 0, "usd", 10_000, "$", thresholds=(50,))
CALLS = Claim("calls all", "[]", 0, "calls", 500, "calls")
BOTH = (HOT, CALLS)


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return postgres.new_url()
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/books.db"


# ── in the store ───────────────────────────────────────────────────────────────────────


class Books:
    """One slice, as a process has it, over a store."""

    def __init__(self, url: str) -> None:
        self.ledger: Ledger = open_store(url)
        self.buckets: list[int] = []

    def lend(self, calls: int, *, free: int = 0, now: int = NOW, least: int = 1) -> Lent:
        """So many calls of 10 and 1."""
        lent: Lent = self.ledger.submit(
            Operation(
                lambda rows: lend(
                    rows, lease="lease 1", known=bool(self.buckets), claims=BOTH,
                    free={"usd": 10 * free, "calls": free}, want={"usd": 10 * calls, "calls": calls},
                    least={"usd": 10 * least, "calls": least}, now=now, lasts=1000, owner="me",
                    aside=lambda less: less,
                ),
                claims=BOTH, takes=("lease 1",),
            )
        )  # fmt: skip
        self.buckets = list(lent.buckets) or self.buckets
        return lent

    def settle(self, id: str, usd: int, *, status: str = "settled", sure: bool = True) -> Settled:
        bookings = [(id, claim.unit) for id, claim in zip(self.buckets, BOTH, strict=True)]
        drawn = Drawn("lease 1", {"usd": 10, "calls": 1}, bookings)
        return self.ledger.submit(
            Operation(
                lambda rows: settle_drawn(
                    rows, drawn=drawn, entry=entry(id, status=status, cost=usd),
                    amounts={"usd": usd, "calls": 1}, claims=BOTH, now=NOW, sure=sure,
                    keep=lambda unused: unused,
                ),
                takes=("lease 1",),
            )
        )  # fmt: skip

    def run(self, work: Any) -> Any:
        return self.ledger.submit(work)

    def sums(self) -> dict[str, tuple[int, int]]:
        """Spent and held, with what is not moved yet counted as spent."""
        assert verify(self.ledger) == []
        buckets, holds, _ = self.ledger.snapshot()
        moving = unmoved(holds)
        return {b.unit: (b.spent + moving.get(b.id, 0), b.held - moving.get(b.id, 0)) for b in buckets}


@pytest.fixture
def books(url: str) -> Iterator[Books]:
    books = Books(url)
    yield books
    books.ledger.close()


def test_a_slice_is_held_until_it_is_spent_or_given_back(books: Books) -> None:
    assert books.lend(20).more == {"usd": 200, "calls": 20}
    assert books.sums() == {"usd": (0, 200), "calls": (0, 20)}
    assert books.settle("1", 3) == Settled(
        books.settle("2", 10).booked._replace(cost=3), True, {"usd": 7, "calls": 0}
    )
    assert books.sums() == {"usd": (13, 187), "calls": (2, 18)}
    assert books.run(lambda rows: give_back(rows, "lease 1", {"usd": 50, "calls": 5}, NOW))
    assert books.sums() == {"usd": (13, 137), "calls": (2, 13)}
    books.lend(1, free=13)  # far less is wanted: what is free is given back
    assert books.sums() == {"usd": (13, 17), "calls": (2, 1)}
    assert books.ledger.snapshot()[1][0].call["spent"] == {}  # and what was spent is in its buckets
    books.run(lambda rows: close_slice(rows, "lease 1", NOW))
    books.run(lambda rows: close_slice(rows, "lease 1", NOW))
    assert books.sums() == {"usd": (13, 0), "calls": (2, 0)}


def test_the_nearer_the_limit_the_smaller(books: Books) -> None:
    assert books.lend(1000).more["calls"] == 500 // 8
    assert books.lend(1000, free=500 // 8).more["calls"] == 500 // 8 - 500 // 8  # an eighth of all there is
    more = books.lend(1000).more  # another's, say
    assert 0 < more["calls"] <= (500 - 62) // 8
    assert more["usd"] <= 10_000 // 8
    assert books.lend(1000, least=400).more["calls"] == 0  # less than a call is no slice
    spent, held = books.sums()["calls"]
    assert spent + held <= 500


def test_what_has_expired_is_assumed_and_then_corrected(books: Books) -> None:
    books.lend(20)
    books.settle("1", 3)
    assert books.run(lambda rows: expire(rows, now=NOW + 1000, book=False)) == ["lease 1"]
    assert books.sums() == {"usd": (200, 0), "calls": (20, 0)}, "its process may yet spend it: all is booked"
    # Its process was only slow: it tells what became of its calls, and then that there are no more.
    assert not books.settle("2", 4).there
    assert books.sums() == {"usd": (194, 0), "calls": (20, 0)}
    assert books.settle("2", 4, sure=False).kept is None, "a retry finds that it is booked"
    assert not books.lend(20, free=5).there
    books.run(lambda rows: close_slice(rows, "lease 1", NOW))
    books.run(lambda rows: close_slice(rows, "lease 1", NOW))
    assert books.sums() == {"usd": (7, 0), "calls": (2, 0)}
    last = books.run(lambda rows: rows.last_entry("lease 1"))
    assert (last.operation, last.status, last.cost) == (LEASE, "failed", 0)


def test_a_late_report_replaces_an_earlier_one(books: Books) -> None:
    books.lend(20)
    books.settle("1", 10, status="assumed")
    assert books.settle("1", 4, sure=False).booked.replaced
    assert books.sums() == {"usd": (4, 190), "calls": (1, 19)}


def test_more_than_was_drawn_is_booked_as_it_is(books: Books) -> None:
    books.lend(20)
    assert books.settle("1", 25).booked.over == ("usd",)
    assert books.sums() == {"usd": (25, 190), "calls": (1, 19)}


def test_repair_knows_what_is_on_its_way(books: Books) -> None:
    books.lend(20)
    books.settle("1", 3)
    books.run(lambda rows: rows.set_sums(books.buckets[0], 77, 77))
    assert len(repair(books.ledger)) == 1
    assert books.sums() == {"usd": (3, 197), "calls": (1, 19)}


def test_of_a_paused_budget_nothing_is_taken(books: Books) -> None:
    books.lend(20)
    books.run(lambda rows: rows.set_override(HOT.budget, None))
    lent = books.lend(20, free=20)
    assert lent.there
    assert not any(lent.more.values())
    assert books.sums() == {"usd": (0, 0), "calls": (0, 0)}


def test_which_buckets_are_contended_is_measured() -> None:
    now = 0.0
    contended = Contention(lambda: now)
    mine, theirs, slow = ("a", "", 0), ("b", "", 0), ("c", "", 0)
    for n in range(20):
        now += 0.05
        contended.found(mine, n, 0)
        contended.left(mine, n + 1, 0)
        contended.found(theirs, 2 * n, 0)
        contended.left(theirs, 2 * n + 1, 0)
    for n in range(20):
        now += 1.0
        contended.found(slow, 2 * n, 0)
    assert mine not in contended
    assert slow not in contended
    now = 2.0
    assert theirs in contended
    now = 60.0
    assert theirs not in contended


def test_a_file_that_others_write_often_is_contended() -> None:
    now = 100.0
    file = SharedFile(lambda: now)
    for _ in range(20):
        now += 1.0
        file.met()
    assert "any" not in file
    for _ in range(12):
        now += 0.1
        file.met()
    assert "any" in file
    now += 12
    assert "any" not in file


# ── a bucket that is added to without being read ───────────────────────────────────────


def test_postgres_adds_to_what_another_has_locked_in_order_in_the_end() -> None:
    url = postgres.new_url()
    books = Books(url)
    books.lend(20)
    with psycopg.connect(postgres.server()) as other:
        other.execute(f"SET search_path TO {postgres.schema_of(url)}")
        other.execute("SELECT * FROM buckets FOR UPDATE")
        unlock = threading.Timer(0.4, other.commit)
        unlock.start()
        books.run(lambda rows: give_back(rows, "lease 1", {"usd": 50, "calls": 5}, NOW))
        unlock.join()
    assert books.ledger.retries > 0  # type: ignore[attr-defined]
    assert books.sums() == {"usd": (0, 150), "calls": (0, 15)}
    books.ledger.close()


def test_postgres_adds_to_no_bucket_that_is_not_there() -> None:
    ledger = open_store(postgres.new_url())

    def write(rows: Rows) -> None:
        rows.add_entry(entry("1"))
        rows.add_to_bucket(4711, 1, 0)

    with pytest.raises(StoreError, match="damaged"):
        ledger.submit(write)
    assert ledger.snapshot()[2] == []
    ledger.close()


# ── in a meter ─────────────────────────────────────────────────────────────────────────


class Everything:
    def __contains__(self, key: object) -> bool:
        return True


def lending(url: str, *budgets: str, **said: Any) -> Meter:
    """A meter to which every budget is hot."""
    meter = Meter(url, budgets=budgets, leases=True, **said)
    leases(meter)._hot = Everything()
    leases(meter)._often = 1
    leases(meter)._parts = True
    return meter


def leases(meter: Meter) -> Leases:
    assert meter._leases is not None
    return meter._leases


def warm(meter: Meter, plan: Any, most: int = 200) -> None:
    """Call until calls are drawn."""
    for _ in range(most):
        before = leases(meter).drawn
        meter.reserve(plan).settle(Usage(1))
        meter.ledger.flush()
        if leases(meter).drawn > before:
            return
    raise AssertionError("no call was ever drawn")


@pytest.fixture
def meter(url: str) -> Iterator[Meter]:
    with lending(url, "1000 calls", "$100") as meter:
        yield meter


def test_calls_are_admitted_without_asking_and_given_back(meter: Meter) -> None:
    plan = meter.plan("chat", MODEL, BOUND)
    warm(meter, plan)
    meter.flush()
    warm(meter, plan)
    before = meter.ledger.snapshot()[2]
    kept = meter.reserve(plan)
    assert kept.draw is not None
    assert kept.id not in {hold.id for hold in meter.ledger.snapshot()[1]}
    meter.reserve(plan).release()
    meter.reserve(plan).end(Outcome("failed", note="HTTP 429"))
    kept.end(Outcome("assumed"))
    kept.settle(Usage(1))  # it was told after all
    kept.release()
    kept.settle(Usage(1))
    net = meter.ledger.snapshot()[2][len(before) :]
    assert [(e.status, e.reversal) for e in net] == [
        ("failed", 0), ("assumed", 0), ("assumed", 1), ("settled", 0),
    ]  # fmt: skip
    assert_sound(meter)
    assert len(leases(meter)) == 0
    assert {b.spent for b in meter.spend() if b.unit == "calls"} == {len(meter.ledger.snapshot()[2]) - 3}


def test_an_outer_layer_gives_what_it_has_to_the_inner(meter: Meter) -> None:
    plan = meter.plan("chat", MODEL, BOUND)
    warm(meter, plan)
    outer = meter.reserve(plan)
    inner = meter.reserve(meter.plan("chat", MODEL, BOUND, outer=outer))
    assert outer.last is inner
    inner.settle(Usage(1))
    outer.settle(Usage(1))
    assert_sound(meter)
    assert len({e.call_id for e in meter.ledger.snapshot()[2]}) == len(meter.ledger.snapshot()[2])


def test_what_an_outer_layer_holds_in_the_store_ends_with_the_inner(meter: Meter) -> None:
    plan = meter.plan("chat", MODEL, BOUND)
    leases(meter)._often = 10**9
    outer = meter.reserve(plan)
    assert outer.draw is None
    leases(meter)._often = 1
    warm(meter, plan)
    inner = meter.reserve(meter.plan("chat", MODEL, BOUND, outer=outer))
    inner.settle(Usage(1))
    outer.settle(Usage(1))
    meter.flush()
    assert outer.id not in {hold.id for hold in meter.ledger.snapshot()[1]}
    assert_sound(meter)


async def test_coroutines_that_are_cancelled(meter: Meter) -> None:
    plan = meter.plan("chat", MODEL, BOUND)
    warm(meter, plan)

    async def call() -> None:
        hold = await meter.areserve(plan)
        try:
            await asyncio.sleep(0.001)
        finally:
            hold.post(Outcome("settled", Usage(1)))

    tasks = [asyncio.create_task(call()) for _ in range(60)]
    await asyncio.sleep(0.002)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.to_thread(assert_sound, meter)


def test_all_of_it_can_be_spent_by_many_and_no_more(url: str) -> None:
    if url.startswith("memory"):
        pytest.skip("a store of one process")
    meters = [lending(url, "300 calls", thresholds=()) for _ in range(3)]
    made: list[int] = []

    def work(meter: Meter) -> None:
        plan = meter.plan("chat", MODEL, BOUND)
        made.append(until_exhausted(lambda: meter.reserve(plan).settle(Usage(1)), pause=0.1))

    threads = [threading.Thread(target=work, args=(meter,)) for meter in meters for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(made) == 300
    assert sum(leases(meter).drawn for meter in meters) > 0
    for meter in meters:
        meter.flush()
    assert_sound(meters[0])
    for meter in meters:
        meter.close()


def test_processes_that_share_a_file_measure_that_it_is_hot(tmp_path: Path) -> None:
    """None is told so, and who has the file for himself takes no slices."""
    url, budgets = f"sqlite:///{tmp_path}/books.db", ["600 calls", "$9 per session"]
    made: list[int] = []

    def work(meter: Meter) -> None:
        with meter.session("s"):
            plan = meter.plan("chat", MODEL, BOUND)
            made.append(until_exhausted(lambda: meter.reserve(plan).settle(Usage(1)), most=600, pause=0.1))

    def plain(url: str) -> Meter:
        meter = Meter(url, budgets=budgets, leases=True)
        leases(meter)._often = 1  # however slow the machine is
        return meter

    with plain(f"sqlite:///{tmp_path}/own.db") as alone:
        for _ in range(40):
            alone.reserve(alone.plan("chat", MODEL, BOUND)).settle(Usage(1))
        assert leases(alone).drawn == 0
    meters = [plain(url) for _ in range(2)]
    threads = [threading.Thread(target=work, args=(meter,)) for meter in meters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(made) == 600
    assert sum(leases(meter).drawn for meter in meters) > 0
    for meter in meters:
        meter.flush()
    assert_sound(meters[0])
    for meter in meters:
        meter.close()


def test_a_lower_limit_reaches_it(meter: Meter) -> None:
    plan = meter.plan("chat", MODEL, BOUND)
    warm(meter, plan)
    meter.set_limit("1000 calls", "2 calls")
    leases(meter).tick()
    meter.ledger.flush()
    drawn = leases(meter).drawn
    with pytest.raises(BudgetExceeded):
        meter.reserve(plan)
    assert leases(meter).drawn == drawn


def test_thresholds_are_told_when_a_slice_is_renewed(url: str) -> None:
    told: list[int] = []
    with lending(url, "100 calls", on_threshold=lambda event: told.append(event.percent)) as meter:
        plan = meter.plan("chat", MODEL, BOUND)
        for _ in range(60):
            meter.reserve(plan).settle(Usage(1))
        assert leases(meter).drawn
        meter.flush()
        assert told == [50]


def test_a_fork_has_no_slices(tmp_path: Path) -> None:
    with lending(f"sqlite:///{tmp_path}/books.db", "1000 calls") as meter:
        plan = meter.plan("chat", MODEL, BOUND)
        warm(meter, plan)
        held = meter.reserve(plan)
        assert held.draw is not None
        if not (pid := os.fork()):
            try:
                held.end(Outcome("assumed"))  # it is the parent's to end
                child = meter.reserve(plan)
                child.settle(Usage(1))
                same = child.draw is not None and child.draw.drawn.lease == held.draw.drawn.lease
                os._exit(3 if same else 0)
            finally:
                os._exit(4)
        assert os.waitpid(pid, 0)[1] == 0
        held.settle(Usage(1))
        meter.sweep()  # the child has left a slice of its own
        assert_sound(meter)
        ids = [e.call_id for e in meter.ledger.snapshot()[2]]
        assert ids.count(held.id) == 1


def _killed(url: str, told: Any) -> None:
    with lending(url, "1000 calls", "$100") as meter:
        plan = meter.plan("chat", MODEL, BOUND)
        warm(meter, plan)
        meter.reserve(plan)
        told.put(leases(meter).drawn)
        time.sleep(60)


def test_of_a_process_that_was_killed_its_slice_is_assumed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/books.db"
    spawn = forkserver()
    told = spawn.Queue()
    victim = spawn.Process(target=_killed, args=(url, told))
    victim.start()
    assert told.get(timeout=60)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    with Meter(url, budgets=["1000 calls", "$100"]) as meter:
        (slice,) = meter.ledger.snapshot()[1]
        calls = {unit: amount for _, unit, amount, _ in slice.bookings}["calls"]
        assert calls >= 1
        before = {b.unit: b.spent + b.held for b in meter.spend()}
        assert meter.sweep() == 1  # it is of this machine, so it need not wait for its lease
        assert {b.unit: b.spent for b in meter.spend()} == before
        assert_sound(meter)
        last = meter.ledger.snapshot()[2][-1]
        assert (last.operation, last.status, last.flags) == (LEASE, "assumed", "process_died")


def test_of_a_store_that_is_out_no_more_is_drawn_than_was_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lending(f"sqlite:///{tmp_path}/books.db", "1000 calls") as meter:
        plan = meter.plan("chat", MODEL, BOUND)
        warm(meter, plan)
        ledger: Any = meter.ledger
        begin, begin_now = ledger._begin, ledger._begin_now
        ledger._begin = lambda: (_ for _ in ()).throw(StoreError("it is out"))
        ledger._begin_now = lambda: None
        held = {unit: amount for _, unit, amount, _ in _held(tmp_path)}["calls"]
        made = 0
        try:
            for _ in range(500):
                meter.reserve(plan).settle(Usage(1))
                made += 1
        except StoreError:
            pass
        assert 0 < made <= held
        assert meter.unwritten == made
        ledger._begin, ledger._begin_now = begin, begin_now
        assert_sound(meter)


def _held(folder: Path) -> list[Any]:
    ledger = open_store(f"sqlite:///{folder}/books.db")
    try:
        return [booking for hold in ledger.snapshot()[1] for booking in hold.bookings]
    finally:
        ledger.close()


# ── calls that count in a hot budget and in others ─────────────────────────────────────


class Shared:
    """The buckets of all, not of one user or session."""

    def __contains__(self, key: object) -> bool:
        return isinstance(key, tuple) and key[1] in ("", "[]")


MIXED = ("1000 calls", "$5 per user", "100k tokens per 1h rolling", "900 calls per session")


@pytest.fixture
def mixed(url: str) -> Iterator[Meter]:
    with lending(url, *MIXED) as meter:
        leases(meter)._hot = Shared()
        with meter.session("s", user="ada"):
            yield meter


def part_of(meter: Meter, kind: type = Parted) -> Any:
    """A hold that has a part of a slice; or one that is drawn from one."""
    plan = meter.plan("chat", MODEL, BOUND)
    for _ in range(200):
        hold = meter.reserve(plan)
        if isinstance(hold.draw, kind):
            return hold
        hold.settle(Usage(1))
        meter.ledger.flush()
    raise AssertionError("no call ever had a part of a slice")


def test_a_call_that_others_count_too_has_a_hold_with_a_part_of_a_slice(mixed: Meter) -> None:
    hold = part_of(mixed)
    (row,) = [h for h in mixed.ledger.snapshot()[1] if h.id == hold.id]
    assert sorted(unit for _, unit, _, _ in row.bookings) == ["calls", "calls", "tokens", "usd"]
    assert verify(mixed.ledger) == []
    before = {b.scope: b.spent + b.held for b in mixed.spend("s", user="ada") if b.unit == "calls"}
    hold.settle(Usage(1))
    after = {b.scope: b.spent + b.held for b in mixed.spend("s", user="ada") if b.unit == "calls"}
    assert after == before
    part_of(mixed).release()
    late = part_of(mixed)
    late.end(Outcome("assumed"))
    late.settle(Usage(1))
    part_of(mixed).end(Outcome("failed"))
    with pytest.raises(BudgetExceeded, match="per user"):
        mixed.reserve(mixed.plan("chat", MODEL, RequestBound(10**6, output_limit=10**5)))
    assert_sound(mixed)
    entries = mixed.ledger.snapshot()[2]
    calls = sum(e.calls for e in entries)
    assert {b.spent for b in mixed.spend("s", user="ada") if b.unit == "calls"} == {calls}


def test_a_part_is_assumed_with_its_call(mixed: Meter) -> None:
    hold = part_of(mixed)
    mixed.ledger.submit(lambda rows: expire(rows, now=mixed.ledger.now_ms() + 10**8, book=True))
    assert verify(mixed.ledger) == []
    hold.settle(Usage(1))
    assert_sound(mixed)
    assert not any(
        e.calls for e in mixed.ledger.snapshot()[2] if e.operation == LEASE and e.status == "failed"
    )
    spent = {b.spent for b in mixed.spend("s", user="ada") if b.unit == "calls"}
    assert len(spent) == 1  # the session's, and that of all: what was assumed of the slice is taken off


def test_no_slice_is_taken_of_what_only_warns(url: str) -> None:
    with lending(url, "5 calls, warn only", "1000 calls/day") as meter:
        part_of(meter).settle(Usage(1))
        (slice,) = (hold for hold in meter.ledger.snapshot()[1] if hold.call["operation"] == LEASE)
        assert len(slice.bookings) == 1
        for _ in range(10):
            meter.reserve(meter.plan("chat", MODEL, BOUND)).settle(Usage(1))
        assert_sound(meter)
        assert len({balance.spent for balance in meter.spend()}) == 1


def test_a_file_says_it(tmp_path: Path) -> None:
    file = tmp_path / "behest.toml"
    file.write_text('store = "memory://"\nleases = true\n')
    with Meter.from_toml(file) as meter:
        assert leases(meter) is not None
    with pytest.raises(ConfigError, match="leases"):
        Meter("memory://", leases="yes")  # type: ignore[arg-type]
    with Meter("memory://") as meter:
        assert meter._leases is None


@pytest.mark.parametrize(("budgets", "kind"), [(MIXED, Parted), (("1000 calls",), Draw)])
def test_neither_waits_for_who_has_locked_the_hot_bucket(budgets: tuple[str, ...], kind: type) -> None:
    url = postgres.new_url()
    with lending(url, *budgets, store_timeout=20) as meter, psycopg.connect(postgres.server()) as other:
        leases(meter)._hot = Shared()
        with meter.session("s", user="ada"):
            part_of(meter, kind).settle(Usage(1))
            plan = meter.plan("chat", MODEL, BOUND)
        # Nothing but the call itself.
        leases(meter).tick = lambda: None  # type: ignore[method-assign]
        for slice in leases(meter)._slices.values():
            slice.rest = float("inf")
        meter.ledger.flush()
        meter._next_sweep = meter.ledger.now_ms() + 10**6
        other.execute(f"SET search_path TO {postgres.schema_of(url)}")
        other.execute("SELECT * FROM buckets WHERE budget = 'calls' FOR UPDATE")
        held = meter.reserve(plan)
        assert isinstance(held.draw, kind)
        held.settle(Usage(1))
        assert meter.ledger.retries == 0  # type: ignore[attr-defined]
        other.rollback()
        assert_sound(meter)


# ── many processes, one budget ─────────────────────────────────────────────────────────

CAP = 4000


def _process(url: str, ready: Any, told: Any) -> None:
    """Calls by 24 tasks until there is nothing left; how many were let through, and how many drawn."""

    async def run() -> int:
        async def call() -> None:
            hold = await meter.areserve(plan)
            await asyncio.sleep(0.001)
            await hold.asettle(Usage(1))

        return sum(await asyncio.gather(*(auntil_exhausted(call, most=CAP, pause=0.1) for _ in range(24))))

    with Meter(url, budgets=[f"{CAP} calls"], leases=True, store_timeout=30) as meter:
        plan = meter.plan("chat", MODEL, BOUND)
        ready.wait(240)
        told.put((asyncio.run(run()), leases(meter).drawn))


def test_processes_that_share_a_budget_measure_that_it_is_hot() -> None:
    """None is told which budget to lease; all of it is used, and not one call more."""
    url = postgres.new_url()
    spawn = forkserver()
    with Meter(url, budgets=[f"{CAP} calls"]) as meter:
        ready, told = spawn.Barrier(3), spawn.Queue()
        workers = [spawn.Process(target=_process, args=(url, ready, told)) for _ in range(3)]
        for worker in workers:
            worker.start()
        made, drawn = zip(*(told.get(timeout=240) for _ in workers), strict=True)
        for worker in workers:
            worker.join(240)
            assert worker.exitcode == 0
        assert CAP * 99 // 100 <= sum(made) <= CAP
        assert sum(drawn) > 0
        assert_sound(meter)
        assert sum(e.calls for e in meter.ledger.snapshot()[2]) == sum(made)


def test_what_the_provider_has_billed_is_what_is_booked() -> None:
    """Through a client, from two meters: 0 over in the sandbox's bill, and 99 % used."""
    from openai import OpenAI

    cap, url = Decimal("0.1"), postgres.new_url()
    meters = [lending(url, f"${cap}") for _ in range(2)]
    with Sandbox(latency=0.002, output_tokens=4) as sandbox:

        def work(meter: Meter) -> None:
            client = meter.openai(OpenAI(base_url=sandbox.base_url, api_key="none", max_retries=0))
            until_exhausted(lambda: client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=4))

        threads = [threading.Thread(target=work, args=(meter,)) for meter in meters for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
        assert cap * 99 / 100 <= sandbox.bill.total() <= cap
        assert sum(leases(meter).drawn for meter in meters) > 0
        for meter in meters:
            meter.flush()
        assert_sound(meters[0])
        assert_agrees(meters[0], sandbox)
        for meter in meters:
            meter.close()
