"""Websockets that an SDK opens: nothing in them can be read or stopped, so each is counted, or refused,
before it connects."""

from __future__ import annotations

from ...calls.exchange import Exchange
from ...engine.engine import Engine
from ...engine.steps import Steps, in_loop


def count(engine: Engine, exchange: Exchange) -> None:
    """Count a websocket that is about to be opened. On an event loop nothing is waited for.

    Raises:
        CallRefused: it must not be opened.
    """
    engine.run(_counting(engine, exchange, wait=not in_loop()))


async def acount(engine: Engine, exchange: Exchange) -> None:
    """`count` for coroutines."""
    await engine.arun(_counting(engine, exchange, wait=True))


def _counting(engine: Engine, exchange: Exchange, *, wait: bool) -> Steps[None]:
    hold = yield from engine.reserving(exchange.plan, wait=wait)
    steps = engine.ending(hold, exchange.complete())
    if steps is not None:
        yield from steps
