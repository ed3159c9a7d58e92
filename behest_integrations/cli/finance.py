"""What finance takes away: exports, chargeback."""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import store as stores
from .ledger import groups
from .shown import narrows, shows

if TYPE_CHECKING:
    from ..ledger import Ledger
    from ..reports import Asked, Shown

_NOT_TEXT = "Parquet is no text: name a file with --output FILE.parquet"


def _month(_ctx: click.Context, _param: click.Parameter, value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        return datetime.strptime(value, "%Y-%m").replace(tzinfo=timezone.utc)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a month such as 2026-01") from None


@click.command()
@narrows
@stores.store_option
@click.option(
    "--format",
    "form",
    type=click.Choice(("focus", "csv", "jsonl", "parquet")),
    default="focus",
    show_default=True,
    help="focus: a row for each day and kind of token. The others: one for each entry of the ledger.",
)
@click.option("--month", callback=_month, metavar="YYYY-MM", help="What was booked in this month (UTC).")
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A file. Default: standard output.",
)
def export(store: str | None, form: str, month: datetime | None, output: Path | None, asked: Asked) -> None:
    """The books as a file that finance's tools read: FOCUS 1.2 to 1.4, CSV, JSON lines, Parquet.

    What was booked once is never booked otherwise: a month that is over is the same file whenever it is
    exported. What is known better later is a correction in the month in which it became known.
    """
    from dataclasses import replace

    from ..prices import Pricing
    from ..reports.finance import CostCentres
    from ..reports.finance import export as write
    from ..rules.units import format_usd

    if month is not None:
        if asked.since is not None or asked.until is not None:
            raise click.UsageError("--month, or --since and --until")
        after = month.replace(year=month.year + month.month // 12, month=month.month % 12 + 1)
        asked = replace(asked, since=month, until=after)
    if form == "parquet" and output is None:
        raise click.UsageError(_NOT_TEXT)
    ledger = stores.existing(store)
    said = stores.config()
    arguments = said.arguments()
    done = write(
        ledger,
        sys.stdout if output is None else output,
        form,
        asked,
        pricing=Pricing(arguments["prices"], arguments.get("aliases")),
        centres=CostCentres(said.cost_centres),
    )
    if output is not None:
        click.echo(f"{done.rows:,} rows, {format_usd(done.cost)}, written to {output}", err=True)


@click.command()
@narrows
@click.option("--by", default="", help="Further groups within each centre, as of 'behest report'.")
@shows
def chargeback(ledger: Ledger, by: str, asked: Asked) -> Shown:
    """What was spent, by cost centre. What is mapped to none is a line of its own.

    Centres are [cost_centres] of behest.toml: patterns of projects, users, tenants and tags.
    """
    from ..reports.finance.centres import CostCentres, show_chargeback

    return show_chargeback(ledger, CostCentres(stores.config().cost_centres), asked, groups(by))
