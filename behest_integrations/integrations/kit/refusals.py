"""Refusals that a framework has made errors of its own of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...rules.errors import CallRefused, causes, handled


def refusal_in(error: BaseException | None, before: int = 0) -> CallRefused | None:
    """The refusal of a door below that an error was made of.

    Args:
        before: see `causes`.
    """
    for cause in causes(error, before):
        for found in (getattr(cause, "refusal", None), cause):
            if isinstance(found, CallRefused):
                return found
    return None


@contextmanager
def as_it_is() -> Iterator[None]:
    """A refusal leaves as itself, whatever has been made of it inside."""
    before = handled()
    try:
        yield
    except Exception as error:
        refusal = refusal_in(error, before)
        if refusal is None or refusal is error:
            raise
        raise refusal from None


_BOTH: dict[tuple[type[CallRefused], type[Exception]], Any] = {}


def as_also(refusal: CallRefused, kind: type[Exception], *args: Any) -> Any:
    """A refusal as an exception of `kind` as well: what ends a run of a framework, and is never tried again
    or taken for an answer. It is itself again where `refusal_in` finds it.

    Args:
        args: what `kind` takes.
    """
    own = type(refusal)
    cls: Any = _BOTH.get((own, kind))
    if cls is None:
        body = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
        cls = _BOTH[own, kind] = type(own.__name__, (own, kind), body)
    stop = cls.__new__(cls)
    kind.__init__(stop, *args)
    vars(stop).update(vars(refusal), refusal=refusal)
    return stop
