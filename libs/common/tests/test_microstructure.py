"""Features over the columns of trades, order books and news: by hand, and in a stream as in a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradeloop.common import features as f
from tradeloop.common.features import Feature, FeatureSet, FeatureStream
from tradeloop.common.market import BarArrays, Timeframe, align, resample

BASE, HIGHER = Timeframe.M1, Timeframe.M5
SET = FeatureSet(
    [
        f.order_flow_imbalance(3),
        f.spread(),
        f.book_imbalance(4),
        f.microprice_deviation(2),
        f.realised_volatility(5),
        f.trade_intensity(2),
        f.buy_pressure(3),
        f.news_count(7),
        f.news_mean(20),
        f.on("5m", f.order_flow_imbalance(2)),
        f.on("5m", f.news_mean(3)),
        f.cross_rank(f.buy_pressure(2)),
        f.of(0, f.spread(2)),
    ]
)


def bars_of(seed: int, count: int, absent: float) -> BarArrays:
    rng = np.random.default_rng(seed)
    series = []
    for _ in range(2):
        there = rng.random(count) > 0.1
        there[0] = True
        n = int(there.sum())
        close = 100.0 * np.exp(np.cumsum(rng.normal(0, 1e-3, n)))
        columns = {
            "order_flow_imbalance": rng.normal(0, 5, n),
            "depth_mean": rng.lognormal(0, 1, n),
            "spread_mean": rng.lognormal(-8, 1, n),
            "book_imbalance_mean": rng.uniform(-1, 1, n),
            "microprice_deviation_mean": rng.normal(0, 1e-5, n),
            "realised_variance": rng.lognormal(-12, 1, n),
            "trade_intensity": rng.lognormal(0, 1, n),
            "buy_volume": rng.poisson(1.0, n) * 0.1,
            "sell_volume": rng.poisson(1.0, n) * 0.3,
            "news_count": rng.poisson(0.1, n) + 0.0,
            "news_rated_count": rng.poisson(0.05, n) + 0.0,
            "news_sentiment_sum": rng.uniform(-1, 1, n),
        }
        away = rng.random(n) < absent  # a bar during which the stream was away has none of them
        further = {name: np.where(away, np.nan, column) for name, column in columns.items()}
        prices = dict.fromkeys(("open", "high", "low", "close"), close)
        series.append({"open_us": 27_000_000 * BASE.us + np.flatnonzero(there) * BASE.us, **prices, **further})
    return align(["x:0", "x:1"], BASE, series)


@given(st.integers(0, 2**32), st.integers(1, 700), st.sampled_from([0.0, 0.05]), st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_a_stream_opened_at_any_bar_gives_the_batch_to_the_last_bit(
    seed: int, count: int, absent: float, at: float
) -> None:
    bars = bars_of(seed, count, absent)
    frames = {BASE: bars, HIGHER: resample(bars, BASE, HIGHER)}
    expected = SET.compute(frames, BASE).values
    cut = int(at * (len(bars) - 1))
    stream = FeatureStream(SET, BASE, bars.instruments)
    higher = frames[HIGHER]
    seen = int(np.searchsorted(higher.close_us, bars.close_us[cut], side="right"))
    stream.open({BASE: bars.slice(0, cut), HIGHER: higher.slice(0, seen)})
    for t in range(cut, len(bars)):
        while seen < len(higher) and higher.close_us[seen] <= bars.close_us[t]:
            row = SET.frame(higher, seen)
            stream.update_higher(HIGHER, int(higher.open_us[seen]), int(higher.close_us[seen]), row)
            seen += 1
        values = np.array(stream.update(int(bars.open_us[t]), int(bars.close_us[t]), SET.frame(bars, t)))
        np.testing.assert_array_equal(values, expected[t])


@pytest.mark.parametrize(
    ("feature", "columns", "value"),
    [
        (f.order_flow_imbalance(2), {"order_flow_imbalance": [3, -1], "depth_mean": [2, 6]}, 0.5),
        (f.spread(2), {"spread_mean": [0.1, 0.3]}, 0.2),
        (f.book_imbalance(2), {"book_imbalance_mean": [0.5, -1]}, -0.25),
        (f.microprice_deviation(2), {"microprice_deviation_mean": [0.5, -1]}, -0.25),
        (f.realised_volatility(2), {"realised_variance": [3, 1]}, 2.0),
        (f.trade_intensity(2), {"trade_intensity": [3, 1]}, 2.0),
        (f.buy_pressure(2), {"buy_volume": [3, 0], "sell_volume": [0, 1]}, 0.5),
        (f.buy_pressure(2), {"buy_volume": [0, 0], "sell_volume": [0, 0]}, 0.0),
        (f.news_count(2), {"news_count": [2, 1]}, 3.0),
        (f.news_mean(2), {"news_sentiment_sum": [0.5, -1.5], "news_rated_count": [1, 3]}, -0.25),
        (f.news_mean(2), {"news_sentiment_sum": [0, 0], "news_rated_count": [0, 0]}, 0.0),
        (f.spread(2), {"spread_mean": [0.1, math.nan]}, math.nan),
    ],
    ids=lambda one: one.name if isinstance(one, Feature) else "",
)
def test_a_value_by_hand(feature: Feature, columns: dict[str, Sequence[float]], value: float) -> None:
    prices = {name: np.full(2, 100.0) for name in ("open", "high", "low", "close")}
    further = {name: np.array(column, np.float64) for name, column in columns.items()}
    bars = align(["x:0"], BASE, [{"open_us": np.arange(2) * BASE.us, **prices, **further}])
    found = FeatureSet([feature]).compute({BASE: bars}, BASE).values[:, 0, 0]
    assert math.isnan(found[0])
    np.testing.assert_allclose(found[1], value, rtol=1e-12)
