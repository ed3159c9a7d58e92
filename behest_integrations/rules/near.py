"""Names that are near one that is not known: what may have been meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def near(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Those of `known` that `name` may have been meant for, the nearest first."""
    listed = list(dict.fromkeys(known))
    folded = {k.casefold(): k for k in reversed(listed)}
    asked = name.casefold()
    found = [folded[k] for k in get_close_matches(asked, folded, most)]
    # One that has the other in it is near, however much longer it is.
    if len(asked) > 2:
        found += [k for k in listed if asked in k.casefold() and k not in found]
    return found[:most]


def say_near(name: str, known: Iterable[str]) -> str:
    """The same as a part of a sentence, such as ` (did you mean "budgets"?)`; "" if none is near."""
    found = near(name, known, 1)
    return f' (did you mean "{found[0]}"?)' if found else ""
