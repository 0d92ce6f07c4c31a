"""The scenario of all subjects: synthetic minute bars of one instrument, a strategy, its portfolio."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from tradeloop.common.market import BarArrays, Instrument, Timeframe, Universe, align, to_us
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.strategy import Strategy, TargetPosition, load, log_return, on, relative, talib

START_US = to_us(datetime(2024, 1, 1, tzinfo=UTC))


def example() -> Strategy:
    """The example's reward of three components, eight features on two timeframes, a window of 32, target positions.

    It stays as it is, whatever becomes of the example, so that figures of different days can be compared.
    """
    own = load("example")
    features = [
        log_return(15),
        log_return(60),
        log_return(240),
        talib("RSI", timeperiod=60),
        talib("NATR", timeperiod=60),
        relative(talib("EMA", timeperiod=60)),
        relative(talib("EMA", timeperiod=240)),
        on("4h", relative(talib("EMA", timeperiod=5))),
    ]
    return Strategy(own.name, features, own.reward, window=32, actions=TargetPosition(no_trade_band=0.5))


def universe(name: str = "bench") -> Universe:
    """One instrument on minutes; with lots and fees, since rounding and charging them is part of the work."""
    instrument = Instrument(id=f"file:{name}", lot_size=1e-6, taker_bps=2.0)
    return Universe(
        name=name,
        instruments=(instrument,),
        timeframe=Timeframe.M1,
        higher_timeframes=example().feature_set.timeframes,
    )


def portfolio(traded: Universe) -> Portfolio:
    """The platform's default costs (slippage of 1 bp) and limits."""
    return Portfolio(name=traded.name, universe=traded, strategy=example().name)


def bars(traded: Universe, length: int, seed: int) -> BarArrays:
    """A random walk without gaps."""
    generator = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(generator.normal(0.0, 5e-4, length)))
    open_ = np.concatenate(([100.0], close[:-1]))
    spread = np.abs(generator.normal(0.0, 2e-4, (2, length)))
    series = {
        "open_us": START_US + np.arange(length) * traded.timeframe.us,
        "open": open_,
        "high": np.maximum(open_, close) * (1.0 + spread[0]),
        "low": np.minimum(open_, close) * (1.0 - spread[1]),
        "close": close,
        "volume": generator.uniform(1.0, 100.0, length),
    }
    return align(traded.ids, traded.timeframe, [series])


def features(length: int, seed: int) -> NDArray[np.float64]:
    """Known values of the example's eight features, (length, 1, 8). An environment copies them, whatever they are."""
    return np.random.default_rng(seed).normal(size=(length, 1, len(example().feature_set.names)))
