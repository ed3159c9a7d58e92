"""What a tool or a service costs, held to the same budgets as the calls of models."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ..rules.attribution import Attribution, F, decorate
from ..rules.usage import Usage
from .calls import Hold, Outcome

if TYPE_CHECKING:
    from ..meter import Meter


class CostScope:
    """A use of something with a known cost; see `Meter.cost`. `with`, `async with`, decorator."""

    def __init__(self, meter: Meter, name: str, nano: int, who: Attribution, fallback: Attribution) -> None:
        self._meter = meter
        self._name = name
        self._nano = nano
        self._who = who
        self._fallback = fallback
        self._holds: list[Hold] = []

    def reserve(self) -> Hold:
        """Hold one use."""
        plan = self._meter.plan_cost(self._name, self._nano, who=self._who, fallback=self._fallback)
        return self._meter.reserve(plan)

    async def areserve(self) -> Hold:
        """`reserve` for coroutines."""
        plan = self._meter.plan_cost(self._name, self._nano, who=self._who, fallback=self._fallback)
        return await self._meter.areserve(plan)

    def __enter__(self) -> CostScope:
        self._holds.append(self.reserve())
        return self

    def __exit__(self, *exc: object) -> None:
        self._holds.pop().end(USED)

    async def __aenter__(self) -> CostScope:
        self._holds.append(await self.areserve())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        hold = self._holds.pop()
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            hold.post(USED)
        else:
            await hold.aend(USED)

    def __call__(self, function: F) -> F:
        def again() -> CostScope:
            return CostScope(self._meter, self._name, self._nano, self._who, self._fallback)

        return decorate(function, again)


USED = Outcome("settled", Usage())
"""The end of a use: it costs what it costs, whether or not it succeeded."""
