"""Settings, checked as they come in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from .errors import ConfigError

T = TypeVar("T")


def not_negative(value: float, name: str) -> float:
    """A number of seconds.

    Raises:
        ConfigError: it is none, or less than 0.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 10**9:
        raise ConfigError(f"{name} must be a number of seconds of at least 0, not {value!r}")
    return value


def one_of(value: T, known: tuple[T, ...], name: str) -> T:
    """One of the words that are known.

    Raises:
        ConfigError: it is another.
    """
    if value not in known:
        raise ConfigError(f"{name} is one of {', '.join(map(repr, known))}, not {value!r}")
    return value


def each_of(value: T | Mapping[str, T], known: tuple[T, ...], name: str, default: T) -> dict[str, T]:
    """One of the words that are known, for all providers (under "") or for each that is named.

    Raises:
        ConfigError: it is another.
    """
    if not isinstance(value, Mapping):
        return {"": one_of(value, known, name)}
    said = {provider: one_of(word, known, f"{name} of {provider!r}") for provider, word in value.items()}
    return {"": default, **said}
