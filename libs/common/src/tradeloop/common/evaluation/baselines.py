"""Baselines that a policy must beat: rules that need no learning, through the same simulator, costs and limits."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tradeloop.common.arrays import Floats
from tradeloop.common.evaluation import backtest
from tradeloop.common.evaluation.backtest import BacktestResult
from tradeloop.common.market import BarArrays
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.strategy import Strategy


def baselines(
    portfolio: Portfolio, strategy: Strategy, bars: BarArrays, features: Floats, seed: int
) -> dict[str, BacktestResult]:
    """`cash`, `buy_and_hold` and `random` over the bars that a policy of `strategy` would trade.

    `features` is (T, A, F), NaN while an indicator warms up. Every rule decides on the same bars as a policy: from
    the first full window on.
    """
    count = len(bars.instruments)
    hold = np.full((1, count), np.nan)
    decides = _decides(features, strategy.window)
    generator = np.random.default_rng(seed)
    scheme = strategy.actions

    def cash(t: int, account: Floats) -> Floats:
        return hold

    def buy_and_hold(t: int, account: Floats) -> Floats:
        """Equal weights, once: what did not fill is tried again, what is held is left alone."""
        if not decides[t]:
            return hold
        return np.where(account[None, :count] == 0.0, 1.0 / count, np.nan)

    def random(t: int, account: Floats) -> Floats:
        """A new action at every decision, uniform over what the policy could answer."""
        if not decides[t]:
            return hold
        size = (1, scheme.size(count))
        if scheme.kind == "box":
            return scheme.weights(generator.uniform(-1.0, 1.0, size))
        return scheme.weights(generator.integers(scheme.choices, size=size).astype(np.float64))

    rules = {"cash": cash, "buy_and_hold": buy_and_hold, "random": random}
    return {name: backtest.run(portfolio, strategy, bars, features, rule) for name, rule in rules.items()}


def buy_and_hold(portfolio: Portfolio, strategy: Strategy, bars: BarArrays, features: Floats) -> BacktestResult:
    """Buy at the first decision, in equal shares, and hold."""
    return baselines(portfolio, strategy, bars, features, seed=0)["buy_and_hold"]


def _decides(features: Floats, window: int) -> NDArray[np.bool_]:
    """(T,): where the last `window` rows of features are known."""
    known = ~np.isnan(features).any(axis=(1, 2))
    full = np.zeros(len(features), dtype=np.bool_)
    if len(features) >= window:
        full[window - 1 :] = sliding_window_view(known, window).all(axis=1)
    return full
