"""The `tradeloop` command: options, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tradeloop.cli.commands import (
    bars,
    book,
    config,
    db,
    dlq,
    doctor,
    explain,
    features,
    fetch,
    ingest,
    inspect,
    kill,
    members,
    metrics,
    models,
    online,
    portfolio,
    reference,
    repair,
    strategy,
    topics,
)
from tradeloop.cli.commands.models import DEFAULT_HOME, Home, Which
from tradeloop.cli.interruption import Interruption, last_words
from tradeloop.cli.options import Actions, Also, AsKnown, Events, Members, PortfolioFolder, Promote, UniverseName, Wait
from tradeloop.cli.reading import with_reading
from tradeloop.common.addresses import address
from tradeloop.common.errors import UserError

if TYPE_CHECKING:
    from tradeloop.common.messages.ingest import Reading

app = typer.Typer(
    name="tradeloop",
    help="Trading with reinforcement learning, from bars to filled orders and rewards.\n\n"
    "Start with [bold]tradeloop demo[/bold]: it trains a policy, trades it through all five services and writes a "
    "report.",
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(models.app, name="models")
app.add_typer(bars.app, name="bars")
app.add_typer(portfolio.app, name="portfolio")
app.add_typer(strategy.app, name="strategy")
app.add_typer(topics.app, name="topics")
app.add_typer(features.app, name="features")
app.add_typer(db.app, name="db")
app.add_typer(dlq.app, name="dlq")
app.add_typer(book.app, name="book")
features.app.command("online")(online.online)
app.add_typer(ingest.app, name="ingest")
app.command("status")(book.status)
app.command("kill")(kill.kill)
app.command("resume")(kill.resume)
app.command("explain")(explain.explain)
app.command("mlflow")(models.mlflow)
app.command("metrics")(metrics.metrics)
app.command("doctor")(doctor.doctor)
app.add_typer(config.app, name="config")
app.command("reference")(reference.reference)
bars.app.command("inspect")(with_reading(inspect.inspect))
bars.app.command("members")(with_reading(members.members))
bars.app.command("repair")(repair.repair)
app.command("backfill")(fetch.backfill)
app.add_typer(fetch.instruments, name="instruments")

Bars = Annotated[
    list[str] | None,
    typer.Option(
        "--bars",
        help="Closed bars, as text (CSV and the like), JSON, Parquet or Feather, packed or not: FILE, a folder, "
        "or NAME=FILE, which names the instrument; again for each instrument of the universe, or for more files of "
        "one; or store:VENUE:SYMBOL@TIMEFRAME for what `tradeloop backfill` fetched: into the home, or into the "
        "running stack where TRADELOOP_DATABASE_URL says where its bars are. Without it: EUR/USD hourly, installed "
        "with Tradeloop.",
    ),
]
StrategyName = Annotated[
    str | None,
    typer.Option(
        "--strategy",
        help="An installed strategy, see `tradeloop strategy list`; else the portfolio's, else `example`.",
    ),
]
PortfolioFile = Annotated[
    Path | None,
    typer.Option(
        "--portfolio",
        help="YAML file of the portfolio: its universe, capital, costs and limits hold; else one is made for the bars.",
    ),
]
Start = Annotated[
    str | None, typer.Option("--from", help="Open time of the first bar, ISO 8601, UTC. Without it: all bars.")
]
End = Annotated[str | None, typer.Option("--to", help="Bars that open at this time or later are left out.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Same seed, same bars: same result, byte for byte.")]
Seeds = Annotated[
    int, typer.Option("--seeds", min=1, help="Train so many policies, of this seed and the following ones.")
]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Environment steps to train for, over all parallel books.")]
DEFAULT_STEPS = 100_000


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error, and all log lines.")] = False,
) -> None:
    """Options of every command."""
    os.environ["TRADELOOP_DEBUG"] = "1" if debug else ""
    # polars reads it when it is imported. Without it, what loading bars and features freed is kept for the next query,
    # which comes when all bars are traded: a quarter of the memory of a long demo.
    os.environ.setdefault("_RJEM_MALLOC_CONF", "background_thread:true,dirty_decay_ms:100,muzzy_decay_ms:0")


@app.command()
@with_reading
def demo(
    reading: Reading,
    bars: Bars = None,
    strategy_name: StrategyName = None,
    portfolio_file: PortfolioFile = None,
    start: Start = None,
    end: End = None,
    name: UniverseName = None,
    actions: Actions = None,
    as_known: AsKnown = None,
    members: Members = None,
    events: Events = None,
    also: Also = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the report and the audit files.")] = Path("demo"),
    seed: Seed = 0,
    seeds: Seeds = 1,
    steps: Steps = DEFAULT_STEPS,
    home: Annotated[
        Path | None,
        typer.Option(
            "--home", help="Keep bars, features and models in this folder. Without it nothing but --out stays."
        ),
    ] = None,
    promote: Promote = False,
    live_source: Annotated[
        str | None,
        typer.Option(
            "--source",
            help="Trade live from a source in the place of files: `simulated`, a market of the seed without a network, "
            "whose history is learnt from, and whose minutes then close as fast as they are decided.",
        ),
    ] = None,
) -> None:
    """Train on the first part of the bars, trade the rest live through all five services, and report.

    Also runs the vectorised backtest of the same model over the same bars, and fails (exit 1) unless its equity
    equals the live one.
    """
    from tradeloop.cli.commands.demo import run_demo
    from tradeloop.cli.inputs import Inputs
    from tradeloop.cli.stored import stored_bars

    given, terms = stored_bars(bars, home or DEFAULT_HOME)
    span, beside = (start, end), tuple(also or ())
    inputs = Inputs(
        given, strategy_name, portfolio_file, span, name, beside, reading, actions, as_known, members, terms, events
    )
    run_demo(inputs, out, range(seed, seed + seeds), steps, home, promote, live_source)


@app.command()
@with_reading
def train(
    reading: Reading,
    bars: Annotated[
        list[str] | None,
        typer.Option(
            "--bars",
            help="As for `demo`. Ingest of a running stack reads the files itself: it must see them under the same "
            "path.",
        ),
    ] = None,
    strategy_name: StrategyName = None,
    portfolio_file: PortfolioFile = None,
    start: Start = None,
    end: End = None,
    name: UniverseName = None,
    actions: Actions = None,
    as_known: AsKnown = None,
    members: Members = None,
    events: Events = None,
    also: Also = None,
    seed: Seed = 0,
    seeds: Seeds = 1,
    steps: Steps = DEFAULT_STEPS,
    home: Home = DEFAULT_HOME,
    promote: Promote = False,
    recompute: Annotated[
        bool,
        typer.Option(
            "--recompute", help="Compute features anew, those too that are stored and whose bars are the same."
        ),
    ] = False,
    stack: Annotated[
        Which | None,
        typer.Option(
            "--stack",
            help="Train in this process, or ask the running stack. Without it: the running one where "
            "TRADELOOP_KAFKA__BOOTSTRAP_SERVERS says where Kafka is.",
        ),
    ] = None,
    wait: Wait = True,
) -> None:
    """Train a policy on all of the bars and register it in the home's MLflow, or the running stack's.

    It is the `candidate`, and the `champion` too where it beats cash and buy-and-hold, by more than luck would, on the
    last part of the bars, which is kept apart for that.
    """
    from tradeloop.cli.commands.train import run_train
    from tradeloop.cli.inputs import Inputs
    from tradeloop.cli.stored import stored_bars

    given, terms = stored_bars(bars, home, of_home=stack is Which.embedded)
    span, beside = (start, end), tuple(also or ())
    inputs = Inputs(
        given, strategy_name, portfolio_file, span, name, beside, reading, actions, as_known, members, terms, events
    )
    on_running = None if stack is None else stack is Which.running
    run_train(inputs, range(seed, seed + seeds), steps, home, on_running, promote, recompute, wait)


@app.command()
@with_reading
def backtest(
    reading: Reading,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="NAME, NAME:VERSION, alias or version of the model of this strategy and universe, or a folder such as "
            "demo/model. `tradeloop models list` has the names.",
        ),
    ] = "candidate",
    bars: Bars = None,
    strategy_name: StrategyName = None,
    portfolio_file: PortfolioFile = None,
    start: Start = None,
    end: End = None,
    name: UniverseName = None,
    actions: Actions = None,
    as_known: AsKnown = None,
    members: Members = None,
    events: Events = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the same report and files as a demo's. Without it: none.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Seed of the random baseline; else that of the model.")
    ] = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Run a trained policy over bars in the vectorised backtest, beside the baselines."""
    from tradeloop.cli.commands.backtest import run_backtest
    from tradeloop.cli.inputs import Inputs
    from tradeloop.cli.stored import stored_bars

    given, terms = stored_bars(bars, home)
    span = start, end
    inputs = Inputs(
        given, strategy_name, portfolio_file, span, name, (), reading, actions, as_known, members, terms, events
    )
    run_backtest(inputs, model, home, seed, out)


