"""What is looked at when a call has been refused: is it in its own way, would it have fitted elsewhere?"""

from __future__ import annotations

from collections.abc import Sequence

from ..ledger.book import Refused
from .holds import Hold
from .notices import Notices
from .plan import Plan


class NoRoom(Exception):
    """A call that was only tried does not fit as it is, in a budget of this unit. Nobody is told."""

    def __init__(self, unit: str) -> None:
        super().__init__(unit)
        self.unit = unit


def around_it(refused: Refused, within: Sequence[Hold]) -> int:
    """What is held by what a call is made inside of, where that alone leaves too little; else 0."""
    if not within or refused.reason != "busy":
        return 0
    own = sum(hold.holds_in(refused.claim.key, refused.claim.unit) for hold in within)
    return own if refused.spent + own + refused.asked > refused.limit else 0


def say_tier(notices: Notices, refused: Refused, plan: Plan) -> None:
    """Say once that a call would have fitted at the ordinary tier's price, and in full: near the
    cap, what is left of it is always enough for a few words at some price."""
    if refused.claim.unit != "usd" or plan.pricing is None or plan.tier not in (None, "auto"):
        return
    dearest, ordinary = plan.pricing.over_ordinary()
    asked = plan.ask.needs["usd"].amount(plan.ask.want)
    # What others hold is held at the same multiple.
    if dearest > ordinary and refused.spent + (refused.held + asked) * ordinary // dearest <= refused.limit:
        notices.once(
            ("tier", plan.model),
            "a call to %r waits, or is refused, that would have fitted at its ordinary price: it is held "
            "at %.3g times that, since your project at the provider might be on the priority tier. If it "
            'is not, say so: Meter(service_tier="default"), or service_tier = "default" in behest.toml, '
            "for all or for each provider.",
            plan.model,
            dearest / ordinary,
        )
