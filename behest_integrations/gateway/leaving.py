"""Clients that leave before their answer is over: where it is billed all the same, it is read on."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from ..calls.exchange import Exchange
from ..calls.passing import Passing
from ..engine.draining import MOST_BYTES
from ..engine.holds import Hold
from ..engine.outcomes import outcome_of_status

_LEFT = "the client hung up before the end"
_TOO_LONG = f"{_LEFT}, and it was not read to its end: it took too long"


class Rest:
    """What is left of a stream whose client has left.

    Args:
        head: the answer, or what will be it.
        passing: what of it has passed, if anything has.
    """

    def __init__(
        self,
        exchange: Exchange,
        hold: Hold,
        head: aiohttp.ClientResponse | asyncio.Future[aiohttp.ClientResponse],
        passing: Passing | None = None,
    ) -> None:
        self._exchange = exchange
        self._hold = hold
        self._head = head
        self._passing = passing or Passing(exchange, events=True)

    def taken(self) -> bool:
        """Have it read on from now on; whether it is."""
        passing = self._passing
        if passing.ended or passing.done or not self._exchange.reads_on:
            return False
        passing.left = True
        passing.left = self._exchange.engine.drains.take(self, asyncio.get_running_loop())
        return passing.left

    def read(self) -> None:
        raise NotImplementedError("it belongs to an event loop")

    async def aread(self) -> None:
        """Read it to its end, and end its hold."""
        passing = self._passing
        try:
            response = self._head if isinstance(self._head, aiohttp.ClientResponse) else await self._head
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            await self._hold.aend(self._hold.failed(error))
            return
        try:
            refused = outcome_of_status(response.status)
            if refused is not None:
                await self._hold.aend(refused)
                return
            size = 0
            async for data in response.content.iter_any():
                passing.feed(data)
                size += len(data)
                if passing.done or passing.ended or size > MOST_BYTES:
                    break
            else:
                passing.rest()
            outcome = passing.outcome(_TOO_LONG, "closed_early")
            if outcome is not None:
                await self._hold.aend(outcome)
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            self._post(f"{_LEFT}, and the stream broke: {type(error).__name__}", "broken")
        finally:
            response.close()

    def cut(self) -> None:
        """End its hold if it has not ended, without waiting."""
        self._post(_TOO_LONG, "closed_early")

    def _post(self, note: str, flag: str) -> None:
        outcome = self._passing.outcome(note, flag)
        if outcome is not None:
            self._hold.post(outcome)


async def headed(exchange: Exchange, hold: Hold, asking: Any) -> aiohttp.ClientResponse:
    """The head of a stream's answer.

    If its client leaves meanwhile, it is read on where that is to be, and `hold.read_on` says so.
    """
    head = asyncio.ensure_future(asking)
    try:
        return await asyncio.shield(head)
    except asyncio.CancelledError:
        if Rest(exchange, hold, head).taken():
            hold.read_on = lambda: True
        else:
            head.cancel()
        raise
