"""A door for the toy framework: `meter.toy(model)`, and every one that is made under `instrument()`."""

from __future__ import annotations

from typing import Any

from behest_integrations import Usage
from behest_integrations.engine.engine import Engine
from behest_integrations.engine.holds import Hold
from behest_integrations.integrations.kit.call import Call, is_inside
from behest_integrations.integrations.kit.generation import Generation, Heard
from behest_integrations.integrations.kit.instrument import on_import
from behest_integrations.integrations.kit.undo import Undo


def heard(reply: dict[str, Any]) -> Heard:
    usage = Usage(reply["in"], reply["out"], reasoning_tokens=reply["thoughts"])
    return Heard(usage, reply["text"])


def metered_ask(engine: Engine, model: Any, ask: Any, question: str) -> Any:
    if is_inside(model):
        return ask(question)
    request = {"model": model.name, "messages": [{"role": "user", "content": question}]}
    request["max_tokens"] = model.max_words
    generation = Generation(engine, request, can_limit=True)

    def send(hold: Hold) -> Any:
        wanted, model.max_words = model.max_words, hold.output_limit or model.max_words
        try:
            return ask(question)
        finally:
            model.max_words = wanted

    return Call(generation, model).made(send, heard)


class ToyDoor(Engine):
    """The toy framework."""

    def toy(self, model: Any) -> Any:
        """Meter one model."""
        ask = model.ask
        model.ask = lambda question: metered_ask(self, model, ask, question)
        return model

    @on_import("toy_framework")
    def instrument_toy(self) -> Undo:
        """Meter every model."""
        from toy_framework import ToyModel

        own: Any = ToyModel.ask
        ToyModel.ask = lambda model, question: metered_ask(  # type: ignore[method-assign]
            self, model, lambda q: own(model, q), question
        )
        return Undo(lambda: setattr(ToyModel, "ask", own))
