"""Clients that were made before a block, metered inside of it; those made inside, plain again after it.

A test's module has its client at the top, as often as not, and keeps it for the next test: so neither may a
block miss what it asks, nor a client go on booking with a meter that is closed. All that an SDK's client asks
for passes by its `request`; a client that has one of its own, of a twin, is metered or not as its twin is.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..integrations.kit.clients import SDK, SDKS
from ..integrations.kit.terms import Terms
from ..meter import Meter

_PLAIN = "_behest_plain"
"""Where a client that was made in a block keeps its twin that is not metered."""


@contextmanager
def metered_here(meter: Meter) -> Iterator[None]:
    """Meter all clients of SDKs that there are, until the end of the block."""
    terms = Terms(meter)
    changed: list[tuple[dict[str, Any], Any]] = []
    for sdk, client in _clients():
        own = vars(client)
        plain = own.get(_PLAIN) if _metered(client) else client
        if plain is not None:  # else it is metered by a meter of theirs
            changed.append((own, own.get("request")))
            own["request"] = sdk.meter(terms, plain).request
    try:
        yield
    finally:
        for own, before in changed:
            if before is None:
                own.pop("request", None)
            else:
                own["request"] = before
        for _sdk, client in _clients():
            if _metered(client) and type(client)._behest.engine is meter:
                twin = _as_plain(client)
                vars(client).update({_PLAIN: twin, "request": twin.request})


def _metered(client: Any) -> bool:
    return hasattr(type(client), "_behest")


def _as_plain(client: Any) -> Any:
    """The client as one of the class that its own was made of."""
    twin: Any = object.__new__(type(client).__bases__[-1])
    # Resources that it has made already (client.chat) call back into it.
    vars(twin).update({n: v for n, v in vars(client).items() if getattr(v, "_client", None) is not client})
    return twin


def _clients() -> list[tuple[SDK, Any]]:
    """The clients of SDKs in this process."""
    by_class: dict[type, SDK | None] = {}
    found: list[tuple[SDK, Any]] = []
    for value in gc.get_objects():
        cls = type(value)
        if cls not in by_class:
            by_class[cls] = next((sdk for sdk in SDKS if sdk.has_made(value)), None)
        sdk = by_class[cls]
        if sdk is not None:
            found.append((sdk, value))
    return found
