"""What the engine writes into the audit: who, which rule, what was found; never a text.

A call that goes ahead is written in the transaction that reserves it, and costs none of its own. One that is
refused has none: it is written soon after, by the store's writer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..ledger.audit import Decision
from ..ledger.base import Ledger
from ..rules.attribution import Attribution
from ..rules.errors import BudgetExceeded, CallRefused, LoopDetected, PolicyRefused

if TYPE_CHECKING:
    from ..policy import Verdict
    from .plan import Plan

log = logging.getLogger("behest")

_LONGEST = 256
"""Characters of a model's name: it comes from outside."""
TRACE_TAG, KEY_TAG = "trace", "key"
"""The tags by which the gateway says which request a call is of, and whose key it came with."""


def of_whom(who: Attribution) -> dict[str, Any]:
    """The fields of a decision that say for whom it is."""
    return {
        "session_id": who.session_id,
        "user_id": who.user_id,
        "project": who.project,
        "tenant": who.tenant,
        "trace": who.tags.get(TRACE_TAG),
        "actor": who.tags.get(KEY_TAG),
    }


class Auditor:
    """Writes the decisions of an engine that has a policy or guards.

    Args:
        everything: whether calls that go ahead as they were are written, too.
        clock: milliseconds since 1970.
    """

    def __init__(self, ledger: Ledger, everything: bool, clock: Callable[[], int]) -> None:
        self._ledger = ledger
        self._everything = everything
        self._clock = clock

    def allowed(self, plan: Plan, verdict: Verdict, call_id: str) -> Decision | None:
        """That a call goes ahead, and with what; None if that is not written."""
        if verdict.kind == "allowed" and not self._everything:
            return None
        return Decision(
            self._clock(),
            verdict.kind,
            ", ".join(verdict.rules),
            call_id=call_id,
            operation=plan.operation,
            model=plan.model[:_LONGEST],
            details=verdict.found,
            **of_whom(plan.who),
        )

    def refused(self, error: CallRefused, who: Attribution, operation: str, model: str) -> None:
        """Write that a call was refused, and by what; soon, and nobody waits for it."""
        details: Mapping[str, Any] = {"why": type(error).__name__}
        rule = ""
        if isinstance(error, PolicyRefused):
            rule, details = error.rule, {"why": error.kind, **error.found}
        elif isinstance(error, BudgetExceeded):
            rule, details = error.budget, {"why": f"budget {error.reason}"}
        elif isinstance(error, LoopDetected):
            rule, details = f"guards.{error.guard}", {"why": "loop", "times": error.times}
        decision = Decision(
            self._clock(),
            "refused",
            rule,
            operation=operation,
            model=model[:_LONGEST],
            details=details,
            **of_whom(who),
        )
        self._ledger.post(lambda rows: rows.add_audit(decision), _log_lost)


def _log_lost(error: BaseException) -> None:
    log.error("a decision could not be written into the audit: %s", error)
