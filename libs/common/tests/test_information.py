"""Information coefficients, beside pandas and on data whose relation is known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from tradeloop.common.arrays import Floats
from tradeloop.common.evaluation.information import correlations, examine, forward_returns, newey_west, ranks
from tradeloop.common.market import BarArrays, Timeframe, align


def bars_of(returns: Floats, missing: float = 0.0, seed: int = 1) -> BarArrays:
    """Bars whose closes make these log returns (T, A)."""
    there = np.random.default_rng(seed).random(returns.shape) >= missing
    close = 100.0 * np.exp(np.cumsum(returns, axis=0))
    series = []
    for a in range(returns.shape[1]):
        own = np.flatnonzero(there[:, a])
        series.append(
            {"open_us": own * Timeframe.H1.us, **dict.fromkeys(("open", "high", "low", "close"), close[own, a])}
        )
    return align([f"x:{a}" for a in range(returns.shape[1])], Timeframe.H1, series)


def related(length: int, instruments: int, strength: float, seed: int = 0) -> tuple[BarArrays, Floats]:
    """A feature with this correlation with the next return, normal both."""
    rng = np.random.default_rng(seed)
    feature, noise = rng.normal(size=(2, length, instruments))
    returns = np.zeros((length, instruments))
    returns[1:] = 0.01 * (strength * feature[:-1] + math.sqrt(1 - strength**2) * noise[1:])
    return bars_of(returns), feature


@pytest.mark.parametrize("strength", [0.0, 0.1, -0.3])
def test_a_known_relation_is_found_with_its_error(strength: float) -> None:
    bars, feature = related(20_000, 2, strength)
    [facts] = examine(bars, ["known"], feature[..., None], [1, 10])
    one, ten = facts.coefficients
    assert one.ic == pytest.approx(strength, abs=0.02)
    assert one.rank_ic == pytest.approx(6 / math.pi * math.asin(strength / 2), abs=0.02)  # Spearman's of normal numbers
    assert ten.ic == pytest.approx(strength / math.sqrt(10), abs=0.03)
    assert one.error == pytest.approx(1 / math.sqrt(40_000), rel=0.2)
    assert (one.adjusted < 0.001) is (strength != 0.0)
    assert facts.autocorrelation == pytest.approx(0.0, abs=0.02)


def test_coefficients_are_those_of_pandas_over_gaps_and_ties() -> None:
    rng = np.random.default_rng(3)
    bars = bars_of(rng.normal(0, 0.01, (900, 3)), missing=0.1)
    feature = np.round(rng.normal(size=bars.close.shape), 1)
    feature[:50] = np.nan
    [facts] = examine(bars, ["tied"], feature[..., None], [3])
    close = pd.DataFrame(np.where(bars.present, bars.close, np.nan))
    later = close.shift(-3).div(close).map(math.log, na_action="ignore")
    pairs = pd.DataFrame({"one": feature.ravel(), "other": later.to_numpy().ravel()}).dropna()
    found = facts.coefficients[0]
    assert found.pairs == len(pairs)
    assert found.ic == pytest.approx(pairs["one"].corr(pairs["other"]), rel=1e-9)
    assert found.rank_ic == pytest.approx(pairs["one"].rank().corr(pairs["other"].rank()), rel=1e-9)
    np.testing.assert_array_equal(np.isnan(forward_returns(bars, 3)), later.isna())
    np.testing.assert_array_equal(ranks(pairs["one"].to_numpy()), pairs["one"].rank())
    assert facts.missing == pytest.approx(np.isnan(feature)[bars.present].mean())


def test_overlapping_returns_are_rarely_taken_for_evidence() -> None:
    """Two slow walks that know nothing of each other: a naive error finds something in most of them."""
    found, naive = 0, 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        bars = bars_of(rng.normal(0, 0.01, (2000, 1)))
        feature = pd.DataFrame(rng.normal(size=(2000, 1))).ewm(span=20).mean().to_numpy()
        [facts] = examine(bars, ["slow"], feature[..., None], [20])
        one = facts.coefficients[0]
        found += one.p_value < 0.05
        naive += abs(one.rank_ic) * math.sqrt(one.pairs) > 1.96
    assert found <= 10
    assert naive > 20


def test_the_error_of_a_mean_follows_its_memory() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=50_000)
    assert newey_west(noise, 10) == pytest.approx(noise.std() / math.sqrt(50_000), rel=0.05)
    moving = np.convolve(noise, np.ones(5), "valid")  # the error of its mean is five times that of the noise
    assert newey_west(moving, 200) == pytest.approx(5 * noise.std() / math.sqrt(len(moving)), rel=0.1)


def test_many_tests_are_adjusted_for_their_number() -> None:
    bars, _ = related(3000, 1, 0.0)
    noise = np.random.default_rng(9).normal(size=(3000, 1, 40))
    facts = examine(bars, [f"noise_{n}" for n in range(40)], noise, [1, 5, 20])
    every = [c for one in facts for c in one.coefficients]
    assert sum(c.p_value < 0.05 for c in every) >= 2
    assert all(c.adjusted >= c.p_value for c in every)
    assert not any(c.adjusted < 0.05 for c in every)


def test_features_beside_each_other() -> None:
    bars, feature = related(4000, 2, 0.0)
    values = np.stack([feature, -(feature**3), np.random.default_rng(5).normal(size=feature.shape)], axis=2)
    found = correlations(values)
    np.testing.assert_allclose(found, [[1, -1, 0], [-1, 1, 0], [0, 0, 1]], atol=0.05)
    assert found[0, 1] == pytest.approx(-1.0, abs=1e-12)
    assert len(bars) == 4000


def test_a_feature_that_never_changes_says_nothing() -> None:
    bars, feature = related(500, 1, 0.0)
    [facts] = examine(bars, ["flat"], np.ones((*feature.shape, 1)), [1])
    assert math.isnan(facts.coefficients[0].ic)
    assert math.isnan(facts.coefficients[0].adjusted)
