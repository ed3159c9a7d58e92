"""Logic written once for threads and event loops.

A generator says which store operation it needs next, or that it has to wait; `run` drives it blocking,
`arun` on an event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

from ..ledger.base import Ledger, Work
from .waiting import Place, Waiter, until_next_look

T = TypeVar("T")


class Wait(NamedTuple):
    """Sleep until the waiter is woken, or so long. Answered by False where nobody may sleep: in
    blocking code on an event loop's own thread, which would keep from ending what is waited for."""

    waiter: Waiter
    seconds: float


class Aside(NamedTuple):
    """Work that takes its time and asks no store: on an event loop it is done in a thread."""

    work: Callable[[], Any]


Steps = Generator["Wait | Aside | Work[Any]", Any, T]


def run(ledger: Ledger, steps: Steps[T]) -> T:
    """Drive `steps` to the end, blocking."""
    try:
        step = next(steps)
        while True:
            try:
                answer: Any = None
                if isinstance(step, Wait):
                    answer = not in_loop()
                    if answer:
                        step.waiter.sleep(step.seconds)
                elif isinstance(step, Aside):
                    answer = step.work()
                else:
                    answer = ledger.submit(step)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        steps.close()  # after a cancellation: the steps undo what they had begun


async def arun(ledger: Ledger, steps: Steps[T]) -> T:
    """Drive `steps` to the end, on the event loop."""
    try:
        step = next(steps)
        while True:
            try:
                answer: Any = None
                if isinstance(step, Wait):
                    await step.waiter.asleep(step.seconds)
                    answer = True
                elif isinstance(step, Aside):
                    answer = await asyncio.to_thread(step.work)
                else:
                    answer = await ledger.asubmit(step)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        steps.close()  # after a cancellation: the steps undo what they had begun


def in_loop() -> bool:
    """Whether an event loop runs in this thread: nothing may wait here."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def in_line(place: Place, deadline: float) -> Steps[float]:
    """Sleep until it is this call's turn to look whether there is room.

    Returns:
        The deadline (monotonic seconds); one that has passed where nobody may sleep.
    """
    while (left := deadline - time.monotonic()) > 0:
        seconds = min(left, until_next_look()) if place.first else left
        if not (yield Wait(place.waiter, seconds)):
            return time.monotonic()
        if place.first:
            break
    return deadline
