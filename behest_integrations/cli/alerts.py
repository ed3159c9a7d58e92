"""Alerts: who is told, what waits to be told, and whether it arrives."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import click

from ..rules.errors import ConfigError
from . import store as stores
from .group import Group

if TYPE_CHECKING:
    from ..engine.alerting import AlertSettings
    from ..engine.sinks import Sink


@click.group(cls=Group)
def alerts() -> None:
    """Alerts of thresholds, burn rates, sessions: [alerts] of behest.toml."""


def _told() -> tuple[AlertSettings, list[Sink]]:
    from ..engine.alerting import AlertSettings
    from ..engine.sinks import sinks_of

    said = stores.config().alerts
    if said is None:
        raise ConfigError("nobody is told: name a webhook or mail in [alerts] of behest.toml")
    settings = AlertSettings.of(said)
    found = sinks_of(settings, None)
    if not found:
        raise ConfigError("[alerts] names nobody who is told: [[alerts.webhooks]] or [alerts.mail]")
    return settings, found


@alerts.command("test")
def test() -> None:
    """Send one alert to each who is told, now. Exit code 1 if one does not take it."""
    from ..engine.alert import Alert
    from ..engine.outbox import wall_ms

    _settings, sinks = _told()
    alert = Alert(f"test-{os.urandom(8).hex()}", "test", wall_ms(), "This is a test of behest's alerts.")
    failed = 0
    for sink in sinks:
        try:
            sink.send(alert)
            click.echo(f"{sink.name}: taken")
        except Exception as error:
            failed += 1
            click.echo(f"{sink.name}: {type(error).__name__}: {error}", err=True)
    raise SystemExit(1 if failed else 0)


@alerts.command("send")
@stores.store_option
def send(store: str | None) -> None:
    """Look for what is new, and tell what is due. For cron, where no process of yours lives long."""
    from ..engine.engine import now_ms
    from ..engine.outbox import Outbox
    from ..engine.watching import watch

    settings, sinks = _told()
    ledger = stores.existing(store, to_write=True)
    fresh = watch(ledger, settings, sinks, now_ms())
    told = Outbox(ledger, sinks, retry=settings.retry).deliver()
    click.echo(f"{fresh} new, {told} told.")


@alerts.command("list")
@stores.store_option
@click.option("--all", "everything", is_flag=True, help="Those that have been told, too.")
@click.option("--json", "as_json", is_flag=True, help="As JSON; times in ms since 1970.")
def list_(store: str | None, everything: bool, as_json: bool) -> None:
    """What waits to be told, and why."""
    from ..engine.outbox import alert_in
    from ..ledger.outbox import NOBODY

    found = [
        m
        for m in stores.existing(store).submit(lambda rows: rows.all_messages())
        if m.sink != NOBODY and (everything or m.done is None)
    ]
    if as_json:
        rows = [
            {"alert": alert_in(m.body).as_dict(), "sink": m.sink, "tries": m.tries, "due": m.due,
             "done": m.done, "error": m.error}
            for m in found
        ]  # fmt: skip
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    elif not found:
        click.echo("Nothing waits to be told.")
    for m in found if not as_json else ():
        alert = alert_in(m.body)
        state = "waits" if m.done is None else "given up" if m.error else "told"
        why = f" ({m.tries} tries; {m.error})" if m.error else ""
        click.echo(f"{alert.kind}: {alert.text} → {m.sink}: {state}{why}")
