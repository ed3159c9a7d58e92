"""What the gateway's settings are now: what the file says, and over it what was changed while it ran.

Every worker asks the ledger with each request whether anything has changed (over PostgreSQL: once a second),
and then reads it before it goes on: a change holds from the next request on. Calls in flight end as they
have begun.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import anyio.to_thread
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..ledger.keys import ChangedSetting, Keys
from ..meter import Meter
from ..rules.budgets import Budget
from ..rules.errors import ConfigError, StoreError
from ..rules.wording import say_problems
from .settings import GatewaySettings, ProjectSettings, TierSettings

PROJECT, TIER, BUDGET, DEFAULTS = KINDS = ("project", "tier", "budget", "defaults")
"""What can be changed. A budget's name is its shape: what it counts, whatever its amount."""


class Defaults(BaseModel):
    """What holds for all projects: the tier of those who have none, and pages that may call for any."""

    model_config = ConfigDict(extra="forbid")

    default_tier: str | None = None
    origins: list[str] = Field(default_factory=list)


class _Text(BaseModel):
    budget: str


_SHAPES: Mapping[str, type[BaseModel]] = {
    PROJECT: ProjectSettings,
    TIER: TierSettings,
    BUDGET: _Text,
    DEFAULTS: Defaults,
}


def settings_now(of_file: GatewaySettings, changes: Iterable[ChangedSetting]) -> GatewaySettings:
    """The file's settings, with what was changed in their place.

    Raises:
        ConfigError: they cannot be used together.
    """
    projects, tiers = dict(of_file.projects), dict(of_file.tiers)
    rest: dict[str, Any] = {}
    for change in changes:
        said = _read(change.kind, change.name, change.value)
        if isinstance(said, ProjectSettings):
            projects[change.name] = said
        elif isinstance(said, TierSettings):
            tiers[change.name] = said
        elif isinstance(said, Defaults):
            rest = {"default_tier": said.default_tier, "cors_origins": said.origins}
    if not (rest or projects != of_file.projects or tiers != of_file.tiers):
        return of_file
    same = {name: getattr(of_file, name) for name in GatewaySettings.model_fields}
    return GatewaySettings(**{**same, "projects": projects, "tiers": tiers, **rest}).checked()


def added_budgets(changes: Iterable[ChangedSetting]) -> list[Budget]:
    """The budgets that were added while it ran.

    Raises:
        ConfigError: one is none.
    """
    return [
        Budget.parse(said.budget)
        for change in changes
        if isinstance(said := _read(change.kind, change.name, change.value), _Text)
    ]


def _read(kind: str, name: str, value: Mapping[str, Any]) -> BaseModel:
    shape = _SHAPES.get(kind)
    if shape is None:
        raise ConfigError(f"{kind} {name!r} was changed by a newer version of this package")
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        raise ConfigError(f"{kind} {name!r} cannot be used: {say_problems(error, shape, value)}") from None


class Live:
    """The settings of a gateway that runs, in one worker.

    Args:
        meter: whose budgets follow them.
        of_file: what the file says.
        keys: None: nothing can be changed, because the store keeps nothing of the kind.
    """

    def __init__(self, meter: Meter, of_file: GatewaySettings, keys: Keys | None) -> None:
        self._meter = meter
        self._keys = keys
        self.of_file = of_file
        self.settings = of_file
        of_tiers = {budget.shape for budget in (*of_file.tier_budgets(), *of_file.project_budgets())}
        self.base = tuple(b for b in meter.planner.budgets if b.shape not in of_tiers)
        """The budgets that the file has for all calls."""
        self._changes: list[ChangedSetting] = []
        self._of_keys: dict[str, Budget] = {}
        self._told: list[Callable[[GatewaySettings], None]] = []
        self._wanted, self._loaded = 1, 0 if keys is not None else 1
        self._loading = asyncio.Lock()
        self._budgets = threading.Lock()

    @property
    def stale(self) -> bool:
        """Whether something may have changed since it was read."""
        return self._wanted != self._loaded

    def forget(self) -> None:
        """Something has changed in the store."""
        self._wanted += 1

    def on_change(self, use: Callable[[GatewaySettings], None]) -> None:
        """Call this with the settings whenever they are others."""
        self._told.append(use)

    async def load(self) -> None:
        """Read what was changed, and let it hold.

        Raises:
            StoreError: it cannot be read.
            ConfigError: it cannot be used; what held before goes on, and this is raised again the next time.
        """
        async with self._loading:
            if self.stale and self._keys is not None:
                wanted = self._wanted
                changes = await anyio.to_thread.run_sync(read_changes, self._keys)
                if changes != self._changes:
                    settings, added = settings_now(self.of_file, changes), added_budgets(changes)
                    await anyio.to_thread.run_sync(self._hold_to, settings, added)
                    self.settings, self._changes = settings, changes
                    for use in self._told:
                        use(settings)
                self._loaded = wanted

    def hold_to(self, budgets: Iterable[Budget]) -> None:
        """Hold calls to a key's budgets besides, from its first one on."""
        new = [budget for budget in budgets if budget.shape not in self._of_keys]
        if new:
            with self._budgets:
                self._of_keys |= {budget.shape: budget for budget in new}
                there = {budget.shape: budget for budget in self._meter.planner.budgets}
                self._put([*there.values(), *(b for b in new if b.shape not in there)])

    def _hold_to(self, settings: GatewaySettings, added: Iterable[Budget]) -> None:
        wanted: dict[str, Budget] = {}
        with self._budgets:
            for budget in (
                *added,
                *settings.tier_budgets(),
                *settings.project_budgets(),
                *self.base,
                *self._of_keys.values(),
            ):
                wanted.setdefault(budget.shape, budget)  # what was changed goes before the file
            self._put(wanted.values())

    def _put(self, budgets: Iterable[Budget]) -> None:
        planner = self._meter.planner
        before = {(b.shape, str(b)) for b in planner.budgets}
        planner.budgets = tuple(budgets)
        new = [
            (b.shape, str(b), b.zone or planner.zone)
            for b in planner.budgets
            if (b.shape, str(b)) not in before
        ]
        if new:
            self._meter.ledger.remember_budgets(new, self._meter.ledger.now_ms())


def read_changes(keys: Keys) -> list[ChangedSetting]:
    """What was changed.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        return keys.settings()
    except sa.exc.SQLAlchemyError as error:
        raise StoreError("The ledger cannot be read, so it is not known what was changed") from error
