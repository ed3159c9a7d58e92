"""What an alert is, and how a function is told of one."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar, cast

T = TypeVar("T")
Kind = Literal["threshold", "burn_rate", "anomaly", "unpriced", "over_bound", "test"]
KINDS: tuple[Kind, ...] = ("threshold", "burn_rate", "anomaly", "unpriced", "over_bound", "test")


@dataclass(frozen=True)
class Alert:
    """Something that somebody wants to know.

    Attributes:
        id: the same each time that it is tried, and for all who are told.
        at: milliseconds since 1970.
        text: a sentence for people.
        details: in parts: the budget, whom it is for, amounts in its unit (nano-dollars for ``usd``).
    """

    id: str
    kind: Kind
    at: int
    text: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def tell(told: Callable[[T], object], event: T) -> None:
    """Call a function, which may be a coroutine function, on a thread that has no event loop."""
    answer = told(event)
    if inspect.isawaitable(answer):
        asyncio.run(_awaited(answer))


async def _awaited(answer: Any) -> None:
    await cast("Coroutine[Any, Any, object]", answer)
