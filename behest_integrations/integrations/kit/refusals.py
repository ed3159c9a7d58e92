"""Refusals that a framework has made errors of its own of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...rules.errors import CallRefused


def refusal_in(error: BaseException | None) -> CallRefused | None:
    """The refusal of a door below that an error was made of."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        for found in (error, getattr(error, "refusal", None)):
            if isinstance(found, CallRefused):
                return found
        seen.add(id(error))
        error = error.__cause__ or error.__context__ or getattr(error, "original_exception", None)
    return None


@contextmanager
def as_it_is() -> Iterator[None]:
    """A refusal leaves as itself, whatever has been made of it inside."""
    try:
        yield
    except Exception as error:
        refusal = refusal_in(error)
        if refusal is None or refusal is error:
            raise
        raise refusal from None
