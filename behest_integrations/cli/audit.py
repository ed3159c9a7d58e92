"""What was allowed, refused and changed, and the proof that it is as it was written."""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from . import store as stores
from .shown import narrows

if TYPE_CHECKING:
    from ..reports import Asked

_LAST = 50
_WHO = (("tenant", "tenant"), ("project", "project"), ("user", "user_id"), ("session", "session_id"))


@click.command()
@narrows
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(("allowed", "masked", "shadow", "refused", "budget", "key", "admin", "pruned")),
    help="Only these; repeatable.",
)
@click.option("--rule", help="Only rules with this in their name.")
@click.option(
    "--last", type=click.IntRange(1), help=f"Only the newest so many. Default: {_LAST}; with --json: all."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON, a line each; times in ms since 1970.")
@click.option(
    "--verify", "proof", is_flag=True, help="Prove that nothing was changed. Exit code 1 if something was."
)
@click.option(
    "--holds", metavar="HASH", help="With --verify: a hash that was noted before must still be there."
)
@click.option("--prune", "days", type=click.IntRange(1), metavar="DAYS", help="Let go of what is older.")
@stores.store_option
def audit(
    store: str | None,
    asked: Asked,
    kinds: tuple[str, ...],
    rule: str | None,
    last: int | None,
    as_json: bool,
    proof: bool,
    holds: str | None,
    days: int | None,
) -> None:
    """What was allowed, refused and changed: who, by which rule, what was found. Never a text."""
    from ..ledger.retention import prune
    from ..reports.audit import decisions, has, prove

    ledger = stores.existing(store, to_write=days is not None)
    if holds is not None and not proof:
        raise click.UsageError("--holds goes with --verify")
    if days is not None:
        gone = prune(ledger, int(time.time() * 1000), days)
        click.echo(f"{gone} records of more than {days} days ago are let go of; what is left can be proved.")
    elif proof:
        found = prove(ledger)
        for flaw in found.flaws:
            click.echo(str(flaw))
        missing = holds is not None and not has(ledger, holds)
        if missing:
            click.echo(f"The record {holds} is not there.")
        wrong = len(found.flaws) + missing
        gone_too = f", {found.pruned} let go of" if found.pruned else ""
        click.echo(
            f"{found.records} records in {len(found.heads)} chains{gone_too}: "
            + (f"{wrong} flaws." if wrong else "all as they were written.")
        )
        for chain, head in found.heads.items():
            click.echo(f"  {chain}  {head}")
        sys.exit(1 if wrong else 0)
    else:
        last = last if last is not None or as_json else _LAST
        count = 0
        for decision in decisions(ledger, asked, kinds=kinds, rule=rule, last=last):
            count += 1
            click.echo(json.dumps(decision, ensure_ascii=False) if as_json else _line(decision))
        if not count and not as_json:
            click.echo("Nothing of that is in the audit. Calls are in it where there is a policy ([policy]).")


def _line(decision: dict[str, Any]) -> str:
    at = datetime.fromtimestamp(decision["at"] / 1000, timezone.utc)
    whom = " ".join(f"{name}={decision[key]}" for name, key in _WHO if decision[key] is not None)
    found = " ".join(f"{name}={value}" for name, value in decision["details"].items())
    parts = (f"{at:%Y-%m-%d %H:%M:%S}", decision["kind"], decision["rule"], decision["model"], whom, found)
    # A model's name comes from outside: it must not move a terminal's cursor.
    return "".join(c if c.isprintable() else "?" for c in "  ".join(str(p) for p in parts if p))
