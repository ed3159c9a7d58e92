"""When a budget will be used up if spending goes on as it has."""

from __future__ import annotations

from dataclasses import dataclass

_TOO_EARLY = 50
"""A window of which less than one part in so many has passed says nothing of the rest."""


@dataclass(frozen=True)
class Pace:
    """What comes of a budget at the rate until now.

    Attributes:
        out_at: when it is used up, in ms since 1970; None if its window turns over before that.
        by_end: what will have been spent when the window ends; None for a budget without one.
    """

    out_at: int | None
    by_end: int | None


def pace(*, spent: int, limit: int, since: int, end: int | None, now: int) -> Pace | None:
    """How it goes on, from what was spent between `since` and `now` (ms since 1970).

    Args:
        end: when the window ends; None: never.

    Returns:
        None where nothing can be said: nothing was spent, all was, or the window has hardly begun.
    """
    elapsed = now - since
    if spent <= 0 or spent >= limit or elapsed <= 0:
        return None
    if end is not None and elapsed * _TOO_EARLY < end - since:
        return None
    out_at = now + (limit - spent) * elapsed // spent
    if end is None:
        return Pace(out_at, None)
    by_end = spent + spent * (end - now) // elapsed
    return Pace(out_at if out_at < end else None, by_end)
