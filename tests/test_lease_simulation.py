"""Leases under everything that a network, a clock and a crash can do, by seeds that can be played again.

pytest tests/test_lease_simulation.py                                    # some hundreds of worlds
BEHEST_SEEDS=1000000 pytest -n 0 -m soak tests/test_lease_simulation.py  # as many as you like, on all cores
BEHEST_CORES=1 BEHEST_SEEDS=… BEHEST_FIRST_SEED=…                       # on so many, from that one on
BEHEST_SEED=4711 pytest tests/test_lease_simulation.py -k one_seed       # that one again
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
from lease_world import Broken, World

from behest_integrations.engine import leases
from behest_integrations.ledger import book, lending

SEEDS = 150
CAUGHT_WITHIN = 200
"""Worlds within which code that was broken on purpose must be found out."""


def play(seeds: Iterable[int]) -> World:
    world = None
    for seed in seeds:
        try:
            world = World(seed).run()
        except Exception as error:
            raise Broken(f"seed {seed}: {error}") from error
    assert world is not None
    return world


def test_many_worlds() -> None:
    drawn = parted = sent = crashes = refused = 0
    for seed in range(SEEDS):
        world = play([seed])
        drawn, parted, sent = drawn + world.drawn, parted + world.parted, sent + len(world.sent)
        crashes, refused = crashes + world.crashes, refused + world.refused
    # It is no proof of anything unless this has happened.
    assert drawn > sent / 5 > 100
    assert parted > sent / 40
    assert crashes > 20
    assert refused > 100


def test_one_seed() -> None:
    """The same seed is the same history."""
    seed = int(os.environ.get("BEHEST_SEED", "7"))
    one, two = play([seed]), play([seed])
    assert one.rows.entries == two.rows.entries
    assert one.sums() == two.sums()


AT_ONCE = 20
"""Worlds that a process is given at a time."""


@pytest.mark.soak
def test_as_many_worlds_as_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    """A million, or `BEHEST_SEEDS`; it ends at the first that breaks, and says which."""
    first = int(os.environ.get("BEHEST_FIRST_SEED", "1000"))
    seeds = range(first, first + int(os.environ.get("BEHEST_SEEDS", "1000000")))
    cores = int(os.environ.get("BEHEST_CORES", "0")) or os.cpu_count() or 1
    began, played, told = time.monotonic(), 0, 0.0

    def say(more: str = "") -> None:
        rate = played / (time.monotonic() - began)
        with capsys.disabled():
            print(f"{played:,} worlds on {cores} cores, {rate:.1f} a second{more}", flush=True)

    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        parts = [seeds[at : at + AT_ONCE] for at in range(0, len(seeds), AT_ONCE)]
        for count in pool.imap_unordered(count_played, parts):
            played += count
            if time.monotonic() - told > 60:
                told = time.monotonic()
                say(" so far")
    assert played == len(seeds)
    say(f", from seed {seeds[0]} to {seeds[-1]}: none broke")


def count_played(seeds: range) -> int:
    """How many were played; what breaks is raised."""
    play(seeds)
    return len(seeds)


def test_a_refusal_means_that_the_money_is_gone() -> None:
    """Where nothing goes wrong, nobody who has waited is refused for what lies in others' slices."""
    refused = stranded = 0
    for seed in range(5):
        world = World(seed, calm=True)
        world.limits["usd"] = 2_000
        world.run()
        refused, stranded = refused + world.refused, stranded + world.stranded
    assert refused > 100
    assert stranded == 0


# ── code that is broken on purpose ─────────────────────────────────────────────────────


def granted_before_it_is_known(patch: pytest.MonkeyPatch) -> None:
    """What was asked for is drawn from before the store has said yes."""
    run = leases.Renewal._run

    def early(self: Any, rows: Any) -> Any:
        lent = run(self, rows)
        for unit, amount in lent.more.items():
            self._slice.free[unit] = self._slice.free.get(unit, 0) + amount
        return lent._replace(more={}) if lent.there else lent

    patch.setattr(leases.Renewal, "_run", early)


def given_back_and_kept(patch: pytest.MonkeyPatch) -> None:
    """What is given back is not set aside first."""
    patch.setattr(
        leases.Work, "_set_aside",
        lambda self, slice, less: {u: min(a, slice.free[u]) for u, a in less.items() if u in slice.free},
    )  # fmt: skip


def doubt_is_taken_for_a_no(patch: pytest.MonkeyPatch) -> None:
    """Where nobody knows whether something was given back, it is drawn from again."""

    def failed(self: Any, error: BaseException) -> None:
        self._again()
        if isinstance(self, leases.Renewal):
            self._slice.pending = False

    patch.setattr(leases.Work, "failed", failed)
    patch.setattr(leases.Renewal, "failed", failed)


def the_end_of_a_lease_frees_it(patch: pytest.MonkeyPatch) -> None:
    """A slice whose lease has run out is given back by whoever notices."""
    expire = book.expire
    patch.setattr("lease_world.expire", lambda rows, **said: _freeing(rows, expire, said))


def _freeing(rows: Any, expire: Callable[..., Any], said: Mapping[str, Any]) -> Any:
    for hold in list(rows.holds.values()):
        if hold.call["operation"] == book.LEASE and hold.expires <= said["now"]:
            lending.close_slice(rows, hold.id, said["now"])
    return expire(rows, **said)


def a_retry_is_not_looked_up(patch: pytest.MonkeyPatch) -> None:
    """An entry that is written again, because nobody knows of the first time, is not looked for."""
    settle = lending.settle_drawn
    patch.setattr(leases, "settle_drawn", lambda rows, **said: settle(rows, **{**said, "sure": True}))


def closed_with_calls_in_flight(patch: pytest.MonkeyPatch) -> None:
    """A slice is ended although calls have something of it."""
    retire = leases.Leases._retire

    def early(self: Any, slice: Any) -> None:
        retire(self, slice)
        if not slice.closing and not slice.pending:
            slice.closing = True
            self._post(leases.Closing(self, slice))

    patch.setattr(leases.Leases, "_retire", early)


def put_back_twice(patch: pytest.MonkeyPatch) -> None:
    """A call that is being booked is put back as well."""

    def put_back(self: Any) -> bool:
        if not self._slice.dead:
            for unit, amount in self.drawn.amounts.items():
                self._slice.free[unit] += amount
        return False

    patch.setattr(leases.Draw, "put_back", put_back)


def the_limit_is_not_asked(patch: pytest.MonkeyPatch) -> None:
    """A slice is as large as is wanted, whatever there is room for."""
    patch.setattr(lending, "SHARE", 0.01)


def handed_over_and_kept(patch: pytest.MonkeyPatch) -> None:
    """What a call's own hold has from a slice is drawn from as well."""
    done = leases.Part.done

    def keeping(self: Any, found: Any) -> None:
        done(self, found._replace(amounts={}) if isinstance(found, book.Reserved) else found)

    patch.setattr(leases.Part, "done", keeping)


BROKEN = [
    granted_before_it_is_known,
    given_back_and_kept,
    doubt_is_taken_for_a_no,
    the_end_of_a_lease_frees_it,
    a_retry_is_not_looked_up,
    closed_with_calls_in_flight,
    put_back_twice,
    the_limit_is_not_asked,
    handed_over_and_kept,
]


@pytest.mark.parametrize("break_it", BROKEN, ids=lambda f: f.__name__)
def test_what_is_broken_is_found_out(
    break_it: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it(monkeypatch)
    with pytest.raises(Broken):
        play(range(CAUGHT_WITHIN))
