"""A budget that is only busy is waited for: in order, without blocking a loop, and leaving nothing behind."""

from __future__ import annotations

import asyncio
import contextvars
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import assert_sound, entries, holds

from behest_integrations import BudgetExceeded, Meter, Price, Usage, session
from behest_integrations.wire import RequestBound

ONE = RequestBound(1, output_limit=0)


def until_waiting(meter: Meter, many: int) -> None:
    deadline = time.monotonic() + 10
    while sum(map(len, meter._lines._lines.values())) < many:
        assert time.monotonic() < deadline
        time.sleep(0.001)


# ── order ──────────────────────────────────────────────────────────────────────────────


def test_threads_are_served_in_the_order_in_which_they_came(store: str) -> None:
    with Meter(store, budgets=["50 calls", "1 tokens"], wait=20) as meter:
        first = meter.reserve(meter.plan("chat", "m", ONE))
        served: list[int] = []

        def ask(number: int) -> None:
            hold = meter.reserve(meter.plan("chat", "m", ONE))
            served.append(number)
            hold.release()

        threads = []
        for number in range(20):
            threads.append(threading.Thread(target=ask, args=(number,)))
            threads[-1].start()
            until_waiting(meter, number + 1)
        first.release()
        for thread in threads:
            thread.join(20)
        assert served == list(range(20))
        assert not meter._lines
        assert holds(meter) == 0


async def test_tasks_are_served_in_the_order_in_which_they_came(store: str) -> None:
    with Meter(store, budgets=["1 tokens"], wait=20) as meter:
        first = await meter.areserve(meter.plan("chat", "m", ONE))
        served: list[int] = []

        async def ask(number: int) -> None:
            hold = await meter.areserve(meter.plan("chat", "m", ONE))
            served.append(number)
            await asyncio.sleep(0)
            await hold.aend(hold_end())

        tasks = []
        for number in range(50):
            tasks.append(asyncio.ensure_future(ask(number)))
            while sum(map(len, meter._lines._lines.values())) < number + 1:
                await asyncio.sleep(0.001)
        worst = 0.0

        async def watch() -> None:
            nonlocal worst
            while True:
                began = time.perf_counter()
                await asyncio.sleep(0.001)
                worst = max(worst, time.perf_counter() - began)

        watching = asyncio.ensure_future(watch())
        began = time.perf_counter()
        await first.aend(hold_end())
        await asyncio.gather(*tasks)
        assert time.perf_counter() - began < 10  # woken, each by the one before
        watching.cancel()
        assert served == list(range(50))
        assert holds(meter) == 0


def hold_end() -> Any:
    from behest_integrations.engine.outcomes import CANCELLED

    return CANCELLED


def test_who_comes_later_does_not_overtake(store: str) -> None:
    """A small call would fit, and stands behind a large one that has come before it."""
    with Meter(store, budgets=["10 tokens"], wait=20) as meter:
        held = meter.reserve(meter.plan("chat", "m", RequestBound(6, output_limit=0)))
        served: list[str] = []

        def ask(name: str, tokens: int) -> None:
            hold = meter.reserve(meter.plan("chat", "m", RequestBound(tokens, output_limit=0)))
            served.append(name)
            hold.release()

        large = threading.Thread(target=ask, args=("large", 9))
        large.start()
        until_waiting(meter, 1)
        small = threading.Thread(target=ask, args=("small", 1))
        small.start()
        until_waiting(meter, 2)
        assert served == []
        held.release()
        large.join(20)
        small.join(20)
        assert served == ["large", "small"]


def test_a_line_for_one_bucket_keeps_nobody_from_another(store: str) -> None:
    with Meter(store, budgets=["1 calls per user"], wait=20) as meter, session(user="ada"):
        held = meter.reserve(meter.plan("chat", "m", ONE))
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(meter.bind(lambda: meter.reserve(meter.plan("chat", "m", ONE))))
            until_waiting(meter, 1)
            with session(user="bob"):
                began = time.monotonic()
                meter.reserve(meter.plan("chat", "m", ONE)).release()
                assert time.monotonic() - began < 5
            held.release()
            waiting.result(20).release()


