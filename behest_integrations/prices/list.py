"""genai-prices compiled into exact integers, with what it lacks.

A lookup and a calculation there take tens of microseconds, so each model is compiled once. Data
of our own stands here where the list has none, with the provider's page that it is from.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..rules.names import ModelName, read_name
from .habits import searching
from .lists import PriceList, brought
from .providers import Multiplier
from .rates import DEAREST_AUDIO_IN, DEAREST_AUDIO_OUT, ModelPricing, PriceTable, Rates, to_femto

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider

FOREVER = float("inf")

# The most that a service tier multiplies the standard price by, for models whose price in it the
# list does not have: the dearest ratio that it has of any.
_TIER_CEILINGS: Mapping[str, Mapping[str, Multiplier]] = {
    # https://developers.openai.com/api/docs/pricing (Priority): 1.7 to 2.5 times
    "openai": {"priority": (5, 2), "fast": (5, 2)},
    "azure": {"priority": (5, 2)},
    # https://ai.google.dev/gemini-api/docs/pricing (Priority): 1.8, and 3.6 while a model is on offer
    "google": {"priority": (18, 5)},
    # Bought beforehand; a token costs no more: https://platform.claude.com/docs/en/api/service-tiers
    "anthropic": {"priority": (1, 1)},
}

# Fast mode was six times the price of Opus 4.6 and 4.7, the dearest that it has been; US-only
# inference is 1.1 times: https://platform.claude.com/docs/en/build-with-claude/fast-mode and
# https://platform.claude.com/docs/en/about-claude/pricing#data-residency-pricing
_CLAUDE_MULTIPLIERS: Mapping[tuple[str, str], Multiplier] = {
    ("speed", "fast"): (6, 1),
    ("inference_geo", "us"): (11, 10),
}

# Fine-tuned models, by the base: USD per million tokens of input, cached input, output.
# https://platform.openai.com/docs/pricing (Fine-tuning); gpt-4 from its announcement, $45 and $90.
_FINE_TUNED: Mapping[str, tuple[str, str, str]] = {
    "gpt-4.1": ("3", "0.75", "12"),
    "gpt-4.1-mini": ("0.8", "0.2", "3.2"),
    "gpt-4.1-nano": ("0.2", "0.05", "0.8"),
    "gpt-4o": ("3.75", "1.875", "15"),
    "gpt-4o-mini": ("0.3", "0.15", "1.2"),
    "o4-mini": ("4", "1", "16"),
    "gpt-4": ("45", "45", "90"),
    "gpt-3.5-turbo": ("3", "3", "6"),
    "davinci-002": ("12", "12", "12"),
    "babbage-002": ("1.6", "1.6", "1.6"),
}


def claude_multipliers(name: ModelName) -> Mapping[tuple[str, str], Multiplier]:
    """What fields of a request multiply a Claude's price by, at most."""
    return _CLAUDE_MULTIPLIERS if name.plain.startswith("claude") else {}


def find_listed(
    provider: str | None, model: str, now: datetime, listed: PriceList | None = None
) -> ModelPricing | None:
    """The price list's pricing of exactly this id; None if it has none.

    Args:
        listed: the list; None: the one that is brought.
    """
    name = read_name(model)
    if name.tuned and provider in ("openai", "azure"):
        tuned = _fine_tuned(name, provider, listed)
        if tuned is not None:
            return tuned
    found = entry(provider, model, listed)
    if found is None:
        return None
    return compile_model(found[1], found[0].id, now, model)


def entry(
    provider: str | None, model: str, listed: PriceList | None = None
) -> tuple[Provider, ModelInfo] | None:
    """The price list's own entry for exactly this id; None if it has none."""
    try:
        return (listed or brought()).snapshot.find_provider_model(model, None, provider, None)
    except LookupError:
        return None


