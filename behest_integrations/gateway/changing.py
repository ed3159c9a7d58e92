"""Changes of the gateway's settings while it runs: projects, tiers, what holds for all, and budgets.

What is changed is kept in the ledger, and goes before what the file says, until it is reset. It is checked
together with the file before it is kept, and each change is in the audit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from ..ledger import Ledger
from ..ledger.audit import Decision
from ..ledger.keys import ChangedSetting
from ..rules.attribution import check_id
from ..rules.budgets import Budget, Filter
from ..rules.errors import ConfigError
from ..rules.near import say_near
from ..rules.units import format_amount
from .live import BUDGET, DEFAULTS, PROJECT, TIER, Defaults, added_budgets, read_changes, settings_now
from .settings import TIER_TAG, GatewaySettings, ProjectSettings, TierSettings

FILE, RUN_TIME, BUILT_IN = "behest.toml", "run time", "built in"
"""Where a setting is from: run time goes before the file, and that before what is built in."""


class Shown(BaseModel):
    """A setting that holds now.

    Attributes:
        name: of which project or tier; "" of what holds for all.
        source: where it is from: ``run time``, ``behest.toml``, ``built in``.
        file: what the file, or what is built in, says instead; None: nothing.
    """

    name: str
    value: dict[str, Any]
    source: str
    file: dict[str, Any] | None = None


def tiers_of_file(settings: GatewaySettings) -> list[Shown]:
    """The tiers of a file, and those that are built in where it has none of their names."""
    numbers = {name: number for number, name in settings.tier_numbers.items()}
    return [
        Shown(
            name=name,
            value={"budgets": list(texts), "number": numbers.get(name)},
            source=FILE if name in settings.tiers else BUILT_IN,
        )
        for name, texts in settings.tier_texts.items()
    ]


class Changes:
    """The settings in a ledger, over those of a file.

    Args:
        of_file: what the file says.
        base: the budgets that it has for all calls.
        actor, why: for the audit.

    Raises:
        ConfigError: the ledger keeps none.
    """

    def __init__(
        self,
        ledger: Ledger,
        of_file: GatewaySettings,
        base: Sequence[Budget] = (),
        *,
        actor: str | None = None,
        why: str | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._keys = ledger.keys()
        self._of_file = of_file
        self._base = base
        self._actor = actor
        self._why = why
        self._now = now

    def settings(self) -> GatewaySettings:
        """Those that hold now.

        Raises:
            ConfigError: what was changed cannot be used with this file.
        """
        return settings_now(self._of_file, read_changes(self._keys))

    # ── what there is ──────────────────────────────────────────────────────────────────

    def projects(self) -> list[Shown]:
        """All projects of which something is said."""
        file = {name: project.model_dump() for name, project in self._of_file.projects.items()}
        return self._shown(PROJECT, file, {}, lambda value: ProjectSettings(**value).model_dump())

    def tiers(self) -> list[Shown]:
        """All tiers."""
        below = tiers_of_file(self._of_file)
        file, own = ({t.name: t.value for t in below if t.source == of} for of in (FILE, BUILT_IN))
        shown = self._shown(TIER, file, own, lambda value: TierSettings(**value).model_dump())
        now = {name: number for number, name in self.settings().tier_numbers.items()}
        for one in shown:
            one.value["number"] = now.get(one.name)
        return shown

    def defaults(self) -> Shown:
        """What holds for all projects."""
        said = self._of_file
        file = Defaults(default_tier=said.default_tier, origins=said.cors_origins).model_dump()
        (found,) = self._shown(DEFAULTS, {"": file}, {}, lambda value: Defaults(**value).model_dump())
        return found

    def budgets(self) -> list[tuple[Budget, str]]:
        """The budgets of all calls, of tiers and of projects, and where each is from."""
        changes = read_changes(self._keys)
        settings = settings_now(self._of_file, changes)
        found: dict[str, tuple[Budget, str]] = {}
        for budgets, source in (
            (added_budgets(changes), RUN_TIME),
            (settings.tier_budgets(), "tier"),
            (settings.project_budgets(), "project"),
            (self._base, FILE),
        ):
            for budget in budgets:
                found.setdefault(budget.shape, (budget, source))
        return list(found.values())

    def _shown(
        self,
        kind: str,
        file: Mapping[str, dict[str, Any]],
        built_in: Mapping[str, dict[str, Any]],
        told: Callable[[Mapping[str, Any]], dict[str, Any]],
    ) -> list[Shown]:
        changed = {c.name: told(c.value) for c in read_changes(self._keys) if c.kind == kind}
        found = []
        for name in dict.fromkeys((*built_in, *file, *changed)):
            below = file.get(name, built_in.get(name))
            if name in changed:
                found.append(Shown(name=name, value=changed[name], source=RUN_TIME, file=below))
            else:
                source = FILE if name in file else BUILT_IN
                found.append(Shown(name=name, value=dict(below or {}), source=source))
        return found

    def otherwise_limited(self, tier: str) -> list[tuple[str, str]]:
        """The budgets of a tier whose limit was set to something else, and to what: that goes before."""
        limits = self._ledger.submit(lambda rows: dict(rows.overrides()))
        mine = Filter("tag", tier, TIER_TAG)
        found = []
        for budget in self.settings().tier_budgets():
            limit = limits.get(budget.shape, budget.amount)
            if mine in budget.filters and limit != budget.amount:
                said = "nothing: it is paused" if limit is None else format_amount(limit, budget.unit)
                found.append((str(budget), said))
        return found

    # ── changes ────────────────────────────────────────────────────────────────────────

    def set_project(self, name: str, project: ProjectSettings) -> None:
        """Have this said of a project, in place of all that was.

        Raises:
            ConfigError: it cannot be used.
        """
        check_id(name, "the project")
        self._put(PROJECT, name, project)

    def set_tier(self, name: str, tier: TierSettings) -> None:
        """Have a tier with these budgets, in place of those that it had.

        Raises:
            ConfigError: it cannot be used.
        """
        check_id(name, "the tier")
        self._put(TIER, name, tier)

    def set_defaults(self, defaults: Defaults) -> None:
        """Have this hold for all projects.

        Raises:
            ConfigError: it cannot be used.
        """
        self._put(DEFAULTS, "", defaults)

    def reset_project(self, name: str) -> None:
        """Have that said of a project which the file says, if it says anything.

        Raises:
            ConfigError: nothing was changed of it.
        """
        self._drop(PROJECT, name)

    def reset_tier(self, name: str) -> None:
        """Have a tier as the file has it; where that has none, it is no more.

        Raises:
            ConfigError: it was not changed, or somebody has it who would be held to nothing.
        """
        if name not in self._of_file.tier_texts:
            now = int(self._now() * 1000)
            with_it = [key.id for key in self._keys.all() if key.tier == name and key.lives(now)]
            if with_it:
                raise ConfigError(
                    f"{len(with_it)} keys have the tier {name!r}, such as {with_it[0]}: revoke them before "
                    "it goes, or nothing would hold them"
                )
        self._drop(TIER, name)

    def reset_defaults(self) -> None:
        """Have the file's hold for all projects.

        Raises:
            ConfigError: they were not changed.
        """
        self._drop(DEFAULTS, "")

    def add_budget(self, text: str) -> Budget:
        """Hold all calls of the gateway to a budget besides.

        Raises:
            ConfigError: it is none, or what it counts is counted already.
        """
        budget = Budget.parse(text)
        for other, source in self.budgets():
            if other.shape == budget.shape or (budget.name is not None and budget.name == other.name):
                raise ConfigError(
                    f'"{other}" ({source}) counts the same thing, or has the same name. Its limit is changed '
                    f"with 'behest budgets set'; or name this one, e.g. \"{budget} as second\""
                )
        self._put(BUDGET, budget.shape, {"budget": text}, told=str(budget))
        self._ledger.remember_budgets(
            [(budget.shape, str(budget), budget.zone or "UTC")], int(self._now() * 1000)
        )
        return budget

    def remove_budget(self, text: str) -> Budget:
        """Hold nobody to a budget any more that was added while it ran. What it has counted stays.

        Raises:
            ConfigError: it was not added so.
        """
        added = added_budgets(read_changes(self._keys))
        try:
            wanted = Budget.parse(text).counted
        except ConfigError:
            wanted = None
        for budget in added:
            if budget.name == text or budget.counted == wanted:
                self._drop(BUDGET, budget.shape, told=str(budget))
                return budget
        texts = [str(budget) for budget in added]
        listed = ", ".join(f'"{t}"' for t in texts) or "none"
        raise ConfigError(
            f'no budget "{text}"{say_near(text, texts)} was added while the gateway ran; added: {listed}. '
            "One of behest.toml is taken out there; 'behest budgets pause' switches it off at once."
        )

    def _put(
        self, kind: str, name: str, value: BaseModel | Mapping[str, Any], *, told: str | None = None
    ) -> None:
        said = value.model_dump(mode="json") if isinstance(value, BaseModel) else dict(value)
        setting = ChangedSetting(kind, name, said, int(self._now() * 1000), self._actor)
        others = [c for c in read_changes(self._keys) if (c.kind, c.name) != (kind, name)]
        self._check([*others, setting])
        self._keys.put_setting(setting)
        self._note(kind, "set", name if told is None else told, said)

    def _drop(self, kind: str, name: str, *, told: str | None = None) -> None:
        others = [c for c in read_changes(self._keys) if (c.kind, c.name) != (kind, name)]
        self._check(others)
        if not self._keys.drop_setting(kind, name):
            what = "what holds for all projects" if kind == DEFAULTS else f"the {kind} {name!r}"
            raise ConfigError(f"{what} was not changed at run time: it is as behest.toml says, or not there")
        self._note(kind, "reset", name if told is None else told, {})

    def _check(self, changes: Iterable[ChangedSetting]) -> None:
        changes = list(changes)
        settings = settings_now(self._of_file, changes)
        shapes: dict[str, Budget] = {}
        budgets = (
            *self._base,
            *settings.tier_budgets(),
            *settings.project_budgets(),
            *added_budgets(changes),
        )
        for budget in budgets:
            other = shapes.setdefault(budget.shape, budget)
            if other is not budget:
                raise ConfigError(f'"{other}" and "{budget}" count the same thing; keep one')

    def _note(self, kind: str, what: str, name: str, value: Mapping[str, Any]) -> None:
        said = {n: v for n, v in value.items() if v not in (None, [], False)}
        details: dict[str, Any] = {"name": name, **said}
        if self._why is not None:
            details["why"] = self._why
        decision = Decision(
            int(self._now() * 1000), "admin", f"{kind} {what}", actor=self._actor, details=details
        )
        self._ledger.submit(lambda rows: rows.add_audit(decision))
