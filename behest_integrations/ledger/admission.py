"""May this call go ahead, and with how much output? A pure decision over bucket states.

Every store asks this one function, inside its own transaction, so that what is admitted
does not depend on where the books are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..rules.balance import Reason
from ..rules.units import Need


class Ask(NamedTuple):
    """What a call asks of its budgets.

    Attributes:
        needs: by unit.
        want: output tokens (per choice) that the caller would like.
        floor: the fewest with which the call is still worth making; = want if the limit
            cannot be lowered.
        unbounded: units in which it is not known how much it may come to: only budgets that warn
            only count in them.
    """

    needs: Mapping[str, Need]
    want: int
    floor: int
    unbounded: frozenset[str] = frozenset()


class BucketState(NamedTuple):
    """One bucket at the moment of the decision."""

    unit: str
    limit: int
    spent: int
    held: int


@dataclass(frozen=True)
class Granted:
    """The call may go ahead with at most `output` tokens."""

    output: int


@dataclass(frozen=True)
class Denied:
    """The call may not go ahead: bucket number `index` says no."""

    index: int
    reason: Reason
    asked: int


_WORSE: dict[Reason, int] = {"busy": 0, "exhausted": 1, "too_large": 2}


def decide(states: Sequence[BucketState], ask: Ask) -> Granted | Denied:
    """All or nothing over `states`: the most output that fits in every bucket, or no."""
    output = ask.want
    denied: Denied | None = None
    for index, state in enumerate(states):
        need = ask.needs[state.unit]
        fits = need.most_output(state.limit - state.spent - state.held, ask.want)
        if fits >= ask.floor:
            output = min(output, fits)
            continue
        least = need.amount(ask.floor)
        reason: Reason
        if least > state.limit:
            reason = "too_large"
        elif state.spent + least > state.limit:
            reason = "exhausted"
        else:
            reason = "busy"
        if denied is None or _WORSE[reason] > _WORSE[denied.reason]:
            denied = Denied(index, reason, least)
    return denied or Granted(output)
