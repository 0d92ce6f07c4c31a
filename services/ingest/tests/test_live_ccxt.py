"""Live feeds through the real ccxt, from a fake venue that loses, lies, stalls and breaks off."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from tradeloop.common.bar_store.memory import MemoryBarStore
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.clock import SystemClock
from tradeloop.common.market import Instrument, Timeframe, Universe, to_us
from tradeloop.common.messages import BarFrame, LiveRequested
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.readback import all_messages
from tradeloop.common.runtime.runner import Runner
from tradeloop.ingest.adapters.bus_frames import BusFrames
from tradeloop.ingest.adapters.files import read_blocks
from tradeloop.ingest.adapters.sections import CcxtSection
from tradeloop.ingest.adapters.sources import open_source
from tradeloop.ingest.application import Ingest
from tradeloop.ingest.application.live import LivePolicy
from tradeloop.ingest.contracts.fake_venue import FakeVenue, Faults, Market

SYMBOLS = ("BTC/USDT", "ETH/USDT")
S1 = Timeframe.S1
PATIENCE_S = 90.0


def test_what_ccxt_brings_of_a_faulty_venue_is_stored_and_goes_out_as_it_is() -> None:
    clock, bus = SystemClock(), MemoryBus()
    faults = Faults(seed=3, missing=0.3, repeated=0.1, reordered=0.1, lying_closed=0.2, malformed=0.02)
    universe = Universe(
        name="u", instruments=tuple(Instrument(id=f"binance:{symbol}") for symbol in SYMBOLS), timeframe=S1
    )
    store = MemoryBarStore(clock)
    with FakeVenue(Market(SYMBOLS), faults=faults) as venue:
        sources = {"binance": CcxtSection(url=venue.url)}
        ingest = Ingest(
            store,
            read_blocks,
            BusFrames(bus),
            clock,
            open_source=lambda name: open_source(name, sources, clock),
            live=LivePolicy(retry_s=0.2, retry_most_s=2.0),
        )
        runner = Runner(ingest, bus, clock, RunPolicy(unavailable_delay_s=0.05))
        began = clock.now()
        publish(
            bus.producer(),
            LiveRequested(request_id="r", universe=universe, command="start", time=began),
            "test",
        )

        def until(reached: Callable[[], bool]) -> None:
            deadline = time.monotonic() + PATIENCE_S
            while not reached():
                runner.step(0.01)
                assert time.monotonic() < deadline, f"{ingest.tallies()} {list(ingest.feeds())}"

        def frames() -> list[BarFrame]:
            return [one for one in all_messages(bus, BarFrame) if not one.revision]

        try:
            until(lambda: len(frames()) >= 8)
            venue.faults.stall(3.0)
            until(lambda: len(frames()) >= 14)
            venue.faults.disconnect_now()
            until(lambda: len(frames()) >= 20)
            venue.faults.maintenance = True
            venue.faults.disconnect_now()
            end = time.monotonic() + 4.0
            until(lambda: time.monotonic() > end)
            venue.faults.maintenance = False
            for name in ("missing", "repeated", "reordered", "lying_closed", "malformed"):
                venue.faults.change(**{name: 0.0})
            last = frames()[-1].open_time
            until(lambda: frames()[-1].open_time > last and len(frames()) >= 40)
            opens = [to_us(one.open_time) for one in frames()]
            final: dict[int, BarFrame] = {}
            for one in all_messages(bus, BarFrame):
                open_us = to_us(one.open_time)
                if open_us not in final or final[open_us].revision < one.revision:
                    final[open_us] = one
            assert opens == list(range(opens[0], opens[-1] + 1, S1.us)), "no hole, nothing twice"
            for symbol in SYMBOLS:
                true = venue.market.bars(symbol, "1s", opens[0], opens[-1] + 1)
                stored = store.read([f"binance:{symbol}"], S1, opens[0], opens[-1] + 1)
                series = true.series()
                assert np.array_equal(stored.open_us, series["open_us"])
                for name in ("open", "high", "low", "close", "volume"):
                    np.testing.assert_allclose(getattr(stored, name)[:, 0], series[name], rtol=1e-12)
            assert ingest.tallies()["stream_interrupted", "u"] >= 1
            assert ingest.tallies()["bar_doubted", "u"] >= 1
        finally:
            runner.close()
