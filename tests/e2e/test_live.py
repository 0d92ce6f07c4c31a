"""Live frames: what comes late, fails or is commanded is recorded, survives kills at any point, and is replayed.

Preprocess, inference and execution in one process over one bus, while the clock goes on second by second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from structlog.testing import capture_logs

from tests.e2e.test_parity import BASE, STRATEGY, Formula, Market, Versions, policy
from tradeloop.common.arrays import Floats
from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.clock import ManualClock
from tradeloop.common.errors import Unavailable
from tradeloop.common.feature_store.memory import MemoryFeatureStore
from tradeloop.common.market import Bar, Timeframe, Universe, from_us, resample
from tradeloop.common.messages import (
    BarFrame,
    Message,
    ModelActivated,
    PortfolioCommanded,
    PortfolioEvent,
    PortfolioMarked,
    SignalGenerated,
)
from tradeloop.common.messages.topics import event_id
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.runtime.attempts import Patience
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.readback import all_messages
from tradeloop.common.runtime.runner import Runner
from tradeloop.execution.adapters.bus_history import BusHistory as ExecutionHistory
from tradeloop.execution.adapters.memory_ledger import MemoryLedger
from tradeloop.execution.adapters.paper import PaperVenue
from tradeloop.execution.application import Execution
from tradeloop.inference.adapters.bus_history import BusHistory
from tradeloop.inference.application import Inference
from tradeloop.preprocess.adapters.bus_sent import BusSent
from tradeloop.preprocess.application import Preprocess

BARS = 36
LATE = frozenset({7, 19})
"""Bars whose decisions come after their deadline."""
FAILS, RELEASED = 12, 22
"""The bar at which a policy fails for good, and the one at which an operator releases its portfolio."""
ADDED, REMOVED = 15, 27
"""Bars at which a portfolio is added (execution knows of it one bar before inference), and one is taken out (inference
forgets it one bar before execution)."""
PLACES = 3 * BARS


class Fragile(Formula):
    """Fails while it is told to, where its gain is the larger one."""

    fails = False

    def act(self, observation: NDArray[np.float32]) -> Floats:
        if Fragile.fails and self._gain > 200.0:
            raise FloatingPointError("the graph gave no number")
        return super().act(observation)


class TwoKinds(Versions):
    """The first policy for those who trade champions, the second for those who trade candidates."""

    def load(self, name: str, reference: str) -> Any:
        return super().load(name, {"champion": "1", "candidate": "2"}.get(reference, reference))


class Killed:
    """A service that nothing of is committed any more."""

    def __init__(self, service: Any) -> None:
        self._service = service

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)

    def before_commit(self, offsets: Mapping[Any, int]) -> None:
        raise Unavailable("killed")


class AsRecorded(BusHistory):
    """The history of a replay: models as live activated them."""

    def __init__(self, own: MemoryBus, live: MemoryBus) -> None:
        super().__init__(own)
        self._live = BusHistory(live)

    def activations(self, universe: Universe, portfolio: str) -> Sequence[ModelActivated]:
        return self._live.activations(universe, portfolio)


class World:
    """Three services on a bus, and the stores that outlive them."""

    def __init__(self, market: Market, *names: str, replayed: World | None = None) -> None:
        self.market, self.bus, self.ledger = market, MemoryBus(), MemoryLedger()
        self.clock = ManualClock(from_us(market.traded.open_us[0]))
        self.frames = [frame(market, t, live=replayed is None) for t in range(BARS)]
        store = MemoryBarStore(self.clock)
        store.write(BASE, market.bars)
        store.write(Timeframe.M5, resample(market.bars, BASE, Timeframe.M5))
        policies = TwoKinds(*(policy(market.portfolio, gain) for gain in (150.0, 250.0)))
        self.known: dict[str, Sequence[str]] = dict.fromkeys(("preprocess", "inference", "execution"), names)
        patience = Patience(attempts=3, delay_s=1.0)
        recorded = replayed.bus if replayed is not None else self.bus

        def portfolios(service: str) -> list[Portfolio]:
            of_each = {"bad": {"model_alias": "candidate"}}
            return [
                market.portfolio.model_copy(update={"name": name, **of_each.get(name, {})})
                for name in self.known[service]
            ]

        self._makers: dict[str, Callable[[], Any]] = {
            "preprocess": lambda: Preprocess(
                [(market.universe, STRATEGY.name)],
                lambda _: STRATEGY,
                store,
                MemoryFeatureStore(),
                self.clock,
                BusSent(self.bus, self.clock),
            ),
            "inference": lambda: Inference(
                portfolios("inference"),
                lambda _: STRATEGY,
                policies,
                Fragile,
                BusHistory(self.bus) if replayed is None else AsRecorded(self.bus, recorded),
                self.clock,
                patience,
            ),
            "execution": lambda: Execution(
                portfolios("execution"),
                lambda _: STRATEGY,
                PaperVenue,
                self.ledger,
                ExecutionHistory(self.bus, recorded),
                self.clock,
                patience,
            ),
        }
        self.runners = {name: self._start(name) for name in self._makers}
        self.place = 0

    def _start(self, name: str) -> Runner:
        return Runner(self._makers[name](), self.bus, self.clock, RunPolicy(max_records=8, commit_interval_s=100.0))

    def restart(self, name: str, killed: bool = False) -> None:
        runner = self.runners[name]
        if killed:
            runner.service = Killed(runner.service)
        runner.close()
        self.runners[name] = self._start(name)

    def send(self, *messages: Message) -> None:
        for message in messages:
            publish(self.bus.producer(), message, "test")

    def step(self, without: str = "", rounds: int = 10) -> None:
        for _ in range(rounds):
            for name, runner in self.runners.items():
                if name != without:
                    runner.step()

    def pass_seconds(self, seconds: int, without: str = "") -> None:
        for _ in range(seconds):
            self.clock.advance(1.0)
            self.step(without, rounds=2)

    def read(self, kind: type[Any], *portfolios: str) -> dict[str, bytes]:
        """The messages of a kind by their ids: what comes again is the same."""
        found = all_messages(self.bus, kind)
        return {event_id(one): one.encode() for one in found if not portfolios or one.portfolio in portfolios}


def frame(market: Market, t: int, live: bool) -> BarFrame:
    bars = market.traded
    names = ("open", "high", "low", "close", "volume", "funding_rate")
    return BarFrame(
        universe=market.universe.name,
        timeframe=BASE,
        open_time=from_us(bars.open_us[t]),
        close_time=from_us(bars.close_us[t]),
        bars=tuple(
            Bar.model_validate({"instrument": one} | {name: float(getattr(bars, name)[t, a]) for name in names})
            for a, one in enumerate(bars.instruments)
            if bars.present[t, a]
        ),
        missing=tuple(one for a, one in enumerate(bars.instruments) if not bars.present[t, a]),
        live=live,
    )


def play(market: Market, kill: tuple[str, int] | None = None) -> World:
    """The script, with a service killed at one of its places, or at none."""
    world = World(market, "one", "bad", "gone")

    def here() -> None:
        if kill is not None and world.place == kill[1]:
            world.restart(kill[0], killed=True)
        world.place += 1

    with capture_logs():
        for t, one in enumerate(world.frames):
            change_portfolios(world, t)
            until(world, one.close_time)
            Fragile.fails = t == FAILS
            world.send(one)
            here()
            without = "inference" if t in LATE else ""
            world.step(without)
            here()
            world.pass_seconds(38, without)
            Fragile.fails = False
            world.step()
            here()
            if t == RELEASED:
                world.send(released(world, FAILS))
                world.step()
        world.pass_seconds(60)
        for runner in world.runners.values():
            runner.close()
    return world


def change_portfolios(world: World, t: int) -> None:
    """Processes that are restarted one by one, with other folders of portfolios."""
    for at, name, known in (
        (ADDED, "execution", ("one", "bad", "gone", "new")),
        (ADDED + 1, "inference", ("one", "bad", "gone", "new")),
        (REMOVED, "inference", ("one", "bad", "new")),
        (REMOVED + 1, "execution", ("one", "bad", "new")),
    ):
        if t == at:
            world.known[name] = known
            world.restart(name)


def until(world: World, time: datetime) -> None:
    """Let the clock come to a time, in seconds."""
    world.pass_seconds(max(int((time - world.clock.now()) / timedelta(seconds=1)), 0))


def released(world: World, t: int) -> PortfolioCommanded:
    return PortfolioCommanded(
        universe=world.market.universe.name,
        request_id="release",
        portfolio="bad",
        command="release",
        time=world.frames[t].close_time,
        reason="the graph was replaced",
    )


@pytest.fixture(scope="module")
def market() -> Market:
    return Market(2)


@pytest.fixture(scope="module")
def whole(market: Market) -> World:
    return play(market)


def happened(world: World, portfolio: str) -> list[tuple[str, datetime]]:
    events = [event for event in all_messages(world.bus, PortfolioEvent) if event.portfolio == portfolio]
    return sorted({(event.kind, event.time) for event in events}, key=lambda each: each[1])


def test_what_is_late_fails_or_is_commanded_is_on_record(whole: World) -> None:
    closes = [one.close_time for one in whole.frames]
    late = [("decision_missed", closes[t]) for t in sorted(LATE)]
    assert happened(whole, "one") == late
    kinds = [kind for kind, _ in happened(whole, "bad")]
    assert kinds == ["decision_missed", "quarantined", "released"], "in quarantine no decision is waited for"
    marked = {name: [m.time for m in all_messages(whole.bus, PortfolioMarked) if m.portfolio == name] for name in
              ("one", "bad", "new", "gone")}  # fmt: skip
    assert sorted(set(marked["one"])) == sorted(set(marked["bad"])) == closes, "every bar is marked, whatever happens"
    assert sorted(set(marked["new"])) == closes[ADDED:]
    assert closes[REMOVED - 1] in marked["gone"]
    decided = {s.time for s in all_messages(whole.bus, SignalGenerated) if s.portfolio == "new"}
    assert decided >= set(closes[ADDED + 1 :]), "a portfolio that inference knew later is decided on"
    assert {order.decision_time for order in whole.ledger.orders.values() if order.portfolio == "bad"} & set(
        closes[RELEASED + 1 :]
    ), "and a released one trades again"


@pytest.mark.parametrize("service", ["preprocess", "inference", "execution"])
@pytest.mark.parametrize("place", [*range(1, PLACES, 13), 3 * FAILS + 1, 3 * FAILS + 2, 23, 3 * ADDED + 1, 83])
def test_a_kill_anywhere_changes_nothing_of_it(market: Market, whole: World, service: str, place: int) -> None:
    killed = play(market, (service, place))
    portfolios = ("one", "bad", "new", "gone")
    assert killed.read(PortfolioEvent, *portfolios) == whole.read(PortfolioEvent, *portfolios)
    assert killed.read(PortfolioMarked, *portfolios) == whole.read(PortfolioMarked, *portfolios)
    assert killed.ledger.orders == whole.ledger.orders
    assert killed.ledger.fills == whole.ledger.fills


def test_a_replay_of_what_live_did_is_what_live_did(market: Market, whole: World) -> None:
    """Frames that are not live, no lateness, no failure: what is on record is repeated."""
    replay = World(market, "one", "bad", replayed=whole)
    with capture_logs():
        for one in replay.frames:
            until(replay, one.close_time)
            replay.send(one)
            replay.step()
        replay.pass_seconds(5)
    assert len(whole.ledger.fills) > 40
    for book in ("orders", "fills"):
        live: dict[str, Any] = getattr(whole.ledger, book)
        assert getattr(replay.ledger, book) == {k: v for k, v in live.items() if v.portfolio in ("one", "bad")}
    assert replay.read(PortfolioMarked) == whole.read(PortfolioMarked, "one", "bad")
    assert replay.read(PortfolioEvent) == whole.read(PortfolioEvent, "one", "bad")
