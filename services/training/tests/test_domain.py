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
from tradeloop.common.portfolio import RiskLimits
from tradeloop.training.adapters.environment import TradingVecEnv
from tradeloop.training.domain.figures import summary
from tradeloop.training.domain.material import (
    Market,
    Segment,
    default_episode_bars,
    episode_starts,
    join,
    segment,
    whole,
)
from tradeloop.training.domain.scaler import fit_scaler, usual_features, usual_return

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
        assert episode_starts(bars, features, window, episode, whole(len(known))).tolist() == possible
    else:
        with pytest.raises(UserError, match=f"need {window + episode} bars in a row"):
            episode_starts(bars, features, window, episode, whole(len(known)))


def test_an_episode_starts_only_where_every_price_is_known() -> None:
    close = np.ones((12, 1))
    close[:4] = np.nan
    assert episode_starts(bars_of(close), np.ones((12, 1, 1)), WINDOW, EPISODE, whole(12)).tolist() == [4, 5, 6]


def test_the_scaler_centres_and_scales_each_feature_of_each_instrument() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal([[1.0, 2.0], [3.0, 4.0]], [[1.0, 10.0], [0.1, 5.0]], (600, 2, 2))
    features[7, 1, 0] = np.nan
    features[:, 0, 0] = 0.1  # a constant
    features[500:] = 1e6  # kept apart
    usual = np.array([0.01, 0.04])
    scaler = fit_scaler(features, WINDOW, usual, (Segment(0, 500, 600),))
    known = np.delete(features[:500], 7, axis=0).reshape(-1, 4)
    assert len(scaler.mean) == len(scaler.scale) == WINDOW * 4 + 7
    scaled = (np.tile(known, WINDOW) - scaler.mean[:-7]) * scaler.scale[:-7]
    np.testing.assert_allclose(scaled.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(scaled.std(axis=0), [0.0, 1.0, 1.0, 1.0] * WINDOW, atol=1e-5)
    assert scaler.mean[-7:].tolist() == [0.0] * 7, "no position and no loss stay 0"
    weights, unrealised, holding, drawdown = np.split(scaler.scale[-7:], [2, 4, 6])
    assert weights.tolist() == [2.0, 2.0], "an equal share is 1"
    np.testing.assert_allclose(unrealised, [100.0, 25.0], rtol=1e-6)
    assert holding.tolist() == [1.0, 1.0]
    np.testing.assert_allclose(drawdown, [40.0], rtol=1e-6)


def test_what_is_usual_of_a_feature_is_that_of_the_bars_that_are_learnt_from() -> None:
    features = np.random.default_rng(1).normal(3.0, 2.0, (300, 2, 3))
    features[7, 1, 0] = np.nan
    features[200:] = 1e6  # kept apart
    means, deviations = usual_features(features, (Segment(0, 200, 300),))
    for f in range(3):
        values = [float(features[t, a, f]) for t in range(200) if t != 7 for a in range(2)]
        assert means[f] == pytest.approx(statistics.fmean(values))
        assert deviations[f] == pytest.approx(statistics.pstdev(values))


def test_the_account_is_seen_on_the_scale_of_the_features(make_world: Any) -> None:
    """Unscaled, drawdown and unrealised return would be hundreds of times smaller than a feature."""
    world = make_world(length=2000)
    usual = usual_return(world.bars, whole(2000))
    assert usual == pytest.approx([0.004 * math.sqrt(32)], rel=0.05), "the world moves by 0.4 percent a bar"
    scaler = fit_scaler(world.features, WINDOW, usual, whole(2000))
    env = TradingVecEnv(
        world.portfolio,
        world.strategy(),
        world.bars,
        world.features,
        books=64,
        episode_bars=256,
        generator=np.random.default_rng(0),
        staggered=True,
    )
    env.reset()
    chance, action, seen = np.random.default_rng(1), np.ones((64, 1)), []
    for _ in range(256):
        action *= np.where(chance.random((64, 1)) < 1 / 32, -1.0, 1.0)
        seen.append(env.step(action)[0][:, -4:].copy())
    deviation = (np.concatenate(seen) * scaler.scale[-4:]).std(axis=0)
    assert np.all((deviation > 0.1) & (deviation < 10.0)), deviation


def test_a_price_that_is_not_known_or_never_moves_is_no_scale() -> None:
    close = np.full((10, 2), np.nan)
    close[:, 1] = 5.0
    assert usual_return(bars_of(close), whole(10)).tolist() == [1.0, 1.0]


def test_the_last_share_of_what_is_known_is_kept_apart() -> None:
    features = np.ones((300, 1, 1))
    features[:100] = np.nan
    assert segment(features, 0.15) == Segment(0, 270, 300)
    assert segment(features, 0.14) == Segment(0, 300, 300), "28 bars say nothing"
    assert segment(features, 0.0) == Segment(0, 300, 300)
    assert segment(features, 0.5) == Segment(0, 200, 300)
    assert segment(np.full((300, 1, 1), np.nan), 0.15) == Segment(0, 300, 300)


def test_markets_are_joined_and_no_episode_crosses_from_one_to_the_other(make_world: Any) -> None:
    one, other = make_world(length=200, seed=1), make_world(length=180, seed=2)
    markets = [Market(world.bars, world.features) for world in (one, other)]
    material = join(markets, 0.25)
    assert material.segments == [Segment(0, 151, 200), Segment(200, 351, 380)], "the same time is kept apart of both"
    np.testing.assert_array_equal(material.bars.close, np.concatenate([one.bars.close, other.bars.close]))
    known = np.where(np.isnan(material.features), 0.0, material.features)
    starts = episode_starts(material.bars, known, WINDOW, EPISODE, material.segments).tolist()
    assert starts == [*range(2, 151 - EPISODE), *range(202, 351 - EPISODE)]
    with pytest.raises(UserError, match="market 1 of 2 has 200 bars, 49 of them kept apart for validation"):
        episode_starts(material.bars, known, WINDOW, 150, material.segments)
    with pytest.raises(UserError, match="a policy of 1 instruments cannot learn from a market of 2"):
        join([markets[0], Market(make_world(instruments=2).bars, make_world(instruments=2).features)], 0.25)


def test_a_short_history_has_short_episodes() -> None:
    assert default_episode_bars(np.ones((5000, 1, 1)), whole(5000)) == 256
    assert default_episode_bars(np.ones((500, 1, 1)), (Segment(0, 300, 500),)) == 75
    assert default_episode_bars(np.ones((2, 1, 1)), whole(2)) == 1
    both = (Segment(0, 5000, 5000), Segment(5000, 5200, 5200))
    assert default_episode_bars(np.ones((5200, 1, 1)), both) == 100, "the shorter market is learnt from too"


def test_a_summary_of_several_markets_is_of_one_after_the_other(make_world: Any) -> None:
    worlds = [make_world(seed=seed) for seed in (1, 2)]
    results = [backtest(w.portfolio, w.strategy(), w.bars, w.features, Long()) for w in worlds]
    told, parts = summary(results), [summary([result]) for result in results]
    for name in ("fills", "fees", "reward"):
        assert told[name] == pytest.approx(sum(part[name] for part in parts))
    assert 1.0 + told["total_return"] == pytest.approx(math.prod(1.0 + part["total_return"] for part in parts))


class Still:
    def act(self, observation: Any) -> Any:
        return np.zeros((1, 1))


class Long:
    def act(self, observation: Any) -> Any:
        return np.ones((1, 1))


def test_a_summary_is_finite_even_where_nothing_happened(make_world: Any) -> None:
    world = make_world()
    still = summary([backtest(world.portfolio, world.strategy(), world.bars, world.features, Still())])
    assert still == {"total_return": 0, "sharpe": 0, "max_drawdown": 0, "fills": 0, "fees": 0, "reward": 0}


def test_a_summary_tells_what_was_achieved(make_world: Any) -> None:
    world = make_world()
    result = backtest(world.portfolio, world.strategy(), world.bars, world.features, Long())
    told = summary([result])
    assert told["total_return"] == pytest.approx(result.final_equity / 100_000 - 1)
    assert told["fills"] == np.count_nonzero(result.fill_quantity) > 0
    assert told["max_drawdown"] == pytest.approx(
        max(1 - e / max(result.equity[: t + 1]) for t, e in enumerate(result.equity))
    )
    returns = [after / before - 1.0 for before, after in pairwise(result.equity.tolist())]
    ratio = statistics.mean(returns) / statistics.stdev(returns)
    assert told["sharpe"] == pytest.approx(ratio * math.sqrt(365.25 * 24 * 60)), "minutes without a gap"
    seldom = replace(result, bars_per_year=result.bars_per_year / 4)
    assert summary([seldom])["sharpe"] == pytest.approx(told["sharpe"] / 2), "a quarter of the bars in a year"


def test_a_summary_counts_what_the_risk_gate_denied(make_world: Any) -> None:
    world = make_world(limits=RiskLimits(max_position=0.5))
    result = backtest(world.portfolio, world.strategy(), world.bars, world.features, Long())
    assert result.denials["max_position"] == result.decisions > 100
    assert summary([result])["denied_max_position"] == result.decisions
    assert summary([result, result])["denied_max_position"] == 2 * result.decisions
