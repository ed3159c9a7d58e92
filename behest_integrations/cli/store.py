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
    from ..ledger.stores import DEFAULT_STORE

    return url_given(store) or as_url(config().store or DEFAULT_STORE)


def make(store: str | None) -> Ledger:
    """The ledger that a person means; it is made if there is none yet."""
    from ..ledger.stores import open_store

    return open_store(_persistent(url_of(store)))


def find(store: str | None) -> Ledger | None:
    """The ledger that a person means, if there is one. Looking must not make it."""
    from ..ledger.stores import open_store, store_class

    url = _persistent(url_of(store))
    return open_store(url) if store_class(url).exists(url) else None


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
    return f"there is no ledger at {url_of(store).removeprefix('sqlite:///')}"


def _persistent(url: str) -> str:
    if url.partition(":")[0] == "memory":
        raise ConfigError(
            f"the store {url!r} is in memory and ends with its program: there is nothing of it to be "
            "read or kept here. Name a file with --store FILE."
        )
    return url
