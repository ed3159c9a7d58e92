"""What stands for a text that must not leave, and how it is put back into what comes in return.

A placeholder says what kind of thing it stands for, so that a model can still reason about it. It is the same
for the same text, for as long as the process lives (or its secret, `SECRET_ENV`), and cannot be guessed: who
writes one into a prompt gets nobody's text back.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

SECRET_ENV = "BEHEST_POLICY_SECRET"
"""Where processes that are to write the same placeholders have a secret in common."""
_KEY = hashlib.blake2b(os.environ.get(SECRET_ENV, "").encode() or os.urandom(32)).digest()
_DIGITS = 8


class Placeholders:
    """Those of one call.

    Args:
        there: all texts of the call: what stands in them already stands for nothing.
    """

    def __init__(self, there: Iterable[str] = ()) -> None:
        self._there = list(there)
        self._by_text: dict[tuple[str, str], str] = {}
        self.texts: dict[str, str] = {}
        """By placeholder: the text that it stands for."""

    def of(self, entity: str, text: str) -> str:
        """The placeholder of a text."""
        key = (entity, text)
        found = self._by_text.get(key)
        if found is None:
            digest = hashlib.blake2b(
                f"{entity}\0{text}".encode("utf-8", "surrogatepass"), key=_KEY
            ).hexdigest()
            length = _DIGITS
            found = f"[{entity}_{digest[:length]}]"
            while found in self.texts or any(found in there for there in self._there):
                length += 1
                found = f"[{entity}_{digest[:length]}]"
            self._by_text[key] = found
            self.texts[found] = text
        return found


class Restorer:
    """Puts texts back, whole or in the pieces of a stream.

    Args:
        texts: by placeholder.
        quoted: the answer is JSON all through, so that what is put into it is written as JSON.
    """

    def __init__(self, texts: Mapping[str, str], *, quoted: bool = False) -> None:
        self._texts = dict(texts)
        self._quoted = quoted
        self._pattern = re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))
        self._longest = max(map(len, texts))
        self._held: dict[Any, str] = {}

    def whole(self, text: str, *, quoted: bool = False) -> str:
        """A text that is complete.

        Args:
            quoted: it is JSON itself, as arguments of tools are.
        """
        if "[" not in text:
            return text
        put = self._put_quoted if quoted or self._quoted else self._put
        return self._pattern.sub(put, text)

    def _put(self, found: re.Match[str]) -> str:
        return self._texts[found[0]]

    def _put_quoted(self, found: re.Match[str]) -> str:
        return json.dumps(self._texts[found[0]], ensure_ascii=False)[1:-1]

    def feed(self, channel: Any, text: str, *, quoted: bool = False) -> str:
        """The next piece of a text: what of it, and of what came before, is certain by now."""
        text = self._held.pop(channel, "") + text
        certain = self._certain(text)
        if certain < len(text):
            self._held[channel] = text[certain:]
        return self.whole(text[:certain], quoted=quoted)

    def so_far(self, text: str, *, quoted: bool = False) -> str:
        """A text that may go on, all of it: without its end where that may be half a placeholder."""
        return self.whole(text[: self._certain(text)], quoted=quoted)

    def _certain(self, text: str) -> int:
        """How much of a text cannot be the beginning of a placeholder."""
        # No placeholder has a bracket inside: only what begins with the last one can be half of one.
        start = text.rfind("[", max(0, len(text) - self._longest + 1))
        half = start >= 0 and "]" not in text[start:] and self._begins(text[start:])
        return start if half else len(text)

    def _begins(self, text: str) -> bool:
        return any(placeholder.startswith(text) for placeholder in self._texts)

    def rest(self, channel: Any) -> str:
        """What was held back of a text that has come to its end."""
        return self._held.pop(channel, "")

    @property
    def holding(self) -> list[Any]:
        """The texts of which something is held back."""
        return list(self._held)

    def value(self, value: Any, *, quoted: bool = False) -> Any:
        """JSON with all its strings complete; the very same object where nothing is put back."""
        return restored(value, self.whole, quoted=quoted)


_JSON_INSIDE = frozenset({"arguments", "partial_json"})


def restored(value: Any, whole: Callable[..., str], *, quoted: bool = False) -> Any:
    """JSON with `whole` applied to each of its strings."""
    if isinstance(value, str):
        text = whole(value, quoted=quoted)
        return value if text == value else text
    if isinstance(value, Mapping):
        made = {
            n: restored(v, whole, quoted=isinstance(v, str) and (quoted or n in _JSON_INSIDE))
            for n, v in value.items()
        }
        return value if all(made[n] is v for n, v in value.items()) else made
    if isinstance(value, (list, tuple)):
        items = [restored(v, whole, quoted=quoted) for v in value]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else items
    return value
