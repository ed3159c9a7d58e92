"""Browsers: which pages may call, project by project, and what a browser is told of it (CORS)."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import urlsplit

from .settings import GatewaySettings

Headers = list[tuple[bytes, bytes]]

_SEEN = (
    "X-Trace-Id", "X-Request-Id", "X-Tier", "X-Budget", "X-Budget-Limit", "X-Budget-Left", "X-Budget-Reset",
    "X-Model-Asked", "Retry-After", "x-should-retry", "openai-processing-ms", "openai-version",
    "openai-model",
)  # fmt: skip
"""What of an answer a page may read."""
_PREFLIGHT_SECONDS = 7200
"""The longest that Chromium remembers."""
_ASKED = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,4096}\Z")
"""Names of headers: a stock client sends dozens of its own, which nobody can list."""


class Origins:
    """Who may call from which pages.

    Where a project names none, and `cors_origins` none for all, browsers are told nothing, and who sends
    an `Origin` all the same is let in like any other program.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self._matches = lru_cache(maxsize=4096)(_matches)
        self.use(settings)

    def use(self, settings: GatewaySettings) -> None:
        """From now on it is these that say it."""
        self._all = tuple(settings.cors_origins)
        self._of = {name: tuple(project.origins) for name, project in settings.projects.items()}
        self.any = bool(self._all) or any(self._of.values())
        """Whether any are named."""

    def of(self, tenant: str | None, project: str | None) -> tuple[str, ...]:
        """The patterns for a project: those of "TENANT/PROJECT", else of "PROJECT", and those for all."""
        own = self._of.get(f"{tenant}/{project}")
        return (*self._all, *(self._of.get(project or "", ()) if own is None else own))

    def admits(self, origin: str, host: str, tenant: str | None, project: str | None) -> bool:
        """Whether a page of `origin` may call for a project; a page of the gateway's own may."""
        patterns = self.of(tenant, project)
        return not patterns or self._matches(origin, patterns) or urlsplit(origin).netloc == host

    def told(self, origin: str, patterns: Iterable[str] | None = None) -> Headers:
        """What an answer tells the browser.

        Args:
            patterns: of the caller's project; None: it is not known, and any project's will do.
        """
        if not self.any:
            return []
        if patterns is None:
            patterns = {*self._all, *(pattern for own in self._of.values() for pattern in own)}
        found: Headers = [(b"vary", b"Origin")]
        if self._matches(origin, tuple(patterns)):
            found += [
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"access-control-expose-headers", ", ".join(_SEEN).encode()),
            ]
        return found

    def preflight(self, origin: str, asked: bytes, methods: str) -> Headers | None:
        """What the question is answered with that a browser asks first; None: not from there."""
        told = self.told(origin)
        if len(told) < 2:
            return None
        told += [
            (b"access-control-allow-methods", methods.encode()),
            (b"access-control-max-age", str(_PREFLIGHT_SECONDS).encode()),
            (b"vary", b"Access-Control-Request-Headers"),
        ]
        if _ASKED.match(asked):
            told.append((b"access-control-allow-headers", asked))
        return told


def _matches(origin: str, patterns: tuple[str, ...]) -> bool:
    return any(p == "*" or p == origin or ("*" in p and _within(origin, p)) for p in patterns)


def _within(origin: str, pattern: str) -> bool:
    """`https://*.example.com`: a star stands for parts of a name or a port, and for no other scheme."""
    scheme, _, name = origin.partition("://")
    wanted, _, pattern = pattern.partition("://")
    return scheme == wanted and not set(name) & set("/@?#[") and fnmatch.fnmatchcase(name, pattern)
