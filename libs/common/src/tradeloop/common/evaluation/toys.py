"""Toy markets, made from a seed, whose best policy is known: whoever does not learn these does not learn.

Each is hourly, of one instrument, and costs what a portfolio's defaults cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import erf, sqrt

import numpy as np

from tradeloop.common.arrays import Floats, Ints
from tradeloop.common.evaluation import backtest
from tradeloop.common.market import BarArrays, Instrument, Timeframe, Universe, align
from tradeloop.common.portfolio import Costs, Portfolio
from tradeloop.common.strategy import Strategy

BARS, TRAIN_BARS = 12_000, 8_400
"""The length of a market, and of its first part, which is learnt from."""
TAKER_BPS, SLIPPAGE_BPS = 2.0, 1.0
COST = (TAKER_BPS + SLIPPAGE_BPS) / 1e4
"""The cost of a trade as a share of its value."""
LEVELS = np.array([-1.0, 0.0, 1.0])
"""The weights that the best policies choose from."""

_ID = "toy:market"
_START_US = 1_577_836_800_000_000
"""2020-01-01, UTC."""

Rule = Callable[[int, float], float]
"""Gives the weight to hold from row t on, told the weight that is held."""


@dataclass(frozen=True)
class Toy:
    """A market: its bars, and the rule that is best for whoever knows its law."""

    name: str
    bars: BarArrays
    best: Rule

    @property
    def portfolio(self) -> Portfolio:
        """A portfolio that trades it."""
        universe = Universe(
            name=f"toy-{self.name}",
            instruments=(Instrument(id=_ID, lot_size=1e-6, taker_bps=TAKER_BPS),),
            timeframe=Timeframe.H1,
        )
        costs = Costs(slippage_bps=SLIPPAGE_BPS)
        return Portfolio(name=universe.name, universe=universe, strategy="toy", costs=costs)

    def features(self, strategy: Strategy) -> Floats:
        """The strategy's features (T, A, F) of all bars."""
        return strategy.feature_set.compute({Timeframe.H1: self.bars}, Timeframe.H1).values

    def optimum(self, strategy: Strategy) -> float:
        """The log growth of equity over the bars that are not learnt from, under the best rule."""
        start = TRAIN_BARS
        features = self.features(strategy)[start:]

        def decide(t: int, account: Floats) -> Floats:
            return np.array([[self.best(start + t, float(account[0]))]])

        result = backtest.run(self.portfolio, strategy, self.bars.slice(start, len(self.bars)), features, decide)
        return float(np.log(result.final_equity / result.equity[0]))


def sine(seed: int, period: int = 48, amplitude: float = 0.02) -> Toy:
    """A wave, whose phase the seed chooses. The best rule knows the future, and so does whoever sees the phase."""
    phase = np.random.default_rng(seed).uniform(0.0, period)
    close = 100.0 * np.exp(amplitude * np.sin(2.0 * np.pi * (np.arange(BARS) + phase) / period))
    returns = np.diff(np.log(close))
    ahead, choice = np.zeros(len(LEVELS)), np.zeros((BARS, len(LEVELS)), dtype=np.int64)
    for t in range(BARS - 2, -1, -1):
        value = LEVELS[None] * returns[t] - COST * np.abs(LEVELS[None] - LEVELS[:, None]) + ahead[None]
        choice[t], ahead = value.argmax(axis=1), value.max(axis=1)

    def best(t: int, weight: float) -> float:
        return float(LEVELS[choice[t, _level(weight)]])

    return Toy("sine", _bars(close), best)


def autoregressive(seed: int, phi: float = 0.95, sigma: float = 0.004) -> Toy:
    """A log price that returns to its mean: x(t) = phi x(t - 1) + sigma e(t). The best rule is by value iteration."""
    generator = np.random.default_rng(seed)
    x = np.zeros(BARS)
    for t in range(1, BARS):
        x[t] = phi * x[t - 1] + sigma * generator.standard_normal()
    grid, choice = _value_iteration(phi, sigma)

    def best(t: int, weight: float) -> float:
        return float(LEVELS[choice[_level(weight), np.abs(grid - x[t]).argmin()]])

    return Toy("autoregressive", _bars(100.0 * np.exp(x)), best)


def _value_iteration(phi: float, sigma: float, points: int = 161, discount: float = 0.999) -> tuple[Floats, Ints]:
    """The level to choose (level held, log price) on a grid of log prices: Bellman, Dynamic Programming (1957)."""
    spread = 4.0 * sigma / sqrt(1.0 - phi * phi)
    grid = np.linspace(-spread, spread, points)
    half = 0.5 * (grid[1] - grid[0])
    below = np.vectorize(lambda z: 0.5 * (1.0 + erf(z / sqrt(2.0))))
    reached = (grid[None] - phi * grid[:, None]) / sigma
    moves = below(reached + half / sigma) - below(reached - half / sigma)
    moves /= moves.sum(axis=1, keepdims=True)
    fee = COST * np.abs(LEVELS[None] - LEVELS[:, None])[:, :, None]
    values = np.zeros((len(LEVELS), points))
    while True:
        earned = LEVELS[:, None] * (phi - 1.0) * grid[None] + discount * values @ moves.T
        by_choice = earned[None] - fee
        better = by_choice.max(axis=1)
        if np.abs(better - values).max() < 1e-9:
            return grid, by_choice.argmax(axis=1)
        values = better


def regimes(seed: int, drift: float = 0.001, sigma: float = 0.003, length: int = 100) -> Toy:
    """A trend that turns now and then, and whose sign the volume shows: 2 while it rises, 1 while it falls."""
    generator = np.random.default_rng(seed)
    turns = np.where(generator.random(BARS) < 1.0 / length, -1.0, 1.0)
    state: Floats = np.asarray(np.multiply.accumulate(turns), dtype=np.float64)
    returns = drift * state + sigma * generator.standard_normal(BARS)
    close = 100.0 * np.exp(np.cumsum(returns))
    return Toy("regimes", _bars(close, np.asarray(1.5 + 0.5 * state)), lambda t, weight: float(state[t]))


def rising(seed: int, drift: float = 0.0002, sigma: float = 0.002) -> Toy:
    """A market that rises, with noise: the best rule holds it."""
    noise = np.random.default_rng(seed).standard_normal(BARS)
    return Toy("rising", _bars(100.0 * np.exp(np.cumsum(drift + sigma * noise))), lambda t, weight: 1.0)


def walk(seed: int, sigma: float = 0.004) -> Toy:
    """A random walk: the best rule stays out."""
    noise = np.random.default_rng(seed).standard_normal(BARS)
    return Toy("walk", _bars(100.0 * np.exp(np.cumsum(sigma * noise))), lambda t, weight: 0.0)


TOYS: Mapping[str, Callable[[int], Toy]] = {
    "sine": sine,
    "autoregressive": autoregressive,
    "regimes": regimes,
    "rising": rising,
    "walk": walk,
}


def _level(weight: float) -> int:
    return int(np.abs(LEVELS - weight).argmin())


def _bars(close: Floats, volume: Floats | None = None) -> BarArrays:
    """Bars that open where the last one closed."""
    opened = np.r_[close[0], close[:-1]]
    series = {
        "open_us": _START_US + np.arange(len(close)) * Timeframe.H1.us,
        "open": opened,
        "high": np.maximum(opened, close),
        "low": np.minimum(opened, close),
        "close": close,
        "volume": np.ones(len(close)) if volume is None else volume,
    }
    return align((_ID,), Timeframe.H1, [series])
