"""`[gateway]` of `behest.toml`: providers, routes, tiers, tokens, limits.

[gateway.providers.openai]
base_url = "https://api.openai.com/v1"
api_key_env = "OPENAI_API_KEY"

[[gateway.routes]]
models = ["gpt-*", "o*", "text-embedding-*"]
provider = "openai"

[[gateway.routes]]
models = ["fast"]
provider = "openai"
model = "gpt-4o-mini"
fallback = [{ provider = "gemini", model = "gemini-2.5-flash" }]

[gateway.tiers]
trial = ["$0.20 per user", "5 calls/minute per user"]
team = { number = 4, budgets = ["$5/day per user"] }
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..engine.planning import distinct
from ..rules.attribution import check_id
from ..rules.budgets import Budget, Filter
from ..rules.errors import ConfigError
from ..rules.wording import say_problems
from ..wire.hangups import OnAbandoned

Seconds = Annotated[float, Field(gt=0, le=86_400)]

TIER_TAG = "tier"
"""The tag by which the budgets of a tier find their calls."""

PROJECT_TAG = "project"
"""The tag by which the budgets of a project find their calls: under which name the settings have it."""

TIERS: Mapping[str, tuple[str, ...]] = {
    name: (
        f"{a_minute} calls/minute per project and user",
        f"{a_day} calls/day per project and user",
        f"{tokens} tokens/day per project and user",
    )
    for name, a_minute, a_day, tokens in (
        ("free", "10", "100", "50k"),
        ("pro", "60", "10k", "2M"),
        ("max", "300", "100k", "20M"),
    )
}
"""Behest's own tiers. A tier of the same name in the file takes the place of one of these."""
TIER_NUMBERS: Mapping[str, int] = {"free": 1, "pro": 2, "max": 3}
"""How Behest's clients name those tiers, in a request for a token and in a token."""
ISSUERS = ("behest", "https://api.behest.ai")
"""Whom Behest's own clients name as the issuer of the tokens that they sign."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ProviderSettings(_Strict):
    """An OpenAI-compatible endpoint.

    Attributes:
        apis: what it speaks: ``openai``, ``anthropic`` (its `/v1/messages`); default: both, where it is
            Anthropic's own address, else ``openai``.
        base_url: up to and with `/v1`, or what stands in its place; ``{model}`` in it is
            replaced by the model (for deployments in the path).
        api_key_env: the environment variable that has the key.
        auth_header: the header that carries it: ``Authorization: Bearer KEY``, or, under
            any other name, the key alone (Azure: ``api-key``).
        headers, query: sent with every request.
        prices: the price list's provider id; default: by the address.
        timeout: seconds without a byte after which an answer is given up.
        connect_timeout: seconds for a free place in the pool and a connection.
        retries: further attempts on 429, 5xx and lost connections; each is a call of its own.
        max_connections: at once, for each worker.
        stream_usage: ask for the usage of streams (`stream_options`); without, what is seen of
            them is counted, or booked at the worst case.
        send_attribution: hand `X-Session-Id` and `X-End-User-Id` on.
        service_tier: of your project there, if you know it; default: as for all, see `Meter`.
        on_abandoned: what is done with streams whose client leaves; default: as for all, see `Meter`.
    """

    base_url: str = Field(pattern=r"^https?://[^\s]+$")
    apis: list[Literal["openai", "anthropic"]] | None = Field(default=None, min_length=1)
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")
    auth_header: str = Field(default="Authorization", pattern=r"^[A-Za-z0-9-]+$")
    headers: dict[str, str] = Field(default_factory=dict)
    query: dict[str, str] = Field(default_factory=dict)
    prices: str | None = None
    timeout: Seconds = 600.0
    connect_timeout: Seconds = 10.0
    retries: int = Field(default=2, ge=0, le=10)
    max_connections: int = Field(default=200, ge=1, le=10_000)
    stream_usage: bool = True
    send_attribution: bool = False
    service_tier: str | None = Field(default=None, min_length=1)
    on_abandoned: OnAbandoned | None = None

    def speaks(self, api: str) -> bool:
        """Whether it takes calls of that API."""
        if self.apis is not None:
            return api in self.apis
        return api == "openai" or urlsplit(self.base_url).hostname == "api.anthropic.com"

    def key(self) -> str | None:
        """The provider's key.

        Raises:
            ConfigError: the variable is named and not set.
        """
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ConfigError(
                f"the provider at {self.base_url} takes its key from {self.api_key_env}: set it"
            )
        return key


class TargetSettings(_Strict):
    """A provider, and what a model is called there (default: as it was asked for)."""

    provider: str
    model: str | None = None


class RouteSettings(TargetSettings):
    """Where models go: the first route with a pattern that matches (`*`, `?`) is taken."""

    models: list[str] = Field(min_length=1)
    fallback: list[TargetSettings] = Field(default_factory=list)


class TierSettings(_Strict):
    """A tier's budgets, and the number that tokens may name it by."""

    budgets: list[str]
    number: int | None = Field(default=None, ge=0, le=1_000_000)


