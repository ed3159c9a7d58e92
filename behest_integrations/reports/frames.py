"""A report's lines as a DataFrame, of whichever library is there."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from importlib.util import find_spec
from typing import Any

from ..rules.errors import ConfigError, MissingExtra

_LIBRARIES = ("polars", "pandas")


def dataframe(rows: Sequence[Mapping[str, Any]], by: Sequence[str], library: str | None) -> Any:
    """Rows as a DataFrame: ids as text, counts as integers, USD as `Decimal`.

    Raises:
        ConfigError: a library that is neither.
        MissingExtra: it is not installed.
    """
    if library is not None and library not in _LIBRARIES:
        raise ConfigError(f"a DataFrame is of {' or '.join(_LIBRARIES)}, not of {library!r}")
    known = [library] if library else [*(n for n in _LIBRARIES if n in sys.modules), *_LIBRARIES]
    name = next((n for n in known if find_spec(n) is not None), None)
    names = list(rows[0]) if rows else list(by)
    columns = {n: [_value(n, row[n], by) for row in rows] for n in names}
    if name == "polars":
        import polars

        # Nano-dollars are exact in it, and sums of them.
        types = {n: polars.Decimal(38, 9) for n in names if n.endswith("_usd") and n not in by}
        return polars.DataFrame(columns, schema_overrides={**types, **dict.fromkeys(by, polars.String)})
    if name == "pandas":
        import pandas

        return pandas.DataFrame(columns)
    raise MissingExtra(f"For a DataFrame, {library or 'polars or pandas'}", "frames")


def _value(name: str, value: Any, by: Sequence[str]) -> Any:
    return Decimal(value) if name.endswith("_usd") and name not in by else value
