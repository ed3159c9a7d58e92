"""From many threads and tasks to one writer.

SQLite takes one writer at a time, and its own way of waiting is to sleep. So inside a
process operations queue up here: whoever gets the lock runs everything that is queued in
one transaction and wakes those whose operations these were, and one who has come since to do the
same. An operation that comes from a finaliser while this very thread holds the lock is left for
the lock's holder, which makes it safe to end a hold from the garbage collector.

It is over 500 lines for want of a seam: the queue and who waits in it are one mechanism.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from ..rules.errors import BehestError, ConfigError, StoreError
from ..rules.usage import Usage
from .book import Bucket, Entry, HoldRecord, KnownBudget, Rows
from .watching import SLOW_SECONDS, Slowness, TransactionWatcher

if TYPE_CHECKING:
    import sqlalchemy as sa

    from .keys import Keys

log = logging.getLogger("behest")

T = TypeVar("T")
Work = Callable[[Rows], T]
Durability = Literal["process", "power"]
_MOST_AT_ONCE = 128
_MOST_FOR_LOOPS = 8
"""Operations of coroutines in one transaction: all of them resume at once, and a loop that
resumes many at once is a loop that stalls."""


class _Op(Generic[T]):
    __slots__ = ("done", "error", "gate", "notify", "result", "work")

    def __init__(self, work: Work[T], notify: Callable[[_Op[T]], None] | None = None) -> None:
        self.work = work
        self.result: T | None = None
        self.error: BaseException | None = None
        self.done = False
        self.notify = notify
        self.gate: threading.Lock | None = None
        """Locked; its thread sleeps on it."""

    def wake(self) -> None:
        """Open the gate."""
        if self.gate is not None:
            try:
                self.gate.release()
            except RuntimeError:
                pass  # it is open: to be woken twice is to look twice

    def value(self) -> T:
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]


class Ledger(ABC):
    """A store of holds, buckets and entries.

    A store is made as ``TheStore(url, timeout=…, durability=…)`` (see `stores.open_store`), and says
    what `_begin`, `_commit` and `_rollback` are, what `book.Rows` it offers in between, and
    whether there is one at a URL. The rest has a way that does for any store.
    """

    shared: ClassVar[bool] = False
    """Whether several processes that open the same URL have the same books."""
    inline_async: ClassVar[bool] = True
    """Whether an operation is quick enough to run on the event loop's own thread."""
    read_only = False
    """Whether it was opened to be looked at, and cannot be written."""
    most_for_loops: ClassVar[int] = _MOST_FOR_LOOPS
    """Operations of coroutines in one transaction."""
    contended: Container[tuple[str, str, int]] = frozenset()
    """The buckets that several processes write all the time: of those it is worth taking slices."""
    locks_rows: ClassVar[bool] = False
    """Whether processes wait for each other's buckets; else for all of the store."""
    slow_advice: ClassVar[str] = "Find out what keeps it busy."
    """What is said to who reads that it is slow."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.slow_after = SLOW_SECONDS
        """Seconds from which on a transaction is logged as slow."""
        self.watcher: TransactionWatcher | None = None
        self._slowness = Slowness(f"The ledger {url}", self.slow_advice)
        self._pid = os.getpid()
        self._reset_locks()
        if hasattr(os, "register_at_fork"):
            ref = weakref.ref(self)

            def after_fork() -> None:
                ledger = ref()
                if ledger is not None:
                    ledger._after_fork()

            os.register_at_fork(after_in_child=after_fork)

    def _reset_locks(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._queue: deque[_Op[Any]] = deque()
        self._waiting: deque[_Op[Any]] = deque()
        """Operations whose threads sleep, or are about to."""
        self._wake = threading.Event()
        self._worker: threading.Thread | None = None
        self._closed = False

    def _after_fork(self) -> None:
        """In a forked child no other thread exists, and the parent's locks may be held."""
        self._reset_locks()

    @classmethod
    def to_read(cls, url: str, *, timeout: float = 5.0) -> Ledger:
        """The ledger at `url`, to be looked at.

        Where a store can, nothing of it is written then; any other is opened as it is.
        """
        make: Callable[..., Ledger] = cls
        return make(url, timeout=timeout, durability="process")

    # ── writing ────────────────────────────────────────────────────────────────────────

    def submit(self, work: Work[T]) -> T:
        """Run `work` in a transaction and return what it returns.

        Raises:
            StoreError: it could not be read or written; nothing of it was.
        """
        self._check_open()
        if self.inline_async and not self._queue and self._lock.acquire(False):
            return self._run_alone(work)
        op: _Op[T] = _Op(work)
        self._queue.append(op)
        while not op.done:
            if not self._lead():
                self._wait(op)
        return op.value()

    def _run_alone(self, work: Work[T]) -> T:
        """Where a transaction costs next to nothing, nothing is gained by sharing one."""
        self._owner = threading.get_ident()
        began = time.monotonic()
        try:
            rows = self._begin()
            try:
                result = work(rows)
                self._commit()
            except BaseException as error:
                self._rollback()
                explained = self._to_raise(error)
                if explained is error:
                    raise
                raise explained from error
            return result
        finally:
            self._owner = None
            took = time.monotonic() - began
            self._lock.release()
            if self.watcher is not None or took > self.slow_after:
                self._transacted(took, 1)
            if self._waiting or self._queue:
                self._hand_on()

    def _transacted(self, seconds: float, operations: int) -> None:
        """Tell of a transaction that was slow, or all of them to who counts them."""
        if seconds > self.slow_after:
            self._slowness.noticed(seconds, operations, self.slow_after)
        if self.watcher is not None:
            self.watcher.transacted(seconds, operations, len(self._queue))

    def _lead(self) -> bool:
        """Run what is queued in one transaction, if nobody is at it; False if somebody is."""
        if not self._lock.acquire(False):
            return False
        try:
            self._run_queue()
        finally:
            self._lock.release()
            self._hand_on()
        return True

    def _wait(self, op: _Op[Any]) -> None:
        """Sleep until `op` is done, or it is this thread's turn to lead.

        Not by waiting for the lock: each of many threads would take it in turn, only to find that
        its operation has been done by another.
        """
        if op.gate is None:
            op.gate = threading.Lock()
            op.gate.acquire()
        self._waiting.append(op)
        # From here on whoever lets go of the lock sees this thread; before, it may not have.
        if op.done or self._lead():
            return
        try:
            op.gate.acquire()
        except BaseException:  # an interrupt: it may have been this thread's turn
            op.notify = _nobody
            if not self._lead():
                self._hand_on()
            raise

    def _hand_on(self) -> None:
        """The lock has been let go of: see to it that somebody runs what is queued."""
        while self._waiting:
            try:
                op = self._waiting.popleft()
            except IndexError:
                break
            if not op.done and op.notify is None:
                op.wake()  # it has waited longest, and leads now
                return
        if self.inline_async:  # else the worker does
            self._drain_late()

    async def asubmit(self, work: Work[T]) -> T:
        """`submit` for coroutines: the event loop goes on while the store is written."""
        if self.inline_async:
            return self.submit(work)
        self._check_open()
        op: _Op[T] = _Op(work)
        if self._run_now(op):
            return op.value()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def notify(op: _Op[T]) -> None:
            try:
                loop.call_soon_threadsafe(_resolve, future, op)
            except RuntimeError:
                log.debug("the event loop closed before a store operation was reported")

        self._queue.append(_Op(work, notify))
        self._start_worker()
        return await future

    def _run_now(self, op: _Op[Any]) -> bool:
        """Run one operation on this very thread, if that waits for nobody; False if it would.

        To hand it to another thread and be woken again takes several times as long.
        """
        if self._queue or not self._lock.acquire(False):
            return False
        self._owner = threading.get_ident()
        try:
            began = time.monotonic()
            rows = self._begin_now()
            if rows is None:
                return False
            self._run_batch([op], rows, began)
            return True
        finally:
            self._owner = None
            self._lock.release()
            self._hand_on()

    def post(
        self,
        work: Work[T],
        failed: Callable[[BaseException], None],
        done: Callable[[T], None] | None = None,
    ) -> None:
        """Run `work` soon, from anywhere: also from a finaliser, also on an event loop.

        Args:
            failed, done: told, from whatever thread, how it ended.
        """

        def notify(op: _Op[T]) -> None:
            if op.error is not None:
                failed(op.error)
            elif done is not None:
                done(op.result)  # type: ignore[arg-type]

        self._queue.append(_Op(work, notify))
        if not self.inline_async:
            self._start_worker()
        else:
            self._drain_late()

    def flush(self) -> None:
        """Return when everything posted before has been run."""
        if not self._closed and self._owner != threading.get_ident():
            self.submit(lambda rows: None)

    def _drain_late(self) -> None:
        # Posted while the lock was held, after its holder had looked for the last time.
        while self._queue and self._owner != threading.get_ident() and self._lock.acquire(False):
            try:
                self._run_queue()
            finally:
                self._lock.release()

    def _run_queue(self, most: int = _MOST_AT_ONCE) -> None:
        """Run what is queued, and what is queued meanwhile, in one transaction. The lock is held."""
        self._owner = threading.get_ident()
        try:
            waiting = min(most, len(self._queue))
            if not waiting:
                return
            began = time.monotonic()
            try:
                rows = self._begin()
            except BaseException as error:
                self._fail([self._queue.popleft() for _ in range(waiting)], error)
                self._transacted(time.monotonic() - began, waiting)
                return
            self._run_batch(self._queued(most), rows, began)
        finally:
            self._owner = None

    def _queued(self, most: int) -> Iterator[_Op[Any]]:
        while self._queue and most:
            most -= 1
            yield self._queue.popleft()

    def _run_batch(self, ops: Iterable[_Op[Any]], rows: Rows, began: float) -> None:
        """Run `ops` in the transaction that has been begun (when, by the monotonic clock), and end it."""
        batch: list[_Op[Any]] = []
        try:
            for op in ops:
                batch.append(op)
                op.result = op.work(rows)
            self._commit()
        except BaseException as error:
            self._rollback()
            if len(batch) > 1 and isinstance(error, Exception) and not isinstance(error, StoreError):
                # One bad operation must not take the others down: each on its own.
                for op in batch:
                    self._run_again(op)
            else:
                self._fail(batch, error)
        else:
            self._finish(batch)
        took = time.monotonic() - began
        if self.watcher is not None or took > self.slow_after:
            self._transacted(took, len(batch))

    def _run_again(self, op: _Op[Any]) -> None:
        began = time.monotonic()
        try:
            rows = self._begin()
        except BaseException as error:
            self._fail([op], error)
        else:
            self._run_batch([op], rows, began)

    def _fail(self, batch: list[_Op[Any]], error: BaseException) -> None:
        for op in batch:
            op.error = self._to_raise(error)
        self._finish(batch)
        if not isinstance(error, Exception):
            raise error

    def _to_raise(self, error: BaseException) -> BaseException:
        if isinstance(error, BehestError) or not isinstance(error, Exception):
            return error
        explained = self._explain(error)
        if explained is not error:
            explained.__cause__ = error
        return explained

    @staticmethod
    def _finish(batch: Iterable[_Op[Any]]) -> None:
        for op in batch:
            op.done = True
            if op.notify is not None:
                op.notify(op)
            elif op.gate is not None:
                op.wake()

    def remember_budgets(self, budgets: Iterable[tuple[str, str, str]], now: int) -> None:
        """Write down which budgets are in force, (shape, text, zone), for those who only read."""
        known = [KnownBudget(*budget, now) for budget in sorted(budgets)]

        def write(rows: Rows) -> None:
            for budget in known:
                rows.remember_budget(budget)

        self.submit(write)

    def _write_for_loops(self) -> None:
        while self._queue:
            with self._alone():
                self._run_queue(self.most_for_loops)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock, waiting for it; whoever has waited meanwhile goes on afterwards."""
        try:
            with self._lock:
                yield
        finally:
            self._hand_on()

    def _start_worker(self) -> None:
        self._wake.set()
        if self._worker is None or not self._worker.is_alive():
            with _WORKERS:
                if self._worker is None or not self._worker.is_alive():
                    self._worker = threading.Thread(
                        target=_work, args=(weakref.ref(self), self._wake), name="behest-ledger", daemon=True
                    )
                    try:
                        self._worker.start()
                    except RuntimeError:  # the interpreter is ending: the flush at exit writes it
                        self._worker = None

    def close(self) -> None:
        """Write what is queued and let go of the store."""
        try:
            self.flush()
        finally:
            self._closed = True
            self._wake.set()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"the ledger {self.url} has been closed: make a new Meter", retryable=False)

    # ── what a store is made of ────────────────────────────────────────────────────────

    @classmethod
    @abstractmethod
    def exists(cls, url: str) -> bool:
        """Whether there is a ledger at `url` already: who only reads must not make one.

        Raises:
            ConfigError: `url` is not one of this store's.
        """

    @classmethod
    def version(cls, url: str) -> str | None:
        """The migration that the tables at `url` are at; None: there are none.

        Raises:
            ConfigError: this store has no tables.
            StoreError: the store is out.
        """
        raise ConfigError(f"{url.partition(':')[0]}:// has no tables that could be of another version")

    @classmethod
    def upgrade(cls, url: str) -> None:
        """Make the tables at `url`, or bring them to this version's.

        Raises:
            ConfigError: this store has no tables.
            StoreError: the store is out, or was written by a newer version.
        """
        cls.version(url)

    def now_ms(self) -> int:
        """The time that windows and leases go by, in milliseconds since 1970: the store's, where many
        hosts share it."""
        return int(time.time() * 1000)

    @abstractmethod
    def _begin(self) -> Rows:
        """Begin a transaction. The lock is held.

        Raises:
            StoreError: the store is out.
        """

    def _begin_now(self) -> Rows | None:
        """`_begin`, if neither that nor the commit waits for anything; else None."""
        return None

    @abstractmethod
    def _commit(self) -> None:
        """Make what was written last, all of it or (with an error) nothing."""

    @abstractmethod
    def _rollback(self) -> None:
        """Undo what was written since `_begin`, or since a `_commit` that failed. Must not fail."""

    def _explain(self, error: Exception) -> Exception:
        """The error to raise for one that the store's own library raised."""
        return error

    # ── reading ────────────────────────────────────────────────────────────────────────

    def snapshot(self) -> tuple[list[Bucket], list[HoldRecord], list[Entry]]:
        """The buckets, holds and entries, as of one moment: for proofs and repairs."""
        books = self.submit(lambda rows: rows.everything())
        return books.buckets, books.holds, books.entries

    def rebuild(
        self, wanted: Callable[[list[Bucket], list[HoldRecord], list[Entry]], Iterable[Bucket]]
    ) -> None:
        """Replace the sums of some buckets, in one transaction with what they are made from."""

        def write(rows: Rows) -> None:
            books = rows.everything()
            for bucket in list(wanted(books.buckets, books.holds, books.entries)):
                rows.set_sums(bucket.id, bucket.spent, bucket.held)

        self.submit(write)

    def reading(self) -> sa.Engine:
        """A database to run reports on, with the tables of `schema`: the store's own, or a copy.

        Everything written before is in it.
        """
        from .copies import copy_into_database  # here: what needs no report needs no SQLAlchemy

        return copy_into_database(self.submit(lambda rows: rows.everything()))

    def follow(self) -> None:
        """Keep house, if there is anything to do, and return at once: asked once a second while calls are
        made."""
        return

    def own_check(self, *, whole: bool) -> list[str]:
        """What the database itself finds wrong with what it keeps, in its own words; [] if nothing.

        Args:
            whole: also what takes longer to look at.
        """
        return []

    def usage_of_response(
        self, response: str, *, tenant: str | None, project: str | None, user: str | None = None
    ) -> Usage | None:
        """What a response stored at the provider took; None if there is none of theirs.

        Args:
            response: the provider's id of it.
            tenant, project: whose it must be; None: of those who have none.
            user: whose it must be; None: anybody's of the tenant and project.
        """
        return self.submit(lambda rows: rows.usage_of_response(response, tenant, project, user))

    def forget_session(
        self, session: str, *, tenant: str | None, project: str | None, user: str | None = None
    ) -> int:
        """Replace the ids of a session's calls, and keep what they cost; how many lines that were.

        Args:
            tenant, project: whose it is; None: of those calls that name none.
            user: whose calls alone; None: anybody's.

        Raises:
            ConfigError: this store cannot.
        """
        raise ConfigError(f"{self.url} cannot forget a session: it is for as long as its process lives")

    def keys(self) -> Keys:
        """The gateway's API keys, if this store can keep them.

        Raises:
            ConfigError: it cannot.
        """
        raise ConfigError(
            f"{self.url} keeps no API keys: they are kept in a ledger's database, such as "
            "sqlite:///behest.db, and a store in memory has none"
        )


_WORKERS = threading.Lock()
_IDLE = 5.0


def _work(ref: weakref.ref[Ledger], wake: threading.Event) -> None:
    """The thread that writes for coroutines. It ends when it has been idle for a while."""
    while True:
        signalled = wake.wait(_IDLE)
        ledger = ref()
        if ledger is None or ledger._wake is not wake:
            return
        wake.clear()
        if ledger._queue:
            try:
                ledger._write_for_loops()
            except BaseException:
                log.exception("the ledger's writer failed")
        elif not signalled:
            with _WORKERS:
                if not ledger._queue and ledger._worker is threading.current_thread():
                    ledger._worker = None
                    return
        del ledger


def _nobody(_op: _Op[Any]) -> None:
    """Nobody waits any more for an operation that is run all the same."""


def _resolve(future: asyncio.Future[T], op: _Op[T]) -> None:
    if future.cancelled():
        return
    if op.error is not None:
        future.set_exception(op.error)
    else:
        future.set_result(op.result)  # type: ignore[arg-type]
