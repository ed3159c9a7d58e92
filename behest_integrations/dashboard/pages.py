"""From reports to what a template shows: one function a page, and nothing of HTTP in them."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

from ..ledger.keys import Key
from ..reports import Asked
from ..reports import calls as call_reports
from ..reports.calls import Call, Refused
from ..reports.extents import located
from ..reports.ranking import ORDERS, ranking, values_of
from ..reports.series import DAY, MONTH, Detail, Series, series, step_for
from ..reports.spending import cost_of
from ..reports.stages import StageNode, stage_nodes
from ..reports.standing import Rule, standings
from ..rules.budgets import budget_of_shape, describe_scope
from ..rules.errors import ConfigError
from ..rules.units import to_usd
from . import draw, words
from .asked import RANGES, BadQuestion
from .look import Books, Look, NotTheirs
from .notices import attention
from .viewer import Viewer

LISTS = {
    "session": "Sessions",
    "user": "Users",
    "project": "Projects",
    "tenant": "Tenants",
    "model": "Models",
}
"""What can be listed by, besides tags: as the URL and the menu name it."""
_A_PAGE = 50
_SALT = secrets.token_bytes(16)


def version_of(books: Books) -> str:
    """Changes when the pages do; the minute is in it, for what is told of the time."""
    # How much goes on is not every viewer's business: no more is told than that it is another.
    said = call_reports.version(books.ledger).encode()
    told = hashlib.blake2b(said, key=_SALT, digest_size=9).hexdigest()
    return f"{told}-{int(books.clock().timestamp()) // 60}"


# ── the pages ──────────────────────────────────────────────────────────────────────────


def overview(books: Books, viewer: Viewer, params: Mapping[str, str]) -> dict[str, Any]:
    """What was spent, how the budgets stand, who spent it, and what wants to be seen to."""
    look = Look.of(books, viewer, params)
    found = _series(look)
    rules = _rules(look, top=4)
    # Of each budget two, so that a thousand sessions do not hide the month.
    fullest = sorted((s for rule in rules for s in rule.standings[:2]), key=lambda s: -s.permille)
    compared = _compared(look, found.total)
    values = _values(look)
    tags = [name for name in values if name.startswith("tag:") and name != "tag:key"][:1]
    lists = ["session"] if viewer.is_end_user else ["session", "user", "project", *tags]
    if not viewer.is_bounded and len(values["tenant"]) > 1:
        lists.insert(2, "tenant")
    return {
        "look": look,
        "title": "My usage" if viewer.is_end_user else "Overview",
        **_spending(look, found),
        "compared": compared,
        "flying": call_reports.in_flight(books.ledger, look.asked),
        "rules": rules,
        "fullest": fullest[:8],
        "attention": attention(look, found.total, rules),
        "tops": [(name, ranking(books.ledger, name, look.asked, limit=6)) for name in lists],
        "refusals": _refusals(look, 8),
        "values": values,
    }


def limits(books: Books, viewer: Viewer, params: Mapping[str, str]) -> dict[str, Any]:
    """Every budget, and its fullest buckets."""
    look = Look.of(books, viewer, params)
    return {"look": look, "title": "Limits", "rules": _rules(look, top=20), "values": _values(look)}


def listed(books: Books, viewer: Viewer, params: Mapping[str, str]) -> dict[str, Any]:
    """Sessions, users, projects, …: a line each, in an order that can be chosen, by pages."""
    look = Look.of(books, viewer, params, ("by", "sort", "page"))
    extra = look.question.extra
    by, order = extra.get("by", "session"), extra.get("sort", "cost")
    if order not in ORDERS:
        raise BadQuestion(f"“sort” is one of {', '.join(ORDERS)}.")
    page = extra.get("page", "1")
    if not page.isdecimal() or not 1 <= int(page) <= 100_000:
        raise BadQuestion("“page” is a number from 1 on.")
    try:
        found = ranking(
            books.ledger, by, look.asked, order=order, limit=_A_PAGE, offset=(int(page) - 1) * _A_PAGE
        )
    except ConfigError as error:
        raise BadQuestion(str(error)) from None
    title = LISTS.get(by) or (f"Tag {by[4:]}" if by.startswith("tag:") else by.capitalize())
    return {
        "look": look, "title": title, "by": by, "sort": order, "page": int(page), "found": found,
        "values": _values(look),
    }  # fmt: skip


def calls(books: Books, viewer: Viewer, params: Mapping[str, str]) -> dict[str, Any]:
    """The calls themselves, the last first."""
    look = Look.of(books, viewer, params, ("status", "before"))
    extra = look.question.extra
    status = extra.get("status")
    if status is not None and status not in call_reports.STATUSES:
        raise BadQuestion(f"“status” is one of {', '.join(call_reports.STATUSES)}.")
    found = call_reports.calls(
        books.ledger, look.asked, status=status, limit=_A_PAGE, before=_place(extra.get("before"))
    )
    return {
        "look": look, "title": "Calls", "status": status, "statuses": call_reports.STATUSES,
        "calls": found.calls[::-1], "more": found.more, "values": _values(look),
    }  # fmt: skip


def session(books: Books, viewer: Viewer, params: Mapping[str, str]) -> dict[str, Any]:
    """One session: what it has come to, its limits, its stages, and its calls in order."""
    look = Look.of(books, viewer, {"range": "all", **params}, ("id", "of", "before"))
    id, tenant = _id(look), look.question.extra.get("of")
    look = look.of_session(id, tenant)
    found = call_reports.calls(
        books.ledger, look.asked, limit=200, before=_place(look.question.extra.get("before"))
    )
    flying = call_reports.in_flight(books.ledger, look.asked)
    lines = ranking(books.ledger, "session", look.asked, limit=2).lines
    rules = _rules(look, top=10)
    refused = _refusals(look, 10)
    if not (found.calls or flying or lines or rules or refused):
        raise NotTheirs
    start, end = _lasted(found.calls, lines)
    # Its own time is what its chart shows, however long ago it was.
    charted = replace(look, question=replace(look.question, since=start, until=end, range=""))
    spent = _series(charted) if start is not None else _series(look)
    first = found.calls[0] if found.calls else None
    return {
        "look": look, "title": f"Session {id}", "id": id, "tenant": tenant,
        **_spending(charted if start is not None else look, spent),
        "lines": lines, "calls": found.calls, "more": found.more, "flying": flying, "rules": rules,
        "fullest": [s for rule in rules for s in rule.standings],
        "stages": _flat(stage_nodes(books.ledger, look.asked)), "refusals": refused,
        "user": first.user_id if first else None,
        "users": ranking(books.ledger, "user", look.asked, limit=5).lines,
    }  # fmt: skip


def user(books: Books, viewer: Viewer, params: Mapping[str, str]) -> dict[str, Any]:
    """One user: what they spent, their limits, their sessions."""
    look = Look.of(books, viewer, params, ("id", "of"))
    id, tenant = _id(look), look.question.extra.get("of")
    look = look._at(user=id, tenant=tenant)
    return _of_one(look, f"User {id}", ("session",))


def key(books: Books, viewer: Viewer, params: Mapping[str, str]) -> dict[str, Any]:
    """One of the gateway's keys: whose it is, and what was spent with it."""
    look = Look.of(books, viewer, params, ("id",))
    id = _id(look)
    found = next((k for k in keys_of(books, viewer) if k.id == id), None)
    if found is None:
        raise NotTheirs
    # A key that was rotated goes on under the first one's name.
    asked = replace(look.asked, tags=(*look.asked.tags, ("key", found.line or id)))
    return {
        **_of_one(replace(look, asked=asked), f"Key {found.name or id}", ("user", "session")),
        "key": found,
    }


