"""The permutation test: luck is found to be luck, and foresight is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from libs.common.tests.test_trades import bars_of
from tradeloop.common.arrays import Floats
from tradeloop.common.evaluation.backtest import run
from tradeloop.common.evaluation.performance import regression
from tradeloop.common.evaluation.significance import DRAWS, Significance, significance
from tradeloop.common.market import BarArrays, Instrument, Timeframe, Universe
from tradeloop.common.portfolio import Costs, Portfolio
from tradeloop.common.strategy import Discrete, RewardContext, Strategy, log_return, reward

BARS = 600


@reward(version="1")
class Gain:
    """Return of equity."""

    def __call__(self, c: RewardContext) -> Floats:
        return c.equity / c.equity_prev - 1.0


STRATEGY = Strategy("s", [log_return(1)], Gain(), window=1, actions=Discrete())


def portfolio_of(bars: BarArrays, **options: Any) -> Portfolio:
    universe = Universe(
        name="u", timeframe=Timeframe.H1, instruments=tuple(Instrument(id=i, taker_bps=2.0) for i in bars.instruments)
    )
    return Portfolio(name="p", universe=universe, strategy="s", **options)


def walk(seed: int, count: int = 1) -> tuple[BarArrays, np.random.Generator]:
    generator = np.random.default_rng(seed)
    return bars_of(100.0 * np.exp(generator.normal(0.0, 0.01, (BARS, count)).cumsum(axis=0))), generator


def foresight(bars: BarArrays) -> Floats:
    """The side of the bar that a decision fills at the open of."""
    weights: Floats = np.sign(np.append(np.diff(bars.close[:, 0]), 0.0))[:, None]
    return weights


def test_foresight_beats_every_draw() -> None:
    bars, _ = walk(1)
    weights = foresight(bars)
    weights[:3] = np.nan
    found = significance(portfolio_of(bars), STRATEGY, bars, weights, seed=0)
    assert found is not None
    assert found.p_value == 1 / (DRAWS + 1)
    assert found.growth > 1.0 > found.draws[-1]


def test_foresight_of_a_cycle_is_found_although_a_whole_turn_is_as_good() -> None:
    """Targets that are only shifted fit again after every period."""
    bars = bars_of(100.0 * np.exp(0.02 * np.sin(np.arange(BARS) * 2 * np.pi / 24))[:, None])
    found = significance(portfolio_of(bars), STRATEGY, bars, foresight(bars), seed=0)
    assert found is not None
    assert found.blocks > 1
    assert found.p_value == 1 / (DRAWS + 1)


def test_the_p_value_of_a_random_policy_is_uniform() -> None:
    """100 policies that hold a random side for a while: a fifth of the p-values in each fifth, give or take."""
    values = []
    for seed in range(100):
        bars, generator = walk(seed)
        sides = generator.choice([-1.0, 0.0, 1.0], size=BARS)
        weights = sides[np.cumsum(generator.random(BARS) < 0.1)][:, None]
        found = significance(portfolio_of(bars), STRATEGY, bars, weights, seed=seed)
        assert found is not None
        values.append(found.p_value)
    counts = np.histogram(values, bins=5, range=(0.0, 1.0))[0]
    # Of chi-squared with four degrees of freedom, 18.5 is passed once in a thousand.
    assert ((counts - 20.0) ** 2 / 20.0).sum() < 18.5, counts


def test_a_draw_trades_as_often_as_the_policy() -> None:
    bars, generator = walk(2)
    weights = generator.choice([-1.0, 1.0], size=BARS)[np.cumsum(generator.random(BARS) < 0.2)][:, None]
    portfolio = portfolio_of(bars)
    found = significance(portfolio, STRATEGY, bars, weights, seed=0)
    assert found is not None
    result = run(portfolio, STRATEGY, bars, np.zeros((BARS, 1, 1)), lambda t, account: weights[t : t + 1])
    ours, theirs = (np.count_nonzero(r.fill_quantity) for r in (result, found.median))
    assert abs(ours - theirs) <= found.blocks + 1
    assert np.sort(found.median.weights, axis=0).tolist() == np.sort(weights, axis=0).tolist()
    assert found.growth == pytest.approx(np.log(result.final_equity / portfolio.capital), abs=1e-12)
    assert np.log(found.median.final_equity / portfolio.capital) == pytest.approx(found.draws[DRAWS // 2], abs=1e-12)


def test_a_policy_that_drifts_trades_although_no_step_leaves_its_band() -> None:
    bars, _ = walk(8)
    weights = 0.9 * np.sin(np.arange(BARS) / 5.0)[:, None]
    strategy = Strategy("s", [log_return(1)], Gain(), window=1, actions=Discrete(no_trade_band=0.5))
    found = significance(portfolio_of(bars), strategy, bars, weights, seed=0)
    assert found is not None
    assert found.blocks > 5
    assert abs(found.blocks - np.count_nonzero(found.median.fill_quantity) / 10) <= 2


def test_several_instruments_are_drawn_together() -> None:
    bars, generator = walk(3, count=3)
    weights = generator.choice([-1.0, 0.0, 1.0], size=(BARS, 3)) / 3.0
    found = significance(portfolio_of(bars), STRATEGY, bars, weights, seed=0)
    assert found is not None
    drawn: set[tuple[float, ...]] = set(map(tuple, found.median.weights.tolist()))
    assert drawn == set(map(tuple, weights.tolist()))


@pytest.mark.parametrize("decided", [1, 2, BARS])
def test_a_policy_that_never_changes_is_no_better_than_its_draws(decided: int) -> None:
    bars, _ = walk(4)
    weights = np.full((BARS, 1), np.nan)
    weights[-decided:] = 1.0
    found = significance(portfolio_of(bars), STRATEGY, bars, weights, seed=0)
    assert found is not None
    assert found.p_value == 1.0


def test_without_a_decision_there_is_nothing_to_judge() -> None:
    bars, _ = walk(5)
    assert significance(portfolio_of(bars), STRATEGY, bars, np.full((BARS, 1), np.nan), seed=0) is None


def test_draws_are_halted_by_the_limits_of_the_portfolio() -> None:
    bars, generator = walk(6)
    weights = generator.choice([-1.0, 1.0], size=(BARS, 1))
    portfolio = portfolio_of(bars, limits={"max_drawdown": 0.05}, costs=Costs(slippage_bps=20.0))
    found = significance(portfolio, STRATEGY, bars, weights, seed=0)
    assert found is not None
    assert found.halted == DRAWS
    assert found.median.halted_at is not None


def test_the_seed_is_the_draws() -> None:
    bars, generator = walk(7)
    weights = generator.choice([-1.0, 1.0], size=(BARS, 1))
    results: list[Significance | None] = [
        significance(portfolio_of(bars), STRATEGY, bars, weights, seed) for seed in (1, 1, 2)
    ]
    draws: list[NDArray[np.float64]] = [one.draws for one in results if one is not None]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


# --- alpha and beta -------------------------------------------------------------------------------


def curve(returns: Floats) -> Floats:
    return 100.0 * np.cumprod(np.append(1.0, 1.0 + returns))


def test_alpha_and_beta_are_those_of_least_squares() -> None:
    generator = np.random.default_rng(0)
    market = generator.normal(2e-4, 0.01, 500)
    mine = 3e-4 + 0.7 * market + generator.normal(0.0, 0.004, 500)
    found = regression(curve(mine), curve(market), 1000.0)
    assert found is not None
    design = np.column_stack((np.ones(500), market))
    solution, [residual], _, _ = np.linalg.lstsq(design, mine, rcond=None)
    errors = np.sqrt(residual / 498 * np.diag(np.linalg.inv(design.T @ design)))
    assert (found.alpha, found.beta) == pytest.approx((solution[0] * 1000.0, solution[1]), rel=1e-9)
    assert (found.alpha_error, found.beta_error) == pytest.approx((errors[0] * 1000.0, errors[1]), rel=1e-9)
    assert abs(found.beta - 0.7) < 3 * found.beta_error


def test_the_benchmark_itself_has_no_alpha() -> None:
    market = curve(np.random.default_rng(1).normal(0.0, 0.01, 100))
    found = regression(market, market, 365.0)
    assert found is not None
    assert (found.alpha, found.beta) == pytest.approx((0.0, 1.0), abs=1e-12)


@pytest.mark.parametrize(
    ("mine", "benchmark"),
    [
        (np.arange(1.0, 9.0), np.full(8, 5.0)),
        (np.arange(1.0, 4.0), np.arange(1.0, 4.0)),
        (np.arange(7.0, -1.0, -1.0), np.arange(1.0, 9.0)),
    ],
    ids=["a benchmark at rest", "too few bars", "a curve that went broke"],
)
def test_what_cannot_be_explained_is_not(mine: Floats, benchmark: Floats) -> None:
    assert regression(mine, benchmark, 365.0) is None
