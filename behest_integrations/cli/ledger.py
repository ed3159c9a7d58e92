"""What is read from a ledger, proved of it, and put right in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
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
@click.option("--top", type=click.IntRange(1), metavar="N", help="The N dearest lines, and the others' sum.")
@click.option(
    "--compare",
    type=click.Choice(["previous"]),
    help="Beside it, the period of the same length before --since; of whole months, as many months.",
)
@shows
def report(ledger: Ledger, by: str, asked: Asked, top: int | None, compare: str | None) -> Shown:
    """What was spent: by session, user, project, model, day, tag."""
    from ..reports.compare import show_comparison
    from ..reports.page import page
    from ..reports.spending import show_spending
    from ..reports.stages import with_stages

    if compare is not None:
        if asked.since is None:
            raise click.UsageError("--compare previous needs a period: say --since, such as --since 7d")
        return show_comparison(ledger, asked, groups(by), top=top)
    shown = show_spending(ledger, asked, groups(by), top=top)
    shown = replace(shown, page=lambda: page(ledger, asked, groups(by), top=top))
    return with_stages(shown, ledger, asked) if by == "session" else shown


def groups(by: str) -> tuple[str, ...]:
    """The groups of `--by`."""
    return tuple(g.strip() for g in by.split(",") if g.strip())


@click.command()
@stores.store_option
@click.option("--session", help="Only this session.")
@click.option("--user", help="Only this user.")
@click.option("--project", help="Only this project.")
@click.option("--tenant", help="Only this tenant.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def statusline(
    store: str | None,
    as_json: bool,
    session: str | None,
    user: str | None,
    project: str | None,
    tenant: str | None,
) -> None:
    """Today's spending and the fullest budget, in a line for a prompt or a bar.

    Nothing is said, and that is no error, where there is no ledger and none was named.
    """
    from ..reports import Asked
    from ..reports.statusline import show_statusline

    ledger = stores.find(store)
    if ledger is None:
        if store is not None:
            stores.existing(store)
        return
    zone = stores.config().timezone or "UTC"
    shown = show_statusline(ledger, Asked(None, None, session, user, project, tenant, zone))
    click.echo(json.dumps(shown.rows[0], ensure_ascii=False) if as_json else shown.table())


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
