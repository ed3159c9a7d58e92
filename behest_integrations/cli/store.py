"""Which ledger a command means: `--store`, else `BEHEST_STORE`, else behest.toml's, else behest.db."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..rules.errors import ConfigError

if TYPE_CHECKING:
    from ..config import Config
    from ..ledger import Ledger

store_option = click.option(
    "--store",
    metavar="FILE|URL",
    help="The ledger. Default: BEHEST_STORE, else behest.toml's, else behest.db.",
)


def config() -> Config:
    """What the file in this folder says, or nothing."""
    from ..config import FILE, Config, load

    return load() if Path(FILE).exists() else Config()


def as_url(store: str) -> str:
    """A ledger's file, or its URL, as a URL."""
    return store if "://" in store else f"sqlite:///{store}"


def url_given(store: str | None) -> str | None:
    """The ledger that is named here or in the environment, before any file is asked."""
    from ..config import store_of_environment

    said = store or store_of_environment()
    return as_url(said) if said else None


def url_of(store: str | None) -> str:
    """The ledger that is named, or the one that there is to be without a name."""
    from ..meter import DEFAULT_STORE

    return url_given(store) or as_url(config().store or DEFAULT_STORE)


def make(store: str | None) -> Ledger:
    """The ledger that a person means; it is made if there is none yet."""
    from ..ledger.sql import SQLLedger

    url = _persistent(url_of(store))
    return SQLLedger(url)


def find(store: str | None) -> Ledger | None:
    """The ledger that a person means, if there is one. Looking must not make it."""
    url = _persistent(url_of(store))
    path = _file(url)
    return None if path is not None and not path.exists() else make(store)


def existing(store: str | None) -> Ledger:
    """The ledger that a person means.

    Raises:
        ConfigError: there is none.
    """
    found = find(store)
    if found is None:
        raise ConfigError(
            f"{no_ledger(store)}. Name one with --store FILE, or run 'behest demo --store FILE' to see one "
            "made."
        )
    return found


def no_ledger(store: str | None) -> str:
    """Where a person looks for a ledger, and there is none."""
    url = url_of(store)
    return f"there is no ledger at {_file(url) or url}"


def _persistent(url: str) -> str:
    if url.partition(":")[0] == "memory":
        raise ConfigError(
            f"the store {url!r} is in memory and ends with its program: there is nothing of it to be "
            "read or kept here. Name a file with --store FILE."
        )
    return url


def _file(url: str) -> Path | None:
    """The file of an SQLite ledger; None where it is in a server's hands.

    Raises:
        ConfigError: it is no URL.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigError(
            f"not a store: {url!r}; give a file, or a URL such as sqlite:///behest.db"
        ) from None
    return Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None
