"""The baselines trade as they say, through the same simulator as a policy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from libs.cli.tests.runs import THREE, GainLessTurnover, random_walk
from tradeloop.common.evaluation.backtest import BacktestResult
from tradeloop.common.evaluation.baselines import baselines
from tradeloop.common.market import BarArrays, Instrument, Timeframe, Universe
from tradeloop.common.portfolio import Portfolio
from tradeloop.common.strategy import Strategy, log_return
from tradeloop.common.strategy.actions import ActionScheme, Discrete, PortfolioWeights, TargetPosition

WINDOW = 8
WARMING_UP = 5
FIRST = WARMING_UP + WINDOW - 1
"""The bar of the first decision."""


def trade(
    bars: BarArrays, *, seed: int = 0, actions: ActionScheme | None = None
) -> tuple[Portfolio, dict[str, BacktestResult]]:
    universe = Universe(
        name="u", timeframe=Timeframe.M1, instruments=tuple(Instrument(id=i, taker_bps=10.0) for i in bars.instruments)
    )
    portfolio = Portfolio(name="p", universe=universe, strategy="s")
    strategy = Strategy("s", [log_return(1)], GainLessTurnover(), window=WINDOW, actions=actions or TargetPosition())
    features: NDArray[np.float64] = np.zeros((*bars.open.shape, 1))
    features[:WARMING_UP] = np.nan
    return portfolio, baselines(portfolio, strategy, bars, features, seed)


def test_cash_stays_what_it_was() -> None:
    portfolio, results = trade(random_walk(100, THREE))
    assert list(results) == ["cash", "buy_and_hold", "random"]
    assert (results["cash"].equity == portfolio.capital).all()


def test_buy_and_hold_buys_equal_weights_once() -> None:
    bars = random_walk(100, THREE)
    portfolio, results = trade(bars)
    held = results["buy_and_hold"]
    assert [t for t in range(100) if held.fill_quantity[t].any()] == [FIRST + 1]
    quantity = portfolio.capital / 3 / bars.close[FIRST]
    assert held.fill_quantity[FIRST + 1] == pytest.approx(quantity)
    paid = bars.open[FIRST + 1] * 1.0001 * 1.001  # slippage of 1 bp, then a fee of 10
    assert held.final_equity == pytest.approx(portfolio.capital + (quantity * (bars.close[-1] - paid)).sum(), rel=1e-6)


def test_buy_and_hold_buys_what_comes_later_when_it_comes() -> None:
    bars = random_walk(60, THREE)
    late = bars.present.copy()
    late[:30, 1] = False
    opened, closed = np.where(late, bars.open, np.nan), np.where(late, bars.close, np.nan)
    _, results = trade(dataclasses.replace(bars, present=late, open=opened, close=closed))
    filled = results["buy_and_hold"].fill_quantity
    assert [int(np.flatnonzero(filled[:, a])[0]) for a in range(3)] == [FIRST + 1, 31, FIRST + 1]
    assert (filled != 0.0).sum() == 3


@pytest.mark.parametrize("actions", [TargetPosition(), Discrete(), PortfolioWeights()])
def test_random_decides_where_a_policy_would(actions: ActionScheme) -> None:
    bars = random_walk(100, THREE)
    weights = trade(bars, actions=actions)[1]["random"].weights
    assert np.isnan(weights[:FIRST]).all()
    assert len(np.unique(weights[FIRST:], axis=0)) > 10
    assert (np.abs(weights[FIRST:]).sum(axis=1) <= 1.0 + 1e-9).all()


def test_random_is_its_seed() -> None:
    bars = random_walk(100, THREE)
    one, same, other = (trade(bars, seed=seed)[1]["random"].equity for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_bars_shorter_than_the_window_are_held_through() -> None:
    portfolio, results = trade(random_walk(FIRST, THREE))
    assert {name: result.final_equity for name, result in results.items()} == dict.fromkeys(results, portfolio.capital)
