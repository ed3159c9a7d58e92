"""`[policy]` of `behest.toml`, and `Meter(policy=…)`: what may be asked, and for whom which rule is.

[policy]
models = ["gpt-4o*", "text-embedding-3-*"]
priced = true

[[policy.rules]]
name = "trial keeps it short"
tier = "trial"
max_output_tokens = 512
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..rules.attribution import Attribution, check_id
from ..rules.budgets import Filter
from ..rules.errors import ConfigError
from ..rules.wording import say_problems

TIER_TAG = "tier"
"""The tag that carries a caller's tier."""

Tokens = Annotated[int, Field(ge=1)]
Pattern = Annotated[str, Field(min_length=1, max_length=256)]


class Strict(BaseModel):
    """Unknown keys are errors: a misspelt rule is no rule."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Terms(Strict):
    """What a rule may demand of a call.

    Patterns are as in a shell (`*`, `?`), in any case. A model is known by the name that is sent and by the
    one that it stands for (`aliases`).

    Attributes:
        models: only these; None: any.
        deny_models: none of these, by whatever prefix or date they are named.
        providers: only these, by the price list's id or the host that is called; not one that is not known.
        deny_providers: none of these.
        regions: only where a provider is known to be in one of these; see `Policy.places`.
        max_output_tokens: more is refused; a call that sets no limit is sent with this one.
        max_input_tokens: more is refused, counted from above.
        priced: only models whose price is known.
    """

    models: tuple[Pattern, ...] | None = None
    deny_models: tuple[Pattern, ...] = ()
    providers: tuple[Pattern, ...] | None = None
    deny_providers: tuple[Pattern, ...] = ()
    regions: tuple[Pattern, ...] | None = None
    max_output_tokens: Tokens | None = None
    max_input_tokens: Tokens | None = None
    priced: bool = False

    @field_validator("models", "deny_models", "providers", "deny_providers", "regions", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError('write it as a list: ["…"]')
        if isinstance(value, Iterable) and not isinstance(value, Mapping):
            return tuple(v.lower() if isinstance(v, str) else v for v in value)
        return value


class Rule(Terms):
    """Terms for some calls alone. All rules that apply to a call must allow it, as with budgets.

    Attributes:
        name: what a refusal and the audit call it.
        tenant, project, user, session: ids, taken as they are.
        tier: a pattern; tags: patterns by the tag's name.
    """

    name: str = ""
    tenant: str | None = None
    project: str | None = None
    user: str | None = None
    session: str | None = None
    tier: str | None = None
    tags: dict[str, str] = Field(default_factory=dict)

    def filters(self) -> tuple[Filter, ...]:
        """For whose calls it is."""
        ids = [
            (n, v) for n in ("tenant", "project", "user", "session") if (v := getattr(self, n)) is not None
        ]
        tags = {**self.tags, **({TIER_TAG: self.tier} if self.tier is not None else {})}
        return (*(Filter(n, v) for n, v in ids), *(Filter("tag", v, tag) for tag, v in tags.items()))


class Audit(Strict):
    """What is written down of decisions.

    Attributes:
        allowed: calls that went ahead as they were, too; else only what was refused, changed or found.
        keep_days: how long records are kept; None: for ever.
    """

    allowed: bool = True
    keep_days: int | None = Field(default=None, ge=1)


class Policy(Terms):
    """What every call must keep to, and rules for some of them.

    Attributes:
        rules: for some calls alone, within the rest.
        places: the region of a provider, by its host or id: `{"eu.api.openai.com" = "eu"}`.
        audit: what is written down of decisions.
    """

    rules: tuple[Rule, ...] = ()
    places: dict[str, str] = Field(default_factory=dict)
    audit: Audit = Field(default_factory=Audit)

    @classmethod
    def of(cls, given: Any) -> Policy:
        """A policy from what `Meter(policy=…)` or a file says.

        Raises:
            ConfigError: something cannot be used as given.
        """
        if isinstance(given, Policy):
            return given
        if isinstance(given, Rule):
            given = {"rules": [given]}
        elif isinstance(given, Sequence) and not isinstance(given, (str, bytes)):
            given = {"rules": list(given)}
        if not isinstance(given, Mapping):
            raise ConfigError(f"a policy is a Policy, a list of rules, or a table of them, not {given!r}")
        try:
            found = cls.model_validate(given)
        except ValidationError as error:
            raise ConfigError(f"[policy] cannot be used: {say_problems(error, cls, given)}") from None
        found.named()
        return found

    def named(self) -> list[tuple[str, tuple[Filter, ...], Terms]]:
        """Each set of terms with its name and for whom it is, the policy's own first.

        Raises:
            ConfigError: a name is used twice, or cannot be an id.
        """
        listed: list[tuple[str, tuple[Filter, ...], Terms]] = [("policy", (), self)]
        for place, rule in enumerate(self.rules, 1):
            filters = rule.filters()
            for each in filters:
                check_id(each.pattern, f"whom rule {place} is for")
            name = rule.name or " ".join(map(str, filters)) or f"rule {place}"
            if name in {n for n, _, _ in listed}:
                name = f"{name} ({place})" if not rule.name else name
            if name in {n for n, _, _ in listed}:
                raise ConfigError(f"[policy] has two rules named {name!r}")
            listed.append((check_id(name, "a rule's name"), filters, rule))
        return listed


def applies(filters: Iterable[Filter], who: Attribution) -> bool:
    """Whether a call of `who` is one of those."""
    return all(f.matches(who, "") for f in filters)
