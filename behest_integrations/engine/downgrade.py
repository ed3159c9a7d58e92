"""Which cheaper model stands in for which, and from when on: a meter's settings, checked."""

from __future__ import annotations

from collections.abc import Mapping

from ..prices import ModelPricing, Pricing
from ..rules.errors import ConfigError, UnknownPrice
from ..rules.near import say_near

_TYPICAL = 1000
"""Tokens, of a prompt and of an answer, by which prices are compared when nothing is known of a call."""


class Downgrade:
    """Which model stands in for which, and from when on.

    Args:
        models: by the name that is sent, the name that is sent in its place.
        at: percent of a budget in dollars, spent and held.
        pricing: what knows the prices of all of them.

    Raises:
        ConfigError: a name is not known, a model stands in for itself, or one is not cheaper.
    """

    def __init__(self, models: Mapping[str, str], at: int, pricing: Pricing) -> None:
        if not isinstance(models, Mapping) or not all(
            isinstance(name, str) and name for pair in models.items() for name in pair
        ):
            raise ConfigError(
                f'downgrade is models by the ones they stand in for, such as {{"gpt-4o": "gpt-4o-mini"}}, '
                f"not {models!r}"
            )
        if isinstance(at, bool) or not isinstance(at, int) or not 1 <= at <= 100:
            raise ConfigError(f"downgrade_at is a whole percentage from 1 to 100, not {at!r}")
        self.at = at
        self._chains = {name: _chain(name, models) for name in models}
        for name, other in models.items():
            _check_cheaper(name, other, pricing)

    def after(self, model: str) -> tuple[str, ...]:
        """What may stand in for a model, in order."""
        return self._chains.get(model, ())


def _chain(name: str, models: Mapping[str, str]) -> tuple[str, ...]:
    found = [name]
    while (last := models.get(found[-1])) is not None:
        if last in found:
            loop = " → ".join([*found, last])
            raise ConfigError(f"downgrade goes in a circle: {loop}. A model that stands in must be cheaper.")
        found.append(last)
    return tuple(found[1:])


def _check_cheaper(name: str, other: str, pricing: Pricing) -> None:
    dear, cheap = _priced(name, pricing), _priced(other, pricing)
    if _typical(cheap) >= _typical(dear):
        raise ConfigError(
            f"downgrade: {other!r} does not cost less than {name!r}. It is written as "
            '{"the model that is asked for": "the cheaper one"}.'
        )


def _priced(name: str, pricing: Pricing) -> ModelPricing:
    try:
        return pricing.find(name)
    except UnknownPrice:
        pass
    from ..prices.names import models_of

    raise ConfigError(
        f"downgrade names {name!r}, whose price is not known{say_near(name, models_of())}. If it is right, "
        "give its price, or what it stands for (prices, aliases)."
    ) from None


def _typical(pricing: ModelPricing) -> int:
    fixed, each = pricing.bound(_TYPICAL, service_tier="default", cache_writes="none")
    return fixed + each * _TYPICAL
