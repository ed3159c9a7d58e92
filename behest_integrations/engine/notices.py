"""Warnings that are given once."""

from __future__ import annotations

import logging

log = logging.getLogger("behest")
_MANY = 10_000


class Notices:
    """What has been said already."""

    def __init__(self) -> None:
        self._said: set[object] = set()

    def once(self, key: object, text: str, *args: object) -> bool:
        """Log a warning, unless one was logged under this key; whether it was logged now."""
        if key in self._said:
            return False
        if len(self._said) >= _MANY:  # keys hold names that come from outside
            self._said.clear()
        self._said.add(key)
        log.warning(text, *args)
        return True
