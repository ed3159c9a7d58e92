"""Websockets of the OpenAI client: realtime, live sessions, responses over websockets.

They are no requests, and nothing in them can be read or stopped: each is counted, or refused,
before it connects, also where the SDK connects again.

What the SDK does (read in openai 2.45.0, 2.54.0 and 3.57.0): each of its connection managers asks
the client for `auth_headers` once for each connection that it opens. For Azure's realtime it takes
them from the client's `_configure_realtime` instead; in 2.x it has asked for the others before.
Nothing else in the SDK asks for `auth_headers`, but its own `request`. So what counts is that the
SDK's code asks, and not the caller's. `tests/test_openai_websockets.py` goes through all managers
that the installed SDK has, and says which one has moved.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from ...calls.exchange import Exchange
from ..kit.sockets import acount, count

_AZURE = "_configure_realtime"


def is_opening(client: Any, depth: int = 2) -> bool:
    """Whether whoever asks for the client's `auth_headers` is opening a websocket with them.

    Args:
        depth: how many frames above this one is who asks.
    """
    frame = sys._getframe(depth)
    if str(frame.f_globals.get("__name__")).partition(".")[0] != "openai":
        return False
    # It goes on to Azure's method, which counts.
    return not (hasattr(client, _AZURE) and _AZURE in frame.f_code.co_names)


def methods(base: type, plan: Callable[[Any], Exchange], *, asynchronous: bool) -> dict[str, Any]:
    """The methods of a metered client of class `base` that only Azure's has."""
    own: Any = getattr(base, _AZURE, None)
    if own is None:
        return {}

    def configure(self: Any, *args: Any, **kwargs: Any) -> Any:
        count(self._behest.engine, plan(self))
        return own(self, *args, **kwargs)

    async def aconfigure(self: Any, *args: Any, **kwargs: Any) -> Any:
        await acount(self._behest.engine, plan(self))
        return await own(self, *args, **kwargs)

    return {_AZURE: aconfigure if asynchronous else configure}
