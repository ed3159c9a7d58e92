"""Who is told of an alert, and how: webhooks, mail, a function. One attempt; trying again is the outbox's."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any, Protocol

from .alert import Alert, tell
from .alerting import AlertSettings, MailSettings, WebhookSettings


class Sink(Protocol):
    """Somebody who is told."""

    @property
    def name(self) -> str:
        """What the ledger calls it."""

    @property
    def timeout(self) -> float:
        """Seconds that an attempt may take."""

    def wants(self, kind: str) -> bool:
        """Whether it is told of alerts of this kind."""

    def send(self, alert: Alert) -> None:
        """Tell. Whatever it raises, it is tried again."""


def sinks_of(settings: AlertSettings, told: Callable[[Alert], object] | None) -> list[Sink]:
    """Everybody who is told."""
    found: list[Sink] = [Webhook(webhook) for webhook in settings.webhooks]
    if settings.mail is not None:
        found.append(Mail(settings.mail))
    if told is not None:
        found.append(Callback(told))
    return found


class Callback:
    """A function, called with the `Alert`; it may be a coroutine function."""

    name = "callback"
    timeout = 30.0

    def __init__(self, told: Callable[[Alert], object]) -> None:
        self._told = told

    def wants(self, kind: str) -> bool:
        return True

    def send(self, alert: Alert) -> None:
        tell(self._told, alert)


class Webhook:
    """A POST. Signed as https://www.standardwebhooks.com says, where there is a secret."""

    def __init__(self, settings: WebhookSettings) -> None:
        self._settings = settings
        self.name, self.timeout = settings.name, settings.timeout

    def wants(self, kind: str) -> bool:
        return self._settings.kinds is None or kind in self._settings.kinds

    def send(self, alert: Alert) -> None:
        from urllib.request import HTTPErrorProcessor, HTTPRedirectHandler, Request, build_opener

        class NoRedirects(HTTPRedirectHandler):
            def redirect_request(self, *args: Any, **more: Any) -> None:
                return None

        body = json.dumps(_SHAPES[self._settings.shape](alert), ensure_ascii=False).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "behest-integrations"}
        headers |= signed(alert.id, body, self._settings.secret, int(time.time()))
        request = Request(self._settings.address, body, headers, method="POST")
        # An address in a configuration is followed nowhere else.
        opener = build_opener(NoRedirects, HTTPErrorProcessor)
        with opener.open(request, timeout=self._settings.timeout) as answer:
            answer.read(1024)


def signed(id: str, body: bytes, secret: str | None, now: int) -> dict[str, str]:
    """The headers that say which message it is, and prove whose.

    Args:
        secret: ``whsec_`` and base64, or any text.
        now: seconds since 1970.
    """
    headers = {"webhook-id": id, "webhook-timestamp": str(now)}
    if secret is not None:
        key = base64.b64decode(secret[6:]) if secret.startswith("whsec_") else secret.encode()
        said = b".".join((id.encode(), str(now).encode(), body))
        proof = base64.b64encode(hmac.new(key, said, hashlib.sha256).digest()).decode()
        headers["webhook-signature"] = f"v1,{proof}"
    return headers


def _slack(alert: Alert) -> dict[str, Any]:
    # https://docs.slack.dev/messaging/formatting-message-text: these three are all that is special.
    text = alert.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return {"text": text}


def _teams(alert: Alert) -> dict[str, Any]:
    # An adaptive card, as the incoming webhooks of Teams' workflows take it.
    block = {"type": "TextBlock", "text": _no_markdown(alert.text), "wrap": True}
    title = {"type": "TextBlock", "text": f"behest: {alert.kind}", "weight": "Bolder"}
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": [title, block],
    }
    attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "content": card}
    return {"type": "message", "attachments": [attachment]}


def _no_markdown(text: str) -> str:
    """Ids come from outside: none may make a link."""
    return "".join(f"\\{c}" if c in "[]()*_\\`" else c for c in text)


_SHAPES: dict[str, Callable[[Alert], dict[str, Any]]] = {
    "json": lambda alert: {"type": f"behest.{alert.kind}", **alert.as_dict()},
    "slack": _slack,
    "teams": _teams,
}


class Mail:
    """A message by SMTP."""

    def __init__(self, settings: MailSettings) -> None:
        self._settings = settings
        self.name, self.timeout = settings.name, settings.timeout

    def wants(self, kind: str) -> bool:
        return self._settings.kinds is None or kind in self._settings.kinds

    def send(self, alert: Alert) -> None:
        import smtplib
        import ssl
        from email.message import EmailMessage

        said = self._settings
        message = EmailMessage()
        message["From"], message["To"] = said.sender, ", ".join(said.to)
        message["Subject"] = f"behest: {_one_line(alert.text)[:120]}"
        message["Message-ID"] = f"<{alert.id}@behest-integrations>"
        told = (f"{name}: {value}" for name, value in alert.details.items() if value is not None)
        message.set_content("\n".join((alert.text, "", *told)))
        port = said.port or {"tls": 465, "starttls": 587, "none": 25}[said.security]
        context = ssl.create_default_context()
        server: smtplib.SMTP = (
            smtplib.SMTP_SSL(said.host, port, timeout=said.timeout, context=context)
            if said.security == "tls"
            else smtplib.SMTP(said.host, port, timeout=said.timeout)
        )
        with server:
            if said.security == "starttls":
                server.starttls(context=context)
            if said.user is not None:
                server.login(said.user, said.password)
            server.send_message(message)


def _one_line(text: str) -> str:
    return " ".join(text.split())
