"""What finance takes away: exports, chargeback, invoices held against the books."""

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
    done = write(
        ledger,
        sys.stdout if output is None else output,
        form,
        asked,
        pricing=said.pricing(),
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


@click.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option("--format", "form", help="Of the files. Default: what they look like.")
@click.option(
    "--map", "mapping", metavar="date=DAY,model=MODEL,cost=AMOUNT", help="The columns of any other CSV."
)
@click.option("--provider", help="Whose calls are compared. Default: the invoice's.")
@click.option("--timezone", "zone", help="Of the invoice's days. Default: what fits best, from UTC on.")
@click.option("--book", is_flag=True, help="Write the differences as entries, so that none is left.")
@shows
def reconcile(
    ledger: Ledger,
    files: tuple[Path, ...],
    form: str | None,
    mapping: str | None,
    provider: str | None,
    zone: str | None,
    book: bool,
) -> Shown:
    """Hold a provider's own export against the books: by day and model, and why they differ.

    OpenAI's usage and costs (JSON or CSV; give both files), Anthropic's usage and cost reports, Google's
    billing export, OpenRouter's activity, or any CSV by --map.
    """
    from ..engine.engine import now_ms
    from ..reports.finance.corrections import book_differences
    from ..reports.finance.invoices import read_invoice
    from ..reports.finance.reconcile import reconcile as compare
    from ..reports.finance.reconcile import show_reconciliation
    from ..rules.budgets import check_zone

    columns = dict(_pair(part) for part in mapping.split(",")) if mapping else None
    at = check_zone(zone or "UTC")
    invoice, whose = read_invoice(files, format=form, columns=columns, zone=at)
    found = compare(
        ledger,
        invoice,
        provider=provider or whose,
        pricing=stores.config().pricing(),
        zone=at,
        find_zone=zone is None,
    )
    if book:
        # Reports open the ledger to be read alone.
        books = stores.existing(ledger.url, to_write=True)
        many = book_differences(books, found, now=now_ms(), source=", ".join(f.name for f in files))
        click.echo(f"{many} corrections are booked.", err=True)
    return show_reconciliation(found)


def _pair(part: str) -> tuple[str, str]:
    name, equals, column = part.partition("=")
    if not equals or not name.strip() or not column:
        raise click.UsageError(f"--map says date=DAY,model=MODEL,cost=AMOUNT; {part!r} is none of that")
    return name.strip(), column


@click.command()
@stores.store_option
def reprice(store: str | None) -> None:
    """Price the calls that had no price when they were booked. Those that had one are not touched."""
    from ..engine.engine import now_ms
    from ..reports.finance.repricing import reprice as do
    from ..rules.units import format_usd

    done = do(
        stores.existing(store, to_write=True),
        stores.config().pricing(),
        now=now_ms(),
    )
    click.echo(f"{done.calls:,} calls have a price now: {format_usd(done.cost)} in all.")
    for model, many in sorted(done.unknown.items()):
        click.echo(f"No price is known for {model!r} ({many:,} calls): write it in behest.toml, [prices].")
