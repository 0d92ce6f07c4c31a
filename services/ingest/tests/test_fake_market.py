"""The market behind the fake venue: pure functions of seed and time, whose trades, bars and books agree."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeloop.common.market import to_us
from tradeloop.ingest.contracts.fake_venue import Listing, Market, VenueClock
from tradeloop.ingest.contracts.fake_venue.market import BOOK_US, TIMEFRAMES, US

NOW = datetime(2024, 3, 1, tzinfo=UTC)
START_US = to_us(datetime(2024, 2, 5, tzinfo=UTC))
"""A Monday."""


@cache
def corrected_by(share: float) -> Market:
    """One market for many examples: it remembers its minutes."""
    return market(corrections=share)


def market(**options: object) -> Market:
    return Market(seed=7, clock=VenueClock(NOW, speed=0.0), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("timeframe", ["1s", "30s", "1m", "5m", "1h", "4h"])
def test_bars_are_what_their_trades_make(timeframe: str) -> None:
    """Against plain Python, trade by trade."""
    truth, length_us = market(), TIMEFRAMES[timeframe] * US
    bars = truth.bars("BTC/USDT", timeframe, START_US, START_US + 2 * length_us)
    assert bars.open_us.tolist() == [START_US, START_US + length_us]
    for index, open_us in enumerate(bars.open_us.tolist()):
        trades = truth.trades("BTC/USDT", open_us, open_us + length_us)
        prices = [trade.price for trade in trades]
        said = [column[index] for column in (bars.open, bars.high, bars.low, bars.close)]
        assert said == [prices[0], max(prices), min(prices), prices[-1]]
        assert bars.trades[index] == len(trades)
        assert bars.volume[index] == pytest.approx(sum(trade.size for trade in trades), rel=1e-12)
        assert bars.taker_buy[index] == pytest.approx(sum(trade.size for trade in trades if trade.buy), rel=1e-12)
        value = sum(trade.price * trade.size for trade in trades)
        assert bars.quote_volume[index] == pytest.approx(value, rel=1e-12)


def test_numbers_are_those_of_their_decimal_texts() -> None:
    bars = market().bars("BTC/USDT", "1m", START_US, START_US + 500 * 60 * US)
    for column in (bars.open, bars.high, bars.low, bars.close):
        assert [float(f"{price:.2f}") for price in column] == column.tolist()
    assert [float(f"{volume:.5f}") for volume in bars.volume] == bars.volume.tolist()


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["5m", "15m", "1h", "1d", "1w"]),
    st.integers(0, 10 * 1440),
    st.integers(0, 3000),
    st.sampled_from([0.0, 0.3]),
)
def test_any_range_is_a_slice_of_the_whole(timeframe: str, first: int, count: int, corrections: float) -> None:
    truth, length_us = corrected_by(corrections), TIMEFRAMES[timeframe] * US
    start_us = START_US + first * 60 * US + 17
    end_us = start_us + count * 60 * US
    part = truth.bars("ETH/USDT", timeframe, start_us, end_us)
    minutes = truth.bars("ETH/USDT", "1m", START_US, START_US + 28 * 86_400 * US)
    opens = START_US + length_us * np.arange(28 * 86_400 * US // length_us)
    opens = opens[(opens >= start_us) & (opens < end_us)]
    assert np.array_equal(part.open_us, opens)
    for index, open_us in enumerate(opens.tolist()):
        inside = (minutes.open_us >= open_us) & (minutes.open_us < open_us + length_us)
        assert part.open[index] == minutes.open[inside][0]
        assert part.high[index] == minutes.high[inside].max()
        assert part.low[index] == minutes.low[inside].min()
        assert part.close[index] == minutes.close[inside][-1]
        assert part.volume[index] == pytest.approx(minutes.volume[inside].sum(), rel=1e-12)


def test_seeds_and_symbols_differ_and_repeat() -> None:
    first, again = market(), market()
    other = Market(seed=8, clock=VenueClock(NOW, speed=0.0))
    span = (START_US, START_US + 3600 * US)
    bars = first.bars("BTC/USDT", "1m", *span)
    assert np.array_equal(bars.close, again.bars("BTC/USDT", "1m", *span).close)
    assert not np.array_equal(bars.close, other.bars("BTC/USDT", "1m", *span).close)
    assert not np.array_equal(bars.trades, first.bars("ETH/USDT", "1m", *span).trades)


def test_what_is_known_grows_and_is_corrected() -> None:
    truth = market(corrections=0.5, correction_delay_s=120.0)
    now_us = START_US + 600 * US + 30 * US
    span = (START_US, START_US + 3600 * US)
    known = truth.bars("BTC/USDT", "1m", *span, known_us=now_us, part=True)
    final = truth.bars("BTC/USDT", "1m", START_US, START_US + 11 * 60 * US)
    assert known.open_us.tolist() == final.open_us.tolist()
    differ = set(final.open_us[known.volume != final.volume].tolist())
    corrected = set(truth.corrected("BTC/USDT", now_us + 1, now_us + 180 * US).tolist())
    assert 0 < len(corrected) <= 3
    assert differ == corrected | {START_US + 600 * US}
    early = truth.trades("BTC/USDT", START_US + 600 * US, now_us)
    assert known.close[-1] == early[-1].price
    assert known.trades[-1] == len(early)


def test_one_bar_grows_to_the_closed_one() -> None:
    truth = market(corrections=0.5)
    for timeframe in ("1s", "1m", "15m", "1h"):
        close_us = START_US + TIMEFRAMES[timeframe] * US
        closed = truth.bars("BTC/USDT", timeframe, START_US, START_US + 1, known_us=close_us)
        grown = truth.bar("BTC/USDT", timeframe, START_US, close_us)
        assert (grown.open, grown.high, grown.low) == (closed.open, closed.high, closed.low)
        assert (grown.close, grown.volume, grown.trades) == (closed.close, closed.volume, closed.trades)
    part = truth.bar("BTC/USDT", "15m", START_US, START_US + 150 * US)
    trades = truth.trades("BTC/USDT", START_US, START_US + 150 * US)
    assert part.high[0] == max(trade.price for trade in trades)


def test_books_stand_around_the_last_trade() -> None:
    truth = market()
    for step in range(START_US // BOOK_US, START_US // BOOK_US + 300, 7):
        book = truth.book("BTC/USDT", step)
        last = truth.trades("BTC/USDT", START_US - 60 * US, (step + 1) * BOOK_US)[-1]
        bids, asks = [price for price, _ in book.bids], [price for price, _ in book.asks]
        assert bids == sorted(bids, reverse=True)
        assert asks == sorted(asks)
        assert bids[0] < asks[0]
        assert (asks[0] if last.buy else bids[0]) == last.price
        assert min(size for _, size in (*book.bids, *book.asks)) > 0.0


def test_listings_begin_and_end() -> None:
    listing = Listing("NEW/USDT", begins=datetime(2024, 2, 6, tzinfo=UTC), ends=datetime(2024, 2, 8, tzinfo=UTC))
    bars = market(symbols=[listing]).bars("NEW/USDT", "12h", START_US, START_US + 30 * 86_400 * US)
    assert (bars.open_us - START_US).tolist() == [(24 + 12 * number) * 3600 * US for number in range(4)]
    assert market(symbols=[listing]).trades("NEW/USDT", START_US, START_US + 86_400 * US) == []
    with pytest.raises(ValueError, match="midnight"):
        market(symbols=[Listing("A", begins=datetime(2024, 2, 6, 1, tzinfo=UTC))])


def test_news_come_once_whatever_the_ranges_are() -> None:
    truth = market()
    day = truth.news("AAPL", START_US, START_US + 86_400 * US)
    parts = [truth.news("AAPL", START_US + hour * 3600 * US, START_US + (hour + 1) * 3600 * US) for hour in range(24)]
    assert [one for part in parts for one in part] == day
    assert 10 < len(day) < 50


def test_a_clock_runs_stands_and_jumps() -> None:
    from tradeloop.common.clock import ManualClock

    machine = ManualClock(datetime(2030, 1, 1, tzinfo=UTC))
    clock = VenueClock(NOW, speed=60.0, machine=machine)
    machine.advance(2.0)
    assert clock.now_us() == to_us(NOW) + 120 * US
    clock.advance(1.5)
    assert clock.now_us() == to_us(NOW) + 121_500_000
    again = VenueClock(NOW, speed=60.0, anchor=datetime(2030, 1, 1, tzinfo=UTC), machine=machine)
    assert again.now_us() == to_us(NOW) + 120 * US
    assert VenueClock(machine=machine).now_us() == to_us(machine.now())
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1.0)
