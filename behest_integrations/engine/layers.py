"""One call, seen by several layers: metered once, for whoever the outermost knows.

A callback reserves, and then the metered client under it, which knows more: each layer takes over
the hold of the one around it. `Engine.plan` asks here, so that no door can forget to.

And what is sent meanwhile: the request of a call that has been counted already.

And calls that are made inside of a use of something that is held for: a tool with a price. That ends
after them, so that they must not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..wire import EMBEDDINGS, METERED_OPERATIONS
from .holds import Hold


class Offer:
    """A hold that an inner layer of the same call may take over.

    An offer is withdrawn when the call has begun to answer, because from then on the caller's
    own code runs again in the same context.
    """

    __slots__ = ("_holds", "layer")

    def __init__(self, hold: Hold, layer: str) -> None:
        self._holds = [hold]
        self.layer = layer

    @property
    def open(self) -> bool:
        return bool(self._holds)

    def withdraw(self) -> None:
        """Nobody may take it any more."""
        self._holds.clear()

    def take(self) -> Hold | None:
        """The hold, for one taker only."""
        try:
            return self._holds.pop()
        except IndexError:
            return None


_offers: ContextVar[tuple[tuple[Hold, Offer], ...]] = ContextVar("behest_offers", default=())


def offer(hold: Hold, layer: str) -> Offer:
    """Offer `hold` to the layers of its call that run inside the current context.

    Args:
        layer: whose it is. A layer never takes an offer of its own: two calls may begin side
            by side before either is made.
    """
    made = Offer(hold, layer)
    still_open = [o for o in _offers.get() if o[1].open]
    _offers.set((*still_open, (hold, made)))
    return made


@contextmanager
def offering(offered: Offer, hold: Hold) -> Iterator[None]:
    """Offer `hold` to what runs inside, and to nothing else."""
    token = _offers.set((*_offers.get(), (hold, offered)))
    try:
        yield
    finally:
        _offers.reset(token)


_seen: ContextVar[bool] = ContextVar("behest_seen", default=False)


@contextmanager
def seen() -> Iterator[None]:
    """Around the sending of a request that a door has looked at: it is that door's own."""
    token = _seen.set(True)
    try:
        yield
    finally:
        _seen.reset(token)


def is_seen() -> bool:
    """Whether a layer around has looked at what is sent here, of whichever engine."""
    if _seen.get():
        return True
    return any(hold.open and made.open and not hold.keeper.closed for hold, made in _offers.get())


_within: ContextVar[tuple[Hold, ...]] = ContextVar("behest_within", default=())


def enclose(hold: Hold) -> None:
    """What the current context does from now on is done inside of what `hold` is for, until that ends."""
    _within.set((*(h for h in _within.get() if h.open), hold))


def enclosing(keeper: object) -> tuple[Hold, ...]:
    """The holds, of this engine, of what the running code is inside of."""
    found = _within.get()
    return tuple(h for h in found if h.open and h.keeper is keeper) if found else found


def take_offer(keeper: object, operation: str, model: str, layer: str = "") -> Hold | None:
    """The hold of the layer around this one, if it is of the same engine and kind of call.

    Layers may know a model by different names (a deployment's, an alias): the one of the same
    name is preferred, not required.
    """
    offered = _offers.get()
    if not offered or operation not in METERED_OPERATIONS:
        return None
    kind = operation in EMBEDDINGS
    offers = [
        (hold, made)
        for hold, made in offered
        if hold.keeper is keeper
        and (hold.plan.operation in EMBEDDINGS) == kind
        and made.open
        and (not layer or made.layer != layer)
    ]
    # The innermost layer's, and in the order of its calls: `generate([a, b])` begins both.
    innermost = {made.layer: place for place, (_hold, made) in enumerate(offers)}
    for _hold, made in sorted(offers, key=lambda o: (o[0].plan.model != model, -innermost[o[1].layer])):
        taken = made.take()
        if taken is not None:
            return taken
    return None
