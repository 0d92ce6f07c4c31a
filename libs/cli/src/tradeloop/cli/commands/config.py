"""`tradeloop config`: the settings of the command and of each service, as this environment has them."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tradeloop.common.errors import UserError

app = typer.Typer(
    help="Show the settings of the command or a service, and check them before it starts.", no_args_is_help=True
)

Service = Annotated[
    str | None,
    typer.Argument(metavar="[SERVICE]", help="ingest, preprocess, training, inference, execution, or command."),
]


@app.command("show")
def show(
    service: Service = None,
    given: Annotated[bool, typer.Option("--given", help="Only what the environment says.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For machines: one JSON object a line.")] = False,
) -> None:
    """Show every variable, its value now, and whether that is a default. Passwords and tokens are hidden.

    Without SERVICE: those of the command. docs/settings.md says what each one means.
    """
    from tradeloop.cli import configuration

    for setting, value, origin in configuration.shown(_known(service or configuration.COMMAND)):
        if given and origin == "default":
            continue
        if as_json:
            typer.echo(json.dumps({"variable": setting.variable, "value": value or None, "origin": origin}))
        else:
            typer.echo(f"{setting.variable}={value}  ({origin})")


@app.command("validate")
def validate(service: Service = None) -> None:
    """Say everything for which a service would not start, a line each: exit 2 where there is anything.

    Without SERVICE: of the command, and of each service that has a variable in this environment. The files that
    settings name, such as portfolios and sources, are read too; servers are for `tradeloop doctor`.
    """
    from tradeloop.cli import configuration

    if service is not None:
        names = [_known(service)]
    else:
        names = [name for name in configuration.ALL if configuration.is_configured(name)]
    wrong = False
    for name in names:
        for fault in configuration.faults(name):
            wrong = True
            typer.echo(f"{name}: {fault}", err=True)
    if wrong:
        raise typer.Exit(2)
    if names:
        typer.echo(f"understood: {', '.join(names)}")
    else:
        typer.echo("neither the command nor a service has a variable in this environment: defaults hold")


def _known(name: str) -> str:
    from tradeloop.cli import configuration

    if name not in configuration.ALL:
        raise UserError(f"there is no service {name}: there are {', '.join(configuration.ALL)}")
    return name
