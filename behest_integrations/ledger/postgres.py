"""The books in PostgreSQL, which any number of hosts share: how it is reached, and what its errors mean.

One connection of a process writes; whatever its threads and event loops have for it meanwhile is the
next batch, and becomes one transaction (`postgres_rows`). A transaction that another one is in the way of
is run again, after a moment at random. One whose commit was not answered is asked for by its number, on a
new connection: it is never run twice, and never taken for done.

Over 500 lines, because what may become of a transaction is read in one place.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import dialect as postgres_dialect
from sqlalchemy.dialects.postgresql import insert

from ..rules.errors import BehestError, ConfigError, StoreError
from . import schema
from .base import Durability, _Op
from .book import Bucket, Entry, HoldRecord, Rows, cancel
from .contention import Contention
from .keys import SQLKeys
from .operations import Operation
from .postgres_rows import Again, PostgresRows
from .postgres_sql import NOW, SQL, Wanted
from .postgres_url import bring_up, cannot, engines, looking, place_of, version_at
from .sql import SQLLedger, read_books
from .statements import Statements

try:
    import psycopg

    from .link import Link, LinkLost, Said, Statement
except ImportError as missing:
    raise ConfigError(
        f"a ledger in PostgreSQL needs psycopg ({missing}): pip install 'behest-integrations[postgres]'"
    ) from missing

_LONGEST_PAUSE = 0.1
_IN_THE_WAY = frozenset(("40001", "40P01", "23505", "55P03"))
"""Serialization failure, deadlock, a row that another has written first, a lock that was not to be had."""
_WHY = {
    "40001": "serialization",
    "40P01": "deadlock",
    "23505": "conflict",
    "55P03": "lock",
    "25006": "standby",
}
"""Why a transaction is run again, for who counts that; what is not here is `prepared`."""
_NOT_PREPARED = frozenset(("26000", "42P05"))
"""A prepared statement that is not there, or is there already: a pooler gave us somebody else's session."""
_OLDEST = 130_000
_RENEW_SECONDS = 1.0
"""For which it is believed that no key has changed."""
_MOST_AT_ONCE = 256
_PART_OF_A_TRANSACTION = 1 / 4
"""For which operations are waited for before one is begun: half a round trip."""
_LONGEST_GATHERING = 0.005


class _Doubt(NamedTuple):
    """A transaction of which it is not known whether it was committed, and whose callers were refused."""

    xid: str
    made: list[str]


