"""`tradeloop doctor`: whether all is there that a stack needs, and what to do where it is not."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tradeloop.cli.commands.models import DEFAULT_HOME, Home

Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SERVICE]...",
        help="Look with the settings and rights of these services, or of `command`. Without any: of the command, and "
        "of each service that has a variable in this environment.",
    ),
]


def doctor(
    names: Names = None,
    home: Home = DEFAULT_HOME,
    within_s: Annotated[
        float, typer.Option("--within", min=1.0, help="Seconds that a check may take; all run side by side.")
    ] = 15.0,
    least_gib: Annotated[
        float, typer.Option("--free", min=0.0, help="GiB of free disk below which a disk has failed.")
    ] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="For machines: one JSON object a line.")] = False,
) -> None:
    """Look at settings, servers, topics, tables, rights, clocks, disks and versions, and say what to do.

    Nothing is written and no secret is shown. Exit 1 when anything failed. Without any server in the environment it
    says what is there, and what is not needed.
    """
    from tradeloop.cli.doctor.finding import Level, examined
    from tradeloop.cli.doctor.plan import check_names, plan
    from tradeloop.common.clock import SystemClock

    check_names(names or ())
    checks = plan(names or (), _absolute(home), least_gib, within_s, SystemClock())
    counts = dict.fromkeys(Level, 0)
    for found in examined(checks, within_s):
        counts[found.level] += 1
        if as_json:
            typer.echo(json.dumps(asdict(found)))
            continue
        colour = {Level.FAILED: "red", Level.WARNING: "yellow", Level.OK: "green"}.get(found.level)
        typer.echo(f"{typer.style(f'{found.level:<9}', fg=colour)}{found.subject}: {found.said}")
        if found.remedy:
            typer.echo(f"{'':<9}  {found.remedy}")
    if not as_json:
        typer.echo(", ".join(f"{count} {level}" for level, count in counts.items() if count))
    if counts[Level.FAILED]:
        raise typer.Exit(1)


def _absolute(home: Path) -> Path:
    return home.expanduser().absolute()
