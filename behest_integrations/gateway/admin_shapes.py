"""What goes over the wire of `/admin/v1`. The same models make the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..rules.attribution import MAX_ID
from .live import Defaults
from .settings import ProjectSettings, TierSettings
from .shapes import Id

Patterns = Annotated[list[Id], Field(min_length=1, max_length=100)]
Seconds = Annotated[int, Field(ge=1, le=10**9)]


class KeyRequest(BaseModel):
    """For whom, and what it may do. `ttl`: seconds that it lives; none: until it is revoked."""

    model_config = ConfigDict(extra="forbid", strict=True)

    tenant: Id
    project: Id
    tier: Id | None = None
    end_users: bool = True
    name: Annotated[str, Field(max_length=MAX_ID)] = ""
    prefix: Literal["behest_sk_live_", "bh_live_"] | None = None
    ttl: Seconds | None = None
    models: Patterns | None = None
    addresses: Patterns | None = None
    budgets: Annotated[list[Id], Field(max_length=20)] = Field(default_factory=list)


class RotateRequest(BaseModel):
    """`overlap`: seconds for which the old key works beside the new one."""

    model_config = ConfigDict(extra="forbid", strict=True)

    overlap: Annotated[int, Field(ge=0, le=10**9)] = 0


class ExpireRequest(BaseModel):
    """`ttl`: seconds from now."""

    model_config = ConfigDict(extra="forbid", strict=True)

    ttl: Seconds


class AdminKey(BaseModel):
    """A key, without the key. Times in ms since 1970. `line`: the first that it was rotated from."""

    id: str
    name: str
    tenant: str
    project: str
    tier: str | None
    role: str
    end_users: bool
    created: int
    expires: int | None
    revoked: int | None
    models: list[str] | None
    addresses: list[str] | None
    budgets: list[str]
    line: str | None


class AdminKeys(BaseModel):
    object: Literal["list"] = "list"
    data: list[AdminKey]


class NewKey(BaseModel):
    """`secret` is told this once."""

    key: AdminKey
    secret: str


class OwnKeyRequest(BaseModel):
    """Whose key at which provider of the gateway's, and the key itself, which is told nowhere again."""

    model_config = ConfigDict(extra="forbid", strict=True)

    tenant: Id
    provider: Id
    key: Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[!-~]+$")]


class OwnKey(BaseModel):
    """A tenant's own key at a provider, without the key. `hint`: its last characters. `created`: ms since
    1970. `master`: the id of the key that it is encrypted with. `unusable`: why it cannot be used."""

    id: str
    tenant: str
    provider: str
    hint: str
    created: int
    master: str
    unusable: str | None = None


class OwnKeys(BaseModel):
    object: Literal["list"] = "list"
    data: list[OwnKey]


class AdminProject(BaseModel):
    """What holds for a project. `source`: `run time`, which goes before `behest.toml`. `file`: what that
    says instead; null: nothing."""

    name: str
    value: ProjectSettings
    source: Literal["run time", "behest.toml"]
    file: ProjectSettings | None


class AdminProjects(BaseModel):
    object: Literal["list"] = "list"
    data: list[AdminProject]


class AdminTier(BaseModel):
    """A tier that there is. `source`: `run time`, which goes before `behest.toml`, which goes before
    `built in`. `file`: what of those is passed over."""

    name: str
    value: TierSettings
    source: Literal["run time", "behest.toml", "built in"]
    file: TierSettings | None


class AdminTiers(BaseModel):
    object: Literal["list"] = "list"
    data: list[AdminTier]


class AdminDefaults(BaseModel):
    """What holds for all projects."""

    value: Defaults
    source: Literal["run time", "behest.toml"]
    file: Defaults | None


class AdminBudget(BaseModel):
    """A budget. `limit`: the one in force, with its unit; null: it is paused. `configured`: whether that is
    its own amount, or was set. `source`: `behest.toml`, `run time`, `tier`, `project` or `key`."""

    budget: str
    name: str | None
    limit: str | None
    configured: bool
    source: Literal["behest.toml", "run time", "tier", "project", "key"]


class AdminBudgets(BaseModel):
    object: Literal["list"] = "list"
    data: list[AdminBudget]


class _Budgeting(BaseModel):
    """Which budget: its text, whatever its amount, or its name. `why`: for the audit."""

    model_config = ConfigDict(extra="forbid", strict=True)

    budget: Annotated[str, Field(min_length=1, max_length=1000)]
    why: Id | None = None


class BudgetRequest(_Budgeting):
    """Which budget: its text, whatever its amount, or its name. `why`: for the audit."""


class _OfOne(_Budgeting):
    session: Id | None = None
    user: Id | None = None
    project: Id | None = None
    tenant: Id | None = None
    model: Id | None = None
    tags: Annotated[dict[str, str], Field(max_length=64)] = Field(default_factory=dict)


class BudgetScopeRequest(_OfOne):
    """Of whom it is, where not of all: all that the budget is per, and the tenant of a session or user."""


class BudgetAmountRequest(_OfOne):
    """`amount`: in the budget's unit, such as `$10` or `50k tokens`; and of whom, where not of all."""

    amount: Id


class BudgetGrantRequest(BudgetAmountRequest):
    """`seconds`: for how long."""

    seconds: Seconds


class BudgetChanged(BaseModel):
    """The budget that was meant, and the limit that it has now; null: it is paused, or is no more."""

    budget: str
    limit: str | None
