"""What a framework asks through, and who meters it: a framework of frameworks need not do so again."""

from __future__ import annotations

from ...engine.engine import Engine

_METERED: dict[str, Engine] = {}


def is_metered(name: str, engine: Engine) -> bool:
    """Whether `engine` meters all that is asked through what goes by this name.

    Args:
        name: of what a door meters for the whole process, as ``litellm``.
    """
    return _METERED.get(name) is engine


def metering(name: str, engine: Engine | None) -> None:
    """A door begins to meter what goes by this name for `engine`, or ends (None)."""
    if engine is None:
        _METERED.pop(name, None)
    else:
        _METERED[name] = engine
