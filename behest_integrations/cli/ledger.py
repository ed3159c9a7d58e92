"""What is read from a ledger, proved of it, and put right in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
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
@click.option("--all", "whole", is_flag=True, help="Prove again what was proved before.")
@click.option(
    "--sealed",
    is_flag=True,
    help="The same, and show the newest seal: kept elsewhere, it can be asked for later.",
)
@click.option("--holds", metavar="HASH", help="A seal that was noted before must still be there.")
@shows
def verify(ledger: Ledger, whole: bool, sealed: bool, holds: str | None) -> Shown:
    """Prove the books: costs, counters, reports, seals. Exit code 1 if anything is wrong."""
    from ..reports import Asked, Proof
    from ..reports.verify import show_proof

    expired = _tidy(ledger)

    def remember(proof: Proof) -> None:
        if proof.proven:
            with _writable(ledger) as writable:
                _mark_proven(writable, proof.proven)

    return show_proof(
        ledger, Asked(), expired=expired, whole=whole, sealed=sealed, holds=holds, remember=remember
    )


def _mark_proven(ledger: Ledger | None, proven: Mapping[int, str]) -> None:
    """Remember which blocks were proved, where there is a ledger that can be written."""
    from sqlalchemy.exc import SQLAlchemyError

    from ..ledger import closing
    from ..ledger.sql import SQLLedger

    if isinstance(ledger, SQLLedger):
        with suppress(SQLAlchemyError):  # then it is proved again the next time
            closing.mark_proven(ledger, proven, ledger.now_ms())


def _tidy(ledger: Ledger) -> int:
    """Book what calls left behind whose lease has run out, and close blocks; how many those calls were. None
    where the ledger can only be read."""
    from sqlalchemy.exc import SQLAlchemyError

    from ..ledger.closing import close_blocks
    from ..ledger.sql import SQLLedger
    from ..meter import Meter
    from ..rules.errors import StoreError

    with _writable(ledger) as writable:
        if writable is None:
            return 0
        try:
            meter = Meter(writable, on_unknown=stores.config().on_unknown or "assume")
            expired = meter.sweep()
            if isinstance(writable, SQLLedger):
                close_blocks(writable, writable.now_ms())
            return expired
        except (StoreError, SQLAlchemyError):
            return 0


@contextmanager
def _writable(ledger: Ledger) -> Iterator[Ledger | None]:
    """The same ledger, to be written; None where it can only be read."""
    from ..ledger import open_store
    from ..rules.errors import StoreError

    if not ledger.read_only:
        yield ledger
        return
    try:
        opened = open_store(ledger.url)
    except StoreError:
        yield None
        return
    try:
        yield opened
    finally:
        opened.close()


@click.command()
@click.option("--older-than", required=True, metavar="400d", help="How old entries must be: days, or weeks.")
@stores.store_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def prune(store: str | None, older_than: str, yes: bool) -> None:
    """Replace old entries by their sums. Reports, budgets and proofs stay as they are."""
    from ..ledger.pruning import prune as cut
    from ..ledger.sql import SQLLedger

    days = _days(older_than)
    ledger = stores.existing(store, to_write=True)
    if not isinstance(ledger, SQLLedger):
        raise click.UsageError(f"{ledger.url} cannot be pruned")
    if not yes:
        click.confirm(
            f"Replace entries of more than {days} days ago by their sums? They cannot be had back", abort=True
        )
    _tidy(ledger)
    done = cut(ledger, ledger.now_ms(), days)
    click.echo(f"{done.before:,} entries in {done.blocks:,} blocks are {done.after:,} sums now.")
    if done.skipped:
        raise click.ClickException(
            f"{done.skipped:,} blocks are not as they were sealed and were left alone: 'behest verify --all'."
        )


def _days(text: str) -> int:
    number, unit = text[:-1], text[-1:]
    if unit not in ("d", "w") or not number.isdecimal() or not int(number):
        raise click.UsageError(
            f"--older-than is a number of days or weeks, such as 400d or 60w, not {text!r}"
        )
    return int(number) * (7 if unit == "w" else 1)


@click.command()
@stores.store_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def repair(store: str | None, yes: bool) -> None:
    """Rebuild the buckets from the ledger."""
    from ..reports import prove
    from ..reports import repair as mend

    ledger = stores.existing(store, to_write=True)
    proof = prove(ledger, whole=True)
    for flaw in proof.flaws:
        click.echo(str(flaw))
    if not proof.findings:
        also = " What is wrong above is in the entries themselves: restore a backup." if proof.flaws else ""
        click.echo(f"Nothing to repair: all sums agree.{also}")
        return
    for finding in proof.findings:
        click.echo(str(finding))
    if not yes:
        click.confirm(f"Put these right in {len(proof.findings)} buckets?", abort=True)
    click.echo(f"{len(mend(ledger))} buckets rebuilt from the ledger.")


def command_of(name: str, make: Callable[[Ledger, Asked], Shown]) -> click.Command:
    """The command that shows a report; how to write one is told in `reports.shown`."""

    @click.command(name, help=make.__doc__ or "A report of another package.")
    @narrows
    @shows
    def command(ledger: Ledger, asked: Asked) -> Shown:
        return make(ledger, asked)

    return command
