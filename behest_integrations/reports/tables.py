"""Where `print_report` was: it is `behest_integrations.reports.print_report`. Goes with version 0.2."""

from __future__ import annotations

import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    from . import look, print_report

    if name == "print_report":
        found: Any = print_report
    elif hasattr(look, name):
        found = getattr(look, name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"import {name} from behest_integrations.reports", DeprecationWarning, stacklevel=2)
    return found
