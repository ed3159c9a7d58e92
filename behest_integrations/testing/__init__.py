"""For people's own tests: a test fails when what it runs asks a model for more than it should.

    from behest_integrations.testing import assert_spent_under, budget_of

    def test_a_summary_is_cheap():
        with assert_spent_under(usd="0.05"):
            summarise(document)

    def test_the_agent_ends():
        with budget_of("$0.01", "20 calls"):
            agent.run(question)

Everything in the process is metered meanwhile, as by `Meter.instrument`: OpenAI and Anthropic clients,
LangChain, LlamaIndex. Clients that were made before are metered as well, and all are as
they were after the block. The books are in memory. Under pytest there are, besides, the
fixture `behest_sandbox` and the marker `behest_budget`; see `plugin`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ..meter import Meter
from ..rules.budgets import Budget, to_nano
from ..rules.errors import ConfigError
from ..rules.units import format_usd

if TYPE_CHECKING:
    from ..reports import Report

__all__ = ["assert_spent_under", "budget_of"]


@contextmanager
def budget_of(*budgets: str | Budget, **settings: Any) -> Iterator[Meter]:
    """Hold all that is asked of models inside to budgets; also a decorator.

    Args:
        budgets: such as ``"$0.01"``, ``"20 calls"``.
        settings: further ones of the `Meter`, such as ``prices``.

    Yields:
        The meter, whose `report` tells what was spent, also after the block.

    Raises:
        BudgetExceeded: where a call does not fit, before it is made.
        ConfigError: a budget or a setting cannot be used; or there is none.
    """
    if not budgets:
        raise ConfigError("budget_of needs a budget, such as budget_of('$0.01')")
    from .clients import metered_here

    meter = Meter("memory://", budgets=budgets, **settings)
    with meter.instrument(), metered_here(meter):
        yield meter


@contextmanager
def assert_spent_under(
    *,
    usd: str | Decimal | None = None,
    tokens: int | None = None,
    calls: int | None = None,
    meter: Meter | None = None,
    **settings: Any,
) -> Iterator[Meter]:
    """Fail if what is asked of models inside comes to more than this; also a decorator.

    Nothing is stopped: it is looked at the end, if the block has not raised. A call without an outcome
    counts at its worst case, and one without a price fails the test where `usd` is asked for.

    Args:
        usd: at most so much, as text such as ``"0.05"`` or ``"$0.05"``.
        tokens, calls: at most so many.
        meter: one of your own, through which the calls go; None: everything in the process is metered.
        settings: of the `Meter` that does that, such as ``prices``.

    Yields:
        The meter.

    Raises:
        AssertionError: it was more; by which models.
        ConfigError: nothing is asked for, or something that is not an amount.
    """
    nano = to_nano(usd) if usd is not None else None
    if nano is None and tokens is None and calls is None:
        raise ConfigError("assert_spent_under needs usd=, tokens= or calls=, such as usd='0.05'")
    if meter is not None:
        before = _spent(meter)
        yield meter
        _check(_spent(meter), before, nano, tokens, calls)
        return
    from .clients import metered_here

    own = Meter("memory://", **settings)
    with own.instrument(), metered_here(own):
        yield own
    _check(_spent(own), None, nano, tokens, calls)


def _spent(meter: Meter) -> Report:
    meter.flush()
    return meter.report("model")


def _check(
    now: Report, before: Report | None, nano: int | None, tokens: int | None, calls: int | None
) -> None:
    __tracebackhide__ = True
    earlier = {line.key: line for line in before.lines} if before is not None else {}
    cost = token_sum = call_sum = unpriced = 0
    told = []
    for line in now.lines:
        old = earlier.get(line.key)
        more = [
            getattr(line, name) - (getattr(old, name) if old is not None else 0)
            for name in ("cost", "input_tokens", "output_tokens", "calls", "unpriced")
        ]
        cost, call_sum, unpriced = cost + more[0], call_sum + more[3], unpriced + more[4]
        token_sum += more[1] + more[2]
        if any(more):
            told.append(
                f"  {line.key[0]}: {more[3]} calls, {more[1]} tokens in, {more[2]} out, {format_usd(more[0])}"
            )
    wrong = []
    if nano is not None and unpriced:
        wrong.append(f"{unpriced} calls have no price, so that it is not known what they cost")
    if nano is not None and cost > nano:
        wrong.append(f"{format_usd(cost)} were spent, and at most {format_usd(nano)} should be")
    if tokens is not None and token_sum > tokens:
        wrong.append(f"{token_sum} tokens were used, and at most {tokens} should be")
    if calls is not None and call_sum > calls:
        wrong.append(f"{call_sum} calls were made, and at most {calls} should be")
    if wrong:
        raise AssertionError("\n".join(["; ".join(wrong), *told]))
