"""`tradeloop portfolio`: a portfolio's YAML file, written for a file of bars, and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tradeloop.cli.commands.models import DEFAULT_HOME, Home
from tradeloop.common.errors import UserError

app = typer.Typer(help="Write and check the files by which a running stack knows what to trade.", no_args_is_help=True)

DEFAULT_STRATEGY = "example"


@app.command("new")
def new(
    bars: Annotated[
        list[str] | None,
        typer.Option("--bars", help="Closed bars, as for `train`. Without it: EUR/USD hourly."),
    ] = None,
    strategy_name: Annotated[str, typer.Option("--strategy", help="An installed strategy.")] = DEFAULT_STRATEGY,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the portfolio and of its universe, as for `train`; else the files' own."),
    ] = None,
    capital: Annotated[float | None, typer.Option("--capital", help="Starting cash, in quote currency.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The file to write; else it is printed.")] = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Print the portfolio that `tradeloop train --bars` trains for: what preprocess, inference and execution trade.

    Put it as a .yaml file into the folder that their PORTFOLIO_FOLDER names, then start them.
    """
    from pydantic import ValidationError

    from tradeloop.cli.progress import Stages
    from tradeloop.cli.source import open_source
    from tradeloop.cli.stored import stored_bars
    from tradeloop.cli.understood import understood
    from tradeloop.common.portfolio import Portfolio, portfolio_yaml
    from tradeloop.common.strategy import load

    strategy = load(strategy_name)
    chosen_bars, terms = stored_bars(bars, home)
    source = open_source(chosen_bars, strategy, name=name, terms=terms)
    for line in understood(source):
        Stages().say(line)
    derived = source.portfolio(strategy)
    chosen = {"capital": capital}
    try:
        portfolio = Portfolio.model_validate(
            derived.model_dump() | {field: value for field, value in chosen.items() if value is not None}
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(f"--{first['loc'][0]} {first['input']}: {first['msg']}") from error
    text = portfolio_yaml(portfolio)
    if out is None:
        typer.echo(text, nl=False)
        return
    if out.exists():
        raise UserError(f"{out} is there already: name another file, or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}") from error


@app.command("check")
def check(
    files: Annotated[list[Path], typer.Argument(help="Portfolio files, or the folder of those of one stack.")],
) -> None:
    """Check portfolio files, each alone and all as the portfolios of one stack: exit 2 at the first that is wrong."""
    from tradeloop.common.market import Universe
    from tradeloop.common.portfolio import portfolio_files, read_portfolio
    from tradeloop.common.strategy import load

    names: dict[str, Path] = {}
    universes: dict[str, tuple[Path, Universe]] = {}
    for path in [file for given in files for file in (portfolio_files(given) if given.is_dir() else [given])]:
        portfolio = read_portfolio(path)
        universe, strategy = portfolio.universe, load(portfolio.strategy)
        if missing := [t for t in strategy.feature_set.timeframes if t not in universe.higher_timeframes]:
            raise UserError(
                f"{path}: strategy {strategy.name} needs {', '.join(missing)} bars: add them to the universe's "
                "higher_timeframes"
            )
        if (first := names.setdefault(portfolio.name, path)) != path:
            raise UserError(f"{path}: portfolio {portfolio.name} is in {first} too: give each a name of its own")
        other, known = universes.setdefault(universe.name, (path, universe))
        if known != universe:
            raise UserError(
                f"{path}: universe {universe.name} is another one in {other}: make them equal, or rename one"
            )
        ids = ", ".join(universe.ids)
        typer.echo(f"{path}: {portfolio.name} trades {ids} at {universe.timeframe} with {strategy.name}")
