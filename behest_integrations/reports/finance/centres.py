"""Cost centres: whose bill a call is on, by patterns of its project, user, tenant and tags.

    [cost_centres]
    research = { project = ["apollo*", "zeus"] }
    sales = [{ user = "s-*" }, { project = "crm", tag = { team = "sales" } }]

What a table names must all be so; of several tables, or of several patterns, one is enough. The first
centre that fits has the call. What fits none is a line of its own: nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from ...ledger import Ledger
from ...rules.errors import ConfigError
from ...rules.near import say_near
from ..shown import Asked, Shown
from ..spending import Line, Report, report_of, report_table

ATTRIBUTES = ("project", "user", "tenant")
CENTRE = "cost_centre"


class _Rule(NamedTuple):
    """Patterns by attribute (``tag:NAME`` for a tag): one of each must fit."""

    patterns: Mapping[str, tuple[str, ...]]

    def fits(self, values: Mapping[str, str | None]) -> bool:
        return all(
            (value := values.get(name)) is not None and any(fnmatchcase(value, p) for p in patterns)
            for name, patterns in self.patterns.items()
        )


class CostCentres:
    """Which cost centre a call is on.

    Args:
        said: as `[cost_centres]` of `behest.toml` has it: by name, a table of patterns, or several.

    Raises:
        ConfigError: it says something that cannot be used.
    """

    def __init__(self, said: Mapping[str, Any] | None = None) -> None:
        self._rules: dict[str, list[_Rule]] = {}
        for name, tables in (said or {}).items():
            listed = tables if isinstance(tables, (list, tuple)) else [tables]
            if not name.strip() or not listed:
                raise ConfigError(f"the cost centre {name!r} needs a name, and what is on it")
            self._rules[name] = [_Rule(dict(_patterns(name, table))) for table in listed]

    def __bool__(self) -> bool:
        return bool(self._rules)

    @property
    def looked_at(self) -> tuple[str, ...]:
        """What of a call decides: ``project``, ``tag:team``, …"""
        names = (n for rules in self._rules.values() for rule in rules for n in rule.patterns)
        return tuple(dict.fromkeys(names))

    def of(self, values: Mapping[str, str | None]) -> str | None:
        """The centre of a call with these `looked_at`; None: it is mapped to none."""
        return next((c for c, rules in self._rules.items() if any(r.fits(values) for r in rules)), None)

    def of_call(
        self, project: str | None, user: str | None, tenant: str | None, tags: Mapping[str, str]
    ) -> str | None:
        """The centre of a call."""
        if not self._rules:
            return None
        tagged = {f"tag:{name}": value for name, value in tags.items()}
        return self.of({**tagged, "project": project, "user": user, "tenant": tenant})


def _patterns(centre: str, table: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    where = f"the cost centre {centre!r}"
    if not isinstance(table, Mapping) or not table:
        raise ConfigError(f'{where} is a table such as {{ project = "apollo*" }}, not {table!r}')
    for name, said in table.items():
        if name == "tag":
            if not isinstance(said, Mapping) or not said:
                raise ConfigError(f'{where}: tag is a table such as {{ team = "sales*" }}, not {said!r}')
            for tag, patterns in said.items():
                yield f"tag:{tag}", _texts(where, f"tag {tag}", patterns)
        elif name in ATTRIBUTES:
            yield name, _texts(where, name, said)
        else:
            known = (*ATTRIBUTES, "tag")
            raise ConfigError(f"{where} knows no {name!r}{say_near(name, known)}: one of {', '.join(known)}")


def _texts(where: str, name: str, said: Any) -> tuple[str, ...]:
    patterns = (said,) if isinstance(said, str) else tuple(said) if isinstance(said, (list, tuple)) else ()
    if not patterns or not all(isinstance(p, str) and p for p in patterns):
        raise ConfigError(f"{where}: {name} is a pattern, or a list of them, not {said!r}")
    return patterns


def chargeback(
    ledger: Ledger, centres: CostCentres, asked: Asked | None = None, by: Sequence[str] = ()
) -> Report:
    """What was spent, by cost centre; what is mapped to none has the key None.

    Args:
        by: further groups within each centre: see `reports.GROUPS`.

    Raises:
        ConfigError: an unknown group.
        StoreError: the store cannot be read.
    """
    looked_at = centres.looked_at
    # One more column than a centre needs, so that there is a report where there are no centres.
    fine = report_of(ledger, (*(looked_at or ("project",)), *by), asked or Asked())
    width = len(looked_at) or 1
    lines: dict[tuple[str | None, ...], Line] = {}
    for line in fine.lines:
        centre = centres.of(dict(zip(looked_at, line.key, strict=False)))
        key = (centre, *line.key[width:])
        lines.setdefault(key, Line(key)).add(line)
    ordered = sorted(lines.values(), key=lambda x: (-x.cost, [name or "" for name in x.key]))
    return Report((CENTRE, *by), ordered, fine.total)


def show_chargeback(ledger: Ledger, centres: CostCentres, asked: Asked, by: Sequence[str] = ()) -> Shown:
    """What was spent, by cost centre."""
    found = chargeback(ledger, centres, asked, by)
    rows = [line.as_dict(found.by) for line in found.lines]
    total = found.total.as_dict(())
    return Shown(
        rows,
        lambda: report_table(found),
        data={"by": list(found.by), "lines": rows, "total": total},
        columns=[*found.by, *total],
        empty="No calls yet.",
    )
