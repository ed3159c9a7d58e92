"""An OpenAI-compatible gateway over the same engine, for programs in any language.

`behest serve` runs it; `create_app` gives the ASGI application to those who serve it themselves.
"""

from importlib import import_module

from ..rules.errors import MissingExtra

try:
    for _name in (
        "aiohttp",
        "anyio",
        "cryptography",
        "jinja2",
        "jwt",
        "prometheus_client",
        "starlette",
        "tenacity",
        "uvicorn",
    ):
        import_module(_name)
except ImportError:
    raise MissingExtra("The gateway", "gateway") from None

from .app import create_app, gateway_meter
from .settings import GatewaySettings

__all__ = ["GatewaySettings", "create_app", "gateway_meter"]
