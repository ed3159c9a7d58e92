"""Who is told of what: `[alerts]` of `behest.toml`.

[alerts]
burn_rate = true          # a budget that will run out before its window ends
anomaly = 10              # a session that spends ten times what is usual in its project

[[alerts.webhooks]]
url_env = "ALERTS_URL"    # or url = "https://…"
secret_env = "ALERTS_SECRET"
shape = "json"            # or slack, teams

[alerts.mail]
host = "smtp.example.com"
sender = "behest@example.com"
to = ["finance@example.com"]
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..rules.errors import ConfigError
from ..rules.wording import say_problems
from .alert import Kind


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WebhookSettings(_Strict):
    """Where alerts are posted to.

    Attributes:
        url, url_env: the address, or the environment's variable that has it.
        secret_env: the variable with the secret that posts are signed with.
        shape: ``json``: the alert as it is; ``slack``, ``teams``: as their incoming webhooks take it.
        kinds: which alerts; default: all.
    """

    url: str | None = None
    url_env: str | None = None
    secret_env: str | None = None
    shape: Literal["json", "slack", "teams"] = "json"
    timeout: float = Field(default=10.0, gt=0, le=60)
    kinds: list[Kind] | None = None

    @property
    def address(self) -> str:
        """Where to.

        Raises:
            ConfigError: there is no address.
        """
        found = self.url or _from_environment(self.url_env, "an alert's webhook")
        parts = urlsplit(found or "")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("a webhook of [alerts] has a url (http or https), or a url_env that has it")
        return found or ""

    @property
    def secret(self) -> str | None:
        """What posts are signed with.

        Raises:
            ConfigError: the variable that should have it is not set.
        """
        return _from_environment(self.secret_env, "an alert's webhook's secret")

    @property
    def name(self) -> str:
        """What the ledger calls it. An address may be a secret itself."""
        digest = hashlib.sha256(self.address.encode()).hexdigest()[:8]
        return f"{self.shape} {urlsplit(self.address).hostname} {digest}"


class MailSettings(_Strict):
    """Where alerts are mailed to, by SMTP.

    Attributes:
        security: ``starttls`` (port 587), ``tls`` (port 465), or ``none``.
        user, password_env: to log in with; the variable that has the password.
    """

    host: str
    port: int | None = None
    sender: str
    to: list[str] = Field(min_length=1)
    security: Literal["starttls", "tls", "none"] = "starttls"
    user: str | None = None
    password_env: str | None = None
    timeout: float = Field(default=20.0, gt=0, le=60)
    kinds: list[Kind] | None = None

    @property
    def password(self) -> str:
        """To log in with.

        Raises:
            ConfigError: the variable that should have it is not set.
        """
        return _from_environment(self.password_env, "the mail server's password") or ""

    @property
    def name(self) -> str:
        """What the ledger calls it."""
        return f"mail {', '.join(self.to)}"


class AlertSettings(_Strict):
    """What is told, and to whom.

    Attributes:
        burn_rate: whether to tell of budgets that will run out before their window ends.
        anomaly: how many times the usual a session spends that is told of; None: none is.
        unpriced, over_bound: whether to tell, once a day and model, of calls without a price, and of
            calls that were billed beyond their worst case.
        every: seconds between two looks at burn rates and sessions; one process looks for all.
        retry: seconds before what failed is tried again; twice as long each time, up to an hour.
    """

    webhooks: list[WebhookSettings] = Field(default_factory=list)
    mail: MailSettings | None = None
    burn_rate: bool = True
    anomaly: int | None = Field(default=10, ge=2)
    unpriced: bool = True
    over_bound: bool = True
    every: float = Field(default=60.0, ge=0.1)
    retry: float = Field(default=2.0, gt=0)

    @classmethod
    def of(cls, said: Mapping[str, Any] | AlertSettings) -> AlertSettings:
        """The settings that `[alerts]` says.

        Raises:
            ConfigError: it says something that cannot be used.
        """
        if isinstance(said, AlertSettings):
            return said
        try:
            found = cls.model_validate(said)
        except ValidationError as error:
            raise ConfigError(f"[alerts] cannot be used: {say_problems(error, cls, said)}") from None
        for webhook in found.webhooks:
            _ = webhook.address, webhook.secret
        return found


def _from_environment(name: str | None, what: str) -> str | None:
    if name is None:
        return None
    found = os.environ.get(name)
    if not found:
        raise ConfigError(f"{what} is to be in the environment's {name}, which is not set")
    return found
