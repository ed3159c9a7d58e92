"""Finds prices and keeps them: the user's own first, then the price list's.

Everything that does not change between two calls of a model is worked out once, so that a look-up
on the way of a call is one of a dictionary.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple, TypeVar

from ..rules.errors import ConfigError, UnknownPrice
from ..rules.names import read_name
from .habits import Searching, searching, shows_all_it_writes
from .list import FOREVER, claude_multipliers, entry, find_listed, free, next_midnight
from .lists import PriceList, brought, read_list
from .rates import ModelPricing, Price, PriceTable

_K = TypeVar("_K")
_V = TypeVar("_V")
_MOST_REMEMBERED = 10_000
"""Names of models come from outside: only so many are kept."""

# OpenRouter's suffixes that say how a request is routed; the model's price is the base's.
# https://openrouter.ai/docs/guides/routing/model-variants/overview
_ROUTING = frozenset({"nitro", "floor", "exacto", "online"})
# Open weights that OpenAI's name stands on and anybody may serve: without a provider, no price.
_SERVED_BY_ANYONE = ("gpt-oss*",)


class ReplyPricing(NamedTuple):
    """Whose price a reply is billed at.

    Attributes:
        pricings: those to look at; the dearest is booked. Empty: none is known.
        other: whether the reply names another model than was asked for.
        known: whether the price of the model that the reply names is known.
    """

    pricings: tuple[ModelPricing, ...]
    other: bool
    known: bool


class Pricing:
    """Finds and compiles prices; safe to share between threads.

    Args:
        prices: the user's own, by model; a name or a pattern's exact text wins over the list.
        aliases: deployment or proxy names, by the model that they stand for.
        price_list: the file of a newer price list; None: the one that is installed. See `lists`.

    Raises:
        ConfigError: a price or the list cannot be used.
    """

    def __init__(
        self,
        prices: Mapping[str, Price | Sequence[Price]] | None = None,
        aliases: Mapping[str, str] | None = None,
        price_list: str | Path | None = None,
    ) -> None:
        self._list = None if price_list is None else read_list(price_list)
        self._own: dict[str, tuple[Price, ...]] = {}
        for model, given in (prices or {}).items():
            listed = tuple(given) if isinstance(given, (list, tuple)) else (given,)
            if not listed or not all(isinstance(p, Price) for p in listed):
                raise ConfigError(f"the price of {model!r} is a Price or a list of them, not {given!r}")
            self._own[model] = tuple(sorted(listed, key=lambda p: p.start or date.min))
        self._aliases = dict(aliases or {})
        self._lasting: dict[tuple[str, str | None], ModelPricing] = {}
        self._passing: dict[tuple[str, str | None], ModelPricing | UnknownPrice] = {}
        self._replies: dict[tuple[str, str | None, str], tuple[ModelPricing, float, ReplyPricing]] = {}
        self._past: dict[tuple[str, str | None, date], ModelPricing | None] = {}
        self._lock = threading.Lock()

    @property
    def listed(self) -> PriceList:
        """The price list that is looked into, under the user's own prices."""
        return self._list or brought()

    def find(self, model: str, provider: str | None = None) -> ModelPricing:
        """The pricing of `model`.

        Args:
            model: as it is sent to, or comes back from, the provider.
            provider: a genai-prices provider id; None: the one that the model's name suggests.

        Raises:
            UnknownPrice: no price is known.
        """
        found = self._lasting.get((model, provider))
        return found if found is not None else self._find(model, provider)

    def _find(self, model: str, provider: str | None) -> ModelPricing:
        key = (model, provider)
        found = self._passing.get(key)
        if isinstance(found, ModelPricing) and found.valid_until > time.time():
            return found
        if isinstance(found, UnknownPrice):
            raise UnknownPrice(model, provider)
        with self._lock:
            try:
                compiled = self._compile(model, provider)
            except UnknownPrice:
                # Not this very error: it holds on to the frames, and the prompts, that it came through.
                _remember(self._passing, key, UnknownPrice(model, provider))
                raise
            if compiled.valid_until == FOREVER:
                _remember(self._lasting, key, compiled)
            else:
                _remember(self._passing, key, compiled)
            return compiled

    def find_at(self, model: str, provider: str | None, when: datetime) -> ModelPricing:
        """The pricing of `model` on a day that is past; see `find`."""
        key = (model, provider, when.date())
        if key not in self._past:
            try:
                _remember(self._past, key, self._compile(model, provider, when))
            except UnknownPrice:
                _remember(self._past, key, None)
        found = self._past[key]
        if found is None:
            raise UnknownPrice(model, provider)
        return found

    def context_window(self, model: str, provider: str | None = None) -> int | None:
        """The most tokens that `model` takes in; None where it is not known."""
        try:
            return self.find(model, provider).context_window
        except UnknownPrice:
            return None

    def names_of(self, model: str) -> tuple[str, ...]:
        """What `model` is an alias of (or itself); that without prefixes, and without its date."""
        name = self._aliases.get(model, model)
        known = read_name(name)
        return name.lower(), known.plain, known.undated

    def canonical(self, model: str) -> str:
        """`model` as what it stands for: through aliases, prefixes, regions, suffixes; lower case.

        For patterns over models' names: of tokenizers, of habits. A fine-tuned model is its base.
        """
        return read_name(self._aliases.get(model, model)).plain

    def shows_all_it_writes(self, model: str, provider: str | None = None) -> bool:
        """Whether what `model` shows is known to be all that it bills as output.

        True only of models known not to think unless a request asks for it; False of all others,
        and of those that are not known.
        """
        return shows_all_it_writes(self._aliases.get(model, model))

    def searching(self, model: str) -> Searching | None:
        """What `model` does by itself beside answering; None: nothing that is known."""
        return searching(self._aliases.get(model, model))

    def same_model(self, one: str, other: str, provider: str | None = None) -> bool:
        """Whether two names are of one model: an alias, a dated name, a route of the other."""
        if one == other:
            return True
        first, second = self._aliases.get(one, one), self._aliases.get(other, other)
        a, b = read_name(first), read_name(second)
        if a.tuned != b.tuned or (a.tuned and a.rest != b.rest):
            # A reply may leave a fine-tuned model's suffix out, never another base.
            return a.tuned and b.tuned and a.undated == b.undated
        if a.plain == b.plain:
            return True
        if a.undated == b.undated and (
            a.plain == a.undated or b.plain == b.undated or "latest" in first + second
        ):
            return True
        if searching(first) or searching(second):
            return False
        entries = [self._entry(name, provider) for name in (first, second)]
        return entries[0] is not None and entries[0] == entries[1]

    def for_reply(
        self,
        asked: ModelPricing | None,
        model: str,
        reply: str | None,
        provider: str | None = None,
        others: Sequence[str] = (),
    ) -> ReplyPricing:
        """Whose price a reply is billed at, where it names its model.

        A price of the user's own stands for the model that it names, under all of its names. Where a
        reply names another model, the user's word is not about it: both are looked at.

        Args:
            asked: the pricing that the call was planned with; None: it has none.
            model, provider: as the call was planned.
            reply: the model that the reply names.
            others: further models that the request has said may answer.
        """
        if others and reply is not None:
            named = next((m for m in others if m == reply or self.same_model(m, reply, provider)), None)
            if named is not None:
                return self._for_named(asked, named, provider)
        if reply is None or reply == model:
            return ReplyPricing((asked,) if asked is not None else (), False, asked is not None)
        if asked is None:
            return ReplyPricing((), not self.same_model(model, reply, provider), False)
        key = (model, provider, reply)
        found = self._replies.get(key)
        if found is None or found[0] is not asked or found[1] <= time.time():
            fresh = self._for_reply(asked, model, reply, provider)
            until = min(p.valid_until for p in (asked, *fresh.pricings))
            found = (asked, until, fresh)
            _remember(self._replies, key, found)
        return found[2]

    def _for_named(self, asked: ModelPricing | None, named: str, provider: str | None) -> ReplyPricing:
        try:
            return ReplyPricing((self.find(named, provider),), True, True)
        except UnknownPrice:
            return ReplyPricing((asked,) if asked is not None else (), True, False)

    def _for_reply(self, asked: ModelPricing, model: str, reply: str, provider: str | None) -> ReplyPricing:
        same = self.same_model(model, reply, provider)
        name = self._aliases.get(model, model)
        # OpenRouter leaves a suffix out of its replies; who gave an alias said what it stands for.
        stands = asked.own or name != model or bool(read_name(name).variant)
        if same and stands and reply not in self._own:
            return ReplyPricing((asked,), False, True)
        if asked.own and not same and reply not in self._own and self._entry(name, provider) is None:
            # A deployment's own name says nothing of the model behind it: its price is the user's word.
            return ReplyPricing((asked,), False, True)
        try:
            other = self.find(reply, provider)
        except UnknownPrice:
            return ReplyPricing((asked,), not same, same)
        if asked.own and not same:
            return ReplyPricing((asked, other), True, True)
        return ReplyPricing((other,), not same, True)

    def _entry(self, name: str, provider: str | None) -> tuple[str, str] | None:
        """Which entry of the price list a name means."""
        for where, what in _ids(name, provider):
            found = entry(where, what, self._list)
            if found is not None:
                return found[0].id, found[1].id
        return None

    def _compile(self, model: str, provider: str | None, when: datetime | None = None) -> ModelPricing:
        name = self._aliases.get(model, model)
        now = when or datetime.now(timezone.utc)
        own = self._own.get(model) or self._own.get(name) or ()
        current = [p for p in own if p.start is None or p.start <= now.date()]
        later = [p for p in own if p.start is not None and p.start > now.date()]
        # A call reserved just before midnight may be billed after it.
        soon = [p for p in later if p.start == now.date() + timedelta(days=1)]
        until = next_midnight(now).timestamp() if later else FOREVER
        if current:
            return _own_pricing(name, provider, [current[-1], *soon], until)
        listed = next(
            (f for i in _ids(name, provider) if (f := _listed(*i, now, self._list)) is not None), None
        )
        if listed is None:
            raise UnknownPrice(model, provider)
        worst = (*listed.worst, *((None, p.table()) for p in soon))
        return replace(listed, worst=worst, valid_until=min(listed.valid_until, until))


