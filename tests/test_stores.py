"""Each of our stores passes the suite of stores, and a URL finds its store."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import postgres
import pytest
from store_suite import StoreSuite

from behest_integrations import ConfigError, Meter
from behest_integrations.ledger import open_store
from behest_integrations.ledger.stores import STORES, store_class


class TestMemory(StoreSuite):
    @pytest.fixture
    def url(self) -> str:
        return "memory://"


class TestSQLite(StoreSuite):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/books.db"


class TestPostgres(StoreSuite):
    @pytest.fixture
    def url(self) -> str:
        return postgres.new_url()


@pytest.mark.parametrize("url", ["nothing://x", "postgresl://x", "redis+cluster://x"])
def test_a_kind_that_is_not_known_names_those_that_are(url: str) -> None:
    with pytest.raises(ConfigError, match=r"known are .*memory://.*sqlite://"):
        open_store(url)
    with pytest.raises(ConfigError, match="no store of the kind"):
        Meter(url)


@pytest.mark.parametrize("url", ["", "behest.db", "/srv/behest.db", "://x", "sqlite:x", "C:\\books"])
def test_what_is_no_url_says_so(url: str) -> None:
    with pytest.raises(ConfigError, match="not a store"):
        open_store(url)


@pytest.mark.parametrize("url", ["memory", "memory:", "memory://"])
def test_memory_has_short_names(url: str) -> None:
    assert store_class(url).__name__ == "MemoryLedger"
    assert open_store(url).url == "memory://"


def test_every_store_that_is_listed_can_be_had() -> None:
    for scheme in STORES:
        assert store_class(f"{scheme}://").__doc__


THEIRS = '''
"""A store of somebody else's, with the rows of ours."""
from behest_integrations.ledger import Ledger
from behest_integrations.ledger.memory import MemoryLedger

class Theirs(MemoryLedger):
    def __init__(self, url, *, timeout, durability, colour="red"):
        super().__init__(url)
        self.colour = colour

not_one = dict
'''


def test_a_store_that_somebody_publishes_is_found_by_its_scheme(tmp_path: Path) -> None:
    """By an entry point, as packages declare it; loaded only when it is asked for."""
    (tmp_path / "their_store.py").write_text(THEIRS)
    info = tmp_path / "their_store-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-store\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[behest_integrations.stores]\ntheirs = their_store:Theirs\nodd = their_store:not_one\n"
        "gone = their_store:Gone\nmemory = their_store:Theirs\n"
    )
    code = f"""
    import sys
    sys.path.insert(0, {str(tmp_path)!r})
    from behest_integrations import ConfigError, Meter
    from behest_integrations.ledger import open_store
    Meter("memory://")
    assert "their_store" not in sys.modules
    print(type(Meter("theirs://there", budgets=["5 calls"]).ledger).__name__)
    print(open_store("theirs+fast://there", colour="blue").colour)
    for url in ("odd://", "gone://", "none://"):
        try:
            open_store(url)
        except ConfigError as error:
            print(error)
    """
    said = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60
    )
    name, colour, odd, gone, unknown = said.stdout.splitlines() or [said.stderr]
    assert (name, colour) == ("Theirs", "blue")
    assert "not a subclass of Ledger" in odd
    assert "cannot be loaded" in gone
    assert "theirs://" in unknown
