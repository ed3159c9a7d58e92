"""Which ledger a command means: `--store`, else `BEHEST_STORE`, else behest.toml's, else behest.db."""

from __future__ import annotations

import getpass
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..rules.errors import ConfigError

if TYPE_CHECKING:
    from ..config import Config
    from ..ledger import Ledger


def not_empty(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """An empty value is a variable of the shell that is not set, and not what is meant without one."""
    if value is not None and not value.strip():
        raise click.BadParameter("it is empty; leave it out, or name one")
    return value


store_option = click.option(
    "--store",
    metavar="FILE|URL",
    callback=not_empty,
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

    return _closed_at_the_end(open_store(_persistent(url_of(store))))


def find(store: str | None, *, to_write: bool = False) -> Ledger | None:
    """The ledger that a person means, if there is one. Looking must not make it, nor change it."""
    from ..ledger.stores import open_store, store_class

    url = _persistent(url_of(store))
    kind = store_class(url)
    if not kind.exists(url):
        return None
    return _closed_at_the_end(open_store(url) if to_write else kind.to_read(url))


def _closed_at_the_end(ledger: Ledger) -> Ledger:
    """A ledger that is closed when its command is done: SQLite then tidies away what it keeps beside it."""
    ctx = click.get_current_context(silent=True)
    if ctx is not None:
        ctx.call_on_close(ledger.close)
    return ledger


def existing(store: str | None, *, to_write: bool = False) -> Ledger:
    """The ledger that a person means.

    Raises:
        ConfigError: there is none.
    """
    found = find(store, to_write=to_write)
    if found is None:
        raise ConfigError(
            f"{no_ledger(store)}. Name one with --store FILE, or run 'behest demo --store FILE' to see one "
            "made."
        )
    return found


def persistent(store: str | None) -> str:
    """The URL of the ledger that a person means, which is to outlive its program.

    Raises:
        ConfigError: it is in memory.
    """
    return _persistent(url_of(store))


def kind_of(url: str) -> type[Ledger]:
    """The class of the store at a URL."""
    from ..ledger.stores import store_class

    return store_class(url)


def no_ledger(store: str | None) -> str:
    """Where a person looks for a ledger, and there is none."""
    return f"there is no ledger at {_without_password(url_of(store)).removeprefix('sqlite:///')}"


def _without_password(url: str) -> str:
    """For people: what is between the user's name and the host is nobody's business."""
    return re.sub(r"(://[^:/@]*):[^/]*@", r"\1:***@", url)


def _persistent(url: str) -> str:
    if url.partition(":")[0] == "memory":
        raise ConfigError(
            f"the store {url!r} is in memory and ends with its program: there is nothing of it to be "
            "read or kept here. Name a file with --store FILE."
        )
    return url


def user_name() -> str:
    """Who is at the command line, for the audit."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "?"
