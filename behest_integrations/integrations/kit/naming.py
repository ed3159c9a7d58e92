"""Whom a framework's run is for, by what people put into its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast
from uuid import UUID

from ...rules.attribution import NOBODY, Attribution

ID_NAMES = frozenset({"session_id", "conversation_id", "user_id", "end_user_id", "project", "tenant"})
"""The names in a run's metadata that say whom it is for."""


def said_in(metadata: Mapping[str, Any], tags: Mapping[str, str] | None = None) -> Attribution:
    """Whom a run is for, as its metadata say it.

    Raises:
        ConfigError: something there cannot be an id.
    """
    if not tags and ID_NAMES.isdisjoint(metadata):
        return NOBODY
    return Attribution(
        session_id=id_in(metadata, "session_id", "conversation_id"),
        user_id=id_in(metadata, "user_id", "end_user_id"),
        project=id_in(metadata, "project"),
        tenant=id_in(metadata, "tenant"),
        tags=tags or {},
    )


def id_in(metadata: Mapping[str, Any], *names: str) -> str | None:
    """The first of these names that says something; whole numbers and UUIDs as text."""
    for name in names:
        value = metadata.get(name)
        if isinstance(value, (int, UUID)) and not isinstance(value, bool):
            return str(value)
        if value is not None and value != "":
            return cast(str, value)  # Attribution checks it
    return None


def ids_of(held: object) -> Attribution:
    """Whom what people hand to a run names: a mapping, or an object's own attributes; no property is asked.

    Raises:
        ConfigError: something there cannot be an id.
    """
    values = held if isinstance(held, Mapping) else getattr(held, "__dict__", None)
    if not isinstance(values, Mapping):
        return NOBODY
    return said_in({n: v for n in _IN_OBJECTS if isinstance(v := values.get(n), (str, int, UUID))})


_IN_OBJECTS = ("session_id", "user_id", "end_user_id", "project", "tenant")
