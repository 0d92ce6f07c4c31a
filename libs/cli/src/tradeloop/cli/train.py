"""`tradeloop train`: bars and a strategy in, a registered policy out; also the first half of the demo."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from tradeloop.cli.data import Source, open_source
from tradeloop.cli.embedded import EmbeddedStack, embedded
from tradeloop.cli.progress import Stages, quiet_logs
from tradeloop.common.checks import check_strategy
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
from tradeloop.common.strategy import Strategy, load
from tradeloop.common.topics import derived_id


def run_train(path: Path | None, strategy_name: str, seed: int, steps: int, home: Path) -> None:
    """Train on all bars of a file; see `tradeloop train --help`. Raises `UserError` for wrong input."""
    quiet_logs()
    stages = Stages()
    strategy = load(strategy_name)
    with stages.stage("Checking bars and strategy"):
        source = open_source(path, strategy)
        check_strategy(strategy)
    with embedded(home, [source.portfolio(strategy)]) as stack:
        ready = train(stack, stages, source, strategy, source.range(0, len(source.bars)), seed, steps)
    Console().print(f"{ready.model} version {ready.version} is now {ready.alias} in {home}", soft_wrap=True)


def train(
    stack: EmbeddedStack,
    stages: Stages,
    source: Source,
    strategy: Strategy,
    trained_on: TimeRange,
    seed: int,
    steps: int,
) -> ModelReady:
    """Bars into the store, features into Feast, a policy into MLflow: each asked for by message."""
    universe = source.universe
    identity = derived_id("train", universe.name, strategy.name, seed, steps, trained_on.start, trained_on.end)
    with stages.stage("Loading bars"):
        files = {instrument: str(source.path) for instrument in universe.ids}
        stack.ask(BackfillRequested(request_id=identity, universe=universe, files=files), BackfillCompleted)
    with stages.stage("Computing features"):
        stack.ask(
            PreprocessRequested(request_id=identity, universe=universe, strategy=strategy.name, range=trained_on),
            PreprocessCompleted,
        )
    with stages.stage(f"Training {strategy.algorithm}", steps) as report:

        def on_progress(progress: TrainingProgressed) -> None:
            report(min(progress.step, steps))

        return stack.ask(
            TrainingRequested(
                request_id=identity,
                strategy=strategy.name,
                universe=universe,
                range=trained_on,
                seed=seed,
                steps=steps,
                portfolio=source.portfolio(strategy).model_dump_json(),
            ),
            ModelReady,
            on_progress,
        )
