"""Towards the providers: connections, and which model goes where."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from ..engine.layers import seen
from ..prices import provider_for_url, provider_named
from ..rules.attribution import SESSION_HEADER, USER_HEADER, Attribution
from .settings import GatewaySettings, ProviderSettings

PATHS = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "responses": "/responses",
    "embeddings": "/embeddings",
}
COUNT_TOKENS = "count_tokens"
_ANTHROPIC = {"messages": "/messages", COUNT_TOKENS: "/messages/count_tokens"}
_PASSED_ON = frozenset({b"openai-beta", b"accept", b"accept-language"})
_PASSED_ON_TO_ANTHROPIC = frozenset({b"anthropic-version", b"anthropic-beta", b"accept"})
# What is passed through must not have to be unpacked first.
_ALWAYS = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
_VERSION = "2023-06-01"
"""What Anthropic's API is asked for by a client that names no version of it."""
_LIST_SECONDS = 10.0
_OUR_ACCOUNT = frozenset(
    {"authorization", "api-key", "x-api-key", "x-goog-api-key", "x-goog-user-project", "openai-organization",
     "openai-project"}
)  # fmt: skip
"""Headers of a provider's settings that say whose account is meant: they do not go with another's key."""
_OUR_KEY = frozenset({"key", "api_key", "api-key", "apikey", "access_token", "subscription-key"})
"""The same of its query."""


class Provider:
    """A provider and the pool of connections to it, in one event loop.

    Attributes:
        prices: the price list's id for it, if it is known there.
    """

    def __init__(self, name: str, settings: ProviderSettings) -> None:
        self.name = name
        self.settings = settings
        self.prices = (provider_named(settings.prices) or settings.prices) if settings.prices else None
        if self.prices is None:
            self.prices = provider_for_url(settings.base_url)
        self._headers = CIMultiDict(settings.headers)
        key = settings.key()
        if key is not None:
            self._headers[settings.auth_header] = self._credential(key)
        self._theirs = CIMultiDict((n, v) for n, v in self._headers.items() if n.lower() not in _OUR_ACCOUNT)
        self._theirs.popall(settings.auth_header, None)
        self._their_query = {n: v for n, v in settings.query.items() if n.lower() not in _OUR_KEY}
        self._headers.update(_ALWAYS)
        self._theirs.update(_ALWAYS)
        self._session: aiohttp.ClientSession | None = None
        self._by_model = "{model}" in settings.base_url
        self._url = lru_cache(maxsize=256)(self._url_of)

    def _url_of(self, path: str, model: str) -> URL:
        return URL(self.settings.base_url.replace("{model}", quote(model, safe="")).rstrip("/") + path)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            settings = self.settings
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=settings.max_connections, limit_per_host=0, keepalive_timeout=30
                ),
                timeout=aiohttp.ClientTimeout(
                    total=None, connect=settings.connect_timeout, sock_read=settings.timeout
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                # aiohttp would read the environment, and .netrc, for each request, in a thread.
                proxy=_proxy(settings.base_url),
            )
        return self._session

    def _credential(self, key: str) -> str:
        return f"Bearer {key}" if self.settings.auth_header.lower() == "authorization" else key

    async def post(
        self,
        operation: str,
        model: str,
        body: bytes,
        who: Attribution,
        given: Iterable[tuple[bytes, bytes]],
        own: str | None = None,
    ) -> aiohttp.ClientResponse:
        """Send a request, and wait for the head of the answer.

        Args:
            own: the caller's own key, which is sent in place of the gateway's; nothing else that says whose
                account is meant goes with it.
        """
        headers, query = self._headers.copy(), self.settings.query
        if own is not None:
            headers, query = self._theirs.copy(), self._their_query
            headers[self.settings.auth_header] = self._credential(own)
        path = PATHS.get(operation) or _ANTHROPIC[operation]
        if operation in _ANTHROPIC:
            headers.setdefault("anthropic-version", _VERSION)
        passed_on = _PASSED_ON_TO_ANTHROPIC if operation in _ANTHROPIC else _PASSED_ON
        for name, value in given:
            if name in passed_on:
                headers[name.decode("latin-1")] = value.decode("latin-1")
        if self.settings.send_attribution:
            for header, id in ((SESSION_HEADER, who.session_id), (USER_HEADER, who.user_id)):
                if id is not None:
                    # Written as UTF-8, like every header here.
                    headers[header] = id
        url = self._url(path, model if self._by_model else "")
        with seen():
            return await self._open().post(
                url, data=body, headers=headers, params=query, allow_redirects=False
            )

    async def models(self) -> list[Mapping[str, Any]]:
        """The provider's own list of models.

        Raises:
            aiohttp.ClientError, TimeoutError, ValueError: it has none, or cannot be asked.
        """
        if self._by_model:
            return []
        url = self.settings.base_url.rstrip("/") + "/models"
        async with self._open().get(
            url,
            headers=self._headers,
            params=self.settings.query,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=_LIST_SECONDS),
        ) as response:
            response.raise_for_status()
            listed = await response.json(content_type=None)
        found = listed.get("data") if isinstance(listed, Mapping) else None
        return [m for m in found or () if isinstance(m, Mapping) and isinstance(m.get("id"), str)]

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for `url` (HTTPS_PROXY and the like)."""
    parts = urlsplit(url)
    if proxy_bypass(parts.hostname or ""):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


@dataclass(frozen=True)
class Target:
    """A provider, and the model to ask it for."""

    provider: Provider
    model: str


class Routes:
    """Which model goes where."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._routes = settings.all_routes()
        self.providers = {name: Provider(name, given) for name, given in settings.providers.items()}
        self.targets = lru_cache(maxsize=1024)(self._targets)

    def _targets(self, model: str) -> tuple[Target, ...]:
        for route in self._routes:
            if any(fnmatch.fnmatchcase(model, pattern) for pattern in route.models):
                return tuple(
                    Target(self.providers[t.provider], t.model or model) for t in (route, *route.fallback)
                )
        return ()

    def named(self) -> list[str]:
        """The models that routes name outright."""
        return [name for route in self._routes for name in route.models if not set(name) & set("*?[")]

    async def close(self) -> None:
        for provider in self.providers.values():
            await provider.close()
