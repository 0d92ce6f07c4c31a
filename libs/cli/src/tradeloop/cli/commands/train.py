"""`tradeloop train`: bars and a strategy in, a registered policy out; also the first half of the demo."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tradeloop.cli.adjusting import stored_view
from tradeloop.cli.client.client import Client
from tradeloop.cli.client.settings import load_settings
from tradeloop.cli.homes import check_home, remember
from tradeloop.cli.inputs import Inputs
from tradeloop.cli.markets import Learnt, learnt, named
from tradeloop.cli.outcome import print_whole
from tradeloop.cli.progress import Stages, quiet_logs
from tradeloop.cli.source import Source
from tradeloop.common.contracts.strategy import check_strategy
from tradeloop.common.errors import UserError
from tradeloop.common.market import iso
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
from tradeloop.common.messages.training import CANDIDATE, CHAMPION
from tradeloop.common.strategy import Strategy

_SHOWN = ("total_return", "sharpe", "max_drawdown")


def run_train(
    inputs: Inputs,
    seeds: Sequence[int],
    steps: int,
    home: Path,
    on_running: bool | None,
    promote: bool,
    recompute: bool = False,
    wait: bool = True,
) -> None:
    """Train on all of the bars, once for each seed; see `tradeloop train --help`. Raises `UserError` for wrong input.

    `on_running` says whether the running stack does it; None leaves that to the settings. `recompute` has features
    computed anew that are stored already. Without `wait` it ends when a running stack's training is asked for.
    """
    quiet_logs()
    stages = Stages()
    strategy, source = inputs.open(stages, "Reading bars")
    with stages.stage("Checking the strategy"):
        markets = learnt(source, len(source.bars), strategy)
        stages.warn(check_strategy(strategy, source.portfolio(strategy).limits))
    with _stack(stages, home, source, strategy, on_running, wait) as (client, place, keep):
        prepare(client, stages, markets, strategy, home, recompute)
        keep()
        if not wait:
            ask_alone(client, stages, markets, strategy, seeds, steps, promote)
            return
        ready = {seed: train(client, stages, markets, strategy, seed, steps, promote) for seed in in_order(seeds)}
    console = Console()
    if said := named(markets):
        console.print(said, soft_wrap=True, markup=False, highlight=False)
    # An alias is with the last one that took it; the newest of all is the candidate, too.
    holders = {alias: one for one in ready.values() for alias in (CANDIDATE, CHAMPION) if one.moves(alias)}
    if len(ready) > 1:
        print_whole(console, _table(ready, holders))
    for one in {holder.version: holder for holder in holders.values()}.values():
        aliases = " and ".join(alias for alias, holder in holders.items() if holder is one)
        console.print(f"{one.model} version {one.version} is now {aliases} in {place}: {one.reason}", soft_wrap=True)
    if CHAMPION not in holders:
        console.print(
            "No version passed the gate: a portfolio trades the candidate only with `model_alias: candidate`, or once "
            "it is trained with --promote",
            soft_wrap=True,
        )


def in_order(seeds: Sequence[int]) -> list[int]:
    """The order in which several policies are trained: the first seed last, so that the newest model is its."""
    return [*seeds[1:], *seeds[:1]]


def _table(ready: Mapping[int, ModelReady], holders: Mapping[str, ModelReady]) -> Table:
    """The figures of each seed's policy: in sample, and on held-out bars where the training measured those."""
    measured = next(iter(ready.values())).metrics
    names = [f"{sample}_{name}" for sample in ("in_sample", "valid") for name in _SHOWN]
    names = [name for name in names if name in measured]
    heads = [name.replace("total_", "").replace("_", " ") for name in names]
    table = Table("seed", "version", "alias", *heads, box=None, padding=(0, 2))
    for column in table.columns[3:]:
        column.justify = "right"
    for seed, one in sorted(ready.items()):
        aliases = ", ".join(alias for alias, holder in holders.items() if holder is one)
        table.add_row(str(seed), one.version, aliases, *(f"{one.metrics[name]:.4g}" for name in names))
    return table


