"""`Settings`: what is, and what will be, its LLM and its embedding model are metered."""

from __future__ import annotations

from typing import Any

from llama_index.core.settings import Settings, _Settings

from ...engine.engine import Engine
from ..kit.metered import plain
from ..kit.terms import Terms
from ..kit.undo import Undo
from .embeddings import meter_embedding
from .model import Metered, meter_llm


def meter_settings(engine: Engine, provider: str | None, limit_field: str | None) -> Undo:
    """See `LlamaIndexDoor.llama_index`.

    What has taken its model from `Settings` before it is undone (an index, an engine) keeps it, and
    stays metered.
    """
    before = type(Settings)
    cls: Any = type("_Settings", (_Under, before), {"_behest": Terms(engine, provider, limit_field)})
    Settings.__class__ = cls

    def undo() -> None:
        if type(Settings) is not cls:
            return
        Settings.__class__ = before
        for name in ("_llm", "_embed_model"):
            held = getattr(Settings, name)
            if isinstance(held, Metered) and held._behest.engine is engine:
                setattr(Settings, name, plain(held))

    return Undo(undo)


class _Under:
    """Between `Settings` and who asks it. A model is metered when it is first asked for."""

    _behest: Terms

    @property
    def llm(self) -> Any:
        found = _Settings.llm.fget(self)  # type: ignore[attr-defined]
        if not isinstance(found, Metered):
            found = meter_llm(self._behest.engine, found, self._behest.provider, self._behest.limit_field)
            self._llm = found
        return found

    @llm.setter
    def llm(self, llm: Any) -> None:
        _Settings.llm.fset(self, llm)  # type: ignore[attr-defined]

    @property
    def embed_model(self) -> Any:
        found = _Settings.embed_model.fget(self)  # type: ignore[attr-defined]
        if not isinstance(found, Metered):
            found = meter_embedding(self._behest.engine, found, self._behest.provider)
            self._embed_model = found
        return found

    @embed_model.setter
    def embed_model(self, model: Any) -> None:
        _Settings.embed_model.fset(self, model)  # type: ignore[attr-defined]
