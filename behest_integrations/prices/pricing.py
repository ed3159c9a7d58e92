"""What a call costs, and what it may cost at most. Integers throughout.

Prices come from genai-prices and from the user's own `Price`s. A lookup there takes tens
of microseconds, so each model is compiled once into rates of femto-dollars (1e-15 USD)
per token: the price list's smallest prices are exact in that unit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..rules.errors import ConfigError, UnknownPrice
from ..rules.usage import Usage

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider

FEMTO = 10**15
"""Femto-dollars in a dollar."""
FEMTO_PER_NANO = 10**6
_MOST_REMEMBERED = 10_000
"""Names of models come from outside: only so many are kept."""


def ceil_nano(femto: int) -> int:
    """Femto-dollars as nano-dollars, rounded up: how a bound is rounded."""
    return -(-femto // FEMTO_PER_NANO)


def round_nano(femto: int) -> int:
    """Femto-dollars as nano-dollars, half to even: how a cost is rounded."""
    quotient, rest = divmod(femto, FEMTO_PER_NANO)
    half = FEMTO_PER_NANO // 2
    return quotient + (rest > half or (rest == half and quotient & 1))


def _femto(usd: Decimal, per: int) -> int:
    """Femto-dollars per unit of a price per `per` units; rounded up where not exact.

    Less than a millionth of that is what is left of somebody's float in the price list.
    """
    scaled = round(usd * FEMTO / per, 6)
    whole = int(scaled)
    return whole + (whole < scaled)


@dataclass(frozen=True)
class Rates:
    """Femto-dollars per token of each class. Exact: no rounding before the sum."""

    input: int = 0
    cached_input: int = 0
    cache_write: int = 0
    input_audio: int = 0
    cached_audio: int = 0
    output: int = 0
    reasoning: int = 0
    output_audio: int = 0
    request: int = 0

    def cost(self, usage: Usage) -> int:
        """Femto-dollars for `usage`."""
        cached, write, audio = usage.cached_input_tokens, usage.cache_write_tokens, usage.input_audio_tokens
        # Where a provider's classes overlap (cached audio), the overlap is unknown: text is
        # what is left after the others, never below zero.
        text = max(0, usage.input_tokens - cached - write - audio)
        plain = max(0, usage.output_tokens - usage.reasoning_tokens - usage.output_audio_tokens)
        return (
            self.request
            + text * self.input
            + cached * self.cached_input
            + write * self.cache_write
            + audio * self.input_audio
            + plain * self.output
            + usage.reasoning_tokens * self.reasoning
            + usage.output_audio_tokens * self.output_audio
        )

    def dearest_input(self, *, audio: bool) -> int:
        text = max(self.input, self.cached_input, self.cache_write)
        return max(text, self.input_audio, self.cached_audio) if audio else text

    def dearest_output(self, *, audio: bool) -> int:
        text = max(self.output, self.reasoning)
        return max(text, self.output_audio) if audio else text


@dataclass(frozen=True)
class PriceTable:
    """A model's rates by length of prompt: from `start` input tokens *exceeded* upward."""

    tiers: tuple[tuple[int, Rates], ...]

    def rates(self, input_tokens: int) -> Rates:
        chosen = self.tiers[0][1]
        for start, rates in self.tiers[1:]:
            if input_tokens <= start:
                break
            chosen = rates
        return chosen


@dataclass(frozen=True)
class Price:
    """A price of your own, in USD per million tokens (text, int or Decimal, never float).

    Args:
        input, output: the two that every model has; `output` may be left out for embeddings.
        cached_input: default: as `input`.
        cache_write: default: as `input`.
        reasoning: default: as `output`.
        input_audio, output_audio: default: as text.
        request: USD per request, on top.
        start: the first day (UTC) on which the price holds; before it, the price that
            would hold without this one.
    """

    input: Decimal | str | int
    output: Decimal | str | int | None = None
    cached_input: Decimal | str | int | None = None
    cache_write: Decimal | str | int | None = None
    reasoning: Decimal | str | int | None = None
    input_audio: Decimal | str | int | None = None
    output_audio: Decimal | str | int | None = None
    request: Decimal | str | int | None = None
    start: date | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "start":
                if value is not None and not isinstance(value, date):
                    raise ConfigError(f"start is a date, not {value!r}")
                continue
            if value is None:
                continue
            if isinstance(value, (float, bool)):
                raise ConfigError(f"a price is text, int or Decimal, not float: {f.name}={value!r}")
            try:
                usd = Decimal(value.strip().lstrip("$") if isinstance(value, str) else value)
            except (InvalidOperation, TypeError, ValueError):
                raise ConfigError(f"not a price in USD: {f.name}={value!r}") from None
            if not usd.is_finite() or not 0 <= usd <= 10**6:
                raise ConfigError(f"a price lies between $0 and $1,000,000: {f.name}={value!r}")
            object.__setattr__(self, f.name, usd)

    def table(self) -> PriceTable:
        def rate(value: object, default: int = 0) -> int:
            return _femto(value, 10**6) if isinstance(value, Decimal) else default

        i, o = rate(self.input), rate(self.output)
        audio = rate(self.input_audio, i)
        cached = rate(self.cached_input, i)
        return PriceTable(
            (
                (
                    0,
                    Rates(
                        input=i,
                        cached_input=cached,
                        cache_write=rate(self.cache_write, i),
                        input_audio=audio,
                        cached_audio=max(audio, cached),
                        output=o,
                        reasoning=rate(self.reasoning, o),
                        output_audio=rate(self.output_audio, o),
                        request=_femto(self.request, 1) if isinstance(self.request, Decimal) else 0,
                    ),
                ),
            )
        )


