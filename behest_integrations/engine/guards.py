"""The loop guard: the same tool call again and again, or a session without end, is refused.

It looks at what requests show, and at how many calls a session has made and since when. What it keeps is in
the ledger, for all processes: a bucket of the session's calls, and the time of its first one.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..ledger.book import Refused, Rows
from ..rules.attribution import NOBODY, Attribution
from ..rules.budgets import Budget
from ..rules.errors import ConfigError, LoopDetected
from ..rules.wording import say_problems
from ..wire.tool_calls import Step, steps_back
from .auditing import Auditor
from .plan import TOOL, Plan
from .planning import Planner
from .steps import Steps

NAME = "loop-guard"
"""The name of the budget that counts a session's steps."""
_CLOCK = Budget(0, "calls", per=("session",), name="loop-guard-clock")
"""Under its shape the ledger keeps when a session made its first call, in ms since 1970."""
_MOST_REMEMBERED = 10_000


class Guards(BaseModel):
    """What `Meter(guards=…)`, or `[guards]` of a file, may say. All of it is for each session by itself.

    Attributes:
        same_tool_call: how often in a row a conversation may show the same tool called with the same
            arguments, before the next call of the model is refused.
        steps: how many calls a session may make; inside of `meter.budget(…, name=…)`, each run of that block.
        minutes: how long after its first call it may make others; as `steps`.
        allow_repeats: tools that may be called again and again, by name or pattern (`wait_*`).
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    same_tool_call: int | None = Field(default=None, ge=2)
    steps: int | None = Field(default=None, ge=1)
    minutes: float | None = Field(default=None, gt=0, le=10**6)
    allow_repeats: tuple[str, ...] = ()

    @field_validator("allow_repeats", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError('write it as a list: ["…"]')
        return tuple(value) if isinstance(value, list) else value

    @classmethod
    def of(cls, given: Any) -> Guards:
        """Guards from what `Meter(guards=…)` or a file says.

        Raises:
            ConfigError: something cannot be used as given.
        """
        if isinstance(given, Guards):
            return given
        if not isinstance(given, Mapping):
            raise ConfigError(f"guards are Guards or a table of them, not {given!r}")
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise ConfigError(f"[guards] cannot be used: {say_problems(error, cls, given)}") from None


class Guarding:
    """Guards in force."""

    def __init__(self, guards: Guards) -> None:
        self.guards = guards
        self.budget = (
            None if guards.steps is None else Budget(guards.steps, "calls", per=("session",), name=NAME)
        )
        """Counts the steps of each session."""
        self._first: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def look(
        self,
        planner: Planner,
        auditor: Auditor | None,
        operation: str,
        model: str,
        conversation: Callable[[], Sequence[Any]],
        who: Attribution = NOBODY,
        fallback: Attribution = NOBODY,
    ) -> None:
        """Look whether a conversation goes round in circles.

        Raises:
            LoopDetected: it does.
        """
        most = self.guards.same_tool_call
        if most is None:
            return
        tool, times = repeated(steps_back(conversation()), self.guards.allow_repeats)
        if times < most:
            return
        whose = planner.who(who, fallback)
        error = LoopDetected("same_tool_call", times, most, session=whose.session_id, tool=tool)
        if auditor is not None:
            auditor.refused(error, whose, operation, model)
        raise error

    def counted(self, refused: Refused, plan: Plan) -> LoopDetected | None:
        """What it is that the budget of steps has refused a call; None: it was another."""
        if self.budget is None or refused.claim.text != self.budget.text:
            return None
        made = refused.spent + refused.held
        return LoopDetected("steps", made, refused.limit, session=plan.who.session_id, stage=plan.stage)

    def within_time(self, auditor: Auditor | None, plan: Plan, now: int) -> Steps[None]:
        """Look whether a session's time is up; the first call of it begins it.

        Raises:
            LoopDetected: it is.
            StoreError: its first call cannot be looked up.
        """
        minutes, who, stages = self.guards.minutes, plan.who, plan.shape.stages
        if minutes is None or plan.operation == TOOL or (who.session_id is None and not stages):
            return
        clock = stages[-1].within(_CLOCK) if stages else _CLOCK
        scope = clock.scope_key(who, "")
        first = self._first.get(scope)
        if first is None:
            first = yield _begun(scope, now)
            with self._lock:
                self._first[scope] = first
                while len(self._first) > _MOST_REMEMBERED:
                    self._first.popitem(last=False)
        if now - first <= minutes * 60_000:
            return
        error = LoopDetected(
            "minutes", (now - first) // 60_000, minutes, session=who.session_id, stage=plan.stage
        )
        if auditor is not None:
            auditor.refused(error, who, plan.operation, plan.model)
        raise error


def _begun(scope: str, now: int) -> Callable[[Rows], int]:
    """The store operation that tells when a session's first call was made: this one's time, if it is it."""

    def work(rows: Rows) -> int:
        first = rows.own_limit(_CLOCK.shape, scope)
        if first is None:
            rows.set_own_limit(_CLOCK.shape, scope, now)
        return now if first is None else first

    return work


def repeated(steps: Iterable[Step], allowed: Sequence[str]) -> tuple[str, int]:
    """The tool that was called with the same arguments in each of the last steps, and in how many.

    Args:
        steps: the newest first.
        allowed: tools that may be called again and again.
    """
    running: dict[bytes, str] = {}
    tool, times = "", 0
    for step in steps:
        calls = {
            call: name
            for call, name in step.items()
            if (not times or call in running) and not any(fnmatchcase(name, each) for each in allowed)
        }
        if not calls:
            break
        running, tool, times = calls, next(iter(calls.values())), times + 1
    return tool, times