class TokenSettings(_Strict):
    """How end-user tokens are signed and checked.

    What is said here is for tokens of the gateway's own, and for those who sign for all tenants. A
    tenant's own public keys are in the ledger (`behest keys add-signing`), and always RS256.

    Attributes:
        algorithm: ``HS256`` with a secret of at least 32 bytes, or ``RS256`` with key files.
        secret_env: the environment variable that has the secret. Where it is not set, a
            secret is made at each start.
        private_key_file: PEM, to mint with; without it tokens are only checked.
        public_key_files: PEM, by key id (`kid`), to check with. To change the private key, give the
            new one a new `kid` and leave the old one's public half here until its tokens have expired.
        kid: the key id that minted tokens name.
        issuer: whom minted tokens name. issuers: whom else a token may name.
        audience: the claim that a token must carry.
        max_ttl: seconds that a minted token may live.
    """

    algorithm: Literal["HS256", "RS256"] = "HS256"
    secret_env: str = "BEHEST_TOKEN_SECRET"
    private_key_file: Path | None = None
    public_key_files: dict[str, Path] = Field(default_factory=dict)
    kid: str = "behest"
    issuer: str = ISSUERS[0]
    issuers: list[str] = Field(default_factory=lambda: list(ISSUERS))
    audience: str = "behest"
    max_ttl: int = Field(default=86_400, ge=1)


class ByokSettings(_Strict):
    """Tenants' own keys at providers (`behest byok`), which are encrypted in the ledger.

    Attributes:
        key_env: the environment variable that has the master key. key_file: the file that has it.
            Either may have several, the newest first: it encrypts, and all of them decrypt.
        ours_instead: whether the gateway's own key may take the place of a tenant's: where that cannot
            be decrypted, or where its provider fails and a route names another. By default neither.
    """

    key_env: str = Field(default="BEHEST_BYOK_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")
    key_file: Path | None = None
    ours_instead: bool = False


class ProjectSettings(_Strict):
    """A project, by its name, or as "TENANT/PROJECT" where two tenants have one of that name: that alone
    is then what is said of it.

    Attributes:
        origins: pages that may call for it from a browser: ``https://app.example.com``,
            ``https://*.example.com``, ``http://localhost:*``, ``*``.
        default_tier: of those of its callers who have none.
        budgets: what all its calls together are held to besides.
        paused: its callers are let in no more.
    """

    origins: list[Annotated[str, Field(pattern=r"^(\*|null|[a-z][a-z0-9+.-]*://[^/?#@\s]+)$")]] = Field(
        default_factory=list
    )
    default_tier: str | None = None
    budgets: list[str] = Field(default_factory=list)
    paused: bool = False


class LimitSettings(_Strict):
    """What keeps the gateway up. Sizes in bytes, times in seconds, each for one worker.

    Attributes:
        max_body: of a request. max_values: JSON values in it. max_buffered: of all bodies
            that are held at once.
        max_header: all header lines of a request together.
        max_in_flight: calls at once; max_connections: of clients.
        header_timeout: for a request's head. body_timeout: for its body. write_timeout:
            for a client to take what it is sent.
        shutdown_timeout: for streams to finish, before they are cut off and settled.
    """

    max_body: int = Field(default=10_000_000, ge=1024)
    max_values: int = Field(default=500_000, ge=100)
    max_buffered: int = Field(default=100_000_000, ge=1024)
    max_header: int = Field(default=32_768, ge=1024)
    max_in_flight: int = Field(default=1000, ge=1)
    max_connections: int = Field(default=4000, ge=1)
    header_timeout: Seconds = 10.0
    body_timeout: Seconds = 60.0
    write_timeout: Seconds = 60.0
    shutdown_timeout: Annotated[int, Field(ge=0)] = 30


