"""Pages that show what was spent, and how the budgets stand. They read the ledger and never write it.

`behest dashboard` serves them on this machine; the gateway serves them at `/dashboard`. Pages are
rendered here and are whole without a script: htmx refreshes them, uPlot zooms, no other host is asked.

- `app`: routes, headers, errors; `viewer`: who looks, and what of the ledger is theirs to see
- `asked`: what a URL asks for; `look`: a page being made; `pages`, `notices`: what is on it
- `draw`: SVG; `words`: how amounts and times are written
"""

from ..rules.errors import need

with need("The dashboard", "dashboard"):
    import jinja2 as _jinja2  # noqa: F401
    import starlette as _starlette  # noqa: F401

from .app import dashboard_routes, local_dashboard
from .viewer import Viewer

__all__ = ["Viewer", "dashboard_routes", "local_dashboard"]
