"""Whatever is killed, cut off, added or taken away: the same bars, decisions, orders, fills and rewards.

Over servers of its own, because they are killed too.
"""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.stack import Servers, Stack
from tests.e2e.test_five_processes import assert_as_expected, register
from tests.e2e.worlds import STRATEGY, World
from tests.servers import RealServer
from tradeloop.cli.client.deployment import SERVICES
from tradeloop.common.clock import SystemClock
from tradeloop.common.feature_store.feast.store import FeastFeatureStore
from tradeloop.common.messages import (
    BackfillCompleted,
    BarFrame,
    FeaturesComputed,
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

LEDGER = (BarFrame, FeaturesComputed, SignalGenerated, ModelActivated, OrderUpdated, OrderFilled, PortfolioMarked,
          RiskVerdict, Transition)  # fmt: skip
TABLES = {
    "bars": "instrument, timeframe, open_us, revision, open, high, low, close, volume, funding_rate",
    "execution_orders": "order_id, portfolio, decision_us, instrument, side, quantity, filled_quantity, status",
    "execution_fills": "fill_id, order_id, portfolio, time_us, instrument, side, quantity, price, fee",
    "execution_books": "portfolio, marked_us, decided_us, state, signal",
}
BARS = 3_000
SECONDS = 90
"""How long the bars flow, at least, in a disturbed run."""
KILLS_EACH = 6
SEEDS = [int(seed) for seed in os.environ.get("TRADELOOP_TEST_SEEDS", "1 2 3").split()]


@pytest.fixture(scope="module")
def worlds(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> list[World]:
    folder = tmp_path_factory.mktemp("bars")
    worlds = [World("solo", 1, BARS, folder), World("quartet", 4, BARS, folder)]
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

        stack.eventually(done, "decision on the last bar", timeout_s=900)
        ready = stack.eventually(lambda: stack.client.read(ModelReady), "model", timeout_s=300)
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
        self.events = [*(SERVICES * KILLS_EACH), "kafka", "kafka", "postgres", "postgres", "redis"]
        self._generator.shuffle(self.events)

    def __call__(self, stack: Stack, servers: Servers) -> None:
        for event in self.events:
            stack.supervise()
            # Not a wait for something: the moment is the test.
            time.sleep(self._generator.uniform(0.2, 2.0))
            victim = stack.processes[f"{event}-0"] if event in SERVICES else getattr(servers, event)
            victim.kill()
            victim.start()


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_anywhere_nothing_changes(
    servers: Servers, worlds: list[World], undisturbed: Left, tmp_path: Path, seed: int
) -> None:
    """30 kills of services, two of Kafka and of PostgreSQL each, one of Redis, which forgets everything."""
    print(f"seed {seed}; another one: TRADELOOP_TEST_SEEDS=N")
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
    assert left.online == undisturbed.online
    assert left.trained == undisturbed.trained


def test_three_replicas_of_each_one_killed_one_added(servers: Servers, tmp_path: Path) -> None:
    worlds = [World(f"u{n}", 1, 600, tmp_path / "bars") for n in range(9)]
    register(MlflowModelStore(servers.mlflow), worlds)
    scaled = ("preprocess", "inference", "execution")
    with servers.stack([world.portfolio for world in worlds], tmp_path) as stack:
        stack.start()
        for service in scaled:
            for replica in (1, 2):
                stack.add(service, replica).start()
        for world in worlds:
            stack.ask(world.backfill(), BackfillCompleted)
        stack.client.send(*(world.replay() for world in worlds))

        def decided(share: float) -> bool:
            return len(stack.distinct(topic_of(SignalGenerated).name)) > share * sum(world.traded for world in worlds)

        stack.eventually(lambda: decided(0.2), "first fifth of the signals", timeout_s=300)
        for service in scaled:
            stack.processes[f"{service}-1"].kill()
            stack.add(service, 3).start()
        last = {world.portfolio.name: world.last_us for world in worlds}
        stack.eventually(lambda: stack.settled(last), "decision on the last bar", timeout_s=600)
        stack.stop()
        marks, fills = stack.client.read(PortfolioMarked), stack.client.read(OrderFilled)
        orders = stack.rows("execution_orders", "order_id")
        published = {order.order_id for order in stack.client.read(OrderUpdated)}
        assert stack.client.count_dead_letters() == 0
    for world in worlds:
        assert_as_expected(world, marks, fills)
    assert {row[0] for row in orders} == published
    assert len(orders) == len(published), "no order twice"


@pytest.mark.parametrize("server", ["kafka", "postgres"])
def test_cut_off_for_half_a_minute(servers: Servers, tmp_path: Path, server: str) -> None:
    worlds = [World(f"cut-{server}", 1, 600, tmp_path / "bars")]
    register(MlflowModelStore(servers.mlflow), worlds)
    with servers.stack([world.portfolio for world in worlds], tmp_path) as stack:
        ports = stack.serve_http(("preprocess", "inference", "execution"))
        stack.start()
        stack.ask(worlds[0].backfill(), BackfillCompleted)
        stack.client.send(worlds[0].replay(speed=600 * 3600 / 30))
        for port in ports.values():
            stack.eventually(lambda port=port: ready(port), "ready service")  # type: ignore[misc]
        signals = topic_of(SignalGenerated).name
        stack.eventually(lambda: len(stack.distinct(signals)) > 60, "first signals")
        cut: RealServer = getattr(servers, server)
        cut.kill()
        until = time.monotonic() + 30.0
        try:
            stack.eventually(lambda: not ready(ports["execution"]), "service that says it is not ready", timeout_s=30)
            time.sleep(max(0.0, until - time.monotonic()))  # the length of the cut is the test
            assert all(one.running for one in stack.processes.values()), stack.said()
        finally:
            cut.start()
        stack.eventually(lambda: ready(ports["execution"]), "service that is ready again", timeout_s=60)
        last = {worlds[0].portfolio.name: worlds[0].last_us}
        stack.eventually(lambda: stack.settled(last), "decision on the last bar", timeout_s=300)
        stack.stop()
        assert stack.client.count_dead_letters() == 0
        assert_as_expected(worlds[0], stack.client.read(PortfolioMarked), stack.client.read(OrderFilled))


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5):
            return True
    except (urllib.error.HTTPError, OSError):
        return False
