"""Which store a URL means. A new store is a file and a line here.

A store of somebody else's is published as an entry point, under the scheme of its URLs:

    [project.entry-points."behest_integrations.stores"]
    redis = "their_package:TheirLedger"

It is a subclass of `base.Ledger`, is called as ``TheirLedger(url, timeout=…, durability=…)``, and
passes the test suite that our own stores pass (`tests/store_suite.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

from ..rules.errors import ConfigError
from .base import Durability, Ledger

# By scheme of the URL. Imported when first opened: a meter in memory needs no database library.
STORES = {
    "memory": "behest_integrations.ledger.memory:MemoryLedger",
    "postgresql": "behest_integrations.ledger.postgres:PostgresLedger",
    "sqlite": "behest_integrations.ledger.sqlite:SQLiteLedger",
}
GROUP = "behest_integrations.stores"
DEFAULT_STORE = "sqlite:///behest.db"


def store_url(store: str | None = None) -> str:
    """`store`, else the environment's ``BEHEST_STORE``, else `DEFAULT_STORE`.

    Raises:
        ConfigError: not a text.
    """
    url = store or os.environ.get("BEHEST_STORE") or DEFAULT_STORE
    if not isinstance(url, str):
        raise ConfigError(f"a store is a URL such as {DEFAULT_STORE!r}, not {url!r}")
    return url


def open_store(
    url: str, *, timeout: float = 5.0, durability: Durability = "process", **options: Any
) -> Ledger:
    """The store at `url`, made if there is none yet.

    Args:
        url: ``scheme://…``; ``scheme+driver://…`` is the store ``scheme`` too.
        timeout: seconds to wait for others who write, before giving up.
        durability: what the books survive; see the store's class.
        options: further ones of that store.

    Raises:
        ConfigError: no such kind of store, or it cannot be opened as described.
        StoreError: the store is out.
    """
    make: Callable[..., Ledger] = store_class(url)
    return make(url, timeout=timeout, durability=durability, **options)


def open_to_read(url: str, *, timeout: float = 5.0) -> Ledger:
    """The store at `url`, to be looked at: it must be there, and nothing of it is written.

    Raises:
        ConfigError: there is none, or no such kind of store.
        StoreError: it cannot be read.
    """
    kind = store_class(url)
    if not kind.exists(url):
        raise ConfigError(f"there is no ledger at {url.removeprefix('sqlite:///')}")
    return kind.to_read(url, timeout=timeout)


def store_class(url: str) -> type[Ledger]:
    """The class of the store at `url`, which says whether it is shared and exists.

    Raises:
        ConfigError: no such kind of store.
    """
    scheme = _scheme(url)
    if scheme in STORES:
        module, _, name = STORES[scheme].partition(":")
        return getattr(import_module(module), name)  # type: ignore[no-any-return]
    from importlib.metadata import entry_points  # slow, and only for a store that is not ours

    published = entry_points(group=GROUP)
    for entry_point in published:
        if entry_point.name == scheme:
            try:
                found = entry_point.load()
            except Exception as error:
                raise ConfigError(
                    f"the store {scheme!r} ({entry_point.value}) cannot be loaded: {error}"
                ) from error
            if not (isinstance(found, type) and issubclass(found, Ledger)):
                raise ConfigError(f"the store {scheme!r} ({entry_point.value}) is not a subclass of Ledger")
            return found
    known = ", ".join(f"{name}://" for name in sorted({*STORES, *published.names}))
    raise ConfigError(f"there is no store of the kind {scheme}://; known are {known}")


def _scheme(url: str) -> str:
    scheme, colon, _rest = url.partition(":")
    scheme = scheme.partition("+")[0]
    if scheme == "memory" and url in ("memory", "memory:"):
        return scheme
    if not colon or not url.partition("://")[1] or not scheme:
        raise ConfigError(f"not a store: {url!r}; e.g. {DEFAULT_STORE!r} or 'memory://'")
    return scheme
