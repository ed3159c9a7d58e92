"""Frameworks' model objects, made anew as objects of a metered subclass of their own class.

So they stay what they were for `isinstance`, for editors and for the framework.

A framework's model sees one call where its SDK may make several: it retries. Where an OpenAI
client within can be reached, it is metered itself, and each attempt is then reserved and booked
on its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ...meter import Meter
from ...rules.errors import ConfigError
from .generation import LIMIT_NAMES

log = logging.getLogger("behest")

METERED_BY = "behest_meter"
"""Where a metered model tells callbacks that it meters itself, in what it says of itself: a
callback then need not hold what the model may lower."""

_lock = threading.Lock()


def metered_class(
    meter: Meter, base: Any, mixin: type, door: Any, methods: Callable[[], Mapping[str, Any]]
) -> Any:
    """The subclass of `base` for this door of this meter; the same one each time.

    Args:
        mixin: what comes before `base` in its ancestry.
        door: what its objects know, as `_behest`; hashable.
        methods: what else is in it. They are set once it is made, so that a framework's class
            hooks do not take them for methods of its own kind.
    """
    classes: dict[tuple[type, type, Any], Any] = meter.attached("wrapped.classes", dict)
    with _lock:
        cls = classes.get((base, mixin, door))
        if cls is None:
            namespace = {
                "__module__": base.__module__,
                "__qualname__": base.__qualname__,
                "__doc__": base.__doc__,
            }
            cls = type(base)(base.__name__, (mixin, base), namespace)
            cls._behest = door
            for name, method in methods().items():
                setattr(cls, name, method)
            classes[base, mixin, door] = cls
        return cls


# An object's state, pydantic models' included.
_STATE = ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")


def as_class(value: Any, cls: Any) -> Any:
    """`value` as an object of `cls`, which has the same fields."""
    other = cls.__new__(cls)
    for name in _STATE:
        held = getattr(value, name, None)
        if name == "__dict__" or hasattr(type(value), name) or held is not None:
            object.__setattr__(other, name, held.copy() if isinstance(held, (dict, set)) else held)
    return other


def plain(value: Any) -> Any:
    """An object of a metered class as it was."""
    return as_class(value, type(value).__mro__[2])


def limit_field_of(base: Any, said: str | None) -> str | None:
    """The field of a pydantic class for its output limit; None if it has none.

    Args:
        said: which it is; default: the first of the usual names.

    Raises:
        ConfigError: it has no such field.
    """
    if said is None:
        return next((name for name in LIMIT_NAMES if name in base.model_fields), None)
    if said not in base.model_fields:
        raise ConfigError(f"{base.__name__} has no field {said!r}")
    return said


def meter_clients_of(value: Any, meter: Meter, provider: str | None) -> bool:
    """Meter the OpenAI clients that `value` keeps; whether it keeps any."""
    found = False
    for state in (vars(value), getattr(value, "__pydantic_private__", None)):
        if state:
            clients = metered_clients(meter, state, provider)
            state.update(clients)
            found = found or bool(clients)
    return found


def say_retries(meter: Meter, name: str, instead: str) -> None:
    """Say once that a class retries out of our sight.

    Args:
        instead: what to use in the place of its own retries.
    """
    told: set[str] = meter.attached("wrapped.told", set)
    if name not in told:
        told.add(name)
        log.warning(
            "%s retries by itself (max_retries), out of our sight: an attempt that the provider bills and "
            "that is then repeated is not counted. Set max_retries=0%s.",
            name,
            instead,
        )


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