@app.command()
@with_reading
def replay(
    reading: Reading,
    portfolio_file: Annotated[
        Path | None, typer.Option("--portfolio", help="YAML file of the portfolio whose universe is replayed.")
    ] = None,
    universe: Annotated[
        str | None,
        typer.Option("--universe", help="A universe: all of its portfolios in the --portfolios folder."),
    ] = None,
    folder: PortfolioFolder = None,
    bars: Annotated[
        Path | None,
        typer.Option("--bars", help="Load this file into the stack first; ingest must see it under the same path."),
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Open time of the first bar, ISO 8601, UTC. Without it: all bars.")
    ] = None,
    end: Annotated[
        str | None,
        typer.Option("--to", help="Bars that open at this time or later are left out."),
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option("--speed", help="Bar time per wall time, such as 60. Without it: as fast as they are decided."),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option("--prefix", help="Trade again beside the stack, on topics of this name, and compare with live."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="With --prefix: the folder for its ledger, PREFIX.ledger.db.")
    ] = Path(),
    ledger_url: Annotated[
        str | None, typer.Option("--ledger-url", help="With --prefix: SQLAlchemy URL of an empty ledger instead.")
    ] = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="With --prefix: first delete its topics and ledger file of last time."),
    ] = False,
) -> None:
    """Trade stored bars on the running stack; or with --prefix once more beside it, and hold that against live.

    Kafka, bars and models are where TRADELOOP_KAFKA__BOOTSTRAP_SERVERS, TRADELOOP_DATABASE_URL and
    TRADELOOP_MLFLOW_TRACKING_URI say. Exit 1 when a message was given up on, or when the two differ.
    """
    from tradeloop.cli.commands.replay import run_replay

    run_replay(portfolio_file, universe, folder, bars, (start, end), speed, prefix, (out, ledger_url), again, reading)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and give its exit code: 0, 1 (failed), 2 (wrong input, one line says it), 130 (interrupted)."""
    interrupted = Interruption()
    try:
        app(arguments)
    except BaseException as error:  # noqa: BLE001  the last line of defence before a user
        if interrupted or isinstance(error, KeyboardInterrupt):
            return _explain(error, last_words(error) or "interrupted; nothing was left half-written", 130)
        if isinstance(error, SystemExit):  # usage errors, which Typer explains itself, and the end of --help
            return error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error, UserError):
            return _explain(error, str(error), 2)
        return _explain(error, f"{type(error).__name__}: {error} (--debug before the command shows more)", 1)
    return 0


def _explain(error: BaseException, text: str, code: int) -> int:
    # A library's error may quote whatever the library was given.
    if os.environ.get("TRADELOOP_DEBUG"):
        print(address("".join(traceback.format_exception(error))), file=sys.stderr, end="")
    print(f"tradeloop: {address(' '.join(text.split()))}", file=sys.stderr)
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
