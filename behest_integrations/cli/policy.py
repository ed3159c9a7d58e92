"""What the policy of this folder's file says, and what finds what in texts."""

from __future__ import annotations

from pathlib import Path

import click

from ..rules.errors import ConfigError


@click.command()
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Default: behest.toml in this folder.",
)
def policy(config: Path | None) -> None:
    """What may be asked, and for whom; and which recognisers are on."""
    from ..config import FILE, load
    from ..policy import Policing, Policy
    from ..policy.telling import describe

    said = load(config or FILE)
    if said.policy is None:
        raise ConfigError(f"{config or FILE} has no [policy]: anything may be asked")
    for line in describe(Policing(Policy.of(said.policy))):
        click.echo(line)
