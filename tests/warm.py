"""`behest` in a process of its own that need not import anything: a fork of one that has.

Each start of Python and its imports takes a second or two, and the tests start hundreds. What a process has
of its own it has here, too: arguments, folder, environment, output, signals, exit status.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from support import forkserver


class Warm:
    """A `behest` that runs; as much of a `Popen` as the tests need."""

    def __init__(self, args: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> None:
        self.args = list(args)
        self._said = Path(tempfile.mkdtemp(prefix="behest-warm-"))
        # Ended with this process, should a test leave it.
        self._process = forkserver().Process(
            target=_run, args=(self.args, str(cwd), dict(env), str(self._said)), daemon=True
        )
        self._process.start()
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, signal: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """(standard output, standard error), once it has ended."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        said = [self._said / name for name in ("1", "2")]
        out, error = (path.read_text(encoding="utf-8") if path.exists() else "" for path in said)
        return out, error


def behest(*args: str, cwd: Path | None = None, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """`behest` with these arguments, once it has ended."""
    process = Warm(args, cwd=cwd or Path.cwd(), env=env)
    out, error = process.communicate(120)
    return subprocess.CompletedProcess(process.args, process.returncode or 0, out, error)


def _run(args: list[str], folder: str, env: dict[str, str], said: str) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = env.get("PYTHONPATH", "").split(os.pathsep)
    for number, stream in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{said}/{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
        # As Python opens it when it starts.
        opened = os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        setattr(sys, stream, opened)
    main: Any = __import__("behest_integrations.cli", fromlist=["main"]).main
    sys.argv = ["behest", *args]
    main()
