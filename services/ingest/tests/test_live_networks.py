"""Live feeds through the real client libraries, from a fake venue that loses, lies, stalls, corrects and breaks off."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import pytest

from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.market import BAR_PRICES, Timeframe, Universe, from_us, to_us
from tradeloop.common.messages import BarFrame, LiveRequested
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.readback import all_messages
from tradeloop.common.runtime.runner import Runner
from tradeloop.ingest.adapters.bus_frames import BusFrames
from tradeloop.ingest.adapters.files import read_blocks
from tradeloop.ingest.adapters.sections import AlpacaSection, CcxtSection, MassiveSection, Sources
from tradeloop.ingest.adapters.sources import open_source
from tradeloop.ingest.application import Ingest
from tradeloop.ingest.application.live import LivePolicy
from tradeloop.ingest.contracts.fake_venue import FakeVenue, Faults, Market, VenueClock

BEGAN = datetime(2024, 1, 3, 15, 0, 20, tzinfo=UTC)
PATIENCE_S = 120.0
LOSSES = {"missing": 0.2, "repeated": 0.1, "reordered": 0.1, "lying_closed": 0.2, "malformed": 0.02}


class FastClock:
    """The time of a venue, for all who wait for it: minutes pass in seconds."""

    def __init__(self, speed: float) -> None:
        self.venue, self.speed = VenueClock(BEGAN, speed=speed), speed

    def now(self) -> datetime:
        return from_us(self.venue.now_us())

    def monotonic(self) -> float:
        return time.monotonic() * self.speed


@dataclass
class Network:
    """A source that speaks through a network, as its own client library does."""

    venue: str
    symbols: tuple[str, ...]
    timeframe: Timeframe
    speed: float = 1.0
    corrects: float = 0.0
    """The share of minutes that the venue corrects; on its stream, too."""
    sections: Callable[[str], Sources] = field(default=lambda url: {})


NETWORKS = [
    Network("binance", ("BTC/USDT", "ETH/USDT"), Timeframe.S1, sections=lambda url: {"binance": CcxtSection(url=url)}),
    Network(
        "alpaca",
        ("AAPL", "BTC/USDT"),
        Timeframe.M1,
        speed=30.0,
        corrects=0.3,
        sections=lambda url: {"alpaca": AlpacaSection(url=url)},
    ),
    Network(
        "massive",
        ("AAPL", "BTC/USDT"),
        Timeframe.M1,
        speed=30.0,
        corrects=0.3,
        sections=lambda url: {"massive": MassiveSection(url=url)},
    ),
]


class Feed:
    """Ingest with a live feed of a network source from a fake venue, on a bus and a store in memory."""

    def __init__(self, network: Network, venue: FakeVenue, clock: FastClock) -> None:
        self.network, self.venue, self.clock = network, venue, clock
        self.bus, self.store = MemoryBus(), MemoryBarStore(clock)
        sources = network.sections(venue.url)
        with closing(open_source(network.venue, sources, clock)) as source:
            instruments = tuple(source.instruments(network.symbols))
        self.universe = Universe(name="u", instruments=instruments, timeframe=network.timeframe)
        self.ingest = Ingest(
            self.store,
            read_blocks,
            BusFrames(self.bus),
            clock,
            open_source=lambda name: open_source(name, sources, clock),
            live=LivePolicy(retry_s=0.2, retry_most_s=2.0, fill_s=600.0),
        )
        self.runner = Runner(self.ingest, self.bus, clock, RunPolicy(unavailable_delay_s=0.05))
        request = LiveRequested(request_id="r", universe=self.universe, command="start", time=clock.now())
        publish(self.bus.producer(), request, "test")

    def until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not reached():
            self.runner.step(0.01)
            assert time.monotonic() < deadline, f"{self.ingest.tallies()} {list(self.ingest.feeds())}"

    def frames(self) -> list[BarFrame]:
        return [one for one in all_messages(self.bus, BarFrame) if not one.revision]

    def more(self, bars: int) -> None:
        """Until so many more frames went out."""
        wanted = len(self.frames()) + bars
        self.until(lambda: len(self.frames()) >= wanted)

    def passing(self, bars: float) -> None:
        """Let the venue's time pass, whatever comes."""
        end = self.clock.now() + bars * self.network.timeframe.delta
        self.until(lambda: self.clock.now() >= end)

    def count(self, event: str) -> int:
        return self.ingest.tallies().get((event, "u"), 0)

    def newest(self) -> dict[int, BarFrame]:
        """The last revision of each frame that went out, by its open."""
        found: dict[int, BarFrame] = {}
        for one in all_messages(self.bus, BarFrame):
            open_us = to_us(one.open_time)
            if open_us not in found or found[open_us].revision < one.revision:
                found[open_us] = one
        return found


