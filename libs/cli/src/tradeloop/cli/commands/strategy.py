"""`tradeloop strategy`: start a strategy package, check one, list what is installed."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from tradeloop.common.errors import UserError

app = typer.Typer(help="Start a strategy package, check one, list what is installed.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The strategy's name, as its entry point is named.")]


@app.command("list")
def list_installed() -> None:
    """List the installed strategies: where they live, what they see, how they act, what they are rewarded for."""
    from tradeloop.common.strategy import StrategyError, load
    from tradeloop.common.strategy.installed import installed

    strategies = installed()
    if not strategies:
        typer.echo("No strategy is installed; `tradeloop strategy new NAME` starts one.")
    for name, where in strategies.items():
        typer.echo(f"{name}  ({where})")
        try:
            strategy = load(name)
        except StrategyError as error:
            typer.echo(f"  broken    {error}")
            continue
        typer.echo(f"  features  {', '.join(feature.name for feature in strategy.features)}")
        if strategy.reward_features:
            typer.echo(f"  to reward {', '.join(feature.name for feature in strategy.reward_features)}")
        typer.echo(f"  window    {strategy.window} bars")
        typer.echo(f"  actions   {strategy.actions.name}")
        typer.echo(f"  reward    {strategy.reward!r}, {strategy.reward_id}")
        typer.echo(f"  trained   with {strategy.algorithm}")


@app.command()
def check(
    name: Name,
    max_leverage: Annotated[
        float | None,
        typer.Option("--max-leverage", min=0.0, help="The limit of the portfolio it is for; its default if left out."),
    ] = None,
) -> None:
    """Try a strategy on made-up bars: does it keep what training, backtest and live rely on?"""
    from tradeloop.common.contracts.strategy import strategy_checks
    from tradeloop.common.portfolio import RiskLimits
    from tradeloop.common.strategy import load

    strategy = load(name)
    limits = RiskLimits() if max_leverage is None else RiskLimits(max_leverage=max_leverage, max_position=max_leverage)
    warnings: list[str] = []
    for promise in strategy_checks(strategy, limits, warnings.append):
        typer.echo(f"✓ {promise}")
    for warning in warnings:
        typer.echo(f"Warning: {warning}")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits, - and _, from a letter on.")],
    into: Annotated[Path, typer.Option("--into", help="The folder that gets the package's folder.")] = Path(),
) -> None:
    """Start a strategy: writes an installable package that checks and trains as it is."""
    from tradeloop.common.strategy.installed import installed

    if len(name) > 63 or not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name):
        raise UserError(
            f"{name!r} is no name for a strategy: use at most 63 lower-case letters and digits from a letter on, "
            "in words that are joined by - or _"
        )
    if name in (strategies := installed()):
        raise UserError(f"a strategy {name} is installed already ({strategies[name]}): choose another name")
    # Ends in _strategy, so that it hides no library of the strategy's name.
    module = re.sub(r"(_strategy)?$", "_strategy", name.replace("-", "_"), count=1)
    if importlib.util.find_spec(module):
        raise UserError(f"a package {module} is installed already: choose another name than {name}")
    folder = into / name
    _write(folder, _files(name, module))
    typer.echo(f"Wrote {folder}. Next, install and check it:\n")
    typer.echo(f"  {_installer()} -e {shlex.quote(str(folder))}")
    typer.echo(f"  tradeloop strategy check {name}")


def _write(folder: Path, files: dict[str, str]) -> None:
    """All files or none: what is half-written never has the folder's name."""
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{folder} is there already: choose another name, or another folder with --into")
    try:
        with tempfile.TemporaryDirectory(prefix=".tradeloop-", dir=folder.parent) as temporary:
            draft = Path(temporary, folder.name)
            for path, text in files.items():
                (draft / path).parent.mkdir(parents=True, exist_ok=True)
                (draft / path).write_text(text, encoding="utf-8")
            draft.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another folder with --into") from error


def _files(name: str, module: str) -> dict[str, str]:
    """The package's files by path."""
    words = {"name": name, "module": module, "package": module.replace("_", "-")}
    return {
        path: Template(text).substitute(words)
        for path, text in (
            ("pyproject.toml", _PYPROJECT),
            ("README.md", _README),
            (f"src/{module}/__init__.py", _STRATEGY),
            (f"tests/test_{module}.py", _TEST),
        )
    }


def _installer() -> str:
    """The command that installs packages where this one is installed."""
    python = shlex.quote(sys.executable)
    if importlib.util.find_spec("pip"):
        return f"{python} -m pip install"
    # An environment of uv's has no pip. `make` keeps its uv in the checkout.
    uv = shutil.which("uv") or next(map(str, Path(sys.prefix).parent.glob(".tools/uv-*/bin/uv")), "uv")
    return f"{shlex.quote(uv)} pip install --python {python}"


_PYPROJECT = """\
[project]
name = "$package"
version = "0.1.0"
description = "The strategy $name"
readme = "README.md"
requires-python = ">=3.11,<3.13"
dependencies = [
    "numpy>=2.0",
    "tradeloop-common[features]>=0.1",
]

[project.entry-points."tradeloop.strategies"]
$name = "$module:strategy"

[dependency-groups]
dev = [
    "pytest>=8.4",
    "tradeloop-common[features,simulation]>=0.1",
]

[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[tool.hatch.build.targets.wheel]
packages = ["src/$module"]
"""

_STRATEGY = '''\
"""The strategy $name: what it sees, how it acts, what it is rewarded for."""

from __future__ import annotations

import numpy as np
from tradeloop.common.strategy import (
    RewardContext,
    Strategy,
    log_return,
    relative,
    reward,
    talib,
)


@reward(version="1")  # raise it whenever the reward's meaning changes
class Growth:
    """Log return of equity in percent, less a charge for turnover."""

    turnover_weight: float = 0.05  # parameters are part of the reward's identity

    def __call__(self, c: RewardContext) -> dict[str, np.ndarray]:
        # Arrays of N books: many in training, one in backtest and live.
        # The components are summed, and logged one by one.
        return {
            "pnl": 100.0 * np.log(c.equity / c.equity_prev),
            "turnover": -self.turnover_weight * c.turnover,
        }


strategy = Strategy(
    name="$name",  # as in pyproject.toml
    # What the policy sees of the last 4 bars (window=4): numbers that keep their range
    # whatever the price is.
    features=[
        log_return(1),
        log_return(5),
        log_return(20),
        talib("RSI", timeperiod=14),
        relative(talib("EMA", timeperiod=30)),
        relative(talib("EMA", timeperiod=120)),
    ],
    reward=Growth(),
    # How it acts (actions="discrete"): short, flat or long, with all of its equity.
    # How it learns (algorithm="PPO"): the defaults were measured on toy markets;
    # parameters={"gamma": 0.99} would change one.
)
'''

_TEST = """\
from __future__ import annotations

from tradeloop.common.testing import check_strategy

from $module import strategy


def test_it_keeps_its_promises() -> None:
    check_strategy(strategy)
"""

_README = """\
# $package

A strategy for Tradeloop, in `src/$module/__init__.py`. Install it beside Tradeloop, check it, train it:

    pip install -e .
    tradeloop strategy check $name
    tradeloop demo --strategy $name
"""
