"""`tradeloop reference`: the generated pages and files of the documentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from tradeloop.common.errors import UserError


def reference(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="A file of the documentation, such as settings.md.")] = None,
    into: Annotated[
        Path | None, typer.Option("--into", help="Write every file into this folder, where it differs.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option("--check", help="Compare with the files of this folder: exit 1 where one differs.")
    ] = None,
) -> None:
    """Print a generated page or file of the documentation; without a name, list them.

    They are made from the code: settings, commands, codes of denials, topics as AsyncAPI, HTTP as OpenAPI.
    """
    from tradeloop.cli.reference import pages

    made = pages(context.find_root().command)
    if name is not None:
        if name not in made:
            raise UserError(f"there is no {name}: there are {', '.join(made)}")
        print(made[name](), end="")
    elif into is not None:
        for file, text in made.items():
            if _text(into / file) != text():
                (into / file).write_text(text(), encoding="utf-8")
                typer.echo(f"wrote {into / file}")
    elif check is not None:
        _compare(check, made)
    else:
        for file in made:
            typer.echo(file)


def _compare(folder: Path, made: Mapping[str, Callable[[], str]]) -> None:
    import difflib

    differs = False
    for file, text in made.items():
        here, there = text(), _text(folder / file)
        if here != there:
            differs = True
            lines = difflib.unified_diff(
                there.splitlines(), here.splitlines(), str(folder / file), "the code", lineterm="", n=1
            )
            typer.echo("\n".join(lines))
    if differs:
        typer.echo("generated files are not as the code has them: make format", err=True)
        raise typer.Exit(1)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.exists() else ""
