"""What the tests share: a sandbox provider and a ledger for each test; and what is made once for them all."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import certifi
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from support import close_loop

from behest_integrations.sandbox import Sandbox

# The many processes that the tests start would each compile what they import.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_configure(config: pytest.Config) -> None:
    """Each client reads all certificates that it trusts, in 25 ms. What is asked here is on this machine,
    by plain HTTP: one certificate is enough. (npm, which tests of JavaScript use, has a store of its own.)"""
    if not hasattr(config, "workerinput"):
        folder = Path(tempfile.mkdtemp(prefix="behest-trust-"))
        config.add_cleanup(lambda: shutil.rmtree(folder))
        first, end, _ = Path(certifi.where()).read_text("utf-8").partition("-----END CERTIFICATE-----\n")
        (folder / "one.pem").write_text(first + end, "utf-8")
        os.environ["SSL_CERT_FILE"] = str(folder / "one.pem")


def pytest_collection_finish(session: pytest.Session) -> None:
    """What the frameworks have brought into memory stays: no collection need go through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_loop() -> Iterator[None]:
    yield
    close_loop()


@pytest.fixture(autouse=True, scope="session")
def _migrated_once() -> Iterator[None]:
    """The migrations make the first new ledger of a process; for the others, what they have said to the
    database is said again: 10 ms in the place of 100. What upgrades an older ledger is not touched."""
    upgrade, said = command.upgrade, dict[str, list[tuple[str, Any]]]()

    def remembered(config: Config, revision: str, **options: Any) -> None:
        connection: sa.Connection = config.attributes["connection"]
        kind = connection.dialect.name
        if revision != "head" or sa.inspect(connection).has_table("alembic_version"):
            upgrade(config, revision, **options)
        elif kind in said:
            for statement, values in said[kind]:
                connection.exec_driver_sql(statement, values)
        else:
            heard: list[tuple[str, Any]] = []

            def hear(_c: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
                if not statement.lstrip().upper().startswith(("SELECT", "PRAGMA")):
                    heard.append((statement, values))

            sa.event.listen(connection, "before_cursor_execute", hear)
            try:
                upgrade(config, revision, **options)
            finally:
                sa.event.remove(connection, "before_cursor_execute", hear)
            said[kind] = heard

    command.upgrade = remembered
    yield
    command.upgrade = upgrade


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as provider:
        yield provider


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each kind of store in turn, as a URL."""
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def sqlite_store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"
