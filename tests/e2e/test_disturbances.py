"""Whatever is cut off, added or taken away: what the backtest does, nothing lost and nothing doubled.

Over servers of its own, because they are killed too.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.stack import Servers, Stack
from tests.e2e.test_five_processes import assert_as_expected, register
from tests.e2e.worlds import World
from tests.servers import RealServer
from tradeloop.common.messages import BackfillCompleted, OrderFilled, OrderUpdated, PortfolioMarked, SignalGenerated
from tradeloop.common.messages.topics import topic_of
from tradeloop.common.model_store.mlflow import MlflowModelStore

SECONDS = 20
"""How long the bars of a stack that is cut off flow, at least."""


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

        fifth = sum(world.traded for world in worlds) // 5
        stack.eventually(lambda: signals(stack) > fifth, "first fifth of the signals", timeout_s=300)
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
        for port in ports.values():
            stack.eventually(lambda port=port: ready(port), "ready service")  # type: ignore[misc]
        stack.client.send(worlds[0].replay(speed=600 * 3600 / SECONDS))
        stack.eventually(lambda: signals(stack) > 60, "first signals")
        assert signals(stack) < 600, "the cut falls among the bars"
        cut: RealServer = getattr(servers, server)
        cut.kill()
        until = time.monotonic() + 30.0
        try:
            stack.eventually(lambda: not ready(ports["execution"]), "service that says it is not ready")
            time.sleep(max(0.0, until - time.monotonic()))  # the length of the cut is the test
            assert all(one.running for one in stack.processes.values()), stack.said()
        finally:
            cut.start()
        stack.eventually(lambda: ready(ports["execution"]), "service that is ready again")
        last = {worlds[0].portfolio.name: worlds[0].last_us}
        stack.eventually(lambda: stack.settled(last), "decision on the last bar", timeout_s=300)
        stack.stop()
        assert stack.client.count_dead_letters() == 0
        assert_as_expected(worlds[0], stack.client.read(PortfolioMarked), stack.client.read(OrderFilled))


def signals(stack: Stack) -> int:
    """The number of signals, with repetitions, by the ends of their topic: cheaper than to read them."""
    return sum(stack.bus.end_offsets(topic_of(SignalGenerated).name).values())


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5):
            return True
    except (urllib.error.HTTPError, OSError):
        return False
