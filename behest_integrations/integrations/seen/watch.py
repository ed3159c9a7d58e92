"""Whether what is sent is a call of a model that nobody has counted, and what is done about it."""

from __future__ import annotations

import threading
from typing import NamedTuple
from urllib.parse import urlsplit

from ...engine.contexts import caller
from ...engine.engine import Engine
from ...engine.layers import is_seen
from ...engine.per_engine import PerEngine
from ...prices import model_host
from ...rules.errors import Unmetered
from ...wire.wires import UNBILLED, find, is_of_a_model
from ..kit.stainless import is_doing


class Sighting(NamedTuple):
    """Calls of a model that were not metered.

    Attributes:
        host: that was called, with its port where it is not the usual one.
        library: by which.
        place: file and line of the caller.
        calls: how many.
    """

    host: str
    library: str
    place: str
    calls: int


_SEEN: PerEngine[dict[tuple[str, str, str], int]] = PerEngine(lambda engine: {})
_MOST = 10_000
"""Places are the program's own, hosts may be anybody's."""
_lock = threading.Lock()


def sightings(engine: Engine) -> tuple[Sighting, ...]:
    """What was not metered while `engine` watched, by place, in the order in which it was first seen."""
    with _lock:
        return tuple(Sighting(*key, calls) for key, calls in _SEEN.of(engine).items())


class Watch:
    """One engine, watching.

    Args:
        strict: whether what is not metered is refused.
    """

    def __init__(self, engine: Engine, *, strict: bool) -> None:
        self.engine = engine
        self.strict = strict

    def told(self, library: str, method: str, url: str, host: str) -> None:
        """A call was seen that nobody has metered.

        Raises:
            Unmetered: it is not to be made.
        """
        place = caller()
        if self.strict:
            raise Unmetered(method, url, host=host, library=library, place=place)
        key = (host, library, place)
        with _lock:
            seen = _SEEN.of(self.engine)
            if key in seen or len(seen) < _MOST:
                seen[key] = seen.get(key, 0) + 1
        self.engine.notices.once(
            ("unmetered", *key),
            "%s (Told once for this line.)",
            Unmetered.say(method, url, library, place),
        )


WATCHES: list[Watch] = []
"""Who watches; the last that began is told, and the strictest is asked."""


def look(library: str, method: str, url: str) -> None:
    """Look at a request that is about to be sent.

    Args:
        library: that sends it, by its name for people.
        url: all of it.

    Raises:
        Unmetered: it is a call of a model that nobody has metered, and such are refused.
    """
    if not WATCHES or is_seen() or is_doing():
        return
    if method.upper() in UNBILLED:
        return
    parts = urlsplit(url)
    where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    watches = tuple(WATCHES)
    hosts = frozenset().union(*(watch.engine.hosts for watch in watches))
    served = model_host(where + parts.path, hosts)
    if served is None:
        return
    found = find(method, parts.path, served.provider)
    if found is None or (served.shared and not is_of_a_model(found)):
        return
    host = (parts.hostname or "") + (f":{parts.port}" if parts.port else "")
    told = next((watch for watch in reversed(watches) if watch.strict), watches[-1])
    told.told(library, method.upper(), where + parts.path, host)
