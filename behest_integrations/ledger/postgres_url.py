"""What a URL of a ledger in PostgreSQL says, and what is done there that is no call."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from ..rules.errors import ConfigError, StoreError
from .migrating import schema_version, upgrade


class Place(NamedTuple):
    """What a URL says."""

    url: sa.URL
    within: str | None
    upgrades: bool
    prepares: bool


def place_of(url: str) -> Place:
    try:
        parsed = make_url(url)
        name = parsed.get_backend_name()
    except (ArgumentError, sa.exc.NoSuchModuleError):
        raise ConfigError(f"not a store: {url!r}; e.g. 'postgresql+psycopg://user@host/behest'") from None
    driver = parsed.drivername.partition("+")[2]
    if name != "postgresql" or driver not in ("", "psycopg"):
        raise ConfigError(
            f"not a URL of PostgreSQL by psycopg: {parsed.render_as_string()!r}; "
            "e.g. 'postgresql+psycopg://user@host/behest'"
        )
    ours = {key: _one(parsed.query.get(key)) for key in ("schema", "upgrade", "prepare_threshold")}
    if ours["upgrade"] not in (None, "auto"):
        raise ConfigError(f"upgrade is 'auto' or is left out, not {ours['upgrade']!r}")
    bare = parsed.set(drivername="postgresql+psycopg").difference_update_query(ours)
    prepares = (ours["prepare_threshold"] or "5").lower() not in ("none", "null")
    return Place(bare, ours["schema"] or None, ours["upgrade"] == "auto", prepares)


def _one(value: str | tuple[str, ...] | None) -> str | None:
    return value if value is None or isinstance(value, str) else value[-1]


def engines(place: Place, timeout: float) -> tuple[sa.Engine, sa.Engine]:
    """To read with, and for what is no call: with the names as they are, and within the schema."""
    patience = {
        "connect_timeout": max(2, round(timeout)),
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": max(1000, int(timeout * 1000)),
    }
    given: Mapping[str, Any] = {k: v for k, v in patience.items() if k not in place.url.query}
    base = sa.create_engine(
        place.url,
        pool_size=1,
        max_overflow=7,
        pool_timeout=timeout,
        pool_pre_ping=True,
        connect_args={**given, "prepare_threshold": None},
    )
    if place.within is None:
        return base, base
    return base, base.execution_options(schema_translate_map={None: place.within})


def version_at(connection: sa.Connection, place: Place) -> str | None:
    return schema_version(connection, place.within)


@contextmanager
def looking(url: str) -> Iterator[tuple[sa.Connection, Place]]:
    """A connection to look around with."""
    place = place_of(url)
    base, _ = engines(place, 5.0)
    try:
        with base.connect() as connection:
            yield connection, place
    except sa.exc.DBAPIError as error:
        raise cannot(place, error) from error
    finally:
        base.dispose()


def bring_up(base: sa.Engine, place: Place) -> None:
    """Bring the tables up to this version, also where several begin to at once: then the others fail, and
    look again."""
    for last in (False, False, True):
        try:
            upgrade(base, place.within)
            return
        except sa.exc.DBAPIError:
            if last:
                raise
            time.sleep(random.uniform(0.05, 0.2))


def cannot(place: Place, error: sa.exc.DBAPIError) -> StoreError:
    where = place.url.render_as_string(hide_password=True)
    return StoreError(f"The ledger {where} cannot be reached, or not be changed: {str(error.orig).strip()}")