# ── the end of waiting ─────────────────────────────────────────────────────────────────


def test_what_is_gone_is_not_waited_for(store: str) -> None:
    with Meter(store, budgets=["10 tokens"]) as meter:
        meter.reserve(meter.plan("chat", "m", RequestBound(9, output_limit=0))).settle(Usage(9))
        began = time.monotonic()
        with pytest.raises(BudgetExceeded) as caught:
            meter.reserve(meter.plan("chat", "m", RequestBound(2, output_limit=0)))
        assert caught.value.reason == "exhausted"
        with pytest.raises(BudgetExceeded) as caught:
            meter.reserve(meter.plan("chat", "m", RequestBound(11, output_limit=0)))
        assert caught.value.reason == "too_large"
        assert time.monotonic() - began < 5


def test_who_waits_learns_when_the_money_is_gone(store: str) -> None:
    with Meter(store, budgets=["10 tokens"]) as meter:
        held = meter.reserve(meter.plan("chat", "m", RequestBound(9, output_limit=0)))
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(meter.reserve, meter.plan("chat", "m", RequestBound(5, output_limit=0)))
            until_waiting(meter, 1)
            held.settle(Usage(9))
            error = waiting.exception(10)
        assert isinstance(error, BudgetExceeded)
        assert error.reason == "exhausted"
        assert not meter._lines


async def test_a_task_that_is_cancelled_while_it_waits_leaves_nothing(store: str) -> None:
    with Meter(store, budgets=["1 calls"]) as meter:
        held = await meter.areserve(meter.plan("chat", "m", ONE))
        tasks = [asyncio.ensure_future(meter.areserve(meter.plan("chat", "m", ONE))) for _ in range(10)]
        while sum(map(len, meter._lines._lines.values())) < 10:
            await asyncio.sleep(0.001)
        for task in tasks[:-1]:
            task.cancel()
        await asyncio.gather(*tasks[:-1], return_exceptions=True)
        await held.aend(hold_end())
        await (await asyncio.wait_for(tasks[-1], 10)).aend(hold_end())
        assert not meter._lines
        assert holds(meter) == 0
        assert meter.spend()[0].held == 0


async def test_blocking_code_on_a_loop_does_not_wait(store: str) -> None:
    """It would keep the loop from ending what it waits for."""
    with Meter(store, budgets=["1 calls"]) as meter:
        held = await meter.areserve(meter.plan("chat", "m", ONE))
        began = time.monotonic()
        with pytest.raises(BudgetExceeded) as caught:
            meter.reserve(meter.plan("chat", "m", ONE))
        assert caught.value.busy
        assert time.monotonic() - began < 5
        await held.aend(hold_end())


# ── inside of what holds the rest ──────────────────────────────────────────────────────

CENT = RequestBound(100, output_limit=0)  # $0.01, at the price below
FIFTY_ONE = RequestBound(1, output_limit=51)
PRICED = {"m": Price(input="100", output="0")}


@pytest.mark.parametrize("wait", [0, 30])
def test_a_call_does_not_wait_for_what_it_is_made_inside_of(store: str, wait: int) -> None:
    with Meter(store, budgets=["$0.02"], prices=PRICED, wait=wait) as meter:
        began = time.monotonic()
        with meter.cost("$0.015", name="tool"), pytest.raises(BudgetExceeded) as caught:
            meter.reserve(meter.plan("chat", "m", CENT))
        assert time.monotonic() - began < 10
        error = caught.value
        assert (error.reason, error.retry_after, error.shortfall.around) == ("exhausted", None, 15 * 10**6)
        assert "$0.015 are held by what this call is made inside of" in str(error)
        assert meter.spend()[0].spent == 15 * 10**6
        with pytest.raises(BudgetExceeded) as caught:  # that is over, and its price is spent
            meter.reserve(meter.plan("chat", "m", CENT))
        assert caught.value.shortfall.around == 0
        assert_sound(meter)


