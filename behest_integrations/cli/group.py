"""Commands that are loaded when they are run, and errors that are sentences."""

from __future__ import annotations

import codecs
import errno
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

from ..rules.errors import BehestError
from ..rules.near import say_near
from .advice import in_shell

_ROOT = __name__.rsplit(".", 2)[0]


class Commands(MutableMapping[str, click.Command]):
    """Commands by name, each imported when it is asked for.

    Args:
        listed: by name, where it is (`module:attribute` in this package) and what it is for.
        reports: the group of entry points whose functions are commands as well; see `reports.shown`.
    """

    def __init__(self, listed: Mapping[str, tuple[str, str]], *, reports: str) -> None:
        self._listed = listed
        self._reports = reports
        self._loaded: dict[str, click.Command] = {}

    @cached_property
    def _others(self) -> dict[str, EntryPoint]:
        """Reports of other packages; none can take the place of one of ours."""
        return {e.name: e for e in entry_points(group=self._reports) if e.name not in self._listed}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._loaded:
            self._loaded[name] = _command(name, self._find(name))
        return self._loaded[name]

    def _find(self, name: str) -> Any:
        if name in self._listed:
            module, _, attribute = self._listed[name][0].partition(":")
            return getattr(import_module(f"{_ROOT}.{module}"), attribute)
        entry = self._others[name]
        try:
            return entry.load()
        except Exception as error:
            raise click.ClickException(
                f"the report {name!r} of another package cannot be loaded ({entry.value}): {error}"
            ) from error

    def help_of(self, name: str) -> str:
        """What a command is for, in a line; of ours, without importing it."""
        if name in self._listed:
            return self._listed[name][1]
        try:
            return (self[name].help or "").strip().split("\n", 1)[0]
        except click.ClickException as error:
            return error.message

    def __contains__(self, name: object) -> bool:
        return name in self._listed or name in self._loaded or name in self._others

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._listed, *self._others, *self._loaded)))

    def __len__(self) -> int:
        return len(list(iter(self)))


def _command(name: str, found: Any) -> click.Command:
    """A command as it is, or the command that shows a report."""
    if isinstance(found, click.Command):
        return found
    from .ledger import command_of

    return command_of(name, found)


class Group(click.Group):
    """Says all of what each command is for, and errors as messages to a person."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        says: Callable[[str], str] = getattr(self.commands, "help_of", self._help_of)
        with formatter.section("Commands"):
            formatter.write_dl([(name, says(name)) for name in self.list_commands(ctx)])

    def _help_of(self, name: str) -> str:
        return (self.commands[name].help or "").strip().split("\n", 1)[0]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands and not cmd_name.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"there is no command {cmd_name!r}{say_near(cmd_name, self.commands)}.")
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        if ctx.parent is None:
            _speak_plainly()
        try:
            return super().invoke(ctx)
        except BehestError as error:
            raise click.ClickException(in_shell(str(error))) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever read has read enough; click ends quietly
                raise
            where = f" {error.filename!r}" if error.filename else ""
            raise click.ClickException(f"cannot read or write{where}: {error.strerror or error}.") from error
        except KeyboardInterrupt:
            click.echo("\nInterrupted.", err=True)
            raise SystemExit(EXIT_INTERRUPTED) from None


EXIT_INTERRUPTED = 130
"""As a shell says of what Ctrl-C has ended: 128 and the signal's number."""

_PLAIN = {"█": "#", "▒": "=", "░": ".", "✓": "v", "✗": "x", "·": "-", "…": "~", "─": "-", "│": "|", "├": "|"}
_PLAIN |= {"└": "`", "━": "-", "╸": "-", "╺": "-"}


def _speak_plainly() -> None:
    """Where a terminal or a file cannot take a letter, another stands for it: no report ends for that."""
    codecs.register_error("behest", _stand_in)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and stream.errors == "strict":
            reconfigure(errors="behest")


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(letter, "?") for letter in error.object[error.start : error.end]), error.end
