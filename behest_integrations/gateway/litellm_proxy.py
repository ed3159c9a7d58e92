"""Budgets for an existing LiteLLM proxy, by one line of its config.

    litellm_settings:
      callbacks: behest_integrations.gateway.litellm_proxy.budgets

What the meter is told is in `behest.toml`, in the proxy's working folder. Every call that the proxy makes is
held to those budgets before it leaves; a refusal is an answer of 402, or 429 for a rate, that no other model
stands in for.
"""

from __future__ import annotations

import threading
from typing import Any

from ..meter import Meter
from ..rules.errors import CallRefused, need
from .problems import problem_of

with need("LiteLLM", "litellm"):
    from litellm.integrations.custom_logger import CustomLogger
with need("LiteLLM's proxy", "litellm"):
    from fastapi import HTTPException

_Logger: Any = CustomLogger


class Budgets(_Logger):  # type: ignore[misc,unused-ignore]
    """Holds all that its process asks of LiteLLM to a meter's budgets, and answers with its refusals.

    Args:
        meter: the meter; it is the process's own.
    """

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.meter = meter
        self.metering = meter.litellm()

    async def async_post_call_failure_hook(
        self, request_data: Any, original_exception: Any, user_api_key_dict: Any, traceback_str: Any = None
    ) -> Any:
        """LiteLLM asks what to answer for an error: the refusal, if it is one."""
        if not isinstance(original_exception, CallRefused):
            return None
        problem = problem_of(original_exception)
        return HTTPException(problem.status, problem.body["error"]["message"], problem.headers)


_lock = threading.Lock()
_made: Budgets | None = None


def __getattr__(name: str) -> Any:
    # LiteLLM looks `budgets` up when it reads its config: the meter is made then, and once.
    global _made
    if name != "budgets":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _lock:
        if _made is None:
            _made = Budgets(Meter.from_toml())
        return _made
