from __future__ import annotations

import math
import statistics
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeloop.common.errors import UserError
from tradeloop.common.evaluation.backtest import backtest
from tradeloop.common.market import BarArrays
from tradeloop.training.domain import episode_starts, fit_scaler, summary

WINDOW, EPISODE = 3, 5


def bars_of(close: Any) -> BarArrays:
    """Bars of which only the closes matter."""
    times = np.arange(len(close)) * 60_000_000
    return BarArrays(("a:X",), times, times + 60_000_000, close, close, close, close, close, close, np.isfinite(close))


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=40), st.integers(1, 4), st.integers(1, 6))
def test_an_episode_never_meets_an_unknown_feature(known: list[bool], window: int, episode: int) -> None:
    features = np.where(np.array(known, dtype=bool), 1.0, np.nan)[:, None, None]
    bars = bars_of(np.ones((len(known), 1)))
    possible = [
        row for row in range(window - 1, len(known) - episode) if all(known[row - window + 1 : row + episode + 1])
    ]
    if possible:
        assert episode_starts(bars, features, window, episode).tolist() == possible
    else:
        with pytest.raises(UserError, match=f"need {window + episode} bars in a row"):
            episode_starts(bars, features, window, episode)


def test_an_episode_starts_only_where_every_price_is_known() -> None:
    close = np.ones((12, 1))
    close[:4] = np.nan
    assert episode_starts(bars_of(close), np.ones((12, 1, 1)), WINDOW, EPISODE).tolist() == [4, 5, 6]


def test_the_scaler_centres_and_scales_each_feature_of_each_instrument() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal([[1.0, 2.0], [3.0, 4.0]], [[1.0, 10.0], [0.1, 5.0]], (500, 2, 2))
    features[7, 1, 0] = np.nan
    features[:, 0, 0] = 0.1  # a constant
    scaler = fit_scaler(features, WINDOW, account=7)
    known = np.delete(features, 7, axis=0).reshape(-1, 4)
    assert len(scaler.mean) == len(scaler.scale) == WINDOW * 4 + 7
    scaled = (np.tile(known, WINDOW) - scaler.mean[:-7]) * scaler.scale[:-7]
    np.testing.assert_allclose(scaled.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(scaled.std(axis=0), [0.0, 1.0, 1.0, 1.0] * WINDOW, atol=1e-5)
    assert scaler.mean[-7:].tolist() == [0.0] * 7, "the account part passes through"
    assert scaler.scale[-7:].tolist() == [1.0] * 7


class Still:
    def act(self, observation: Any) -> Any:
        return np.zeros((1, 1))


class Long:
    def act(self, observation: Any) -> Any:
        return np.ones((1, 1))


def test_a_summary_is_finite_even_where_nothing_happened(make_world: Any) -> None:
    world = make_world()
    still = summary(backtest(world.portfolio, world.strategy(), world.bars, world.features, Still()))
    assert still == {"total_return": 0, "sharpe": 0, "max_drawdown": 0, "fills": 0, "fees": 0, "reward": 0}


def test_a_summary_tells_what_was_achieved(make_world: Any) -> None:
    world = make_world()
    result = backtest(world.portfolio, world.strategy(), world.bars, world.features, Long())
    told = summary(result)
    assert told["total_return"] == pytest.approx(result.final_equity / 100_000 - 1)
    assert told["fills"] == np.count_nonzero(result.fill_quantity) > 0
    assert told["max_drawdown"] == pytest.approx(
        max(1 - e / max(result.equity[: t + 1]) for t, e in enumerate(result.equity))
    )
    returns = [after / before - 1.0 for before, after in pairwise(result.equity.tolist())]
    ratio = statistics.mean(returns) / statistics.stdev(returns)
    assert told["sharpe"] == pytest.approx(ratio * math.sqrt(365.25 * 24 * 60)), "minutes without a gap"
    seldom = replace(result, bars_per_year=result.bars_per_year / 4)
    assert summary(seldom)["sharpe"] == pytest.approx(told["sharpe"] / 2), "a quarter of the bars in a year"
