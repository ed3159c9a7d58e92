"""Refusals are told once, as the errors that they are.

LangChain logs each exception of a handler as a failure of the handler, also where it then lets it
through, as it does ours: before the error that matters there would be a line about "Error in
BehestCallbackHandler" for each branch. Read with langchain-core 1.0.0 to 1.8.3
(`langchain_core/callbacks/manager.py`); `tests/test_internals.py` says what has moved.
"""

from __future__ import annotations

import logging

from ...rules.errors import BudgetExceeded, LoopDetected, Unattributed, Unbounded, UnknownPrice

LOGGER = "langchain_core.callbacks.manager"
FORMAT = "Error in %s.%s callback: %s"
_HANDLER = "BehestCallbackHandler"
_REFUSALS = tuple(
    f"{c.__name__}(" for c in (BudgetExceeded, LoopDetected, Unattributed, Unbounded, UnknownPrice)
)


def _is_no_refusal(record: logging.LogRecord) -> bool:
    args = record.args
    if record.msg != FORMAT or not isinstance(args, tuple) or len(args) != 3:
        return True
    return args[0] != _HANDLER or not str(args[2]).startswith(_REFUSALS)


def tell_refusals_once() -> None:
    """From now on; done more than once, it is the same filter."""
    logging.getLogger(LOGGER).addFilter(_is_no_refusal)
