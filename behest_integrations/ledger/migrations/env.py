"""Runs the migrations on the connection that `sql.upgrade` hands over, in its transaction."""

from alembic import context

from behest_integrations.ledger.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transactional_ddl=False)
context.run_migrations()
