"""`tradeloop train`: bars and a strategy in, a registered policy out; also the first half of the demo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from tradeloop.cli.client.client import Client
from tradeloop.cli.client.settings import load_settings
from tradeloop.cli.commands.portfolio import strategy_of
from tradeloop.cli.progress import Stages, quiet_logs
from tradeloop.cli.source import Source, open_source
from tradeloop.common.contracts.strategy import check_strategy
from tradeloop.common.market import TimeRange
from tradeloop.common.messages import (
    BackfillCompleted,
    BackfillRequested,
    ModelReady,
    PreprocessCompleted,
    PreprocessRequested,
    TrainingProgressed,
    TrainingRequested,
)
from tradeloop.common.messages.topics import derived_id
from tradeloop.common.messages.training import CANDIDATE
from tradeloop.common.portfolio import Portfolio, read_portfolio
from tradeloop.common.strategy import Strategy, load


def run_train(
    path: Path | None,
    strategy_name: str | None,
    portfolio_file: Path | None,
    seed: int,
    steps: int,
    home: Path,
    on_running: bool | None,
    promote: bool,
) -> None:
    """Train on all bars of a file; see `tradeloop train --help`. Raises `UserError` for wrong input.

    `on_running` says whether the running stack does it; None leaves that to the settings.
    """
    quiet_logs()
    stages = Stages()
    portfolio = None if portfolio_file is None else read_portfolio(portfolio_file)
    strategy = load(strategy_of(portfolio, strategy_name))
    with stages.stage("Checking bars and strategy"):
        source = open_source(path, strategy, portfolio)
        stages.warn(check_strategy(strategy, source.portfolio(strategy).limits))
    with _stack(stages, home, source.portfolio(strategy), on_running) as (client, place):
        ready = train(client, stages, source, strategy, source.range(0, len(source.bars)), seed, steps, promote)
    console = Console()
    console.print(f"{ready.model} version {ready.version} is now {ready.alias} in {place}", soft_wrap=True)
    console.print(f"Why: {ready.reason}", soft_wrap=True)
    if ready.alias == CANDIDATE:
        console.print("A portfolio trades it with model_alias: candidate, or once it is promoted: --promote")


@contextmanager
def _stack(stages: Stages, home: Path, portfolio: Portfolio, on_running: bool | None) -> Iterator[tuple[Client, str]]:
    """The stack that trains, and where its models are; says which one it is."""
    settings = load_settings()
    if on_running is None:
        on_running = "bootstrap_servers" in settings.kafka.model_fields_set
    if on_running:
        from tradeloop.cli.client.client import running

        stages.say(f"The running stack trains: Kafka at {settings.kafka.bootstrap_servers}")
        with running(stages.say) as client:
            yield client, "the stack's registry"
    else:
        from tradeloop.cli.client.embedded import embedded

        stages.say(f"This process trains and keeps everything in {home}")
        with embedded(home, [portfolio]) as stack:
            yield stack.client, str(home)


def train(
    client: Client,
    stages: Stages,
    source: Source,
    strategy: Strategy,
    trained_on: TimeRange,
    seed: int,
    steps: int,
    promote: bool = False,
) -> ModelReady:
    """Bars into the store, features into Feast, a policy into MLflow: each asked for by message."""
    universe = source.universe
    identity = derived_id("train", universe.name, strategy.name, seed, steps, trained_on.start, trained_on.end)
    with stages.stage("Loading bars"):
        files = {instrument: str(source.path) for instrument in universe.ids}
        client.ask(BackfillRequested(request_id=identity, universe=universe, files=files), BackfillCompleted)
    with stages.stage("Computing features"):
        client.ask(
            PreprocessRequested(request_id=identity, universe=universe, strategy=strategy.name, range=trained_on),
            PreprocessCompleted,
        )
    with stages.stage(f"Training {strategy.algorithm}", steps) as report:

        def on_progress(progress: TrainingProgressed) -> None:
            report(steps if progress.step == progress.total else min(progress.step, steps))

        return client.ask(
            TrainingRequested(
                request_id=identity,
                strategy=strategy.name,
                universe=universe,
                range=trained_on,
                seed=seed,
                steps=steps,
                portfolio=source.portfolio(strategy).model_dump_json(),
                promote=promote,
            ),
            ModelReady,
            on_progress,
        )
