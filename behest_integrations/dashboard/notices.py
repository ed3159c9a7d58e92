"""What wants to be seen to: limits that are used up or soon will be, and sums that are not certain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..reports.series import Detail
from ..reports.standing import Rule
from . import words
from .look import Look


@dataclass(frozen=True)
class Notice:
    """Something to be seen to.

    Attributes:
        level: how bad: ``bad``, ``warn``, ``note``.
        what, todo: for people, what it is, and what to do.
        link, more: a page of ours that shows it, and what the link is called.
    """

    level: str
    what: str
    todo: str
    link: str
    more: str


def attention(look: Look, total: Detail, rules: Sequence[Rule]) -> list[Notice]:
    """All that is to be told, the worst of each kind first. An end user is told of limits alone."""
    found = [*_of_limits(look, rules)]
    return found if look.viewer.is_end_user else [*found, *_of_sums(look, total)]


def _of_limits(look: Look, rules: Sequence[Rule]) -> Iterator[Notice]:
    for rule in rules:
        fullest = rule.standings[0]
        whose = f" of {fullest.scope}" if fullest.scope else ""
        if rule.full and fullest.soft:
            many = f": {rule.full:,} of {rule.count:,}" if rule.full > 1 else ""
            what = f"“{rule.text}”{many} are over" if many else f"“{fullest.budget}”{whose} is over"
            over = words.amount(fullest.spent - fullest.limit, fullest.unit)
            todo = f"By {over}{whose if many else ''}. It warns only: no call is refused for it."
            yield Notice("warn", what, todo, look.href("limits"), "Limits")
        elif rule.full:
            if rule.full > 1:
                whose = f": {rule.full:,} of {rule.count:,} are used up"
                what = f"“{rule.text}”{whose}"
            else:
                what = f"“{fullest.budget}”{whose} is used up"
            if fullest.end is not None:
                todo = f"Calls are refused until it resets {words.until(fullest.end, look.zone, look.now)}."
            elif fullest.rolling:
                todo = "Calls are refused until enough of it has passed."
            else:
                todo = "Further calls are refused."
            if not look.viewer.is_bounded:
                todo += " meter.set_limit raises it."
            yield Notice("bad", what, todo, look.href("limits"), "Limits")
        soonest = min(
            (s for s in rule.standings if s.end is not None and s.pace is not None and s.pace.out_at),
            key=lambda s: s.pace.out_at or 0 if s.pace else 0,
            default=None,
        )
        if soonest is None or soonest.pace is None or soonest.pace.out_at is None or soonest.end is None:
            continue
        whose = f" of {soonest.scope}" if soonest.scope else ""
        out = words.until(soonest.pace.out_at, look.zone, look.now)
        resets = words.until(soonest.end, look.zone, look.now)
        yield Notice(
            "warn",
            f"“{soonest.budget}”{whose} will be used up {out} at this rate",
            f"{words.amount(soonest.spent, soonest.unit)} of "
            f"{words.amount(soonest.limit, soonest.unit)} so far; it resets {resets}.",
            look.href("limits"),
            "Limits",
        )


def _of_sums(look: Look, total: Detail) -> Iterator[Notice]:
    if total.unpriced > 0:
        yield Notice(
            "bad",
            f"{_calls(total.unpriced)} without a price: they are in no sum of dollars",
            "Give the model's price in behest.toml under [prices], or what it stands for under [aliases].",
            look.href("calls", status="unpriced"),
            "Show them",
        )
    if total.over_bound > 0:
        yield Notice(
            "bad",
            f"{_calls(total.over_bound)} billed at more than their worst case",
            "The truth is booked. Hold the price against your provider's (behest prices MODEL), and give "
            "the right one under [prices].",
            look.href("calls", status="over_bound"),
            "Show them",
        )
    if total.assumed_calls > 0:
        yield Notice(
            "warn",
            f"{words.money(total.assumed)} of {_calls(total.assumed_calls)} is assumed: how they ended is "
            "not known",
            "Booked at the worst case. Look for timeouts and lost connections, and let streams be read to "
            "their end.",
            look.href("calls", status="assumed"),
            "Show them",
        )
    if total.estimated_calls > 0:
        yield Notice(
            "note",
            f"{words.money(total.estimated)} of {_calls(total.estimated_calls)} is estimated: counted here, "
            "not by the provider",
            "Ask streams for their usage (stream_usage = true), or hold the sum against the bill.",
            look.href("calls", status="estimated"),
            "Show them",
        )


def _calls(n: int) -> str:
    return f"{n:,} {'call' if n == 1 else 'calls'}"
