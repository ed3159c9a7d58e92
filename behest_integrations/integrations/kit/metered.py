"""Frameworks' model objects, made anew as objects of a metered subclass of their own class.

So they stay what they were for `isinstance`, for editors and for the framework.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from ...engine.per_engine import PerEngine
from .terms import Terms

METERED_BY = "behest_meter"
"""Where a metered model tells callbacks that it meters itself, in what it says of itself: a
callback then need not hold what the model may lower."""

_lock = threading.Lock()
_CLASSES: PerEngine[dict[tuple[type, type, Terms], Any]] = PerEngine(lambda engine: {})


def metered_class(
    terms: Terms, base: Any, mixin: type, methods: Callable[[], Mapping[str, Any]] = dict
) -> Any:
    """The subclass of `base` that is metered on these terms; the same one each time.

    Args:
        mixin: what comes before `base` in its ancestry.
        terms: what its objects know, as `_behest`.
        methods: what else is in it. They are set once it is made, so that a framework's class
            hooks do not take them for methods of its own kind.
    """
    classes = _CLASSES.of(terms.engine)
    with _lock:
        cls = classes.get((base, mixin, terms))
        if cls is None:
            namespace = {
                "__module__": base.__module__,
                "__qualname__": base.__qualname__,
                "__doc__": base.__doc__,
            }
            cls = type(base)(base.__name__, (mixin, base), namespace)
            cls._behest = terms
            for name, method in methods().items():
                setattr(cls, name, method)
            classes[base, mixin, terms] = cls
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
