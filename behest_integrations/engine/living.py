"""Engines that live in this process: what is written at exit, and where a pickled one finds itself."""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from ..rules.errors import ConfigError
from .engine import Engine

log = logging.getLogger("behest")

_living: weakref.WeakSet[Engine] = weakref.WeakSet()
_reviving = threading.Lock()


def register(engine: Engine) -> None:
    """It is flushed at exit."""
    if not _living:
        atexit.register(_flush_all)
    _living.add(engine)


def revive(make: Callable[..., Engine], token: str, given: Mapping[str, Any] | None) -> Engine:
    """For unpickling: in its own process itself, elsewhere made anew, once for all that share a token.

    Args:
        given: the keywords to make it with; None where that cannot be done.

    Raises:
        ConfigError: its books are in another process's memory.
    """
    with _reviving:
        living = next((e for e in _living if e.token == token), None)
        if living is None:
            if given is None:
                raise ConfigError(
                    "a meter whose ledger is in memory cannot go to another process: use a store "
                    "that both can open, such as 'sqlite:///behest.db'"
                )
            living = make(**given)
            living.token = token
        return living


def _flush_all() -> None:
    for engine in list(_living):
        try:
            engine.drains.give_up()  # a program that ends waits for no stream that it has left
            for finalizer in list(engine.finalizers):
                finalizer()
            engine.flush()
        except Exception as error:
            # Their holds are in the store and will be booked at the worst case.
            log.critical("at exit: %s", error)
