"""SDK clients that frameworks' model objects keep: metered within, so that each attempt is.

A framework's model sees one call where its SDK may make several: it retries. Where an SDK's client
within can be reached, each attempt is reserved and booked on its own. The doors of SDKs say here how
theirs are recognised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...engine.engine import Engine
from ...rules.errors import ConfigError
from .terms import Terms


@dataclass(frozen=True)
class SDK:
    """How the clients of one SDK are recognised, without importing it, and metered.

    Attributes:
        package: the package that its classes are from.
        classes: the names of its clients' classes.
        meter: makes a metered client like the one given.
    """

    package: str
    classes: tuple[str, ...]
    meter: Callable[[Terms, Any], Any]

    def has_made(self, value: object) -> bool:
        """Whether `value` is a client of it (or of a subclass)."""
        return any(c.__name__ in self.classes and self.defines(c) for c in type(value).__mro__)

    def defines(self, cls: type) -> bool:
        """Whether a class is its own."""
        return cls.__module__.partition(".")[0] == self.package


SDKS: list[SDK] = []
"""What the doors of SDKs have said."""


def meter_clients_of(value: Any, engine: Engine, provider: str | None) -> bool:
    """Meter the SDK clients that `value` keeps; whether it keeps any."""
    found = False
    for state in (vars(value), getattr(value, "__pydantic_private__", None)):
        if state:
            clients = metered_clients(engine, state, provider)
            state.update(clients)
            found = found or bool(clients)
    return found


def metered_clients(engine: Engine, values: Mapping[str, Any], provider: str | None) -> dict[str, Any]:
    """Those of `values` that are SDK clients, or resources of one (`chat.completions`), metered.

    Args:
        values: an object's attributes by name.
        provider: whose prices apply; default: by the client's base URL.
    """
    known: dict[int, Any] = {}
    terms = Terms(engine, provider)

    def metered(sdk: SDK, client: Any) -> Any:
        if id(client) not in known:
            try:
                known[id(client)] = sdk.meter(terms, client)
            except ConfigError:
                known[id(client)] = client  # metered already
        return known[id(client)]

    found: dict[str, Any] = {}
    for name, value in values.items():
        for sdk in SDKS:
            inner = getattr(value, "_client", None)
            if sdk.has_made(value):
                found[name] = metered(sdk, value)
            elif sdk.has_made(inner) and sdk.defines(type(value)):
                found[name] = type(value)(metered(sdk, inner))
    return found


def keeps_metered_clients(value: Any, engine: Engine) -> bool:
    """Whether `value` asks through SDK clients that `engine` meters: they see what is sent, byte by byte."""
    for state in (vars(value), getattr(value, "__pydantic_private__", None) or {}):
        for held in state.values():
            for client in (held, getattr(held, "_client", None)):
                terms = getattr(type(client), "_behest", None)
                if isinstance(terms, Terms) and terms.engine is engine:
                    return True
    return False


def say_retries(engine: Engine, name: str, instead: str) -> None:
    """Say once that a class retries out of our sight.

    Args:
        instead: what to use in the place of its own retries.
    """
    engine.notices.once(
        ("retries", name),
        "%s retries by itself (max_retries), out of our sight: an attempt that the provider bills and "
        "that is then repeated is not counted. Set max_retries=0%s.",
        name,
        instead,
    )
