"""What tokens of each class cost, and what a call may cost at most: exact integers throughout.

Rates are femto-dollars (1e-15 USD) per token: the price list's smallest prices are exact in
that unit, and nothing is rounded before the sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import date
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, NamedTuple

from ..rules.errors import ConfigError, UnknownPrice
from ..rules.usage import Usage
from .providers import Multiplier

FEMTO = 10**15
"""Femto-dollars in a dollar."""
FEMTO_PER_NANO = 10**6
_HALF = FEMTO_PER_NANO // 2

# The dearest that audio has been sold for by the token, $100 in and $200 out per million:
# gpt-4o-audio-preview-2024-10-01, https://platform.openai.com/docs/models/gpt-4o-audio-preview.
DEAREST_AUDIO_IN = 100 * 10**9
DEAREST_AUDIO_OUT = 200 * 10**9

# Service tiers that never cost more than the standard one, by their own description:
# https://developers.openai.com/api/docs/guides/flex-processing,
# https://platform.claude.com/docs/en/api/service-tiers (standard, standard_only, batch, and
# priority, which is bought beforehand), https://console.groq.com/docs/service-tiers (on_demand),
# https://docs.aws.amazon.com/bedrock/latest/userguide/service-tiers-inference.html (default, flex).
_HARMLESS_TIERS = frozenset(
    {"", "auto", "default", "standard", "standard_only", "on_demand", "flex", "batch", "unspecified"}
)


def ceil_nano(femto: int) -> int:
    """Femto-dollars as nano-dollars, rounded up: how a bound is rounded."""
    return -(-femto // FEMTO_PER_NANO)


def is_harmless(tier: str | None) -> bool:
    """Whether a service tier never costs more than the standard one."""
    return (tier or "") in _HARMLESS_TIERS


def round_nano(femto: int, parts: int = 1) -> int:
    """A `parts`-th of femto-dollars as nano-dollars, half to even: how a cost is rounded."""
    nano, rest = divmod(femto, FEMTO_PER_NANO * parts)
    twice = 2 * rest - FEMTO_PER_NANO * parts
    return nano + (twice > 0 or (twice == 0 and nano & 1))


def to_femto(usd: Decimal, per: int) -> int:
    """Femto-dollars per unit of a price per `per` units; rounded up where not exact.

    Less than a millionth of that is what is left of somebody's float in the price list.
    """
    scaled = round(usd * FEMTO / per, 6)
    whole = int(scaled)
    return whole + (whole < scaled)


@dataclass(frozen=True)
class Rates:
    """Femto-dollars per token of each class.

    Attributes:
        cache_write: of writes that live for five minutes, or as long as the provider pleases.
        cache_write_1h: of writes that are kept for an hour.
        other_input: the dearest of input that usage does not tell from text (images).
        request: femto-dollars for each request, on top.
        missing: the classes that have no rate. What is written for them here is the dearest
            that is known, so that what could not occur is booked from above if it does.
    """

    input: int = 0
    cached_input: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    input_audio: int = 0
    cached_audio: int = 0
    output: int = 0
    reasoning: int = 0
    output_audio: int = 0
    other_input: int = 0
    request: int = 0
    missing: frozenset[str] = frozenset()

    def cost(self, usage: Usage) -> int:
        """Femto-dollars for `usage`."""
        text = usage.input_tokens
        total = self.request
        cached, write, audio = usage.cached_input_tokens, usage.cache_write_tokens, usage.input_audio_tokens
        if cached or write or audio:
            text -= cached + write + audio
            if text < 0:  # audio that was cached is counted in both
                both = min(-text, cached, audio)
                total += both * (self.cached_audio - self.cached_input - self.input_audio)
                text = 0
            if write:
                hour = min(write, usage.cache_write_1h_tokens)
                total += (write - hour) * self.cache_write + hour * self.cache_write_1h
            total += cached * self.cached_input + audio * self.input_audio
        plain = usage.output_tokens
        thought, spoken = usage.reasoning_tokens, usage.output_audio_tokens
        if thought or spoken:
            plain = max(0, plain - thought - spoken)
            total += thought * self.reasoning + spoken * self.output_audio
        return total + text * self.input + plain * self.output

    def dearest_input(self, *, audio: bool, writes: str = "1h") -> int:
        """The most that a token of the prompt may cost.

        Args:
            writes: the longest life that a write to the cache can have: ``none``, ``5m``, ``1h``.
        """
        text = max(self.input, self.cached_input, self.other_input)
        if writes != "none":
            text = max(text, self.cache_write, self.cache_write_1h if writes == "1h" else 0)
        return max(text, self.input_audio, self.cached_audio) if audio else text

    def dearest_output(self, *, audio: bool) -> int:
        """The most that a token of the answer may cost."""
        text = max(self.output, self.reasoning)
        return max(text, self.output_audio) if audio else text


@dataclass(frozen=True)
class PriceTable:
    """A model's rates by length of prompt: from `start` input tokens *exceeded* upward."""

    tiers: tuple[tuple[int, Rates], ...]
    flat: Rates | None = field(init=False, repr=False, compare=False)
    """The rates, where the length of the prompt does not matter."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "flat", self.tiers[0][1] if len(self.tiers) == 1 else None)

    def rates(self, input_tokens: int) -> Rates:
        """The rates of a prompt that is so long."""
        chosen = self.tiers[0][1]
        for start, rates in self.tiers[1:]:
            if input_tokens <= start:
                break
            chosen = rates
        return chosen


@dataclass(frozen=True)
class Price:
    """A price of your own, in USD per million tokens (text, int or Decimal, never float).

    It stands for whatever service tier answers. What you leave out is priced as said here; audio
    alone has no such default: without a price for it, calls that may hear or speak are refused.

    Args:
        input, output: the two that every model has; `output` may be left out for embeddings.
        cached_input: default: as `input`.
        cache_write: default: as `input`.
        cache_write_1h: of cache entries that are kept for an hour; default: as `cache_write`.
        reasoning: default: as `output`.
        input_audio, output_audio: no default.
        request: USD per request, on top.
        start: the first day (UTC) on which the price holds; before it, the price that
            would hold without this one.

    Raises:
        ConfigError: it is no price.
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
    cache_write_1h: Decimal | str | int | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "start":
                if value is not None and not isinstance(value, date):
                    raise ConfigError(f"start is a date, not {value!r}")
                continue
            if value is not None:
                object.__setattr__(self, f.name, as_usd(f.name, value))
        if self.input is None:
            raise ConfigError('a price has at least input, as text: input="0.15" (USD per million tokens)')

    def table(self) -> PriceTable:
        """The price as rates."""

        def rate(value: object, default: int) -> int:
            return to_femto(value, 10**6) if isinstance(value, Decimal) else default

        i, o = rate(self.input, 0), rate(self.output, 0)
        cached, write = rate(self.cached_input, i), rate(self.cache_write, i)
        audio = rate(self.input_audio, i)
        absent = ("output", "input_audio", "output_audio")
        rates = Rates(
            input=i,
            cached_input=cached,
            cache_write=write,
            cache_write_1h=rate(self.cache_write_1h, write),
            input_audio=audio,
            cached_audio=max(audio, cached),
            output=o,
            reasoning=rate(self.reasoning, o),
            output_audio=rate(self.output_audio, o),
            request=to_femto(self.request, 1) if isinstance(self.request, Decimal) else 0,
            missing=frozenset(name for name in absent if getattr(self, name) is None),
        )
        return PriceTable(((0, rates),))


