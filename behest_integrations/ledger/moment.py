"""Reading books as they are at one moment, while they are written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa


@contextmanager
def at_one_moment(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection whose statements all see the books as of its first one."""
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        yield connection
