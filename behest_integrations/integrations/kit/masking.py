"""What models' doors have in common where a policy may want texts of a call masked before it is made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from ...engine.engine import Engine
from ...rules.errors import PolicyRefused

P = ParamSpec("P")
T = TypeVar("T")


def looks_through(engine: Engine, deferred: bool) -> bool:
    """Whether the texts of a call are looked through by the door that is asked.

    Args:
        deferred: a layer within sees more of the call, and asks the policy.
    """
    return engine.policy is not None and engine.policy.screening and not deferred


async def off_loop(looks: bool, make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `make` returns, made on a thread where it `looks` texts through: that takes longer than an event
    loop may wait."""
    return await asyncio.to_thread(make, *args, **kwargs) if looks else make(*args, **kwargs)


def only(part: str, view: Mapping[str, Any], made: Mapping[str, Any]) -> Any:
    """What a view has become, if its texts were changed in this part alone.

    Raises:
        PolicyRefused: they were changed in another part too, which a door cannot send.
    """
    if any(made[name] is not value for name, value in view.items() if name != part):
        message = f"what must be masked is in its settings or tools, and not in its {part}"
        raise PolicyRefused(message, rule="pii", kind="pii")
    return made[part]


def masking_input(
    engine: Engine, request: Mapping[str, Any], deferred: bool
) -> tuple[dict[str, Any], list[str]]:
    """For embeddings: what a `Generation` takes to have their texts masked, and the texts to send."""
    sent = list(request["input"])

    def remade(made: Mapping[str, Any]) -> Mapping[str, Any]:
        sent[:] = only("input", request, made)
        return {**request, "input": list(sent)}

    return ({"view": request, "remade": remade} if looks_through(engine, deferred) else {}), sent
