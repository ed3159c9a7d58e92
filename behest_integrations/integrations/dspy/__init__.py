"""DSPy: its language models, whichever engine asks them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from ...engine.engine import Engine
from ...rules.errors import ConfigError, need
from ..kit.instrument import on_import
from ..kit.undo import Undo

if TYPE_CHECKING:
    from dspy import BaseLM

    L = TypeVar("L", bound=BaseLM)


class DSPyDoor(Engine):
    """DSPy."""

    def dspy(self, lm: L, *, provider: str | None = None) -> L:
        """A language model like `lm`, of its own class, whose every call is metered.

            dspy.configure(lm=meter.dspy(dspy.LM("openai/gpt-4o-mini")))

        What DSPy's own engine sends is metered attempt by attempt, by the bytes that are sent; what LiteLLM,
        a custom engine or a model's own `forward` asks, by what DSPy asks of it. An answer from DSPy's cache
        is no call. Each of its retries, and of an adapter's, is a call of its own, and so is each of `n`
        answers, but with LiteLLM. A refusal comes out as it is; `dspy.Parallel` raises it once it gives up.
        The class of the program that asks is the tag ``module``.

        Args:
            lm: a `dspy.LM`, or another `dspy.BaseLM`; one that asks nobody (`DummyLM`) costs nothing.
            provider: whose prices apply; default: by the address, or by the model's prefix.

        Raises:
            MissingExtra: `dspy` is not installed.
            ConfigError: no model of DSPy, metered already, or DSPy is older than 3.4.
        """
        with need("DSPy", "dspy"):
            import dspy  # noqa: F401
        if not _is_known():
            raise ConfigError("meter.dspy() takes models of DSPy 3.4 or newer; before, use meter.litellm()")
        from .metering import meter_model

        metered: Any = meter_model(self, lm, provider)
        return metered  # type: ignore[no-any-return]

    @on_import("dspy")
    def instrument_dspy(self) -> Undo:
        """Meter all that DSPy asks in this process. Before 3.4, LiteLLM asks for it, and is metered itself.

        Returns:
            What ends it: `.remove()`, or `with`.
        """
        if not _is_known():
            return Undo(lambda: None)
        from .metering import meter_all

        return meter_all(self)


def _is_known() -> bool:
    """Whether this DSPy (if it is DSPy) has engines."""
    from importlib.util import find_spec

    try:
        return find_spec("dspy.clients.execution") is not None
    except (ImportError, ValueError):
        return False
