"""When a budget will be used up if it is spent on as it was. A straight line, which everybody can check.

One line for all who draw it: `behest budgets --forecast`, the dashboard, and the alert of a burn rate.
"""

from __future__ import annotations

from dataclasses import dataclass

HOUR = 3_600_000
TOO_EARLY = 20
"""A window of which less than one part in so many has passed says nothing of the rest."""
LEAST = 60_000
"""And a rate over less than a minute says nothing, in ms."""


@dataclass(frozen=True)
class Pace:
    """What comes of a budget at the rate until now.

    Attributes:
        an_hour: what is spent an hour, in the budget's unit.
        out_at: when it is used up, in ms since 1970; None if its window turns over before that.
        by_end: what will have been spent when the window ends; None for a budget without one.
    """

    an_hour: int
    out_at: int | None
    by_end: int | None


def pace(
    *, spent: int, limit: int, since: int, end: int | None, now: int, lately: int | None = None
) -> Pace | None:
    """How it goes on, from what was spent between `since` and `now` (ms since 1970).

    Args:
        end: when the window ends; None: never.
        lately: what was spent since `since`, where that is not all that is spent.

    Returns:
        None where nothing can be said: nothing was spent, all was, or the window has hardly begun.
    """
    rate = spent if lately is None else lately
    elapsed = max(now - since, LEAST)
    if rate <= 0 or spent >= limit or now < since:
        return None
    if end is not None and (now - since) * TOO_EARLY < end - since:
        return None
    an_hour = rate * HOUR // elapsed
    out_at = now + (limit - spent) * elapsed // rate
    if end is None:
        return Pace(an_hour, out_at, None)
    return Pace(an_hour, out_at if out_at < end else None, spent + rate * (end - now) // elapsed)
