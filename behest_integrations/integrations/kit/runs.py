"""What callbacks have seen begin and not yet end."""

from __future__ import annotations

from typing import Generic, TypeVar

from ...engine.holds import Hold

K = TypeVar("K")
R = TypeVar("R")


class Runs(Generic[K, R]):
    """What callbacks have seen begin and not yet end, by the framework's id.

    Some never end for us (another handler raised after ours): their holds end by lease, and
    they are forgotten then.
    """

    _MANY = 1024

    def __init__(self, lease_ms: int) -> None:
        self._lease_ms = lease_ms
        self._runs: dict[K, tuple[int, R]] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._runs

    def get(self, key: K) -> R | None:
        """The run of this id."""
        found = self._runs.get(key)
        return found[1] if found else None

    def put(self, key: K, run: R, hold: Hold) -> None:
        """A run has begun."""
        if len(self._runs) >= self._MANY:
            horizon = hold.started - self._lease_ms
            for other, (started, _) in list(self._runs.items())[: self._MANY // 2]:
                if started < horizon:
                    self._runs.pop(other, None)
        self._runs[key] = (hold.started, run)

    def pop(self, key: K) -> R | None:
        """A run has ended; for one caller only."""
        found = self._runs.pop(key, None)
        return found[1] if found else None
