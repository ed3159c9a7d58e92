"""Logic written once for threads and event loops.

A generator says which store operation or pause it needs next; `run` drives it blocking,
`arun` on an event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from typing import Any, NamedTuple, TypeVar

from ..ledger.base import Ledger, Work

T = TypeVar("T")


class Pause(NamedTuple):
    seconds: float


Steps = Generator["Pause | Work[Any]", Any, T]


def run(ledger: Ledger, steps: Steps[T]) -> T:
    """Drive `steps` to the end, blocking."""
    try:
        step = next(steps)
        while True:
            try:
                answer: Any = None
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
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
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
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
