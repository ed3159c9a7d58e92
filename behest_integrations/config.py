"""`behest.toml`: the same settings as `Meter(...)`, in a file.

store = "sqlite:///behest.db"
timezone = "Europe/Paris"
budgets = ["$0.50 per session", "$5/day per user"]

[prices."my-model"]          # USD per million tokens
input = "0.15"
output = "0.60"

[allow]
web_search = "$0.05"
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .prices import Price, Pricing
from .rules.budgets import Budget
from .rules.errors import ConfigError
from .rules.wording import say_problems
from .wire.hangups import OnAbandoned

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

FILE = "behest.toml"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _PriceTable(_Strict):
    input: str | int
    output: str | int | None = None
    cached_input: str | int | None = None
    cache_write: str | int | None = None
    cache_write_1h: str | int | None = None
    reasoning: str | int | None = None
    input_audio: str | int | None = None
    output_audio: str | int | None = None
    request: str | int | None = None
    start: date | None = None


class _BudgetTable(_Strict):
    """A budget in parts: `{ amount = "$5", window = "day", per = ["user"] }`."""

    amount: str
    window: str | None = None
    rolling: str | None = None
    first_day: str | None = None
    timezone: str | None = None
    per: list[str] = Field(default_factory=list)
    model: str | None = None
    user: str | None = None
    session: str | None = None
    project: str | None = None
    tenant: str | None = None
    tags: dict[str, str] = Field(default_factory=dict)
    name: str | None = None
    warn_only: bool = False

    def budget(self) -> Budget:
        """The budget that the parts say: the same as its text."""
        from .rules.budgets import WARN_ONLY, Filter

        text = self.amount
        if self.window:
            text += f"/{self.window}"
        if self.first_day:
            text += f" from {self.first_day}"
        if self.rolling:
            text += f" per {self.rolling} rolling"
        if self.timezone:
            text += f" in {self.timezone}"
        if self.per:
            text += " per " + " and ".join(self.per)
        for attribute in ("model", "user", "session", "project", "tenant"):
            value = getattr(self, attribute)
            if value is not None:
                text += f" {Filter(attribute, value)}"
        for tag, value in self.tags.items():
            text += f" {Filter('tag', value, tag)}"
        if self.name:
            text += f" as {self.name}"
        if self.warn_only:
            text += WARN_ONLY
        return Budget.parse(text)


class Config(_Strict):
    """What `behest.toml` may say. Unknown keys are errors: a misspelt budget is no budget."""

    store: str | None = None
    budgets: list[str | _BudgetTable] = Field(default_factory=list)
    timezone: str | None = None
    prices: dict[str, _PriceTable | list[_PriceTable]] = Field(default_factory=dict)
    aliases: dict[str, str] = Field(default_factory=dict)
    price_list: str | None = None
    """The file of a newer price list; see `prices.lists`."""
    allow: dict[str, str | list[str]] = Field(default_factory=dict)
    allow_fields: list[str] = Field(default_factory=list)
    default_output_tokens: int | None = None
    min_output_tokens: int | None = None
    lower_limits: bool | None = None
    wait: float | None = None
    lease: float | None = None
    on_unknown: Literal["assume", "estimate", "release"] | None = None
    on_abandoned: OnAbandoned | dict[str, OnAbandoned] | None = None
    on_store_error: Literal["refuse", "allow"] | None = None
    store_timeout: float | None = None
    store_slow: float | None = None
    durability: Literal["process", "power"] | None = None
    thresholds: list[int] | None = None
    stream_usage: bool | None = None
    telemetry: bool | None = None
    leases: bool | None = None
    service_tier: str | dict[str, str] | None = None
    project: str | None = None
    tenant: str | None = None
    require: list[str] | None = None
    hosts: list[str] | None = None
    strict: bool | None = None
    policy: dict[str, Any] | None = None
    """What may be asked at all; see `policy.settings`."""
    guards: dict[str, Any] | None = None
    """What ends sessions that go on without end; see `engine.guards`."""
    downgrade: dict[str, str] | None = None
    downgrade_at: int | None = None
    alerts: dict[str, Any] | None = None
    """Who is told of what; see `engine.alerting`."""
    cost_centres: dict[str, Any] = Field(default_factory=dict)
    """What `behest chargeback` and `behest export` read; see `reports.finance.centres`."""
    gateway: dict[str, Any] = Field(default_factory=dict)
    """What `behest serve` reads; see `gateway.settings`."""

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `Meter`. The store is the environment's, where that names one.

        Raises:
            ConfigError: a budget or a price cannot be used.
        """
        said = {name: value for name, value in self if value is not None and name not in _FOR_OTHERS}
        said |= {"store": store} if (store := store_of_environment()) else {}
        said["budgets"] = [b if isinstance(b, str) else b.budget() for b in self.budgets]
        said["prices"] = {
            model: [Price(**t.model_dump()) for t in (tables if isinstance(tables, list) else [tables])]
            for model, tables in self.prices.items()
        }
        return said

    def pricing(self) -> Pricing:
        """What the file says of prices.

        Raises:
            ConfigError: a price or the price list cannot be used.
        """
        said = self.arguments()
        return Pricing(said["prices"], said["aliases"], said.get("price_list"))


_FOR_OTHERS = ("gateway", "cost_centres")
"""Tables that are no settings of a meter."""


def store_of_environment() -> str | None:
    """The store that ``BEHEST_STORE`` names. It goes before a file's, whoever asks."""
    return os.environ.get("BEHEST_STORE") or None


def load(path: str | Path = FILE) -> Config:
    """Read a file.

    Raises:
        ConfigError: it is missing, is not TOML, or says something unknown.
    """
    try:
        data: Mapping[str, Any] = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"there is no file {str(path)!r}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"cannot read {str(path)!r}: it is not text in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"cannot read {str(path)!r}: it is not TOML: {error}") from None
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{str(path)!r} cannot be used: {say_problems(error, Config, data)}") from None
