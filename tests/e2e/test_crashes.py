"""Whatever is killed, at whatever moment: the same bars, decisions, orders, fills and rewards.

Over servers of its own, because they are killed too.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.stack import Servers, Stack
from tests.e2e.test_five_processes import register
from tests.e2e.worlds import STRATEGY, World
from tests.notes import Note
from tradeloop.cli.client.deployment import SERVICES
from tradeloop.common.clock import SystemClock
from tradeloop.common.feature_store.feast.store import FeastFeatureStore
from tradeloop.common.messages import (
    BackfillCompleted,
    BarFrame,
    FeaturesComputed,
    InstrumentChanged,
    ModelActivated,
    ModelReady,
    OrderFilled,
    OrderUpdated,
    PortfolioMarked,
    PreprocessCompleted,
    PreprocessRequested,
    RiskVerdict,
    SignalGenerated,
    TrainingRequested,
    Transition,
)
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.model_store.mlflow import MlflowModelStore

LEDGER = (BarFrame, InstrumentChanged, FeaturesComputed, SignalGenerated, ModelActivated, OrderUpdated, OrderFilled,
          PortfolioMarked, RiskVerdict, Transition)  # fmt: skip
TABLES = {
    "bars": "instrument, timeframe, open_us, revision, open, high, low, close, volume, funding_rate",
    "execution_orders": "order_id, portfolio, decision_us, instrument, side, quantity, filled_quantity, status",
    "execution_fills": "fill_id, order_id, portfolio, time_us, instrument, side, quantity, price, fee, reason",
    "execution_books": "portfolio, marked_us, decided_us, state, signal",
}
LENGTH = int(os.environ.get("TRADELOOP_TEST_LENGTH", "1"))
"""How many times as long as usual the disturbed runs are: `make soak` has longer ones."""
BARS = 3_000 * LENGTH
SECONDS = 90 * LENGTH
"""How long the bars flow, at least, in a disturbed run."""
KILLS_EACH = 6 * LENGTH


def seeds() -> list[int]:
    """Those that were asked for, or else one that follows from the commit: many commits try many moments."""
    if asked := os.environ.get("TRADELOOP_TEST_SEEDS"):
        return [int(seed) for seed in asked.split()]
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return [1]  # no Git, or no repository: a release's files
    return [int(head.stdout, 16) % 1000]


@pytest.fixture(scope="module")
def worlds(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> list[World]:
    folder = tmp_path_factory.mktemp("bars")
    worlds = [World("solo", 1, BARS, folder), World("quartet", 4, BARS, folder, has_events=True)]
    register(MlflowModelStore(servers.mlflow), worlds)
    return worlds


@dataclass(frozen=True)
class Left:
    """What a run leaves behind."""

    topics: Mapping[str, Mapping[str, bytes]]
    tables: Mapping[str, list[tuple[Any, ...]]]
    online: Mapping[str, list[list[float]]]
    trained: str
    """Identity of the model that was trained on the side."""


def trade(servers: Servers, worlds: list[World], folder: Path, chaos: Any = None) -> Left:
    """Trade all bars, train a model on the side, and collect what is left; `chaos` disturbs it while bars flow."""
    trainee = worlds[0]
    span = trainee.replay().range
    with servers.stack([world.portfolio for world in worlds], folder) as stack:
        stack.start()
        for world in worlds:
            stack.ask(world.backfill(), BackfillCompleted)
        stack.ask(
            PreprocessRequested(request_id="p", universe=trainee.universe, strategy="probe", range=span),
            PreprocessCompleted,
        )
        speed = None if chaos is None else BARS * 3600 / SECONDS
        training = TrainingRequested(
            request_id="t", strategy="probe", universe=trainee.universe, range=span, seed=7, steps=4_096,
            portfolio=trainee.portfolio.model_dump_json(),
        )  # fmt: skip
        stack.client.send(*(world.replay(speed) for world in worlds), training)
        if chaos is not None:
            chaos(stack, servers)
        last = {world.portfolio.name: world.last_us for world in worlds}

        def done() -> bool:
            stack.supervise()
            return stack.settled(last)

        stack.eventually(done, "decision on the last bar", timeout_s=1800)
        ready = stack.eventually(lambda: stack.client.read(ModelReady), "model", timeout_s=600)
        stack.stop()
        assert stack.client.count_dead_letters() == 0
        return Left(
            {topic: stack.distinct(topic) for topic in (topic_of(kind).name for kind in LEDGER)},
            {table: stack.rows(table, columns) for table, columns in TABLES.items()},
            {world.name: online(stack, world) for world in worlds},
            {one.model_id for one in ready}.pop(),
        )


def online(stack: Stack, world: World) -> list[list[float]]:
    """The newest features in the online store."""
    store = FeastFeatureStore(stack.folder / "features", SystemClock(), **stack.feast())
    try:
        rows = store.read_online(STRATEGY.feature_set.id, world.name, world.universe.ids)
        assert rows is not None
        assert rows.time_us.tolist() == [world.last_us]
        values: list[list[float]] = rows.values[0].tolist()
        return values
    finally:
        store.close()


@pytest.fixture(scope="module")
def undisturbed(servers: Servers, worlds: list[World], tmp_path_factory: pytest.TempPathFactory) -> Left:
    left = trade(servers, worlds, tmp_path_factory.mktemp("undisturbed"))
    assert all(left.topics[topic_of(kind).name] for kind in LEDGER if kind is not RiskVerdict)
    return left


class Chaos:
    """Kills at moments and in an order that follow from a seed."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self.events = [*SERVICES * KILLS_EACH, *("kafka", "kafka", "postgres", "postgres", "redis") * LENGTH]
        self._generator.shuffle(self.events)

    def __call__(self, stack: Stack, servers: Servers) -> None:
        for event in self.events:
            stack.supervise()
            # Not a wait for something: the moment is the test.
            time.sleep(self._generator.uniform(0.2, 2.0))
            victim = stack.processes[f"{event}-0"] if event in SERVICES else getattr(servers, event)
            victim.kill()
            victim.start()


@pytest.mark.parametrize("seed", seeds())
def test_killed_anywhere_nothing_changes(
    servers: Servers, worlds: list[World], undisturbed: Left, tmp_path: Path, note: Note, seed: int
) -> None:
    """30 kills of services, two of Kafka and of PostgreSQL each, one of Redis, which forgets everything."""
    note("seed of the crash proof", f"{seed}, SEED={seed} repeats it")
    left = trade(servers, worlds, tmp_path, Chaos(seed))
    for topic, expected in undisturbed.topics.items():
        found = left.topics[topic]
        assert found.keys() == expected.keys(), topic
        differing = [identity for identity in expected if found[identity] != expected[identity]]
        assert not differing, (
            f"{topic}: {len(differing)} of {len(expected)} differ, the first is\n"
            f"{found[differing[0]].decode()}, not\n{expected[differing[0]].decode()}"
        )
    for table, rows in undisturbed.tables.items():
        assert left.tables[table] == rows, table
    np.testing.assert_equal(left.online, undisturbed.online)  # those of what is delisted are NaN, in both
    assert left.trained == undisturbed.trained