def _fine_tuned(name: ModelName, provider: str, listed: PriceList | None) -> ModelPricing | None:
    usd = _FINE_TUNED.get(name.undated)
    if usd is None:
        return None
    i, cached, o = (to_femto(Decimal(text), 10**6) for text in usd)
    base = entry(provider, name.plain, listed) or entry("openai", name.plain, listed)
    rates = Rates(
        input=i, cached_input=cached, cache_write=i, cache_write_1h=i, output=o, reasoning=o,
        input_audio=DEAREST_AUDIO_IN, cached_audio=DEAREST_AUDIO_IN, output_audio=DEAREST_AUDIO_OUT,
        missing=frozenset(("input_audio", "output_audio")),
    )  # fmt: skip
    table = PriceTable(((0, rates),))
    return ModelPricing(
        model=f"ft:{name.undated}",
        provider=provider,
        source="OpenAI's page",
        standard=table,
        tiers={},
        worst=((None, table),),
        context_window=base[1].context_window if base else None,
        has_output=True,
        valid_until=FOREVER,
        ceilings=_TIER_CEILINGS[provider],
    )


def free(model: str, provider: str, source: str) -> ModelPricing:
    """The pricing of what costs nothing."""
    table = PriceTable(((0, Rates()),))
    return ModelPricing(
        model=model,
        provider=provider,
        source=source,
        standard=table,
        tiers={},
        worst=((None, table),),
        context_window=None,
        has_output=True,
        valid_until=FOREVER,
    )


def compile_model(
    info: ModelInfo, provider: str, now: datetime, model: str | None = None
) -> ModelPricing | None:
    """Compile one model of the price list; None if it has no price for input tokens.

    Args:
        info: the list's entry.
        provider: the list's id of who serves it.
        now: the moment whose prices are wanted (UTC).
        model: the name that was asked for, where the entry stands for several.
    """
    name = read_name(model or info.id)
    moments, valid_until = _moments(info, now)
    standard_price = info.get_prices(now)
    found = searching(model or info.id)
    fees = dict(found.fees) if found else {}

    def table_of(price: ModelPrice) -> PriceTable | None:
        return _table(price, provider, name, max(fees.values(), default=0))

    standard = table_of(standard_price)
    if standard is None:
        return None
    contexts: list[tuple[str | None, dict[str, str] | None]] = [(None, None)]
    multipliers = dict(claude_multipliers(name)) if provider == "anthropic" else {}
    for variant in info.price_variants or ():
        if "speed" in variant.when:
            multipliers["speed", variant.when["speed"]] = _ratio(variant.prices, standard_price)
        # Batch prices apply to the batch API alone, which is not metered as a call.
        elif variant.when.get("processing") != "batch":
            contexts.append((variant.when.get("service_tier"), dict(variant.when)))
    tiers: dict[str, PriceTable] = {}
    worst: list[tuple[str | None, PriceTable]] = []
    for tier, context in contexts:
        for moment in moments:
            table = table_of(info.get_prices(moment, context))
            if table is not None and (tier, table) not in worst:
                worst.append((tier, table))
        if tier is not None and context is not None and len(context) == 1:
            table = table_of(info.get_prices(now, context))
            if table is not None:
                tiers[tier] = table
    keys = {k for k, v in standard_price.__dict__.items() if v is not None}
    return ModelPricing(
        model=info.id,
        provider=provider,
        source="genai-prices",
        standard=standard,
        tiers=tiers,
        worst=tuple(worst),
        context_window=info.context_window,
        has_output=any(key.startswith("output") for key in keys),
        valid_until=valid_until,
        fees=fees if len(fees) > 1 else {},
        multipliers=multipliers,
        ceilings=_TIER_CEILINGS.get(provider, {}),
        unseen=tuple(sorted(key.removesuffix("_mtok") for key in keys & _UNSEEN_OUTPUT)),
        uses=_Listed(standard_price).uses,
    )


def _ratio(price: ModelPrice, standard: ModelPrice) -> Multiplier:
    """By what the dearest class of a variant is dearer."""
    found = Fraction(1)
    for key, value in price.__dict__.items():
        base = standard.__dict__.get(key)
        if isinstance(value, Decimal) and isinstance(base, Decimal) and base:
            found = max(found, Fraction(value) / Fraction(base))
    return found.numerator, found.denominator


