"""Further columns of bars: their names, their rules, and their way through arrays and messages."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tradeloop.common.market import Bar, BarArrays, Series, Timeframe, align, joined, resample
from tradeloop.common.market.columns import Rule, rule_of
from tradeloop.common.messages import BarFrame

MINUTE = Timeframe.M1.us
PRICES = {"open": 10.0, "high": 11.0, "low": 9.0, "close": 10.5}


def bar(**extra: float) -> Bar:
    return Bar.model_validate({"instrument": "x:A", **PRICES, "extra": extra})


def series(minutes: Sequence[int], volume: Sequence[float], **extra: Sequence[float]) -> Series:
    n = len(minutes)
    return {
        "open_us": np.array(minutes, np.int64) * MINUTE,
        **{name: np.full(n, price) for name, price in PRICES.items()},
        "volume": np.array(volume, np.float64),
        **{name: np.array(values, np.float64) for name, values in extra.items()},
    }


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        *[(name, Rule.SUM) for name in ("trade_count", "buy_volume", "order_flow_imbalance", "realised_variance")],
        *[(name, Rule.SUM) for name in ("number_of_trades", "fees_sum", "count")],
        *[(name, Rule.MEAN) for name in ("spread_mean", "book_imbalance_mean", "trade_intensity")],
        *[("bid_max", Rule.MAX), ("ask_min", Rule.MIN), ("vwap", Rule.VWAP), ("trade_vwap", Rule.VWAP)],
        *[(name, Rule.LAST) for name in ("sentiment", "discount", "openinterest", "book_imbalance", "volumes")],
    ],
)
def test_a_name_says_how_it_is_resampled(name: str, rule: Rule) -> None:
    assert rule_of(name) is rule


@pytest.mark.parametrize("name", ["", "Mood", "1st", "a b", "_a", "a" * 49, "é", "volume", "time", "open_us", "extra"])
def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="a further column has a name of lower-case letters"):
        bar(**{name: 1.0})


def test_a_bar_has_finite_numbers_and_not_too_many_of_them() -> None:
    assert len(bar(**{f"c{n}": 1.0 for n in range(64)}).extra) == 64
    with pytest.raises(ValidationError, match="65 further columns: a bar has 64 at most"):
        bar(**{f"c{n}": 1.0 for n in range(65)})
    for value in (math.nan, math.inf):
        with pytest.raises(ValidationError, match="finite number"):
            bar(mood=value)


def test_a_frame_without_further_columns_looks_as_it_always_did() -> None:
    opened = datetime(2024, 1, 1, tzinfo=UTC)

    def sent(one: Bar) -> Mapping[str, object]:
        frame = BarFrame(
            universe="u",
            timeframe=Timeframe.M1,
            open_time=opened,
            close_time=opened + timedelta(minutes=1),
            bars=(one,),
        )
        assert BarFrame.model_validate_json(frame.encode()) == frame
        [told] = json.loads(frame.encode())["bars"]
        return dict(told)

    assert "extra" not in sent(bar())
    assert sent(bar(mood=1 / 3))["extra"] == {"mood": 1 / 3}


def test_series_are_put_beside_each_other_and_one_after_the_other() -> None:
    one, two = series([0, 1], [1, 1], mood=[1, 2]), series([1, 2], [1, 1], fear_max=[3, 4])
    bars = align(["x:A", "x:B"], Timeframe.M1, [one, two])
    expected = {"mood": [[1, None], [2, None], [None, None]], "fear_max": [[None, None], [None, 3], [None, 4]]}
    assert {name: told(column) for name, column in bars.extra.items()} == expected
    assert told(bars.slice(1, 2).extra["fear_max"]) == [[None, 3]]
    assert told(bars.frames(np.array([2, 0])).extra["mood"]) == [[None, None], [1, None]]
    later = joined([one, series([5], [1], fear_max=[7])])
    assert (told(later["mood"]), told(later["fear_max"])) == ([1, 2, None], [None, None, 7])
    assert told(bars.series(1)["fear_max"]) == [3, 4]


def told(values: np.ndarray) -> list[object]:
    """Values as lists, None for NaN."""
    return [told(row) if row.ndim else None if np.isnan(row) else float(row) for row in values]


def test_resampling_follows_the_rules() -> None:
    one = series(
        [0, 1, 2, 5, 6],
        [1.0, 3.0, 0.0, 2.0, math.nan],
        trade_count=[1, 2, 3, 4, math.nan],
        spread_mean=[1.0, math.nan, 2.0, math.nan, math.nan],
        bid_max=[1.0, 5.0, math.nan, -2.0, -3.0],
        ask_min=[math.nan, 5.0, 4.0, -2.0, -3.0],
        vwap=[10.0, 20.0, 99.0, 30.0, 99.0],
        mood=[1.0, 2.0, math.nan, math.nan, math.nan],
    )
    longer = resample(align(["x:A"], Timeframe.M1, [one]), Timeframe.M1, Timeframe.M5, 10 * MINUTE)
    assert {name: told(column[:, 0]) for name, column in longer.extra.items()} == {
        "trade_count": [6.0, None],  # nothing is known of one bar, so nothing of the sum
        "spread_mean": [1.5, None],
        "bid_max": [5.0, -2.0],
        "ask_min": [4.0, -3.0],
        "vwap": [17.5, 30.0],
        "mood": [2.0, None],
    }


values = st.one_of(st.just(math.nan), st.floats(-1e6, 1e6))


@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0.0, 1e3), values), unique_by=lambda row: row[0]))
def test_resampling_equals_a_group_by(rows: list[tuple[int, float, float]]) -> None:
    """Of polars, to the last digits but a few: it sums in an order of its own."""
    rows = sorted(rows)
    minutes, volume, value = zip(*rows, strict=True) if rows else ((), (), ())
    names = ("a_sum", "a_mean", "a_max", "a_min", "vwap", "a")
    assert {rule_of(name) for name in names} == set(Rule)
    one = series(minutes, volume, **dict.fromkeys(names, value))
    ours = resample(align(["x:A"], Timeframe.M1, [one]), Timeframe.M1, Timeframe.M5, 60 * MINUTE)
    table = pl.DataFrame({"t": minutes, "w": volume, "v": value}, {"t": pl.Int64, "w": pl.Float64, "v": pl.Float64})
    v, traded = pl.col("v").fill_nan(None), pl.col("w") > 0
    grouped = (
        table.group_by(pl.col("t") // 5, maintain_order=True)
        .agg(
            a_sum=pl.when(v.null_count() == 0).then(v.sum()),
            a_mean=v.mean(),
            a_max=v.max(),
            a_min=v.min(),
            vwap=(v * pl.col("w")).filter(traded).sum() / pl.col("w").filter(traded & v.is_not_null()).sum(),
            a=v.drop_nulls().last(),
        )
        .with_columns(pl.col("vwap").fill_nan(None))
    )
    for name in names:
        theirs = grouped[name].to_numpy().astype(np.float64)
        np.testing.assert_allclose(extra(ours, name), theirs, rtol=1e-9, atol=1e-9, err_msg=name)


def extra(bars: BarArrays, name: str) -> np.ndarray:
    return bars.extra[name][:, 0] if name in bars.extra else np.full(len(bars), np.nan)