async def test_nor_does_a_task_nor_what_is_lowered(store: str) -> None:
    with Meter(store, budgets=["$0.02"], prices={"m": Price(input="0", output="100")}) as meter:
        async with meter.cost("$0.015", name="tool"):
            lowered = RequestBound(1, output_limit=100, limit_fields=("max_tokens",))
            hold = await asyncio.ensure_future(meter.areserve(meter.plan("chat", "m", lowered)))
            assert hold.output_limit == 50
            with pytest.raises(BudgetExceeded) as caught:
                await asyncio.wait_for(meter.areserve(meter.plan("chat", "m", FIFTY_ONE)), 20)
            assert caught.value.shortfall.around == 15 * 10**6
            await hold.aend(hold_end())


def test_it_waits_for_others_and_before_those_who_wait_for_it(store: str) -> None:
    """Those who stand in line wait for what it is made inside of, and that waits for it."""
    with Meter(store, budgets=["$0.05"], prices=PRICED) as meter, ThreadPoolExecutor(2) as pool:
        other = meter.reserve(meter.plan("chat", "m", CENT))
        with meter.cost("$0.03", name="tool"):
            large = pool.submit(meter.reserve, meter.plan("chat", "m", RequestBound(300, output_limit=0)))
            until_waiting(meter, 1)
            meter.reserve(meter.plan("chat", "m", CENT)).release()  # there is room for it
            inner = pool.submit(
                contextvars.copy_context().run,
                meter.reserve,
                meter.plan("chat", "m", RequestBound(200, output_limit=0)),
            )
            until_waiting(meter, 2)
            assert not large.done()
            other.release()
            inner.result(20).release()
        error = large.exception(20)
        assert isinstance(error, BudgetExceeded)
        assert error.reason == "exhausted"
        assert_sound(meter)


# ── several processes ──────────────────────────────────────────────────────────────────


def test_200_who_wait_in_four_processes(tmp_path: Path) -> None:
    """None starves, order is kept in each process, and waiting takes next to no processor."""
    code = """
import json, sys, threading, time
from behest_integrations import Meter
from behest_integrations.wire import RequestBound

store, go = sys.argv[1], float(sys.argv[2])
ONE = RequestBound(1, output_limit=0)
with Meter(store, budgets=["4 tokens"], wait=60) as meter:
    meter.reserve(meter.plan("chat", "m", ONE)).release()  # what is loaded when first used, is
    came, served, failed = [], [], []
    lock = threading.Lock()

    def ask(number):
        with lock:
            came.append(number)
        try:
            hold = meter.reserve(meter.plan("chat", "m", ONE))
        except Exception as error:
            failed.append(repr(error))
            return
        served.append((number, time.time()))
        time.sleep(0.05)
        hold.release()

    threads = []
    time.sleep(max(0, go - time.time()))
    for number in range(50):
        threads.append(threading.Thread(target=ask, args=(number,)))
        threads[-1].start()
        time.sleep(0.002)
    began, used = time.time(), time.process_time()
    for thread in threads:
        thread.join()
    cpu, wall = time.process_time() - used, time.time() - began
    print(json.dumps({"came": came, "served": served, "failed": failed, "cpu": cpu, "wall": wall}))
"""
    store = f"sqlite:///{tmp_path}/b.db"
    Meter(store).close()
    go = str(time.time() + 6)
    command = [sys.executable, "-c", code, store, go]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = [json.loads(process.communicate(timeout=90)[0]) for process in running]
    assert [s["failed"] for s in said] == [[]] * 4
    lasts = []
    for s in said:
        order = [number for number, _ in s["served"]]
        assert sorted(order) == list(range(50))
        # Four may be served side by side, and write themselves down in any order; threads that come
        # in the same moment may do so in any order, too.
        late = [abs(place - s["came"].index(number)) for place, number in enumerate(order)]
        assert sum(late) / 50 <= 10, order
        assert s["cpu"] <= 0.25 * s["wall"]  # of the calls themselves, mostly
        lasts.append(max(at for _, at in s["served"]) - float(go))
    assert max(lasts) <= 6 * min(lasts), lasts
    with Meter(store, budgets=["4 tokens"]) as meter:
        assert meter.spend()[0].held == 0
        assert entries(meter) == []
