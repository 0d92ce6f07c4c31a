"""Bars per second through all five services in one process, from stored bars to rewards, against a loop by hand."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import polars as pl

from benchmarks import scenario
from benchmarks.by_hand import by_hand
from benchmarks.measure import Row, report, seconds
from tradeloop.cli.client.client import Client
from tradeloop.cli.client.embedded import EmbeddedStack, embedded
from tradeloop.cli.progress import quiet_logs
from tradeloop.common.features.feature import FIELDS
from tradeloop.common.market import BarArrays, TimeRange, Universe, from_us, resample
from tradeloop.common.messages import (
    BackfillCompleted,
    BackfillRequested,
    FeaturesComputed,
    OrderFilled,
    ReplayRequested,
    SignalGenerated,
    Transition,
)
from tradeloop.common.model_store.port import ModelStore, Policy, model_name
from tradeloop.common.strategy import load
from tradeloop.training.adapters.random_policy import random_policy

HISTORY, WARM_UP = 8_000, 250
"""Bars that are only stored, so that all features are known, and bars that are replayed untimed."""
TURNS = 5
"""Turns in which ours and the loop by hand go through the replayed bars."""
GAIN = 1.5
"""The gain of the random policy's last layer. It trades on every fourth bar or so."""


def prepare(
    client: Client, models: ModelStore, home: Path, traded: Universe, bars: BarArrays, seed: int, gain: float = GAIN
) -> Policy:
    """Backfill the bars and register a policy, as training would have done."""
    path = home / f"{traded.name}.parquet"
    columns = {name: getattr(bars, name)[:, 0] for name in FIELDS}
    times = pl.Series(bars.open_us).cast(pl.Datetime("us", "UTC"))
    pl.DataFrame({"time": times, **columns}).write_parquet(path)
    files = {instrument: str(path) for instrument in traded.ids}
    client.ask(BackfillRequested(request_id=traded.name, universe=traded, files=files), BackfillCompleted)
    strategy, base = load("example"), traded.timeframe
    by_timeframe = {base: bars} | {higher: resample(bars, base, higher) for higher in traded.higher_timeframes}
    features = strategy.feature_set.compute(by_timeframe, base).values
    name = model_name(strategy.name, traded.name)
    policy = random_policy(strategy, traded.name, features, gain=gain, seed=seed)
    registered = models.register(name, policy, metrics={}, parameters={})
    models.set_alias(name, scenario.portfolio(traded).model_alias, registered.version)
    return policy


def replay_of(traded: Universe, bars: BarArrays, start: int, stop: int) -> ReplayRequested:
    """Bars `start` to `stop` of a universe, as fast as they are traded."""
    covered = TimeRange(start=from_us(bars.open_us[start]), end=from_us(bars.open_us[stop - 1]) + timedelta(seconds=1))
    return ReplayRequested(request_id=f"{traded.name} {start}", universe=traded, range=covered)


def replay(stack: EmbeddedStack, universes: list[Universe], bars: BarArrays, start: int, stop: int) -> None:
    """Replay bars `start` to `stop` of every universe, and run the stack until all is quiet."""
    requests = [replay_of(traded, bars, start, stop) for traded in universes]
    for request in requests[1:]:
        stack.client.send(request)
    stack.replay(requests[0], lambda: None)


@dataclass(frozen=True)
class Replayed:
    """Figures of all universes together."""

    bars_per_s: float
    bars_per_cpu_s: float
    """Per second that the pump's thread really had a core."""
    fills_per_bar: float
    by_hand_per_s: float
    """The rate of the loop by hand, over the bars of the first universe, in turns with ours."""
    ratio: float
    """Median over the turns of our rate divided by that one."""


def replayed(count: int, length: int) -> Replayed:
    """Replay so many bars of so many universes, in turns with the loop by hand over those of the first.

    Raises when the loop left something out.
    """
    universes = [scenario.universe(f"bench-{i}") for i in range(count)]
    started = HISTORY + WARM_UP
    with tempfile.TemporaryDirectory(prefix="tradeloop-bench-") as folder:
        home = Path(folder)
        with embedded(home / "stack", [scenario.portfolio(traded) for traded in universes]) as stack:
            for seed, traded in enumerate(universes):
                bars = scenario.bars(traded, started + length, seed)
                policy = prepare(stack.client, stack.models, home, traded, bars, seed)
                if not seed:
                    trade = by_hand(home / "by_hand.db", traded, bars, policy, HISTORY)
            replay(stack, universes, bars, HISTORY, started)
            trade(HISTORY, started)
            kinds = (FeaturesComputed, SignalGenerated, Transition, OrderFilled)
            before = {kind: stack.count(kind) for kind in kinds}
            ours: list[float] = []
            bound: list[float] = []
            cpu_s = 0.0
            for start in range(started, started + length, length // TURNS):
                stop, cpu_began_s = start + length // TURNS, time.thread_time()
                taken_s = seconds(partial(replay, stack, universes, bars, start, stop))
                cpu_s += time.thread_time() - cpu_began_s
                ours.append(count * (stop - start) / taken_s)
                bound.append((stop - start) / seconds(partial(trade, start, stop)))
            made = {kind: stack.count(kind) - before[kind] for kind in kinds}
    total = count * length
    if any(made[kind] != total for kind in (FeaturesComputed, SignalGenerated, Transition)):
        raise RuntimeError(f"{total} bars gave { ({kind.__name__: number for kind, number in made.items()}) }")
    ratio = statistics.median(mine / other for mine, other in zip(ours, bound, strict=True))
    rate, by_hand_rate = statistics.median(ours), statistics.median(bound)
    return Replayed(rate, total / cpu_s, made[OrderFilled] / total, by_hand_rate, ratio)


def against(what: str, run: Replayed, wanted: float) -> Row:
    return Row(what, run.bars_per_s, "bars/s", wanted, "at least", "loop by hand", run.by_hand_per_s, run.ratio)


def measure() -> None:
    quiet_logs()
    one, eight = replayed(1, 5_000), replayed(8, 1_500)
    report(
        [
            Row("embedded loop, one universe in lockstep", one.bars_per_s, "bars/s", 2_000.0),
            Row("the same, by CPU time of its thread", one.bars_per_cpu_s, "bars/s", None),
            against("the same, of what a loop by hand does", one, 0.2),
            Row("embedded loop, eight universes, total", eight.bars_per_s, "bars/s", 3_000.0),
            Row("the same, by CPU time of its thread", eight.bars_per_cpu_s, "bars/s", None),
            against("the same, of what a loop by hand does", eight, 0.3),
        ],
        [
            "Synthetic minute bars of one instrument a universe through ingest, preprocess, inference and execution, "
            "with training idle beside them: 5,000 bars of one universe, 1,500 of each of eight. SQLite, Feast and "
            "MLflow as in the demo; every message encoded, headers and all, and handed over. Start-up, backfill and "
            f"{WARM_UP} bars of warm-up are not timed.",
            f"The policy is of the trained size with random weights; it filled {one.fills_per_bar:.2f} orders a bar "
            f"({eight.fills_per_bar:.2f} with eight). {TURNS} turns each, their medians; the pump is one thread, so "
            "eight universes share one core. On a busy machine the figure by CPU time is nearer to what an idle one "
            "would do.",
            "The loop by hand does for each bar what no loop can leave out, and nothing that makes ours go on after a "
            "crash: streamed features, the policy in ONNX Runtime, the simulator's kernels, the reward, five messages "
            "as JSON, and one SQLite transaction for the book and the messages. It trades one universe; its turns and "
            "ours take the same bars.",
        ],
    )


if __name__ == "__main__":
    measure()
