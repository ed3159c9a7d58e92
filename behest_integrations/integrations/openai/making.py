"""Every OpenAI client that is made, metered, whoever makes it.

`OpenAI.__new__` is replaced for the process, and stays: a class whose `__new__` was set and taken
away again takes no arguments. Read with openai 2.45 to 3.54, none of which defines one.
"""

from __future__ import annotations

from typing import Any

from ...rules.errors import need
from ..kit.terms import Terms
from ..kit.undo import Undo
from .client import Metered, class_of

_active: list[tuple[object, Terms]] = []
"""Whose clients are metered: the last that was begun and has not ended."""


def meter_what_is_made(terms: Terms) -> Undo:
    """See `OpenAIDoor.instrument_openai`."""
    with need("The OpenAI client", "openai"):
        from openai import AsyncOpenAI, OpenAI
    for cls in (OpenAI, AsyncOpenAI):
        if "__new__" not in vars(cls):
            cls.__new__ = _new  # type: ignore[method-assign]
    mine = (object(), terms)
    _active.append(mine)
    return Undo(lambda: _active.remove(mine))


def _new(cls: type, *args: Any, **kwargs: Any) -> Any:
    if _active and not issubclass(cls, Metered):
        cls = class_of(cls, _active[-1][1])
    return object.__new__(cls)
