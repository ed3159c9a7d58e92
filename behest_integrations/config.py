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

import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError

from .prices import Price
from .rules.budgets import Budget
from .rules.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

FILE = "behest.toml"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _text(value: object, info: ValidationInfo) -> object:
    """A price as it is written; one that TOML has made a float of has lost what was written."""
    if isinstance(value, float):
        raise PydanticCustomError(
            "float", "write it as text: {line}", {"line": f'{info.field_name} = "{value}"'}
        )
    return value


_Usd = Annotated[str | int | None, BeforeValidator(_text)]


class _PriceTable(_Strict):
    """A `Price`, as `[prices."model"]` has it."""

    input: Annotated[str | int, BeforeValidator(_text)]
    output: _Usd = None
    cached_input: _Usd = None
    cache_write: _Usd = None
    cache_write_1h: _Usd = None
    reasoning: _Usd = None
    input_audio: _Usd = None
    output_audio: _Usd = None
    request: _Usd = None
    start: date | None = None


def _table_or_list(value: object) -> str:
    return "several" if isinstance(value, list) else "one"


# Told apart by hand, so that an error names what is in the file and not both kinds.
_Prices = Annotated[
    Annotated[_PriceTable, Tag("one")] | Annotated[list[_PriceTable], Tag("several")],
    Discriminator(_table_or_list),
]


class _BudgetTable(_Strict):
    """A budget in parts: `{ amount = "$5", window = "day", per = ["user"] }`."""

    amount: str
    window: str | None = None
    rolling: str | None = None
    timezone: str | None = None
    per: list[str] = Field(default_factory=list)
    model: str | None = None
    user: str | None = None
    session: str | None = None
    project: str | None = None
    tenant: str | None = None
    tags: dict[str, str] = Field(default_factory=dict)
    name: str | None = None

    def budget(self) -> Budget:
        """The budget that the parts say: the same as its text."""
        from .rules.budgets import Filter

        text = self.amount
        if self.window:
            text += f"/{self.window}"
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
        return Budget.parse(text)


class Config(_Strict):
    """What `behest.toml` may say. Unknown keys are errors: a misspelt budget is no budget."""

    store: str | None = None
    budgets: list[str | _BudgetTable] = Field(default_factory=list)
    timezone: str | None = None
    prices: dict[str, _Prices] = Field(default_factory=dict)
    aliases: dict[str, str] = Field(default_factory=dict)
    allow: dict[str, str | list[str]] = Field(default_factory=dict)
    default_output_tokens: int | None = None
    min_output_tokens: int | None = None
    lower_limits: bool | None = None
    wait: float | None = None
    lease: float | None = None
    on_unknown: Literal["assume", "estimate", "release"] | None = None
    on_store_error: Literal["refuse", "allow"] | None = None
    store_timeout: float | None = None
    durability: Literal["process", "power"] | None = None
    thresholds: list[int] | None = None
    service_tier: str | None = None
    project: str | None = None
    tenant: str | None = None
    gateway: dict[str, Any] = Field(default_factory=dict)
    """What `behest serve` reads; see `gateway.settings`."""

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `Meter`.

        Raises:
            ConfigError: a budget or a price cannot be used.
        """
        said = {name: value for name, value in self if value is not None and name != "gateway"}
        said["budgets"] = [b if isinstance(b, str) else b.budget() for b in self.budgets]
        said["prices"] = {
            model: [Price(**t.model_dump()) for t in (tables if isinstance(tables, list) else [tables])]
            for model, tables in self.prices.items()
        }
        return said


def load(path: str | Path = FILE) -> Config:
    """Read a file.

    Raises:
        ConfigError: it is missing, is not TOML, or says something unknown.
    """
    try:
        data: Mapping[str, Any] = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no file {str(path)!r}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error}") from None
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{str(path)!r} cannot be used: {say_problems(error)}") from None


def say_problems(error: ValidationError) -> str:
    """What a validation found, by the names in the file; without the values, which may be secret."""
    return "; ".join(f"{_place(e['loc'])}: {e['msg']}" for e in error.errors())


def _place(path: tuple[int | str, ...]) -> str:
    """Where in the file an error is."""
    if path[:1] == ("prices",) and len(path) > 2:  # the tag of `_Prices` is in no file
        path = path[:2] + path[3:]
    return ".".join(map(str, path))
