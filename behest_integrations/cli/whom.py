"""Who changes something, and why: for the audit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from . import store as stores


def by_whom(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `by`, who changes something, and `why`, which may be None."""

    @functools.wraps(command)
    def said(by: str | None, **options: Any) -> Any:
        return command(by=by or f"cli:{stores.user_name()}", **options)

    why = "For the audit: the reason."
    said = click.option("--why", metavar="TEXT", callback=stores.not_empty, help=why)(said)
    who = "For the audit: who changes it. Default: you."
    return click.option("--by", metavar="WHO", callback=stores.not_empty, help=who)(said)
