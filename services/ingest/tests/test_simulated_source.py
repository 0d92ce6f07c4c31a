from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from tradeloop.common.clock import ManualClock
from tradeloop.common.errors import UserError
from tradeloop.common.market import Instrument, Series, Timeframe, joined, to_us
from tradeloop.ingest.adapters.simulated_market import LOT_SIZE, SimulatedMarket
from tradeloop.ingest.adapters.simulated_source import SYMBOLS, SimulatedSource, SpedClock
from tradeloop.ingest.ports import (
    Channel,
    Connected,
    MarketEvent,
    MarketStream,
    Page,
    StreamedBar,
    StreamedBook,
    StreamedTrade,
)

NOW = datetime(2024, 3, 1, 12, 0, 30, tzinfo=UTC)
ALL: frozenset[Channel] = frozenset(["bars", "trades", "books"])


def source(clock: ManualClock | None = None, seed: int = 1) -> SimulatedSource:
    return SimulatedSource(clock or ManualClock(NOW), seed)


def btc(of: SimulatedSource) -> Instrument:
    return of.instruments(["BTC/USDT"])[0]


def history(of: SimulatedSource, timeframe: Timeframe, start: datetime, end: datetime) -> tuple[Series, list[Page]]:
    pages = list(of.history(btc(of), timeframe, to_us(start), to_us(end)))
    return joined([page.bars for page in pages]), pages


def polled(stream: MarketStream) -> Sequence[MarketEvent]:
    return stream.poll(0.0)


def test_any_part_of_the_market_equals_that_part_of_the_whole() -> None:
    whole = SimulatedMarket(4).trades("BTC/USDT", 1_700_000_000, 1_700_020_000)
    for start, stop in ((0, 1), (1, 4097), (4095, 4097), (17_000, 20_000)):
        part = SimulatedMarket(4).trades("BTC/USDT", 1_700_000_000 + start, 1_700_000_000 + stop)
        assert np.array_equal(part.price, whole.price[start:stop])
        assert np.array_equal(part.lots, whole.lots[start:stop])
        assert np.array_equal(part.time_us, whole.time_us[start:stop])
    other_seed = SimulatedMarket(5).trades("BTC/USDT", 1_700_000_000, 1_700_020_000)
    other_symbol = SimulatedMarket(4).trades("ETH/USDT", 1_700_000_000, 1_700_020_000)
    for other in (other_seed, other_symbol):
        assert abs(np.corrcoef(np.diff(np.log(whole.price)), np.diff(np.log(other.price)))[0, 1]) < 0.05


def test_returns_are_those_of_a_brownian_motion() -> None:
    trades = SimulatedMarket(0).trades("SIM001", 1_700_000_000, 1_700_000_000 + 2_000_000)
    for step in (60, 600, 3600):
        returns = np.diff(np.log(trades.price[::step]))
        assert np.std(returns) / np.sqrt(step) == pytest.approx(0.6 / np.sqrt(365 * 86_400), rel=0.1)
        assert abs(np.corrcoef(returns[1:], returns[:-1])[0, 1]) < 0.15


