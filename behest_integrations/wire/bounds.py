"""How large a request can get, in the words of every wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from .fields import ONE, Ratio
from .sizes import Size

CacheWrites = Literal["none", "5m", "1h"]


class RequestBound(NamedTuple):
    """How large a request can get.

    Attributes:
        input_tokens: an upper bound of what the prompt can be billed as; None: only the
            model's context window bounds it.
        extra_input: tokens of this request that come on top of remembered context.
        choices: how many times the output limit can be used up.
        extra_output: output tokens that the limit does not bound (rejected predictions).
        output_limit: the limit the caller sent, the largest where there are several; None if
            none; 0 where there is no output.
        limit_fields: the paths of the fields that carry it, or of the ones to send it in.
        service_tier: by the price list's name.
        input_audio, output_audio: whether audio tokens can occur.
        features: what cannot be bounded from the request, by name, with the reason; a field
            that is not known is `field:NAME`.
        previous: the response whose context this one continues, if that is all that is
            not in the request.
        slack: how much of `input_tokens` is caution about what surrounds the texts; an
            estimate leaves it out.
        multiplier: what the price of every token is multiplied by (a numerator and a
            denominator; the product is rounded up).
        tier_multiplier: the same, but only where the price list has no price for `service_tier`.
        models: other models that may answer; the dearest counts.
        search_context: the size of the search context that the request pins, of models that
            search by themselves.
        least_output: tokens that the answer has at least; where a limit is only assumed or sent by
            default, it is not below this.
        below_limit: paths of budgets for thoughts, which servers want below the limit.
        send_limit: whether the limit must be sent though the caller sent one: the server may not
            read the fields that it is in.
        replaced: fields that are taken out where the limit is sent, since servers refuse them
            beside the others.
        size: what bills of other calls may bound better than `input_tokens` does, which it made.
        cache_writes: the longest life that a write to the provider's cache can have: ``none`` where
            the request asks for no writes, ``5m``, ``1h``.
    """

    input_tokens: int | None
    extra_input: int = 0
    choices: int = 1
    extra_output: int = 0
    output_limit: int | None = None
    limit_fields: tuple[str, ...] = ()
    service_tier: str | None = None
    input_audio: bool = False
    output_audio: bool = False
    features: Mapping[str, str] = {}
    previous: str | None = None
    slack: int = 0
    multiplier: Ratio = ONE
    tier_multiplier: Ratio = ONE
    models: tuple[str, ...] = ()
    search_context: str | None = None
    least_output: int = 0
    below_limit: tuple[str, ...] = ()
    send_limit: bool = False
    replaced: tuple[str, ...] = ()
    size: Size | None = None
    cache_writes: CacheWrites = "1h"
