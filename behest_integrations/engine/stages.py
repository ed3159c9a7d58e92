"""Blocks of code with budgets of their own, nested inside whatever already applies."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Protocol

from ..rules.attribution import Attribution, F, current, decorate
from ..rules.balance import Balance
from ..rules.budgets import Budget
from ..rules.nesting import Nesting, Scope


class Owner(Protocol):
    """Whose stages they are."""

    def stage_balances(self, budgets: Sequence[Budget]) -> list[Balance]: ...


@dataclass(frozen=True)
class Stage:
    """A block of code with budgets of its own, as entered once.

    Attributes:
        path: its name after those of the stages around it.
        who: whom the code around it was for.
    """

    meter: object
    name: str
    path: str
    budgets: tuple[Budget, ...]
    who: Attribution

    def within(self, budget: Budget) -> Budget:
        """A budget as one of this run of the stage, and of no other."""
        return replace(budget, stage=self.budgets[0].stage)


def _add(stage: Stage, around: tuple[Stage, ...]) -> tuple[Stage, ...]:
    return (*around, stage)


STAGES: Nesting[Stage, tuple[Stage, ...]] = Nesting("behest_stages", (), _add)
"""The stages that the running code is in, of whatever meter."""


class StageScope(Scope):
    """Budgets for a block of code; see `Meter.budget`. Works as `with`, `async with`, decorator."""

    def __init__(self, meter: Owner, budgets: Sequence[Budget], name: str) -> None:
        super().__init__()
        self._meter = meter
        self._budgets = tuple(budgets)
        self._name = name
        self._run: str | None = None

    def _enter(self, frame: FrameType) -> StageScope:
        outer = STAGES.inside()
        if self._run is None:
            self._run = f"{self._name}#{os.urandom(6).hex()}"
        path = f"{outer[-1].path}/{self._name}" if outer else self._name
        budgets = tuple(replace(b, stage=self._run) for b in self._budgets)
        STAGES.enter(self, Stage(self._meter, self._name, path, budgets, current()), frame)
        return self

    def __enter__(self) -> StageScope:
        return self._enter(sys._getframe(1))

    def __exit__(self, *exc: object) -> None:
        STAGES.leave(self, sys._getframe(1))

    async def __aenter__(self) -> StageScope:
        return self._enter(sys._getframe(1))

    async def __aexit__(self, *exc: object) -> None:
        STAGES.leave(self, sys._getframe(1))

    def __call__(self, function: F) -> F:
        return decorate(function, lambda: StageScope(self._meter, self._budgets, self._name))

    def __str__(self) -> str:
        return f"stage {self._name!r}"

    def spend(self) -> list[Balance]:
        """The stage's own budgets as they stand."""
        return self._meter.stage_balances([replace(b, stage=self._run) for b in self._budgets])


def active(meter: object) -> tuple[Stage, ...]:
    """The stages of `meter` that the running code is in, outermost first."""
    stages = STAGES.inside()
    return tuple(s for s in stages if s.meter is meter) if stages else ()
