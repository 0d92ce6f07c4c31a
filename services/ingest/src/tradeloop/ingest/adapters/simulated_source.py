"""`SimulatedSource`: a seeded market for load and demos, with no network.

Bars, trades and books are a pure function of the seed, the symbol and the time, the live stream's too: it is the same
whenever and however often it is polled, and history and stream agree to the bit.

With a speed, the venue's clock runs faster than the wall's. Whoever holds the stream against a clock (frames that are
"ahead", the age of a bar, deadlines that are part of a timeframe) needs the venue's: use `source.clock` as the clock of
every service in the process. Its `monotonic` stays in seconds of the wall, since waiting is done there. Processes
agree on it when they are given the same `start` and `since`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta

import numpy as np

from tradeloop.common.clock import Clock
from tradeloop.common.errors import UserError
from tradeloop.common.market import BAR_PRICES, Instrument, Timeframe, to_us
from tradeloop.ingest.adapters.simulated_market import LOT_SIZE, SECOND_US, TICK_SIZE, SimulatedMarket
from tradeloop.ingest.adapters.symbols import symbol_of, unknown
from tradeloop.ingest.ports import (
    Channel,
    Connected,
    MarketEvent,
    Page,
    StreamedBar,
    StreamedBook,
    StreamedTrade,
)

SYMBOLS = ("BTC/USDT", "ETH/USDT", "SOL/USDT", "XRP/USDT", *(f"SIM{number:03}" for number in range(1, 501)))
"""The instruments of the simulated venue."""
_PAGE_BARS = 1000
_PARTIAL_PARTS = 4
"""A bar comes so often while it grows."""
_EVENTS_AT_ONCE = 20_000


class SpedClock:
    """A clock whose time runs `speed` times as fast as another's: `start` when that one shows `since`."""

    def __init__(
        self, clock: Clock, speed: float, start: datetime | None = None, since: datetime | None = None
    ) -> None:
        self._clock, self._speed = clock, speed
        self._since = since or clock.now()
        self._start = start or self._since

    def now(self) -> datetime:
        passed = (self._clock.now() - self._since).total_seconds()
        return self._start + timedelta(seconds=passed * self._speed)

    def monotonic(self) -> float:
        return self._clock.monotonic()


