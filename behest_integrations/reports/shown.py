"""What a report is asked, and what it shows. A report of yours is a function from one to the other.

    def slowest(ledger: Ledger, asked: Asked) -> Shown:
        "The calls that took longest."
        with reading(ledger) as connection:
            rows = [dict(row) for row in connection.execute(...).mappings()]
        return Shown(rows, lambda: rows_table(rows))

From inside the package it is a file here and a line in `cli.COMMANDS`. From outside it is an
entry point, and `behest --help` lists it: its name is the command, the first line of its docstring
says what it is for, and `--store`, `--json`, `--csv`, `--since`, `--session` and the like are there.

    [project.entry-points."behest_integrations.reports"]
    slowest = "my_package.reports:slowest"
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ..ledger import Bucket, Entry, HoldRecord, Ledger
from ..ledger.moment import at_one_moment
from ..rules.errors import BehestError, StoreError

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Asked:
    """What a report is to be about; None: everything.

    Attributes:
        since, until: when a call was booked; `until` is not included.
        session, user, project, tenant: only theirs.
        zone: the time zone in which days and hours are meant.
        now: the time at which it is asked.
        model: only calls that were booked as this model's.
        tags: only calls that have all of these, (name, value).
        first_id: nothing before this place in the ledger is asked for; see `extents`.
    """

    since: datetime | None = None
    until: datetime | None = None
    session: str | None = None
    user: str | None = None
    project: str | None = None
    tenant: str | None = None
    zone: str = "UTC"
    now: datetime | None = None
    model: str | None = None
    tags: tuple[tuple[str, str], ...] = ()
    first_id: int | None = None

    @property
    def narrowed(self) -> str:
        """What of all calls it is about, for people; "" if it is about all."""
        said = [
            f"{n} {v}"
            for n in ("session", "user", "project", "tenant")
            if (v := getattr(self, n)) is not None
        ]
        said += [f"{n} {v:%Y-%m-%d %H:%M}" for n in ("since", "until") if (v := getattr(self, n)) is not None]
        return ", ".join(said)

    @property
    def at(self) -> datetime:
        """`now`, or the clock's."""
        return self.now or datetime.now(timezone.utc)


@dataclass(frozen=True)
class Shown:
    """What a report has found, in its three forms.

    Attributes:
        rows: for CSV, and for JSON where `data` says nothing else. Amounts are text or integers.
        table: what a person sees, made only for a person; text is printed as it is.
        data: for JSON.
        columns: of CSV; default: those of the first row.
        empty: what a person is told where there are no rows; "": the table all the same.
        exit_code: what `behest` ends with.
        page: the whole of it as HTML, where there is such a form.
    """

    rows: Sequence[Mapping[str, Any]]
    table: Callable[[], RenderableType]
    data: Any = None
    columns: Sequence[str] = ()
    empty: str = "Nothing yet."
    exit_code: int = 0
    page: Callable[[], str] | None = None


@contextmanager
def reading(ledger: Ledger) -> Iterator[sa.Connection]:
    """A connection to read the books with, as they are at one moment.

    Raises:
        StoreError: the store cannot be read, or what it holds is damaged.
    """
    with explained(ledger), at_one_moment(ledger.reading()) as connection:
        yield connection


def everything(ledger: Ledger) -> tuple[list[Bucket], list[HoldRecord], list[Entry]]:
    """All buckets, holds and entries, of one moment.

    Raises:
        StoreError: the store cannot be read, or what it holds is damaged.
    """
    with explained(ledger):
        return ledger.snapshot()


@contextmanager
def explained(ledger: Ledger) -> Iterator[None]:
    """Whatever goes wrong with what a ledger holds is a `StoreError`, by a sentence."""
    try:
        yield
    except BehestError:
        raise
    except (sa.exc.SQLAlchemyError, sqlite3.Error) as error:
        raise ledger._explain(getattr(error, "orig", None) or error) from error
    except (ValueError, TypeError, OverflowError) as error:
        # A page of a file can be overwritten in a way that its database does not notice.
        raise StoreError(
            f"The ledger {ledger.url} is damaged: it holds what no ledger writes. Restore a backup.",
            retryable=False,
        ) from error
