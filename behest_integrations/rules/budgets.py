"""Budgets: so much of a unit, per scope, per window. Values that parse and print back.

    $0.50 per session
    $5/day per user
    $1000/month in Europe/Paris
    2M output tokens/week per user and model
    $5/week from Sunday per user
    $20 per 24h rolling per user
    $50/day for model gpt-4o* for tag feature=support as support-team
    $5/day per user, warn only

This module knows nothing of stores: it says what a budget is, whom a bucket is for and
when its window turns over.

Over 500 lines: a budget and its text are one, since each is made from the other.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from decimal import ROUND_DOWN, Decimal, InvalidOperation
from functools import cached_property, lru_cache
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic_core import to_json

from .attribution import Attribution, check_id
from .errors import BudgetSyntaxError, ConfigError
from .units import NANO, UNITS, Unit, format_amount, known_units, unit_of

Calendar = Literal["minute", "hour", "day", "week", "month"]

MAX_AMOUNT = 2**62
"""Largest amount of any unit; two of them still fit in the store's 64 bits."""

GRAMMAR = """\
A budget is:  AMOUNT [/WINDOW [from DAY] [in ZONE]] [per SCOPE] [for FILTER]... [as NAME] [, warn only]
  AMOUNT   $0.50 · 50k tokens · 2M output tokens · 1k input tokens · 10 calls
  WINDOW   minute, hour, day, week, month (on the calendar), or e.g. 24h rolling
  DAY      on which a week begins, e.g. Sunday (Monday, if not said)
  ZONE     a time zone, e.g. Europe/Paris (the meter's, if not said)
  SCOPE    session, user, project, tenant, model, tag:NAME; joined by "and"
  FILTER   model gpt-4o* · user u-7 · session, project, tenant ID · tag feature=support
  NAME     letters, digits, "_", "-" and "."
  , warn only: it is counted, and warned of, and refuses nothing"""

_SCOPES = ("session", "user", "project", "tenant", "model")
_CALENDAR: tuple[Calendar, ...] = ("minute", "hour", "day", "week", "month")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_ROLLING_SLOTS = 60
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}\Z")
WARN_ONLY = ", warn only"
"""The end of the text of a budget that stops nobody."""


def to_nano(amount: Decimal | int | str, *, rounding: str = ROUND_DOWN) -> int:
    """USD as integer nano-dollars.

    Raises:
        ConfigError: not a finite number. Floats are not accepted: 0.1 is not a dime.
    """
    if isinstance(amount, (float, bool)):
        raise ConfigError(f"money is text, int or Decimal, not {type(amount).__name__}: {amount!r}")
    try:
        value = Decimal(amount.lstrip("$") if isinstance(amount, str) else amount)
        return int((value * NANO).to_integral_value(rounding=rounding))
    except (InvalidOperation, ValueError, OverflowError, AttributeError):
        raise ConfigError(f"not an amount of USD: {amount!r}") from None


@dataclass(frozen=True)
class Filter:
    """One condition on the calls that a budget counts.

    In a model's name and a tag's value `*` and `?` match as in a shell; an id is taken as it is.
    """

    attribute: str
    pattern: str
    tag: str | None = None

    def __str__(self) -> str:
        pattern = _quote(self.pattern)
        return f"for tag {_quote(self.tag)}={pattern}" if self.tag else f"for {self.attribute} {pattern}"

    def matches(self, who: Attribution, model: str) -> bool:
        value = _attribute(f"tag:{self.tag}" if self.tag else self.attribute, who, model)
        if value is None or self.tag or self.attribute == "model":
            return value is not None and fnmatch.fnmatchcase(value, self.pattern)
        return value == self.pattern


@dataclass(frozen=True)
class Window:
    """The part of time in which one bucket counts, in milliseconds since 1970 UTC."""

    start: int
    end: int | None