ASKS_NOBODY = "in-memory"
"""The provider of models that answer by themselves, in this process."""


def _remember(cache: dict[_K, _V], key: _K, found: _V) -> None:
    if len(cache) >= _MOST_REMEMBERED:
        cache.clear()
    cache[key] = found


def _own_pricing(name: str, provider: str | None, prices: Sequence[Price], until: float) -> ModelPricing:
    """A price of the user's own, and one that follows it tomorrow.

    What a model does by itself costs what it costs, unless the price says what a request does.
    """
    found = searching(name)
    fees = dict(found.fees) if found and prices[0].request is None else {}
    tables = [_with_fee(p.table(), max(fees.values(), default=0)) for p in prices]
    return ModelPricing(
        model=name,
        provider=provider,
        source="your own price",
        standard=tables[0],
        tiers={},
        worst=tuple((None, table) for table in tables),
        context_window=None,
        has_output=prices[0].output is not None,
        valid_until=until,
        fees=fees if len(fees) > 1 else {},
        multipliers=claude_multipliers(read_name(name)),
        own=True,
    )


def _with_fee(table: PriceTable, fee: int) -> PriceTable:
    return (
        PriceTable(tuple((s, replace(r, request=r.request + fee)) for s, r in table.tiers)) if fee else table
    )


