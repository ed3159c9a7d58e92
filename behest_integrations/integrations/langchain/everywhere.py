"""A handler that LangChain attaches to every run of the process.

LangChain's public `register_configure_hook` takes a context variable, whose value would be lost in
threads that start with an empty context, and has no way back. So an object of our own is registered,
which answers `get()` as a variable does, and is taken out of the private list that it was put into.
Read with langchain-core 1.0.0 to 1.8.3 (`langchain_core/tracers/context.py`).
"""

from __future__ import annotations

from typing import Any

import langchain_core.tracers.context as tracing

from ..kit.undo import Undo
from .handler import BehestCallbackHandler


class _Everywhere:
    """What LangChain asks for the handler."""

    def __init__(self, handler: BehestCallbackHandler) -> None:
        self.handler: BehestCallbackHandler | None = handler

    def get(self) -> BehestCallbackHandler | None:
        return self.handler


def put_everywhere(handler: BehestCallbackHandler) -> Undo:
    """See `LangChainDoor.instrument_langchain`."""
    hook: Any = _Everywhere(handler)
    tracing.register_configure_hook(hook, True)

    def undo() -> None:
        hook.handler = None  # it is out of force, whatever becomes of the list
        hooks: list[Any] = tracing._configure_hooks
        hooks[:] = [known for known in hooks if known[0] is not hook]

    return Undo(undo)
