"""`/admin/v1` in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from . import admin_shapes as shapes
from .live import Defaults
from .openapi_parts import answers, get, ref
from .settings import ProjectSettings, TierSettings

_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
_NAME = {**_ID, "name": "name"}


def _listed(id: str, summary: str, told: type[BaseModel]) -> dict[str, Any]:
    said = answers(told, ("401", "403", "503"), budgets=False)
    return get(id, summary, "Administration", said)["get"]  # type: ignore[no-any-return]


def _change(
    id: str,
    summary: str,
    asked: type[BaseModel] | None,
    told: type[BaseModel],
    *parameters: dict[str, Any],
    status: str = "200",
) -> dict[str, Any]:
    errors: tuple[str, ...] = ("400", "401", "403", "503")
    errors += (("404",) if parameters else ()) + (("408", "413", "415") if asked is not None else ())
    said = answers(told, errors, budgets=False)
    said[status] = said.pop("200")
    made = get(id, summary, "Administration", said, *parameters)["get"]
    if asked is not None:
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": ref(asked)}}}
    return made  # type: ignore[no-any-return]


def _settings() -> dict[str, Any]:
    """What is changed of the settings: projects, tiers, what holds for all, budgets."""
    at = "/admin/v1"
    project, tiers, defaults = shapes.AdminProject, shapes.AdminTiers, shapes.AdminDefaults
    changed, budgets = shapes.BudgetChanged, f"{at}/budgets"
    amount, one = shapes.BudgetAmountRequest, shapes.BudgetRequest
    all_of = (
        ("set", "Set a limit, of all or of one", amount),
        ("raise", "Raise a limit, of all or of one", amount),
        ("grant", "Let one spend more for a time", shapes.BudgetGrantRequest),
        ("pause", "Hold nobody to a budget until it is resumed", one),
        ("resume", "Hold everybody to it again", one),
        ("reset", "Go back to the configured limit", shapes.BudgetScopeRequest),
        ("remove", "Take out a budget that was added while it ran", one),
    )
    return {
        f"{at}/projects": {"get": _listed("listProjects", "What holds for projects", shapes.AdminProjects)},
        f"{at}/projects/{{name}}": {
            "put": _change("setProject", "Say all that holds for a project", ProjectSettings, project, _NAME),
            "delete": _change("resetProject", "Have the file's hold for it again", None, project, _NAME),
        },
        f"{at}/tiers": {"get": _listed("listTiers", "The tiers there are", tiers)},
        f"{at}/tiers/{{name}}": {
            "put": _change("setTier", "Say the budgets of a tier", TierSettings, tiers, _NAME),
            "delete": _change("resetTier", "Have it as the file has it again", None, tiers, _NAME),
        },
        f"{at}/defaults": {
            "get": _listed("getDefaults", "What holds for all projects", defaults),
            "put": _change("setDefaults", "Say what holds for all projects", Defaults, defaults),
            "delete": _change("resetDefaults", "Have the file's hold for all again", None, defaults),
        },
        budgets: {
            "get": _listed("listBudgets", "The budgets, and the limits in force", shapes.AdminBudgets),
            "post": _change("addBudget", "Hold all calls to a budget besides", one, changed, status="201"),
        },
        **{
            f"{budgets}/{what}": {"post": _change(f"{what}Budget", summary, asked, changed)}
            for what, summary, asked in all_of
        },
    }


def paths() -> dict[str, Any]:
    keys, own = "/admin/v1/keys", "/admin/v1/byok"
    key, new, own_key = shapes.AdminKey, shapes.NewKey, shapes.OwnKey
    return {
        keys: {
            "get": _listed("listKeys", "All keys, without the keys", shapes.AdminKeys),
            "post": _change("createKey", "Make a key; it is told once", shapes.KeyRequest, new, status="201"),
        },
        keys + "/{id}": {"delete": _change("revokeKey", "End a key at once", None, key, _ID)},
        keys + "/{id}/rotate": {
            "post": _change(
                "rotateKey", "Another key in its place", shapes.RotateRequest, new, _ID, status="201"
            )
        },
        keys + "/{id}/expire": {
            "post": _change("expireKey", "Let a key end", shapes.ExpireRequest, key, _ID)
        },
        own: {
            "get": _listed("listOwnKeys", "Tenants' own keys at providers", shapes.OwnKeys),
            "post": _change(
                "setOwnKey",
                "Make a tenant's calls with its own key",
                shapes.OwnKeyRequest,
                own_key,
                status="201",
            ),
        },
        own + "/{id}": {
            "delete": _change("removeOwnKey", "Make them with the gateway's again", None, own_key, _ID)
        },
        **_settings(),
    }