@contextmanager
def feeding(network: Network, faults: Faults) -> Iterator[Feed]:
    clock = FastClock(network.speed)
    market = Market(corrections=network.corrects, clock=clock.venue)
    with FakeVenue(market, faults=faults) as venue:
        feed = Feed(network, venue, clock)
        try:
            yield feed
        finally:
            feed.runner.close()


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("APCA_API_KEY_ID", "APCA_API_SECRET_KEY", "MASSIVE_API_KEY"):
        monkeypatch.setenv(name, "key")


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.venue)
def test_what_a_client_brings_of_a_faulty_venue_is_stored_and_goes_out_as_it_is(network: Network) -> None:
    length_us = network.timeframe.us
    with feeding(network, Faults(seed=3)) as feed:
        faults = feed.venue.faults
        faults.change(**LOSSES)
        feed.more(5)
        faults.stall(0.6 * length_us / 1e6 / network.speed)  # inside a bar
        feed.more(2)
        faults.stall(2.5 * length_us / 1e6 / network.speed, deaf=True)
        feed.more(4)
        faults.change(missing=0.8)  # and heartbeats go on
        feed.more(6)
        faults.change(missing=LOSSES["missing"])
        faults.disconnect_now()
        feed.more(3)
        faults.maintenance = True
        faults.disconnect_now()
        feed.passing(2.0)
        faults.maintenance = False
        faults.change(**dict.fromkeys(LOSSES, 0.0))
        feed.more(3)
        # Whatever was corrected is told, or found, until then.
        last_us = to_us(feed.frames()[-1].open_time)
        feed.passing(5.0 if network.corrects else 1.0)
        feed.until(lambda: to_us(feed.frames()[-1].open_time) >= last_us + length_us)

        opens = [to_us(one.open_time) for one in feed.frames() if to_us(one.open_time) <= last_us]
        assert opens == list(range(opens[0], last_us + 1, length_us)), "no hole, nothing twice"
        newest = feed.newest()
        for instrument in feed.universe.ids:
            symbol = instrument.partition(":")[2]
            true = feed.venue.market.bars(symbol, network.timeframe.value, opens[0], last_us + 1).series()
            stored = feed.store.read([instrument], network.timeframe, opens[0], last_us + 1)
            sent = [bar for at in opens for bar in newest[at].bars if bar.instrument == instrument]
            assert np.array_equal(stored.open_us, true["open_us"])
            assert len(sent) == len(opens)
            for name in (*BAR_PRICES, "volume"):
                np.testing.assert_array_equal(getattr(stored, name)[:, 0], true[name], err_msg=f"{instrument} {name}")
                np.testing.assert_array_equal([getattr(bar, name) for bar in sent], true[name])
        assert feed.count("stream_interrupted") >= 2
        assert feed.count("bar_doubted") >= 1
        assert feed.count("history_asked") >= 1
        served = feed.venue.served
        assert served["disconnects"] >= 2
        assert served["lost frames"] > 5
        assert served["malformed frames"] + served["repeated frames"] + served["reordered frames"] > 0
        if network.corrects:
            corrected = [feed.venue.market.corrected(one, 0, feed.venue.market.now_us()) for one in network.symbols]
            assert any((opens[0] <= found).any() for found in corrected)
            assert feed.count("frame_revised") >= 1