def _listed(provider: str | None, model: str, now: datetime, listed: PriceList | None) -> ModelPricing | None:
    if provider == "openrouter" and model.endswith(":free"):
        # https://openrouter.ai/docs/guides/routing/model-variants/overview: the price of such an entry is
        # zero, and one that is not in the catalogue is not answered.
        return free(model, provider, "OpenRouter's page")
    if provider == ASKS_NOBODY:
        return free(model, provider, "it asks nobody")
    return find_listed(provider, model, now, listed)


def _ids(model: str, provider: str | None) -> Iterator[tuple[str | None, str]]:
    """Where the price list may have a model, and by which id: the likeliest first."""
    text = model.strip().lower()
    name = read_name(text)
    if "us-gov." in text:
        return  # prices of AWS GovCloud are others: https://aws.amazon.com/govcloud-us/pricing
    if provider is None and name.route is None and any(fnmatchcase(name.plain, p) for p in _SERVED_BY_ANYONE):
        return
    where = provider or name.route
    for place in [where] if where else [None, "openai"]:
        yield place, text
        if name.rest != text:
            yield place, name.rest
        if name.variant in _ROUTING and (place == "openrouter" or provider is None):
            yield place, name.rest.rpartition(":")[0]
            yield place, text.rpartition(":")[0]
        elif name.variant == "thinking" and name.plain.startswith("claude"):
            yield place, name.rest.rpartition(":")[0]
        if place == "openrouter" and text.startswith("openrouter/"):
            yield place, text.partition("/")[2]