@contextmanager
def _stack(
    stages: Stages, home: Path, source: Source, strategy: Strategy, on_running: bool | None, wait: bool
) -> Iterator[tuple[Client, str, Callable[[], None]]]:
    """The stack that trains, where its models are, and what to do once it holds the bars; says which one it is."""
    settings = load_settings()
    if on_running is None:
        on_running = "bootstrap_servers" in settings.kafka.model_fields_set
    if on_running:
        from tradeloop.cli.client.client import running

        stages.say(f"The running stack trains: Kafka at {settings.kafka.bootstrap_servers}")
        with running(stages.say) as client:
            yield client, "the stack's registry", lambda: None
    elif not wait:
        raise UserError("--no-wait is for a running stack: where this process trains, nobody goes on when it ends")
    else:
        from tradeloop.cli.client.embedded import embedded

        check_home(home, source)
        stages.say(f"This process trains and keeps everything in {home}")
        with embedded(home, [source.portfolio(strategy)]) as stack:
            yield stack.client, str(home), lambda: remember(home, source)


def prepare(
    client: Client, stages: Stages, markets: Sequence[Learnt], strategy: Strategy, home: Path, recompute: bool = False
) -> None:
    """Bars into the store, features of what is learnt from into Feast: each asked for by message.

    An adjusted view is written into the home, from where ingest loads it. Says how many features were computed, and how
    many were there.
    """

    def identity(one: Learnt, *more: str) -> str:
        universe = one.source.universe
        more = (*more, *filter(None, (universe.members_id, universe.events_id)))
        return derived_id("prepare", universe.name, strategy.name, *universe.ids, one.range.start, one.range.end, *more)

    with stages.stage("Loading bars"):
        for one in markets:
            files, readings = stored_view(one.source, home)
            request = BackfillRequested(
                request_id=identity(one), universe=one.source.universe, files=files, readings=readings
            )
            client.ask(request, BackfillCompleted)
    done: list[PreprocessCompleted] = []
    with stages.stage("Computing features"):
        for one in markets:
            features = PreprocessRequested(
                # Asked at another time it is another request: what this one finds computed is not its own.
                request_id=identity(one, iso(client.clock.now())),
                universe=one.source.universe,
                strategy=strategy.name,
                range=one.range,
                force=recompute,
            )
            done.append(client.ask(features, PreprocessCompleted))
    for each in done:
        if each.reused:
            stages.say(
                f"Features of {each.universe.name}: {each.rows - each.reused:,} rows computed, {each.reused:,} reused, "
                "as their bars have not changed"
            )


def train(
    client: Client,
    stages: Stages,
    markets: Sequence[Learnt],
    strategy: Strategy,
    seed: int,
    steps: int,
    promote: bool = False,
) -> ModelReady:
    """A policy for the first market into MLflow, on bars and features that are there; asked for by message."""
    with stages.stage(f"Training {strategy.algorithm}, seed {seed}", steps) as report:

        def on_progress(progress: TrainingProgressed) -> None:
            report(steps if progress.step == progress.total else min(progress.step, steps))

        return client.ask(_request(markets, strategy, seed, steps, promote), ModelReady, on_progress)


def ask_alone(
    client: Client,
    stages: Stages,
    markets: Sequence[Learnt],
    strategy: Strategy,
    seeds: Sequence[int],
    steps: int,
    promote: bool = False,
) -> None:
    """Ask for policies and do not wait for them."""
    for seed in in_order(seeds):
        client.send(_request(markets, strategy, seed, steps, promote))
    asked = "a policy" if len(seeds) == 1 else f"{len(seeds)} policies"
    stages.say(f"Asked for {asked} of {strategy.name} on {markets[0].source.universe.name}: training goes on alone")


def _request(markets: Sequence[Learnt], strategy: Strategy, seed: int, steps: int, promote: bool) -> TrainingRequested:
    own, *others = (one.asked for one in markets)
    more = [part for one in others for part in (one.universe.name, one.range.start, one.range.end)]
    told = [own.universe.name, strategy.name, seed, steps, own.range.start, own.range.end, *more]
    # A policy that is promoted is another version, whose record says so.
    changes = filter(None, (own.universe.members_id, own.universe.events_id))
    identity = derived_id("train", *told, *changes, *(["promoted"] if promote else []))
    return TrainingRequested(
        request_id=identity,
        strategy=strategy.name,
        universe=own.universe,
        range=own.range,
        seed=seed,
        steps=steps,
        portfolio=markets[0].source.portfolio(strategy).model_dump_json(),
        also=tuple(others),
        promote=promote,
    )
