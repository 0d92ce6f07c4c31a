"""From a venue's stream to fills, live: outages, stalls, lies and kills on the way, then a replay of it.

Ingest, preprocess, inference and execution in one process over one bus, while the clock goes on second by second.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from services.ingest.tests.scripted import ScriptedSource
from tests.e2e.test_live import AsRecorded, Killed
from tests.e2e.test_parity import BASE, STRATEGY, Formula, Market, Versions, policy
from tests.permitted import Permitted
from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.clock import ManualClock
from tradeloop.common.feature_store.memory import MemoryFeatureStore
from tradeloop.common.market import Bar, Timeframe, TimeRange, from_us, resample, to_us
from tradeloop.common.messages import (
    BarFrame,
    FeaturesComputed,
    LiveRequested,
    Message,
    PortfolioEvent,
    PortfolioMarked,
    ReplayRequested,
    SignalGenerated,
)
from tradeloop.common.messages.topics import event_id
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
from tradeloop.ingest.adapters.bus_frames import BusFrames
from tradeloop.ingest.adapters.files import read_blocks
from tradeloop.ingest.application import Ingest
from tradeloop.ingest.application.live import LivePolicy
from tradeloop.preprocess.adapters.bus_sent import BusSent
from tradeloop.preprocess.application import Preprocess

MINUTES = 60
OUTAGE = range(10, 16)
"""Minutes in which neither stream nor history can be reached."""
STALL = 22
LIES = {3: 5, 17: 21, 28: 29, 34: 36, 37: 41, 38: 39, 44: 53}
"""Minutes whose bars the venue has otherwise at first, and when it corrects them."""
KILLS = {30: ("ingest",), 31: ("execution",), 33: ("inference",), 35: ("preprocess",), 40: ("ingest", "execution")}


class Venue(ScriptedSource):
    """The venue of a market whose bars are known."""

    def __init__(self, market: Market, clock: ManualClock) -> None:
        super().__init__(clock)
        bars = market.bars
        self.start_us = int(market.traded.open_us[0])
        names = ("open", "high", "low", "close", "volume")
        self._bars = {
            (one, int(open_us)): Bar.model_validate(
                {"instrument": one} | {name: float(getattr(bars, name)[t, a]) for name in names}
            )
            for t, open_us in enumerate(bars.open_us)
            for a, one in enumerate(bars.instruments)
            if bars.present[t, a]
        }

        self.lies: set[int] = set()

    def bar(self, instrument: str, minute: int) -> Bar | None:
        true = self._bars.get((instrument, self.start_us + minute * BASE.us))
        if true is None or minute not in self.lies:
            return true
        return true.model_copy(update={"close": true.open, "volume": 3.0})


class World:
    """Four services on a bus, and the stores that outlive them."""

    def __init__(self, market: Market, replayed: World | None = None, as_recorded: bool = False) -> None:
        """`replayed` is traded once more: its stored bars, or its frames as they went out, in their order."""
        self.market, self.bus, self.ledger = market, MemoryBus(), MemoryLedger()
        self.clock = ManualClock(from_us(int(market.traded.open_us[0])))
        self.venue = Venue(market, self.clock)
        if replayed is None or as_recorded:
            self.store = MemoryBarStore(self.clock)
            first = int(np.searchsorted(market.bars.open_us, market.traded.open_us[0]))
            known = market.bars.slice(0, first)
            self.store.write(BASE, known)
            self.store.write(Timeframe.M5, resample(known, BASE, Timeframe.M5))
        else:
            self.store = replayed.store
        recorded = self.bus if replayed is None else replayed.bus
        models = Versions(policy(market.portfolio, 150.0))
        history = BusHistory if replayed is None else lambda bus: AsRecorded(bus, recorded)
        self._makers: Mapping[str, Any] = {
            "ingest": lambda: Ingest(
                self.store,
                read_blocks,
                BusFrames(Permitted(self.bus, "ingest")),
                self.clock,
                open_source=lambda _: self.venue,
                live=LivePolicy(stall_s=20.0),
                threaded=False,
                record=BusFrames(recorded) if as_recorded else None,
            ),
            "preprocess": lambda: Preprocess(
                [(market.universe, STRATEGY.name)],
                lambda _: STRATEGY,
                self.store,
                MemoryFeatureStore(),
                self.clock,
                BusSent(Permitted(self.bus, "preprocess"), self.clock),
            ),
            "inference": lambda: Inference(
                [market.portfolio],
                lambda _: STRATEGY,
                models,
                Formula,
                history(Permitted(self.bus, "inference")),
                self.clock,
            ),
            "execution": lambda: Execution(
                [market.portfolio],
                lambda _: STRATEGY,
                PaperVenue,
                self.ledger,
                ExecutionHistory(Permitted(self.bus, "execution"), recorded),
                self.clock,
            ),
        }
        self.runners = {name: self._start(name) for name in self._makers}

    def _start(self, name: str) -> Runner:
        policy = RunPolicy(max_records=8, commit_interval_s=100.0, unavailable_delay_s=0.0)
        return Runner(self._makers[name](), Permitted(self.bus, name), self.clock, policy)

    def kill(self, name: str) -> None:
        runner = self.runners[name]
        runner.service = Killed(runner.service)
        runner.close()
        self.runners[name] = self._start(name)

    def send(self, message: Message) -> None:
        publish(self.bus.producer(), message, "test")

    def settle(self) -> None:
        for _ in range(2_000):
            if not sum(runner.step() for runner in self.runners.values()):
                return
        raise AssertionError("the services do not come to rest")

    def until(self, second: float) -> None:
        """Let the clock come to a second after the first bar opened."""
        while (left := self.venue.start_us / 1e6 + second - self.clock.now().timestamp()) > 1e-6:
            self.clock.advance(min(left, 1.0))
            self.settle()

    def read(self, kind: type[Any]) -> dict[str, bytes]:
        return {event_id(one): one.encode() for one in all_messages(self.bus, kind)}


def play(market: Market, kills: bool, lies: Mapping[int, int] = MappingProxyType({})) -> World:
    """An hour of a live market in which much goes wrong. Where it lies and kills, preprocess dies every minute."""
    world = World(market)
    venue, ids = world.venue, market.universe.ids
    venue.lies.update(lies)
    with capture_logs():
        world.send(LiveRequested(request_id="r", universe=market.universe, command="start", time=world.clock.now()))
        world.settle()
        for minute in range(MINUTES):
            there = [one for one in ids if venue.bar(one, minute) is not None]
            if minute == OUTAGE.start:
                venue.disconnect()
                venue.down = True
            elif minute == OUTAGE.stop:
                venue.down = False
                venue.connect()
            for second in (15, 30, 45):
                world.until(60 * minute + second)
                if minute not in OUTAGE and not (minute == STALL and second > 15):
                    venue.put(minute, *there, closed=False, part=second / 60)
                if kills and second == 30:
                    for name in KILLS.get(minute, ()):
                        world.kill(name)
                world.settle()
            world.until(60 * (minute + 1))
            world.clock.advance(0.1)
            if minute not in OUTAGE:
                venue.put(minute, *there, closed=True, part=0.25 if minute == STALL else 1.0)
            world.settle()
            for lie, corrected in lies.items():
                if corrected == minute:
                    venue.lies.remove(lie)
                    venue.put(lie, *(one for one in ids if venue.bar(one, lie) is not None))
            if kills and lies:
                world.settle()
                world.kill("preprocess")
            if kills and minute == 50:
                world.kill("execution")
        world.until(60 * MINUTES + 50)
        for runner in world.runners.values():
            runner.close()
    return world


@pytest.fixture(scope="module")
def market() -> Market:
    found = Market(2)
    found.bars.funding_rate[:] = 0.0  # which the venue tells of elsewhere
    return found


@pytest.fixture(scope="module")
def whole(market: Market) -> World:
    return play(market, kills=False)


def frames(world: World) -> list[BarFrame]:
    return [one for one in all_messages(world.bus, BarFrame) if one.timeframe is BASE]


def test_what_is_stored_and_went_out_is_what_the_venue_has(market: Market, whole: World) -> None:
    ids, start_us = market.universe.ids, whole.venue.start_us
    stored = whole.store.read(ids, BASE, start_us, start_us + MINUTES * BASE.us)
    traded = market.traded
    rows = traded.open_us < start_us + MINUTES * BASE.us
    assert np.array_equal(stored.open_us, traded.open_us[rows])
    for name in ("open", "high", "low", "close", "volume"):
        here, there = getattr(stored, name), getattr(traded, name)[rows]
        assert np.array_equal(here[stored.present], there[traded.present[rows]])
    assert not [one for one in frames(whole) if one.revision]
    assert [to_us(one.open_time) for one in frames(whole)] == traded.open_us[rows].tolist()
    missed = {to_us(e.time) for e in all_messages(whole.bus, PortfolioEvent) if e.kind == "decision_missed"}
    assert missed == {to_us(one.close_time) for one in frames(whole) if one.catches_up}
    assert missed
    assert len(whole.ledger.fills) > 10


def test_kills_on_the_way_lose_and_double_nothing(whole: World, market: Market) -> None:
    killed = play(market, kills=True)
    assert killed.read(BarFrame) == whole.read(BarFrame)
    assert killed.read(PortfolioMarked) == whole.read(PortfolioMarked)
    assert killed.read(PortfolioEvent) == whole.read(PortfolioEvent)
    assert killed.ledger.orders == whole.ledger.orders
    assert killed.ledger.fills == whole.ledger.fills


def test_a_replay_of_the_stored_bars_is_what_live_did(whole: World, market: Market) -> None:
    replay = World(market, replayed=whole)
    start = from_us(whole.venue.start_us)
    with capture_logs():
        replay.clock.advance(60.0 * MINUTES + 60.0)
        replay.send(
            ReplayRequested(
                request_id="again",
                universe=market.universe,
                range=TimeRange(start=start, end=from_us(whole.venue.start_us + MINUTES * BASE.us)),
            )
        )
        replay.settle()
    assert replay.ledger.orders == whole.ledger.orders
    assert replay.ledger.fills == whole.ledger.fills
    assert replay.read(PortfolioMarked) == whole.read(PortfolioMarked)
    assert replay.read(PortfolioEvent) == whole.read(PortfolioEvent)


@pytest.fixture(scope="module")
def corrected(market: Market) -> World:
    return play(market, kills=False, lies=LIES)


def test_corrections_are_the_same_whoever_is_killed_when(corrected: World, market: Market) -> None:
    """After a kill, frames are handled again while the stored bars are those of later."""
    revised = {to_us(one.open_time) for one in frames(corrected) if one.revision}
    assert len(revised) > 5
    silent = play(market, kills=False, lies=dict.fromkeys(LIES, MINUTES))
    assert silent.read(PortfolioMarked) != corrected.read(PortfolioMarked), "it must matter"
    killed = play(market, kills=True, lies=LIES)
    for kind in (BarFrame, FeaturesComputed, SignalGenerated, PortfolioMarked, PortfolioEvent):
        assert killed.read(kind) == corrected.read(kind), kind
    assert killed.ledger.orders == corrected.ledger.orders
    assert killed.ledger.fills == corrected.ledger.fills


def test_a_replay_of_the_recorded_frames_does_what_live_did_beside_corrections(
    corrected: World, market: Market
) -> None:
    replay = World(market, replayed=corrected, as_recorded=True)
    start = from_us(corrected.venue.start_us)
    with capture_logs():
        replay.clock.advance(60.0 * MINUTES + 60.0)
        span = TimeRange(start=start, end=from_us(corrected.venue.start_us + MINUTES * BASE.us))
        replay.send(ReplayRequested(request_id="again", universe=market.universe, range=span))
        replay.settle()
    went_out = [one for one in all_messages(corrected.bus, BarFrame) if to_us(one.open_time) < to_us(span.end)]
    again = [one.model_copy(update={"live": False, "catches_up": False}) for one in went_out]
    assert all_messages(replay.bus, BarFrame) == again
    assert replay.ledger.orders == corrected.ledger.orders
    assert replay.ledger.fills == corrected.ledger.fills
    assert replay.read(FeaturesComputed) == corrected.read(FeaturesComputed)
    assert replay.read(PortfolioMarked) == corrected.read(PortfolioMarked)
    assert replay.read(PortfolioEvent) == corrected.read(PortfolioEvent)
    ids, until_us = market.universe.ids, to_us(span.end)
    for world in (replay, corrected):
        base, longer = (world.store.read(ids, one, 0, until_us) for one in (BASE, Timeframe.M5))
        true = resample(base, BASE, Timeframe.M5, int(longer.close_us[-1]))
        assert longer.open_us.tolist() == true.open_us.tolist()
        np.testing.assert_array_equal(longer.close, true.close)
    here, there = (world.store.read(ids, BASE, 0, until_us) for world in (replay, corrected))
    np.testing.assert_array_equal(here.close, there.close)