@dataclass(frozen=True)
class ModelPricing:
    """Everything known of a model's price at one moment.

    Attributes:
        model, provider: what was priced, as the price list calls it.
        source: where the price comes from.
        standard: the rates without a service tier.
        tiers: the rates by the service tier that a reply names.
        worst: every table a request could still fall under.
        context_window: the most input tokens that the model takes, if known.
        has_output: whether output has a price (embeddings have none).
        valid_until: seconds since 1970 after which to look again.
    """

    model: str
    provider: str | None
    source: str
    standard: PriceTable
    tiers: Mapping[str, PriceTable]
    worst: tuple[tuple[str | None, PriceTable], ...]
    context_window: int | None
    has_output: bool
    valid_until: float
    _bounds: dict[tuple[str | None, bool, bool], tuple[tuple[int, int, int, int], ...]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def cost(self, usage: Usage, service_tier: str | None = None) -> int:
        """Nano-dollars for `usage`, rounded half to even."""
        table = self.tiers.get(service_tier or "", self.standard)
        return round_nano(table.rates(usage.input_tokens).cost(usage))

    def bound(
        self,
        input_tokens: int,
        *,
        service_tier: str | None,
        input_audio: bool = False,
        output_audio: bool = False,
    ) -> tuple[int, int]:
        """Upper bounds in femto-dollars: (for the prompt and the request, per output token).

        Args:
            input_tokens: an upper bound of the prompt.
            service_tier: the tier that the request pins; None or ``auto`` may become any.
            input_audio, output_audio: whether tokens of audio can occur.
        """
        fixed = per_output = 0
        for start, request, per_input, per_out in self._dearest(service_tier, input_audio, output_audio):
            if input_tokens > start or not start:
                fixed = max(fixed, request + input_tokens * per_input)
                per_output = max(per_output, per_out)
        return fixed, per_output

    def _dearest(
        self, service_tier: str | None, input_audio: bool, output_audio: bool
    ) -> tuple[tuple[int, int, int, int], ...]:
        """(prompt over, per request, per input token, per output token) of all that could apply."""
        key = (service_tier, input_audio, output_audio)
        found = self._bounds.get(key)
        if found is None:
            pinned = service_tier not in (None, "auto")
            found = self._bounds[key] = tuple(
                {
                    (
                        start,
                        rates.request,
                        rates.dearest_input(audio=input_audio),
                        rates.dearest_output(audio=output_audio),
                    )
                    for tier, table in self.worst
                    if not pinned or tier is None or tier == service_tier
                    for start, rates in table.tiers
                }
            )
        return found


class Pricing:
    """Finds and compiles prices; safe to share between threads.

    Args:
        prices: the user's own, by model; a name or a pattern's exact text wins over the list.
        aliases: deployment or proxy names, by the model that they stand for.
    """

    def __init__(
        self,
        prices: Mapping[str, Price | Sequence[Price]] | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self._own: dict[str, tuple[Price, ...]] = {}
        for model, given in (prices or {}).items():
            listed = tuple(given) if isinstance(given, (list, tuple)) else (given,)
            if not listed or not all(isinstance(p, Price) for p in listed):
                raise ConfigError(f"the price of {model!r} is a Price or a list of them, not {given!r}")
            self._own[model] = tuple(sorted(listed, key=lambda p: p.start or date.min))
        self._aliases = dict(aliases or {})
        self._cache: dict[tuple[str, str | None], ModelPricing | UnknownPrice] = {}
        self._lock = threading.Lock()

    def find(self, model: str, provider: str | None = None) -> ModelPricing:
        """The pricing of `model`.

        Args:
            model: as it is sent to, or comes back from, the provider.
            provider: a genai-prices provider id; None: the one that the model's name suggests.

        Raises:
            UnknownPrice: no price is known.
        """
        key = (model, provider)
        found = self._cache.get(key)
        if isinstance(found, ModelPricing) and found.valid_until > time.time():
            return found
        if isinstance(found, UnknownPrice):
            raise UnknownPrice(model, provider)
        with self._lock:
            try:
                compiled = self._compile(model, provider)
            except UnknownPrice:
                # Not this very error: it holds on to the frames, and the prompts, that it came through.
                self._remember(key, UnknownPrice(model, provider))
                raise
            self._remember(key, compiled)
            return compiled

    def _remember(self, key: tuple[str, str | None], found: ModelPricing | UnknownPrice) -> None:
        if len(self._cache) >= _MOST_REMEMBERED:
            self._cache.clear()
        self._cache[key] = found

    def context_window(self, model: str, provider: str | None = None) -> int | None:
        """The most tokens that `model` takes in; None where it is not known."""
        try:
            return self.find(model, provider).context_window
        except UnknownPrice:
            return None

    def _compile(self, model: str, provider: str | None) -> ModelPricing:
        name = self._aliases.get(model, model)
        now = datetime.now(timezone.utc)
        own = self._own.get(model) or self._own.get(name) or ()
        current = [p for p in own if p.start is None or p.start <= now.date()]
        later = [p for p in own if p.start is not None and p.start > now.date()]
        # A call reserved just before midnight may be billed after it.
        soon = [p for p in later if p.start == now.date() + timedelta(days=1)]
        midnight = datetime.combine(now.date() + timedelta(days=1), datetime.min.time(), timezone.utc)
        if current:
            price = current[-1]
            return ModelPricing(
                model=name,
                provider=provider,
                source="your own price",
                standard=price.table(),
                tiers={},
                worst=tuple((None, p.table()) for p in [price, *soon]),
                context_window=None,
                has_output=price.output is not None,
                valid_until=midnight.timestamp(),
            )
        listed = _from_list(name, provider, now)
        if listed is None:
            raise UnknownPrice(model, provider)
        if soon:
            worst = (*listed.worst, *((None, p.table()) for p in soon))
            return replace(listed, worst=worst, valid_until=midnight.timestamp(), _bounds={})
        return listed


def provider_for_url(url: str) -> str | None:
    """The price list's id for the provider behind a base URL; None if it knows none."""
    from genai_prices.data_snapshot import get_snapshot

    try:
        return get_snapshot().find_provider(None, None, url).id
    except LookupError:
        return None


# Where packages and frameworks have another name for a provider than the price list.
_PROVIDERS = {
    "azure_openai": "azure",
    "google_genai": "google",
    "google_vertexai": "google",
    "gemini": "google",
    "vertex": "google",
    "amazon_bedrock": "aws",
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "mistralai": "mistral",
    "xai": "x-ai",
    "together": "together",
    "fireworks": "fireworks",
}
_SAME = frozenset(
    {"openai", "azure", "anthropic", "google", "aws", "mistral", "groq", "cohere", "deepseek", "x-ai",
     "perplexity", "openrouter"}
)  # fmt: skip


def provider_named(name: str) -> str | None:
    """The price list's id for a provider's usual name; None if it is not known."""
    name = name.lower()
    return name if name in _SAME else _PROVIDERS.get(name)


def _from_list(model: str, provider_id: str | None, now: datetime) -> ModelPricing | None:
    from genai_prices.data_snapshot import get_snapshot

    snapshot = get_snapshot()
    # Without a provider, names such as text-embedding-3-small match none; those that are
    # served from an OpenAI-compatible address of the user's own are taken for OpenAI's.
    found: tuple[Provider, ModelInfo] | None = None
    for candidate in [provider_id] if provider_id else [None, "openai"]:
        try:
            found = snapshot.find_provider_model(model, None, candidate, None)
        except LookupError:
            continue
        break
    if found is None:
        return None
    provider, info = found
    return compile_model(info, provider.id, now)


def compile_model(info: ModelInfo, provider: str, now: datetime) -> ModelPricing | None:
    """Compile one model of the price list; None if it has no price for input tokens."""
    moments, valid_until = _moments(info, now)
    standard_price = info.get_prices(now)
    standard = _table(standard_price)
    if standard is None:
        return None
    contexts: list[tuple[str | None, dict[str, str] | None]] = [(None, None)]
    for variant in info.price_variants or ():
        # Batch prices apply to the batch API alone, which is not metered as a call.
        if variant.when.get("processing") == "batch":
            continue
        contexts.append((variant.when.get("service_tier"), dict(variant.when)))
    tiers: dict[str, PriceTable] = {}
    worst: list[tuple[str | None, PriceTable]] = []
    for tier, context in contexts:
        for moment in moments:
            table = _table(info.get_prices(moment, context))
            if table is not None and (tier, table) not in worst:
                worst.append((tier, table))
        if tier is not None and context is not None and len(context) == 1:
            table = _table(info.get_prices(now, context))
            if table is not None:
                tiers[tier] = table
    return ModelPricing(
        model=info.id,
        provider=provider,
        source="genai-prices",
        standard=standard,
        tiers=tiers,
        worst=tuple(worst),
        context_window=info.context_window,
        has_output=any(
            key.startswith("output") and value is not None for key, value in standard_price.__dict__.items()
        ),
        valid_until=valid_until,
    )


def _moments(info: ModelInfo, now: datetime) -> tuple[list[datetime], float]:
    """The moments whose prices may hold for a call that starts now, and until when."""
    from genai_prices.types import ConditionalPrice, StartDateConstraint, TimeOfDateConstraint

    conditions: list[Any] = []
    if isinstance(info.prices, list):
        conditions += [c.constraint for c in info.prices if isinstance(c, ConditionalPrice)]
    conditions += [v.constraint for v in info.price_variants or ()]
    moments = [now]
    for condition in conditions:
        if isinstance(condition, TimeOfDateConstraint):
            for at in (condition.start_time, condition.end_time):
                moments.append(datetime.combine(now.date(), at, at.tzinfo or timezone.utc))
        elif isinstance(condition, StartDateConstraint):
            ahead = condition.start_date - now.date()
            if timedelta(0) < ahead <= timedelta(days=1):
                moments.append(datetime.combine(condition.start_date, datetime.min.time(), timezone.utc))
    changes = any(c is not None for c in conditions)
    until = (now.timestamp() // 60 + 1) * 60 if changes else float("inf")
    return moments, until


_INPUT = {"family": "tokens", "direction": "input"}
_OUTPUT = {"family": "tokens", "direction": "output"}
# The class of tokens that each of our rates prices, in the price list's own dimensions.
_CLASSES: dict[str, dict[str, str]] = {
    "input": {**_INPUT, "modality": "text"},
    "cached_input": {**_INPUT, "modality": "text", "token_type": "cache_read"},
    "cache_write": {**_INPUT, "modality": "text", "token_type": "cache_write"},
    "input_audio": {**_INPUT, "modality": "audio"},
    "cached_audio": {**_INPUT, "modality": "audio", "token_type": "cache_read"},
    "output": {**_OUTPUT, "modality": "text"},
    "reasoning": {**_OUTPUT, "modality": "text", "token_type": "reasoning"},
    "output_audio": {**_OUTPUT, "modality": "audio"},
}


@lru_cache(maxsize=1)
def _units() -> dict[str, tuple[int, dict[str, str]]]:
    """The price list's units by the key of their price: (units per price, dimensions)."""
    from genai_prices.data_units import unit_data

    return {unit["price_key"]: (unit["per"], unit["dimensions"]) for unit in unit_data.values()}


def _table(price: ModelPrice) -> PriceTable | None:
    """A price's rates by tier; None if plain input tokens have no price."""
    from genai_prices.types import TieredPrices

    units = _units()
    priced: list[tuple[dict[str, str], int, Decimal | TieredPrices]] = []
    request = 0
    starts = {0}
    for key, value in price.__dict__.items():
        if value is None or key.startswith("_"):
            continue
        per, dimensions = units[key]
        if dimensions.get("family") == "requests":
            top = value if isinstance(value, Decimal) else max([value.base, *(t.price for t in value.tiers)])
            request += _femto(top, per)
        elif dimensions.get("family") == "tokens":
            priced.append((dimensions, per, value))
            if isinstance(value, TieredPrices):
                starts.update(tier.start for tier in value.tiers)

    def rate(wanted: dict[str, str], start: int) -> int | None:
        best: tuple[int, int] | None = None
        for dimensions, per, value in priced:
            if dimensions.items() <= wanted.items():
                usd = value
                if isinstance(usd, TieredPrices):
                    applicable = [t.price for t in usd.tiers if start >= t.start and start > 0]
                    usd = applicable[-1] if applicable else usd.base
                if best is None or len(dimensions) > best[0]:
                    best = (len(dimensions), _femto(usd, per))
        return best[1] if best else None

    if rate(_CLASSES["input"], 0) is None:
        return None
    tiers = []
    for start in sorted(starts):
        rates = {name: rate(wanted, start) or 0 for name, wanted in _CLASSES.items()}
        # Longer-lived cache entries cost more to write and replies do not say which it was.
        longest = rate({**_CLASSES["cache_write"], "cache_ttl": "1h"}, start) or 0
        rates["cache_write"] = max(rates["cache_write"], longest)
        tiers.append((start, Rates(**rates, request=request)))
    return PriceTable(tuple(tiers))