@dataclass(frozen=True)
class Budget:
    """A rule: at most `amount` of `unit`, per scope, per window.

    Args:
        amount: how much. For ``usd``: nano-dollars as int, or USD as Decimal or text.
        unit: ``usd``, ``tokens``, ``input_tokens``, ``output_tokens`` or ``calls``.
        window: a calendar window; None for the whole lifetime, or with `rolling`.
        rolling: a rolling window's length; never more than the limit is admitted in any
            interval of that length.
        per: the attributes a bucket is for; () counts everyone together.
        filters: only calls that match all of these count.
        name: tells apart budgets that count the same thing.
        zone: the time zone of a calendar window; None for the meter's.
        first_day: the day on which a week begins, in English; None for Monday.
        soft: it warns only: it is counted, and told of, and stops nobody.

    Raises:
        ConfigError: parts that do not go together.
    """

    amount: int
    unit: str = "usd"
    window: Calendar | None = None
    rolling: timedelta | None = None
    per: tuple[str, ...] = ()
    filters: tuple[Filter, ...] = ()
    name: str | None = None
    zone: str | None = None
    stage: str | None = field(default=None, repr=False)
    first_day: str | None = None
    soft: bool = False

    def __post_init__(self) -> None:
        if self.unit == "usd" and isinstance(self.amount, (str, Decimal)):
            object.__setattr__(self, "amount", to_nano(self.amount))
        if isinstance(self.amount, bool) or not isinstance(self.amount, int):
            raise ConfigError(f"a budget's amount is an integer of its unit, not {self.amount!r}")
        if not 0 <= self.amount <= MAX_AMOUNT:
            raise ConfigError(f"a budget's amount lies between 0 and {MAX_AMOUNT}: {self.amount}")
        if self.unit != "usd" and unit_of(self.unit) is None:
            raise ConfigError(f"unknown unit {self.unit!r}: one of usd, {', '.join(known_units())}")
        if isinstance(self.per, str):
            object.__setattr__(self, "per", (self.per,))
        for scope in self.per:
            if scope not in _SCOPES and not (scope.startswith("tag:") and scope[4:]):
                raise ConfigError(f"unknown scope {scope!r}: {', '.join(_SCOPES)} or tag:NAME")
        if len(set(self.per)) != len(self.per):
            raise ConfigError(f"a scope is named twice: {' and '.join(self.per)}")
        if self.window is not None and self.window not in _CALENDAR:
            raise ConfigError(f"unknown window {self.window!r}: one of {', '.join(_CALENDAR)}")
        if self.rolling is not None:
            if self.window is not None:
                raise ConfigError("a window is on the calendar or rolling, not both")
            if self.rolling < timedelta(seconds=1) or self.rolling.microseconds:
                raise ConfigError("a rolling window is a whole number of seconds, at least 1")
            if self.rolling > timedelta(days=3660):
                raise ConfigError("a rolling window is at most ten years")
        if self.zone is not None:
            if self.window is None:
                raise ConfigError("a time zone goes with a calendar window")
            _zone(self.zone)
        if self.first_day is not None:
            day = self.first_day.capitalize() if isinstance(self.first_day, str) else ""
            if day not in _DAYS:
                raise ConfigError(f"a week begins on one of {', '.join(_DAYS)}, not {self.first_day!r}")
            if self.window != "week":
                raise ConfigError("a first day goes with a week")
            # A week that begins on a Monday is a week: said or not, it has the same buckets.
            object.__setattr__(self, "first_day", None if day == "Monday" else day)
        if self.name is not None and not _NAME.match(self.name):
            raise ConfigError(f"a budget's name is 1 to 64 of letters, digits, _ - . : {self.name!r}")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """The budget that `text` says.

        Raises:
            BudgetSyntaxError: which word is wrong, and the grammar.
        """
        return _Parser(text).budget()

    def __str__(self) -> str:
        parts = [format_amount(self.amount, self.unit)]
        if self.window:
            parts[0] += f"/{self.window}"
            if self.first_day:
                parts.append(f"from {self.first_day}")
            if self.zone:
                parts.append(f"in {self.zone}")
        if self.rolling:
            parts.append(f"per {_format_duration(self.rolling)} rolling")
        if self.per:
            parts.append("per " + " and ".join(_quote(s) for s in self.per))
        parts += [str(f) for f in self.filters]
        if self.name:
            parts.append(f"as {self.name}")
        return " ".join(parts) + (WARN_ONLY if self.soft else "")

    @cached_property
    def text(self) -> str:
        """The budget as text, computed once."""
        return str(self)

    @cached_property
    def shape(self) -> str:
        """What is counted, without how much: the identity of its buckets in the store.

        A budget that is raised or lowered keeps its shape, and so what was spent; also one that has
        only warned, and is to hold from now on. Of a stage's no configuration says which it is.
        """
        text = str(replace(self, amount=0, stage=None, soft=self.soft and self.stage is not None))
        return "usd" + text[2:] if self.unit == "usd" else text[2:]

    @cached_property
    def counted(self) -> str:
        """`shape`, whatever order its filters are in: two that are the same count the same."""
        return replace(self, filters=tuple(sorted(self.filters, key=str))).shape

    def applies_to(self, who: Attribution, model: str) -> bool:
        """Whether a call of `who` to `model` counts in this budget."""
        return all(f.matches(who, model) for f in self.filters)

    def scope_key(self, who: Attribution, model: str) -> str:
        """The scope's values as one unambiguous text; a missing value is its own key.

        Session and user ids are a tenant's own: two tenants' user u-7 are two users.
        """
        if not self.per and self.stage is None:
            return ""
        values: list[object] = [_attribute(scope, who, model) for scope in self.per]
        if who.tenant is not None and "tenant" not in self.per:
            for place, scope in enumerate(self.per):
                if scope in ("session", "user") and values[place] is not None:
                    values[place] = [values[place], who.tenant]
        if self.stage is not None:
            values.append(self.stage)
        return to_json(values).decode()

    def window_at(self, now_ms: int, default_zone: str = "UTC") -> Window:
        """The window that `now_ms` lies in.

        For a rolling budget: the slot in which spending at this time is kept.
        """
        if self.rolling is not None:
            slot = self.slot_ms
            start = now_ms // slot * slot
            return Window(start, None)
        if self.window is None:
            return Window(0, None)
        first = _DAYS.index(self.first_day) if self.first_day else 0
        return Window(*_window_containing(self.window, self.zone or default_zone, now_ms // 60_000, first))

    @cached_property
    def rolling_ms(self) -> int:
        """Length of the rolling window in milliseconds; 0 if there is none."""
        return int(self.rolling.total_seconds() * 1000) if self.rolling is not None else 0

    @cached_property
    def slot_ms(self) -> int:
        """Granularity of a rolling window, in milliseconds (a sixtieth of its length).

        A slot counts until the whole of it has left the window, so the rounding only
        ever makes the budget stricter.
        """
        return max(1, self.rolling_ms // _ROLLING_SLOTS)


def budget_of_shape(shape: str, unit: str) -> Budget:
    """A budget from its buckets' identity: what it counts, with an amount of nothing."""
    words = shape.removeprefix("stage ")
    return Budget.parse(f"$0{words[3:]}" if unit == "usd" else f"0 {words}")


def describe_scope(budget: Budget, scope_key: str) -> str:
    """A scope key for people: ``user u-7 and model gpt-4o``; "" for everyone."""
    return describe_scope_parts(budget.per, scope_key)


def describe_scope_parts(per: tuple[str, ...], scope_key: str) -> str:
    if not scope_key:
        return ""
    values = json.loads(scope_key)
    said = [f"{name} {_describe(value)}" for name, value in zip(per, values, strict=False)]
    if len(values) > len(per):
        said.append(f"stage {str(values[-1]).partition('#')[0]}")
    return " and ".join(said)


def scope_values(budget: Budget, scope_key: str) -> dict[str, str]:
    """A scope key as what it names: ``session``, ``user``, ``project``, ``tenant``, ``model``, ``stage``;
    what it names none of is left out."""
    if not scope_key:
        return {}
    values = json.loads(scope_key)
    found: dict[str, str] = {}
    for name, value in zip(budget.per, values, strict=False):
        if isinstance(value, list):
            value, found["tenant"] = value
        if value is not None and ":" not in name:
            found[name] = value
    if len(values) > len(budget.per):
        found["stage"] = str(values[-1]).partition("#")[0]
    return found


def _describe(value: str | list[str] | None) -> str:
    if isinstance(value, list):
        return f"{value[0]} (tenant {value[1]})"
    return value if value is not None else "(none)"


def _attribute(scope: str, who: Attribution, model: str) -> str | None:
    if scope == "session":
        return who.session_id
    if scope == "user":
        return who.user_id
    if scope == "project":
        return who.project
    if scope == "tenant":
        return who.tenant
    if scope == "model":
        return model
    return who.tags.get(scope[4:])


# ── windows ────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigError(f"unknown time zone {name!r}; use a name like Europe/Paris or UTC") from None


def check_zone(name: str) -> str:
    """Return `name` if it is a time zone.

    Raises:
        ConfigError: it is not known here.
    """
    _zone(name)
    return name


@lru_cache(maxsize=256)
def _window_containing(window: Calendar, zone: str, minute: int, first_day: int = 0) -> tuple[int, int]:
    """Calendar window around a minute (no window boundary lies inside a UTC minute).

    Args:
        first_day: of a week, from 0 for Monday.
    """
    tz = _zone(zone)
    local = (_EPOCH + timedelta(minutes=minute)).astimezone(tz)
    if window in ("minute", "hour"):
        # Counted in elapsed time: an hour that the clock shows twice in autumn is two
        # hours. Zones off by 30 or 45 minutes keep their own full hours.
        size = 60 if window == "minute" else 3600
        offset = local.utcoffset() or timedelta()
        shift = int(offset.total_seconds()) % 3600 if window == "hour" else 0
        at = minute * 60
        start = (at + shift) // size * size - shift
        return start * 1000, (start + size) * 1000
    day = local.date()
    if window == "day":
        first, last = day, day + timedelta(days=1)
    elif window == "week":
        first = day - timedelta(days=(day.weekday() - first_day) % 7)
        last = first + timedelta(days=7)
    else:
        first = day.replace(day=1)
        last = (first + timedelta(days=32)).replace(day=1)

    def midnight(d: object) -> int:
        year, month, dom = d.year, d.month, d.day  # type: ignore[attr-defined]
        # Where a daylight-saving change skips midnight, fold=0 takes the offset before
        # the change, which names the instant at which the new day begins.
        at = datetime(year, month, dom, tzinfo=tz)
        return int((at.astimezone(timezone.utc) - _EPOCH) / timedelta(milliseconds=1))

    return midnight(first), midnight(last)


def _format_duration(length: timedelta) -> str:
    seconds = int(length.total_seconds())
    for suffix, size in (("d", 86400), ("h", 3600), ("m", 60)):
        # "24h" and "7d" are how people say them: days only from two on.
        if seconds % size == 0 and (suffix != "d" or seconds >= 2 * size):
            return f"{seconds // size}{suffix}"
    return f"{seconds}s"


# ── the short text ─────────────────────────────────────────────────────────────────────

_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|=|[^\s="]+|"')
_KEYWORDS = ("per", "in", "from", "for", "as")
_AMOUNT = re.compile(r"(\d+(?:_\d{3})*(?:\.\d+)?)([kKmMgG]?)\Z")
_DURATION = re.compile(r"(\d{1,9})([smhd])\Z")
_BARE = re.compile(r'[^\s="\\]+\Z')
_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def _quote(value: str) -> str:
    return value if _BARE.match(value) else json.dumps(value, ensure_ascii=False)


def _split(text: str) -> list[tuple[str, int]]:
    """The words of a budget text, each with its position.

    A slash is a word of its own before the first keyword (``$5/day``) and part of a word
    after it (``in Europe/Paris``, ``for model meta-llama/Llama-3*``).
    """
    words: list[tuple[str, int]] = []
    head = True
    for match in _WORD.finditer(text):
        word, start = match.group(), match.start()
        head = head and word.lower() not in _KEYWORDS
        if not head or "/" not in word or word.startswith('"'):
            words.append((word, start))
            continue
        for piece in re.finditer(r"/|[^/]+", word):
            words.append((piece.group(), start + piece.start()))
    return words


class _Parser:
    """Recursive descent over the words of a budget text, keeping where each one stands."""

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise ConfigError(f"a budget is text or a Budget, not {type(text).__name__}: {text!r}")
        self.text = text
        self.words = _split(text)
        self.at = 0

    def fail(self, message: str, at: int | None = None) -> BudgetSyntaxError:
        index = self.at if at is None else at
        if index < len(self.words):
            word, position = self.words[index]
        else:
            word, position = "", len(self.text)
        said = f"{message}, not {word!r}" if word else f"{message}, but the text ends"
        return BudgetSyntaxError(
            f"Cannot read the budget {self.text!r}: {said}.",
            text=self.text,
            word=word,
            position=position,
            grammar=GRAMMAR,
        )

    def peek(self) -> str:
        return self.words[self.at][0] if self.at < len(self.words) else ""

    def take(self, *expected: str) -> bool:
        if self.at < len(self.words) and self.peek().lower() in expected:
            self.at += 1
            return True
        return False

    def value(self, what: str) -> str:
        word = self.peek()
        if not word or word == "=":
            raise self.fail(f"expected {what}")
        if word.startswith('"'):
            try:
                word = json.loads(word)
            except ValueError:
                raise self.fail(f"expected {what} with its closing quote") from None
        try:
            check_id(word, what)
        except ConfigError as error:
            raise self.fail(str(error)) from None
        self.at += 1
        return word

    def warns_only(self) -> bool:
        """Take ", warn only" from the end, if that is how it ends. The comma may stand by itself."""
        if len(self.words) < 2 or self.words[-1][0].lower() != "only":
            return False
        (word, position), _ = self.words[-2:]
        before, comma, last = word.rpartition(",")
        if last.lower() != "warn" or word.startswith('"'):
            return False
        del self.words[-2:]
        if comma and before:
            self.words.append((before, position))
        elif not comma and self.words and self.words[-1][0].endswith(","):
            word, position = self.words.pop()
            if len(word) > 1:
                self.words.append((word[:-1], position))
        return True

    def budget(self) -> Budget:
        soft = self.warns_only()
        amount, unit = self.amount()
        window: Calendar | None = None
        rolling: timedelta | None = None
        zone: str | None = None
        first_day: str | None = None
        per: list[str] = []
        filters: list[Filter] = []
        name: str | None = None
        if self.take("/"):
            window, rolling = self.window()
        while self.at < len(self.words):
            start = self.at
            if self.take("per"):
                if _DURATION.match(self.peek()) or self.peek().lower() in _CALENDAR:
                    if window or rolling:
                        raise self.fail("the window is already given; expected a scope")
                    window, rolling = self.window()
                elif per:
                    raise self.fail('the scope is already given: join scopes with "and"', start)
                else:
                    per = self.scopes()
            elif self.take("in"):
                if window is None or zone is not None:
                    raise self.fail("a time zone goes once, with a calendar window", start)
                zone = self.value("a time zone")
                try:
                    check_zone(zone)
                except ConfigError:
                    raise self.fail("expected a time zone such as Europe/Paris", self.at - 1) from None
            elif self.take("from"):
                if window != "week" or first_day is not None:
                    raise self.fail("a first day goes once, with a week", start)
                if self.peek().capitalize() not in _DAYS:
                    raise self.fail("expected a day, such as Sunday")
                first_day = self.value("a day")
            elif self.take("for"):
                filters.append(self.filter())
                while self.take("and"):
                    filters.append(self.filter())
            elif name is None and self.take("as"):
                if not _NAME.match(self.peek()):
                    raise self.fail("expected a name of letters, digits, _, - and .")
                name = self.value("a name")
            else:
                raise self.fail('expected "/", "per", "from", "in", "for", "as" or ", warn only"')
        try:
            return Budget(
                amount, unit, window, rolling, tuple(per), tuple(filters), name, zone, None, first_day, soft
            )
        except ConfigError as error:
            raise self.fail(str(error), len(self.words)) from None

    def amount(self) -> tuple[int, str]:
        word = self.peek()
        dollars = word.startswith("$")
        match = _AMOUNT.match(word[1:] if dollars else word)
        if not match:
            raise self.fail('expected an amount, such as "$0.50", "50k tokens" or "10 calls"')
        number = Decimal(match.group(1).replace("_", "")) * _SIZES[match.group(2).lower()]
        scaled = number * NANO if dollars else number
        if scaled != scaled.to_integral_value():
            what = "a billionth of a dollar" if dollars else "one"
            raise self.fail(f"expected an amount that is a whole number of {what}")
        if scaled > MAX_AMOUNT:
            raise self.fail(f"expected an amount of at most {MAX_AMOUNT // NANO if dollars else MAX_AMOUNT}")
        self.at += 1
        return int(scaled), "usd" if dollars else self.unit()

    def unit(self) -> str:
        found = self.one_of(UNITS) or self.one_of(known_units())
        if found is not None:
            return found
        *first, last = (f'"{unit.words}"' for unit in known_units().values())
        if self.peek().lower() in {u.words.split()[0] for u in known_units().values()}:
            self.at += 1
            raise self.fail('expected "tokens"')
        raise self.fail(f"expected {', '.join(first)} or {last} (dollars are $5)")

    def one_of(self, units: Mapping[str, Unit]) -> str | None:
        return next((name for name, unit in units.items() if self.words_are(unit.words.split())), None)

    def words_are(self, expected: list[str]) -> bool:
        """Take these words, the last in the singular as well."""
        said = [w.lower() for w, _ in self.words[self.at : self.at + len(expected)]]
        *first, last = expected
        if said[:-1] != first or said[-1:] not in ([last], [last.removesuffix("s")]):
            return False
        self.at += len(expected)
        return True

    def window(self) -> tuple[Calendar | None, timedelta | None]:
        word = self.peek().lower()
        if word in _CALENDAR:
            self.at += 1
            return word, None
        match = _DURATION.match(word)
        if not match:
            raise self.fail("expected minute, hour, day, week, month, or a length such as 24h")
        self.at += 1
        if not self.take("rolling"):
            raise self.fail('expected "rolling" after the length')
        return None, timedelta(seconds=int(match.group(1)) * _SECONDS[match.group(2)])

    def scopes(self) -> list[str]:
        found = [self.scope()]
        while self.take("and"):
            found.append(self.scope())
        return found

    def scope(self) -> str:
        word = self.peek()
        if word.lower() in _SCOPES:
            self.at += 1
            return word.lower()
        if word.startswith(("tag:", '"tag:')) and len(word.strip('"')) > 4:
            return self.value("a scope")
        raise self.fail("expected session, user, project, tenant, model or tag:NAME")

    def filter(self) -> Filter:
        word = self.peek().lower()
        if word == "tag":
            self.at += 1
            tag = self.value("the name of a tag")
            if not self.take("="):
                raise self.fail('expected "=" and the value of the tag')
            return Filter("tag", self.value("the value of the tag"), tag)
        if word not in _SCOPES:
            raise self.fail("expected model, tag, user, session, project or tenant")
        self.at += 1
        return Filter(word, self.value(f"a {word}"))


def parse_allowance(value: str | list[str] | tuple[str, ...] | Mapping[str, int]) -> dict[str, int]:
    """Amounts such as ``"$0.05"`` or ``["$0.05", "50k tokens"]``, by unit.

    Raises:
        BudgetSyntaxError: not an amount.
    """
    if isinstance(value, Mapping):
        return dict(value)
    amounts: dict[str, int] = {}
    for text in [value] if isinstance(value, str) else value:
        parser = _Parser(text)
        amount, unit = parser.amount()
        if parser.at < len(parser.words):
            raise parser.fail("expected nothing after the amount")
        amounts[unit] = amount
    return amounts
