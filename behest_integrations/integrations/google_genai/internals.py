"""What of google-genai's own we stand on; nothing else of it is touched that is not public.

Read with google-genai 2.34 and 3.6: `genai.Client` and each of its parts (`models`, `aio`, …) keep one
`BaseApiClient` as `_api_client`. That sends by `_httpx_client` and `_async_httpx_client`, or, awaited and
where `_use_aiohttp` says so, by aiohttp; by a session of google-auth where a device has a certificate. It
retries around that, in `_request` and `_async_request`; `request_streamed` and `async_request_streamed` are
generators around these, and leave the response to the garbage collector if they are left. It is asked
for `_websocket_base_url` once for each session of Live, or of music. The newer APIs (`interactions`,
`agents`) take the same HTTP clients. `tests/test_google_genai.py` says what has moved.
"""

from __future__ import annotations

from typing import Any

from ...rules.errors import need

HTTP_CLIENTS = ("_httpx_client", "_async_httpx_client")
SOCKETS = "_websocket_base_url"
AIOHTTP = "_use_aiohttp"
_OF_DEVICES = ("_use_google_auth_sync", "_use_google_auth_async")


def classes() -> tuple[type, type]:
    """Its `Client`, and what sends for it."""
    with need("google-genai", "google-genai"):
        from google.genai import Client
        from google.genai._api_client import BaseApiClient
    return Client, BaseApiClient


def other_way(api: Any) -> str | None:
    """By what else than httpx it would send; None: by nothing."""
    if getattr(api._http_options, "aiohttp_client", None) is not None:
        return "aiohttp (http_options.aiohttp_client)"
    for name in _OF_DEVICES:
        uses = getattr(api, name, None)
        if uses is not None and uses():
            return "google-auth, with the certificate of a device (mTLS)"
    return None


def headers_of(api: Any) -> dict[str, str]:
    """What it sends with every request."""
    return dict(api._http_options.headers or {})


def with_api(value: Any, old: Any, new: Any) -> Any:
    """A part of a client (`models`, `aio`, …), and what is in it, asking by `new` in the place of `old`."""
    if value is old:
        return new
    package, _, module = type(value).__module__.partition("google.genai")
    if package or not module or not hasattr(value, "__dict__"):
        return value
    if module.startswith("._"):
        return None  # made when it is first asked for, and then by what sends
    if "_api_client" not in vars(value):
        return value
    part = object.__new__(type(value))
    part.__dict__.update({name: with_api(inner, old, new) for name, inner in vars(value).items()})
    return part
