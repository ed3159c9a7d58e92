"""Refusals that a framework has made errors of its own of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
