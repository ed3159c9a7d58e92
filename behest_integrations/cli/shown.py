"""One decorator for every report: `--store`, `--json`, `--csv`, and how each of these is printed."""

from __future__ import annotations

import csv
import functools
import json
import re
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import store as stores

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..reports import Shown


_EVERY = 2.0
"""Seconds between two looks with `--watch`."""


def shows(make: Callable[..., Shown]) -> Callable[..., None]:
    """Give a command that makes a `Shown` from a ledger the options that all such have."""

    @functools.wraps(make)
    def command(
        store: str | None, as_json: bool, as_csv: bool, watch: bool, html: str | None, **options: Any
    ) -> None:
        chosen = {"--json": as_json, "--csv": as_csv, "--watch": watch, "--html": html is not None}
        forms = [name for name, is_chosen in chosen.items() if is_chosen]
        if len(forms) > 1:
            raise click.UsageError(f"{' or '.join(forms)}, not both")
        if watch and not sys.stdout.isatty():
            raise click.UsageError("--watch needs a terminal; --json or --csv is for programs")
        ledger = stores.existing(store)
        if watch:
            return _watch(lambda: make(ledger, **options))
        shown = make(ledger, **options)
        if html is not None:
            _write_page(shown, html)
        elif as_json:
            _print_json(shown)
        elif as_csv:
            _print_csv(shown)
        else:
            _print(shown)
        sys.exit(shown.exit_code)
        return None

    command = click.option(
        "--html",
        metavar="FILE",
        callback=stores.not_empty,
        help="As one page that can be mailed; - prints it.",
    )(command)
    command = click.option("--watch", is_flag=True, help="On and on, until Ctrl-C.")(command)
    command = click.option("--csv", "as_csv", is_flag=True, help="As CSV.")(command)
    command = click.option(
        "--json", "as_json", is_flag=True, help="As JSON; USD as text or in nano-dollars."
    )(command)
    return stores.store_option(command)


def whose(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say whose, as `asked`."""

    @functools.wraps(command)
    def narrowed(*args: Any, **options: Any) -> Any:
        from ..reports import Asked

        said = {name: options.pop(name) for name in ("session", "user", "project", "tenant")}
        return command(*args, asked=Asked(**said), **options)

    for name in ("tenant", "project", "user", "session"):
        narrowed = click.option(f"--{name}", help=f"Only this {name}.")(narrowed)
    return narrowed


def narrows(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that make an `Asked`, which it takes as `asked`."""

    @functools.wraps(command)
    def narrowed(
        *args: Any,
        since: datetime | None,
        until: datetime | None,
        session: str | None,
        user: str | None,
        project: str | None,
        tenant: str | None,
        zone: str | None,
        **options: Any,
    ) -> Any:
        from ..reports import Asked
        from ..rules.budgets import check_zone

        if since is not None and until is not None and since >= until:
            raise click.UsageError("--since is a time before --until")
        zone = check_zone(zone or stores.config().timezone or "UTC")
        asked = Asked(since, until, session, user, project, tenant, zone)
        return command(*args, asked=asked, **options)

    for option in (
        click.option("--timezone", "zone", default=None, help="Of days. Default: behest.toml's, or UTC."),
        click.option("--tenant", help="Only this tenant."),
        click.option("--project", help="Only this project."),
        click.option("--user", help="Only this user."),
        click.option("--session", help="Only this session."),
        click.option(
            "--until", callback=_moment, metavar="DATE", help="Only before this date (UTC), or time ago."
        ),
        click.option(
            "--since",
            callback=_moment,
            metavar="DATE",
            help="Only from this date (UTC) on, or 24h, 7d, 4w ago.",
        ),
    ):
        narrowed = option(narrowed)
    return narrowed


def _moment(_ctx: click.Context, _param: click.Parameter, value: str | None) -> datetime | None:
    if value is None:
        return None
    if (ago := re.fullmatch(r"(\d{1,5})([hdw])", value)) is not None:
        length = timedelta(hours=int(ago[1]) * {"h": 1, "d": 24, "w": 168}[ago[2]])
        return datetime.now(timezone.utc) - length
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not a date such as 2026-01-31 or 2026-01-31T12:00, nor a time ago such as 7d"
        ) from None
    return at if at.tzinfo else at.replace(tzinfo=timezone.utc)


def _print(shown: Shown) -> None:
    if not shown.rows and shown.empty:
        click.echo(shown.empty)
        return
    from ..reports.look import show

    table = shown.table()
    if isinstance(table, str):
        click.echo(table)
    else:
        show(table)


def _watch(make: Callable[[], Shown]) -> None:
    """Show it anew every few seconds; Ctrl-C is how that ends."""
    from rich.live import Live
    from rich.text import Text

    from ..reports.look import console

    def now() -> RenderableType:
        shown = make()
        return Text(shown.empty) if not shown.rows and shown.empty else shown.table()

    try:
        with Live(now(), console=console(), auto_refresh=False) as live:
            while True:
                time.sleep(_EVERY)
                live.update(now(), refresh=True)
    except KeyboardInterrupt:
        return


def _write_page(shown: Shown, where: str) -> None:
    if shown.page is None:
        raise click.UsageError("this has no page: 'behest report --html FILE' has one")
    text = shown.page()
    if where == "-":
        click.echo(text, nl=False)
        return
    Path(where).write_text(text, encoding="utf-8")
    click.echo(f"Written to {where}.", err=True)


def _print_json(shown: Shown) -> None:
    data = shown.data if shown.data is not None else list(shown.rows)
    click.echo(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def _print_csv(shown: Shown) -> None:
    columns = shown.columns or list(shown.rows[0] if shown.rows else ())
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    for row in shown.rows:
        writer.writerow({name: _inert(value) for name, value in row.items()})


def _inert(value: Any) -> Any:
    """Ids come from outside: a spreadsheet must not take one for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
