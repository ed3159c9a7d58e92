"""One decorator for every report: `--store`, `--json`, `--csv`, and how each of these is printed."""

from __future__ import annotations

import csv
import functools
import json
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from . import store as stores

if TYPE_CHECKING:
    from ..reports import Shown


def shows(make: Callable[..., Shown]) -> Callable[..., None]:
    """Give a command that makes a `Shown` from a ledger the options that all such have."""

    @functools.wraps(make)
    def command(store: str | None, as_json: bool, as_csv: bool, **options: Any) -> None:
        if as_json and as_csv:
            raise click.UsageError("--json or --csv, not both")
        shown = make(stores.existing(store), **options)
        if as_json:
            _print_json(shown)
        elif as_csv:
            _print_csv(shown)
        else:
            _print(shown)
        sys.exit(shown.exit_code)

    command = click.option("--csv", "as_csv", is_flag=True, help="As CSV.")(command)
    command = click.option(
        "--json", "as_json", is_flag=True, help="As JSON; USD as text or in nano-dollars."
    )(command)
    return stores.store_option(command)


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
        click.option("--until", callback=_moment, metavar="DATE", help="Only before this date (UTC)."),
        click.option("--since", callback=_moment, metavar="DATE", help="Only from this date (UTC) on."),
    ):
        narrowed = option(narrowed)
    return narrowed


def _moment(_ctx: click.Context, _param: click.Parameter, value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a date such as 2026-01-31 or 2026-01-31T12:00") from None
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