def as_usd(name: str, value: object) -> Decimal:
    """A price in USD.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, float):
        raise ConfigError(f'a price is never a float; write it as text: {name} = "{value}"')
    try:
        if isinstance(value, bool) or not isinstance(value, (str, int, Decimal)):
            raise TypeError
        usd = Decimal(value.strip().lstrip("$") if isinstance(value, str) else value)
    except (InvalidOperation, TypeError, ValueError):
        raise ConfigError(
            f'not a price in USD: {name}={value!r}; write it as text: {name} = "0.15"'
        ) from None
    if not usd.is_finite() or not 0 <= usd <= 10**6:
        raise ConfigError(f"a price lies between $0 and $1,000,000: {name}={value!r}")
    return usd


class _Ceiling(NamedTuple):
    """The most that a request may cost: femto-dollars. `longer`: the same for longer prompts."""

    request: int
    per_input: int
    per_output: int
    longer: tuple[tuple[int, int, int, int], ...]


_Key = tuple["str | None", bool, bool, str]
"""What a ceiling depends on: the tier, whether audio can be heard and spoken, the writes to the cache."""


@dataclass(frozen=True)
class ModelPricing:
    """Everything known of a model's price at one moment; in `terms`, what `terms_of` has made of it.

    Attributes:
        model, provider: what was priced, as the price list calls it.
        source: where the price comes from.
        standard: the rates without a service tier.
        tiers: the rates by the service tier that a reply names.
        worst: every table a request could still fall under, with the tier that it belongs to.
        context_window: the most input tokens that the model takes, if known.
        has_output: whether output has a price (embeddings have none).
        valid_until: seconds since 1970 after which to look again.
        fees: femto-dollars a request by size of the search context, where it depends on that;
            `Rates.request` is then the dearest.
        multipliers: what the price is multiplied by, by field and value of a request:
            ``("speed", "fast")``, ``("inference_geo", "us")``.
        ceilings: what a service tier multiplies the standard rates by at most, where it has
            no rates in `tiers`.
        own: whether the price is the user's own.
        uses: femto-dollars for each use of a tool that the provider runs, by its name (``web_search``).
        unseen: classes of tokens that a reply does not tell from others and that cost more;
            they are booked at the dearest.
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
    fees: Mapping[str, int] = field(default_factory=dict)
    multipliers: Mapping[tuple[str, str], Multiplier] = field(default_factory=dict)
    ceilings: Mapping[str, Multiplier] = field(default_factory=dict)
    own: bool = False
    unseen: tuple[str, ...] = ()
    uses: Mapping[str, int] = field(default_factory=dict)
    terms: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    _ceilings: dict[_Key, _Ceiling] = field(default_factory=dict, init=False, repr=False, compare=False)
    _tables: dict[str | None, PriceTable] = field(init=False, repr=False, compare=False)
    _plain: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_tables", {None: self.standard, **self.tiers})
        object.__setattr__(self, "_plain", not self.fees and not self.unseen and self.has_output)

    def cost(
        self,
        usage: Usage,
        service_tier: str | None = None,
        *,
        multiplier: Multiplier | None = None,
        search_context: str | None = None,
    ) -> int:
        """Nano-dollars for `usage`, rounded half to even.

        Where `unpriced` names something, this is the dearest that is known of it.

        Args:
            service_tier: the tier that the reply names.
            multiplier: what the price of tokens is multiplied by.
            search_context: the size that the reply (or the request) names, of a model that
                searches by itself; None: the dearest.
        """
        table = self._tables.get(service_tier)
        if table is None:
            return self._cost_unlisted(usage, service_tier or "", multiplier, search_context)
        rates = table.flat or table.rates(usage.input_tokens)
        femto = rates.cost(usage)
        if multiplier is None and search_context is None:
            nano, rest = divmod(femto, FEMTO_PER_NANO)
            if rest >= _HALF and (rest > _HALF or nano & 1):
                nano += 1
            return nano
        return self._finish(femto, rates, multiplier, search_context)

    def _finish(
        self, femto: int, rates: Rates, multiplier: Multiplier | None, search_context: str | None
    ) -> int:
        """Nano-dollars, with what a request costs on top, which nothing multiplies."""
        over, under = multiplier or (1, 1)
        tokens = femto - rates.request
        fee = rates.request
        if search_context is not None and self.fees:
            fee += self.fees.get(search_context, max(self.fees.values())) - max(self.fees.values())
        return round_nano(tokens * over + fee * under, under)

    def _cost_unlisted(
        self, usage: Usage, tier: str, multiplier: Multiplier | None, search_context: str | None
    ) -> int:
        """`cost` in a tier that the price list does not have for this model."""
        if self.own or tier in _HARMLESS_TIERS:
            return self.cost(usage, None, multiplier=multiplier, search_context=search_context)
        over, under = multiplier or (1, 1)
        if tier in self.ceilings:
            tables = [self.standard]
            over, under = over * self.ceilings[tier][0], under * self.ceilings[tier][1]
        else:
            tables = [table for _, table in self.worst]
        rates = [table.rates(usage.input_tokens) for table in tables]
        return max(self._finish(r.cost(usage), r, (over, under), search_context) for r in rates)

    def unpriced(
        self, usage: Usage, service_tier: str | None = None, *, search_context: str | None = None
    ) -> tuple[str, ...]:
        """What of `usage` has no price that is known: `cost` is then the dearest that is.

        Classes of `Rates`; ``service_tier``: a tier without rates; ``request``: a fee whose size
        was not told. An entry that has any is to be flagged.
        """
        if (
            self._plain
            and not usage.input_audio_tokens
            and not usage.output_audio_tokens
            and service_tier in self._tables
        ):
            return ()
        return tuple(self._unpriced(usage, service_tier, search_context))

    def _unpriced(self, usage: Usage, service_tier: str | None, search_context: str | None) -> list[str]:
        rates = self._tables.get(service_tier, self.standard).rates(usage.input_tokens)
        cached, audio = usage.cached_input_tokens, usage.input_audio_tokens
        found: list[str] = []
        if audio and "input_audio" in rates.missing:
            found.append("input_audio")
        if usage.output_audio_tokens and "output_audio" in rates.missing:
            found.append("output_audio")
        if usage.output_tokens:
            found += self.unseen if self.has_output else ("output",)
        # How much of the audio was cached is not told, unless all of one must have been.
        both = cached + audio + usage.cache_write_tokens - usage.input_tokens
        differs = rates.input - rates.cached_input != rates.input_audio - rates.cached_audio
        if differs and max(0, both) < min(cached, audio):
            found.append("cached_audio")
        tier = service_tier or ""
        if tier not in self.tiers and tier not in _HARMLESS_TIERS and not self.own:
            found.append("service_tier")
        if self.fees and search_context not in self.fees:
            found.append("request")
        return found

    def multiplier(self, asked: Mapping[str, object]) -> Multiplier | None:
        """What the price is multiplied by, for fields of a request or of a reply's usage.

        Args:
            asked: ``speed`` and ``inference_geo``, as far as they are there.

        Raises:
            UnknownPrice: it has a value whose price is not known.
        """
        over, under = 1, 1
        for name, neutral in (("speed", "standard"), ("inference_geo", "global")):
            value = asked.get(name)
            if value is None or value == neutral or (name == "inference_geo" and value == "not_available"):
                continue
            found = self.multipliers.get((name, value)) if isinstance(value, str) else None
            if found is None:
                raise UnknownPrice(self.model, self.provider, f"(Its price for {name} is not known.)")
            over, under = over * found[0], under * found[1]
        return None if over == under else (over, under)

    def bound(
        self,
        input_tokens: int,
        *,
        service_tier: str | None,
        input_audio: bool = False,
        output_audio: bool = False,
        multiplier: Multiplier | None = None,
        search_context: str | None = None,
        cache_writes: str = "1h",
    ) -> tuple[int, int]:
        """Upper bounds in femto-dollars: (for the prompt and the request, per output token).

        Args:
            input_tokens: an upper bound of the prompt.
            service_tier: the tier that the request pins; None or ``auto`` may become any.
            input_audio, output_audio: whether tokens of audio can occur.
            multiplier: what the price of tokens is multiplied by.
            search_context: the size that the request pins; None: any.
            cache_writes: the longest life that a write to the cache can have: ``none``, ``5m``, ``1h``.

        Raises:
            UnknownPrice: something that can occur has no price.
        """
        key = (service_tier, input_audio, output_audio, cache_writes)
        request, per_input, per_output, longer = self._ceilings.get(key) or self._ceiling(key)
        for start, more_request, more_input, more_output in longer:
            if input_tokens <= start:
                break
            request, per_input, per_output = more_request, more_input, more_output
        if search_context in self.fees:
            request += self.fees[search_context or ""] - max(self.fees.values())
        if multiplier is None:
            return request + input_tokens * per_input, per_output
        over, under = multiplier
        return request - (-input_tokens * per_input * over // under), -(-per_output * over // under)

    def over_ordinary(self) -> tuple[int, int]:
        """How much dearer the dearest tier that a call may fall in is than the ordinary one, at most: a
        numerator and a denominator."""
        keys: tuple[_Key, ...] = ((None, False, False, "1h"), ("default", False, False, "1h"))
        dearest, ordinary = (self._ceilings.get(key) or self._ceiling(key) for key in keys)
        pairs = ((dearest[1], ordinary[1]), (dearest[2], ordinary[2]))
        return min(((d, o) for d, o in pairs if o), key=lambda pair: Fraction(*pair), default=(1, 1))

    def _ceiling(self, key: _Key) -> _Ceiling:
        """The dearest of all that could apply, from each length of the prompt on."""
        tier, input_audio, output_audio, writes = key
        pinned = None if tier == "auto" else tier
        over, under = 1, 1
        if pinned and pinned not in self.tiers and pinned not in _HARMLESS_TIERS and not self.own:
            if pinned not in self.ceilings:
                raise UnknownPrice(
                    self.model, self.provider, f"(Its price in the tier {pinned!r} is not known.)"
                )
            over, under = self.ceilings[pinned]
        tables = [t for of, t in self.worst if pinned is None or of is None or of == pinned]
        for name, can in (("input_audio", input_audio), ("output_audio", output_audio)):
            if can and any(name in rates.missing for t in tables for _, rates in t.tiers):
                kind = name.replace("_", " ")
                raise UnknownPrice(
                    self.model, self.provider, f"(It has no price for {kind}, which can occur.)"
                )
        steps: list[tuple[int, int, int, int]] = []
        request = per_input = per_output = 0
        for start in sorted({start for table in tables for start, _ in table.tiers}):
            for table in tables:
                # What is longer than this may turn out shorter: so the maximum grows.
                rates = table.rates(start + 1)
                request = max(request, rates.request)
                per_input = max(per_input, rates.dearest_input(audio=input_audio, writes=writes))
                per_output = max(per_output, rates.dearest_output(audio=output_audio))
            step = (start, request, -(-per_input * over // under), -(-per_output * over // under))
            if not steps or steps[-1][1:] != step[1:]:
                steps.append(step)
        if len(self._ceilings) >= 256:  # a tier is what a caller writes
            self._ceilings.clear()
        found = self._ceilings[key] = _Ceiling(*steps[0][1:], tuple(steps[1:]))
        return found
