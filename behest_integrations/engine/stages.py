"""Blocks of code with budgets of their own, nested inside whatever already applies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from typing import Protocol

from ..rules.attribution import F, decorate
from ..rules.balance import Balance
from ..rules.budgets import Budget


class Owner(Protocol):
    """Whose stages they are."""

    def stage_balances(self, budgets: Sequence[Budget]) -> list[Balance]: ...


@dataclass(frozen=True)
class Stage:
    """A block of code with budgets of its own, as entered once."""

    meter: object
    name: str
    path: str
    budgets: tuple[Budget, ...]


_stages: ContextVar[tuple[Stage, ...]] = ContextVar("behest_stages", default=())


class StageScope:
    """Budgets for a block of code; see `Meter.budget`. Works as `with`, `async with`, decorator."""

    def __init__(self, meter: Owner, budgets: Sequence[Budget], name: str) -> None:
        self._meter = meter
        self._budgets = tuple(budgets)
        self._name = name
        self._run: str | None = None
        self._tokens: list[Token[tuple[Stage, ...]]] = []

    def __enter__(self) -> StageScope:
        outer = _stages.get()
        if self._run is None:
            self._run = f"{self._name}#{os.urandom(6).hex()}"
        path = f"{outer[-1].path}/{self._name}" if outer else self._name
        budgets = tuple(replace(b, stage=self._run) for b in self._budgets)
        self._tokens.append(_stages.set((*outer, Stage(self._meter, self._name, path, budgets))))
        return self

    def __exit__(self, *exc: object) -> None:
        _stages.reset(self._tokens.pop())

    async def __aenter__(self) -> StageScope:
        return self.__enter__()

    async def __aexit__(self, *exc: object) -> None:
        self.__exit__()

    def __call__(self, function: F) -> F:
        return decorate(function, lambda: StageScope(self._meter, self._budgets, self._name))

    def spend(self) -> list[Balance]:
        """The stage's own budgets as they stand."""
        return self._meter.stage_balances([replace(b, stage=self._run) for b in self._budgets])


def active(meter: object) -> tuple[Stage, ...]:
    """The stages of `meter` that the running code is in, outermost first."""
    stages = _stages.get()
    return tuple(s for s in stages if s.meter is meter) if stages else ()
