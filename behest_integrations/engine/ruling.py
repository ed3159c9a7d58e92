"""A call and the policy: decided before anything is planned, and so before anything is reserved.

Doors come here only where there is a policy, which they ask with one look at `Engine.policy`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..rules.attribution import NOBODY, Attribution
from ..rules.errors import PolicyRefused, UnknownPrice
from ..wire import RequestBound
from ..wire.fields import has_unread_models
from .holds import Hold
from .layers import take_offer

if TYPE_CHECKING:
    from ..policy import Verdict
    from ..policy.placeholders import Restorer
    from .engine import Engine


class Ruled(NamedTuple):
    """A call that the policy allows.

    Attributes:
        body: the request to send; another than was asked with, where its texts were masked.
        bound: how large that can get.
        restorer: puts back into the answer what was masked.
        outer: the hold of the layer around it, for `Engine.plan`.
    """

    body: Mapping[str, Any]
    bound: RequestBound
    verdict: Verdict
    outer: Hold | None
    restorer: Restorer | None


def rule(
    engine: Engine,
    operation: str,
    body: Mapping[str, Any],
    binding: Callable[[Mapping[str, Any]], RequestBound],
    *,
    who: Attribution = NOBODY,
    fallback: Attribution = NOBODY,
    provider: str | None = None,
    where: str = "",
    layer: str = "",
    outer: Hold | None = None,
    can_limit: bool = True,
    can_change: bool = True,
    view: Mapping[str, Any] | None = None,
    remade: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda view: view,
    unread: Sequence[str] = (),
    asked_model: str | None = None,
) -> Ruled:
    """Ask the policy of `engine`, which has one.

    Args:
        binding: how large a request can get, for any body.
        can_limit: whether the door can send another output limit than the caller's.
        can_change: whether it can send other texts.
        view: what of the call is sent, as JSON; None: the body.
        remade: the body, from a view whose texts were changed.
        unread: kinds of content that go with it and are no texts.
        asked_model: the model that was asked for, where this one would stand in for it: its texts have
            been looked through, and nobody is told if it is not allowed.

    Raises:
        PolicyRefused: a rule forbids the call.
        ConfigError: a field that its bound depends on has an impossible value.
    """
    from ..policy import Asked  # loaded already, for there is one

    policy = engine.policy
    assert policy is not None
    model = str(body.get("model") or "")
    if outer is None:
        outer = take_offer(engine, operation, model, layer)
    whose = who if outer is None else who.over(outer.plan.who)
    bound = binding(body)
    pricing = engine.pricing

    def priced(name: str) -> bool:
        try:
            pricing.find(name, provider)
        except UnknownPrice:
            return False
        return True

    inputs = bound.input_tokens
    asked = Asked(
        engine.planner.who(whose, fallback),
        (model, *bound.models),
        not has_unread_models(operation, bound.features),
        pricing.names_of,
        provider,
        where,
        None if inputs is None else max(0, inputs - bound.slack),
        bound.output_limit,
        bound.least_output,
        can_limit and bool(bound.limit_fields),
        priced,
    )
    try:
        verdict = policy.admit(asked)
        if not policy.screening or asked_model is not None:
            return Ruled(body, bound, verdict, outer, None)
        seen = body if view is None else view
        screened = policy.screen(verdict, seen, can_change=can_change, unread=unread)
        if screened is None or screened.body is seen:
            return Ruled(body, bound, verdict, outer, None)
        # What is sent is what is bounded, and what the terms are about.
        body = remade(screened.body)
        bound = binding(body)
        inputs = bound.input_tokens
        policy.admit(asked._replace(input_tokens=None if inputs is None else max(0, inputs - bound.slack)))
        return Ruled(body, bound, verdict, outer, screened.restorer)
    except PolicyRefused as error:
        assert engine.auditor is not None
        if asked_model is None:
            engine.auditor.refused(error, asked.who, operation, model)
        raise


def looks_through(engine: Engine, method: str) -> bool:
    """Whether a request that is not billed may take people's words to a provider, and the policy asks."""
    policy = engine.policy
    return policy is not None and policy.screening and method.upper() in ("POST", "PUT", "PATCH")


def screened(
    engine: Engine,
    body: Mapping[str, Any],
    *,
    who: Attribution = NOBODY,
    fallback: Attribution = NOBODY,
    unread: Sequence[str] = (),
) -> Mapping[str, Any]:
    """What may be sent of a request that is no call of a model, and takes texts to a provider all the same.

    Raises:
        PolicyRefused: something in it blocks it.
    """
    policy, auditor = engine.policy, engine.auditor
    assert policy is not None
    assert auditor is not None
    whose = engine.planner.who(who, fallback)
    try:
        found = policy.screen(policy.terms_for(whose), body, unread=unread)
    except PolicyRefused as error:
        auditor.refused(error, whose, "free", str(body.get("model") or ""))
        raise
    return body if found is None else found.body
