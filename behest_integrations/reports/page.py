"""A report as one page that can be mailed: `behest report --html FILE`.

Everything is in it: style, pictures, and the same numbers in tables. It asks no host for anything and
runs no script, which it forbids itself too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from xml.etree.ElementTree import Element

from ..ledger import Ledger
from ..rules.units import format_amount, format_usd
from .budgets import BucketLine, buckets
from .html import el, table, text_of
from .look import count, resets
from .shown import Asked
from .spending import Report, check_groups, html_table, report_of

_SERIES = 5
"""Models that have a colour of their own; the others share one."""
_MOST_BUDGETS = 30
_MOST_BARS = 400
_WIDTH, _HEIGHT, _LEFT, _FOOT, _TOP = 400, 190, 52, 22, 10

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --dim: #60646c; --line: #d9d9e0; --page: #ffffff;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --c4: #b58900; --c5: #80838d; --full: #c62a2f; }
@media (prefers-color-scheme: dark) { :root { --ink: #edeef0; --dim: #b0b4ba; --line: #43484e;
  --page: #18191b; --c0: #56b4e9; --c1: #ff8c42; --c2: #2fc99a; --c3: #e79fc7; --c4: #f0c541;
  --c5: #9a9da6; --full: #ff6369; } }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--page); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0; } .dim, figcaption, th { color: var(--dim); }
.sums { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 1rem 0; padding: 0; list-style: none; }
.sums b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
th { font-weight: 600; overflow-wrap: normal; } td:not(.n) { min-width: 7rem; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; overflow-wrap: normal; }
tfoot td { font-weight: 600; border-bottom: 0; } figure { margin: 0; } svg { display: block; width: 100%; }
.chart { max-width: 40rem; } svg text { fill: var(--dim); font-size: 11px; }
.meter { height: .6rem; min-width: 4rem; margin-top: .45rem; } .rule { stroke: var(--line); }
.s0 { fill: var(--c0); } .s1 { fill: var(--c1); } .s2 { fill: var(--c2); } .s3 { fill: var(--c3); }
.s4 { fill: var(--c4); } .s5 { fill: var(--c5); } .full { fill: var(--full); } .rest { fill: var(--line); }
.key { display: inline-block; margin-right: 1rem; } details { margin-top: .5rem; }
summary { cursor: pointer; }
.key svg { display: inline; width: .8em; height: .8em; }
"""


def page(
    ledger: Ledger,
    asked: Asked,
    by: Sequence[str] = ("session",),
    *,
    top: int | None = None,
    title: str = "Spending",
) -> str:
    """The whole page: what was spent over time, by whom, and the budgets.

    Args:
        by, top: of its report; see `spending.show_spending`.

    Raises:
        ConfigError: an unknown group.
        StoreError: the ledger cannot be read.
    """
    check_groups(by)
    found = report_of(ledger, by, asked)
    found = found if top is None else found.top(top)
    total = found.total
    sums = {
        "spent": format_usd(total.cost),
        "calls": count(total.calls),
        "tokens in": count(total.input_tokens),
        "tokens out": count(total.output_tokens),
    }
    notes = {
        "refused": count(total.refused) if total.refused else "",
        "assumed at the worst case": format_usd(total.assumed) if total.assumed else "",
        "estimated": format_usd(total.estimated) if total.estimated else "",
        "calls without a price": count(total.unpriced) if total.unpriced else "",
    }
    sums |= {name: told for name, told in notes.items() if told}
    period, over_time = _over_time(ledger, asked)
    filled = buckets(ledger, now_ms=int(asked.at.timestamp() * 1000), asked=asked)
    body = el(
        "body",
        el("h1", title),
        el("p", f"{asked.narrowed or 'All calls'}. Made {asked.at:%Y-%m-%d %H:%M} UTC.", class_="dim"),
        el("ul", *(el("li", el("b", told), name) for name, told in sums.items()), class_="sums"),
        *_chart_section(over_time, period, asked),
        *_budget_section(filled, asked.at),
        el("h2", f"By {', '.join(found.by)}"),
        _scrolling(html_table(found)),
    )
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("title", title),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="referrer", content="no-referrer"),
        el(
            "meta",
            **{"http-equiv": "Content-Security-Policy"},
            content="default-src 'none'; style-src 'unsafe-inline'",
        ),
        el("style", _STYLE),
    )
    return f"<!doctype html>\n{text_of(el('html', head, body, lang='en'))}\n"


def _scrolling(wide: Element) -> Element:
    return el("div", wide, class_="scroll", tabindex="0")


# ── over time ──────────────────────────────────────────────────────────────────────────


def _over_time(ledger: Ledger, asked: Asked) -> tuple[str, Report]:
    """Spending by model, in periods of which there are not too many to see."""
    found = report_of(ledger, ("day", "model"), asked)
    days = [date.fromisoformat(line.key[0]) for line in found.lines if line.key[0] and line.cost]
    span = (max(days) - min(days)).days + 1 if days else 0
    if 0 < span <= 2:
        return "hour", report_of(ledger, ("hour", "model"), asked)
    if span > 92:
        return "month", report_of(ledger, ("month", "model"), asked)
    return "day", found


