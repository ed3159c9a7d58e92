"""What a tool or a service costs, held to the same budgets as the calls of models."""

from __future__ import annotations

import asyncio

from ..rules.attribution import Attribution, F, decorate
from .engine import Engine
from .holds import Hold
from .layers import enclose
from .outcomes import outcome_of_use


class CostScope:
    """A use of something with a known cost; see `Meter.cost`. `with`, `async with`, decorator."""

    def __init__(self, engine: Engine, name: str, nano: int, who: Attribution, fallback: Attribution) -> None:
        self._engine = engine
        self._name = name
        self._nano = nano
        self._who = who
        self._fallback = fallback
        self._holds: list[Hold] = []

    def reserve(self) -> Hold:
        """Hold one use."""
        plan = self._engine.planner.plan_cost(self._name, self._nano, who=self._who, fallback=self._fallback)
        return self._engine.reserve(plan)

    async def areserve(self) -> Hold:
        """`reserve` for coroutines."""
        plan = self._engine.planner.plan_cost(self._name, self._nano, who=self._who, fallback=self._fallback)
        return await self._engine.areserve(plan)

    def __enter__(self) -> CostScope:
        hold = self.reserve()
        self._holds.append(hold)
        enclose(hold)
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        self._holds.pop().end(outcome_of_use(error))

    async def __aenter__(self) -> CostScope:
        hold = await self.areserve()
        self._holds.append(hold)
        enclose(hold)
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        hold = self._holds.pop()
        if isinstance(error, asyncio.CancelledError):
            hold.post(outcome_of_use(error))
        else:
            await hold.aend(outcome_of_use(error))

    def __call__(self, function: F) -> F:
        def again() -> CostScope:
            return CostScope(self._engine, self._name, self._nano, self._who, self._fallback)

        return decorate(function, again)
