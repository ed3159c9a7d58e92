"""Clients of the OpenAI SDK inside the objects of frameworks.

A framework's model sees one call where its SDK may make several: it retries. Where the client
within can be reached, it is metered itself, and each attempt is then reserved and booked on its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .errors import ConfigError

if TYPE_CHECKING:
    from .meter import Meter


def metered_clients(meter: Meter, values: Mapping[str, Any], provider: str | None) -> dict[str, Any]:
    """Those of `values` that are OpenAI clients, or resources of one (`chat.completions`), metered.

    Args:
        values: an object's attributes by name.
        provider: whose prices apply; default: by the client's base URL.
    """
    known: dict[int, Any] = {}

    def metered(client: Any) -> Any:
        if id(client) not in known:
            try:
                known[id(client)] = meter.openai(client, provider=provider)
            except ConfigError:
                known[id(client)] = client  # metered already
        return known[id(client)]

    found: dict[str, Any] = {}
    for name, value in values.items():
        if _is_client(value):
            found[name] = metered(value)
        elif _is_client(inner := getattr(value, "_client", None)) and _is_openais(type(value)):
            found[name] = type(value)(metered(inner))
    return found


def _is_client(value: object) -> bool:
    return any(c.__name__ in ("OpenAI", "AsyncOpenAI") and _is_openais(c) for c in type(value).__mro__)


def _is_openais(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "openai"
