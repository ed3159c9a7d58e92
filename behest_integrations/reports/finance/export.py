"""`behest export`: the books as a file that finance's tools read.

`focus` is a row for each day, session, user, model and kind of token (see `focus`); `csv`, `jsonl` and
`parquet` have a row for each entry of the ledger. Rows are written as they are read, so that the
number of them does not matter.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import sqlalchemy as sa

from ...ledger import Ledger, schema
from ...prices import Pricing
from ...rules.errors import ConfigError, need
from ...rules.near import say_near
from ...rules.units import to_usd
from ..lines import narrowed
from ..shown import Asked, reading
from . import focus
from .centres import CENTRE, CostCentres

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("focus", "csv", "jsonl", "parquet")
_e = schema.entries

_COUNTS = (
    "input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens",
    "input_audio_tokens", "output_audio_tokens", "calls",
)  # fmt: skip
ENTRY_COLUMNS = (
    "id", "call_id", "at", "started", "status", "reversal", "session_id", "user_id", "project", "tenant",
    "tags", "stage", "operation", "provider", "model", "service_tier", *_COUNTS, "cost_usd", "flags", "note",
    "provider_id", CENTRE,
)  # fmt: skip
"""Of a row for each entry. `reversal` is 1 in a row that takes an earlier one back: its numbers are
negative. `cost_usd` is null where a call had no price."""
_MOMENTS = ("at", "started", *focus.MOMENTS)
_USD = ("cost_usd", *focus.NUMBERS)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        cost: nano-dollars, of all rows together.
    """

    rows: int
    cost: int


def export(
    ledger: Ledger,
    to: str | Path | IO[Any],
    format: str = "focus",
    asked: Asked | None = None,
    *,
    pricing: Pricing | None = None,
    centres: CostCentres | None = None,
) -> Exported:
    """Write the books to a file.

        export(ledger, "2026-11.csv", "focus", Asked(since=..., until=...))

    Args:
        to: a path, or what is open to be written: as text, for ``parquet`` as bytes. A path that
            ends in ``.parquet`` is written as such in the format ``focus`` too.
        format: of `FORMATS`.
        asked: which entries, by when they were booked; default: all.
        pricing: the prices that divide a cost between kinds of tokens; default: the price list's.
        centres: which cost centre a row is on.

    Raises:
        ConfigError: there is no such format.
        MissingExtra: Parquet needs the `parquet` extra.
        StoreError: the store cannot be read.
    """
    if format not in FORMATS:
        raise ConfigError(
            f"there is no format {format!r}{say_near(format, FORMATS)}: one of {', '.join(FORMATS)}"
        )
    asked = asked or Asked()
    if format == "focus":
        rows: Iterator[Mapping[str, Any]] = focus.focus_rows(ledger, asked, pricing=pricing, centres=centres)
        columns: Sequence[str] = focus.COLUMNS
    else:
        rows, columns = entry_rows(ledger, asked, centres=centres), ENTRY_COLUMNS
    told = _Counted("BilledCost" if format == "focus" else "cost_usd")
    as_parquet = format == "parquet" or (isinstance(to, (str, Path)) and str(to).endswith(".parquet"))
    write: Callable[..., None] = _parquet if as_parquet else _jsonl if format == "jsonl" else _csv
    with _opened(to, binary=as_parquet) as file:
        write(file, columns, told.of(rows))
    return Exported(told.rows, int(told.cost.scaleb(9)))


class _Counted:
    def __init__(self, column: str) -> None:
        self._column = column
        self.rows = 0
        self.cost = Decimal(0)

    def of(self, rows: Iterator[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        for row in rows:
            self.rows += 1
            self.cost += row[self._column] or 0
            yield row


def entry_rows(
    ledger: Ledger, asked: Asked, *, centres: CostCentres | None = None
) -> Iterator[dict[str, Any]]:
    """Each entry, in the order in which they were booked: by `ENTRY_COLUMNS`.

    Raises:
        StoreError: the store cannot be read.
    """
    centres = centres or CostCentres()
    names = [name for name in ENTRY_COLUMNS if name not in ("cost_usd", CENTRE)]
    statement = sa.select(*(_e.c[name] for name in names), _e.c.cost)
    with reading(ledger) as connection:
        found = connection.execution_options(yield_per=focus.AT_ONCE).execute(
            narrowed(statement, asked).order_by(_e.c.id)
        )
        for *values, cost in found:
            row = dict(zip(names, values, strict=True))
            tags = row["tags"]
            row["tags"] = json.dumps(tags, ensure_ascii=False, sort_keys=True)
            for name in ("at", "started"):
                row[name] = datetime.fromtimestamp(row[name] / 1000, timezone.utc)
            row["cost_usd"] = None if cost is None else to_usd(cost)
            row[CENTRE] = centres.of_call(row["project"], row["user_id"], row["tenant"], tags)
            yield row


@contextmanager
def _opened(to: str | Path | IO[Any], *, binary: bool) -> Iterator[IO[Any]]:
    """A file beside the one that is meant, which takes its place when it is whole."""
    if not isinstance(to, (str, Path)):
        yield to
        return
    path = Path(to)
    beside = path.with_name(f".{path.name}.part")
    try:
        with beside.open("wb") if binary else beside.open("w", encoding="utf-8", newline="") as file:
            yield file
        beside.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)


def _csv(file: IO[str], columns: Sequence[str], rows: Iterator[Mapping[str, Any]]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    tell = [(name, _teller(name)) for name in columns]
    for row in rows:
        writer.writerow([say(row[name]) for name, say in tell])


def _teller(column: str) -> Callable[[Any], Any]:
    if column in _USD:
        return _number
    if column in _MOMENTS:
        return _utc
    return inert


def _number(value: Decimal | None) -> str:
    """Exact, and never without a decimal point: a column of whole numbers is read as another type."""
    if value is None:
        return ""
    text = format(value, "f")
    return text if "." in text else f"{text}.0"


def _utc(value: datetime | None) -> str:
    if value is None:
        return ""
    return value.isoformat(timespec="milliseconds" if value.microsecond else "seconds").replace("+00:00", "Z")


def inert(value: Any) -> Any:
    """Ids come from outside: a spreadsheet must not take one for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _jsonl(file: IO[str], columns: Sequence[str], rows: Iterator[Mapping[str, Any]]) -> None:
    for row in rows:
        file.write(
            f"{json.dumps({name: row[name] for name in columns}, ensure_ascii=False, default=_told)}\n"
        )


def _told(value: datetime | Decimal) -> str:
    return _utc(value) if isinstance(value, datetime) else format(value, "f")


def _parquet(file: IO[bytes], columns: Sequence[str], rows: Iterator[Mapping[str, Any]]) -> None:
    with need("Parquet", "parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    schema = pa.schema([(name, _type(pa, name)) for name in columns])
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        batch: list[Mapping[str, Any]] = []
        for row in rows:
            batch.append(row)
            if len(batch) >= 10_000:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                batch.clear()
        writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def _type(arrow: Any, column: str) -> pa.DataType:
    if column in _USD:
        # Costs have nine places; prices that are not the list's own have more.
        return arrow.decimal128(38, 9 if column == "cost_usd" else 18)
    if column in _MOMENTS:
        return arrow.timestamp("ms", tz="UTC")
    return arrow.int64() if column in (*_COUNTS, "id", "reversal") else arrow.string()
