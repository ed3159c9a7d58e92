"""An OpenAI-compatible gateway over the same engine, for programs in any language.

`behest serve` runs it; `create_app` gives the ASGI application to those who serve it themselves.
"""

from ..errors import MissingExtra

try:
    import starlette  # noqa: F401
except ImportError:
    raise MissingExtra("The gateway", "gateway") from None

from .app import create_app, gateway_meter
from .settings import GatewaySettings

__all__ = ["GatewaySettings", "create_app", "gateway_meter"]
