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

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

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


Mode = Literal["disabled", "shadow", "enforce"]
Failure = Literal["refuse", "pass"]
Action = Literal["mask", "redact", "block"]
Seconds = Annotated[float, Field(gt=0, le=30)]

ENTITIES: Mapping[str, Action] = {
    "EMAIL_ADDRESS": "mask",
    "PHONE_NUMBER": "mask",
    "CREDIT_CARD": "mask",
    "IBAN_CODE": "mask",
    "IP_ADDRESS": "mask",
    "CRYPTO": "mask",
    "US_SSN": "mask",
    "SECRET": "redact",
}
"""What is looked for where nothing is said."""


class PatternSettings(Strict):
    """A pattern of your own: a regular expression, how sure it is, and words that make it surer nearby."""

    regex: str = Field(min_length=1)
    score: float = Field(default=0.8, gt=0, le=1)
    context: tuple[str, ...] = ()


class Pii(Strict):
    """The shield of what is somebody's own.

    Attributes:
        mode: ``shadow`` finds and writes down, and changes nothing.
        entities: by kind (Presidio's names, and ``SECRET``): ``mask`` it by a placeholder, and put it back
            into the answer; ``redact`` it for good; ``block`` the call.
        languages: of the texts, as codes.
        models: a spaCy model that is installed, by language: it finds people and places.
        threshold: how sure a recogniser must be.
        patterns, words: kinds of your own, by name: patterns, and words as they are.
        recognizers: Presidio's `EntityRecognizer` objects of your own (not in a file).
        allowed: texts that are nobody's, as they are.
        timeout: seconds for all the texts of a call.
        on_failure: what happens when that is not enough, or a recogniser fails.
        unscanned: what happens to what is no text: images, audio, files, tokens, what is stored elsewhere.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    mode: Mode = "enforce"
    entities: dict[str, Action] = Field(default_factory=lambda: dict(ENTITIES))
    languages: tuple[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")], ...] = ("en",)
    models: dict[str, str] = Field(default_factory=dict)
    threshold: float = Field(default=0.4, gt=0, le=1)
    patterns: dict[str, PatternSettings] = Field(default_factory=dict)
    words: dict[str, tuple[Pattern, ...]] = Field(default_factory=dict)
    recognizers: tuple[Any, ...] = ()
    allowed: tuple[str, ...] = ()
    timeout: Seconds = 2.0
    on_failure: Failure = "refuse"
    unscanned: Failure = "refuse"

    @field_validator("entities", "patterns", "words")
    @classmethod
    def _names(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        for name in value:
            if not _ENTITY.fullmatch(name):
                raise ValueError(f"a kind is named in capitals, such as EMAIL_ADDRESS, not {name!r}")
        return value

    @field_validator("patterns")
    @classmethod
    def _compile(cls, value: Mapping[str, PatternSettings]) -> Mapping[str, PatternSettings]:
        for name, each in value.items():
            try:
                re.compile(each.regex)
            except re.error as error:
                raise ValueError(f"{name} is not a regular expression: {error}") from None
        return value


class Sentinel(Strict):
    """What is not wanted in what people and tools say to a model.

    Attributes:
        mode: ``shadow`` finds and writes down, and refuses nothing.
        injection: known ways to turn a model against its orders; see `injections`.
        blocklist: words and phrases that are not wanted, in any case.
        patterns: regular expressions over plain text in small letters, by the name that a refusal tells.
        classifier: asked besides: an address that takes ``{"texts": […]}`` and answers ``{"results": […]}``,
            or (not in a file) a function of a text. It says true or false, how likely, or a table with
            ``score`` or ``flagged``, and ``label``.
        threshold: how likely is likely enough.
        timeout: seconds for all the texts of a call.
        on_failure: what happens when that is not enough, or the classifier fails.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    mode: Mode = "enforce"
    injection: bool = True
    blocklist: tuple[Pattern, ...] = ()
    patterns: dict[str, str] = Field(default_factory=dict)
    classifier: Any = None
    threshold: float = Field(default=0.5, gt=0, le=1)
    timeout: Seconds = 2.0
    on_failure: Failure = "refuse"

    @field_validator("patterns")
    @classmethod
    def _compile(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for name, pattern in value.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{name} is not a regular expression: {error}") from None
        return value


_ENTITY = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


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
        pii: the shield of what is somebody's own.
        sentinel: what is not wanted in what people say.
    """

    models: tuple[Pattern, ...] | None = None
    deny_models: tuple[Pattern, ...] = ()
    providers: tuple[Pattern, ...] | None = None
    deny_providers: tuple[Pattern, ...] = ()
    regions: tuple[Pattern, ...] | None = None
    max_output_tokens: Tokens | None = None
    max_input_tokens: Tokens | None = None
    priced: bool = False
    pii: Pii | None = None
    sentinel: Sentinel | None = None

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
