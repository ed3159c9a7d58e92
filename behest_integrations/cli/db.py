"""`behest db`: the tables that a ledger is in: their version, their change to this one's, their move."""

from __future__ import annotations

import click

from . import store as stores
from .group import Group


@click.group(cls=Group)
def db() -> None:
    """A ledger's tables: check, upgrade, copy."""


@db.command()
@stores.store_option
def check(store: str | None) -> None:
    """Whether the tables are this version's. Exit code 1 if they are not."""
    from ..ledger import schema

    url = stores.persistent(store)
    found = stores.kind_of(url).version(url)
    if found == schema.HEAD:
        click.echo(f"The tables are this version's ({found}).")
        return
    what = "There are no tables yet" if found is None else f"The tables are at {found}"
    if found is not None and found > schema.HEAD:
        raise click.ClickException(
            f"{what}, which a newer version of behest-integrations wrote: this one knows {schema.HEAD}. "
            "Upgrade the package."
        )
    raise click.ClickException(f"{what}; this version needs {schema.HEAD}. Run 'behest db upgrade'.")


@db.command()
@stores.store_option
def upgrade(store: str | None) -> None:
    """Make the tables, or bring them to this version's. Several at once do no harm."""
    from ..ledger import schema

    url = stores.persistent(store)
    kind = stores.kind_of(url)
    before = kind.version(url)
    if before == schema.HEAD:
        click.echo(f"Nothing to do: the tables are this version's ({before}).")
        return
    kind.upgrade(url)
    click.echo(f"The tables are this version's now ({schema.HEAD}; before: {before or 'none'}).")


@db.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
def copy(source: str, target: str) -> None:
    """Copy a ledger, all of it, into another database: `behest db copy behest.db postgresql+psycopg://…`.

    All of it or nothing; read back, and proved, at the end. Stop what uses the old one first.
    """
    from ..ledger import open_store, schema
    from ..ledger.moving import copy_books
    from ..ledger.sql import SQLLedger
    from ..reports import verify
    from ..rules.errors import ConfigError

    old, new = stores.persistent(source), stores.persistent(target)
    if not stores.kind_of(old).exists(old):
        raise ConfigError(stores.no_ledger(source))
    if stores.kind_of(old).version(old) != schema.HEAD:
        raise ConfigError(f"{source} is not at this version's tables: run 'behest db upgrade' for it first")
    there, here = stores.kind_of(old).to_read(old), stores.kind_of(new)
    if here.version(new) is None:
        here.upgrade(new)
    made = open_store(new)
    try:
        if not isinstance(there, SQLLedger) or not isinstance(made, SQLLedger):
            raise ConfigError("a ledger is copied from one database to another: SQLite, PostgreSQL")
        copied = copy_books(there, made, lambda name, count: click.echo(f"{count:>12,} {name}"))
        findings = verify(made)
    finally:
        made.close()
        there.close()
    for finding in findings:
        click.echo(str(finding))
    if findings:
        raise click.ClickException(
            f"Copied as it was, but there are {len(findings)} flaws in it: see 'behest verify' there."
        )
    click.echo(f"{sum(copied.values()):,} rows copied and read back; all sums agree.")
