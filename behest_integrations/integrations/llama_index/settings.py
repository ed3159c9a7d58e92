"""`Settings`: what is, and what will be, its LLM and its embedding model are metered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.settings import Settings, _Settings

from ..kit.wrapped import plain
from .embeddings import meter_embedding
from .model import Metered, meter_llm

if TYPE_CHECKING:
    from ...meter import Meter


class MeteredSettings:
    """`Settings` under a meter, until `remove()` or the end of a `with`. See `Meter.llama_index`."""

    def __init__(self, meter: Meter, provider: str | None, limit_field: str | None) -> None:
        self._meter = meter
        self._before = type(Settings)
        self._class: Any = type(
            "_Settings", (_Under, self._before), {"_behest": (meter, provider, limit_field)}
        )
        Settings.__class__ = self._class

    def remove(self) -> None:
        """Stop metering what is asked through `Settings` from now on. What has taken its model
        from there before (an index, an engine) keeps it, and stays metered."""
        if type(Settings) is not self._class:
            return
        Settings.__class__ = self._before
        for name in ("_llm", "_embed_model"):
            held = getattr(Settings, name)
            if isinstance(held, Metered) and held._behest.meter is self._meter:
                setattr(Settings, name, plain(held))

    def __enter__(self) -> MeteredSettings:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


class _Under:
    """Between `Settings` and who asks it. A model is metered when it is first asked for."""

    _behest: tuple[Meter, str | None, str | None]

    @property
    def llm(self) -> Any:
        found = _Settings.llm.fget(self)  # type: ignore[attr-defined]
        if not isinstance(found, Metered):
            found = meter_llm(self._behest[0], found, self._behest[1], self._behest[2])
            self._llm = found
        return found

    @llm.setter
    def llm(self, llm: Any) -> None:
        _Settings.llm.fset(self, llm)  # type: ignore[attr-defined]

    @property
    def embed_model(self) -> Any:
        found = _Settings.embed_model.fget(self)  # type: ignore[attr-defined]
        if not isinstance(found, Metered):
            found = meter_embedding(self._behest[0], found, self._behest[1])
            self._embed_model = found
        return found

    @embed_model.setter
    def embed_model(self, model: Any) -> None:
        _Settings.embed_model.fset(self, model)  # type: ignore[attr-defined]