def keys(books: Books, viewer: Viewer, params: Mapping[str, str]) -> dict[str, Any]:
    """The gateway's keys, and what was spent with each."""
    look = Look.of(books, viewer, params)
    found = keys_of(books, viewer)
    lines = {line.key[0]: line for line in ranking(books.ledger, "tag:key", look.asked, limit=1000).lines}
    return {
        "look": look, "title": "Keys", "keys": [(k, lines.get(k.line or k.id)) for k in found],
        "values": _values(look),
    }  # fmt: skip


def keys_of(books: Books, viewer: Viewer) -> list[Key]:
    """The keys that the viewer may know of."""
    if books.api_keys is None or viewer.is_end_user:
        return []
    return [
        k
        for k in books.api_keys()
        if viewer.tenant in (None, k.tenant) and viewer.project in (None, k.project)
    ]


def plot(books: Books, viewer: Viewer, params: Mapping[str, str]) -> dict[str, Any]:
    """The numbers of the overview's chart, in finer steps, for what draws in the browser.

    Money is in USD, as floats: they are drawn and never added up.
    """
    look = Look.of(books, viewer, params)
    found = _series(look, most=480)
    names = list(found.models)[: draw.COLOURS]
    return {
        "at": [start // 1000 for start in found.starts],
        "step": found.step,
        "models": [
            {
                "name": name,
                "usd": [
                    float(to_usd(found.cells[name][at].cost)) if at in found.cells[name] else 0
                    for at in found.starts
                ],
            }
            for name in names
        ],
    }


# ── parts of pages ─────────────────────────────────────────────────────────────────────


def _of_one(look: Look, title: str, lists: Sequence[str]) -> dict[str, Any]:
    ledger = look.books.ledger
    found = _series(look)
    rules = _rules(look, top=10) if look.asked.user is not None else []
    return {
        "look": look,
        "title": title,
        **_spending(look, found),
        "compared": _compared(look, found.total),
        "flying": call_reports.in_flight(ledger, look.asked) if look.asked.user is not None else [],
        "rules": rules,
        "fullest": [s for rule in rules for s in rule.standings],
        "attention": attention(look, found.total, rules),
        "tops": [(name, ranking(ledger, name, look.asked, limit=12)) for name in lists],
        "refusals": _refusals(look, 8),
        "calls": call_reports.calls(ledger, look.asked, limit=15).calls[::-1],
    }


def _series(look: Look, most: int = 96) -> Series:
    step = look.question.step(look.ages[0] if look.ages else None)
    if most > 96:
        first = look.question.start or (look.ages[0] if look.ages else look.now)
        step = step_for(max(1.0, (look.question.end - first).total_seconds()), most=most)
    asked = replace(look.asked, since=look.question.start, until=look.question.until, first_id=None)
    asked = located(look.books.ledger, asked)
    return series(look.books.ledger, asked, step)


def _spending(look: Look, found: Series) -> dict[str, Any]:
    """The chart, its table, the models and the tokens by class."""
    colours = draw.ranks(list(found.models))
    sums = {
        at: [(m, found.cells[m][at]) for m in found.models if at in found.cells[m]] for at in found.starts
    }
    totals = {at: sum(max(0, d.cost) for _, d in parts) for at, parts in sums.items()}
    top = draw.scale(max(totals.values(), default=0))
    rows = [(_period(at, found.step, look), totals[at], sums[at]) for at in found.starts]
    bars = [
        draw.Bar(
            [(colours[m], d.cost) for m, d in parts],
            "\n".join([f"{when}: {words.money(total)}", *(f"{m}: {words.money(d.cost)}" for m, d in parts)]),
        )
        for when, total, parts in rows
    ]
    label = f"Spending over time, {words.money(found.total.cost)} in all; the table below has the numbers."
    t = found.total
    classes = [
        ("input", t.input_tokens - t.cached_input_tokens - t.cache_write_tokens - t.input_audio_tokens),
        ("cached input", t.cached_input_tokens),
        ("cache writes", t.cache_write_tokens),
        ("audio in", t.input_audio_tokens),
        ("output", t.output_tokens - t.reasoning_tokens - t.output_audio_tokens),
        ("reasoning", t.reasoning_tokens),
        ("audio out", t.output_audio_tokens),
    ]
    # A provider's classes overlap in ways of its own: nothing is drawn below nothing.
    classes = [(name, max(0, n)) for name, n in classes]
    return {
        "total": t,
        "models": [(m, colours[m], d) for m, d in found.models.items()],
        "chart": draw.stacked(bars, top, label) if found.total.calls or found.total.cost else "",
        "scale": [words.money(top), words.money(top // 2)],
        "axis": [rows[0][0], rows[len(rows) // 2][0], rows[-1][0]] if rows else [],
        "rows": [row for row in rows if row[2]],
        "step": words.lasting(found.step) if found.step < DAY else _STEP_WORDS.get(found.step, "day"),
        "classes": [(name, i, n) for i, (name, n) in enumerate(classes) if n],
        "strip": draw.strip(
            [(i, n, f"{name}: {n:,}") for i, (name, n) in enumerate(classes)], "Tokens by class"
        ),
    }


_STEP_WORDS = {DAY: "day", 7 * DAY: "week", MONTH: "month"}


def _period(ms: int, step: int, look: Look) -> str:
    at = datetime.fromtimestamp(ms / 1000, look.zone)
    if step < 60:
        return f"{at:%H:%M:%S}"
    if step < DAY:
        same_day = (look.question.end - (look.question.start or look.now)).total_seconds() <= DAY
        return f"{at:%H:%M}" if same_day else f"{at.day} {at:%b} {at:%H:%M}"
    if step >= MONTH:
        return f"{at:%b %Y}"
    return f"{at.day} {at:%b}"


def _compared(look: Look, total: Detail) -> str:
    """How it is to the time before, in words; "" where there is nothing to compare."""
    before = look.question.before()
    if before is None or look.ages is None or before.until is None or look.ages[0] >= before.until:
        return ""
    theirs = replace(look.asked, since=before.since, until=before.until, first_id=None)
    theirs = located(look.books.ledger, theirs)
    was = cost_of(look.books.ledger, theirs)
    if was <= 0:
        return "nothing in the time before"
    change = (total.cost - was) * 100 / was
    told = f"{change:+.0f} %" if abs(change) < 1000 else f"{total.cost / was:.0f} times"
    length = RANGES[look.question.range][0] if look.question.range else "time"
    return f"{told.replace('-', '−')} on the {length} before"


def _rules(look: Look, *, top: int) -> list[Rule]:
    return standings(
        look.books.ledger,
        look.asked,
        top=top,
        strict=look.viewer.is_bounded,
        default_zone=look.question.zone,
    )


def _refusals(look: Look, limit: int) -> list[tuple[Refused, str, str]]:
    """(refusal, the budget without how much, whose bucket it was)."""
    found = []
    for refused in call_reports.refusals(look.books.ledger, look.asked, limit=limit):
        budget = budget_of_shape(refused.budget, refused.unit)
        shape = refused.budget.removeprefix("stage ").removeprefix("usd").strip()
        found.append((refused, shape or "in all", describe_scope(budget, refused.scope)))
    return found


def _values(look: Look) -> dict[str, list[str]]:
    return values_of(look.books.ledger, Asked(
        tenant=look.viewer.tenant, project=look.viewer.project, user=look.viewer.user))  # fmt: skip


def _flat(nodes: Sequence[StageNode], depth: int = 0) -> list[tuple[int, StageNode]]:
    """A tree as lines, each with its depth."""
    found: list[tuple[int, StageNode]] = []
    for node in nodes:
        found += [(min(depth, 8), node), *_flat(node.children, depth + 1)]
    return found


def _lasted(found: Sequence[Call], lines: Sequence[Any]) -> tuple[datetime | None, datetime | None]:
    if not lines:
        return None, None
    first = min(line.first for line in lines)
    if found:
        first = min(first, *(call.started or call.at for call in found))
    last = max(line.last for line in lines)
    start = datetime.fromtimestamp(first / 1000, timezone.utc)
    return start, datetime.fromtimestamp(last / 1000, timezone.utc) + timedelta(seconds=1)


def _id(look: Look) -> str:
    id = look.question.extra.get("id")
    if not id:
        raise BadQuestion("The page is of nobody: say whose with “id”.")
    return id


def _place(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 18:
        raise BadQuestion("“before” is a place in the ledger.")
    return int(text)
