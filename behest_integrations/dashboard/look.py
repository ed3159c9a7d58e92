"""A page being made: who looks, at which ledger, asking what; and what templates ask of that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from ..ledger import Ledger
from ..ledger.keys import Key
from ..reports import Asked
from ..reports.extents import located
from ..reports.series import known_since
from ..reports.standing import Standing
from . import words
from .asked import Question, question
from .viewer import Viewer


class NotTheirs(Exception):
    """The question is for what is not the viewer's, or is not there: which of these is not told."""


@dataclass(frozen=True)
class Books:
    """A ledger to look into.

    Attributes:
        zone: in which days are meant, where a URL names none.
        name: which ledger it is, for people; "" where that is nobody's business.
        clock: the time.
        api_keys: the gateway's keys in it; None where there are none to be shown.
    """

    ledger: Ledger
    zone: str
    name: str
    clock: Callable[[], datetime]
    api_keys: Callable[[], Sequence[Key]] | None = None


@dataclass(frozen=True)
class Look:
    """A page being made: who looks, at what, asking what."""

    books: Books
    viewer: Viewer
    question: Question
    asked: Asked
    ages: tuple[datetime, datetime] | None

    @classmethod
    def of(cls, books: Books, viewer: Viewer, params: Mapping[str, str], extra: tuple[str, ...] = ()) -> Look:
        """
        Raises:
            BadQuestion: it asks for what cannot be.
            NotTheirs: it asks for what is somebody else's.
        """
        now = books.clock()
        ages = known_since(
            books.ledger, Asked(tenant=viewer.tenant, project=viewer.project, user=viewer.user)
        )
        asks = question(params, now=now, zone=books.zone, ages=ages, extra=extra)
        asked = viewer.narrowed(asks.asked)
        if asked is None:
            raise NotTheirs
        return cls(books, viewer, asks, located(books.ledger, asked), ages)

    @property
    def now(self) -> datetime:
        return self.question.now

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.question.zone)

    def of_session(self, id: str, tenant: str | None) -> Look:
        """The same look at one session alone."""
        return self._at(session=id, tenant=tenant)

    def _at(self, **ids: str | None) -> Look:
        given: dict[str, Any] = {name: value for name, value in ids.items() if value is not None}
        asked = self.viewer.narrowed(replace(self.asked, **given))
        if asked is None or any(
            getattr(self.asked, n) not in (None, v) for n, v in given.items()
        ):  # it is asked for another in the same breath
            raise NotTheirs
        return replace(self, asked=asked)

    # ── what templates ask ─────────────────────────────────────────────────────────────

    def at(self, ms: int) -> str:
        return words.clock(ms, self.zone, self.now)

    def iso(self, ms: int) -> str:
        return datetime.fromtimestamp(ms / 1000, self.zone).isoformat(timespec="seconds")

    def ago(self, ms: int) -> str:
        return words.ago(ms, self.now)

    def stands(self, standing: Standing) -> str:
        return words.stands(standing, self.zone, self.now)

    def outlook(self, standing: Standing) -> str:
        return words.outlook(standing, self.zone, self.now)

    def href(self, page: str, **more: str | None) -> str:
        """The URL of another page, with this one's range and filters."""
        return f"{page}{self.question.query(**{n: v for n, v in more.items() if v is not None})}"

    def of_whom(self, page: str, id: str, tenant: str | None) -> str:
        """The URL of somebody's own page; it names them alone, with this page's range."""
        bare = replace(self.question, filters={})
        return f"{page}{bare.query(id=id, of=tenant if not self.viewer.tenant else None)}"
