"""Round trips, by hand and against the equity of random books."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tradeloop.common.arrays import Floats
from tradeloop.common.evaluation.backtest import follow
from tradeloop.common.evaluation.trades import RoundTrip, round_trips, trade_figures
from tradeloop.common.market import BarArrays, Instrument, Timeframe, align
from tradeloop.common.portfolio import Costs, RiskLimits
from tradeloop.common.simulation import Simulator


def bars_of(close: Floats, *, missing: float = 0.0, funding: float = 0.0, seed: int = 0) -> BarArrays:
    """Hours that open at the close before, one column of `close` (T, A) for each instrument."""
    generator = np.random.default_rng(seed)
    series = []
    for column in close.T:
        opened = np.append(column[0], column[:-1])
        kept = generator.random(len(column)) >= missing
        kept[0] = True
        one = {
            "open_us": np.arange(len(column)) * Timeframe.H1.us,
            "open": opened,
            "high": np.maximum(opened, column),
            "low": np.minimum(opened, column),
            "close": column,
            "funding_rate": generator.normal(0.0, funding, len(column)),
        }
        series.append({name: values[kept] for name, values in one.items()})
    return align([f"x:{a}" for a in range(close.shape[1])], Timeframe.H1, series)


def trips_of(bars: BarArrays, weights: Floats, costs: Costs, lot: float = 0.0) -> tuple[list[RoundTrip], Floats]:
    instruments = [Instrument(id=i, taker_bps=10.0, lot_size=lot) for i in bars.instruments]
    limits = RiskLimits(max_position=9.0, max_leverage=9.0, max_drawdown=1.0)
    simulator = Simulator(1, instruments, capital=1000.0, costs=costs, limits=limits, no_trade_band=0.0)
    [result] = follow(simulator, bars, lambda t: weights[t][None])
    found = round_trips(result.position, result.fill_quantity, result.fill_price, result.fill_fee, result.equity, bars)
    return found, result.equity


def test_by_hand() -> None:
    """Long over two closes from 100 to 110, then short from 110 to 99, which a rise to 120 leaves open."""
    bars = bars_of(np.array([[100.0], [105.0], [110.0], [99.0], [99.0], [120.0]]))
    nan = np.nan
    weights = np.array([[0.5], [nan], [-0.5], [0.0], [-1.0], [nan]])
    found, equity = trips_of(bars, weights, Costs(slippage_bps=0.0, fee_multiplier=0.0))
    long, short, last = found
    assert (long.opened, long.closed, long.bars) == (1, 3, 2)
    assert long.gain == pytest.approx(5 * 10.0)
    assert long.result == pytest.approx(0.05)
    sold = 0.5 * 1050.0 / 110.0
    assert (short.opened, short.closed, short.bars) == (3, 4, 1)
    assert short.gain == pytest.approx(sold * 11.0)
    assert (last.opened, last.closed, last.bars) == (5, None, 1)
    assert last.gain == pytest.approx(-equity[4] / 99.0 * 21.0)
    figures = trade_figures(found)
    assert (figures.count, figures.still_open, figures.win_rate) == (3, 1, 2 / 3)
    assert figures.average_win == pytest.approx((long.result + short.result) / 2)
    assert figures.average_loss == pytest.approx(last.result)
    assert figures.profit_factor == pytest.approx((long.gain + short.gain) / -last.gain)
    assert figures.average_bars == pytest.approx(4 / 3)


def test_adding_and_reducing_is_one_trip_and_a_flip_shares_its_fee() -> None:
    bars = bars_of(np.full((7, 1), 10.0))
    weights = np.array([[0.2], [0.6], [0.3], [-0.3], [-0.6], [0.0], [np.nan]])
    found, equity = trips_of(bars, weights, Costs(slippage_bps=0.0))
    long, short = found
    assert (long.opened, long.closed, short.opened, short.closed) == (1, 4, 4, 6)
    # 0.1 % of what was traded: 0.2, 0.4, 0.3 and 0.3 of equity, and then 0.3, 0.3 and 0.6.
    assert long.gain == pytest.approx(-1.2, rel=2e-3)
    assert short.gain == pytest.approx(-1.2, rel=4e-3)
    assert long.gain + short.gain == pytest.approx(equity[-1] - 1000.0)


@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 3),
    lot=st.sampled_from([0.0, 0.1]),
    missing=st.sampled_from([0.0, 0.2]),
    funding=st.sampled_from([0.0, 1e-3]),
)
def test_all_gains_are_what_equity_gained(seed: int, count: int, lot: float, missing: float, funding: float) -> None:
    generator = np.random.default_rng(seed)
    close = 50.0 * np.exp(generator.normal(0.0, 0.01, (60, count)).cumsum(axis=0))
    weights = generator.choice([-1.0, 0.0, 0.5, 1.0, np.nan], size=(60, count))
    bars = bars_of(close, missing=missing, funding=funding, seed=seed)
    found, equity = trips_of(bars, weights[: len(bars)], Costs(slippage_bps=3.0), lot)
    assert sum(trip.gain for trip in found) == pytest.approx(equity[-1] - 1000.0, abs=1e-8)
    assert all(trip.bars > 0 and trip.closed != trip.opened for trip in found)


def test_nothing_traded_has_no_figures() -> None:
    figures = trade_figures([])
    assert (figures.count, figures.win_rate, figures.profit_factor, figures.average_bars) == (0, None, None, None)
