"""A unit: tokens of thoughts. All of an answer may be thoughts."""

from behest_integrations.rules.units import Need, Unit

REASONING = Unit(
    "reasoning_tokens",
    "reasoning tokens",
    lambda worst: Need(worst.extra, worst.choices),
    lambda usage: usage.reasoning_tokens,
    output=True,
)
