"""The `tradeloop` command: options, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from tradeloop.cli import strategy, topics
from tradeloop.common.errors import UserError

app = typer.Typer(
    name="tradeloop",
    help="Trading with reinforcement learning, from bars to filled orders and rewards.\n\n"
    "Start with [bold]tradeloop demo[/bold]: it trains a policy, trades it through all five services and writes a "
    "report.",
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(strategy.app, name="strategy")
app.add_typer(topics.app, name="topics")

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and give its exit code: 0, 1 (failed), 2 (wrong input, one line says it), 130 (interrupted)."""
    interrupted = _Interruption()
    try:
        app(arguments)
    except BaseException as error:  # noqa: BLE001  the last line of defence before a user
        if interrupted or isinstance(error, KeyboardInterrupt):
            return _explain(error, "interrupted; nothing was left half-written", 130)
        if isinstance(error, SystemExit):  # usage errors, which Typer explains itself, and the end of --help
            return error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error, UserError):
            return _explain(error, str(error), 2)
        return _explain(error, f"{type(error).__name__}: {error} (--debug before the command shows more)", 1)
    return 0


class _Interruption:
    """Turns the first Ctrl-C into KeyboardInterrupt and remembers it, since a library may turn it into an error of
    its own; further ones are ignored, so that what was begun can be cleaned up."""

    def __init__(self) -> None:
        self._happened = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._on_signal)

    def __bool__(self) -> bool:
        return self._happened

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if not self._happened:
            self._happened = True
            raise KeyboardInterrupt


def _explain(error: BaseException, text: str, code: int) -> int:
    if os.environ.get("TRADELOOP_DEBUG"):
        traceback.print_exception(error)
    print(f"tradeloop: {' '.join(text.split())}", file=sys.stderr)
    return code


def entry() -> None:
    """The console script."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if threading.active_count() > 1:
        # A training that was cut short may still be in native code, which does not survive the interpreter's end.
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()
