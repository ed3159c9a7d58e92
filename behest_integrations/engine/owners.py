"""Which process a hold is of, so that others on the same machine can end what it left when it died."""

from __future__ import annotations

import os
import platform
import uuid
from functools import lru_cache
from pathlib import Path

_PROC = Path("/proc")
_STARTED = 19
"""Place of the start's time among the fields of /proc/PID/stat after the name:
https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html"""


def this_process() -> str:
    """Names the running process, among all machines, boots and containers; also after a fork."""
    return _name_of(os.getpid())


@lru_cache(maxsize=8)
def _name_of(pid: int) -> str:
    return f"{_machine()} {pid} {_started(pid) or ''}".rstrip()


@lru_cache(maxsize=1)
def _machine() -> str:
    """This boot of this machine, and the namespace that process ids are of: containers have their own."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(_PROC / 'self/ns/pid')}"
    except OSError:
        return f"{platform.node()} {uuid.getnode():x}"


def _started(pid: int) -> str | None:
    """When a process was started; None if that is not told, "" if it has ended."""
    try:
        said = (_PROC / str(pid) / "stat").read_text()
    except FileNotFoundError:
        return "" if _PROC.is_dir() and (_PROC / "self").exists() else None
    except OSError:
        return None
    state, *rest = said.rpartition(")")[2].split()
    return "" if state in ("Z", "X") else rest[_STARTED - 1]


def has_died(owner: str) -> bool:
    """Whether the process of this name is gone. False where that cannot be known from here."""
    machine, pid, started = _parts(owner)
    if machine != _machine() or pid is None:
        return False
    if pid == os.getpid():
        return started != (_started(pid) or "")
    now = _started(pid)
    if now is not None:
        return now != started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _parts(owner: str) -> tuple[str, int | None, str]:
    first, second, *rest = [*owner.split(" "), "", ""][:5]
    pid = rest[0] if rest else ""
    return f"{first} {second}", int(pid) if pid.isdecimal() else None, rest[1] if len(rest) > 1 else ""
