"""What a URL asks for, and the URL that asks for something else. Each view is one, and can be shared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from ..reports import Asked
from ..reports.series import MONTH, STEPS, step_for
from ..rules.budgets import check_zone
from ..rules.errors import ConfigError

RANGES: Mapping[str, tuple[str, timedelta | None]] = {
    "15m": ("15 min", timedelta(minutes=15)),
    "1h": ("1 hour", timedelta(hours=1)),
    "24h": ("24 hours", timedelta(hours=24)),
    "7d": ("7 days", timedelta(days=7)),
    "30d": ("30 days", timedelta(days=30)),
    "90d": ("90 days", timedelta(days=90)),
    "all": ("All", None),
}
"""The ranges that a page offers: as the URL names them, as people do, and how long."""

FILTERS = ("project", "user", "model", "tag", "tenant", "session")
_LONGEST = 600
"""Characters of a parameter: an id has at most 256, and a tag's name and value one each."""


class BadQuestion(Exception):
    """A URL that asks for what cannot be; the message says what, and can be shown."""


@dataclass(frozen=True)
class Question:
    """What a page is asked.

    Attributes:
        range: one of `RANGES`; "" with `since` or `until`.
        since, until: as the URL says, with a time zone. zone: in which days are meant.
        filters: those of `FILTERS` that are set. extra: what one page alone is asked.
        chosen: whether the range was named in the URL.
    """

    range: str
    since: datetime | None
    until: datetime | None
    zone: str
    filters: Mapping[str, str]
    extra: Mapping[str, str]
    now: datetime
    chosen: bool

    @property
    def asked(self) -> Asked:
        """For reports."""
        tags: tuple[tuple[str, str], ...] = ()
        if "tag" in self.filters:
            name, _, value = self.filters["tag"].partition("=")
            tags = ((name, value),)
        ids: dict[str, Any] = {n: v for n, v in self.filters.items() if n != "tag"}
        return Asked(since=self.start, until=self.until, zone=self.zone, now=self.now, tags=tags, **ids)

    @property
    def start(self) -> datetime | None:
        """From when on; None: from the first call."""
        if self.since is not None or not self.range:
            return self.since
        length = RANGES[self.range][1]
        return self.now - length if length is not None else None

    @property
    def end(self) -> datetime:
        return self.until or self.now

    def step(self, first: datetime | None) -> int:
        """The seconds of a chart's step; `first`: when the first call was, for a range without a start."""
        start = self.start or first or self.now
        return step_for(max(1.0, (self.end - start).total_seconds()), most=96)

    def before(self) -> Asked | None:
        """The same for as long a time before, to compare with; None for all time."""
        if self.start is None:
            return None
        return replace(self.asked, since=self.start - (self.end - self.start), until=self.start)

    # ── URLs ───────────────────────────────────────────────────────────────────────────

    def query(self, **changes: str | int | None) -> str:
        """The query of a URL that asks the same but for `changes`; None takes one away."""
        said: dict[str, str] = {}
        if self.chosen and self.range:
            said["range"] = self.range
        for name, at in (("from", self.since), ("to", self.until)):
            if at is not None:
                said[name] = at.isoformat(timespec="seconds")
        if self.zone != "UTC":
            said["tz"] = self.zone
        said.update(self.filters)
        for name, value in changes.items():
            name = name.rstrip("_")
            if name == "range":
                for other in ("from", "to"):
                    said.pop(other, None)
            if value is None:
                said.pop(name, None)
            else:
                said[name] = str(value)
        return f"?{urlencode(said)}" if said else ""


def question(params: Mapping[str, str], *, now: datetime, zone: str, ages: tuple[datetime, datetime] | None,
             extra: tuple[str, ...] = ()) -> Question:  # fmt: skip
    """What the parameters of a URL ask.

    Args:
        zone: where the URL names none.
        ages: when the first and the last call were, which say what range is shown where none is named.
        extra: names of parameters that this page knows besides.

    Raises:
        BadQuestion: one of them cannot be used.
    """
    for name, value in params.items():
        if len(value) > _LONGEST:
            raise BadQuestion(f"“{name}” is longer than {_LONGEST} characters.")
    range_ = params.get("range", "")
    if range_ and range_ not in RANGES:
        raise BadQuestion(f"There is no range “{range_}”: {', '.join(RANGES)}.")
    try:
        zone = check_zone(params["tz"]) if params.get("tz") else zone
    except ConfigError as error:
        raise BadQuestion(str(error)) from None
    since, until = (_moment(name, params.get(name, ""), zone) for name in ("from", "to"))
    if since is not None and until is not None and since >= until:
        raise BadQuestion("“from” is a time before “to”.")
    if since is not None and since >= now:
        raise BadQuestion("“from” is yet to come.")
    filters = {name: params[name] for name in FILTERS if params.get(name)}
    if "tag" in filters and not filters["tag"].partition("=")[0]:
        raise BadQuestion("A tag is asked for as NAME=VALUE.")
    if "tag" in filters and "=" not in filters["tag"]:
        raise BadQuestion("A tag is asked for as NAME=VALUE.")
    chosen = bool(range_)
    if since is not None or until is not None:
        range_ = ""
    elif not range_:
        range_ = _fitting(now, ages)
    known = {name: params[name] for name in extra if params.get(name)}
    return Question(range_, since, until, zone, filters, known, now, chosen)


def _fitting(now: datetime, ages: tuple[datetime, datetime] | None) -> str:
    """The shortest range that has the whole ledger in it, up to a month; all, if nothing is that new."""
    if ages is None:
        return "24h"
    first, last = ages
    if now - last > timedelta(days=30):
        return "all"
    for name in ("15m", "1h", "24h", "7d"):
        length = RANGES[name][1]
        if length is not None and now - first <= length:
            return name
    return "30d"


def _moment(name: str, text: str, zone: str) -> datetime | None:
    if not text:
        return None
    try:
        # A "+" of a time zone that was not encoded has become a blank.
        at = datetime.fromisoformat(text.strip().replace(" ", "+").replace("Z", "+00:00"))
        at = at if at.tzinfo else at.replace(tzinfo=ZoneInfo(zone))
        if not 1970 <= at.year < 9000:
            raise ValueError
    except (ValueError, OverflowError):
        raise BadQuestion(
            f"“{name}” is a date such as 2026-01-31, or a time such as 2026-01-31T12:00."
        ) from None
    return at.astimezone(timezone.utc)


__all__ = ["FILTERS", "MONTH", "RANGES", "STEPS", "BadQuestion", "Question", "question"]