class PostgresLedger(SQLLedger):
    """Books in PostgreSQL (13 or newer), for any number of hosts.

    Args:
        url: ``postgresql+psycopg://user@host/database``. What libpq knows goes into its query as it is
            (``sslmode``, ``target_session_attrs``, several ``host``). Besides: ``schema=NAME``, in which the
            tables are; ``upgrade=auto``, to make them, and to bring them to this version's, on opening (else
            `behest db upgrade` does); ``prepare_threshold=None``, for a pooler that gives each transaction
            another session (noticed by itself, if it is not said).
        timeout: seconds within which an operation is done or refused, once it is its turn. It may have
            waited as long for the one before it, and to connect takes two seconds more at most.
        durability: with ``power``, ``synchronous_commit`` is on, whatever the server's default is; with
            ``process`` it is the server's, unless that is off: then it is ``local``.

    Raises:
        ConfigError: not a URL of PostgreSQL, or psycopg is not installed.
        StoreError: it cannot be reached, or its tables are not this version's.
    """

    most_for_loops = _MOST_AT_ONCE
    locks_rows = True
    slow_advice = (
        "Look at the network between, at the server's disk and CPU, and for locks and long transactions "
        "in pg_stat_activity."
    )

    def __init__(self, url: str, *, timeout: float = 5.0, durability: Durability = "process") -> None:
        place = place_of(url)
        if durability not in ("process", "power"):
            raise ConfigError(f"durability is 'process' or 'power', not {durability!r}")
        super().__init__(place.url.render_as_string(hide_password=True))
        self._place = place
        self._timeout = timeout
        self._where = f"The ledger {self.url}"
        self._prepares = place.prepares
        self._base, self._engine = engines(place, timeout)
        # Whoever holds locks and then says nothing (a host that was paused, or cut off) loses them in
        # half the time that others wait.
        idle = max(1, int(timeout * 500))
        settings = {
            "idle_in_transaction_session_timeout": str(idle),
            # Plans for a few rows by their keys, also while a new table has no statistics. To be off is to
            # be dear, in servers before 18: so dear that each statement would be compiled, for 100 ms.
            **dict.fromkeys(("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "jit"), "off"),
        }
        self._settings = settings
        self._power = durability == "power"
        dialect: sa.Dialect = postgres_dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]
        self.statements = Statements(dialect, insert, place.within)
        self.contended: Contention = Contention()
        self._link: Link | None = None
        self._ahead = 0.0
        """Seconds between the server's clock and this machine's monotonic one."""
        self._doubts: list[_Doubt] = []
        self._wanted = Wanted(())
        self._deadline = 0.0
        self._gathered = 0
        """Operations that had come when the last transaction was begun."""
        self._took = 0.0
        """Seconds that transactions take."""
        self.retries = 0
        """Transactions that were run again, since this process began."""
        self._rows: PostgresRows
        with self._lock:
            self._deadline = time.monotonic() + timeout
            try:
                self._open()
            except LinkLost as error:
                raise self._explain(error) from error

    @classmethod
    def exists(cls, url: str) -> bool:
        with looking(url) as (connection, place):
            return version_at(connection, place) is not None

    @classmethod
    def version(cls, url: str) -> str | None:
        with looking(url) as (connection, place):
            return version_at(connection, place)

    @classmethod
    def upgrade(cls, url: str) -> None:
        place = place_of(url)
        base, _ = engines(place, 5.0)
        try:
            bring_up(base, place)
        except sa.exc.DBAPIError as error:
            raise cannot(place, error) from error
        finally:
            base.dispose()

    # ── connecting ─────────────────────────────────────────────────────────────────────

    def _open(self) -> None:
        """Connect, and look at whose tables these are."""
        link = self._connect()
        try:
            self._know(link)
        except Said as error:
            link.close()
            raise self._explain(error) from error
        except BaseException:
            link.close()
            raise
        self._link = link

    def _connect(self) -> Link:
        url = self._place.url
        _, parameters = self._base.dialect.create_connect_args(url)
        left = max(0.0, self._deadline - time.monotonic())
        return Link(parameters, timeout=left, prepare=self._prepares)

    def _know(self, link: Link) -> None:
        before = time.monotonic()
        (found,) = link.exchange(
            [
                (
                    f"SELECT {NOW}, current_setting('server_version_num')::bigint, "
                    "current_setting('synchronous_commit'), pg_is_in_recovery()::text, "
                    "current_setting('transaction_read_only')",
                    (),
                )
            ],
            self._deadline,
        )
        after = time.monotonic()
        ((server_ms, version, commits, standby, read_only),) = found.rows()
        self._ahead = server_ms / 1000 - (before + after) / 2
        if version < _OLDEST:
            raise StoreError(
                f"{self._where}: PostgreSQL {version // 10_000} is too old; 13 is needed", retryable=False
            )
        if standby == "true" or read_only == "on":
            raise LinkLost("the server only reads: it is a standby, or in recovery")
        settings = self._settings
        if self._power and commits in ("off", "local"):
            settings = {**settings, "synchronous_commit": "on"}
        elif commits == "off":
            # What was committed would be lost with the server's process: holds, and so money.
            settings = {**settings, "synchronous_commit": "local"}
        within = self._place.within
        self._rows = PostgresRows(self.statements, SQL(within, settings=settings), self.contended)
        self._look_at_schema(link)

    def _look_at_schema(self, link: Link) -> None:
        place = self._place
        quoted = (
            "" if place.within is None else self._base.dialect.identifier_preparer.quote(place.within) + "."
        )
        try:
            (found,) = link.exchange(
                [(f"SELECT version_num FROM {quoted}alembic_version", ())], self._deadline
            )
            rows = found.rows()
        except Said as error:
            if error.state not in ("42P01", "3F000"):  # no such table, no such schema
                raise
            rows = []
        version = rows[0][0] if rows else None
        if version == schema.HEAD:
            return
        if not place.upgrades and (version is None or version < schema.HEAD):
            what = "has no tables yet" if version is None else f"is at {version}, and {schema.HEAD} is needed"
            raise StoreError(
                f"{self._where} {what}. Run 'behest db upgrade --store URL', or add upgrade=auto to the "
                "query of its URL.",
                retryable=False,
            )
        try:
            bring_up(self._base, place)
        except sa.exc.DBAPIError as error:
            raise cannot(place, error) from error

    def _after_fork(self) -> None:
        super()._after_fork()
        # The parent's connections are not ours to close: that would end its sessions.
        _ABANDONED.append(self._link)
        self._link = None
        self._rows.own_holds.clear()
        self._doubts = []
        self._base.dispose(close=False)

    def close(self) -> None:
        if self._closed:
            return
        try:
            super().close()
        finally:
            with self._alone():
                self._drop()
            self._base.dispose()

    def _drop(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def now_ms(self) -> int:
        """The server's clock: windows and leases are by that, whatever the hosts' own clocks say."""
        return int((time.monotonic() + self._ahead) * 1000)

    # ── transactions ───────────────────────────────────────────────────────────────────

    def _begin(self) -> Rows:
        if self._link is None or not self._link.open:
            self._drop()
            self._open()
        assert self._link is not None
        link, deadline, rows = self._link, self._deadline, self._rows
        if self._doubts:
            self._resolve(link)
        rows.attach(lambda statements: link.exchange(statements, deadline))
        before = time.monotonic()
        rows.begin(link.exchange(rows.opening(self._wanted), deadline))
        # It was asked after `before`, by no more than a trip: only a clock that was set is further off.
        ahead = rows.server_ms / 1000 - before
        if not -0.05 < ahead - self._ahead < 0.25:
            self._ahead = ahead
        return rows

    def _commit(self) -> None:
        assert self._link is not None
        rows = self._rows
        writing: list[Statement] = rows.writing()
        try:
            self._link.exchange([*writing, ("COMMIT", ())], self._deadline)
        except LinkLost as error:
            self._drop()
            if writing and not self._was_committed(rows.xid):
                raise LinkLost(str(error)) from error
        rows.written()

    def _rollback(self) -> None:
        if self._link is not None and self._link.open:
            try:
                self._link.exchange([("ROLLBACK", ())], max(self._deadline, time.monotonic() + 0.2))
            except (LinkLost, Said):
                self._drop()

    def _run_queue(self, most: int = _MOST_AT_ONCE) -> None:
        self._owner = _this_thread()
        try:
            self._gather()
            if batch := list(self._queued(max(most, _MOST_AT_ONCE))):
                began = time.monotonic()
                try:
                    self._run_all(batch)
                finally:
                    self._transacted(time.monotonic() - began, len(batch))
        finally:
            self._owner = None

    def _gather(self) -> None:
        """Wait until as many operations have come as the last time; never for long.

        Those whose operations have just been done come back at once with their next. To begin without
        them is to make two transactions in turn of what could be one: with 32 threads, half as many calls.
        """
        queue, expected = self._queue, self._gathered
        if len(queue) < expected:
            until = time.monotonic() + min(_LONGEST_GATHERING, self._took * _PART_OF_A_TRANSACTION)
            while len(queue) < expected and time.monotonic() < until:
                time.sleep(0.0001)
        self._gathered = min(len(queue), _MOST_AT_ONCE)

    def _run_all(self, batch: list[_Op[Any]]) -> None:
        try:
            self._transact(batch)
        except _EachAlone:
            for op in batch:
                self._run_all([op])
        except BaseException as error:
            if len(batch) > 1 and isinstance(error, Exception) and not isinstance(error, StoreError):
                # One bad operation must not take the others down: each on its own.
                for op in batch:
                    self._run_all([op])
            else:
                self._fail(batch, error)
        else:
            self._finish(batch)

    def _transact(self, batch: list[_Op[Any]]) -> None:
        """Run `batch` in a transaction, again and again until there is nobody in its way."""
        began = time.monotonic()
        self._deadline = began + self._timeout
        self._wanted = Wanted(op.work for op in batch)
        pause = 0.001
        while True:
            problem: Exception
            tried = time.monotonic()
            try:
                rows = self._begin()
                for op in batch:
                    work = op.work
                    self._rows.reading = isinstance(work, Operation) and work.reads
                    op.result = work(rows)
                self._commit()
                self._took += (time.monotonic() - began - self._took) / 8
                return
            except Again as error:
                self._rollback()
                if self._wanted.whole and len(batch) > 1:
                    raise _EachAlone from error
                problem = error
            except Said as error:
                self._rollback()
                if error.state in _NOT_PREPARED and self._prepares:
                    self._prepares = False
                    self._drop()
                elif error.state == "25006":  # it has become a standby
                    self._drop()
                elif error.state not in _IN_THE_WAY:
                    raise self._explain(error) from error
                problem = error
            except LinkLost as error:
                self._drop()
                problem = error
            except BaseException:
                self._rollback()
                raise
            self.retries += 1
            if self.watcher is not None:
                self.watcher.retried(_why(problem))
            now, rest = time.monotonic(), pause * random.uniform(0.5, 1.5)
            # One that is cut short says no more than that: what this one has said is the reason.
            if now + rest + min(now - tried, _LONGEST_PAUSE) > self._deadline:
                raise self._explain(problem) from problem
            time.sleep(rest)
            pause = min(pause * 2, _LONGEST_PAUSE)

    # ── what is not known ──────────────────────────────────────────────────────────────

    def _was_committed(self, xid: str) -> bool:
        """Whether a transaction whose commit was not answered has been done.

        Raises:
            StoreError: that cannot be found out in time. It is looked into when the server is back.
        """
        pause = 0.005
        while True:
            problem: Exception | None = None
            try:
                if self._link is None:
                    self._open()
                assert self._link is not None
                if (known := self._outcome(self._link, xid)) is not None:
                    return known
            except (LinkLost, Said) as error:
                self._drop()
                problem = error
            if time.monotonic() + pause > self._deadline:
                self._doubts.append(_Doubt(xid, self._wanted.made))
                raise self._explain(problem or LinkLost("it did not say whether it had written it"))
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _outcome(self, link: Link, xid: str) -> bool | None:
        """Whether it was committed; None: it is still under way."""
        try:
            (found,) = link.exchange([("SELECT pg_xact_status($1::xid8)", (xid,))], self._deadline)
        except Said as error:
            if error.state == "22023":  # in the future: a server that was restored knows nothing of it
                return False
            raise
        ((status,),) = found.rows()
        return None if status == "in progress" else status != "aborted"

    def _resolve(self, link: Link) -> None:
        """Drop the holds of calls that were refused because nobody could say whether they were held."""
        for doubt in list(self._doubts):
            known = self._outcome(link, doubt.xid)
            if known is None:
                continue
            self._doubts.remove(doubt)
            if known:
                for id in doubt.made:
                    self.post(_dropping(id), _nothing)

    def _explain(self, error: BaseException) -> Exception:
        if isinstance(error, BehestError):
            return error
        if isinstance(error, psycopg.Error):
            error = Said(error.sqlstate or "", str(error).strip())
        text = str(error)
        if isinstance(error, LinkLost):
            return StoreError(f"{self._where} cannot be reached ({text}); the call was not let through.")
        if isinstance(error, Again):
            return StoreError(
                f"{self._where} was busy for {self._timeout:g} s; the call was not let through."
            )
        if not isinstance(error, Said):
            return error if isinstance(error, Exception) else StoreError(text)
        if error.state in _IN_THE_WAY:
            return StoreError(
                f"{self._where}: others were in the way for {self._timeout:g} s ({text}); the call was not "
                "let through."
            )
        if error.state in ("42P01", "42703", "3F000"):
            return StoreError(
                f"{self._where}: {text}. Its tables are not this version's: 'behest db check' says more, and "
                "'behest db upgrade' brings them up to it.",
                retryable=False,
            )
        if error.state == "22012":
            return StoreError(
                f"{self._where}: a bucket is missing: the ledger is damaged; see 'behest repair'.",
                retryable=False,
            )
        if error.state.startswith("53"):
            return StoreError(f"{self._where} is out of what it needs: {text}. The call was not let through.")
        if error.state.startswith("42501"):
            return StoreError(f"{self._where}: {text}. Grant its user SELECT, INSERT, UPDATE and DELETE.")
        return StoreError(f"{self._where} failed: {text} ({error.state})")

    # ── reading ────────────────────────────────────────────────────────────────────────

    def keys(self) -> SQLKeys:
        return _Keys(self.reading, self._engine)

    def own_check(self, *, whole: bool) -> list[str]:
        # https://www.postgresql.org/docs/current/checksums.html: pages are looked at as they are read.
        failed = "SELECT checksum_failures FROM pg_stat_database WHERE datname = current_database()"
        with self.reading().connect() as connection:
            count = connection.exec_driver_sql(failed).scalar()
        return [f"{count} pages failed their checksums"] if count else []

    def snapshot(self) -> tuple[list[Bucket], list[HoldRecord], list[Entry]]:
        self.flush()
        with self._engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:

            def run(sql: str) -> Iterable[Any]:
                return connection.exec_driver_sql(sql).fetchall()

            books = read_books(run, self.statements)
        return books.buckets, books.holds, books.entries


class _Keys(SQLKeys):
    """Keys on another host: whether any has changed is asked about once a second."""

    _known = 0
    _until = 0.0

    def revision(self) -> int:
        now = time.monotonic()
        if now >= self._until:
            number = sa.select(schema.revisions.c.number).where(schema.revisions.c.name == "access")
            try:
                with self._at_once.connect() as connection:
                    self._known = int(connection.scalar(number) or 0)
            except sa.exc.SQLAlchemyError as error:
                raise StoreError("The ledger cannot be read, so it is not known whose a key is") from error
            self._until = now + _RENEW_SECONDS
        return self._known

    def _change(self, work: Callable[[sa.Connection], int]) -> int:
        self._until = 0.0
        return super()._change(work)


class _EachAlone(Exception):
    """An operation needs the whole ledger for itself."""


_ABANDONED: list[object] = []


def _this_thread() -> int:
    import threading

    return threading.get_ident()


def _dropping(id: str) -> Operation[bool]:
    return Operation(lambda rows: cancel(rows, call_id=id), takes=(id,))


def _nothing(_error: BaseException) -> None:
    """It ends by its lease."""


def _why(problem: Exception) -> str:
    """Why a transaction is run again, in a word."""
    if isinstance(problem, Again):
        return "rows"
    if isinstance(problem, Said):
        return _WHY.get(problem.state, "prepared")
    return "lost"
