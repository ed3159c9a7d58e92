"""What is read from a ledger, proved of it, and put right in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from . import store as stores
from .shown import narrows, shows

if TYPE_CHECKING:
    from ..ledger import Ledger
    from ..reports import Asked, Shown


@click.command()
@narrows
@click.option(
    "--by",
    default="session",
    show_default=True,
    help="session, user, project, tenant, model, operation, stage, hour, day, month or tag:NAME; several "
    "with commas.",
)
@shows
def report(ledger: Ledger, by: str, asked: Asked) -> Shown:
    """What was spent: by session, user, project, model, day, tag."""
    from ..reports.spending import show_spending
    from ..reports.stages import with_stages

    shown = show_spending(ledger, asked, groups(by))
    return with_stages(shown, ledger, asked) if by == "session" else shown


def groups(by: str) -> tuple[str, ...]:
    """The groups of `--by`."""
    return tuple(g.strip() for g in by.split(",") if g.strip())


@click.command()
@shows
@click.option("--all", "everything", is_flag=True, help="Windows that have passed, too.")
def budgets(ledger: Ledger, everything: bool) -> Shown:
    """Each bucket: spent, held, left, and when it resets."""
    from ..reports import Asked
    from ..reports.budgets import show_budgets

    return show_budgets(ledger, Asked(), everything=everything)


@click.command()
@shows
def verify(ledger: Ledger) -> Shown:
    """Prove that the buckets equal the ledger. Exit code 1 if they do not."""
    from ..reports import Asked
    from ..reports.verify import show_proof

    return show_proof(ledger, Asked(), expired=_sweep(ledger.url))


def _sweep(url: str) -> int:
    """Book what calls left behind whose lease has run out; none where the ledger can only be read."""
    from ..ledger import open_store
    from ..meter import Meter
    from ..rules.errors import StoreError

    try:
        with Meter(open_store(url), on_unknown=stores.config().on_unknown or "assume") as meter:
            return meter.sweep()
    except StoreError:
        return 0


@click.command()
@stores.store_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def repair(store: str | None, yes: bool) -> None:
    """Rebuild the buckets from the ledger."""
    from ..reports import repair as mend
    from ..reports import verify as prove

    ledger = stores.existing(store, to_write=True)
    findings = prove(ledger)
    if not findings:
        click.echo("Nothing to repair: all sums agree.")
        return
    for finding in findings:
        click.echo(str(finding))
    if not yes:
        click.confirm(f"Put these right in {len(findings)} buckets?", abort=True)
    click.echo(f"{len(mend(ledger))} buckets rebuilt from the ledger.")


def command_of(name: str, make: Callable[[Ledger, Asked], Shown]) -> click.Command:
    """The command that shows a report; how to write one is told in `reports.shown`."""

    @click.command(name, help=make.__doc__ or "A report of another package.")
    @narrows
    @shows
    def command(ledger: Ledger, asked: Asked) -> Shown:
        return make(ledger, asked)

    return command
