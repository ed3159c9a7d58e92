"""Which version a ledger's tables are of, and how they are brought to this one's: by `migrations/`."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from ..rules.errors import StoreError
from . import schema


def schema_version(connection: sa.Connection, within: str | None = None) -> str | None:
    """The migration that a database is at; None: it is empty.

    Args:
        within: the schema in which the tables are; None: where they are found without a name.

    Raises:
        StoreError: it is somebody else's.
    """
    tables = sa.inspect(connection).get_table_names(within)
    if "alembic_version" not in tables:
        if tables:
            own = "a schema of its own: add ?schema=behest to its URL" if within is None else "another schema"
            raise StoreError(
                f"The database {connection.engine.url.database} has other tables "
                f"({', '.join(tables[:3])}) and no ledger: give the ledger a database of its own"
                + (f", or {own}." if connection.dialect.name == "postgresql" else "."),
                retryable=False,
            )
        return None
    table = sa.table("alembic_version", sa.column("version_num", sa.Text()), schema=within)
    version: str | None = connection.scalar(sa.select(table.c.version_num))
    return version


def upgrade(engine: sa.Engine, within: str | None = None) -> None:
    """Bring a ledger's schema to this version's, under the write lock.

    Args:
        within: the schema in which the tables are to be; it is made if there is none.

    Raises:
        StoreError: it was written by a newer version of this package.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.connect().execution_options(write=True) as connection, connection.begin():
        if within is not None:
            connection.execute(sa.schema.CreateSchema(within, if_not_exists=True))
            quoted = connection.dialect.identifier_preparer.quote(within)
            connection.exec_driver_sql(f"SET LOCAL search_path TO {quoted}")
        if schema_version(connection, within) == schema.HEAD:
            return  # another process was quicker
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise StoreError(
                f"The ledger {engine.url.database} cannot be brought to this version's schema: it is at "
                f"{schema_version(connection, within)}, and this version knows {schema.HEAD}. A newer "
                "version of behest-integrations has written it: use that one "
                "(pip install -U behest-integrations).",
                retryable=False,
            ) from error
