"""A block that must end in time, as `asyncio` has it from Python 3.11 on: for what each call goes through.

anyio's scopes are for what has to be undone: each asks several times which task and which loop it is in.
"""

from __future__ import annotations

import asyncio
import sys

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout  # type: ignore[import-not-found,unused-ignore]

__all__ = ["OutOfTime", "timeout"]

OutOfTime = asyncio.TimeoutError
"""What such a block raises: a name of the built-in `TimeoutError` only from Python 3.11 on."""
