"""HTTP libraries, and where each sends a request: nothing of theirs is touched elsewhere.

Read with httpx 0.28, httpx2 2.16, aiohttp 3.14, requests 2.34, urllib3 1.26 and 2.8, botocore 1.44, and
Python's own `http.client` (by which `urllib.request` and `httplib2` send). Public methods, but for aiohttp's
`_request` and `_build_url`, and the host behind a tunnel of `http.client`. The outermost that a request
passes is the one that names it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

from ...engine.engine import Engine
from ...engine.layers import seen
from ..kit.hooks import Hook, Method, put_for
from ..kit.undo import Undo
from .watch import WATCHES, Watch, look

Asked = tuple[str, str]
"""A method and a URL."""


class Library(NamedTuple):
    """One HTTP library.

    Attributes:
        name: for people.
        module: whose import completes what is hooked.
        senders: classes and their methods, and how to read from a call what is asked.
        blocking: those of the classes whose calls send before they return; the others' are awaited.
    """

    name: str
    module: str
    senders: tuple[tuple[str, str, Callable[..., Asked]], ...]
    blocking: tuple[str, ...]


def _of_request(client: Any, request: Any, *args: Any, **kwargs: Any) -> Asked:
    return request.method or "", str(request.url or "")


def _of_aiohttp(session: Any, method: str, url: Any, *args: Any, **kwargs: Any) -> Asked:
    return method, str(session._build_url(url))


def _of_pool(pool: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Asked:
    return method, _whole(pool.scheme == "https", pool.host, pool.port, url)


def _of_connection(connection: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Asked:
    tunnel = getattr(connection, "_tunnel_host", None)
    if tunnel:
        return method, _whole(True, tunnel, getattr(connection, "_tunnel_port", None), url)
    return method, _whole(connection.default_port == 443, connection.host, connection.port, url)


def _whole(secure: bool, host: str, port: int | None, path: str) -> str:
    """The URL of a path on a host; a path to a proxy is a URL already."""
    if not path.startswith("/"):
        return path
    usual = port is None or port == (443 if secure else 80)
    return f"{'https' if secure else 'http'}://{host}{'' if usual else f':{port}'}{path}"


def _httpx(name: str) -> Library:
    senders = (("Client", "send", _of_request), ("AsyncClient", "send", _of_request))
    return Library(name, name, senders, ("Client",))


LIBRARIES = (
    _httpx("httpx"),
    _httpx("httpx2"),
    Library("aiohttp", "aiohttp.client", (("ClientSession", "_request", _of_aiohttp),), ()),
    Library("requests", "requests.sessions", (("Session", "send", _of_request),), ("Session",)),
    Library(
        "boto3 (botocore)",
        "botocore.httpsession",
        (("URLLib3Session", "send", _of_request),),
        ("URLLib3Session",),
    ),
    Library(
        "urllib3",
        "urllib3.connectionpool",
        (("HTTPConnectionPool", "urlopen", _of_pool),),
        ("HTTPConnectionPool",),
    ),
    Library(
        "http.client", "http.client", (("HTTPConnection", "putrequest", _of_connection),), ("HTTPConnection",)
    ),
)


def _watching(name: str, read: Callable[..., Asked], blocking: bool, method: Method) -> Method:
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        look(name, *_read(read, self, args, kwargs))
        if not blocking:
            return method(self, *args, **kwargs)
        with seen():  # the libraries beneath send the same request
            return method(self, *args, **kwargs)

    return watched


def _read(read: Callable[..., Asked], self: Any, args: Any, kwargs: Any) -> Asked:
    try:
        return read(self, *args, **kwargs)
    except Exception:  # what is asked for wrongly, the library itself refuses
        return "GET", ""


@cache
def _hooks(library: Library) -> tuple[Hook, ...]:
    module = sys.modules[library.module]
    return tuple(
        Hook(getattr(module, cls), name, partial(_watching, library.name, read, cls in library.blocking))
        for cls, name, read in library.senders
    )


def watched(engine: Engine, *, strict: bool) -> list[tuple[str, Callable[[], Undo]]]:
    """What begins to watch each library, by the module that it waits for.

    Args:
        engine: whose hosts count besides those that are known, and whom is told.
        strict: whether what is not metered is refused.
    """
    watch = Watch(engine, strict=strict)
    return [(library.module, partial(_begin, library, watch)) for library in LIBRARIES]


def _begin(library: Library, watch: Watch) -> Undo:
    return put_for(WATCHES, watch, _hooks(library))
