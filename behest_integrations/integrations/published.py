"""Doors that other packages publish: entry points of the group `behest_integrations.doors`."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import entry_points

from ..engine.engine import Engine
from ..rules.errors import ConfigError

GROUP = "behest_integrations.doors"


@lru_cache(maxsize=1)
def published() -> tuple[type[Engine], ...]:
    """The door classes of installed packages.

    Raises:
        ConfigError: an entry point is no subclass of `Engine`.
    """
    found = []
    for point in entry_points(group=GROUP):
        door = point.load()
        if not (isinstance(door, type) and issubclass(door, Engine)):
            raise ConfigError(f"the entry point {point.name!r} of {GROUP} is no door, a subclass of Engine")
        found.append(door)
    return tuple(found)