class SimulatedSource:
    """The market data of the simulated venue."""

    def __init__(
        self,
        clock: Clock,
        seed: int = 0,
        speed: float = 1.0,
        *,
        venue: str = "simulated",
        start: datetime | None = None,
        since: datetime | None = None,
    ) -> None:
        """`start` is the venue's time when `clock` shows `since`; without them, both are now. Raises `UserError`."""
        if not 0 < speed < 1e6:
            raise UserError(f"{venue}: a speed of {speed:g} is not possible: give one above 0 and below 1,000,000")
        self.venue = venue
        self.speed = speed
        self.clock: Clock = clock if speed == 1 and start is None else SpedClock(clock, speed, start, since)
        """The venue's clock."""
        self._seed = seed

    def instruments(self, symbols: Sequence[str]) -> Sequence[Instrument]:
        for symbol in symbols:
            if symbol not in SYMBOLS:
                raise unknown(self.venue, symbol, SYMBOLS)
        return [
            Instrument(id=f"{self.venue}:{symbol}", tick_size=TICK_SIZE, lot_size=LOT_SIZE, min_notional=1.0)
            for symbol in symbols
        ]

    def history(self, instrument: Instrument, timeframe: Timeframe, start_us: int, end_us: int) -> Iterator[Page]:
        symbol = self._symbol(instrument)
        # A market of its own for each use: those of a stream may be in another thread.
        return self._pages(SimulatedMarket(self._seed), symbol, timeframe, start_us, end_us)

    def _pages(
        self, market: SimulatedMarket, symbol: str, timeframe: Timeframe, start_us: int, end_us: int
    ) -> Iterator[Page]:
        at_us = -(-start_us // timeframe.us) * timeframe.us
        while True:
            closed_us = self.time_us() // timeframe.us * timeframe.us
            stop_us = min(end_us, closed_us, at_us + _PAGE_BARS * timeframe.us)
            if stop_us <= at_us:
                # Empty as it is, it says that there was nothing to have, or nothing yet.
                if start_us < min(end_us, closed_us):
                    yield Page(market.bars(symbol, timeframe, np.empty(0, np.int64)), min(end_us, closed_us))
                return
            open_us = np.arange(at_us, stop_us, timeframe.us)
            at_us = start_us = int(open_us[-1]) + timeframe.us
            yield Page(market.bars(symbol, timeframe, open_us), min(at_us, end_us))

    def stream(
        self, instruments: Sequence[Instrument], timeframe: Timeframe, channels: frozenset[Channel]
    ) -> SimulatedStream:
        if "news" in channels:
            raise UserError(f"{self.venue} has no news: leave this channel out")
        names = {instrument.id: self._symbol(instrument) for instrument in instruments}
        return SimulatedStream(SimulatedMarket(self._seed), names, timeframe, channels, self.time_us, self.speed)

    def time_us(self) -> int:
        return to_us(self.clock.now())

    def close(self) -> None:
        """Nothing is held open."""

    def _symbol(self, instrument: Instrument) -> str:
        symbol = symbol_of(self.venue, instrument)
        if symbol not in SYMBOLS:
            raise unknown(self.venue, symbol, SYMBOLS)
        return symbol


class SimulatedStream:
    """The live stream of the simulated venue. Nothing goes missing: a poll that comes late gets all that happened.

    It needs no thread: events are computed when they are polled. Those of a second come in the order of instruments:
    trade, order book, bar. A bar comes after each quarter of its time, and closed with its end.
    """

    def __init__(
        self,
        market: SimulatedMarket,
        symbols: dict[str, str],
        timeframe: Timeframe,
        channels: frozenset[Channel],
        time_us: Callable[[], int],
        speed: float,
    ) -> None:
        self._market, self._symbols, self._timeframe, self._channels = market, symbols, timeframe, channels
        self._time_us, self._speed = time_us, speed
        self._next_s = time_us() // SECOND_US
        self._first: list[MarketEvent] = [Connected(time_us())]
        self._closed = threading.Event()

    def poll(self, timeout_s: float) -> Sequence[MarketEvent]:
        events, self._first = self._first, []
        left_s = timeout_s
        while not self._closed.is_set():
            events += self._due()
            pause_s = min(left_s, max(0.1 / self._speed, 0.001))
            if events or pause_s <= 0:
                break
            self._closed.wait(pause_s)
            left_s -= pause_s
        return events

    def close(self) -> None:
        self._closed.set()

    def _due(self) -> list[MarketEvent]:
        events: list[MarketEvent] = []
        now_us = self._time_us()
        # The trade of a second is known when the second is over.
        while (self._next_s + 1) * SECOND_US <= now_us and len(events) < _EVENTS_AT_ONCE:
            for instrument, symbol in self._symbols.items():
                events += self._of_second(instrument, symbol, self._next_s, now_us)
            self._next_s += 1
        return events

    def _of_second(self, instrument: str, symbol: str, second: int, now_us: int) -> Iterator[MarketEvent]:
        if "trades" in self._channels:
            trades = self._market.trades(symbol, second, second + 1)
            yield StreamedTrade(
                instrument,
                str(second),
                int(trades.time_us[0]),
                float(trades.price[0]),
                int(trades.lots[0]) * LOT_SIZE,
                "buy" if trades.bought[0] else "sell",
                now_us,
            )
        if "books" in self._channels:
            bids, asks = self._market.book(symbol, second)
            yield StreamedBook(instrument, (second + 1) * SECOND_US - 1, bids, asks, now_us)
        length_us, end_us = self._timeframe.us, (second + 1) * SECOND_US
        if "bars" in self._channels and (end_us % length_us) % max(length_us // _PARTIAL_PARTS, SECOND_US) == 0:
            open_us = (end_us - 1) // length_us * length_us
            bar = self._market.bars(symbol, self._timeframe, np.array([open_us]), end_us)
            open_, high, low, close, volume = (float(bar[name][0]) for name in (*BAR_PRICES, "volume"))
            closed = end_us == open_us + length_us
            yield StreamedBar(
                instrument, self._timeframe, open_us, open_, high, low, close, volume, closed, received_us=now_us
            )
