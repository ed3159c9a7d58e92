"""Which price list is looked into: the one that genai-prices brings, or a newer one from a file.

The one that is brought is as old as the package. A newer one is never fetched by itself: `behest prices
--update` does that, into a file that `price_list` of `behest.toml`, or `Meter(price_list=…)`, names. It has
genai-prices' own data (https://github.com/pydantic/genai-prices, prices/new_data/v2/data.json), as it came,
and from where and when that was; the data alone, as it is mirrored somewhere, can be read as well.

Read with genai-prices 0.2.3 (`genai_prices/types.py`): what its own updater reads data by has no public name;
`tests/test_internals.py` says what has moved.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from ..rules.errors import ConfigError

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot

READER = "_providers_from_raw"
"""The function of `genai_prices.types` that reads its data."""
LATEST = (
    "https://raw.githubusercontent.com/pydantic/genai-prices/refs/heads/main/prices/new_data/v2/data.json"
)
"""Where genai-prices publishes its data (`DEFAULT_UPDATE_URL` of its updater)."""
_MOST_BYTES = 64 * 2**20
_SECONDS = 30.0


@dataclass(frozen=True)
class PriceList:
    """A price list, and where it is from.

    Attributes:
        source: for people.
        at: when it was fetched; None: it came with the package, or its file does not say.
        path: its file.
        digest: SHA-256 of its data; "" for the one that is brought.
    """

    snapshot: DataSnapshot = field(repr=False, compare=False)
    source: str
    at: datetime | None = None
    path: str | None = None
    digest: str = ""

    @property
    def models(self) -> int:
        """How many it has."""
        return sum(len(provider.models) for provider in self.snapshot.providers)


@lru_cache(maxsize=1)
def brought() -> PriceList:
    """The list that genai-prices brings."""
    from genai_prices.data_snapshot import get_snapshot

    return PriceList(get_snapshot(), f"genai-prices {version('genai-prices')}, as installed")


def read_list(path: str | Path) -> PriceList:
    """The list of a file.

    Raises:
        ConfigError: there is none, or it cannot be used: which, and what to do.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the price list {str(path)!r} cannot be read: {error.strerror or error}. "
            "'behest prices --update FILE|URL' makes it; without price_list, the installed one is used."
        ) from None
    return parse_list(data, f"the price list {str(path)!r}", str(path))


def parse_list(data: bytes, what: str, path: str | None = None) -> PriceList:
    """The list that some bytes are.

    Args:
        what: they are, for people.

    Raises:
        ConfigError: they are none.
    """
    from genai_prices import types
    from genai_prices.data_snapshot import DataSnapshot

    read = getattr(types, READER, None)
    if read is None:
        raise ConfigError("price lists from a file need genai-prices 0.2 or newer")
    try:
        said: Any = json.loads(data)
    except ValueError:
        raise ConfigError(f"{what} is not JSON") from None
    source, at, raw = what, None, said
    if isinstance(said, Mapping):
        source, raw = str(said.get("source", what)), said.get("data")
        with suppress(TypeError, ValueError):
            at = datetime.fromisoformat(said["fetched"]) if "fetched" in said else None
    if not isinstance(raw, list) or not raw:
        raise ConfigError(f"{what} is not a list of providers, as genai-prices publishes it: {LATEST}")
    try:
        providers = read(raw)
    except ValueError as error:  # pydantic's, too
        first = str(error).splitlines()[0]
        raise ConfigError(f"{what} has what genai-prices does not know: {first}") from None
    if not any(provider.models for provider in providers):
        raise ConfigError(f"{what} has no models")
    digest = hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()
    return PriceList(DataSnapshot(providers=providers, from_auto_update=False), source, at, path, digest)


def fetch(source: str) -> bytes:
    """What a file or an address has.

    Raises:
        ConfigError: it cannot be had: why.
    """
    parts = urlsplit(source)
    if parts.scheme not in ("http", "https"):
        try:
            return Path(source).read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot read {source!r}: {error.strerror or error}") from None
    if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise ConfigError(f"prices decide what is let through: {source!r} is not fetched without https")
    try:
        # The scheme is one of two.
        with urlopen(Request(source, headers={"User-Agent": "behest"}), timeout=_SECONDS) as reply:
            data: bytes = reply.read(_MOST_BYTES + 1)
            if parts.scheme == "https" and urlsplit(reply.url).scheme != "https":
                raise ValueError("it leads to an address without https")
    except (URLError, OSError, ValueError) as error:
        raise ConfigError(f"cannot fetch {source!r}: {getattr(error, 'reason', error)}") from None
    if len(data) > _MOST_BYTES:
        raise ConfigError(f"{source!r} is longer than a price list is")
    return data


def keep(path: str | Path, data: bytes, source: str) -> None:
    """Write a list's data to its file, whole or not at all.

    Raises:
        ConfigError: it cannot be written; what was there is as it was.
    """
    said = json.loads(data)
    raw = said["data"] if isinstance(said, Mapping) else said
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    text = json.dumps({"source": source, "fetched": now, "data": raw}, ensure_ascii=False)
    target, beside = Path(path), ""
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=target.absolute().parent, prefix=f".{target.name}.", delete=False
        ) as file:
            beside = file.name
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)
        os.replace(beside, target)
    except OSError as error:
        with suppress(OSError):
            os.unlink(beside)
        raise ConfigError(f"cannot write {str(path)!r}: {error.strerror or error}") from None
