"""What the tests share: a sandbox provider and a ledger for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import close_loop

from behest_integrations.sandbox import Sandbox


@pytest.fixture(autouse=True)
def _own_loop() -> Iterator[None]:
    yield
    close_loop()


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
