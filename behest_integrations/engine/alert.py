"""What an alert is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

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
