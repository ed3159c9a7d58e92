"""A call before it is made: whom it is for, what it may come to, which budgets it meets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..ledger.admission import Ask
from ..ledger.book import Claim
from ..prices import ModelPricing
from ..rules.attribution import Attribution
from ..rules.budgets import Budget
from ..rules.errors import ConfigError
from ..rules.units import Unit, unit_of
from ..rules.usage import Usage
from ..wire.sizes import Size
from ..wire.tokens import bound_tokens
from .stages import Stage

if TYPE_CHECKING:
    from ..policy import Verdict

TOOL = "tool"
"""The operation of what is not a call of a model."""


class Outer(Protocol):
    """The hold of the layer around a call, which the call's own hold replaces."""

    id: str
    lowered_from: int | None

    def hand_over(self, heir: Any = None) -> None: ...


class Shape:
    """What calls of one model have in common that are for the same people, in the same stages.

    It is worked out once: which budgets apply, whose buckets they are, what the entry says.

    Attributes:
        units: what its budgets count; hard: those of them that count in a budget that can refuse.
        limited: whether one of these bounds the output.
    """

    __slots__ = (
        "_claims", "_since", "_until", "budgets", "fields", "hard", "limited", "pricing", "stages", "units",
        "who",
    )  # fmt: skip

    def __init__(
        self,
        who: Attribution,
        stages: tuple[Stage, ...],
        budgets: tuple[Budget, ...],
        pricing: ModelPricing | None,
        fields: Mapping[str, Any],
    ) -> None:
        self.who = who
        self.stages = stages
        self.budgets = budgets
        self.units = frozenset(b.unit for b in budgets)
        self.hard = frozenset(b.unit for b in budgets if not b.soft)
        self.limited = any(u == "usd" or needed_unit(u).output for u in self.hard)
        self.pricing = pricing
        self.fields = fields
        self._claims: tuple[Claim, ...] = ()
        self._since = self._until = 0

    def claims_at(
        self, now: int, claim: Callable[[Budget, Attribution, str, int], Claim]
    ) -> tuple[Claim, ...]:
        """The buckets that a call of now counts in; they change when a window turns over."""
        if not self._since <= now < self._until:
            made = tuple(claim(b, self.who, self.fields["model"], now) for b in self.budgets)
            until = min((c.end for c in made if c.end is not None), default=_NEVER)
            since = max((c.start for c in made if c.end is not None), default=0)
            # The bounds last: another thread reads them first.
            self._claims, self._since, self._until = made, since, until
            return made
        return self._claims


_NEVER = 2**63


class Cost(NamedTuple):
    """The most that a request can cost, in femto-dollars: at all, and for each output token."""

    fixed: int
    per_output: int


class Sized(NamedTuple):
    """What the bill of a call can teach: of which server, how large it was, how it was bounded."""

    where: str
    size: Size
    bound: int


class Plan:
    """A call before it is made: who, what, and the worst that it may come to.

    Attributes:
        shape: what it has in common with other calls.
        ask: the needs by unit, and the output wanted.
        allowance: what was allowed for what cannot be bounded, by unit.
        sends_limit: whether an output limit is sent to the provider.
        outer: the hold of the layer around, until this call's own takes its place.
        multiplier: what the price of its tokens is multiplied by; None: by nothing.
        dearer: how much of that is for where it goes.
        features: what it has that cannot be bounded, and was allowed.
        search_context: the size that it pins, of a model that searches by itself.
        models: others that it has said may answer.
        tier: the service tier that it pins, or that the meter was told; None: it may be any.
        verdict: what the policy has decided of it; None: there is none.
        sized: what its bill can teach, of a model whose tokenizer is not known.
    """

    __slots__ = (
        "allowance", "ask", "dearer", "features", "model", "models", "multiplier", "operation", "outer",
        "provider", "search_context", "sends_limit", "shape", "sized", "tier", "verdict",
    )  # fmt: skip

    def __init__(
        self,
        operation: str,
        model: str,
        provider: str | None,
        shape: Shape,
        ask: Ask,
        allowance: Mapping[str, int],
        sends_limit: bool,
        outer: Outer | None = None,
        multiplier: tuple[int, int] | None = None,
        search_context: str | None = None,
        sized: Sized | None = None,
        models: tuple[str, ...] = (),
        tier: str | None = None,
        verdict: Verdict | None = None,
        dearer: tuple[int, int] | None = None,
        features: frozenset[str] = frozenset(),
    ) -> None:
        self.tier = tier
        self.verdict = verdict
        self.dearer = dearer
        self.features = features
        self.models = models
        self.multiplier = multiplier
        self.search_context = search_context
        self.sized = sized
        self.operation = operation
        self.model = model
        self.provider = provider
        self.shape = shape
        self.ask = ask
        self.allowance = allowance
        self.sends_limit = sends_limit
        self.outer = outer

    def counted(self, text: str, slack: int) -> Usage:
        """What an answer of this text consumed, from above: the tokenizer's count or the bytes, and never
        more than was reserved.

        Args:
            slack: how much of the input's bound is caution about what surrounds the texts.
        """
        most = self.ask.needs["output_tokens"].amount(self.ask.want)
        output = min(most, bound_tokens(text, self.model)) if text else 0
        return Usage(self.counted_input(slack), output)

    def counted_input(self, slack: int) -> int:
        """The tokens of the request, as we count them."""
        return max(0, self.ask.needs["input_tokens"].amount(0) - slack)

    @property
    def who(self) -> Attribution:
        return self.shape.who

    @property
    def stage(self) -> str | None:
        """The path of the stages around it."""
        return self.shape.fields["stage"]  # type: ignore[no-any-return]

    @property
    def asked_model(self) -> str | None:
        """The model that was asked for, where this one stands in for it."""
        return self.shape.fields["asked_model"]  # type: ignore[no-any-return]

    @property
    def budgets(self) -> tuple[Budget, ...]:
        return self.shape.budgets

    @property
    def pricing(self) -> ModelPricing | None:
        return self.shape.pricing

    @property
    def fields(self) -> Mapping[str, Any]:
        """What is known of the call's entry beforehand."""
        return self.shape.fields


def needed_unit(name: str) -> Unit:
    """The unit of a budget that there is."""
    found = unit_of(name)
    if found is None:  # a budget of it could not have been made
        raise ConfigError(f"unknown unit {name!r}")
    return found
