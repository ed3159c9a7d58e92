"""Looks texts through for what tries to turn a model against its orders, and for what is not wanted at all.

Patterns and lists find what is known, and no more; a classifier of your own is asked besides. What the
program itself has written (system prompts, descriptions of tools, the model's own answers) is not looked at.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..rules.errors import ConfigError, need
from .injections import INJECTIONS
from .settings import Sentinel

Classifier = Callable[[str], object]

_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\U000e0000-\U000e007f]")
_BLANK = re.compile(r"\s+")


class Guard:
    """Finds what is not wanted.

    Raises:
        ConfigError: the classifier cannot be used.
        MissingExtra: it is asked over HTTP, and httpx is not installed.
    """

    def __init__(self, settings: Sentinel) -> None:
        self._patterns: list[tuple[str, re.Pattern[str]]] = []
        if settings.injection:
            self._patterns += [("prompt_injection", re.compile(p, re.IGNORECASE)) for p in INJECTIONS]
        self._patterns += [(name, re.compile(p, re.IGNORECASE)) for name, p in settings.patterns.items()]
        words = [re.escape(plain(w)) for w in settings.blocklist]
        if words:
            self._patterns.append(("blocklist", re.compile(rf"(?<!\w)(?:{'|'.join(words)})(?!\w)")))
        self._classify = _classifier(settings)

    def find(self, texts: Sequence[str]) -> dict[str, int]:
        """How often what is in the texts.

        Raises:
            Exception: whatever the classifier raises.
        """
        found: Counter[str] = Counter()
        for text in texts:
            seen = plain(text)
            for name, pattern in self._patterns:
                if pattern.search(seen):
                    found[name] += 1
        if self._classify is not None and texts:
            for label in self._classify(texts):
                found[label] += 1
        return dict(found)


def plain(text: str) -> str:
    """A text as it is read: without what cannot be seen, in one form of each letter and one blank."""
    text = unicodedata.normalize("NFKC", _UNSEEN.sub("", text)).casefold()
    return _BLANK.sub(" ", text)


# ── classifiers ────────────────────────────────────────────────────────────────────────


def _classifier(settings: Sentinel) -> Callable[[Sequence[str]], list[str]] | None:
    given = settings.classifier
    if given is None:
        return None
    if isinstance(given, str):
        return _over_http(given, settings)
    if not callable(given):
        raise ConfigError(f"[policy.sentinel] classifier is a URL, or something to call, not {given!r}")
    return lambda texts: [label for text in texts for label in _labels(given(text), settings.threshold)]


def _over_http(url: str, settings: Sentinel) -> Callable[[Sequence[str]], list[str]]:
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"[policy.sentinel] classifier is an http:// or https:// address, not {url!r}")
    with need("httpx", "sentinel"):
        import httpx
    client = httpx.Client(timeout=settings.timeout, follow_redirects=False)

    def ask(texts: Sequence[str]) -> list[str]:
        response = client.post(url, json={"texts": list(texts)})
        response.raise_for_status()
        answers = response.json()["results"]
        if not isinstance(answers, list) or len(answers) != len(texts):
            raise ValueError("the classifier did not answer for each text")
        return [label for answer in answers for label in _labels(answer, settings.threshold)]

    return ask


def _labels(answer: object, threshold: float) -> list[str]:
    """What a classifier says of a text: whether it is bad, how likely, or `{"label": …, "score": …}`.

    Raises:
        ValueError: it says nothing of the kind.
    """
    if isinstance(answer, bool) or answer is None:
        return ["classifier"] if answer else []
    if isinstance(answer, (int, float)):
        return ["classifier"] if answer >= threshold else []
    if isinstance(answer, Mapping):
        said: Mapping[str, Any] = answer
        score, flagged = said.get("score"), said.get("flagged")
        if not isinstance(score, (int, float)) and not isinstance(flagged, bool):
            raise ValueError("a classifier says a score, or whether it is flagged")
        bad = flagged if isinstance(flagged, bool) else float(score or 0) >= threshold
        label = re.sub(r"[^\w.-]", "", str(said.get("label") or "classifier"))[:64]
        return [label or "classifier"] if bad else []
    raise ValueError("a classifier answers with true or false, a number, or a table")
