"""The `tradeloop` command: options, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from tradeloop.cli import strategy
from tradeloop.common.errors import UserError

app = typer.Typer(
    name="tradeloop",
    help="Trading with reinforcement learning, from bars to filled orders and rewards.\n\n"
    "Start with [bold]tradeloop demo[/bold]: it trains a policy, trades it through all five services and writes a report.",
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(strategy.app, name="strategy")

Bars = Annotated[
    Path | None,
    typer.Option(
        "--bars", help="CSV, CSV.gz or Parquet of closed bars. Without it: EUR/USD hourly, installed with Tradeloop."
    ),
]
StrategyName = Annotated[str, typer.Option("--strategy", help="An installed strategy; see `tradeloop strategy list`.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Same seed, same bars: same result, byte for byte.")]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Environment steps to train for, over all parallel books.")]
Home = Annotated[
    Path,
    typer.Option(
        "--home", envvar="TRADELOOP_HOME", help="Folder of the embedded stack: bars, features, models, ledger."
    ),
]
DEFAULT_HOME = Path(".tradeloop")
DEFAULT_STEPS = 400_000


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error, and all log lines.")] = False,
) -> None:
    """Options of every command."""
    os.environ["TRADELOOP_DEBUG"] = "1" if debug else ""


@app.command()
def demo(
    bars: Bars = None,
    strategy_name: StrategyName = "example",
    out: Annotated[Path, typer.Option("--out", help="Folder for the report and the audit files.")] = Path("demo"),
    seed: Seed = 0,
    steps: Steps = DEFAULT_STEPS,
) -> None:
    """Train on the first part of the bars, trade the rest live through all five services, and report.

    Also runs the vectorised backtest of the same model over the same bars, and fails (exit 1) unless its equity
    equals the live one.
    """
    from tradeloop.cli.demo import run_demo

    run_demo(bars, strategy_name, out, seed, steps)


@app.command()
def train(
    bars: Bars = None,
    strategy_name: StrategyName = "example",
    seed: Seed = 0,
    steps: Steps = DEFAULT_STEPS,
    home: Home = DEFAULT_HOME,
) -> None:
    """Train a policy on all of the bars and register it in the home's MLflow as `champion`."""
    from tradeloop.cli.train import run_train

    run_train(bars, strategy_name, seed, steps, home)


@app.command()
def backtest(
    model: Annotated[
        str,
        typer.Option(
            "--model", help="Alias or version of the strategy's model in the home, or a folder such as demo/model."
        ),
    ] = "champion",
    bars: Bars = None,
    strategy_name: StrategyName = "example",
    home: Home = DEFAULT_HOME,
) -> None:
    """Run a trained policy over bars in the vectorised backtest, beside the baselines."""
    from tradeloop.cli.backtest import run_backtest

    run_backtest(bars, strategy_name, model, home)


@app.command()
def topics(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/topics.md.")] = False,
) -> None:
    """List the topics: what they carry, who writes and reads them."""
    from tradeloop.cli.topics import print_topics

    print_topics(markdown)


def main() -> None:
    """Run the command. Exits with 0, 1 (failed), 2 (wrong input, one line says which) or 130 (interrupted)."""
    try:
        app()
    except UserError as error:
        _fail(error, str(error), 2)
    except KeyboardInterrupt as error:
        _fail(error, "interrupted; nothing was left half-written", 130)
    except Exception as error:  # noqa: BLE001  the last line of defence before a user
        _fail(error, f"{type(error).__name__}: {error} (run with --debug for the traceback)", 1)


def _fail(error: BaseException, text: str, code: int) -> None:
    if os.environ.get("TRADELOOP_DEBUG"):
        import traceback

        traceback.print_exception(error)
    print(f"tradeloop: {' '.join(text.split())}", file=sys.stderr)
    sys.stderr.flush()
    # Threads of a training that was cut short may still hold native code: do not wait for them.
    os._exit(code)


if __name__ == "__main__":
    main()