def _chart_section(found: Report, period: str, asked: Asked) -> list[Element]:
    by_period: dict[str, dict[str, int]] = {}
    by_model: dict[str, int] = {}
    for line in found.lines:
        when, model = line.key[0], line.key[1] or "(none)"
        if when is not None and line.cost:
            by_period.setdefault(when, {})[model] = line.cost
            by_model[model] = by_model.get(model, 0) + line.cost
    if not by_period or len(by_period) > _MOST_BARS:
        return []
    named = sorted(by_model, key=lambda model: -by_model[model])
    series = named if len(named) <= _SERIES + 1 else [*named[:_SERIES], "others"]
    sums = {
        when: [
            costs.get(model, 0)
            if model in by_model
            else sum(cost for other, cost in costs.items() if other not in series)
            for model in series
        ]
        for when, costs in sorted(by_period.items())
    }
    keys = el("figcaption", *(_key(place, model) for place, model in enumerate(series)))
    label = f"Spending by {period} and model; the same numbers are in the table under it."
    rows = [
        [_short(when, period), *(format_usd(cost) if cost else "" for cost in costs), format_usd(sum(costs))]
        for when, costs in sums.items()
    ]
    zone = f" ({asked.zone})"
    return [
        el("h2", f"By {period}{zone} and model"),
        el("figure", _chart(sums, series, period, label), keys, class_="chart"),
        el(
            "details",
            el("summary", "The same in numbers"),
            _scrolling(table([period, *series, "all"], rows, None, 1)),
        ),
    ]


def _key(place: int, model: str) -> Element:
    square = el("svg", el("rect", width="10", height="10", class_=f"s{place}"), viewBox="0 0 10 10")
    square.set("aria-hidden", "true")
    return el("span", square, " ", el("bdi", model), class_="key")


def _short(when: str, period: str) -> str:
    return f"{when[5:10]} {when[11:16]}" if period == "hour" else when


def _chart(sums: Mapping[str, Sequence[int]], series: Sequence[str], period: str, label: str) -> Element:
    """Bars, a colour for each model; whole nano-dollars are whole, places are for looking at."""
    top = _ceiling(max(map(sum, sums.values())))
    height, width = _HEIGHT - _FOOT - _TOP, _WIDTH - _LEFT
    step = width / len(sums)
    gap = min(step * 0.2, 4)
    bar = min(step - gap, 40)
    drawn: list[Element] = [el("title", label)]
    for part in range(5):
        y = _TOP + height * (4 - part) / 4
        drawn.append(el("line", class_="rule", x1=str(_LEFT), x2=str(_WIDTH), y1=f"{y:.1f}", y2=f"{y:.1f}"))
        drawn.append(
            el("text", format_usd(top * part // 4), x=str(_LEFT - 5), y=f"{y + 4:.1f}", text_anchor="end")
        )
    every = max(1, -(-len(sums) * 62 // width))
    for place, (when, costs) in enumerate(sums.items()):
        x, y = _LEFT + step * place + (step - bar) / 2, float(_TOP + height)
        for colour, cost in enumerate(costs):
            if not cost > 0:
                continue
            tall = height * cost / top
            y -= tall
            tip = el("title", f"{_short(when, period)}, {series[colour]}: {format_usd(cost)}")
            drawn.append(
                el(
                    "rect", tip, class_=f"s{colour}", x=f"{x:.2f}", y=f"{y:.2f}", width=f"{bar:.2f}",
                    height=f"{tall:.2f}",
                )
            )  # fmt: skip
        if place % every == 0:
            said = {"hour": when[11:16], "day": when[5:], "month": when}[period]
            middle = max(x + bar / 2, _LEFT + 14)
            drawn.append(el("text", said, x=f"{middle:.1f}", y=str(_HEIGHT - 6), text_anchor="middle"))
    return el("svg", *drawn, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", **{"aria-label": label})


def _ceiling(nano: int) -> int:
    """The next number that is 1, 2, 4 or 8 and noughts: a quarter of it is a round number too."""
    size = 1
    while True:
        for digit in (1, 2, 4, 8):
            if digit * size >= nano:
                return max(4, digit * size)
        size *= 10


# ── budgets ────────────────────────────────────────────────────────────────────────────


def _budget_section(lines: Sequence[BucketLine], now: datetime) -> list[Element]:
    limited = [line for line in lines if line.limit is not None]
    if not limited:
        return []
    fullest = sorted(limited, key=lambda line: -(line.percent or 0))
    rows = [_budget_row(line, now) for line in fullest[:_MOST_BUDGETS]]
    headers = ["budget", "", "%", "spent", "of", "resets"]
    found = [el("h2", "Budgets, the fullest first"), _scrolling(table(headers, rows, None, 2))]
    if len(fullest) > _MOST_BUDGETS:
        rest = f"{count(len(fullest) - _MOST_BUDGETS)} more are less full: 'behest budgets' has them all."
        found.append(el("p", rest, class_="dim"))
    return found


def _budget_row(line: BucketLine, now: datetime) -> list[Element | str]:
    assert line.limit is not None
    percent = line.percent or 0
    whose = el("bdi", line.scope) if line.scope else el("i", "everybody")
    runs = f", the dearest of {count(line.runs)} runs" if line.dearest is not None else ""
    spent = line.spent if line.dearest is None else line.dearest
    return [
        el("span", el("bdi", line.budget), el("br"), el("span", whose, runs, class_="dim")),
        _meter(percent),
        f"{percent} %",
        format_amount(spent, line.unit),
        format_amount(line.limit, line.unit),
        resets(line.end, now),
    ]


def _meter(percent: int) -> Element:
    full = min(100, percent)
    return el(
        "svg",
        el("rect", class_="rest", width="100", height="10"),
        el("rect", class_="full" if percent >= 100 else "s0", width=str(full), height="10"),
        viewBox="0 0 100 10",
        preserveAspectRatio="none",
        class_="meter",
        role="img",
        **{"aria-label": f"{percent} % spent"},
    )
