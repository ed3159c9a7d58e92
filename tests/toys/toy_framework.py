"""A framework of somebody else's: a model that is asked, and says what it used."""

from __future__ import annotations

from typing import Any


class ToyModel:
    """Answers with as many words as it may."""

    def __init__(self, name: str, max_words: int) -> None:
        self.name = name
        self.max_words = max_words
        self.bill: list[int] = []

    def ask(self, question: str) -> dict[str, Any]:
        self.bill.append(self.max_words)
        thoughts = self.max_words // 2
        return {"text": "word " * self.max_words, "in": 5, "out": self.max_words, "thoughts": thoughts}