def _moments(info: ModelInfo, now: datetime) -> tuple[list[datetime], float]:
    """The moments whose prices may hold for a call that starts now, and until when."""
    from genai_prices.types import ConditionalPrice, StartDateConstraint, TimeOfDateConstraint

    conditions: list[Any] = []
    if isinstance(info.prices, list):
        conditions += [c.constraint for c in info.prices if isinstance(c, ConditionalPrice)]
    conditions += [v.constraint for v in info.price_variants or ()]
    moments, until = [now], FOREVER
    for condition in conditions:
        if isinstance(condition, TimeOfDateConstraint):
            for at in (condition.start_time, condition.end_time):
                moments.append(datetime.combine(now.date(), at, at.tzinfo or timezone.utc))
            until = min(until, (now.timestamp() // 60 + 1) * 60)
        elif isinstance(condition, StartDateConstraint) and condition.start_date > now.date():
            if condition.start_date - now.date() <= timedelta(days=1):
                moments.append(datetime.combine(condition.start_date, datetime.min.time(), timezone.utc))
            until = min(until, next_midnight(now).timestamp())
    return moments, until


def next_midnight(now: datetime) -> datetime:
    """When the day of `now` ends (UTC)."""
    return datetime.combine(now.date() + timedelta(days=1), datetime.min.time(), timezone.utc)


_INPUT = {"family": "tokens", "direction": "input"}
_OUTPUT = {"family": "tokens", "direction": "output"}
# The class of tokens that each of our rates prices, in the price list's own dimensions. One that
# the list has no price for costs what the class above it does, as in the list's own calculation:
# thinking is billed as output (https://developers.openai.com/api/docs/guides/reasoning,
# https://ai.google.dev/gemini-api/docs/pricing: "including thinking tokens"), a prompt that was
# cached without a discount as any other, and where writing to a cache has no price, the prompt
# is billed as such (https://developers.openai.com/api/docs/guides/prompt-caching: no extra fee).
_CLASSES: dict[str, dict[str, str]] = {
    "input": {**_INPUT, "modality": "text"},
    "cached_input": {**_INPUT, "modality": "text", "token_type": "cache_read"},
    "cache_write": {**_INPUT, "modality": "text", "token_type": "cache_write", "cache_ttl": "5m"},
    "cache_write_1h": {**_INPUT, "modality": "text", "token_type": "cache_write", "cache_ttl": "1h"},
    "output": {**_OUTPUT, "modality": "text"},
    "reasoning": {**_OUTPUT, "modality": "text", "token_type": "reasoning"},
}
# Audio is another matter: no provider sells it at the price of text unless its page says so.
_AUDIO: dict[str, dict[str, str]] = {
    "input_audio": {**_INPUT, "modality": "audio"},
    "output_audio": {**_OUTPUT, "modality": "audio"},
}
_CACHED_AUDIO = {**_INPUT, "modality": "audio", "token_type": "cache_read"}
# Usage in OpenAI's shape does not tell these from text; answers of models that have such a price
# may be of them, so their output is booked at the dearest.
_UNSEEN_OUTPUT = frozenset({"output_image_mtok", "output_video_mtok"})


@lru_cache(maxsize=1)
def _units() -> dict[str, tuple[int, dict[str, str]]]:
    """The price list's units by the key of their price: (units per price, dimensions)."""
    from genai_prices.data_units import unit_data

    return {unit["price_key"]: (unit["per"], unit["dimensions"]) for unit in unit_data.values()}


class _Listed:
    """A price of the list, asked class by class."""

    def __init__(self, price: ModelPrice) -> None:
        from genai_prices.types import TieredPrices

        self._tiered = TieredPrices
        self._priced: list[tuple[dict[str, str], int, Any]] = []
        self.request = 0
        self.uses: dict[str, int] = {}
        self.starts = {0}
        for key, value in price.__dict__.items():
            if value is None or key.startswith("_"):
                continue
            per, dimensions = _units()[key]
            if dimensions.get("family") == "tool_calls" and isinstance(value, Decimal):
                self.uses[dimensions["tool_type"]] = to_femto(value, per)
            elif dimensions.get("family") == "requests":
                top = (
                    value
                    if isinstance(value, Decimal)
                    else max([value.base, *(t.price for t in value.tiers)])
                )
                self.request += to_femto(top, per)
            elif dimensions.get("family") == "tokens":
                self._priced.append((dimensions, per, value))
                if isinstance(value, TieredPrices):
                    self.starts.update(tier.start for tier in value.tiers)

    def rate(self, wanted: dict[str, str], start: int, *, own: tuple[str, str] | None = None) -> int | None:
        """The rate of the nearest class that has one, of prompts longer than `start`.

        Args:
            own: a dimension that the class must have itself.
        """
        best: tuple[int, int] | None = None
        for dimensions, per, value in self._priced:
            if dimensions.items() <= wanted.items() and (own is None or dimensions.get(own[0]) == own[1]):
                usd = value
                if isinstance(usd, self._tiered):
                    applicable = [t.price for t in usd.tiers if start >= t.start and start > 0]
                    usd = applicable[-1] if applicable else usd.base
                if best is None or len(dimensions) > best[0]:
                    best = (len(dimensions), to_femto(usd, per))
        return best[1] if best else None


def _table(price: ModelPrice, provider: str, name: ModelName, fee: int) -> PriceTable | None:
    """A price's rates by tier; None if plain input tokens have no price.

    Args:
        fee: what a request costs at most, by our own data.
    """
    listed = _Listed(price)
    if listed.rate(_CLASSES["input"], 0) is None:
        return None
    tiers = []
    for start in sorted(listed.starts):
        rates: dict[str, Any] = {key: listed.rate(wanted, start) or 0 for key, wanted in _CLASSES.items()}
        if name.plain.startswith("claude"):
            _write_as_claude(rates, listed, start)
        rates["missing"] = _hear(rates, listed, start, provider, name)
        for modality in ("image", "video"):
            seen = listed.rate({**_OUTPUT, "modality": modality}, start, own=("modality", modality)) or 0
            rates["output"] = max(rates["output"], seen)
        seen = listed.rate({**_INPUT, "modality": "image"}, start, own=("modality", "image")) or 0
        tiers.append((start, Rates(**rates, other_input=seen, request=max(listed.request, fee))))
    return PriceTable(tuple(tiers))


def _write_as_claude(rates: dict[str, Any], listed: _Listed, start: int) -> None:
    """Claude's writes to the cache where the list lacks them: 1.25 and 2 times the input.

    Wherever it is served: https://platform.claude.com/docs/en/build-with-claude/prompt-caching#pricing
    """
    if listed.rate(_CLASSES["cache_write"], start, own=("token_type", "cache_write")) is None:
        rates["cache_write"] = -(-rates["input"] * 5 // 4)
    if listed.rate(_CLASSES["cache_write_1h"], start, own=("cache_ttl", "1h")) is None:
        rates["cache_write_1h"] = 2 * rates["input"]


def _hear(
    rates: dict[str, Any], listed: _Listed, start: int, provider: str, name: ModelName
) -> frozenset[str]:
    """Put the rates of audio in; the classes that have none are returned."""
    missing = set()
    audio = ("modality", "audio")
    for key, dearest in (("input_audio", DEAREST_AUDIO_IN), ("output_audio", DEAREST_AUDIO_OUT)):
        rate = listed.rate(_AUDIO[key], start, own=audio)
        if rate is None and provider == "google" and name.plain.startswith("gemini"):
            # One price stands for every kind of input where Google's page names no other for audio,
            # and what a text-to-speech model puts out is audio: https://ai.google.dev/gemini-api/docs/pricing
            if key == "input_audio":
                rate = rates["input"]
            elif "tts" in name.plain:
                rate = rates["output"]
        if rate is None:
            missing.add(key)
        rates[key] = dearest if rate is None else rate
    cached = listed.rate(_CACHED_AUDIO, start, own=audio)
    plain_input = "input_audio" in missing or rates["input_audio"] != rates["input"]
    # Audio with a price of its own and none when cached is billed as if it were not.
    rates["cached_audio"] = (
        cached if cached is not None else (rates["input_audio"] if plain_input else rates["cached_input"])
    )
    return frozenset(missing)
