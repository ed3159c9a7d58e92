"""Asking in place of dying: the graph is interrupted with the numbers, and goes on with what is granted.

    agent = create_agent(model, tools, checkpointer=saver,
                         middleware=[meter.langchain_middleware(on_exceeded="ask")])
    found = agent.invoke(question, config)
    found["__interrupt__"][0].value        # {"type": "budget_exceeded", "limit": …, "message": …}
    agent.invoke(Command(resume={"grant": "$2", "by": "kim", "why": "a customer waits"}), config)

A node that is resumed is run again from its beginning, as often as it is interrupted, and an answer is given
to it each time. So each grant has a name, made of the task (the same in every process that resumes it) and
how many have been asked for in it before, and under one name it is booked once.
https://docs.langchain.com/oss/python/langgraph/interrupts
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from itertools import count
from typing import Any

from langgraph.types import interrupt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...engine.engine import Engine
from ...engine.steps import Steps
from ...ledger.outbox import message_id
from ...rules.errors import BudgetExceeded, ConfigError
from ...rules.units import format_amount
from ...rules.wording import say_problems

_NAMESPACE = "langgraph_checkpoint_ns"
"""In a run's metadata: of the task, made from its checkpoint, its step and its node's name."""

_asked: ContextVar[tuple[object, Iterator[int]] | None] = ContextVar("behest_asked", default=None)
"""The task that is being run here, and what counts the grants that it has asked for."""


class Answer(BaseModel):
    """What an interrupt is answered with.

    Attributes:
        grant: so much more, in the unit of the budget: ``"$2"``, ``"50k tokens"``; None or False: no.
        by, why: for the audit.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    grant: str | bool | None
    by: str | None = Field(default=None, max_length=256)
    why: str | None = Field(default=None, max_length=1024)

    @classmethod
    def of(cls, said: object) -> Answer:
        """The answer, from what came back; a text is an amount, False is no.

        Raises:
            ConfigError: it is none.
        """
        if not isinstance(said, Mapping):
            said = {"grant": said}
        try:
            answer = cls.model_validate(said)
        except ValidationError as error:
            raise ConfigError(f"{_HOW}: {say_problems(error, cls, said)}") from None
        if answer.grant is True:
            raise ConfigError(f"{_HOW}: it does not say how much")
        return answer


_HOW = 'an interrupt for a budget is answered with {"grant": "$2"}, or {"grant": None} to refuse'


def question(error: BudgetExceeded, problem: str = "") -> dict[str, Any]:
    """The numbers, as plain JSON. Amounts are in the budget's unit: nano-dollars for ``usd``.

    ``needed`` is the smallest amount with which the call could go ahead, ``least`` as text the smallest
    grant that lets it.

    Args:
        problem: what is wrong with the answer that was given to the same question before.
    """
    short = error.shortfall
    return {
        "type": "budget_exceeded",
        "message": str(error),
        "reason": error.reason,
        "budget": short.budget,
        "scope": short.scope,
        "unit": short.unit,
        "limit": short.limit,
        "spent": short.spent,
        "held": short.held,
        "needed": short.asked,
        "least": format_amount(max(1, short.spent + short.held + short.asked - short.limit), short.unit),
        "resets_at": short.resets_at.isoformat() if short.resets_at is not None else None,
        "answer": 'Command(resume={"grant": AMOUNT, "by": WHO, "why": WHY}); {"grant": None} refuses',
        "problem": problem or None,
    }


def asking(engine: Engine, error: BudgetExceeded, metadata: Mapping[str, Any]) -> Steps[None]:
    """Interrupt the graph; or, where it has been answered, book what was granted. Then it is tried again.

    Args:
        metadata: of the run that it happened in.

    Raises:
        GraphInterrupt: it has not been answered yet.
        BudgetExceeded: it was refused.
        ConfigError: this is not in a graph.
    """
    task = metadata.get(_NAMESPACE)
    if not task:
        raise ConfigError('on_exceeded="ask" needs a graph with a checkpointer to interrupt') from error
    asked = _asked.get()
    if asked is None or asked[0] != task:
        asked = (task, count())
        _asked.set(asked)
    problem = ""
    while True:
        # The answer is kept whatever comes of it: one that cannot be used is asked for again.
        once = message_id("grant", metadata.get("thread_id"), task, next(asked[1]))
        said = interrupt(question(error, problem))
        try:
            answer = Answer.of(said)
            if not answer.grant or answer.grant is True:
                raise error
            changes = engine.changes(answer.by, answer.why)
            booking = changes.granting(error.shortfall, answer.grant, once=once)
        except ConfigError as wrong:
            problem = str(wrong)
        else:
            break
    yield booking
