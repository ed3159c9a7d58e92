"""What a newer price list changes: models that come and go, prices that rise and fall."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone

from .list import compile_model
from .lists import PriceList
from .rates import Rates

_FALLS = 10
"""A price that falls to less than one part in so many is looked at by a person: what is believed to be
cheaper than it is would let a budget be passed."""

Key = tuple[str, str]
"""A provider's id and a model's."""


@dataclass
class Changes:
    """What becomes other.

    Attributes:
        came, gone, dearer, cheaper: models, by provider and id. fell: those whose price falls to less than
            a tenth, or to nothing.
        before, after: how many models there were, and are.
    """

    before: int
    after: int
    came: list[Key] = field(default_factory=list)
    gone: list[Key] = field(default_factory=list)
    dearer: list[Key] = field(default_factory=list)
    cheaper: list[Key] = field(default_factory=list)
    fell: list[Key] = field(default_factory=list)

    def doubts(self) -> Iterator[str]:
        """Why a person should look before this is used."""
        if self.after * 2 < self.before:
            yield f"it has {self.after:,} models, and the one in use has {self.before:,}"
        if self.fell:
            names = ", ".join(f"{model} ({provider})" for provider, model in self.fell[:5])
            more = f" and {len(self.fell) - 5:,} more" if len(self.fell) > 5 else ""
            yield f"the price of {names}{more} falls to less than a tenth"

    def __str__(self) -> str:
        counts = {
            "new": self.came, "gone": self.gone, "dearer": self.dearer, "cheaper": self.cheaper,
        }  # fmt: skip
        said = [f"{len(models):,} {what}" for what, models in counts.items() if models]
        return f"{self.after:,} models: {', '.join(said) or 'no price has changed'}"


def changes(before: PriceList, after: PriceList) -> Changes:
    """What `after` changes of `before`, by what is asked for a token of input and of output today."""
    old, new = _rates(before), _rates(after)
    found = Changes(len(old), len(new))
    found.came = [key for key in new if key not in old]
    found.gone = [key for key in old if key not in new]
    for key in new.keys() & old.keys():
        was, now = old[key], new[key]
        pairs = ((was.input, now.input), (was.output, now.output))
        if any(b > a for a, b in pairs):
            found.dearer.append(key)
        elif any(b < a for a, b in pairs):
            found.cheaper.append(key)
        if any(b * _FALLS < a for a, b in pairs):
            found.fell.append(key)
    for keys in (found.dearer, found.cheaper, found.fell):
        keys.sort()
    return found


def _rates(listed: PriceList) -> dict[Key, Rates]:
    now = datetime.now(timezone.utc)
    found = {}
    for provider in listed.snapshot.providers:
        for model in provider.models:
            compiled = compile_model(model, provider.id, now)
            if compiled is not None:
                found[provider.id, model.id] = compiled.standard.tiers[0][1]
    return found