def test_bars_are_those_of_the_trades() -> None:
    bars, _ = history(source(), Timeframe.M5, NOW - timedelta(hours=2, seconds=30), NOW)
    assert len(bars["open"]) == 24
    market = SimulatedMarket(1)
    for row, open_us in enumerate(bars["open_us"].tolist()):
        trades = market.trades("BTC/USDT", open_us // 1_000_000, open_us // 1_000_000 + 300)
        assert trades.time_us[0] >= open_us
        assert trades.time_us[-1] < open_us + 300_000_000
        assert bars["open"][row] == trades.price[0]
        assert bars["high"][row] == max(trades.price)
        assert bars["low"][row] == min(trades.price)
        assert bars["close"][row] == trades.price[-1]
        assert bars["volume"][row] == sum(trades.lots.tolist()) * LOT_SIZE


def test_history_ends_with_the_last_closed_bar_and_says_until_where_it_is_whole() -> None:
    start = NOW - timedelta(days=2, seconds=30)
    bars, pages = history(source(), Timeframe.M1, start, NOW + timedelta(days=1))
    assert len(pages) == 3
    assert np.array_equal(bars["open_us"], np.arange(to_us(start), to_us(NOW) - 30_000_000, 60_000_000))
    assert pages[-1].until_us == to_us(NOW) - 30_000_000
    assert not list(source().history(btc(source()), Timeframe.M1, to_us(NOW), to_us(NOW) + 10**9))


def test_the_stream_is_the_same_however_it_is_polled_and_its_closed_bars_are_those_of_history() -> None:
    def run(steps: Sequence[float]) -> tuple[list[MarketEvent], SimulatedSource]:
        clock = ManualClock(NOW)
        of = source(clock)
        stream = of.stream([btc(of)], Timeframe.M1, ALL)
        events = list(polled(stream))
        for step in steps:
            clock.advance(step)
            events += polled(stream)
        stream.close()
        return events, of

    often, of = run([0.5] * 600)
    seldom, _ = run([300.0])
    assert isinstance(often[0], Connected)

    def without_clock(events: Sequence[MarketEvent]) -> list[str]:
        return [repr(event).rpartition("received_us")[0] for event in events[1:]]

    assert without_clock(often) == without_clock(seldom)
    closed = [event for event in often if isinstance(event, StreamedBar) and event.closed]
    growing = [event for event in often if isinstance(event, StreamedBar) and not event.closed]
    bars, _ = history(of, Timeframe.M1, NOW - timedelta(seconds=30), NOW + timedelta(minutes=5))
    told = [(bar.open_us, bar.open, bar.high, bar.low, bar.close, bar.volume) for bar in closed]
    assert told == list(zip(*(bars[name].tolist() for name in bars_columns(bars)), strict=True))
    assert len(growing) > len(closed)
    trades = [event for event in often if isinstance(event, StreamedTrade)]
    assert len({trade.id for trade in trades}) == len(trades) == 300
    for book in (event for event in often if isinstance(event, StreamedBook)):
        assert book.bids[0][0] < book.asks[0][0]
        assert sorted(book.bids, reverse=True) == list(book.bids)
        assert sorted(book.asks) == list(book.asks)


def bars_columns(bars: Series) -> list[str]:
    assert set(bars) == {"open_us", "open", "high", "low", "close", "volume"}
    return ["open_us", "open", "high", "low", "close", "volume"]


def test_the_venues_clock_runs_faster_and_starts_where_it_is_told() -> None:
    wall = ManualClock(NOW)
    start = datetime(2024, 1, 1, tzinfo=UTC)
    fast = SimulatedSource(wall, speed=600.0, start=start, since=NOW)
    stream = fast.stream([btc(fast)], Timeframe.M1, frozenset(["bars"]))
    wall.advance(1.0)
    closed = [event.open_us for event in polled(stream) if isinstance(event, StreamedBar) and event.closed]
    assert closed == [to_us(start + timedelta(minutes=minute)) for minute in range(10)]
    assert fast.clock.now() == start + timedelta(minutes=10)
    assert SpedClock(wall, 60.0, since=NOW).now() == NOW + timedelta(minutes=1)


def test_what_the_venue_does_not_have_is_refused() -> None:
    of = source()
    with pytest.raises(UserError, match=r"simulated has no btc-usdt: did you mean BTC/USDT"):
        of.instruments(["btc-usdt"])
    with pytest.raises(UserError, match="is no instrument of simulated"):
        of.history(Instrument(id="binance:BTC/USDT"), Timeframe.M1, 0, 1)
    with pytest.raises(UserError, match="no news"):
        of.stream([btc(of)], Timeframe.M1, frozenset(["news"]))
    with pytest.raises(UserError, match="speed"):
        SimulatedSource(ManualClock(NOW), speed=0.0)
    assert len(set(SYMBOLS)) == len(SYMBOLS) > 500
