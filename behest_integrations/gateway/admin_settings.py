"""`/admin/v1/projects`, `tiers`, `defaults`, `budgets`: the settings, changed while the gateway runs.

For who administers everything: a tenant's admin key is refused, for its tenant could raise its own limits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..engine.limits import BudgetChanges, scope_of
from ..meter import Meter
from ..rules.budgets import Budget
from ..rules.units import format_amount
from . import admin_shapes as shapes
from .admin import Admin
from .bodies import M
from .changing import Changes
from .keys import Key
from .live import Defaults, Live
from .problems import JSON, Problem
from .settings import ProjectSettings, TierSettings

BUDGETS = "/admin/v1/budgets"


@dataclass(frozen=True)
class BudgetChange:
    """What may be done with a budget: what is asked, and what then is done; see `BudgetChanges`."""

    shape: type[shapes._Budgeting]
    work: Callable[[BudgetChanges, Budget, Any, str | None], object]


BUDGET_CHANGES = {
    "set": BudgetChange(shapes.BudgetAmountRequest, lambda to, b, asked, of: to.set(b, asked.amount, of)),
    "raise": BudgetChange(
        shapes.BudgetAmountRequest, lambda to, b, asked, of: to.raise_by(b, asked.amount, of)
    ),
    "grant": BudgetChange(
        shapes.BudgetGrantRequest,
        lambda to, b, asked, of: to.grant(b, asked.amount, of, to.now() + asked.seconds * 1000),
    ),
    "pause": BudgetChange(shapes.BudgetRequest, lambda to, b, asked, of: to.pause(b)),
    "resume": BudgetChange(shapes.BudgetRequest, lambda to, b, asked, of: to.resume(b)),
    "reset": BudgetChange(shapes.BudgetScopeRequest, lambda to, b, asked, of: to.reset(b, of)),
}


class AdminChanges:
    """The endpoints."""

    def __init__(self, admin: Admin, meter: Meter, live: Live) -> None:
        self._admin = admin
        self._meter = meter
        self._live = live

    def routes(self) -> list[Route]:
        """Where they are."""
        at = "/admin/v1"
        return [
            Route(f"{at}/projects", self.projects),
            Route(f"{at}/projects/{{name:path}}", self.set_project, methods=["PUT"]),
            Route(f"{at}/projects/{{name:path}}", self.reset_project, methods=["DELETE"]),
            Route(f"{at}/tiers", self.tiers),
            Route(f"{at}/tiers/{{name:path}}", self.set_tier, methods=["PUT"]),
            Route(f"{at}/tiers/{{name:path}}", self.reset_tier, methods=["DELETE"]),
            Route(f"{at}/defaults", self.defaults),
            Route(f"{at}/defaults", self.set_defaults, methods=["PUT"]),
            Route(f"{at}/defaults", self.reset_defaults, methods=["DELETE"]),
            Route(BUDGETS, self.budgets),
            Route(BUDGETS, self.add_budget, methods=["POST"]),
            Route(f"{BUDGETS}/remove", self.remove_budget, methods=["POST"]),
            *(
                Route(f"{BUDGETS}/{what}", partial(self._budget, change), methods=["POST"])
                for what, change in BUDGET_CHANGES.items()
            ),
        ]

    # ── projects, tiers, and what holds for all ────────────────────────────────────────

    async def projects(self, request: Request) -> Response:
        """`GET /admin/v1/projects`."""
        changes = await self._changes(request)
        found = await self._admin.run(changes.projects)
        return _told(shapes.AdminProjects(data=[shapes.AdminProject(**one.model_dump()) for one in found]))

    async def set_project(self, request: Request) -> Response:
        """`PUT /admin/v1/projects/NAME`: this is said of it from now on, and nothing else."""
        changes, name = await self._changes(request), request.path_params["name"]
        asked = await self._admin.asked(request, ProjectSettings)
        return await self._project(changes, name, lambda: changes.set_project(name, asked))

    async def reset_project(self, request: Request) -> Response:
        """`DELETE /admin/v1/projects/NAME`: what the file says holds again."""
        changes, name = await self._changes(request), request.path_params["name"]
        return await self._project(changes, name, lambda: changes.reset_project(name))

    async def _project(self, changes: Changes, name: str, work: Callable[[], None]) -> Response:
        await self._admin.run(work)
        found = {one.name: one for one in await self._admin.run(changes.projects)}
        if name in found:
            return _told(shapes.AdminProject(**found[name].model_dump()))
        nothing = shapes.AdminProject(name=name, value=ProjectSettings(), source="behest.toml", file=None)
        return _told(nothing)

    async def tiers(self, request: Request) -> Response:
        """`GET /admin/v1/tiers`."""
        changes = await self._changes(request)
        found = await self._admin.run(changes.tiers)
        return _told(shapes.AdminTiers(data=[shapes.AdminTier(**one.model_dump()) for one in found]))

    async def set_tier(self, request: Request) -> Response:
        """`PUT /admin/v1/tiers/NAME`: these are its budgets from now on."""
        changes, name = await self._changes(request), request.path_params["name"]
        asked = await self._admin.asked(request, TierSettings)
        return await self._tiers(changes, lambda: changes.set_tier(name, asked))

    async def reset_tier(self, request: Request) -> Response:
        """`DELETE /admin/v1/tiers/NAME`: it is as the file has it again, or is no more."""
        changes, name = await self._changes(request), request.path_params["name"]
        return await self._tiers(changes, lambda: changes.reset_tier(name))

    async def _tiers(self, changes: Changes, work: Callable[[], None]) -> Response:
        await self._admin.run(work)
        found = await self._admin.run(changes.tiers)
        return _told(shapes.AdminTiers(data=[shapes.AdminTier(**one.model_dump()) for one in found]))

    async def defaults(self, request: Request) -> Response:
        """`GET /admin/v1/defaults`."""
        changes = await self._changes(request)
        return await self._defaults(changes, lambda: None)

    async def set_defaults(self, request: Request) -> Response:
        """`PUT /admin/v1/defaults`: this holds for all projects from now on."""
        changes = await self._changes(request)
        asked = await self._admin.asked(request, Defaults)
        return await self._defaults(changes, lambda: changes.set_defaults(asked))

    async def reset_defaults(self, request: Request) -> Response:
        """`DELETE /admin/v1/defaults`: what the file says holds again."""
        changes = await self._changes(request)
        return await self._defaults(changes, changes.reset_defaults)

    async def _defaults(self, changes: Changes, work: Callable[[], None]) -> Response:
        await self._admin.run(work)
        found = await self._admin.run(changes.defaults)
        return _told(shapes.AdminDefaults(**found.model_dump(exclude={"name"})))

    # ── budgets ────────────────────────────────────────────────────────────────────────

    async def budgets(self, request: Request) -> Response:
        """`GET /admin/v1/budgets`: each, the limit that is in force, and where it is from."""
        changes = await self._changes(request)

        def look() -> list[shapes.AdminBudget]:
            known = {budget.shape: (budget, source) for budget, source in changes.budgets()}
            for budget in self._meter.planner.budgets:
                known.setdefault(budget.shape, (budget, "key"))
            limits = self._meter.ledger.submit(lambda rows: dict(rows.overrides()))
            return [_budget(budget, source, limits) for budget, source in known.values()]

        return _told(shapes.AdminBudgets(data=await self._admin.run(look)))

    async def add_budget(self, request: Request) -> Response:
        """`POST /admin/v1/budgets`: all calls are held to it besides."""
        asked, changes = await self._asked(request, shapes.BudgetRequest)
        budget = await self._admin.run(lambda: changes.add_budget(asked.budget))
        return _changed(budget, budget.amount, status=201)

    async def remove_budget(self, request: Request) -> Response:
        """`POST /admin/v1/budgets/remove`: nobody is held any more to one that was added while it ran."""
        asked, changes = await self._asked(request, shapes.BudgetRequest)
        return _changed(await self._admin.run(lambda: changes.remove_budget(asked.budget)), None)

    async def _budget(self, change: BudgetChange, request: Request) -> Response:
        """`POST /admin/v1/budgets/set` and the like, of all or of one."""
        key = await self._administrator(request)
        asked = await self._admin.asked(request, change.shape)
        meter = self._meter

        def work() -> tuple[Budget, int | None]:
            # Budgets of keys that only other workers have seen are known to the ledger.
            listed = meter.ledger.submit(lambda rows: list(rows.known_budgets()))
            known = {b.shape: b for b in map(Budget.parse, (row.text for row in listed))}
            known |= {b.shape: b for b in meter.planner.budgets}
            changes = BudgetChanges(
                meter.ledger, known.values(), meter.ledger.now_ms, by=key.id, why=asked.why
            )
            budget = changes.find(asked.budget)
            of = None
            if isinstance(asked, shapes._OfOne):
                of = scope_of(
                    budget, asked.session, asked.user, asked.project, asked.tenant, asked.tags, asked.model
                )
            change.work(changes, budget, asked, of)
            return budget, changes.limit(budget, of)

        return _changed(*await self._admin.run(work))

    # ── what they share ────────────────────────────────────────────────────────────────

    async def _administrator(self, request: Request) -> Key:
        key = await self._admin.gate.administrator(request.scope)
        if key.tenant:
            raise Problem(403, "That is for a key that administers every tenant.", retry=False)
        return key

    async def _changes(self, request: Request, why: str | None = None) -> Changes:
        key = await self._administrator(request)
        return Changes(self._meter.ledger, self._live.of_file, self._live.base, actor=key.id, why=why)

    async def _asked(self, request: Request, shape: type[M]) -> tuple[M, Changes]:
        key = await self._administrator(request)
        asked = await self._admin.asked(request, shape)
        why = getattr(asked, "why", None)
        return asked, Changes(self._meter.ledger, self._live.of_file, self._live.base, actor=key.id, why=why)


def _told(model: BaseModel, status: int = 200) -> Response:
    return JSON(model.model_dump(mode="json"), status_code=status)


def _changed(budget: Budget, limit: int | None, status: int = 200) -> Response:
    text = None if limit is None else format_amount(limit, budget.unit)
    return _told(shapes.BudgetChanged(budget=str(budget), limit=text), status)


def _budget(budget: Budget, source: str, limits: dict[str, int | None]) -> shapes.AdminBudget:
    limit = limits.get(budget.shape, budget.amount)
    return shapes.AdminBudget(
        budget=str(budget),
        name=budget.name,
        limit=None if limit is None else format_amount(limit, budget.unit),
        configured=budget.shape not in limits,
        source=source,  # type: ignore[arg-type]
    )
