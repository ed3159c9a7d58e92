"""What providers say they have billed: their own exports, read into lines of a day and a model.

A format is a row in `FORMATS`: how it is recognised, and where its fields are. Days are kept as the moments
at which they begin, for a provider's day may be another than ours.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timezone
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from ...rules.errors import ConfigError
from ...rules.near import say_near

Row = Mapping[str, Any]


@dataclass(frozen=True)
class BilledLine:
    """What a provider says of one day and model; None: it does not say.

    Attributes:
        cost: dollars.
        inputs: tokens of the prompt, those of a cache included, of which `cached`.
    """

    day: date
    model: str | None
    cost: Decimal | None = None
    requests: int | None = None
    inputs: int | None = None
    outputs: int | None = None
    cached: int | None = None

    def plus(self, other: BilledLine) -> BilledLine:
        """Both together: what one of them does not say is what the other says."""
        return BilledLine(
            self.day,
            self.model,
            *(
                _add(getattr(self, n), getattr(other, n))
                for n in ("cost", "requests", "inputs", "outputs", "cached")
            ),
        )


def _add(one: Any, other: Any) -> Any:
    return other if one is None else one if other is None else one + other


class _Read(NamedTuple):
    """What a row says, before it is known in which zone a day is meant."""

    at: Any
    line: dict[str, Any]


@dataclass(frozen=True)
class Format:
    """A provider's export.

    Attributes:
        provider: the price list's id of whom it is from; None: anybody.
        is_it: whether a row, with the names that it has, is of this format.
        read: what a row says; None: nothing that is compared (tax, credits that are lines of their own).
    """

    provider: str | None
    is_it: Callable[[Row], bool]
    read: Callable[[Row], _Read | None]


def read_invoice(
    paths: Sequence[str | Path],
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    zone: str = "UTC",
) -> tuple[list[BilledLine], str | None]:
    """The lines of one invoice or more, by day and model, and whose they are (a provider's id).

    Several files are of the same calls: usage in one, costs in the other.

    Args:
        paths: JSON, JSON lines or CSV.
        format: of `FORMATS`; default: what the file looks like.
        columns: for CSV of any other kind: by ``date``, ``model``, ``cost``, ``requests``,
            ``input_tokens``, ``output_tokens``, ``cached_tokens``, the column.
        zone: the time zone of days, for exports whose lines have a time of day.

    Raises:
        ConfigError: a file cannot be read, or is of no format that is known.
    """
    if format is not None and format not in FORMATS:
        known = ", ".join(FORMATS)
        raise ConfigError(f"there is no format {format!r}{say_near(format, FORMATS)}: one of {known}")
    if columns is not None:
        wrong = sorted(set(columns) - set(_GENERIC))
        if wrong or "date" not in columns:
            raise ConfigError(
                f"columns are mapped by {', '.join(_GENERIC)} (date at least), not {wrong or columns}"
            )
    found: dict[tuple[date, str | None], BilledLine] = {}
    providers = set()
    for path in paths:
        rows = list(_rows(Path(path)))
        made = Format(None, lambda row: True, _mapped(columns)) if columns else _format_of(rows, format, path)
        providers.add(made.provider)
        for number, row in enumerate(rows, 1):
            line = _line(made, row, zone, f"{path}, row {number}")
            if line is not None:
                key = (line.day, line.model)
                found[key] = found[key].plus(line) if key in found else line
    if not found:
        raise ConfigError(f"{', '.join(map(str, paths))}: no line says what was billed for a day")
    return [found[key] for key in sorted(found, key=lambda k: (k[0], k[1] or ""))], (
        providers.pop() if len(providers) == 1 else None
    )


def _format_of(rows: Sequence[Row], name: str | None, path: str | Path) -> Format:
    if name is not None:
        return FORMATS[name]
    for found in FORMATS.values():
        if rows and found.is_it(rows[0]):
            return found
    has = ", ".join(map(str, rows[0])) if rows else "nothing"
    raise ConfigError(
        f"{path} is no export that is known ({', '.join(FORMATS)}). It has {has}. Of a CSV file say what its "
        "columns are: --map date=DAY,model=MODEL,cost=AMOUNT"
    )


def _line(made: Format, row: Row, zone: str, where: str) -> BilledLine | None:
    try:
        said = made.read(row)
        if said is None:
            return None
        return replace(BilledLine(_day(said.at, zone), None), **said.line)
    except (KeyError, TypeError, ValueError, InvalidOperation) as error:
        raise ConfigError(f"{where} cannot be read ({error!r}): {dict(row)}") from None


# ── files ──────────────────────────────────────────────────────────────────────────────


def _rows(path: Path) -> Iterator[Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error}") from None
    if text.lstrip()[:1] in ("{", "["):
        yield from _of_json(text, path)
    else:
        yield from csv.DictReader(text.splitlines())


def _of_json(text: str, path: Path) -> Iterator[Row]:
    decoder = json.JSONDecoder(parse_float=Decimal)
    at, whole = 0, text.strip()
    try:
        while at < len(whole):  # one document, or one a line
            value, end = decoder.raw_decode(whole, at)
            yield from _flat(value)
            at = end + len(whole[end:]) - len(whole[end:].lstrip())
    except ValueError as error:
        raise ConfigError(f"{str(path)!r} is not JSON: {error}") from None


def _flat(value: Any) -> Iterator[Row]:
    """Results, with the times of their bucket: OpenAI's and Anthropic's pages are nested."""
    if isinstance(value, list):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, dict):
        if isinstance(value.get("data"), list):
            yield from _flat(value["data"])
        elif isinstance(value.get("results"), list):
            bucket = {name: item for name, item in value.items() if name != "results"}
            for result in value["results"]:
                yield {**bucket, **result}
        else:
            yield value


def _day(at: Any, zone: str) -> date:
    """The day of a moment. A date alone is that day, wherever; seconds since 1970 and times are in UTC."""
    if isinstance(at, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", at.strip()):
        return date.fromisoformat(at.strip())
    if isinstance(at, (int, Decimal)) or (isinstance(at, str) and at.strip().isdigit()):
        moment = datetime.fromtimestamp(int(at), timezone.utc)
    else:
        text = str(at).strip().replace(" UTC", "+00:00").replace("Z", "+00:00")
        moment = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
    return moment.astimezone(ZoneInfo(zone)).date()


# ── what a row says ────────────────────────────────────────────────────────────────────


def _whole(row: Row, *names: str) -> int | None:
    for name in names:
        if row.get(name) not in (None, ""):
            return int(Decimal(str(row[name]).replace(",", "")))
    return None


def _sum(row: Row, *names: str) -> int | None:
    found = [n for name in names if (n := _whole(row, name)) is not None]
    return sum(found) if found else None


def _usd(value: Any) -> Decimal:
    return Decimal(str(value).strip().lstrip("$").replace(",", ""))


def _dollars(currency: Any) -> None:
    if str(currency or "USD").upper() != "USD":
        raise ValueError(f"the currency is {currency}; the books are in USD")


def _openai_costs(row: Row) -> _Read:
    amount = row.get("amount")
    value, currency = (
        (amount["value"], amount.get("currency"))
        if isinstance(amount, Mapping)
        else (row.get("amount_value", amount), row.get("amount_currency"))
    )
    _dollars(currency)
    # "gpt-4o-2024-08-06, input": a row for each kind of token.
    item = row.get("line_item") or None
    return _Read(
        row["start_time"], {"model": item.split(",")[0].strip() if item else None, "cost": _usd(value)}
    )


def _openai_usage(row: Row) -> _Read:
    return _Read(
        row["start_time"],
        {
            "model": row.get("model") or None,
            "requests": _whole(row, "num_model_requests"),
            "inputs": _whole(row, "input_tokens"),
            "outputs": _whole(row, "output_tokens") or 0,
            "cached": _whole(row, "input_cached_tokens"),
        },
    )


def _anthropic_costs(row: Row) -> _Read:
    _dollars(row.get("currency"))
    # In cents: "123.45" is $1.23. https://platform.claude.com/docs/en/api/admin/cost_report
    return _Read(
        row["starting_at"],
        {"model": row.get("model") or row.get("description"), "cost": _usd(row["amount"]) / 100},
    )


def _anthropic_usage(row: Row) -> _Read:
    written = row.get("cache_creation") or {}
    cached = _whole(row, "cache_read_input_tokens") or 0
    return _Read(
        row["starting_at"],
        {
            "model": row.get("model"),
            "inputs": (_whole(row, "uncached_input_tokens") or 0)
            + cached
            + sum(int(n) for n in written.values() if n),
            "outputs": _whole(row, "output_tokens") or 0,
            "cached": cached,
        },
    )


# "Gemini 2.5 Flash Text Input - Predictions": a model, and then what of it.
_GOOGLE_KIND = re.compile(
    r"[ -]+(?:native |thinking |cached |long |short |text|image|audio|video|input|output|online|batch|"
    r"generate|predictions|count|token).*$",
    re.IGNORECASE,
)


def _google(row: Row) -> _Read | None:
    if row.get("cost_type", "regular") not in ("regular", "", None):
        return None
    _dollars(row.get("currency"))
    sku = _part(row, "sku", "description") or ""
    model = _GOOGLE_KIND.sub("", sku).strip().lower().replace(" ", "-")
    credits: Iterable[Any] = row.get("credits") or ()
    less = sum((_usd(c["amount"]) for c in credits if isinstance(c, Mapping)), Decimal(0))
    line: dict[str, Any] = {"model": model or None, "cost": _usd(row["cost"]) + less}
    amount = row.get("usage.amount", _part(row, "usage", "amount"))
    if amount not in (None, "") and (_part(row, "usage", "unit") or "").lower() in (
        "count",
        "tokens",
        "token",
    ):
        line["outputs" if "output" in sku.lower() else "inputs"] = int(Decimal(str(amount)))
    return _Read(row["usage_start_time"], line)


def _part(row: Row, whole: str, part: str) -> Any:
    """A nested field, as BigQuery writes it into JSON, and into CSV."""
    nested = row.get(whole)
    return (
        nested.get(part)
        if isinstance(nested, Mapping)
        else row.get(f"{whole}.{part}", row.get(f"{whole}_{part}"))
    )


def _openrouter(row: Row) -> _Read:
    return _Read(
        str(row["date"])[:10],
        {
            "model": row.get("model_permaslug") or row["model"],
            "cost": _usd(row["usage"]),
            "requests": _whole(row, "requests"),
            "inputs": _whole(row, "prompt_tokens"),
            "outputs": _whole(row, "completion_tokens"),
        },
    )


_GENERIC = ("date", "model", "cost", "requests", "input_tokens", "output_tokens", "cached_tokens")


def _mapped(columns: Mapping[str, str] | None) -> Callable[[Row], _Read]:
    named = columns or dict(zip(_GENERIC, _GENERIC, strict=True))

    def read(row: Row) -> _Read:
        def cell(name: str) -> Any:
            column = named.get(name)
            if columns is not None and column is not None and column not in row:
                raise KeyError(f"there is no column {column!r}")
            value = row.get(column) if column else None
            return None if value in (None, "") else value

        cost = cell("cost")
        counts = {
            "requests": "requests",
            "inputs": "input_tokens",
            "outputs": "output_tokens",
            "cached": "cached_tokens",
        }
        return _Read(
            cell("date"),
            {
                "model": cell("model"),
                "cost": None if cost is None else _usd(cost),
                **{field: _whole({"n": cell(name)}, "n") for field, name in counts.items()},
            },
        )

    return read


FORMATS: dict[str, Format] = {
    # https://platform.openai.com/docs/api-reference/usage/costs, and the CSV of the same names
    "openai-costs": Format(
        "openai", lambda r: "start_time" in r and ("amount" in r or "amount_value" in r), _openai_costs
    ),
    # https://platform.openai.com/docs/api-reference/usage/completions
    "openai-usage": Format("openai", lambda r: "start_time" in r and "input_tokens" in r, _openai_usage),
    # https://platform.claude.com/docs/en/api/admin/cost_report
    "anthropic-costs": Format("anthropic", lambda r: "starting_at" in r and "amount" in r, _anthropic_costs),
    "anthropic-usage": Format(
        "anthropic", lambda r: "starting_at" in r and "uncached_input_tokens" in r, _anthropic_usage
    ),
    # https://docs.cloud.google.com/billing/docs/how-to/export-data-bigquery-tables/standard-usage
    "google": Format("google", lambda r: "usage_start_time" in r and "cost" in r, _google),
    # https://openrouter.ai/docs/api/api-reference/analytics/get-user-activity
    "openrouter": Format("openrouter", lambda r: {"date", "model", "usage"} <= set(r), _openrouter),
    "csv": Format(None, lambda r: {"date", "model", "cost"} <= set(r), _mapped(None)),
}
"""By name, the first that fits a file is taken."""
