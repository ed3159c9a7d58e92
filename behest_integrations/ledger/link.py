"""A connection to PostgreSQL on which several statements make one round trip, each wait with an end.

psycopg connects (TLS, several hosts, services, passwords: all that libpq knows). Its cursors are not used
on the writer's way: they wait without an end where a network swallows packets, and they adapt and wrap
every value. What is used is its documented layer over libpq, `psycopg.pq`, in pipeline mode:
https://www.postgresql.org/docs/current/libpq-pipeline-mode.html
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg import pq

Statement = tuple[str, tuple[str | None, ...]]
"""SQL with `$1`, `$2`, …, and their values as text."""

_WHOLE_NUMBERS = frozenset((20, 21, 23, 1700))
"""Types that are read as `int`: int8, int2, int4, and numeric, which is what sums of int8 are. From
https://github.com/postgres/postgres/blob/master/src/include/catalog/pg_type.dat"""

_DONE = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)


class LinkLost(Exception):
    """The connection is gone, or did not answer in time: what was sent may have been done."""


class Said(Exception):
    """The server's own error.

    Attributes:
        state: its SQLSTATE, https://www.postgresql.org/docs/current/errcodes-appendix.html
        table: the one that it is about, if it says so.
    """

    def __init__(self, state: str, message: str, table: str = "") -> None:
        super().__init__(message)
        self.state = state
        self.table = table


class Result:
    """What one statement gave."""

    __slots__ = ("_result",)

    def __init__(self, result: pq.abc.PGresult) -> None:
        self._result = result

    @property
    def count(self) -> int:
        """Rows that it gave, or changed."""
        return self._result.command_tuples or 0

    def rows(self) -> list[tuple[Any, ...]]:
        """Its rows: whole numbers as `int`, everything else as text."""
        found, columns = self._result, range(self._result.nfields)
        number = [found.ftype(column) in _WHOLE_NUMBERS for column in columns]
        get = found.get_value
        return [
            tuple(
                None
                if (value := get(row, column)) is None
                else int(value)
                if number[column]
                else value.decode()
                for column in columns
            )
            for row in range(found.ntuples)
        ]


class Link:
    """One connection, in the hands of one thread at a time.

    Args:
        parameters: libpq's.
        timeout: seconds to connect; libpq takes whole ones, and at least two.
        prepare: whether the server is to remember statements. Behind a pooler that gives each transaction
            another session, it must not.

    Raises:
        LinkLost: there is no server, or it does not let us in.
    """

    def __init__(self, parameters: Mapping[str, Any], *, timeout: float, prepare: bool) -> None:
        try:
            self._connection = psycopg.connect(
                **{"connect_timeout": max(2, round(timeout)), **parameters}, autocommit=True
            )
        except psycopg.Error as error:
            raise LinkLost(str(error).strip()) from error
        self._pg = self._connection.pgconn
        self._pg.nonblocking = 1
        self._pg.enter_pipeline_mode()
        self._prepare = prepare
        self._names: dict[str, bytes] = {}
        self._made = 0
        self._pid = os.getpid()
        self.backend = self._pg.backend_pid

    def exchange(self, statements: Sequence[Statement], deadline: float) -> list[Result]:
        """Send all of `statements`, and read what they give. After an error the rest is not run.

        Args:
            deadline: monotonic seconds.

        Raises:
            Said: one of them failed.
            LinkLost: there is no answer, or none in time.
        """
        try:
            return self._exchange(statements, deadline)
        except BaseException as error:
            if not isinstance(error, Said):  # whatever is still under way, nobody would read it
                self.close()
            if isinstance(error, (psycopg.Error, OSError)):
                raise LinkLost(str(error).strip() or "the connection was lost") from error
            raise

    def _exchange(self, statements: Sequence[Statement], deadline: float) -> list[Result]:
        pg = self._pg
        known = len(self._names)
        wanted: list[bool] = []
        for sql, values in statements:
            wanted += self._send(sql, [None if value is None else value.encode() for value in values])
        pg.pipeline_sync()
        results: list[Result] = []
        error: Said | None = None
        place = 0
        poll = select.poll()
        while True:
            unsent = pg.flush()
            while not pg.is_busy():
                result = pg.get_result()
                if result is None:
                    continue  # the end of one statement's results
                status = result.status
                if status == pq.ExecStatus.PIPELINE_SYNC:
                    if error is not None:
                        # Of those that were to be prepared some have not been.
                        for sql in list(self._names)[known:]:
                            del self._names[sql]
                        raise error
                    return results
                if status in _DONE:
                    if wanted[place]:
                        results.append(Result(result))
                elif status != pq.ExecStatus.PIPELINE_ABORTED and error is None:
                    error = _said(result)
                    if error.state[:2] in ("57", "08") or error.state == "25P03":
                        raise LinkLost(str(error))  # the server has hung up, and says why
                place += 1
            left = deadline - time.monotonic()
            if left <= 0:
                raise LinkLost("the server did not answer in time")
            poll.register(pg.socket, select.POLLIN | (select.POLLOUT if unsent else 0))
            ready = poll.poll(max(1, left * 1000))
            if any(event & ~select.POLLOUT for _, event in ready):
                pg.consume_input()

    def _send(self, sql: str, values: Sequence[bytes | None]) -> list[bool]:
        """Which of the results to come are asked for."""
        if not self._prepare:
            self._pg.send_query_params(sql.encode(), values)
            return [True]
        name = self._names.get(sql)
        if name is not None:
            self._pg.send_query_prepared(name, values)
            return [True]
        self._made += 1
        name = b"behest_%d" % self._made
        self._pg.send_prepare(name, sql.encode())
        self._pg.send_query_prepared(name, values)
        self._names[sql] = name
        return [False, True]

    @property
    def open(self) -> bool:
        """Whether it can be used, and by this process."""
        return self._pg.status == pq.ConnStatus.OK and self._pid == os.getpid()

    def close(self) -> None:
        """Hang up, without a word that would have to wait."""
        with contextlib.suppress(Exception):
            self._connection.close()


def _said(result: pq.abc.PGresult) -> Said:
    def field(name: pq.DiagnosticField) -> str:
        return (result.error_field(name) or b"").decode(errors="replace")

    message = field(pq.DiagnosticField.MESSAGE_PRIMARY) or (result.error_message or b"").decode(
        errors="replace"
    )
    return Said(field(pq.DiagnosticField.SQLSTATE), message.strip(), field(pq.DiagnosticField.TABLE_NAME))