class GatewaySettings(_Strict):
    """What `[gateway]` may say. Unknown keys are errors."""

    providers: dict[str, ProviderSettings] = Field(default_factory=dict)
    routes: list[RouteSettings] = Field(default_factory=list)
    tiers: dict[str, list[str] | TierSettings] = Field(default_factory=dict)
    default_tier: str | None = None
    tokens: TokenSettings = Field(default_factory=TokenSettings)
    byok: ByokSettings = Field(default_factory=ByokSettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    projects: dict[str, ProjectSettings] = Field(default_factory=dict)
    cors_origins: list[str] = Field(default_factory=list)
    """As `origins` of a project, for all of them."""
    trusted_proxies: list[str] = Field(default_factory=list)
    """Addresses and networks whose `X-Forwarded-For` and `-Proto` are believed. Nobody's else are."""
    metrics: bool = True
    dashboard: bool = True

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> GatewaySettings:
        """Check what a file says.

        Raises:
            ConfigError: something cannot be used as given.
        """
        try:
            settings = cls.model_validate(table)
        except ValidationError as error:
            raise ConfigError(f"[gateway] cannot be used: {say_problems(error, cls, table)}") from None
        for route in settings.routes:
            for target in (route, *route.fallback):
                if target.provider not in settings.providers:
                    known = ", ".join(settings.providers) or "none"
                    raise ConfigError(f"[gateway] routes to {target.provider!r}; configured: {known}")
        if not settings.routes and len(settings.providers) > 1:
            raise ConfigError(
                "[gateway] has several providers: say in [[gateway.routes]] which models go where"
            )
        return settings.checked()

    def checked(self) -> GatewaySettings:
        """These, if their tiers and projects can be used.

        Raises:
            ConfigError: they cannot.
        """
        for kind, names in (("tier", self.tiers), ("project", self.projects)):
            for name in names:
                check_id(name, f"a {kind}'s name")
        tiers = {"[gateway]": self.default_tier}
        tiers |= {f"[gateway.projects.{name!r}]": p.default_tier for name, p in self.projects.items()}
        for where, tier in tiers.items():
            if tier is not None and tier not in self.tier_texts:
                raise ConfigError(f"{where} default_tier {tier!r} is not a tier")
        distinct((*self.tier_budgets(), *self.project_budgets()))
        _ = self.tier_numbers  # says which two have the same
        return self

    def project_named(self, tenant: str | None, project: str | None) -> str | None:
        """Under which name something is said of a project; None: under none."""
        if not self.projects:
            return None
        exact = f"{tenant}/{project}"
        return exact if exact in self.projects else project if project in self.projects else None

    @functools.cached_property
    def tier_texts(self) -> Mapping[str, tuple[str, ...]]:
        """Budgets by tier: the built-in ones, and the file's over them."""
        return {
            **TIERS,
            **{n: tuple(t.budgets if isinstance(t, TierSettings) else t) for n, t in self.tiers.items()},
        }

    @functools.cached_property
    def tier_numbers(self) -> Mapping[int, str]:
        """Tiers by the number that tokens may name them by.

        Raises:
            ConfigError: two have the same.
        """
        numbers: dict[str, int] = dict(TIER_NUMBERS)
        for name, tier in self.tiers.items():
            if isinstance(tier, TierSettings) and tier.number is not None:
                numbers[name] = tier.number
        found: dict[int, str] = {}
        for name, number in numbers.items():
            if found.setdefault(number, name) != name:
                raise ConfigError(f"[gateway.tiers] {found[number]!r} and {name!r} both have number {number}")
        return found

    def tier_named(self, said: str | int | None) -> str | None:
        """The tier that a name or number stands for.

        Raises:
            ConfigError: there is none.
        """
        if said is None:
            return None
        name = self.tier_numbers.get(said) if isinstance(said, int) else said
        if name is None or name not in self.tier_texts:
            raise ConfigError(f"The tier {said!r} is not known here.")
        return name

    def tier_budgets(self) -> list[Budget]:
        """All tiers' budgets, each for the calls of its tier."""
        return [
            replace(budget, filters=(*budget.filters, Filter("tag", name, TIER_TAG)))
            for name, texts in self.tier_texts.items()
            for budget in map(Budget.parse, texts)
        ]

    def project_budgets(self) -> list[Budget]:
        """All projects' budgets, each for the calls of its project."""
        return [
            replace(budget, filters=(*budget.filters, Filter("tag", name, PROJECT_TAG)))
            for name, project in self.projects.items()
            for budget in map(Budget.parse, project.budgets)
        ]

    def all_routes(self) -> list[RouteSettings]:
        """The routes; where there are none, everything goes to the only provider."""
        if self.routes or not self.providers:
            return self.routes
        (only,) = self.providers
        return [RouteSettings(models=["*"], provider=only)]
