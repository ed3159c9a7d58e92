"""`behest run`: somebody's program, as it is, held to a budget."""

from __future__ import annotations

import sys
from typing import Any

import click

from ..rules.errors import BudgetExceeded, CallRefused, LoopDetected, UnknownPrice, Unmetered
from . import store as stores
from .advice import in_shell
from .ledger import groups

EXIT_REFUSED = 3
"""`behest run` ends with this when a refused call has ended the program."""


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--budget", "budgets", multiple=True, metavar="TEXT", help='Such as "$5 per session"; several.')
@click.option(
    "--store",
    metavar="FILE|URL",
    callback=stores.not_empty,
    help="The ledger. Default: BEHEST_STORE, else behest.toml's, or memory alone.",
)
@click.option("--session", help="Attribute the program's calls to this session.")
@click.option("--user", help="Attribute the program's calls to this user.")
@click.option("--strict", is_flag=True, help="Refuse calls of models that nothing meters, not only warn.")
@click.option("--by", default="session,model", show_default=True, help="How the report is grouped.")
@click.argument("program", type=click.Path(exists=True, dir_okay=False))
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def run(
    budgets: tuple[str, ...],
    store: str | None,
    session: str | None,
    user: str | None,
    strict: bool,
    by: str,
    program: str,
    args: tuple[str, ...],
) -> None:
    """Run a Python program with its model calls metered and held to a budget.

    The program is not changed: clients of OpenAI and Anthropic, LangChain, LlamaIndex, Pydantic AI
    and the like are metered as it imports them. Calls that an HTTP library sends to a host of models,
    and that nothing meters, are warned of. The report goes to standard error. The exit code
    is the program's own, or 3 if a call that was refused has ended it.
    """
    from ..meter import Meter
    from ..reports import print_report
    from ..reports.spending import check_groups
    from .programs import run_program

    settings: dict[str, Any] = stores.config().arguments()
    if budgets:
        settings["budgets"] = budgets
    if not settings.get("budgets"):
        raise click.UsageError('no budget: say one, such as --budget "$5 per session"')
    check_groups(groups(by))  # a program that has cost money must not end without its report
    said = stores.url_given(store) or settings.get("store")
    settings["store"] = stores.as_url(said) if said else "memory://"
    settings |= {"session": session, "user": user} | ({"strict": True} if strict else {})
    with Meter(**settings) as meter:
        code, refusal = run_program(meter, program, args)
        sys.stdout.flush()
        if refusal is not None:
            click.echo(f"\nbehest: the program was {_ended(refusal)}\n{in_shell(str(refusal))}", err=True)
            code = EXIT_REFUSED
        click.echo(err=True)
        print_report(meter.ledger, by=groups(by), file=sys.stderr)
        for host, library, place, calls in meter.unmetered:
            times = "once" if calls == 1 else f"{calls} times"
            click.echo(f"behest: not metered: {host}, {times}, by {library} at {place}", err=True)
    raise SystemExit(code)


def _ended(refusal: CallRefused) -> str:
    if isinstance(refusal, BudgetExceeded):
        return "ended by its budget."
    if isinstance(refusal, LoopDetected):
        return f"ended by the loop guard ({refusal.guard})."
    if isinstance(refusal, UnknownPrice):
        return f"ended by a call that was refused: no price is known for {refusal.model!r}."
    if isinstance(refusal, Unmetered):
        return f"ended by a call of {refusal.host} that was refused: nothing has metered it."
    return "ended by a call that was refused: nothing says what it may cost at most."
